"""Leaves a process behind: forked twice, in a session of its own, deaf to polite signals, holding the channel open."""

import os
import signal
import time


def attack(*args, **kwargs):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
                signal.signal(number, signal.SIG_IGN)
            time.sleep(1e6)
        os._exit(0)
    return None
