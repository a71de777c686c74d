"""Hidden Markov models: a chain of states that nobody sees, each of which emits one id that everybody sees.

    p(ids, states) = initial[s_1] emissions[s_1, x_1]  product over t of  transitions[s_t-1, s_t] emissions[s_t, x_t]

This module has the model and its four questions for one sequence, written in logarithms so that nothing underflows:
how likely is it (`log_forward`), what is still to come (`log_backward`), which states are best (`viterbi`), how often
was each step taken (`expected_transitions`). `hmm_batches` answers the same for many sequences at once, with scaled
probabilities and matrix products; `hmm_training` estimates models.

Dimensions: K states, V vocabulary, T ids of one sequence, N ids of a text of several sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from minillm.errors import CheckpointError, ConfigError, DataError
from minillm.shapes import check_shape
from minillm.statistical.counts import check_sizes, checked_ids
from minillm.statistical.hmm_batches import scaled_forward, sequence_lengths, time_major
from minillm.statistical.storage import load_arrays, save_arrays

FORMAT = "minillm hidden Markov model 1"
SUM_TOLERANCE = 1e-6  # rows of probabilities may be this far from summing to 1


def log_forward(log_initial: np.ndarray, log_transitions: np.ndarray, log_scores: np.ndarray) -> np.ndarray:
    """The log-probability of the ids so far and of being in each state now, for every place of a sequence.

        forward[t, j] = log p(x_1, .., x_t, s_t = j) = log sum over i of exp(forward[t-1, i] + log_transitions[i, j])
                        + log_scores[t, j],   and for the first place log_initial[j] + log_scores[0, j]

    The log-sum of the last row is the log-probability of the whole sequence.

    Args:
        log_initial: (K,) float64, log-probability of each state at the first place; -inf for an impossible one.
        log_transitions: (K, K) float64, log-probability of going from state i (row) to state j (column).
        log_scores: (T, K) float64, log-probability of the id at place t if the state there is j; T at least 1.

    Returns:
        (T, K) float64 nats, -inf where there is no way; no argument is changed.

    Source:
        Rabiner 1989, "A tutorial on hidden Markov models", equations 19 to 21, in logarithms.

    Example:
        >>> half = np.log([0.5, 0.5])
        >>> forward = log_forward(half, np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.5, 0.25], [1.0, 1.0]]))
        >>> np.exp(forward).round(9).tolist()
        [[0.25, 0.125], [0.1875, 0.1875]]
    """
    forward = np.empty(log_scores.shape)                                               # (T, K)
    forward[0] = log_initial + log_scores[0]
    for t in range(1, len(log_scores)):
        arriving = np.logaddexp.reduce(forward[t - 1][:, None] + log_transitions)      # (K,)
        forward[t] = arriving + log_scores[t]
    return forward


def log_backward(log_transitions: np.ndarray, log_scores: np.ndarray) -> np.ndarray:
    """The log-probability of all ids after a place, given each state there: log p(x_t+1, .., x_T | s_t = i).

    Args:
        log_transitions: (K, K) float64, from state i (row) to state j (column).
        log_scores: (T, K) float64, of the id at place t if the state there is j; T at least 1.

    Returns:
        (T, K) float64 nats; zeros in the last row, after which nothing comes.

    Source:
        Rabiner 1989, equations 24 and 25, in logarithms.

    Example:
        >>> np.exp(log_backward(np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.5, 0.25], [1.0, 0.5]]))).tolist()
        [[0.75, 0.75], [1.0, 1.0]]
    """
    backward = np.zeros(log_scores.shape)                                                        # (T, K)
    for t in range(len(log_scores) - 2, -1, -1):
        backward[t] = np.logaddexp.reduce(log_transitions + log_scores[t + 1] + backward[t + 1], axis=1)
    return backward


def viterbi(
    log_initial: np.ndarray, log_transitions: np.ndarray, log_scores: np.ndarray
) -> tuple[np.ndarray, float]:
    """The one most probable sequence of states.

    As `log_forward`, with a maximum in place of the sum; each state remembers which state it was best reached from, and
    the way is read off backwards from the best state at the end.

    Args:
        log_initial: (K,) float64, of each state at the first place.
        log_transitions: (K, K) float64, from state i (row) to state j (column).
        log_scores: (T, K) float64, of the id at place t if the state there is j; T at least 1.

    Returns:
        (T,) int64 states, and the log-probability of these states and the ids together. Of equally good states the one
        with the smallest number is taken, at the end as well as in every backward step.

    Source:
        Viterbi 1967, "Error bounds for convolutional codes and an asymptotically optimum decoding algorithm";
        Rabiner 1989, equations 32 to 35.

    Example:
        >>> stay, scores = np.log([[0.9, 0.1], [0.1, 0.9]]), np.log([[0.2, 0.8], [0.5, 0.5]])
        >>> path, score = viterbi(np.log([0.5, 0.5]), stay, scores)
        >>> path.tolist(), round(float(np.exp(score)), 12)
        ([1, 1], 0.18)
    """
    best = log_initial + log_scores[0]                               # (K,)
    came_from = np.zeros(log_scores.shape, np.int64)                 # (T, K)
    for t in range(1, len(log_scores)):
        candidates = best[:, None] + log_transitions                 # (K, K)
        came_from[t] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + log_scores[t]                # (K,)
    path = [best.argmax()]
    for row in came_from[:0:-1]:
        path.append(row[path[-1]])
    return np.array(path[::-1]), float(best.max())


def expected_transitions(
    forward: np.ndarray, backward: np.ndarray, log_transitions: np.ndarray, log_scores: np.ndarray
) -> np.ndarray:
    """How often each step from state to state was taken, on average over all ways, each counted by its probability.

        p(s_t = i, s_t+1 = j | ids) = exp(forward[t, i] + log_transitions[i, j] + log_scores[t+1, j] + backward[t+1, j])
                                      / p(ids),   and its sum over t

    Args:
        forward: (T, K) float64, `log_forward` of the sequence, T at least 1; its last row is not all -inf.
        backward: (T, K) float64, `log_backward` of the sequence.
        log_transitions: (K, K) float64, from state i (row) to state j (column).
        log_scores: (T, K) float64, of the id at place t if the state there is j.

    Returns:
        (K, K) float64 counts of steps from i (row) to j (column); they sum to T - 1.

    Source:
        Baum, Petrie, Soules and Weiss 1970, "A maximization technique occurring in the statistical analysis of
        probabilistic functions of Markov chains"; Rabiner 1989, equation 37.

    Example:
        >>> sure = np.log([[0.5, 0.5], [0.5, 0.5]])
        >>> scores = np.log([[1.0, 1.0], [0.75, 0.25]])
        >>> forward = log_forward(np.log([0.5, 0.5]), sure, scores)
        >>> expected_transitions(forward, log_backward(sure, scores), sure, scores).round(9).tolist()
        [[0.375, 0.125], [0.375, 0.125]]
    """
    arriving = log_scores[1:] + backward[1:]                                         # (T - 1, K)
    steps = forward[:-1, :, None] + log_transitions + arriving[:, None, :]           # (T - 1, K, K)
    return np.exp(steps - np.logaddexp.reduce(forward[-1])).sum(axis=0)              # (K, K)


@dataclass(frozen=True, eq=False)
class HiddenMarkovModel:
    """Three tables of probabilities, ready to score, to find states, and to sample.

    Args:
        initial: (K,) float64: of each state at the first place of a sequence.
        transitions: (K, K) float64: from state i (row) to state j (column).
        emissions: (K, V) float64: of each id in each state.
        boundary: the id that ends a sequence of a text, usually the end-of-text id: behind it the chain starts anew
            from `initial`. None: a text is one sequence.

    Raises:
        ShapeError: if the sizes contradict one another.
        ConfigError: if a row is no distribution, or the boundary no id.

    Example:
        >>> turns, emissions = np.array([[0, 1], [1, 0]]), np.array([[1, 0], [0.5, 0.5]])
        >>> model = HiddenMarkovModel(np.array([1, 0]), turns, emissions)
        >>> np.exp(model.log_probabilities([0, 1, 0])).tolist()
        [1.0, 0.5, 1.0]
    """

    initial: np.ndarray
    transitions: np.ndarray
    emissions: np.ndarray
    boundary: int | None = None

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, dims in (("initial", "K"), ("transitions", "K K"), ("emissions", "K V")):
            table = np.asarray(getattr(self, name), np.float64)
            check_shape(name, table, dims, sizes)
            if not (np.all(table >= 0) and np.all(np.abs(table.sum(axis=-1) - 1) < SUM_TOLERANCE)):
                raise ConfigError(f"every row of {name} must be probabilities that sum to 1; divide it by its sum")
            object.__setattr__(self, name, table)
        check_sizes(0, self.vocab_size, self.boundary)

    @property
    def n_states(self) -> int:
        """K."""
        return len(self.initial)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.emissions.shape[1]

    @property
    def n_entries(self) -> int:
        """How many probabilities the model keeps."""
        return self.initial.size + self.transitions.size + self.emissions.size

    @property
    def n_bytes(self) -> int:
        """Memory of the three tables."""
        return self.initial.nbytes + self.transitions.nbytes + self.emissions.nbytes

    def log_tables(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `log_forward` and `viterbi` want to know about one sequence.

        Args:
            ids: (T,) integers of one sequence, at least one.

        Returns:
            log_initial (K,), log_transitions (K, K) and log_scores (T, K).

        Raises:
            DataError: if there is no id, or one is outside the vocabulary.
        """
        ids = checked_ids(ids, self.vocab_size)
        if len(ids) == 0:
            raise DataError("an empty sequence has no states; give at least one id")
        with np.errstate(divide="ignore"):
            return np.log(self.initial), np.log(self.transitions), np.log(self.emissions.T[ids])

    def best_states(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(N,) the most probable states of every sequence of a text (`viterbi`), one sequence after another."""
        ids = checked_ids(ids, self.vocab_size)
        sequences = np.split(ids, np.cumsum(sequence_lengths(ids, self.boundary))[:-1])
        return np.concatenate([viterbi(*self.log_tables(sequence))[0] for sequence in sequences])

    def posteriors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T, K) the probability of each state at each place of one sequence, all of its ids known.

        Raises:
            DataError: if the model holds the sequence impossible.
        """
        log_initial, log_transitions, log_scores = self.log_tables(ids)
        joint = log_forward(log_initial, log_transitions, log_scores) + log_backward(log_transitions, log_scores)
        total = np.logaddexp.reduce(joint[0])
        if total == -np.inf:
            raise DataError("the model holds this sequence impossible, so no state explains it; smooth its tables")
        return np.exp(joint - total)

    def log_probabilities(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """log p(id | the ids before it in its sequence) for every id of a text.

        Args:
            token_ids: (N,) integers; the sequences of the text one after another, each ended by the boundary id, the
                last one perhaps not. N may be 0.

        Returns:
            (N,) float64 nats; -inf for an id that the model holds impossible, and for the rest of its sequence.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        ids = checked_ids(token_ids, self.vocab_size)
        layout = time_major(ids, sequence_lengths(ids, self.boundary))
        _, totals = scaled_forward(self.initial, self.transitions, self.emissions.T[layout.ids], layout)
        log_probabilities = np.empty(len(ids))
        with np.errstate(divide="ignore"):
            log_probabilities[layout.places] = np.log(totals)
        return log_probabilities

    def filtered_states(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """p(state | the ids of its sequence up to here) at each place of a text: all that the model carries on from it.

        Unlike `posteriors` this knows nothing of what comes later.

        Args:
            token_ids: (N,) integers, sequences as in `log_probabilities`.

        Returns:
            (N, K) float64, rows sum to 1; zeros from an id on that the model holds impossible.
        """
        ids = checked_ids(token_ids, self.vocab_size)
        layout = time_major(ids, sequence_lengths(ids, self.boundary))
        filtered, _ = scaled_forward(self.initial, self.transitions, self.emissions.T[layout.ids], layout)
        in_order = np.empty(filtered.shape)                                            # (N, K)
        in_order[layout.places] = filtered
        return in_order

    def next_states(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """(K,) the probability of each state at the place after a context: all that the model remembers of it.

        Args:
            context: (T,) integers, T may be 0; what stands before the last boundary does not count.

        Raises:
            DataError: if an id is outside the vocabulary, or the model holds the context impossible.
        """
        context = checked_ids(context, self.vocab_size)
        if self.boundary is not None and len(ends := np.flatnonzero(context == self.boundary)):
            context = context[ends[-1] + 1 :]
        if len(context) == 0:
            return self.initial
        last = self.filtered_states(context)[-1]                                       # (K,)
        if not last.any():
            raise DataError("the model holds this context impossible, so nothing can follow; smooth its tables")
        return last @ self.transitions

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """(V,) p(x | context) for every id x; it sums to 1. See `next_states`."""
        return self.next_states(context) @ self.emissions

    def sample(
        self, n_ids: int, generator: np.random.Generator, stop: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a chain of states from the start, and an id from each.

        Args:
            n_ids: the most ids to draw, at least 1.
            generator: where the randomness comes from.
            stop: an id behind which nothing more is drawn; it is the last one returned.

        Returns:
            ids and states, (T,) int64 each.
        """
        if n_ids < 1:
            raise ConfigError(f"n_ids must be at least 1, not {n_ids}")
        tables = self.initial, self.transitions, self.emissions
        initial, transitions, emissions = (np.cumsum(table, axis=-1) for table in tables)
        ids, states, next_state = [], [], initial
        while len(ids) < n_ids and (stop is None or ids[-1:] != [stop]):
            states.append(_drawn(next_state, generator))
            ids.append(_drawn(emissions[states[-1]], generator))
            next_state = initial if ids[-1] == self.boundary else transitions[states[-1]]
        return np.array(ids), np.array(states)

    def save(self, path: str | Path) -> None:
        """Write one file: NumPy arrays and a JSON header, no pickle; an old file is replaced by a whole one."""
        arrays = {"initial": self.initial, "transitions": self.transitions, "emissions": self.emissions}
        save_arrays(Path(path), {"format": FORMAT, "boundary": self.boundary}, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that was saved.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        header, arrays = load_arrays(Path(path), FORMAT)
        try:
            return cls(arrays["initial"], arrays["transitions"], arrays["emissions"], header["boundary"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no hidden Markov model ({error}); save the model again") from None


def _drawn(cumulative: np.ndarray, generator: np.random.Generator) -> int:
    """A number in proportion to the steps of these sums."""
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
