"""Forward and backward of a hidden Markov model over many sequences of unequal length at once.

Every sequence takes its first step together, then all that are long enough their second, and so on: one matrix product
per step. The rows of all arrays lie in that order ("time-major"), the longest sequence first within each step, so that
nothing is padded and no mask is needed. In place of logarithms each step is divided by its sum, which is
p(x_t | x_1, .., x_t-1): what remains is the distribution of the state, and never too small to write.

Dimensions: K states, V vocabulary, N ids of all sequences, P of them that are not the first of a sequence, B sequences.
"""

from dataclasses import dataclass

import numpy as np

from minillm.errors import DataError


@dataclass(frozen=True)
class TimeMajor:
    """A text cut into sequences and laid out step by step.

    Attributes:
        ids: (N,) int64: the first ids of all sequences, the longest sequence first, then all second ids, ...
        places: (N,) where each of them stands in the text.
        n_active: how many sequences reach each step; never more than the step before.
        previous: (P,) the row before each of the rows n_active[0] .. N-1, in the same sequence.
    """

    ids: np.ndarray
    places: np.ndarray
    n_active: tuple[int, ...]
    previous: np.ndarray

    @property
    def n_sequences(self) -> int:
        """B."""
        return self.n_active[0] if self.n_active else 0


def sequence_lengths(ids: np.ndarray, boundary: int | None) -> np.ndarray:
    """How long the sequences of a text are; each ends behind a boundary id, the last one perhaps without.

    Args:
        ids: (N,) int64; N may be 0.
        boundary: the id that ends a sequence; None: the text is one sequence.

    Returns:
        (B,) int64, all above 0; they sum to N.

    Example:
        >>> sequence_lengths(np.array([5, 0, 6, 7, 0, 8]), boundary=0).tolist()
        [2, 3, 1]
    """
    behind = np.flatnonzero(ids == boundary) + 1 if boundary is not None else np.array([], np.int64)
    return np.diff(np.unique(np.concatenate([[0], behind, [len(ids)]])))       # (B,)


def time_major(ids: np.ndarray, lengths: np.ndarray) -> TimeMajor:
    """Lay the sequences of a text out step by step.

    Args:
        ids: (N,) int64, one sequence after another; N may be 0.
        lengths: (B,) int64 of the sequences, above 0; they sum to N.

    Example:
        >>> layout = time_major(np.array([5, 0, 6, 7, 0, 8]), np.array([2, 3, 1]))
        >>> layout.ids.tolist(), layout.n_active, layout.previous.tolist()
        ([6, 5, 8, 7, 0, 0], (3, 2, 1), [0, 1, 3])
    """
    ranks = np.empty(len(lengths), np.int64)                                   # (B,)
    ranks[np.argsort(-lengths, kind="stable")] = np.arange(len(lengths))
    ranks = np.repeat(ranks, lengths)                                          # (N,)
    steps = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # (N,)
    places = np.lexsort((ranks, steps))                                        # (N,)
    n_active = np.bincount(steps)
    starts = np.cumsum(n_active) - n_active
    later = places[len(lengths) :]                                             # (P,)
    return TimeMajor(ids[places], places, tuple(n_active.tolist()), starts[steps[later] - 1] + ranks[later])


def scaled_forward(
    initial: np.ndarray, transitions: np.ndarray, scores: np.ndarray, layout: TimeMajor
) -> tuple[np.ndarray, np.ndarray]:
    """What is known of each state after each id, and how probable each id was given those before it.

    Args:
        initial: (K,) float64.
        transitions: (K, K) float64, from state i (row) to state j (column).
        scores: (N, K) float64: emission probability of each row's id in each state.
        layout: of the rows.

    Returns:
        filtered (N, K): p(s_t | x_1 .. x_t), all 0 from an impossible id on; and totals (N,): p(x_t | x_1 .. x_t-1).
    """
    filtered = np.empty(scores.shape)                                               # (N, K)
    totals = np.empty(len(scores))                                                  # (N,)
    begin = before = 0
    for n in layout.n_active:
        rows = slice(begin, begin + n)
        joint = filtered[rows]                                                      # (n, K)
        np.multiply(filtered[before : before + n] @ transitions if begin else initial, scores[rows], out=joint)
        sums = joint.sum(axis=1)                                                    # (n,)
        totals[rows] = sums
        joint /= np.where(sums > 0, sums, 1.0)[:, None]
        begin, before = begin + n, begin
    return filtered, totals


def scaled_backward(transitions: np.ndarray, scores: np.ndarray, totals: np.ndarray, layout: TimeMajor) -> np.ndarray:
    """p(x_t+1 .. x_T | s_t) / p(x_t+1 .. x_T | x_1 .. x_t) for each row: by it `filtered` becomes the posterior.

    Args:
        transitions: (K, K) float64.
        scores: (N, K) float64: emission probabilities of the rows' ids.
        totals: (N,) float64 above 0, from `scaled_forward`.
        layout: of the rows.

    Returns:
        (N, K) float64; ones in the last row of each sequence.
    """
    backward = np.ones(scores.shape)                                                # (N, K)
    end = len(scores)
    for step in range(len(layout.n_active) - 1, 0, -1):
        n, n_before = layout.n_active[step], layout.n_active[step - 1]
        rows = slice(end - n, end)
        arriving = scores[rows] * backward[rows] / totals[rows, None]               # (n, K)
        begin = end - n - n_before
        np.matmul(arriving, transitions.T, out=backward[begin : begin + n])
        end -= n
    return backward


@dataclass(frozen=True)
class ExpectedCounts:
    """How often what happened in a text, on average over all state sequences, each weighted by its probability.

    Attributes:
        initial: (K,) sequences that began in each state.
        transitions: (K, K) steps from state i (row) to state j (column).
        emissions: (K, V) times that each state emitted each id.
        log_likelihood: of the text in nats, under the model that did the counting.
    """

    initial: np.ndarray
    transitions: np.ndarray
    emissions: np.ndarray
    log_likelihood: float

    def __add__(self, other: "ExpectedCounts") -> "ExpectedCounts":
        """The counts of two texts together."""
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return ExpectedCounts(*(mine + its for mine, its in both))


def expected_counts(
    initial: np.ndarray, transitions: np.ndarray, emissions: np.ndarray, layout: TimeMajor
) -> ExpectedCounts:
    """The expectation step of Baum and Welch for all sequences of a layout.

    Args:
        initial: (K,) float64.
        transitions: (K, K) float64.
        emissions: (K, V) float64.
        layout: at least one id.

    Raises:
        DataError: if the model holds one of the sequences impossible.
    """
    scores = emissions.T[layout.ids]                                                # (N, K)
    filtered, totals = scaled_forward(initial, transitions, scores, layout)
    if not totals.all():
        place = layout.places[np.argmin(totals)]
        raise DataError(f"the model holds the id at position {place} impossible and cannot learn from it; smooth it")
    backward = scaled_backward(transitions, scores, totals, layout)                 # (N, K)
    n_first = layout.n_sequences
    arriving = scores[n_first:] * backward[n_first:] / totals[n_first:, None]       # (P, K)
    steps = transitions * (filtered[layout.previous].T @ arriving)                  # (K, K)
    posteriors = filtered * backward                                                # (N, K)
    emitted = sums_by_id(layout.ids, posteriors, emissions.shape[1]).T              # (K, V)
    return ExpectedCounts(posteriors[:n_first].sum(axis=0), steps, emitted, float(np.log(totals).sum()))


def sums_by_id(ids: np.ndarray, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Add up the rows that belong to the same id.

    Args:
        ids: (N,) int64, at least one.
        rows: (N, K) float64.
        vocab_size: V.

    Returns:
        (V, K) float64; zeros for ids that do not occur.

    Example:
        >>> sums_by_id(np.array([2, 0, 2]), np.array([[1.0], [2.0], [3.0]]), 3).tolist()
        [[2.0], [0.0], [4.0]]
    """
    order = np.argsort(ids, kind="stable")
    found, starts = np.unique(ids[order], return_index=True)
    sums = np.zeros((vocab_size, rows.shape[1]))                                    # (V, K)
    sums[found] = np.add.reduceat(rows[order], starts)
    return sums
