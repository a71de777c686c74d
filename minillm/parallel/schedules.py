"""In which order the ranks of a pipeline work: pure data, no process and no tensor.

The model is cut into P times v *stages* of consecutive layers. With v = 1 each rank holds one; interleaved, rank r
holds the stages r, P + r, 2 P + r, ..., its *chunks* 0, 1, 2, ... A batch is cut into M micro-batches. A schedule says
for each rank which micro-batch goes forward or backward through which of its chunks, and in which order. Who must send
what to whom follows from it, and when all that happens (`minillm.parallel.simulator`).

Dimensions: P ranks, M micro-batches, v chunks on each rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minillm.errors import ConfigError

FORWARD, BACKWARD = "F", "B"


@dataclass(frozen=True, order=True)
class Action:
    """One rank takes one micro-batch through one of its chunks.

    Args:
        kind: "F", forward, or "B", backward.
        microbatch: 0 to M - 1.
        chunk: which of the rank's chunks, 0 to v - 1; on rank r it is stage chunk * P + r of the model.

    Example:
        >>> str(Action("F", 3)), str(Action("B", 3, chunk=1))
        ('F3', 'B3.1')
    """

    kind: str
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}" + (f".{self.chunk}" if self.chunk else "")


@dataclass(frozen=True)
class Schedule:
    """What all ranks of a pipeline do in one step.

    Args:
        name: of the rule that made it.
        n_microbatches: M.
        n_chunks: v.
        actions: for each of the P ranks its actions in order.
    """

    name: str
    n_microbatches: int
    n_chunks: int
    actions: tuple[tuple[Action, ...], ...]

    @property
    def n_ranks(self) -> int:
        """P."""
        return len(self.actions)

    @property
    def n_stages(self) -> int:
        """P times v."""
        return self.n_ranks * self.n_chunks

    def stage(self, rank: int, chunk: int) -> int:
        """Place of a rank's chunk in the model, 0 to P v - 1."""
        return chunk * self.n_ranks + rank

    def place(self, stage: int) -> tuple[int, int]:
        """(rank, chunk) that holds a stage; the inverse of `stage`.

        Example:
            >>> schedule = make_schedule("interleaved", n_ranks=2, n_microbatches=2, n_chunks=2)
            >>> [schedule.place(stage) for stage in range(4)]
            [(0, 0), (1, 0), (0, 1), (1, 1)]
        """
        chunk, rank = divmod(stage, self.n_ranks)
        return rank, chunk

    def __str__(self) -> str:
        lines = [f"rank {rank}: {' '.join(map(str, actions))}" for rank, actions in enumerate(self.actions)]
        return "\n".join(lines)


def naive(rank: int, n_ranks: int, n_microbatches: int) -> list[Action]:
    """Each micro-batch goes forward and backward before the next one begins: only one rank works at a time.

    With one micro-batch it is the bare layer split, with several the same with gradient accumulation.

    Args:
        rank: 0 to P - 1; the order is the same on all.
        n_ranks: P.
        n_microbatches: M.

    Returns:
        The 2 M actions of this rank in order.

    Example:
        >>> " ".join(map(str, naive(rank=0, n_ranks=4, n_microbatches=2)))
        'F0 B0 F1 B1'
    """
    return [Action(kind, number) for number in range(n_microbatches) for kind in (FORWARD, BACKWARD)]


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
    forward = [Action(FORWARD, number) for number in range(n_microbatches)]
    backward = [Action(BACKWARD, number) for number in reversed(range(n_microbatches))]
    return forward + backward


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
    n_warmup = min(n_ranks - 1 - rank, n_microbatches)
    return in_turns(naive_order(n_microbatches), naive_order(n_microbatches), n_warmup)


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
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError(
            f"{n_microbatches} micro-batches on {n_ranks} ranks: the interleaved schedule takes them in groups of "
            f"{n_ranks}; choose a multiple of it, or one chunk"
        )
    forward = [
        (first + number, chunk)
        for first in range(0, n_microbatches, n_ranks)
        for chunk in range(n_chunks)
        for number in range(n_ranks)
    ]
    backward = [(number, n_chunks - 1 - chunk) for number, chunk in forward]
    n_warmup = min((n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank), len(forward))
    return in_turns(forward, backward, n_warmup)


def in_turns(forward: list[tuple[int, int]], backward: list[tuple[int, int]], n_warmup: int) -> list[Action]:
    """Some forward passes, then forward and backward in turns, then the backward passes that are left.

    Args:
        forward: (micro-batch, chunk) in the order of the forward passes.
        backward: as many, in the order of the backward passes.
        n_warmup: how many forward passes come before the first turn.

    Returns:
        All of them in one order.
    """
    ahead = [Action(FORWARD, *work) for work in forward]
    back = [Action(BACKWARD, *work) for work in backward]
    n_turns = len(ahead) - n_warmup
    turns = [action for pair in zip(ahead[n_warmup:], back[:n_turns], strict=True) for action in pair]
    return ahead[:n_warmup] + turns + back[n_turns:]


def naive_order(n_microbatches: int) -> list[tuple[int, int]]:
    """(micro-batch, chunk 0) in rising order."""
    return [(number, 0) for number in range(n_microbatches)]


RULES: dict[str, Callable[..., list[Action]]] = {"naive": naive, "gpipe": gpipe, "1f1b": one_f_one_b}


def make_schedule(name: str, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Schedule:
    """The actions of all ranks under one rule.

    Args:
        name: "naive", "gpipe", "1f1b" or "interleaved".
        n_ranks: P.
        n_microbatches: M.
        n_chunks: v; more than 1 only interleaved.

    Raises:
        ConfigError: if the name is unknown, a number below 1, or the rule cannot have these numbers.

    Example:
        >>> print(make_schedule("1f1b", n_ranks=2, n_microbatches=3))
        rank 0: F0 F1 B0 F2 B1 B2
        rank 1: F0 B0 F1 B1 F2 B2
    """
    known = [*RULES, "interleaved"]
    if name not in known:
        raise ConfigError(f"schedule {name!r} is unknown; known are {', '.join(known)}")
    if min(n_ranks, n_microbatches, n_chunks) < 1:
        raise ConfigError(
            f"{n_ranks} ranks, {n_microbatches} micro-batches, {n_chunks} chunks: expected 1 or more of each"
        )
    if n_chunks > 1 and name != "interleaved":
        raise ConfigError(f"schedule {name!r} has one chunk on each rank, not {n_chunks}; take 'interleaved'")
    extra = (n_chunks,) if name == "interleaved" else ()
    rule = RULES.get(name, interleaved)
    actions = tuple(tuple(rule(rank, n_ranks, n_microbatches, *extra)) for rank in range(n_ranks))
    return Schedule(name, n_microbatches, n_chunks, actions)
