"""A classifier that learns what is worth keeping: hashed n-grams of words and logistic regression, in numpy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minillm.data.shingles import hashed_shingles
from minillm.errors import ConfigError, DataError


def hashed_features(
    texts: Sequence[str], n_buckets: int, orders: Sequence[int] = (1, 2)
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each text as a sparse vector: n-grams of words counted in hash buckets, of length 1.

    Bucket j holds the count of all n-grams whose hash is j modulo `n_buckets`, so no vocabulary is kept and unknown
    words have their place; different n-grams may share a bucket. Counts c become log(1 + c), then the vector is
    divided by its Euclidean length.

    Args:
        texts: any number.
        n_buckets: 1 or more.
        orders: lengths of the n-grams.

    Returns:
        One (buckets, values) for each text: increasing int64, and float64 whose squares sum to 1; both empty for a text
        without words.

    Source:
        Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", arXiv:0902.2206 (here without
        signs).

    Example:
        >>> buckets, values = hashed_features(["to be or not to be"], 1 << 20, orders=[1])[0]
        >>> len(buckets), round(float((values ** 2).sum()), 6)
        (4, 1.0)
    """
    if n_buckets < 1:
        raise ConfigError(f"n_buckets must be at least 1, not {n_buckets}")
    by_order = [hashed_shingles(texts, order) for order in orders]
    vectors = []
    for place in range(len(texts)):
        parts = [hashes[starts[place] : starts[place + 1]] for hashes, starts in by_order]
        buckets, counts = np.unique(np.concatenate(parts) % np.uint64(n_buckets), return_counts=True)
        values = np.log1p(counts)
        vectors.append((buckets.astype(np.int64), values / (math.sqrt(float(values @ values)) or 1.0)))
    return vectors


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow at either end.

    Example:
        >>> sigmoid(0.0), sigmoid(-1000.0)
        (0.5, 0.0)
    """
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


@dataclass
class TextClassifier:
    """P(label is True | text) = sigmoid(w . f(text) + c), with f from `hashed_features`.

    Args:
        weights: (n_buckets,) float64.
        constant: c.
        orders: lengths of the n-grams.

    Example:
        >>> good, bad = ["the cat sat on the mat"] * 5, ["BUY cheap pills now"] * 5
        >>> classifier = TextClassifier.train(good + bad, [True] * 5 + [False] * 5)
        >>> classifier.probability("the cat on the mat") > 0.5 > classifier.probability("cheap pills")
        True
    """

    weights: np.ndarray
    constant: float
    orders: tuple[int, ...]

    @classmethod
    def train(
        cls,
        texts: Sequence[str],
        labels: Sequence[bool],
        n_buckets: int = 1 << 16,
        orders: Sequence[int] = (1, 2),
        n_epochs: int = 10,
        learning_rate: float = 2.0,
        decay: float = 1e-5,
        seed: int = 0,
    ) -> "TextClassifier":
        """Stochastic gradient descent on -log P(label), one text at a time, the rate falling linearly to 0.

        Args:
            texts: at least one of each label.
            labels: True or False, one per text.
            n_buckets: length of the weight vector.
            orders: lengths of the n-grams.
            n_epochs: passes over the texts, each in a new order.
            learning_rate: of the first step.
            decay: pulls the weights of the text's buckets towards 0, times the rate.
            seed: of the orders.

        Raises:
            DataError: if a label is missing, or only one of the two occurs.
            ConfigError: if a number is out of range.
        """
        labels = [bool(label) for label in labels]
        if len(labels) != len(texts) or len(set(labels)) < 2:
            raise DataError(f"{len(texts)} texts, {len(labels)} labels, {sum(labels)} of them True; both are needed")
        if n_epochs < 1 or not learning_rate > 0 or not decay >= 0:
            raise ConfigError(f"need n_epochs >= 1, learning_rate > 0, decay >= 0: {n_epochs, learning_rate, decay}")
        vectors, rng = hashed_features(texts, n_buckets, orders), np.random.default_rng(seed)
        weights, constant = np.zeros(n_buckets), 0.0
        n_steps, step = n_epochs * len(texts), 0
        for _ in range(n_epochs):
            for place in rng.permutation(len(texts)).tolist():
                rate = learning_rate * (1 - step / n_steps)
                step += 1
                buckets, values = vectors[place]
                error = sigmoid(float(weights[buckets] @ values) + constant) - labels[place]
                weights[buckets] -= rate * (error * values + decay * weights[buckets])
                constant -= 0.1 * rate * error
        return cls(weights, constant, tuple(orders))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) probabilities that the label is True; a text without words gets sigmoid(constant)."""
        vectors = hashed_features(texts, len(self.weights), self.orders)
        return np.array([sigmoid(float(self.weights[buckets] @ values) + self.constant) for buckets, values in vectors])

    def probability(self, text: str) -> float:
        """That of one text."""
        return float(self.probabilities([text])[0])

    def accuracy(self, texts: Sequence[str], labels: Sequence[bool]) -> float:
        """The share of texts whose more probable label is the given one."""
        return float(np.mean((self.probabilities(texts) > 0.5) == np.asarray(labels, dtype=bool)))


@dataclass(frozen=True)
class QualityFilter:
    """Drops what a classifier finds improbable.

    Args:
        classifier: trained with True for what is good.
        least: probability below which a text is dropped.
    """

    classifier: TextClassifier
    least: float = 0.5

    def __call__(self, text: str) -> str | None:
        """None, or the probability and the bound."""
        probability = self.classifier.probability(text)
        return None if probability >= self.least else f"low quality: {probability:.2f} < {self.least:g}"
