"""Counting models against a brute-force count with dicts, and probabilities that sum to 1."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from nltk.lm import Lidstone

from minillm.errors import ConfigError, DataError
from minillm.statistical import counts
from minillm.statistical.ngram import NGramModel, choose_add_k


def random_ids(n, vocab_size, seed):
    return np.random.default_rng(seed).integers(vocab_size, size=n)


def log_probability_by_hand(train, context, x, vocab_size, add_k):
    """The definition, straight from lists."""
    length = len(context)
    places = [i for i in range(len(train) - length) if train[i : i + length] == context]
    n_seen = sum(train[i + length] == x for i in places)
    return math.log((n_seen + add_k) / (len(places) + add_k * vocab_size))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("dense_keys", [0, 1 << 23], ids=["sorted", "dense"])
@pytest.mark.parametrize("add_k", [1.0, 0.03])
def test_the_definition(order, dense_keys, add_k, monkeypatch):
    monkeypatch.setattr(counts, "DENSE_KEYS", dense_keys)
    train, text = random_ids(60, 4, seed=0).tolist(), random_ids(40, 5, seed=1).tolist()
    found = NGramModel(order, 5, add_k).fit(train).log_probabilities(text)
    expected = [
        log_probability_by_hand(train, text[max(i - order + 1, 0) : i], text[i], 5, add_k) for i in range(len(text))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_trigrams_agree_with_nltk():
    """nltk adds <UNK> to its vocabulary; here it plays the sixth id."""
    train, text = random_ids(300, 6, seed=2).tolist(), random_ids(50, 6, seed=3).tolist()
    words = [str(i) for i in train]
    oracle = Lidstone(0.3, 3)
    oracle.fit([list(zip(words, words[1:], words[2:], strict=False))], [str(i) for i in range(5)])
    assert len(oracle.vocab) == 6
    found = NGramModel(3, 6, 0.3).fit(train).log_probabilities(text)
    for i in range(2, len(text)):
        expected = oracle.score(str(text[i]), [str(text[i - 2]), str(text[i - 1])])
        assert found[i] == pytest.approx(math.log(expected), rel=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_probabilities_sum_to_one_for_every_context(order):
    vocab_size = 3
    model = NGramModel(order, vocab_size, 0.1).fit(random_ids(30, vocab_size, seed=0))
    for length in range(5):
        for context in itertools.product(range(vocab_size), repeat=length):
            total = sum(math.exp(model.log_probabilities([*context, x])[-1]) for x in range(vocab_size))
            assert total == pytest.approx(1, abs=1e-12)


def test_all_texts_of_one_length_sum_to_one():
    model = NGramModel(3, 3, 0.2).fit([0, 1, 2, 0, 1, 1, 2])
    texts = itertools.product(range(3), repeat=5)
    assert sum(math.exp(model.log_probabilities(text).sum()) for text in texts) == pytest.approx(1, abs=1e-12)


def test_uniform_and_unigram():
    assert NGramModel(0, 256).fit([1]).log_probabilities([3, 4]).tolist() == [-math.log(256)] * 2
    unigram = NGramModel(1, 4, 1.0).fit([0, 0, 1])
    np.testing.assert_allclose(np.exp(unigram.log_probabilities([0, 1, 2, 3])), [3 / 7, 2 / 7, 1 / 7, 1 / 7])


def test_a_small_k_comes_close_to_the_counts():
    train = random_ids(2000, 4, seed=5)
    counts = Counter(train.tolist())
    entropy = -sum(n / 2000 * math.log(n / 2000) for n in counts.values())
    assert -NGramModel(1, 4, 1e-9).fit(train).log_probabilities(train).mean() == pytest.approx(entropy, rel=1e-9)


def test_a_deterministic_text_is_learnt():
    train = np.tile([0, 1, 2, 3, 1, 2, 0], 500)                            # after 1 2 comes 3 or 0: needs order 4
    losses = [-NGramModel(order, 4, 1e-6).fit(train).log_probabilities(train)[10:].mean() for order in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True) and losses[2] > 0.1 and losses[3] < 1e-4


def test_large_vocabularies_and_orders_do_not_overflow():
    train = random_ids(500, 50_257, seed=0)
    model = NGramModel(9, 50_257, 0.01).fit(train)
    expected = math.log(1.01 / (1 + 0.01 * 50_257))                       # each context was seen exactly once
    np.testing.assert_allclose(model.log_probabilities(train)[8:], expected, rtol=1e-12)


@pytest.mark.parametrize("train", [[0], [0, 1], [2, 2, 1]])
def test_a_text_shorter_than_the_order(train):
    found = NGramModel(5, 3, 0.5).fit(train).log_probabilities([*train, 0, 1, 2])
    text = [*train, 0, 1, 2]
    expected = [log_probability_by_hand(train, text[max(i - 4, 0) : i], text[i], 3, 0.5) for i in range(len(text))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bytes_of_every_integer_type():
    text = np.frombuffer(b"so it goes, so it goes", np.uint8)
    expected = NGramModel(3, 256).fit(text.astype(np.int64)).log_probabilities(text.tolist())
    for kind in (np.uint8, np.uint16, np.int32, np.uint64):
        np.testing.assert_array_equal(
            NGramModel(3, 256).fit(text.astype(kind)).log_probabilities(text.astype(kind)), expected
        )
    assert NGramModel(3, 256).fit(text).log_probabilities([]).shape == (0,)


def test_fitting_again_forgets():
    model = NGramModel(2, 3).fit([0, 1, 2, 0, 1])
    np.testing.assert_array_equal(
        model.fit([2, 2]).log_probabilities([0, 1, 2]), NGramModel(2, 3).fit([2, 2]).log_probabilities([0, 1, 2])
    )


def test_choosing_k():
    train, held_out = random_ids(300, 20, seed=0), random_ids(300, 20, seed=1)
    model = NGramModel(2, 20).fit(train)
    candidates = (0.01, 0.1, 1.0, 10.0, 100.0)
    best = choose_add_k(model, held_out, candidates)
    sums = {k: NGramModel(2, 20, k).fit(train).log_probabilities(held_out).sum() for k in candidates}
    assert best.add_k == max(sums, key=sums.get) == 100.0            # the text is random: the flatter the better
    assert choose_add_k(model, train, candidates).add_k == 0.01      # its own text: the sharper the better
    fresh = NGramModel(2, 20, 100.0).fit(train)
    np.testing.assert_array_equal(best.log_probabilities(train), fresh.log_probabilities(train))
    assert model.add_k == 1.0


@pytest.mark.parametrize("add_k", [0, -1, math.inf, math.nan])
def test_k_out_of_range(add_k):
    with pytest.raises(ConfigError, match="add_k must be a number above 0"):
        NGramModel(2, 3, add_k)
    with pytest.raises(ConfigError, match="add_k must be a number above 0"):
        NGramModel(2, 3).with_add_k(add_k)


def test_wrong_input():
    with pytest.raises(ConfigError, match="order must be at least 0"):
        NGramModel(-1, 3)
    with pytest.raises(ConfigError, match="vocab_size at least 1"):
        NGramModel(1, 0)
    with pytest.raises(DataError, match="empty text"):
        NGramModel(2, 3).fit([])
    with pytest.raises(DataError, match="call fit first"):
        NGramModel(2, 3).log_probabilities([1])
    with pytest.raises(DataError, match="id 3 at position 1 is outside the vocabulary of 3"):
        NGramModel(2, 3).fit([0, 3])
    with pytest.raises(DataError, match="id -1 at position 2"):
        NGramModel(2, 3).fit([0, 1]).log_probabilities([0, 0, -1])
    with pytest.raises(DataError, match="one-dimensional array of integers, not float64"):
        NGramModel(2, 3).fit([0.5])
    with pytest.raises(DataError, match=r"of shape \(1, 2\)"):
        NGramModel(2, 3).fit([[0, 1]])
    with pytest.raises(ConfigError, match="no candidate"):
        choose_add_k(NGramModel(1, 3).fit([0]), [0], [])
    with pytest.raises(DataError, match="held-out text"):
        choose_add_k(NGramModel(1, 3).fit([0]), [])
