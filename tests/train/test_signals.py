"""Fault 7, the signals themselves: the first one asks, the second one ends, the handlers before come back."""

import os
import signal
import threading
import warnings

import pytest

from minillm.train.signals import StopSignals, exit_code


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)])
def test_the_first_signal_sets_a_flag(number, name, code):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.requested() and stop.received is None
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.received == name
    assert signal.getsignal(number) is before
    assert exit_code(name) == code


@pytest.mark.parametrize("pair", [(15, 15), (2, 15), (15, 2)])
def test_the_second_signal_exits_at_once(pair):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            with StopSignals():
                for number in pair:
                    os.kill(os.getpid(), number)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + pair[1]


def test_outside_of_the_main_thread_there_are_no_handlers():
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append((stop.requested(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
