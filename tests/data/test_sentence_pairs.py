"""Pairs of sentences: which are true neighbours, and how a pair becomes one row."""

import numpy as np
import pytest

from minillm.data.masking import MaskingConfig, unmask_tokens
from minillm.data.sentence_pairs import (
    SentencePair,
    join_pair,
    next_sentence_pairs,
    pair_example,
    sentence_order_pairs,
)
from minillm.errors import ConfigError, DataError

# sentence s of document d is (10 d + s,)
DOCUMENTS = [[(10 * number + sentence,) for sentence in range(length)] for number, length in enumerate([4, 1, 6, 2])]


def test_next_sentences_are_true_neighbours_or_of_another_document():
    pairs = [pair for seed in range(300) for pair in next_sentence_pairs(DOCUMENTS, np.random.default_rng(seed))]
    assert len(pairs) == 300 * (3 + 0 + 5 + 1)
    for pair in pairs:
        (first,), (second,) = pair.first, pair.second
        assert (second == first + 1) if pair.label == 0 else (second // 10 != first // 10)
    assert 0.47 < np.mean([pair.label for pair in pairs]) < 0.53
    strangers = {pair.second[0] for pair in pairs if pair.label == 1 and pair.first[0] < 10}
    assert strangers == {10, *range(20, 26), 30, 31}
    false = [pair.second[0] // 10 for pair in pairs if pair.label == 1 and pair.first[0] < 10]
    counts = np.bincount(false, minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 0.8 * counts[1:].max()  # documents alike, whatever their length


def test_sentence_order():
    pairs = [pair for seed in range(300) for pair in sentence_order_pairs(DOCUMENTS, np.random.default_rng(seed))]
    assert len(pairs) == 300 * 9
    assert all(pair.second[0] - pair.first[0] == (-1 if pair.label else 1) for pair in pairs)
    assert 0.47 < np.mean([pair.label for pair in pairs]) < 0.53


@pytest.mark.parametrize("n_first, n_second, room", [(3, 2, 8), (9, 2, 8), (2, 9, 8), (9, 9, 8), (9, 9, 9), (9, 9, 5)])
def test_joined_pairs(n_first, n_second, room):
    pair = SentencePair(tuple(range(10, 10 + n_first)), tuple(range(50, 50 + n_second)), 0)
    ids, segments = join_pair(pair, 1, 2, room)
    a, b = ids[(ids >= 10) & (ids < 50)].tolist(), ids[ids >= 50].tolist()
    assert ids.tolist() == [1, *a, 2, *b, 2] and segments.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert a == list(pair.first[: len(a)]) and b == list(pair.second[: len(b)])
    assert len(ids) == min(n_first + n_second + 3, room)
    assert len(a) == n_first or len(b) == n_second or abs(len(a) - len(b)) <= 1


def test_examples_carry_label_and_hidden_tokens():
    masking = MaskingConfig(vocab_size=60, mask_id=3, special_ids=(0, 1, 2))
    for seed in range(40):
        pair = SentencePair(tuple(range(10, 20)), tuple(range(30, 41)), seed % 2)
        inputs, targets = pair_example(pair, masking, 1, 2, 20, np.random.default_rng(seed))
        assert targets[0] == pair.label and (targets[1:] != -100).sum() == round(0.15 * 17)
        targets[0] = -100
        assert unmask_tokens(inputs, targets).tolist() == join_pair(pair, 1, 2, 20)[0].tolist()


def test_bad_input():
    with pytest.raises(ConfigError, match="not among"):
        masking = MaskingConfig(vocab_size=60, mask_id=3, special_ids=(1,))
        pair_example(SentencePair((7,), (8,), 0), masking, 1, 2, 20, np.random.default_rng(0))
    with pytest.raises(DataError, match="at least two"):
        next_sentence_pairs(DOCUMENTS[:1], np.random.default_rng(0))
    with pytest.raises(DataError, match="at least one sentence"):
        next_sentence_pairs([DOCUMENTS[0], []], np.random.default_rng(0))
    with pytest.raises(ConfigError, match="at least 5"):
        join_pair(SentencePair((1,), (2,), 0), 1, 2, 4)
