"""Chapter 21, Pipeline parallel: fill in the holes (15 points).

`minillm course test 21` tests this file, `minillm course test 21 21.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections.abc import Sequence
from fractions import Fraction

from minillm.errors import ConfigError
from minillm.parallel.pipedream import MODES
from minillm.parallel.schedules import BACKWARD, FORWARD, Action, Schedule, in_turns, naive_order
from minillm.parallel.simulator import Event, Number, Timeline, per_rank


def gpipe(rank: int, n_ranks: int, n_microbatches: int) -> list[Action]:
    """All micro-batches forward, then all backward, the last one first.

    The last micro-batch has just arrived at the end when the turn comes, so its way back can begin at once; and what
    was kept last is freed first. Every rank keeps the activations of all M micro-batches.

    Args:
        rank: 0 to P - 1; the order is the same on all.
        n_ranks: P.
        n_microbatches: M.

    Returns:
        The 2 M actions of this rank in order.

    Source:
        Huang et al. 2018, arXiv:1811.06965, section 2.3 and figure 2c.

    Example:
        >>> " ".join(map(str, gpipe(rank=0, n_ranks=4, n_microbatches=3)))
        'F0 F1 F2 B2 B1 B0'
    """
    # TASK 21.1 (1 point)
    # Two lists, one after the other. Which micro-batch can begin its way back first, and which has been kept for
    # the shortest time?
    raise NotImplementedError("task 21.1")


def one_f_one_b(rank: int, n_ranks: int, n_microbatches: int) -> list[Action]:
    """Forward only as often as it takes to fill the pipeline behind this rank, then in turns forward and backward.

    Micro-batch 0 must pass the P - 1 - rank later ranks before anything can come back; so many forward passes are the
    warm-up (fewer if there are not so many micro-batches). Then each forward pass is followed by a backward pass, which
    frees what the oldest micro-batch had kept: never more than P - rank of them are in flight. At the end backward
    passes are left. Both kinds go through the micro-batches in rising order.

    Args:
        rank: 0 to P - 1.
        n_ranks: P.
        n_microbatches: M.

    Returns:
        The 2 M actions of this rank in order.

    Source:
        Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1 ("PipeDream-Flush"); the order is PipeDream's
        (arXiv:1806.03377) with a flush at the end of the batch.

    Example:
        >>> for rank in range(3):
        ...     print(" ".join(map(str, one_f_one_b(rank, n_ranks=3, n_microbatches=4))))
        F0 F1 F2 B0 F3 B1 B2 B3
        F0 F1 B0 F2 B1 F3 B2 B3
        F0 B0 F1 B1 F2 B2 F3 B3
    """
    # TASK 21.2 (3 points)
    # How many forward passes must rank r have made before the first gradient can come back to it? Play P = 3, M =
    # 4 on squared paper. `in_turns` does the weaving once you know that number; with few micro-batches it is
    # smaller.
    raise NotImplementedError("task 21.2")


def must_come_before(schedule: Schedule, rank: int, action: Action) -> list[tuple[int, Action]]:
    """What has to be finished before an action can begin, whatever the order of the schedule.

    A forward pass needs the output of the stage before (the first stage reads the batch). A backward pass needs the
    activations that this rank's own forward pass left, and the gradient that the backward pass of the stage after has
    made (the last stage has the loss). Each for the same micro-batch.

    Args:
        schedule: says which stage is where (`stage`, `place`).
        rank: who wants to begin.
        action: with what.

    Returns:
        (rank, action) of one or two others, the own forward pass first; none for the first stage's forward passes.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> schedule = make_schedule("interleaved", n_ranks=2, n_microbatches=2, n_chunks=2)
        >>> [(rank, str(action)) for rank, action in must_come_before(schedule, 0, Action("F", 1, chunk=1))]
        [(1, 'F1')]
        >>> [(rank, str(action)) for rank, action in must_come_before(schedule, 1, Action("B", 1, chunk=0))]
        [(1, 'F1'), (0, 'B1.1')]
    """
    # TASK 21.3 (2 points)
    # Think in stages of the model, not in ranks: stage s needs stage s - 1 on the way there and s + 1 on the way
    # back. `schedule.stage` and `schedule.place` translate. At both ends of the model one neighbour is missing;
    # what remains?
    raise NotImplementedError("task 21.3")


def simulate(
    schedule: Schedule,
    forward: Number | Sequence[Number] = 1,
    backward: Number | Sequence[Number] = 2,
    transfer: Number = 0,
) -> Timeline:
    """Let each rank begin its next action as soon as it is free and has what it needs.

    What an action makes is there for the other rank `transfer` later; the sender goes on at once. On the same rank it
    is there immediately.

    Args:
        schedule: what each rank does, in order.
        forward: time of a forward pass of one micro-batch through all chunks of a rank, a chunk takes a v-th; one
            number for all ranks or one for each.
        backward: the same for a backward pass.
        transfer: from one rank to another.

    Returns:
        The timeline, with exact numbers for integers and fractions.

    Raises:
        ConfigError: if the ranks cannot come to the end.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> timeline = simulate(make_schedule("1f1b", 4, 8), forward=1, backward=2)
        >>> timeline.makespan, timeline.bubble, timeline.peak_in_flight()
        (Fraction(33, 1), Fraction(3, 11), [4, 3, 2, 1])
    """
    # TASK 21.4 (4 points)
    # Keep the end of every finished action in a dictionary and, for each rank, its place in its list and the time
    # at which it is free. Go round the ranks; each does what it can. An action starts at the latest of several
    # moments; `transfer` is added to those that come from another rank only. If a whole round has moved nobody,
    # it is over: has everybody finished?
    raise NotImplementedError("task 21.4")


def interleaved(rank: int, n_ranks: int, n_microbatches: int, n_chunks: int) -> list[Action]:
    """1F1B with v chunks on each rank: a micro-batch passes all ranks v times, in steps of a v-th of the length.

    P micro-batches go through chunk 0, the same P through chunk 1, and so on; then the next P. Backward in the same way
    from the last chunk to the first. The warm-up is as long as it takes until the first micro-batch is back at this
    rank's last chunk: (v - 1) P forward passes through the chunks before, and 2 (P - 1 - rank) more, one for each
    rank behind this one on its way there and back, during which the forward passes of this rank go on.

    Args:
        rank: 0 to P - 1.
        n_ranks: P.
        n_microbatches: M, a multiple of P.
        n_chunks: v; 1 gives `one_f_one_b`.

    Returns:
        The 2 M v actions of this rank in order.

    Raises:
        ConfigError: if P does not divide M.

    Source:
        Narayanan et al. 2021, arXiv:2104.04473, section 2.2.2 and figure 4; the warm-up is that of Megatron-LM.

    Example:
        >>> print(" ".join(map(str, interleaved(rank=1, n_ranks=2, n_microbatches=2, n_chunks=2))))
        F0 F1 F0.1 B0.1 F1.1 B1.1 B0 B1
    """
    # TASK 21.5 (3 points)
    # First the order of the forward passes as (micro-batch, chunk): groups of P micro-batches, within a group
    # chunk after chunk. Backward is the same list with the chunks counted from the other end. Then the warm-up:
    # all but the last chunk of one group, and two more for each rank behind this one; not more than there are.
    raise NotImplementedError("task 21.5")


def weights_seen(microbatch: int, rank: int, n_ranks: int, mode: str = "stashed") -> int:
    """How many updates the weights have had with which a micro-batch goes forward on a rank.

    With 1F1B rank r takes P - r micro-batches forward before the first backward pass, and then one for each. So
    micro-batch t meets the weights as they were P - 1 - r updates ago, and the first ones meet the initial weights.

    Args:
        microbatch: its number t, from 0 on, without end.
        rank: r, 0 to P - 1.
        n_ranks: P.
        mode: "stashed" or "unstashed": what the rank has at that moment. "vertical": on all ranks as on rank 0, the
            oldest of all, so that a micro-batch sees one model. "flushed": no micro-batch begins before the one before
            has ended; then it sees all t updates.

    Returns:
        Between 0 and t.

    Raises:
        ConfigError: if the mode is unknown.

    Source:
        Harlap et al. 2018, arXiv:1806.03377, section 3.3 (weight stashing, vertical sync).

    Example:
        >>> [[weights_seen(t, rank, n_ranks=3) for t in range(5)] for rank in range(3)]
        [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
        >>> weights_seen(4, rank=2, n_ranks=3, mode="vertical")
        2
    """
    # TASK 21.6 (2 points)
    # Write down 1F1B on rank r for many micro-batches: how many backward passes stand before the forward pass of
    # micro-batch t? In "vertical" mode all ranks take what rank 0 takes. And nobody has had fewer than no
    # updates.
    raise NotImplementedError("task 21.6")
