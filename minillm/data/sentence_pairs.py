"""Two segments and a question about them: does one follow the other (BERT), were they exchanged (ALBERT)?

Dimensions: B pairs, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minillm.data.masking import MaskingConfig, mask_tokens
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
    if len(documents) < 2 or min(map(len, documents)) == 0:
        raise DataError(f"{len(documents)} documents; expected at least two, each with at least one sentence")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                other = documents[(number + 1 + generator.integers(len(documents) - 1)) % len(documents)]
                second = other[generator.integers(len(other))]
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


def pair_example(
    pair: SentencePair,
    masking: MaskingConfig,
    class_id: int,
    separator_id: int,
    max_positions: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A joined pair with some tokens hidden, and what is asked about it.

    Args:
        pair: two segments and their label.
        masking: how tokens are hidden; class and separator must be among its special ids.
        class_id: as the next two an argument of `join_pair`.
        separator_id: the id behind each segment.
        max_positions: the most positions T.
        generator: where choices come from.

    Returns:
        inputs (T,) and targets (T,): the hidden tokens, `NOT_COUNTED` elsewhere, and at the first position, whose token
        is never hidden, the pair's label. `pair_batch` makes a batch of several.

    Raises:
        ConfigError: if class or separator could be hidden.

    Example:
        >>> masking = MaskingConfig(vocab_size=9, mask_id=8, special_ids=(0, 1, 2), rate=1.0, mask_share=1.0,
        ...                         random_share=0.0)
        >>> pair = SentencePair((5,), (6,), 1)
        >>> inputs, targets = pair_example(pair, masking, 1, 2, 8, np.random.default_rng(0))
        >>> inputs.tolist(), targets.tolist()
        ([1, 8, 2, 8, 2], [1, 5, -100, 6, -100])
    """
    if not {class_id, separator_id} <= set(masking.special_ids):
        raise ConfigError(f"class {class_id} and separator {separator_id} are not among {masking.special_ids}")
    ids, _ = join_pair(pair, class_id, separator_id, max_positions)
    inputs, targets = mask_tokens(ids, masking, generator)
    targets[0] = pair.label
    return inputs, targets
