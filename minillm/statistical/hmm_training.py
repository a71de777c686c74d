"""Where the tables of a hidden Markov model come from: counted from known states, or learned without them.

Dimensions: K states, V vocabulary, N ids of a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from tqdm import tqdm

from minillm.config import setting
from minillm.errors import ConfigError, DataError
from minillm.statistical.counts import check_sizes, checked_ids
from minillm.statistical.hmm import HiddenMarkovModel
from minillm.statistical.hmm_batches import (
    ExpectedCounts,
    TimeMajor,
    expected_counts,
    sequence_lengths,
    sums_by_id,
    time_major,
)

BATCH_IDS = 1 << 15  # so many ids at least are worked on at once; not many more, so that they stay near the processor
BATCH_SEQUENCES = 64  # and so many sequences, so that a step is a matrix product worth calling


@dataclass(frozen=True)
class HMMConfig:
    """How to train a hidden Markov model without known states.

    Raises:
        ConfigError: if a number is out of range.
    """

    n_states: int = setting(32, "hidden states; a state is all that the model remembers")
    n_iterations: int = setting(50, "rounds of expectation and maximisation")
    emission_smoothing: float = setting(0.01, "added to the count of each id in each state; 0 allows impossible ids")
    transition_smoothing: float = setting(0.01, "added to the count of each step, and of each first state")
    seed: int = setting(0, "of the random tables at the start")

    def __post_init__(self) -> None:
        if self.n_states < 1 or self.n_iterations < 0 or self.seed < 0:
            raise ConfigError(f"n_states must be at least 1, n_iterations and seed at least 0; given is {self}")
        check_smoothing(self.emission_smoothing, self.transition_smoothing)


def check_smoothing(*values: float) -> None:
    """Raise a ConfigError unless all are finite and at least 0."""
    if not all(0 <= value < np.inf for value in values):
        raise ConfigError(f"smoothing must be at least 0 and finite, not {values}")


def fit_hmm(
    token_ids: Sequence[int] | np.ndarray,
    vocab_size: int,
    config: HMMConfig,
    boundary: int | None = None,
    progress: bool = False,
) -> HiddenMarkovModel:
    """Train a model on a text, from random tables on.

    Args:
        token_ids: (N,) integers, at least one.
        vocab_size: V.
        config: how many states, how long, how smooth.
        boundary: the id that ends a sequence; None: the text is one sequence.
        progress: draw a progress bar on stderr: ids per second and nats per id.

    Raises:
        DataError: if there is no id, or one is outside the vocabulary.
    """
    ids = checked_ids(token_ids, vocab_size)
    generator = np.random.default_rng(config.seed)
    model = random_model(config.n_states, np.bincount(ids, minlength=vocab_size), generator, boundary)
    smoothing = config.emission_smoothing, config.transition_smoothing
    return baum_welch(model, ids, config.n_iterations, *smoothing, progress=progress)[0]


def random_model(
    n_states: int, id_counts: np.ndarray, generator: np.random.Generator, boundary: int | None = None
) -> HiddenMarkovModel:
    """Tables to begin with: every state emits what the text has, each with deviations of its own.

    States that are all alike would stay alike for ever, since every count would be shared equally among them.

    Args:
        n_states: K, at least 1.
        id_counts: (V,) how often each id occurs in the text; one is added to each.
        generator: where the deviations come from.
        boundary: see `HiddenMarkovModel`.
    """
    deviations = generator.exponential(size=(n_states, len(id_counts)))                  # (K, V)
    steps = generator.exponential(size=(n_states, n_states))                             # (K, K)
    initial = generator.exponential(size=n_states)                                       # (K,)
    emissions = normalised((np.asarray(id_counts) + 1) * deviations)                     # (K, V)
    return HiddenMarkovModel(normalised(initial), normalised(steps), emissions, boundary)


def normalised(counts: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """Probabilities from counts: add the smoothing to each, divide each row by its sum.

    Args:
        counts: (..., n) at least 0.
        smoothing: at least 0.

    Returns:
        (..., n) float64, rows sum to 1; a row of nothing becomes uniform.

    Example:
        >>> normalised(np.array([[2.0, 0.0], [0.0, 0.0]]), smoothing=1.0).tolist()
        [[0.75, 0.25], [0.5, 0.5]]
    """
    raised = np.asarray(counts, np.float64) + smoothing
    sums = raised.sum(axis=-1, keepdims=True)
    return np.where(sums > 0, raised, 1.0) / np.where(sums > 0, sums, raised.shape[-1])


def maximised(
    counts: ExpectedCounts, emission_smoothing: float, transition_smoothing: float, boundary: int | None
) -> HiddenMarkovModel:
    """The maximisation step: the tables under which these counts are most likely, after smoothing."""
    return HiddenMarkovModel(
        normalised(counts.initial, transition_smoothing),
        normalised(counts.transitions, transition_smoothing),
        normalised(counts.emissions, emission_smoothing),
        boundary,
    )


def baum_welch(
    model: HiddenMarkovModel,
    token_ids: Sequence[int] | np.ndarray,
    n_iterations: int,
    emission_smoothing: float = 0.0,
    transition_smoothing: float = 0.0,
    progress: bool = False,
) -> tuple[HiddenMarkovModel, np.ndarray]:
    """Expectation and maximisation in turn: count with the model, make a model of the counts.

    Without smoothing no iteration makes the text less likely. With smoothing the same holds for the likelihood times
    a prior, `smoothed_likelihood`.

    Args:
        model: to begin with; it is not changed.
        token_ids: (N,) integers, at least one; sequences end behind the model's boundary.
        n_iterations: how often, at least 0.
        emission_smoothing: added to the count of each id in each state.
        transition_smoothing: added to the count of each step, and of each first state.
        progress: draw a progress bar on stderr: ids per second and nats per id.

    Returns:
        The last model, and (n_iterations + 1,) float64: the log-likelihood of the text in nats, first under the model
        given, then after each iteration.

    Raises:
        DataError: if there is no id, one is outside the vocabulary, or the model holds a sequence impossible.

    Source:
        Baum et al. 1970; Dempster, Laird and Rubin 1977, "Maximum likelihood from incomplete data via the EM
        algorithm", which also has the prior.
    """
    check_smoothing(emission_smoothing, transition_smoothing)
    ids = checked_ids(token_ids, model.vocab_size)
    if len(ids) == 0:
        raise DataError("an empty text teaches nothing; give at least one id")
    batches = list(batches_of(ids, model.boundary))
    likelihoods = []
    with tqdm(total=n_iterations * len(ids), unit="id", unit_scale=True, disable=not progress) as bar:
        for _ in range(n_iterations):
            tables = model.initial, model.transitions, model.emissions
            counts = reduce(add, (expected_counts(*tables, batch) for batch in batches))
            model = maximised(counts, emission_smoothing, transition_smoothing, model.boundary)
            likelihoods.append(counts.log_likelihood)
            bar.set_postfix_str(f"{-counts.log_likelihood / len(ids):.4f} nats per id", refresh=False)
            bar.update(len(ids))
    likelihoods.append(float(model.log_probabilities(ids).sum()))
    return model, np.array(likelihoods)


def smoothed_likelihood(
    model: HiddenMarkovModel, log_likelihood: float, emission_smoothing: float, transition_smoothing: float
) -> float:
    """What `baum_welch` with smoothing never lowers: the log-likelihood plus smoothing times the sum of all log-tables.

    Args:
        model: all probabilities above 0.
        log_likelihood: of the text under it, in nats.
    """
    steps = np.log(model.transitions).sum() + np.log(model.initial).sum()
    return float(log_likelihood + transition_smoothing * steps + emission_smoothing * np.log(model.emissions).sum())


def batches_of(ids: np.ndarray, boundary: int | None) -> Iterator[TimeMajor]:
    """Whole sequences of similar length laid out together, `BATCH_IDS` ids and `BATCH_SEQUENCES` sequences or more.

    Args:
        ids: (N,) int64.
        boundary: the id that ends a sequence; None: one sequence.
    """
    sequences = np.split(ids, np.cumsum(sequence_lengths(ids, boundary))[:-1])
    group, n_ids = [], 0
    for sequence in sorted(sequences, key=len):
        group.append(sequence)
        n_ids += len(sequence)
        if n_ids >= BATCH_IDS and len(group) >= BATCH_SEQUENCES:
            yield time_major(np.concatenate(group), np.array([len(one) for one in group]))
            group, n_ids = [], 0
    if group:
        yield time_major(np.concatenate(group), np.array([len(one) for one in group]))


def count_states(
    token_ids: Sequence[int] | np.ndarray,
    states: Sequence[int] | np.ndarray,
    n_states: int,
    vocab_size: int,
    boundary: int | None = None,
    emission_smoothing: float = 0.01,
    transition_smoothing: float = 0.01,
) -> HiddenMarkovModel:
    """The model of a text whose states are known: nothing is hidden, so counting is enough.

    Args:
        token_ids: (N,) integers, at least one.
        states: (N,) integers 0 .. K-1: the state at each place.
        n_states: K.
        vocab_size: V.
        boundary: the id that ends a sequence; None: the text is one sequence.
        emission_smoothing: added to the count of each id in each state.
        transition_smoothing: added to the count of each step, and of each first state.

    Raises:
        DataError: if the two have different lengths, are empty, or a number is out of range.
    """
    check_sizes(1, vocab_size, boundary)
    check_smoothing(emission_smoothing, transition_smoothing)
    ids, states = checked_ids(token_ids, vocab_size), checked_ids(states, n_states)
    if len(ids) != len(states) or len(ids) == 0:
        raise DataError(f"expected one state for each id, at least one; given are {len(ids)} ids, {len(states)} states")
    first = np.append(True, ids[:-1] == boundary) if boundary is not None else np.arange(len(ids)) == 0
    known = np.eye(n_states)[states]                                                     # (N, K)
    steps = known[:-1][~first[1:]].T @ known[1:][~first[1:]]                             # (K, K)
    emitted = sums_by_id(ids, known, vocab_size).T                                       # (K, V)
    counts = ExpectedCounts(known[first].sum(axis=0), steps, emitted, 0.0)
    return maximised(counts, emission_smoothing, transition_smoothing, boundary)
