"""Chapter 02, Tokenizers: fill in the holes (15 points).

`minillm course test 02` tests this file, `minillm course test 02 2.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import re
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise

from minillm.tokenizers.bpe_naive import Pair, PairIds, Word, word_of
from minillm.tokenizers.wordpiece import INSIDE


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
    # TASK 2.1 (1 point)
    # Walk over the neighbours of each word once. A word that occurs 12 times gives 12 to every pair in it; a pair
    # that stands twice in the word gets its share twice.
    raise NotImplementedError("task 2.1")


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
    # TASK 2.2 (2 points)
    # Go from left to right with an index. After joining two tokens, step over both: what has been joined cannot
    # be joined again in the same pass.
    raise NotImplementedError("task 2.2")


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
    # TASK 2.3 (3 points)
    # Each round: count the pairs of all words as they stand now, take the best, apply it to every word. Two pairs
    # with the same count are decided by comparing the pairs themselves; and what if there is no pair left?
    raise NotImplementedError("task 2.3")


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
    # TASK 2.4 (3 points)
    # In each round look up the rank of every two neighbours, join the two with the smallest, and look again: the
    # new token may have made a pair that was not there before. Neither the first pair that has a rank nor the
    # longest token is what counts.
    raise NotImplementedError("task 2.4")


def split_specials(text: str, special_tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """Part a text at the special tokens in it.

    Args:
        text: any text.
        special_tokens: the strings to find, leftmost first, and of two that begin at the same place the longer. Every
            character of them stands for itself.

    Returns:
        (string, is_special) in the order of the text, no string empty; joined they give the text. The text between two
        special tokens is one string.

    Example:
        >>> split_specials("a<|end|><|end|>b", ["<|end|>"])
        [('a', False), ('<|end|>', True), ('<|end|>', True), ('b', False)]
        >>> split_specials("<|a|>b", ["<|a|>", "<|a|>b"])
        [('<|a|>b', True)]
    """
    # TASK 2.5 (2 points)
    # A regular expression with alternatives takes the first one that fits, not the longest, and gives some
    # characters a meaning. `re.split` keeps what a group in parentheses caught.
    raise NotImplementedError("task 2.5")


def stream_text(parts: Iterable[bytes]) -> Iterator[str]:
    """Read UTF-8 that arrives in parts, and show each character as soon as it is whole.

    A token may end in the middle of a character: its bytes wait for those of the next token.

    Args:
        parts: byte strings, cut anywhere, also empty; there may be no end of them.

    Yields:
        For each part, before the next one is asked for, the text that has become certain with it; nothing if none has.
        Bytes that cannot be part of a character come out as U+FFFD, and so does what is incomplete at the end: joined,
        the text is `b"".join(parts).decode("utf-8", "replace")`. (Half of a surrogate pair, never allowed in UTF-8, may
        come out one part late.)

    Example:
        >>> list(stream_text([b"a", b"\\xe4\\xb8", b"\\xadb", b"\\xe4"]))
        ['a', '中b', '�']
    """
    # TASK 2.6 (2 points)
    # The codecs module has a decoder with a memory. Tell it at the end that nothing more will come.
    raise NotImplementedError("task 2.6")


def longest_pieces(word: str, vocabulary: Collection[str]) -> list[str]:
    """Split a word into tokens: the longest that the word begins with, then the longest that goes on from there.

    Args:
        word: one word, no white space in it.
        vocabulary: the known tokens (`in` is fast); those that go on with a word begin with "##".

    Returns:
        The tokens; without their "##" and joined they give the word. An empty list if at some place no token goes on:
        there is no going back to a shorter token, the whole word is unknown then.

    Source:
        Wu et al. 2016, arXiv:1609.08144, section 4.1; the greedy search is that of BERT, arXiv:1810.04805.

    Example:
        >>> longest_pieces("lowest", {"l", "low", "lower", "##e", "##est", "##st"})
        ['low', '##est']
        >>> longest_pieces("lowly", {"l", "low", "##l"})
        []
    """
    # TASK 2.7 (2 points)
    # Two loops: the outer one moves the start to the end of what was found, the inner one shortens the candidate
    # from the right. Only the first piece is looked up without ##.
    raise NotImplementedError("task 2.7")
