"""How often each run of ids occurs in a text: every n-gram of every length up to an order, as sorted integer arrays.

Level m holds the distinct m-grams. An m-gram is packed into one integer, `place of its first m-1 ids in level m-1,
times V, plus its last id`, and the level is sorted by it: a dictionary without objects, 16 bytes an n-gram, looked up
for a whole text at once by binary search. The empty n-gram is the one entry, place 0, of level 0.

Long texts are counted chunk by chunk: each chunk gives small tables, and tables of neighbouring chunks are merged.

Dimensions: V vocabulary, N ids of a text, n n-grams of one level.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from minillm.errors import ConfigError, DataError
from minillm.statistical.hashing import HashIndex

DENSE_KEYS = 1 << 23  # up to so many possible keys, counting in a table is faster than sorting
CHUNK_IDS = 1 << 21   # ids counted at a time: about 150 MB of temporary arrays


@dataclass(frozen=True)
class NGramLevel:
    """The distinct n-grams of one length m, sorted. Place -1 stands for "never seen": both counts end with an extra 0.

    Attributes:
        keys: (n,) int64, sorted: place of the first m-1 ids in the level below, times V, plus the last id.
        counts: (n + 1,) int64, how often each occurs.
        context_counts: (n_contexts + 1,) int64, how often each (m-1)-gram of the level below is followed by anything.
    """

    keys: np.ndarray
    counts: np.ndarray
    context_counts: np.ndarray


@dataclass(frozen=True)
class NGramCounts:
    """All n-grams of a text up to a length.

    Attributes:
        vocab_size: V; ids are 0 .. V-1.
        levels: one per length, the shortest first.
        boundary: the id that parts documents, if n-grams must not reach across it; see `count_ngrams`.
    """

    vocab_size: int
    levels: tuple[NGramLevel, ...]
    boundary: int | None = None

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.levels)

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for level in self.levels for array in vars(level).values())


def count_ngrams(
    ids: Sequence[int] | np.ndarray, order: int, vocab_size: int, boundary: int | None = None
) -> NGramCounts:
    """Count every n-gram of a text, of each length from 1 to the order.

    Args:
        ids: (N,) integers 0 .. V-1, at least one.
        order: the longest length, at least 0.
        vocab_size: V.
        boundary: an id, such as that of the end of a text, behind which nothing before it is remembered. An n-gram may
            begin with it (what starts a document) or end with it (what ends one), but one that holds it in between is
            not counted. None: the text is one piece, and n-grams reach across everything.

    Returns:
        The counts; a length greater than N has no n-grams.

    Raises:
        DataError: if there is no id, or one is outside the vocabulary.
        ConfigError: if a number is out of range.

    Example:
        >>> counts = count_ngrams([0, 1, 0, 1, 1], order=2, vocab_size=2)
        >>> counts.levels[1].keys.tolist(), counts.levels[1].counts.tolist()
        ([1, 2, 3], [2, 1, 1, 0])
    """
    check_sizes(order, vocab_size, boundary)
    ids = checked_ids(ids, vocab_size)
    if len(ids) == 0:
        raise DataError("n-grams cannot be counted in an empty text; expected at least one id")
    if len(ids) <= CHUNK_IDS:
        return _count_piece(ids, order, vocab_size, boundary, 0)
    return count_chunks((ids[i : i + CHUNK_IDS] for i in range(0, len(ids), CHUNK_IDS)), order, vocab_size, boundary)


def count_chunks(
    chunks: Iterable[Sequence[int] | np.ndarray], order: int, vocab_size: int, boundary: int | None = None
) -> NGramCounts:
    """The counts of one long text that comes in pieces; it need never be in memory as a whole.

    N-grams that lie across the cut between two chunks are counted too: the result is that of `count_ngrams` on the
    joined text. Tables are merged like numbers are carried in binary counting, small ones with small ones, so that
    each n-gram is moved only about log2(chunks) times.

    Args:
        chunks: arrays of ids, in the order of the text; empty ones are passed over.
        order, vocab_size, boundary: as in `count_ngrams`.

    Raises:
        DataError: if there is no id at all, or one is outside the vocabulary.
        ConfigError: if a number is out of range.
    """
    check_sizes(order, vocab_size, boundary)
    tables: list[tuple[int, NGramCounts]] = []  # pairs of how many chunks and their counts, ever smaller
    carried = np.zeros(0, np.int64)             # the last order - 1 ids before the chunk
    for chunk in chunks:
        chunk = checked_ids(chunk, vocab_size)
        if len(chunk) == 0:
            continue
        joined = np.concatenate([carried, chunk])
        tables.append((1, _count_piece(joined, order, vocab_size, boundary, len(carried))))
        carried = joined[max(0, len(joined) - max(0, order - 1)) :]
        while len(tables) > 1 and tables[-2][0] == tables[-1][0]:
            (n_first, first), (n_second, second) = tables[-2:]
            tables[-2:] = [(n_first + n_second, merge_counts(first, second))]
    if not tables:
        raise DataError("n-grams cannot be counted in an empty text; expected at least one id")
    while len(tables) > 1:
        (n_first, first), (n_second, second) = tables[-2:]
        tables[-2:] = [(n_first + n_second, merge_counts(first, second))]
    return tables[0][1]


def merge_counts(first: NGramCounts, second: NGramCounts) -> NGramCounts:
    """The counts of both together: every n-gram of either, with the sum of its counts.

    A place of one table means another n-gram in the other, so each level is packed anew with the places that its
    contexts have in the merged level below. That keeps it sorted.

    Raises:
        ConfigError: if the two differ in order, vocabulary or boundary.
    """
    if (first.order, first.vocab_size, first.boundary) != (second.order, second.vocab_size, second.boundary):
        raise ConfigError("counts of different order, vocab_size or boundary cannot be merged")
    vocab_size, merged = first.vocab_size, []
    moved = [np.zeros(1, np.int64), np.zeros(1, np.int64)]  # where each entry of the level below went
    n_contexts = 1
    for levels in zip(first.levels, second.levels, strict=True):
        keys = []
        for level, contexts in zip(levels, moved, strict=True):
            context, last = np.divmod(level.keys, vocab_size)
            keys.append(contexts[context] * vocab_size + last)
        union = np.union1d(*keys)
        moved = [np.searchsorted(union, one) for one in keys]
        counts = np.zeros(len(union), np.int64)
        for level, places in zip(levels, moved, strict=True):
            counts[places] += level.counts[:-1]
        merged.append(_level(union, counts, n_contexts, vocab_size))
        n_contexts = len(union)
    return NGramCounts(vocab_size, tuple(merged), first.boundary)


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each wanted key in the sorted keys, or -1.

    Args:
        keys: (n,) sorted integers, all different; n may be 0.
        wanted: integers of any shape.

    Example:
        >>> find(np.array([2, 5, 9]), np.array([9, 3, 2])).tolist()
        [2, -1, 0]
    """
    if len(keys) == 0:
        return np.full(wanted.shape, -1, np.int64)
    places = np.searchsorted(keys, wanted)
    places[places == len(keys)] = 0
    places[keys[places] != wanted] = -1
    return places


def suffix_places(counts: NGramCounts) -> list[np.ndarray]:
    """For each level m, the place in level m-1 of every m-gram's last m-1 ids.

    Each of them is there, since whoever occurs in a text brings its tail along.

    Returns:
        One (n,) int64 array per level; for the first it is all zeros, the empty n-gram.
    """
    suffixes: list[np.ndarray] = []
    for length, level in enumerate(counts.levels, start=1):
        if length == 1:
            suffixes.append(np.zeros(len(level.keys), np.int64))
            continue
        context, last = np.divmod(level.keys, counts.vocab_size)
        suffixes.append(find(counts.levels[length - 2].keys, suffixes[-1][context] * counts.vocab_size + last))
    return suffixes


def continuation_counts(n_ngrams: int, longer_suffixes: np.ndarray) -> np.ndarray:
    """Before how many different ids an n-gram was seen: in how many longer n-grams it is the tail.

    "Francisco" may occur often, but only after "San": its count is large and its continuation count is 1.

    Args:
        n_ngrams: how many distinct n-grams this length has.
        longer_suffixes: (n_longer,) integers 0 .. n_ngrams - 1: for every distinct n-gram that is one id longer, which
            n-gram it becomes when its first id is taken away.

    Returns:
        (n_ngrams,) int64.

    Source:
        Kneser and Ney 1995, "Improved backing-off for m-gram language modeling".

    Example:
        >>> continuation_counts(3, np.array([0, 2, 2, 0, 2])).tolist()
        [2, 0, 3]
    """
    return np.bincount(longer_suffixes, minlength=n_ngrams)


def adjusted_counts(counts: NGramCounts, suffixes: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """What Kneser-Ney smoothing counts: occurrences for the longest n-grams, continuations for all shorter ones.

    N-grams of two or more ids that begin with the boundary keep their occurrences: nothing can stand before them.

    Args:
        counts: of a text.
        suffixes: `suffix_places(counts)`, if they are there already.

    Returns:
        One (n,) int64 array per level.
    """
    suffixes, adjusted = suffix_places(counts) if suffixes is None else suffixes, []
    for length, level in enumerate(counts.levels, start=1):
        occurrences = level.counts[:-1]
        if length == counts.order:
            adjusted.append(occurrences)
            continue
        continuations = continuation_counts(len(level.keys), suffixes[length])
        if length > 1 and counts.boundary is not None:
            starts = first_ids(counts)[length - 1] == counts.boundary
            continuations = np.where(starts, occurrences, continuations)
        adjusted.append(continuations)
    return adjusted


def first_ids(counts: NGramCounts) -> list[np.ndarray]:
    """The first id of every n-gram, one (n,) array per level."""
    first: list[np.ndarray] = []
    for level in counts.levels:
        first.append(first[-1][level.keys // counts.vocab_size] if first else level.keys)
    return first


def count_of_counts(counts: np.ndarray, largest: int) -> np.ndarray:
    """How many n-grams occur exactly r times, for r = 0 .. largest.

    Args:
        counts: (n,) integers of at least 0.
        largest: the last r that is asked for.

    Returns:
        (largest + 1,) int64; greater counts are left out.

    Example:
        >>> count_of_counts(np.array([1, 3, 1, 7]), 4).tolist()
        [0, 2, 0, 1, 0]
    """
    return np.bincount(counts[counts <= largest], minlength=largest + 1)


def check_sizes(order: int, vocab_size: int, boundary: int | None = None) -> None:
    """Raise a ConfigError unless the numbers are possible."""
    if order < 0 or vocab_size < 1:
        raise ConfigError(f"order must be at least 0 and vocab_size at least 1, not {order} and {vocab_size}")
    if boundary is not None and not 0 <= boundary < vocab_size:
        raise ConfigError(f"the boundary must be an id below {vocab_size} or None, not {boundary}")


def checked_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids as (N,) int64; raises a DataError naming the first that is not in the vocabulary."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"ids must be a one-dimensional array of integers, not {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64, copy=False)
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        wrong = np.flatnonzero((array < 0) | (array >= vocab_size))[0]
        raise DataError(f"id {array[wrong]} at position {wrong} is outside the vocabulary of {vocab_size}")
    return array


def _count_piece(ids: np.ndarray, order: int, vocab_size: int, boundary: int | None, n_carried: int) -> NGramCounts:
    """Count the n-grams that end behind the first `n_carried` ids; those inside them are listed with count 0."""
    levels, n_contexts = [], 1
    nodes = np.zeros(len(ids) + 1, np.int64)                # place of the n-gram that starts here, or -1
    barrier = _last_before(ids, boundary)                   # (N,), the earliest start of an n-gram that ends here
    for length in range(1, order + 1):
        last = np.arange(length - 1, len(ids))              # where each n-gram ends
        allowed = slice(None) if barrier is None else last - (length - 1) >= barrier[last]
        last, contexts = last[allowed], nodes[:-1][: len(last)][allowed]
        keys = contexts * vocab_size + ids[last]
        distinct, counts = _distinct(keys, n_contexts * vocab_size)
        old = keys[: np.searchsorted(last, n_carried)]
        np.subtract.at(counts, np.searchsorted(distinct, old), 1)
        levels.append(_level(distinct, counts, n_contexts, vocab_size))
        n_contexts = len(distinct)
        if length < order:
            nodes = np.full(max(1, len(ids) - length + 1), -1, np.int64)
            nodes[last - (length - 1)] = _places(distinct, keys)
    return NGramCounts(vocab_size, tuple(levels), boundary)


def _last_before(ids: np.ndarray, boundary: int | None) -> np.ndarray | None:
    """For each position the last one before it that holds the boundary, or 0."""
    if boundary is None:
        return None
    last = np.maximum.accumulate(np.where(ids == boundary, np.arange(len(ids)), 0))
    return np.concatenate([[0], last[:-1]])


def _distinct(keys: np.ndarray, n_possible: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, sorted, and how often each occurs."""
    if n_possible <= DENSE_KEYS:
        table = np.bincount(keys, minlength=n_possible)
        distinct = np.flatnonzero(table)
        return distinct, table[distinct]
    ordered = np.sort(keys)
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[starts], np.diff(starts, append=len(ordered))


def _places(distinct: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which of the distinct keys each key is; all are there."""
    if len(distinct) and distinct[-1] < DENSE_KEYS:
        table = np.zeros(distinct[-1] + 1, np.int64)
        table[distinct] = np.arange(len(distinct))
        return table[keys]
    return HashIndex(distinct).find(distinct, keys)


def _level(keys: np.ndarray, counts: np.ndarray, n_contexts: int, vocab_size: int) -> NGramLevel:
    context_counts = np.bincount(keys // vocab_size, weights=counts, minlength=n_contexts).astype(np.int64)
    return NGramLevel(keys, np.append(counts, 0), np.append(context_counts, 0))
