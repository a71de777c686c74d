"""Leaving in good order: the first SIGTERM or Ctrl-C asks the run to save and stop, the second ends it at once."""

import os
import signal
import threading
from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which SIGTERM and SIGINT set a flag that loops ask for; the handlers before it come back after it.

    Outside of the main thread, where Python allows no handlers, it only holds the flag.

    Attributes:
        received: the signal's name, "SIGTERM" or "SIGINT", or None.

    Example:
        >>> with StopSignals() as stop:
        ...     stop.requested()
        False
    """

    def __init__(self):
        self.received: str | None = None
        self.previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.handle) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def requested(self) -> bool:
        """Whether the run was asked to stop; cheap enough to ask at every batch and every token."""
        return self.received is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Set the flag; at the second signal leave without any cleaning up, with exit code 128 + number."""
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number).name


def exit_code(stopped_by: str | None) -> int:
    """What a shell expects of a program that a signal ended: 128 + its number; 0 if none did.

    Args:
        stopped_by: name of the signal or None.

    Example:
        >>> exit_code("SIGTERM"), exit_code("SIGINT"), exit_code(None)
        (143, 130, 0)
    """
    return 0 if stopped_by is None else 128 + signal.Signals[stopped_by].value
