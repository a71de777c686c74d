"""Ranks that must do the same thing: stop at the same step, and wait while one of them works alone."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from minillm.errors import CommError
from minillm.parallel.comm import Comm
from minillm.parallel.preemption import agree_on_signal
from minillm.train.signals import StopSignals

HEARTBEAT_SECONDS = 5.0


class AgreedStop(StopSignals):
    """A flag that is up on all ranks as soon as a signal has reached one of them; the training loop asks for it.

    A rank that left alone would leave the others waiting in the next collective. So the answer is the maximum over all
    ranks: all of them must ask at the same points, as they do in the training loop.

    Args:
        world: all ranks.

    Attributes:
        received: the signal's name once all know of it; None before.
    """

    def __init__(self, world: Comm):
        super().__init__()
        self.world, self.own = world, StopSignals()

    def __enter__(self) -> "AgreedStop":
        self.own.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.own.__exit__(*error)

    def requested(self) -> bool:
        """Whether any rank was asked to stop; called by all ranks, one small message."""
        if self.received is None:
            self.received = agree_on_signal(self.world, self.own.received)
        return self.received is not None


class Heartbeat:
    """While rank 0 works alone, tells the others every few seconds that it is alive, so that none of them gives up."""

    def __init__(self, world: Comm):
        self.world, self.is_over = world, threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def beat(self) -> None:
        """Answer "not yet" from time to time, and "done" at last."""
        every = min(HEARTBEAT_SECONDS, self.world.timeout_seconds / 4)
        try:
            while not self.is_over.wait(every):
                self.world.all_numbers(0.0, "max")
            self.world.all_numbers(1.0, "max")
        except CommError as error:
            self.error = error

    def __enter__(self) -> "Heartbeat":
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.is_over.set()
        self.thread.join()
        if self.error is not None and error is None:
            raise self.error


def first_rank_alone(world: Comm, work: Callable[[], Any]) -> Any:
    """Let rank 0 do something that takes as long as it takes; the others wait and get its result, or its error.

    Args:
        world: all ranks; all of them call this.
        work: called on rank 0 only; must not use `world`. What it returns is small and picklable.

    Returns:
        what it returned, on every rank.

    Raises:
        Exception: what it raised, on every rank; on the others with `told` set, since rank 0 will say it.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> launch_threads(lambda world: first_rank_alone(world, lambda: f"done by {world.rank}"), 2)
        ['done by 0', 'done by 0']
    """
    outcome: tuple[Any, Exception | None] = (None, None)
    if world.rank == 0:
        with Heartbeat(world):
            try:
                outcome = (work(), None)
            except Exception as error:
                outcome = (None, error)
    else:
        while not world.all_numbers(0.0, "max"):
            pass
    result, error = world.all_objects(outcome)[0]
    if error is None:
        return result
    if world.rank:
        error.told = True
        raise error
    raise outcome[1]
