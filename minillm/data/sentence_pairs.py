"""Two segments and a question about them: does one follow the other (BERT), were they exchanged (ALBERT)?

Dimensions: B pairs, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minillm.errors import ConfigError, DataError

Document = Sequence[Sequence[int]]


@dataclass(frozen=True)
class SentencePair:
    """Two segments with the answer to the question about them.

    Attributes:
        first: ids of segment A.
        second: ids of segment B.
        label: next sentence: 0 if B followed A in the text, 1 if it comes from another document;
            sentence order: 0 if they stand in the order of the text, 1 if they were exchanged.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    label: int


def next_sentence_pairs(documents: Sequence[Document], generator: np.random.Generator) -> list[SentencePair]:
    """One pair for each two neighbouring sentences; in half of them the second is one of another document.

    BERT joins several sentences to a segment, so that pairs fill its context; here a segment is what the caller gives
    as one sentence.

    Args:
        documents: at least two, each a sequence of sentences, each a sequence of ids.
        generator: decides which pairs are false, and takes the false sentence from a document that is equally likely
            any other one, there from anywhere.

    Returns:
        Pairs in the order of the text, label 0 for a true neighbour and 1 for a false one.

    Raises:
        DataError: if there are fewer than two documents, or an empty one.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 2 (labels IsNext and NotNext).
    """
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError(f"{len(documents)} documents; expected at least two, each with at least one sentence")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                other = documents[(number + 1 + int(generator.integers(len(documents) - 1))) % len(documents)]
                second = other[int(generator.integers(len(other)))]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


def sentence_order_pairs(documents: Sequence[Document], generator: np.random.Generator) -> list[SentencePair]:
    """One pair for each two neighbouring sentences; half of them are exchanged.

    Both are of one document in any case, so that their topic says nothing.

    Args:
        documents: each a sequence of sentences, each a sequence of ids.
        generator: decides which pairs are exchanged.

    Returns:
        Pairs in the order of the text, label 0 as written and 1 exchanged.

    Source:
        Lan et al. 2019, arXiv:1909.11942, section 3.1.
    """
    pairs = []
    for document in documents:
        for first, second in zip(document[:-1], document[1:], strict=True):
            exchanged = int(generator.integers(2))
            if exchanged:
                first, second = second, first
            pairs.append(SentencePair(tuple(first), tuple(second), exchanged))
    return pairs


def join_pair(
    pair: SentencePair, class_id: int, separator_id: int, max_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] A [SEP] B [SEP], with the segment of each position.

    Where the pair is too long the longer segment loses its last tokens, one by one, until it fits.

    Args:
        pair: two segments.
        class_id: the id at the front, whose last vector answers the question.
        separator_id: the id behind each segment.
        max_positions: the most positions T.

    Returns:
        ids (T,) and segments (T,), int64; segments are 0 up to and with the first separator, then 1.

    Raises:
        ConfigError: if there is no room for one token of each.

    Example:
        >>> ids, segments = join_pair(SentencePair((7, 8, 9), (5,), 0), class_id=1, separator_id=2, max_positions=6)
        >>> ids.tolist(), segments.tolist()
        ([1, 7, 8, 2, 5, 2], [0, 0, 0, 0, 1, 1])
    """
    if max_positions < 5:
        raise ConfigError(f"max_positions is {max_positions}, expected at least 5: [CLS] A [SEP] B [SEP]")
    first, second = list(pair.first), list(pair.second)
    while len(first) + len(second) + 3 > max_positions:
        (first if len(first) > len(second) else second).pop()
    ids = [class_id, *first, separator_id, *second, separator_id]
    return np.array(ids, np.int64), np.repeat([0, 1], [len(first) + 2, len(second) + 1])
