"""Language models that count: uniform (order 0), unigram (1), bigram (2), trigram (3) and so on, with add-k smoothing.

All n-grams of a text are kept as a few sorted integer arrays, one pair per length: level m holds every distinct run
of m ids as `node of its first m-1 ids * V + last id`, and how often it occurs. Looking up a whole text is one binary
search per level.

Dimensions: V vocabulary, N ids of a text.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from minillm.errors import ConfigError, DataError

DENSE_KEYS = 1 << 23  # up to so many possible keys, counting in a table is faster than sorting


@dataclass(frozen=True)
class NGramLevel:
    """The distinct n-grams of one length m, sorted. Place -1 stands for "never seen": both counts end with an extra 0.

    Attributes:
        keys: (n_grams,) int64, sorted: place of the first m-1 ids in the level below, times V, plus the last id.
        counts: (n_grams + 1,) int64, how often each occurs.
        context_counts: (n_contexts + 1,) int64, how often each (m-1)-gram of the level below is followed by anything.
    """

    keys: np.ndarray
    counts: np.ndarray
    context_counts: np.ndarray


class NGramModel:
    """p(x | context) = (count(context, x) + k) / (count(context, anything) + k V).

    The context is the last order - 1 ids. One that was never seen gives 1 / V for every id. Order 0 knows nothing and
    always says 1 / V.
    """

    def __init__(self, order: int, vocab_size: int, add_k: float = 1.0):
        """An empty model.

        Args:
            order: length of the n-grams, context and predicted id together; 0 is the uniform model.
            vocab_size: V; ids are 0 .. V-1.
            add_k: what is added to every count, above 0.

        Raises:
            ConfigError: if one of them is out of range.
        """
        if order < 0 or vocab_size < 1:
            raise ConfigError(f"order must be at least 0 and vocab_size at least 1, not {order} and {vocab_size}")
        self.order, self.vocab_size, self.add_k = order, vocab_size, _checked_k(add_k)
        self.levels: list[NGramLevel] | None = None

    def fit(self, ids: Sequence[int] | np.ndarray) -> Self:
        """Count every n-gram of the text, of each length from 1 to the order. Earlier counts are forgotten.

        Args:
            ids: (N,) integers, at least one.

        Returns:
            The model itself.

        Raises:
            DataError: if there is no id, or one is outside the vocabulary.
        """
        ids = _checked_ids(ids, self.vocab_size)
        if len(ids) == 0:
            raise DataError("an n-gram model cannot be fitted on an empty text; expected at least one id")
        self.levels = []
        nodes = np.zeros(len(ids) + 1, np.int64)   # of the empty n-gram, before each id
        n_contexts = 1
        for length in range(1, self.order + 1):
            keys = nodes[:-1] * self.vocab_size + ids[length - 1 :]
            level, nodes = _count(keys, n_contexts, self.vocab_size)
            self.levels.append(level)
            n_contexts = len(level.keys)
        return self

    def log_probabilities(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """log p(id | the ids before it) for every id of a text.

        The first order - 1 ids have shorter contexts: id number i (from 0) is predicted from all i ids before it,
        with the counts of (i+1)-grams.

        Args:
            ids: (N,) integers 0 .. V-1; N may be 0.

        Returns:
            (N,) float64, nats, all finite and at most 0.

        Raises:
            DataError: if the model was not fitted, or an id is outside the vocabulary.
        """
        ids = _checked_ids(ids, self.vocab_size)
        if self.levels is None:
            raise DataError("this n-gram model has not counted anything yet; call fit first")
        log_probabilities = np.full(len(ids), -np.log(self.vocab_size))  # (N,)
        nodes = np.zeros(len(ids) + 1, np.int64)
        for length, level in enumerate(self.levels[: len(ids)], start=1):
            contexts = nodes[:-1]
            nodes = _find(level.keys, np.where(contexts < 0, -1, contexts * self.vocab_size + ids[length - 1 :]))
            above = level.counts[nodes] + self.add_k
            below = level.context_counts[contexts] + self.add_k * self.vocab_size
            log_probabilities[length - 1 :] = np.log(above / below)
        return log_probabilities

    def with_add_k(self, add_k: float) -> Self:
        """The same counts smoothed with another k; nothing is counted again.

        Args:
            add_k: above 0.

        Returns:
            A new model that shares the arrays of this one.
        """
        other = copy.copy(self)
        other.add_k = _checked_k(add_k)
        return other


def choose_add_k(
    model: NGramModel,
    held_out_ids: Sequence[int] | np.ndarray,
    candidates: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003),
) -> NGramModel:
    """Of several k, take the one that finds a held-out text least surprising.

    Args:
        model: fitted on other text.
        held_out_ids: (N,) integers, at least one.
        candidates: values of k, above 0, at least one.

    Returns:
        The model with the best k; the first of equals.

    Raises:
        ConfigError: if there is no candidate.
        DataError: if the held-out text is empty.
    """
    if not candidates:
        raise ConfigError("there is no candidate for k; give at least one value above 0")
    if len(held_out_ids) == 0:
        raise DataError("k cannot be chosen on an empty held-out text; expected at least one id")
    models = [model.with_add_k(add_k) for add_k in candidates]
    return max(models, key=lambda candidate: candidate.log_probabilities(held_out_ids).sum())


def _count(keys: np.ndarray, n_contexts: int, vocab_size: int) -> tuple[NGramLevel, np.ndarray]:
    """The level of these packed n-grams, and the place in it of each of them."""
    if n_contexts * vocab_size <= DENSE_KEYS:
        dense = np.bincount(keys, minlength=n_contexts * vocab_size)
        distinct = np.flatnonzero(dense)
        counts, nodes = dense[distinct], (np.cumsum(dense > 0) - 1)[keys]
    else:
        distinct, nodes, counts = np.unique(keys, return_inverse=True, return_counts=True)
    context_counts = np.bincount(distinct // vocab_size, weights=counts, minlength=n_contexts).astype(np.int64)
    return NGramLevel(distinct, np.append(counts, 0), np.append(context_counts, 0)), nodes


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each wanted key in the sorted keys, or -1."""
    if len(keys) == 0:
        return np.full(len(wanted), -1, np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, -1)


def _checked_k(add_k: float) -> float:
    if not 0 < add_k < float("inf"):
        raise ConfigError(f"add_k must be a number above 0, not {add_k}; at 0 an unseen id would be impossible")
    return float(add_k)


def _checked_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"ids must be a one-dimensional array of integers, not {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64)
    wrong = np.flatnonzero((array < 0) | (array >= vocab_size))
    if wrong.size:
        raise DataError(f"id {array[wrong[0]]} at position {wrong[0]} is outside the vocabulary of {vocab_size}")
    return array
