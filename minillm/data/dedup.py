"""Exact and near duplicates: digests of whole texts, MinHash signatures of their shingles, and LSH to find alike ones.

A shingle is a run of neighbouring words; two texts are as alike as the Jaccard similarity of their shingle sets.
MinHash estimates it from a few numbers per text, and locality-sensitive hashing (LSH) finds the pairs worth comparing
without looking at all of them. All hashes are the same on every machine and in every process.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, combinations

import numpy as np

from minillm.errors import ConfigError, DataError

# Letters and digits in runs; characters of scripts that are written without spaces one by one.
UNSPACED = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
UNITS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
ASCII_UNITS = re.compile(r"\w+", re.ASCII)  # the same on ASCII text, three times as fast
MULTIPLIER = 0x9E3779B97F4A7C15
SHINGLES_AT_ONCE = 1 << 14  # a block of this many, times 8 bytes, stays in the processor's cache


def words_of(text: str) -> list[str]:
    """The case-folded words of a text; a Chinese, Japanese, Thai or Lao character is a word of its own.

    Example:
        >>> words_of("The cat, 你好!")
        ['the', 'cat', '你', '好']
    """
    return (ASCII_UNITS if text.isascii() else UNITS).findall(text.casefold())


def digest(text: str, size: int = 16) -> bytes:
    """A fingerprint of `size` bytes; two texts with the same 16 bytes are the same for every purpose but an attack."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


class ExactDuplicates:
    """Says of each text whether it was seen before; 16 bytes are remembered of each.

    Args:
        key: what two texts must agree in to be the same, for example `lambda text: " ".join(words_of(text))`; by
            default all of it.

    Example:
        >>> seen = ExactDuplicates()
        >>> [seen("a b"), seen("a  b"), seen("a b")]
        [None, None, 'duplicate of document 0']
    """

    def __init__(self, key: Callable[[str], str] = str):
        self.key = key
        self.first: dict[bytes, int] = {}
        self.n_seen = 0

    def __call__(self, text: str) -> str | None:
        """None for a new text, else the number (counted from 0) of the first one like it."""
        number = self.first.setdefault(digest(self.key(text)), self.n_seen)
        self.n_seen += 1
        return None if number == self.n_seen - 1 else f"duplicate of document {number}"


class DuplicateLines:
    """Takes lines away that were seen before, in this text or in an earlier one: menus, footers, copied verses.

    Args:
        n_letters: lines with fewer characters than this, white space at the ends aside, may repeat.

    Example:
        >>> lines = DuplicateLines(n_letters=4)
        >>> lines("Home\\nA new story.\\n- \\n"), lines("Home\\nAnother one.\\n- ")
        (('Home\\nA new story.\\n- \\n', 0), ('Another one.\\n- ', 1))
    """

    def __init__(self, n_letters: int = 20):
        self.n_letters = n_letters
        self.seen: set[bytes] = set()

    def __call__(self, text: str) -> tuple[str, int]:
        """What is left, and how many lines are gone."""
        kept, n_gone = [], 0
        for line in text.splitlines(keepends=True):
            key = digest(line.strip())
            if len(line.strip()) >= self.n_letters and key in self.seen:
                n_gone += 1
                continue
            self.seen.add(key)
            kept.append(line)
        return "".join(kept), n_gone


def shingles(text: str, n_words: int = 5) -> set[tuple[str, ...]]:
    """Every run of `n_words` neighbouring words, as a set. A shorter text is one shingle, a text without words none.

    Args:
        text: any text.
        n_words: 1 or more. Long runs see the order of words and only copied passages; with 1 the order does not count.

    Raises:
        ConfigError: if n_words is below 1.

    Example:
        >>> sorted(shingles("to be or not to be", 2))
        [('be', 'or'), ('not', 'to'), ('or', 'not'), ('to', 'be')]
    """
    if n_words < 1:
        raise ConfigError(f"n_words must be at least 1, not {n_words}")
    words = words_of(text)
    runs = {tuple(words[start : start + n_words]) for start in range(len(words) - n_words + 1)}
    return runs if runs or not words else {tuple(words)}


def jaccard(first: set, second: set) -> float:
    """What two sets share, over all that they have: |A and B| / |A or B|; 0 if both are empty.

    Source:
        Jaccard 1901; for texts Broder 1997, "On the resemblance and containment of documents".

    Example:
        >>> jaccard({1, 2, 3}, {2, 3, 4})
        0.5
    """
    return len(first & second) / len(first | second) if first or second else 0.0


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Each 64-bit number turned into one that looks random, one to one.

    Args:
        numbers: uint64, any shape.

    Source:
        Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators" (the finaliser of SplitMix64).
    """
    numbers = numbers + np.uint64(MULTIPLIER)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class _WordHashes(dict):
    """Word -> 64 bits of its digest, worked out once per word."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(digest(word, 8), "little")
        if len(self) < 1 << 18:  # texts of endless new words must not fill the memory
            self[word] = value
        return value


def hashed_shingles(texts: Sequence[str], n_words: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of several texts as 64-bit numbers, one after the other; repeated ones are still there.

    Args:
        texts: any number.
        n_words: as in `shingles`.

    Returns:
        (hashes, starts): uint64 numbers, and (n + 1,) places: those of text i are hashes[starts[i]:starts[i + 1]].

    Raises:
        ConfigError: if n_words is below 1.
    """
    if n_words < 1:
        raise ConfigError(f"n_words must be at least 1, not {n_words}")
    rows = [words_of(text) for text in texts]
    numbers = np.fromiter(map(_WordHashes().__getitem__, chain.from_iterable(rows)), dtype=np.uint64)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    counts = np.where(lengths > n_words, lengths - n_words + 1, np.minimum(lengths, 1))
    starts = np.concatenate([[0], np.cumsum(counts)])
    # Where each shingle begins among all words, and where its text ends, which only a short text's shingle reaches.
    first = np.arange(starts[-1]) + np.repeat(np.cumsum(lengths) - lengths - starts[:-1], counts)
    end = np.repeat(np.cumsum(lengths), counts)
    hashes = np.zeros(starts[-1], dtype=np.uint64)
    for place in range(min(n_words, int(lengths.max(initial=0)))):
        inside = first + place < end
        terms = numbers[np.minimum(first + place, end - 1)] * np.uint64(pow(MULTIPLIER, place, 1 << 64))
        hashes += np.where(inside, terms, np.uint64(0))
    return mixed(hashes), starts


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


def components(n_texts: int, pairs: np.ndarray) -> np.ndarray:
    """For every text the smallest number among all that are connected with it by pairs.

    Args:
        n_texts: how many there are.
        pairs: (number of pairs, 2) numbers from 0 to n_texts - 1.

    Returns:
        (n_texts,) int64; a text without pairs is its own.

    Example:
        >>> components(5, np.array([[1, 4], [4, 2]])).tolist()
        [0, 1, 1, 3, 1]
    """
    parent = list(range(n_texts))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for first, second in np.asarray(pairs, dtype=np.int64).reshape(-1, 2).tolist():
        one, other = root(first), root(second)
        parent[max(one, other)] = min(one, other)
    return np.array([root(text) for text in range(n_texts)], dtype=np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """What `near_duplicates` found.

    Args:
        pairs: (P, 2) numbers of texts whose similarity reaches the threshold.
        similarity: (P,) true Jaccard similarity of their hashed shingle sets.
        first_of: (n,) for every text the first of its group; a text without pairs is its own.
        n_candidates: how many pairs were compared.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    first_of: np.ndarray
    n_candidates: int

    @property
    def kept(self) -> np.ndarray:
        """(n,) bool: True for the texts that stay, the first of each group."""
        return self.first_of == np.arange(len(self.first_of))


def near_duplicates(
    texts: Iterable[str],
    threshold: float = 0.8,
    family: MinHash = MinHash(),  # noqa: B008 (frozen)
    n_bands: int = 16,
    texts_at_once: int = 1000,
) -> NearDuplicates:
    """Groups of texts that are nearly the same.

    Texts are read once, in blocks; of each its signature and its shingle hashes stay (8 bytes per word). Candidates
    come from LSH and are compared by their true similarity, so no pair is reported wrongly; one of similarity s is
    missed with probability 1 - s_curve(s, n_bands, rows). Groups are chains: a and c may be less alike than both are
    to b.

    Args:
        texts: any number; a text without words is like no other.
        threshold: between 0 (excluded) and 1.
        family: signature length, shingle length and seed.
        n_bands: divides `family.n_hashes`. With 128 hashes and 16 bands of 8, a pair at 0.8 is found in 95 of 100
            cases, one at 0.9 nearly always, one at 0.5 in 6 of 100.
        texts_at_once: size of a block.

    Raises:
        ConfigError: if a setting is out of range.
    """
    if not 0 < threshold <= 1 or texts_at_once < 1:
        raise ConfigError(f"need 0 < threshold <= 1 and texts_at_once >= 1, not {threshold} and {texts_at_once}")
    a, b = family.multipliers()
    signatures, sets, block = [np.empty((0, family.n_hashes), np.uint32)], [], []

    def take() -> None:
        hashes, starts = hashed_shingles(block, family.n_words)
        signatures.append(minhash(hashes, starts, a, b))
        sets.extend(np.unique(hashes[start:stop]) for start, stop in zip(starts, starts[1:], strict=False))
        block.clear()

    for text in texts:
        block.append(text)
        if len(block) == texts_at_once:
            take()
    take()
    candidates = lsh_candidates(np.concatenate(signatures), n_bands)
    similarity = np.array([sorted_jaccard(sets[one], sets[other]) for one, other in candidates.tolist()])
    enough = similarity >= threshold
    pairs = candidates[enough]
    return NearDuplicates(pairs, similarity[enough], components(len(sets), pairs), len(candidates))


def sorted_jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """`jaccard` of two sorted arrays without repeats; 0 if both are empty.

    Example:
        >>> sorted_jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
        0.5
    """
    both = np.concatenate([first, second])
    both.sort(kind="stable")
    n_shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return n_shared / (len(both) - n_shared) if len(both) else 0.0


class NearDuplicateIndex:
    """Says of each text, in the order they come, whether an earlier one that was kept is nearly the same.

    The streaming form of `near_duplicates`: it remembers signatures and band keys of the kept texts only, compares by
    signatures (so similarity is an estimate), and a text is never dropped for being like a dropped one.

    Args:
        threshold: least estimated similarity, between 0 (excluded) and 1.
        family: as in `near_duplicates`.
        n_bands: as in `near_duplicates`.

    Example:
        >>> index = NearDuplicateIndex(0.5, MinHash(n_words=2))
        >>> index("one two three four five six"), index("one two three four five six!")
        (None, 'near duplicate of document 0 (1.00)')
    """

    def __init__(self, threshold: float = 0.8, family: MinHash = MinHash(), n_bands: int = 16):  # noqa: B008
        if not 0 < threshold <= 1 or n_bands < 1 or family.n_hashes % n_bands:
            raise ConfigError(
                f"need 0 < threshold <= 1 and n_bands that divide {family.n_hashes}, not {threshold} and {n_bands}"
            )
        self.threshold, self.family, self.n_bands = threshold, family, n_bands
        self.a, self.b = family.multipliers()
        self.signature_of: dict[int, np.ndarray] = {}
        self.buckets: dict[tuple[int, bytes], int] = {}
        self.n_seen = 0

    def __call__(self, text: str) -> str | None:
        """None for a text that is new, else the number of the earlier one and the estimated similarity."""
        number = self.n_seen
        self.n_seen += 1
        hashes, starts = hashed_shingles([text], self.family.n_words)
        if len(hashes) == 0:
            return None
        signature = minhash(hashes, starts, self.a, self.b)[0]
        keys = [(band, part.tobytes()) for band, part in enumerate(np.split(signature, self.n_bands))]
        for earlier in sorted({self.buckets[key] for key in keys if key in self.buckets}):
            similarity = float(estimated_jaccard(signature, self.signature_of[earlier]))
            if similarity >= self.threshold:
                return f"near duplicate of document {earlier} ({similarity:.2f})"
        self.signature_of[number] = signature
        for key in keys:
            self.buckets.setdefault(key, number)
        return None
