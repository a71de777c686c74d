"""Duplicates found and dropped: whole texts and lines that are the same, and texts that are nearly the same."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from minillm.data.minhash import MinHash, estimated_jaccard, lsh_candidates, minhash
from minillm.data.shingles import digest, hashed_shingles, sorted_jaccard
from minillm.errors import ConfigError


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
