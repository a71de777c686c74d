"""Byte-pair encoding as it is defined: count all pairs, join the most frequent one, start over.

These functions are the specification. `bpe_indexed` gives the same merges and ids, thousands of times faster, and the
tests hold it to that.

A word is a tuple of byte strings, at first one per byte.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

Word = tuple[bytes, ...]
Pair = tuple[bytes, bytes]
PairIds = tuple[int, int]


def word_of(piece: bytes) -> Word:
    """A piece of text as single bytes.

    Example:
        >>> word_of(b"abc")
        (b'a', b'b', b'c')
    """
    return tuple(piece[i : i + 1] for i in range(len(piece)))


def count_pairs(word_counts: Mapping[Word, int]) -> Counter[Pair]:
    """How often each two tokens stand side by side.

    Args:
        word_counts: word -> how often it occurs in the corpus, at least 1.

    Returns:
        pair -> number of places in the corpus; in (a, a, a) the pair (a, a) has two.

    Example:
        >>> count_pairs({(b"a", b"b", b"c"): 2, (b"b", b"c"): 1})[b"b", b"c"]
        3
    """
    counts: Counter[Pair] = Counter()
    for word, count in word_counts.items():
        for pair in zip(word, word[1:], strict=False):
            counts[pair] += count
    return counts


def merge(word: Word, pair: Pair) -> Word:
    """Join every occurrence of a pair, from left to right.

    Args:
        word: the tokens so far.
        pair: the two neighbours that become one token.

    Returns:
        The word with `pair[0] + pair[1]` in place of each occurrence; an occurrence that overlaps one
        to its left stays.

    Example:
        >>> merge((b"a", b"a", b"a", b"b"), (b"a", b"a"))
        (b'aa', b'a', b'b')
    """
    merged, i = [], 0
    while i < len(word):
        width = 2 if word[i : i + 2] == pair else 1
        merged.append(b"".join(word[i : i + width]))
        i += width
    return tuple(merged)


def train_merges(piece_counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Learn merges: again and again join the most frequent pair of the corpus.

    Among pairs of equal count the lexicographically greatest is taken: the pair whose first byte string is greatest,
    then whose second is. So the result does not depend on any order of counting.

    Args:
        piece_counts: piece of text (UTF-8) -> how often it occurs. Merges never join two pieces.
        n_merges: how many merges to learn, at least 0.

    Returns:
        The pairs in the order in which they were joined; fewer than `n_merges` when no pair is left.

    Source:
        Gage 1994, "A New Algorithm for Data Compression"; text: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.

    Example:
        >>> train_merges({b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 3)
        [(b's', b't'), (b'e', b'st'), (b'o', b'w')]
    """
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges: list[Pair] = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


def encode_piece(piece: bytes, merges: Iterable[Pair]) -> Word:
    """Apply the learned merges to one piece, in the order in which they were learned.

    Args:
        piece: the UTF-8 bytes of one piece of text.
        merges: the pairs to join, first learned first.

    Returns:
        The tokens as byte strings; joined they give the piece.

    Example:
        >>> encode_piece(b"lowest", [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow")])
        (b'low', b'est')
    """
    word = word_of(piece)
    for pair in merges:
        word = merge(word, pair)
    return word


def encode_by_rank(ids: list[int], ranks: Mapping[PairIds, int], products: list[int]) -> list[int]:
    """Apply the learned merges to one piece, as `encode_piece` does, without going through all of them.

    As long as there are neighbours that have a rank: of all of them, the two with the smallest rank are joined, the
    leftmost two if that pair stands at several places. Rank 0 is the merge that was learned first.

    Args:
        ids: the ids of the piece's bytes; the caller does not need the list any more.
        ranks: pair of ids -> place in the order in which the merges were learned.
        products: rank -> id of the joined token; not every id need be 256 + rank.

    Returns:
        The ids of the tokens.

    Example:
        >>> encode_by_rank([1, 2, 3, 1, 2], ranks={(2, 3): 0, (1, 2): 1, (7, 1): 2}, products=[7, 8, 9])
        [1, 7, 8]
    """
    rank_of, never = ranks.get, len(products)
    waiting = [rank_of(pair, never) for pair in pairwise(ids)]
    while waiting and (rank := min(waiting)) < never:
        i = waiting.index(rank)
        ids[i : i + 2] = [products[rank]]
        del waiting[i]
        if i < len(waiting):
            waiting[i] = rank_of((ids[i], ids[i + 1]), never)
        if i:
            waiting[i - 1] = rank_of((ids[i - 1], ids[i]), never)
    return ids
