"""MinHash and LSH: a few numbers per text that tell how alike two texts are, and who is worth comparing.

A shingle is a run of neighbouring words; two texts are as alike as the Jaccard similarity of their shingle sets.
MinHash estimates it from a signature, and locality-sensitive hashing (LSH) finds the pairs worth comparing without
looking at all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from minillm.data.shingles import hashed_shingles
from minillm.errors import ConfigError, DataError

SHINGLES_AT_ONCE = 1 << 14  # a block of this many, times 8 bytes, stays in the processor's cache


@dataclass(frozen=True)
class MinHash:
    """The family of hash functions h_k(x) = (a_k x + b_k mod 2^64) div 2^32, and the least value of each on a text.

    Args:
        n_hashes: numbers per signature; the estimate's deviation is sqrt(J (1 - J) / n_hashes).
        n_words: words per shingle.
        seed: chooses the a_k (odd) and b_k. Only signatures of the same family can be compared.
    """

    n_hashes: int = 128
    n_words: int = 5
    seed: int = 0

    def __post_init__(self):
        if self.n_hashes < 1 or self.n_words < 1:
            raise ConfigError(f"n_hashes and n_words must be at least 1, not {self.n_hashes} and {self.n_words}")

    def multipliers(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b), (n_hashes,) uint64 each; every a is odd, so that multiplying loses nothing."""
        a, b = np.random.default_rng(self.seed).integers(0, 1 << 64, (2, self.n_hashes), dtype=np.uint64)
        return a | np.uint64(1), b

    def signatures(self, texts: Sequence[str]) -> np.ndarray:
        """(n, n_hashes) uint32, one row per text; a text without words has 2^32 - 1 everywhere."""
        return minhash(*hashed_shingles(texts, self.n_words), *self.multipliers())


def signature(hashes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The MinHash signature of one text: for every hash function its least value over the shingles.

    s[k] = min over x of (a_k x + b_k mod 2^64) div 2^32. Unsigned 64-bit numbers are taken modulo 2^64 by themselves.

    Args:
        hashes: (n,) uint64, the text's shingles; repeated ones change nothing.
        a: (K,) uint64.
        b: (K,) uint64.

    Returns:
        (K,) uint32; 2^32 - 1 everywhere if there is no shingle.

    Source:
        Broder 1997; multiply-shift hashing: Dietzfelbinger et al. 1997.

    Example:
        >>> x, a, b = (np.array(row, dtype=np.uint64) for row in ([3 << 32, 1 << 33], [1, 3], [0, 1 << 32]))
        >>> signature(x, a, b).tolist()
        [2, 7]
    """
    if len(hashes) == 0:
        return np.full(len(a), 0xFFFFFFFF, dtype=np.uint32)
    values = a[:, None] * hashes + b[:, None]  # (K, n)
    return (values >> 32).min(axis=1).astype(np.uint32)


def minhash(hashes: np.ndarray, starts: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`signature` of many texts, a block that fits into the cache at a time.

    For a random order of all shingles the first one of A or B is in both with probability J(A, B), so the share of
    equal places in two signatures estimates J.

    Args:
        hashes: uint64 shingles of all texts, one text after the other.
        starts: (n + 1,) places: text i has hashes[starts[i]:starts[i + 1]], which may be empty.
        a: (K,) uint64.
        b: (K,) uint64.

    Returns:
        (n, K) uint32; 2^32 - 1 in the rows of texts that have no shingle.
    """
    signatures = np.full((len(starts) - 1, len(a)), 0xFFFFFFFF, dtype=np.uint32)
    full = np.flatnonzero(np.diff(starts))
    first = 0
    while first < len(full):
        # As many whole texts as fit into a block, at least one.
        until = np.searchsorted(starts[full + 1], starts[full[first]] + SHINGLES_AT_ONCE, side="right")
        rows = full[first : max(int(until), first + 1)]
        block = hashes[starts[rows[0]] : starts[rows[-1] + 1]]
        inside = starts[rows] - starts[rows[0]]
        for k in range(len(a)):
            values = block * a[k]
            values += b[k]
            signatures[rows, k] = np.minimum.reduceat(values, inside) >> np.uint64(32)
        first += len(rows)
    return signatures


def estimated_jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share of equal places in signatures.

    Args:
        first: (..., K) signatures.
        second: (..., K), of the same family.

    Returns:
        (...,) float64 between 0 and 1; its deviation is sqrt(J (1 - J) / K), if the hash functions are independent.

    Raises:
        DataError: if the signatures have different lengths.

    Example:
        >>> float(estimated_jaccard(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])))
        0.75
    """
    if np.shape(first)[-1:] != np.shape(second)[-1:]:
        raise DataError(f"signatures of different families: shapes {np.shape(first)} and {np.shape(second)}")
    return np.mean(np.asarray(first) == np.asarray(second), axis=-1)


def s_curve(similarity: np.ndarray, n_bands: int, n_rows: int) -> np.ndarray:
    """The probability that two texts of this similarity meet in at least one band: 1 - (1 - s^rows)^bands.

    Args:
        similarity: between 0 and 1, any shape.
        n_bands: how many bands a signature is cut into.
        n_rows: places per band.

    Source:
        Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.2.

    Example:
        >>> float(s_curve(0.5, n_bands=2, n_rows=1))
        0.75
    """
    return 1 - (1 - np.asarray(similarity, dtype=np.float64) ** n_rows) ** n_bands


def band_pairs(signatures: np.ndarray, n_bands: int) -> set[tuple[int, int]]:
    """The pairs of texts that agree in all places of at least one band.

    A signature of K places is cut into `n_bands` bands of K / n_bands neighbouring places. Texts that are equal in the
    same band share a bucket, and all pairs of a bucket are candidates. `lsh_candidates` does the same for many texts.

    Args:
        signatures: (n, K) integers.
        n_bands: divides K.

    Returns:
        Pairs (i, j) of text numbers with i < j.

    Raises:
        ConfigError: if n_bands is below 1 or does not divide K.

    Example:
        >>> sorted(band_pairs(np.array([[1, 2, 3, 4], [1, 2, 0, 0], [9, 9, 3, 4]]), n_bands=2))
        [(0, 1), (0, 2)]
    """
    n_places = signatures.shape[1]
    if n_bands < 1 or n_places % n_bands:
        raise ConfigError(f"n_bands must divide the {n_places} places of a signature, not {n_bands}")
    pairs = set()
    for band in np.split(signatures, n_bands, axis=1):
        buckets = {}
        for text, part in enumerate(band.tolist()):
            buckets.setdefault(tuple(part), []).append(text)
        for members in buckets.values():
            pairs.update(combinations(members, 2))
    return pairs


def lsh_candidates(signatures: np.ndarray, n_bands: int, largest_bucket: int = 200) -> np.ndarray:
    """`band_pairs` by sorting, as an array. In a bucket of more than `largest_bucket` texts (a
    million copies of one page have 5e11 pairs) only the pairs with its first text are.

    Args:
        signatures: (n, K) integers.
        n_bands: divides K.
        largest_bucket: 2 or more.

    Returns:
        (number of pairs, 2) int64, first < second, no pair twice, sorted.

    Raises:
        ConfigError: if the bands do not divide the signature, or largest_bucket is below 2.

    Source:
        Indyk and Motwani 1998; banding as in "Mining of Massive Datasets", section 3.4.

    Example:
        >>> lsh_candidates(np.array([[1, 2, 3, 4], [1, 2, 0, 0], [9, 9, 3, 4]]), n_bands=2).tolist()
        [[0, 1], [0, 2]]
    """
    n_texts, n_places = signatures.shape
    if n_bands < 1 or n_places % n_bands or largest_bucket < 2:
        raise ConfigError(
            f"n_bands must divide the {n_places} places of a signature and largest_bucket be at least 2, "
            f"not {n_bands} and {largest_bucket}"
        )
    found = [np.empty(0, dtype=np.int64)]
    for band in np.split(signatures, n_bands, axis=1):
        _, bucket_of = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(bucket_of.ravel(), kind="stable")
        edges = np.flatnonzero(np.diff(bucket_of.ravel()[order], prepend=-1, append=n_texts))
        for start, stop in zip(edges, edges[1:], strict=False):
            if stop - start > 1:
                members = order[start:stop]
                first, second = np.triu_indices(len(members), 1) if len(members) <= largest_bucket else (
                    np.zeros(len(members) - 1, dtype=np.int64), np.arange(1, len(members)))  # fmt: skip
                found.append(members[first] * n_texts + members[second])
    return np.stack(np.divmod(np.unique(np.concatenate(found)), max(n_texts, 1)), axis=1)
