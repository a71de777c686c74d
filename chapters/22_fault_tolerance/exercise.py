"""Chapter 22, Fault tolerance: fill in the holes (14 points).

`minillm course test 22` tests this file, `minillm course test 22 22.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.errors import CheckpointError, ConfigError
from minillm.parallel.checkpoint_interval import check_not_negative, check_positive, cut_into_segments
from minillm.parallel.comm import Comm
from minillm.parallel.failure_drill import drill_all_or_none, drill_stop
from minillm.parallel.pieces import Piece, check_shape_of, cut_along
from minillm.parallel.rings import part_bounds
from minillm.parallel.sharded_checkpoint import Claim, check_claims


def put_piece(whole: Tensor, part: Tensor, piece: Piece) -> None:
    """Write what a rank holds to its place in the whole tensor; `cut_piece` backwards.

    Args:
        whole: of shape `piece.shape`; changed in place, and only where the piece lies.
        part: of shape `piece.part_shape`.
        piece: where it belongs.

    Raises:
        ShapeError: if one of the two has another shape.

    Example:
        >>> whole = torch.zeros(4, 2, dtype=torch.int64)
        >>> put_piece(whole, torch.tensor([7, 8, 9]), Piece((4, 2), 0, ((1, 2), (3, 4)), flat=(1, 4)))
        >>> whole.tolist()
        [[0, 0], [0, 7], [0, 0], [8, 9]]
    """
    # TASK 22.1 (3 points)
    # Read, change, write: take the piece's cut out of the whole as `cut_along` does, change the numbers of it
    # that the part brings, and write the cut back range by range. Several ranges come from `cut_along` as a copy:
    # what you write into that, the whole never sees.
    raise NotImplementedError("task 22.1")


def assign_writers(claims: Sequence[Mapping[str, Claim]]) -> list[list[str]]:
    """Who writes what: each distinct part of each tensor once, by a rank that holds it.

    The parts are given out in the order in which they first come in the claims, rank 0's first: each to that one of its
    holders who has fewest bytes to write so far, the lowest of several such ranks.

    Args:
        claims: of all ranks, in rank order: name -> what it holds of the tensor.

    Returns:
        the names that each rank writes, in rank order; every rank computes the same.

    Raises:
        CheckpointError: if ranks differ about a tensor's shape or format, or hold only a part of it together.
    """
    # TASK 22.2 (2 points)
    # First collect who holds what: a dictionary from (name, piece) to ranks. The same name with two different
    # pieces is two parts. Then walk through it once, with a list of the bytes that every rank has got so far.
    # `check_claims` does the refusing.
    raise NotImplementedError("task 22.2")


def all_or_none(comm: Comm, action: Callable[[], Any]) -> list[Any]:
    """Let every rank do something that may fail on some of them, so that it has succeeded on all or failed on all.

    A rank that simply raised its error would leave the others waiting for it at their next collective. So each rank
    first tries, then all tell each other how it went, and only then does anyone go on.

    Args:
        comm: the ranks; all of them call this.
        action: what this rank does; may raise.

    Returns:
        the results of all ranks, in rank order, on each of them.

    Raises:
        Exception: on a rank whose action failed, its own error.
        CheckpointError: on the ranks whose action did not fail while another's did, naming those and their errors.

    Source:
        the first half of two-phase commit: J. Gray, Notes on Data Base Operating Systems, 1978.
    """
    # TASK 22.3 (3 points)
    # No error may leave before the vote: catch it and keep it. `comm.all_objects` brings everybody's (failure,
    # result) to everybody. After it each rank knows all, and decides alone: my own error, an error about the
    # others, or the results.
    raise NotImplementedError("task 22.3")


def rows_of_rank(step: int, global_batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """Which rows of an endless stream a rank trains on at a step.

    Step s takes rows s B to (s + 1) B, whoever trains; the ranks take neighbouring parts of these that differ by one
    row at most, the first ranks the longer ones.

    Args:
        step: counted from 0 over the whole run, restarts included.
        global_batch: rows of all ranks together B, at least one for each rank.
        rank: of the data-parallel group.
        world_size: number of ranks P.

    Returns:
        (begin, end): the rank has rows begin to end - 1.

    Raises:
        ConfigError: if the step is negative, the rank is none of P, or there are fewer rows than ranks.

    Example:
        >>> [rows_of_rank(2, 8, rank, 3) for rank in range(3)]
        [(16, 19), (19, 22), (22, 24)]
        >>> [rows_of_rank(2, 8, rank, 2) for rank in range(2)]
        [(16, 20), (20, 24)]
    """
    # TASK 22.4 (2 points)
    # `part_bounds` cuts the rows of one step into parts. What does step number s add to them? The number of ranks
    # must not be in it.
    raise NotImplementedError("task 22.4")


def agree_on_signal(comm: Comm, received: str | None) -> str | None:
    """Which signal to stop for: the same answer on all ranks, at the same step.

    Each rank looks once, before it asks. A signal that comes while the ranks are talking is seen at the next step, by
    all of them alike. Where ranks received different signals, the one of the highest number counts.

    Args:
        comm: all ranks; all of them call this at the same point of the same step.
        received: the signal that has reached this rank, "SIGTERM" or "SIGINT", or None.

    Returns:
        its name, or None if no rank has received one.

    Raises:
        ConfigError: if there is no signal of that name.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> launch_threads(lambda comm: agree_on_signal(comm, "SIGTERM" if comm.rank == 1 else None), 3)
        ['SIGTERM', 'SIGTERM', 'SIGTERM']
        >>> launch_threads(lambda comm: agree_on_signal(comm, None), 2)
        [None, None]
    """
    # TASK 22.5 (2 points)
    # A signal has a number, `signal.Signals["SIGTERM"].value`, and no signal has the number 0. Every rank asks at
    # every step, also the one that has nothing to say: `comm.all_numbers` waits for all.
    raise NotImplementedError("task 22.5")


def expected_run_seconds(
    work_seconds: float, interval: float, save_seconds: float, failure_seconds: float, restart_seconds: float
) -> float:
    """How long a run takes on average, with failures: exact for exponential times between them.

    The work is cut into segments of `interval` (the last one may be shorter), each followed by a save. A segment of s
    seconds, save included, that must run through without a failure takes (M + restart) (exp(s / M) - 1) on average:
    there are exp(s / M) - 1 failures before it succeeds. Restarting takes its time too, and does not fail.

    Args:
        work_seconds: the run would take without failures and saves.
        interval: work between two saves.
        save_seconds: one save takes, 0 or more.
        failure_seconds: M, mean time between failures.
        restart_seconds: from a failure until work goes on, 0 or more.

    Returns:
        the mean number of seconds.

    Raises:
        ConfigError: unless work, interval and M are above 0 and the others 0 or more.

    Source:
        J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation
        Computer Systems 22(3), 2006; there a restart can fail as well.

    Example:
        >>> round(expected_run_seconds(1000, 100, 0, failure_seconds=1e9, restart_seconds=0), 2)
        1000.0
        >>> round(expected_run_seconds(1000, 300, 10, failure_seconds=1000, restart_seconds=50), 1)
        1266.9
    """
    # TASK 22.6 (2 points)
    # `cut_into_segments` gives the number of full segments and the rest. Each segment, its save included, costs
    # what the formula says; the rest is a segment of its own, if there is one. `math.expm1(x)` is exp(x) - 1.
    raise NotImplementedError("task 22.6")
