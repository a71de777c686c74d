"""Failures played through among threads: what every rank is told when one of them fails, or is asked to stop.

For looking at it step by step; nothing here is needed for training.
"""

import threading
from collections.abc import Sequence

from minillm.errors import CommError, MinillmError
from minillm.parallel import preemption, sharded_checkpoint
from minillm.parallel.comm import Comm
from minillm.parallel.threads import launch_threads

PATIENCE_SECONDS = 1.0  # of a rank that waits for another one


def drill_all_or_none(failures: Sequence[str | None]) -> tuple[list[tuple[str, list[str]]], list[int]]:
    """Let each of P ranks call `sharded_checkpoint.all_or_none` with an action that fails where it is told to.

    Args:
        failures: for each rank the text of the OSError that its action raises, or None; where it is None, the action of
            rank r returns "file r".

    Returns:
        for each rank ("returned", the results) or (name of the error's class, [its text]), "CommError" for a rank that
        waited in vain; and the ranks whose action was called, in order, one entry for each call.

    Example:
        >>> drill_all_or_none([None, None])
        ([('returned', ['file 0', 'file 1']), ('returned', ['file 0', 'file 1'])], [0, 1])
    """
    called, lock = [], threading.Lock()

    def act(comm: Comm) -> tuple[str, list[str]]:
        def action() -> str:
            with lock:
                called.append(comm.rank)
            if failures[comm.rank] is not None:
                raise OSError(failures[comm.rank])
            return f"file {comm.rank}"

        try:
            return "returned", sharded_checkpoint.all_or_none(comm, action)
        except (OSError, MinillmError) as error:
            return type(error).__name__, [str(error)]

    outcomes = launch_threads(act, len(failures), timeout_seconds=PATIENCE_SECONDS)
    return outcomes, sorted(called)


def drill_stop(received: Sequence[Sequence[str | None]]) -> list[tuple[int, str | None]]:
    """Let each of P ranks ask `preemption.agree_on_signal` at every step until it is told to stop.

    Args:
        received: for each step, what each rank has received by then.

    Returns:
        for each rank the step at which it left and the signal it was told; (number of steps, None) if it never was, and
        (step, "waited in vain") if the others did not come.

    Example:
        >>> drill_stop([[None, None], [None, "SIGTERM"], [None, "SIGTERM"]])
        [(1, 'SIGTERM'), (1, 'SIGTERM')]
    """

    def act(comm: Comm) -> tuple[int, str | None]:
        for step, names in enumerate(received):
            try:
                agreed = preemption.agree_on_signal(comm, names[comm.rank])
            except CommError:
                return step, "waited in vain"
            if agreed is not None:
                return step, agreed
        return len(received), None

    return launch_threads(act, len(received[0]), timeout_seconds=PATIENCE_SECONDS)
