"""Start ranks, see one of them die or hang, and start again from the last complete checkpoint, also with fewer ranks.

The supervisor knows nothing of training. It starts a function on P ranks, and starts it again if ranks are lost; that
the function then goes on where it was is the business of its checkpoints. An error of the program itself is raised at
once: it would come again.

Dimensions: P ranks.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import CommError, ConfigError
from minillm.parallel.board import Board
from minillm.parallel.comm import Comm
from minillm.parallel.launch import RankDied, launch


@dataclass(frozen=True)
class Attempt:
    """How one start went.

    Args:
        world_size: number of ranks P.
        cause: why it ended before its time; None for the last one.
        start_seconds: from the start until the last of the ranks had joined; NaN if not all of them did.
        run_seconds: from there to the end, or to the moment when the supervisor knew of the loss.
        detection_seconds: from the lost rank's last sign of life (its last collective) to that moment; NaN if none
            was lost, or no rank can be named.
    """

    world_size: int
    cause: str | None
    start_seconds: float
    run_seconds: float
    detection_seconds: float


@dataclass(frozen=True)
class Supervised:
    """What came out.

    Args:
        results: of the last attempt, in rank order.
        attempts: all of them.
    """

    results: list[Any]
    attempts: list[Attempt]

    @property
    def restart_seconds(self) -> float:
        """From the first knowledge of a loss until the new ranks had joined, over all restarts."""
        return sum(attempt.start_seconds for attempt in self.attempts[1:])


@dataclass(frozen=True)
class Worker:
    """What each rank runs: it signs the supervisor's board, then calls the function."""

    function: Callable[..., Any]
    attempt: int
    board: Path

    def __call__(self, comm: Comm, *args: Any) -> Any:
        """`function(comm, attempt, *args)`; collectives are noted where the supervisor can read them afterwards."""
        comm.board = Board(self.board, 2 * comm.size)
        comm.board.write(comm.size + comm.rank, 0, "joined", "")
        comm.board.write(comm.rank, 0, "joined", "")
        return self.function(comm, self.attempt, *args)


def supervise(
    function: Callable[..., Any],
    n_ranks: int,
    *args: Any,
    min_ranks: int | None = None,
    max_restarts: int = 3,
    timeout_seconds: float = 60.0,
    **launch_settings: Any,
) -> Supervised:
    """Run `function(comm, attempt, *args)` on `n_ranks` processes until it ends well.

    After a loss it is started again: with as many ranks as before if `min_ranks` is None (a machine was replaced), or
    with one less, down to `min_ranks` (a machine is gone).

    Args:
        function: as for `launch`; `attempt` is 0, 1, ... It must begin by looking for a checkpoint.
        n_ranks: how many to begin with.
        args: handed on.
        min_ranks: the least that can go on; None: always `n_ranks`.
        max_restarts: how often.
        timeout_seconds: a rank for which the others wait so long is lost.
        launch_settings: more of `launch`.

    Returns:
        the results, and how each attempt went.

    Raises:
        CommError: after the last restart failed, or when fewer than `min_ranks` are left; the notes tell all attempts.
        Exception: any other error of a rank, at once.
        ConfigError: if the numbers contradict each other.
    """
    if not 1 <= (n_ranks if min_ranks is None else min_ranks) <= n_ranks or max_restarts < 0:
        raise ConfigError(
            f"min_ranks {min_ranks}, n_ranks {n_ranks}, max_restarts {max_restarts}: expected 1 <= min_ranks <= "
            "n_ranks and 0 or more restarts"
        )
    settings = {"timeout_seconds": timeout_seconds, **launch_settings}
    attempts: list[Attempt] = []
    world_size = n_ranks
    with tempfile.TemporaryDirectory(prefix="minillm-supervisor-") as folder:
        while True:
            worker = Worker(function, len(attempts), Path(folder) / f"board-{len(attempts)}")
            begin, error, results = time.time(), None, []
            try:
                results = launch(worker, world_size, *args, **settings)
            except CommError as caught:
                error = caught
            attempts.append(report(worker, world_size, begin, time.time(), error))
            if error is None:
                return Supervised(results, attempts)
            world_size = next_size(world_size, min_ranks, error, attempts, max_restarts)


def report(worker: Worker, world_size: int, begin: float, end: float, error: CommError | None) -> Attempt:
    """What the board says of an attempt."""
    board = Board(worker.board, 2 * world_size)
    joined = [board.read(world_size + rank).time for rank in range(world_size)]
    last_joined = max(joined) if all(joined) else float("nan")
    lost = [error.rank] if isinstance(error, RankDied) else []
    last_sign = board.read(lost[0]).time if lost and board.read(lost[0]).time else float("nan")
    cause = None if error is None else str(error).splitlines()[0]
    return Attempt(world_size, cause, last_joined - begin, end - last_joined, end - last_sign)


def next_size(
    world_size: int, min_ranks: int | None, error: CommError, attempts: list[Attempt], max_restarts: int
) -> int:
    """With how many ranks to go on; raises the error if that cannot be."""
    after = world_size if min_ranks is None else world_size - 1
    if len(attempts) > max_restarts or (min_ranks is not None and after < min_ranks):
        for number, attempt in enumerate(attempts):
            error.add_note(f"attempt {number} with {attempt.world_size} ranks: {attempt.cause}")
        raise error
    return after
