"""N-gram models that share what they keep for the unseen equally: uniform (order 0), add-k and Good-Turing.

A text is predicted id by id from the last order - 1 ids. Models that ask a shorter context about the unseen are made by
`minillm.statistical.smoothing`.

Dimensions: V vocabulary, N ids of a text, n n-grams of one level.
"""

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np

from minillm.errors import ConfigError, DataError
from minillm.statistical.counts import (
    NGramCounts,
    NGramLevel,
    check_sizes,
    checked_ids,
    count_ngrams,
    count_of_counts,
    find,
)

TURING_LARGEST = 5  # greater counts are reliable as they are (Katz 1987)


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
        check_sizes(order, vocab_size)
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
        return self.fit_counts(count_ngrams(ids, self.order, self.vocab_size))

    def fit_counts(self, counts: NGramCounts) -> Self:
        """Use n-grams that have been counted already.

        Raises:
            ConfigError: if they are of another order or vocabulary.
        """
        if (counts.order, counts.vocab_size) != (self.order, self.vocab_size):
            raise ConfigError(
                f"the counts are of order {counts.order} and vocabulary {counts.vocab_size}, "
                f"the model is of order {self.order} and vocabulary {self.vocab_size}"
            )
        self.levels = list(counts.levels)
        return self

    @property
    def n_entries(self) -> int:
        """How many n-grams of all lengths the model keeps."""
        return sum(len(level.keys) for level in self.levels or [])

    @property
    def n_bytes(self) -> int:
        """Memory of the counts."""
        return sum(array.nbytes for level in self.levels or [] for array in vars(level).values())

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
        ids = checked_ids(ids, self.vocab_size)
        levels = self._fitted_levels()
        log_probabilities = np.full(len(ids), -np.log(self.vocab_size))  # (N,)
        nodes = np.zeros(len(ids) + 1, np.int64)
        for length, level in enumerate(levels[: len(ids)], start=1):
            contexts = nodes[:-1]
            nodes = find(level.keys, contexts * self.vocab_size + ids[length - 1 :])  # behind -1 all keys are negative
            above, below = self.shares(length)
            log_probabilities[length - 1 :] = np.log(above[nodes] / below[contexts])
        return log_probabilities

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """p(x | context) for every id x.

        Args:
            context: (T,) integers; the last order - 1 of them count. A shorter one is as at the beginning of a text.

        Returns:
            (V,) float64 that sums to 1.

        Raises:
            DataError: if the model was not fitted, or an id is outside the vocabulary.
        """
        context = checked_ids(context, self.vocab_size)
        levels = self._fitted_levels()
        if self.order == 0:
            return np.full(self.vocab_size, 1 / self.vocab_size)
        context = context[max(0, len(context) - self.order + 1) :]
        node = np.zeros(1, np.int64)
        for level, token_id in zip(levels, context, strict=False):
            node = find(level.keys, node * self.vocab_size + token_id)
        above, below = self.shares(len(context) + 1)
        if node[0] < 0:
            return np.full(self.vocab_size, above[-1] / below[-1])
        following = node[0] * self.vocab_size + np.arange(self.vocab_size)
        return above[find(levels[len(context)].keys, following)] / below[node[0]]

    def shares(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Numerators of the n-grams of one length and denominators of their contexts; each ends with "never seen".

        Returns:
            (n + 1,) and (n_contexts + 1,) float64.
        """
        level = self._fitted_levels()[length - 1]
        return level.counts + self.add_k, level.context_counts + self.add_k * self.vocab_size

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

    def _fitted_levels(self) -> list[NGramLevel]:
        if self.levels is None:
            raise DataError("this n-gram model has not counted anything yet; call fit first")
        return self.levels


class GoodTuringModel(NGramModel):
    """p(x | context) = r*(context, x) / sum of r*(context, anything), with Good-Turing's adjusted counts r*.

    Every n-gram that was not seen has the same adjusted count, (number of n-grams seen once) / (number not seen), where
    the first is taken as at least 1. A context that was never seen gives 1 / V.

    Source:
        Good 1953, "The population frequencies of species"; Chen and Goodman 1998, section 2.2.
    """

    def __init__(self, order: int, vocab_size: int):
        """An empty model; see `NGramModel`."""
        super().__init__(order, vocab_size)
        self._shares: list[tuple[np.ndarray, np.ndarray]] = []

    def fit_counts(self, counts: NGramCounts) -> Self:
        """Use n-grams that have been counted already; the adjusted counts are computed here, once."""
        super().fit_counts(counts)
        self._shares = [self._adjust(length, level) for length, level in enumerate(counts.levels, start=1)]
        return self

    def shares(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Adjusted counts and their sums; see `NGramModel.shares`."""
        self._fitted_levels()
        return self._shares[length - 1]

    def _adjust(self, length: int, level: NGramLevel) -> tuple[np.ndarray, np.ndarray]:
        counts = level.counts[:-1]
        n_with = count_of_counts(counts, TURING_LARGEST + 1)
        table = good_turing_counts(n_with)
        adjusted = np.where(counts <= TURING_LARGEST, table[np.minimum(counts, TURING_LARGEST)], counts)
        n_unseen = float(self.vocab_size) ** length - len(counts)
        unseen = max(1.0, n_with[1]) / n_unseen if n_unseen > 0 else 0.0
        contexts = level.keys // self.vocab_size
        n_contexts = len(level.context_counts) - 1
        totals = np.bincount(contexts, weights=adjusted, minlength=n_contexts)
        totals = totals + (self.vocab_size - np.bincount(contexts, minlength=n_contexts)) * unseen
        return np.append(adjusted, unseen), np.append(totals, self.vocab_size * unseen)


def good_turing_counts(n_with: np.ndarray) -> np.ndarray:
    """How often what was seen r times will be seen in another text as long: r* = (r+1) n_{r+1} / n_r.

    Args:
        n_with: (R + 2,) integers; n_with[r] is how many n-grams were seen exactly r times, for r = 0 .. R+1. The entry
            for r = 0 is not looked at.

    Returns:
        (R + 1,) float64: r* for r = 0 .. R. Entry 0 is 0 (what the unseen get depends on how many there are). Where the
        estimate cannot be used, r* = r: where n_r or n_{r+1} is 0, and where it would raise a count instead of lowering
        it.

    Source:
        Good 1953, equation 2 (there r* = (r+1) E(n_{r+1}) / E(n_r)); the exceptions are ours.

    Example:
        >>> good_turing_counts(np.array([0, 10, 4, 3])).tolist()
        [0.0, 0.8, 2.0]
    """
    r = np.arange(len(n_with) - 1)                                        # (R + 1,)
    here, above = n_with[:-1], n_with[1:]
    usable = (above > 0) & ((r + 1) * above < r * here)
    return np.divide((r + 1) * above, here, out=r.astype(float), where=usable)


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


def _checked_k(add_k: float) -> float:
    if not 0 < add_k < float("inf"):
        raise ConfigError(f"add_k must be a number above 0, not {add_k}; at 0 an unseen id would be impossible")
    return float(add_k)
