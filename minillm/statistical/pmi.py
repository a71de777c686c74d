"""Word vectors by counting: how much more often two words meet than by chance, and the best narrow copy of that table.

Dimensions: V vocabulary, C width of a vector.
"""

import numpy as np

from minillm.errors import DataError


def pair_counts(centres: np.ndarray, contexts: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each word has each other word in its window.

    Args:
        centres: (n_pairs,) integers 0 .. V - 1.
        contexts: (n_pairs,) likewise.
        vocab_size: V; the table has V^2 entries.

    Returns:
        (V, V) int64, centres in rows.

    Example:
        >>> pair_counts(np.array([0, 1, 0]), np.array([1, 0, 1]), 2).tolist()
        [[0, 2], [1, 0]]
    """
    return np.bincount(centres * vocab_size + contexts, minlength=vocab_size**2).reshape(vocab_size, vocab_size)


def mutual_information(pairs: np.ndarray, counts: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Pointwise mutual information of each centre and context: log of p(context | centre) / noise(context).

    With power 1 the noise is the share of the context word; with the power of the noise words of negative sampling it
    is what skip-gram's scores, plus log K, would be if every score could be chosen freely.

    Args:
        pairs: (V, V) integers, from `pair_counts`.
        counts: (V,) integers, how often each word occurs (as a context, or in the text).
        power: above 0; the noise is in proportion to count^power.

    Returns:
        (V, V) float64 in nats; -inf where two words never met, and in rows of words that met nobody.

    Raises:
        DataError: if a word is in a pair and has count 0.

    Source:
        Church and Hanks 1990, "Word association norms, mutual information, and lexicography"; Levy and Goldberg 2014,
        "Neural word embedding as implicit matrix factorization".

    Example:
        >>> mutual_information(np.array([[0, 3], [3, 2]]), np.array([1, 1])).round(3).tolist()
        [[-inf, 0.693], [0.182, -0.223]]
    """
    if (pairs.sum(axis=0)[counts == 0] > 0).any():
        raise DataError("a word of count 0 occurs in a pair; expected the counts of the text the pairs come from")
    noise = np.asarray(counts, float) ** power
    expected = pairs.sum(axis=1, keepdims=True) * (noise / noise.sum())  # (V, V)
    with np.errstate(divide="ignore"):
        return np.log(np.divide(pairs, expected, out=np.zeros_like(expected), where=expected > 0))


def count_vectors(information: np.ndarray, d_model: int) -> np.ndarray:
    """Vectors whose products come closest to the positive part of a table of mutual information.

    Args:
        information: (V, V), from `mutual_information`; what is below 0 or -inf counts as 0.
        d_model: width C, 1 .. V.

    Returns:
        (V, C) float64: of the singular value decomposition U S W^T, the first C columns of U times the root of S.

    Raises:
        DataError: if C is out of range.

    Source:
        Levy, Goldberg and Dagan 2015, "Improving distributional similarity with lessons learned from word embeddings".

    Example:
        >>> abs(count_vectors(np.array([[4.0, -np.inf], [-1.0, 9.0]]), 1)).tolist()
        [[0.0], [3.0]]
    """
    if not 1 <= d_model <= len(information):
        raise DataError(f"d_model is {d_model}; expected 1 .. V = {len(information)}")
    left, sizes, _ = np.linalg.svd(np.maximum(information, 0.0))
    return left[:, :d_model] * np.sqrt(sizes[:d_model])
