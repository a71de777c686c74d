"""What a pipeline costs, in formulas: idle time and activations that wait.

Dimensions: P ranks, M micro-batches, v chunks on each rank. All formulas hold for ranks that are equally fast and for
transfers that take no time.
"""

from fractions import Fraction

from minillm.errors import ConfigError


def bubble_fraction(n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Fraction:
    """Share of their time in which the ranks of a pipeline wait: (P - 1) / (v M + P - 1).

    Before the last rank gets its first work P - 1 others must have passed it on, in pieces of a v-th of a rank's work,
    and at the end the same in the other direction; of work each rank has v M pieces. It does not matter how much longer
    a backward pass takes, and it is the same for GPipe and 1F1B.

    Args:
        n_ranks: P.
        n_microbatches: M.
        n_chunks: v, 1 unless interleaved.

    Returns:
        At least 0, below 1, exact.

    Raises:
        ConfigError: if a number is below 1.

    Source:
        Huang et al. 2018, arXiv:1811.06965, section 2.3; with v Narayanan et al. 2021, arXiv:2104.04473, section 2.2
        (they divide by the ideal time, (P - 1) / (v M); this is the share of the whole).

    Example:
        >>> bubble_fraction(4, 8), bubble_fraction(4, 8, n_chunks=2), bubble_fraction(4, 1)
        (Fraction(3, 11), Fraction(3, 19), Fraction(3, 4))
    """
    if min(n_ranks, n_microbatches, n_chunks) < 1:
        raise ConfigError(
            f"{n_ranks} ranks, {n_microbatches} micro-batches, {n_chunks} chunks: expected 1 or more of each"
        )
    return Fraction(n_ranks - 1, n_chunks * n_microbatches + n_ranks - 1)


def microbatches_for(n_ranks: int, largest_bubble: Fraction, n_chunks: int = 1) -> int:
    """How many micro-batches a batch needs so that no more than this share of the time is lost.

    Args:
        n_ranks: P.
        largest_bubble: above 0, at most 1.
        n_chunks: v.

    Returns:
        The smallest M with `bubble_fraction(P, M, v)` at most `largest_bubble`.

    Raises:
        ConfigError: if the share is not above 0.

    Example:
        >>> microbatches_for(4, Fraction(1, 10)), microbatches_for(4, Fraction(1, 10), n_chunks=3)
        (27, 9)
    """
    if not largest_bubble > 0:
        raise ConfigError(f"a bubble of at most {largest_bubble}: expected a share above 0")
    share = Fraction(largest_bubble)
    return max(1, -(-(n_ranks - 1) * (1 - share) // (share * n_chunks)))


def in_flight(name: str, rank: int, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> int:
    """How many (micro-batch, chunk) a rank keeps activations of at the worst moment.

    Args:
        name: of the schedule: "naive", "gpipe", "1f1b" or "interleaved".
        rank: 0 to P - 1.
        n_ranks: P.
        n_microbatches: M.
        n_chunks: v; a chunk's activations are a v-th of a rank's.

    Returns:
        1; M; min(P - rank, M); min((v - 1) P + 2 (P - 1 - rank) + 1, v M).

    Raises:
        ConfigError: if the name is unknown.

    Source:
        1F1B: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1. Interleaved on rank 0 it is
        P v (1 + (P - 1) / (P v)) chunks, the penalty in Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.3.

    Example:
        >>> [in_flight("1f1b", rank, 4, 8) for rank in range(4)]
        [4, 3, 2, 1]
        >>> Fraction(in_flight("interleaved", 0, 4, 8, n_chunks=2), 2)  # in units of a rank's micro-batch
        Fraction(11, 2)
    """
    limits = {
        "naive": 1,
        "gpipe": n_microbatches,
        "1f1b": n_ranks - rank,
        "interleaved": (n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank) + 1 if n_chunks > 1 else n_ranks - rank,
    }
    if name not in limits:
        raise ConfigError(f"schedule {name!r} is unknown; known are {', '.join(limits)}")
    return min(limits[name], n_microbatches * n_chunks)
