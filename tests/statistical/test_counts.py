"""Count tables against counting with Python's own dictionaries."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from minillm.errors import ConfigError, DataError
from minillm.statistical import counts as counts_module
from minillm.statistical.counts import (
    adjusted_counts,
    continuation_counts,
    count_chunks,
    count_ngrams,
    count_of_counts,
    find,
    first_ids,
    merge_counts,
    suffix_places,
)
from minillm.statistical.hashing import HashIndex


def random_ids(n, vocab_size, seed):
    return np.random.default_rng(seed).integers(vocab_size, size=n)


def as_dicts(counts):
    """[{n-gram: place}] by unpacking every key down to the single ids."""
    ngrams, levels = [()], []
    for level in counts.levels:
        ngrams = [(*ngrams[key // counts.vocab_size], key % counts.vocab_size) for key in level.keys.tolist()]
        levels.append({ngram: place for place, ngram in enumerate(ngrams)})
    return levels


def by_hand(text, order, boundary=None):
    levels = []
    for m in range(1, order + 1):
        windows = [tuple(text[i : i + m]) for i in range(len(text) - m + 1)]
        levels.append(Counter(window for window in windows if boundary not in window[1:-1]))
    return levels


def expect_counts(counts, text, order, boundary=None):
    assert counts.order == order
    for level, places, expected in zip(counts.levels, as_dicts(counts), by_hand(text, order, boundary), strict=True):
        assert {ngram: level.counts[place] for ngram, place in places.items()} == expected
        assert list(places) == sorted(places) and level.counts[-1] == level.context_counts[-1] == 0
        assert level.context_counts.sum() == sum(expected.values())
    for level, below, expected in zip(
        counts.levels[1:], as_dicts(counts), by_hand(text, order, boundary)[1:], strict=False
    ):
        followed = Counter()
        for ngram, n in expected.items():
            followed[ngram[:-1]] += n
        assert all(level.context_counts[place] == followed[ngram] for ngram, place in below.items())


@pytest.mark.parametrize("dense_keys", [0, 1 << 23], ids=["sorted", "dense"])
@pytest.mark.parametrize("boundary", [None, 0, 3])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_counts_of_every_length(order, boundary, dense_keys, monkeypatch):
    monkeypatch.setattr(counts_module, "DENSE_KEYS", dense_keys)
    text = random_ids(200, 4, seed=order).tolist()
    expect_counts(count_ngrams(text, order, 5, boundary), text, order, boundary)


@pytest.mark.parametrize("boundary", [None, 2])
@pytest.mark.parametrize("sizes", [[1] * 60, [7, 0, 1, 13, 39], [60], [2, 58], [59, 1]])
def test_chunks_give_the_counts_of_the_whole(sizes, boundary):
    text = random_ids(60, 4, seed=len(sizes))
    cuts = np.cumsum([0, *sizes])
    chunks = [text[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    for order in (0, 1, 2, 4):
        expect_counts(count_chunks(iter(chunks), order, 4, boundary), text.tolist(), order, boundary)


def test_long_texts_are_cut_by_themselves(monkeypatch):
    monkeypatch.setattr(counts_module, "CHUNK_IDS", 50)
    text = random_ids(333, 6, seed=1).tolist()
    expect_counts(count_ngrams(text, 4, 6), text, 4)


def test_merging_two_texts_adds_their_counts():
    texts = [random_ids(n, 6, seed=n).tolist() for n in (40, 70)]
    merged = merge_counts(*(count_ngrams(text, 3, 6) for text in texts))
    separate = [by_hand(text, 3) for text in texts]
    for level, places, first, second in zip(merged.levels, as_dicts(merged), *separate, strict=True):
        assert {ngram: level.counts[place] for ngram, place in places.items()} == first + second


@pytest.mark.parametrize("boundary", [None, 1])
def test_suffixes_first_ids_and_continuations(boundary):
    text = random_ids(150, 5, seed=0).tolist()
    counts = count_ngrams(text, 4, 5, boundary)
    places, suffixes = as_dicts(counts), suffix_places(counts)
    firsts, adjusted = first_ids(counts), adjusted_counts(counts)
    expected = by_hand(text, 4, boundary)
    for length in range(1, 5):
        left = defaultdict(set)
        for ngram in expected[length] if length < 4 else []:
            left[ngram[1:]].add(ngram[0])
        for ngram, place in places[length - 1].items():
            assert firsts[length - 1][place] == ngram[0]
            assert suffixes[length - 1][place] == (places[length - 2][ngram[1:]] if length > 1 else 0)
            raw = length == 4 or (length > 1 and ngram[0] == boundary)
            assert adjusted[length - 1][place] == (expected[length - 1][ngram] if raw else len(left[ngram]))


def test_continuations_of_one_length():
    assert continuation_counts(4, np.array([1, 1, 3])).tolist() == [0, 2, 0, 1]
    assert continuation_counts(2, np.array([], np.int64)).tolist() == [0, 0]


def test_count_of_counts():
    assert count_of_counts(np.array([5, 1, 1, 2, 9, 0]), 5).tolist() == [1, 2, 1, 0, 0, 1]
    assert count_of_counts(np.array([], np.int64), 2).tolist() == [0, 0, 0]


def test_find_in_nothing_and_beyond():
    assert find(np.array([], np.int64), np.array([[1, 2]])).tolist() == [[-1, -1]]
    assert find(np.array([3, 8]), np.array([9, 8, 0, -1])).tolist() == [-1, 1, -1, -1]


def test_wrong_input():
    with pytest.raises(ConfigError, match="order must be at least 0"):
        count_ngrams([0], -1, 2)
    with pytest.raises(ConfigError, match="boundary must be an id below 2"):
        count_ngrams([0], 1, 2, boundary=2)
    with pytest.raises(DataError, match="empty text"):
        count_ngrams([], 2, 2)
    with pytest.raises(DataError, match="empty text"):
        count_chunks([[], []], 2, 2)
    with pytest.raises(DataError, match="id 2 at position 1"):
        count_chunks([[0, 2]], 2, 2)
    with pytest.raises(ConfigError, match="cannot be merged"):
        merge_counts(count_ngrams([0], 1, 2), count_ngrams([0], 2, 2))


@pytest.mark.parametrize("n", [0, 1, 2, 5000])
def test_a_hash_table_finds_what_binary_search_finds(n):
    rng = np.random.default_rng(n)
    keys = np.unique(np.concatenate([rng.integers(1 << 50, size=n), np.arange(n), np.arange(n) << 40]))
    wanted = np.concatenate([keys, rng.integers(-5, 3 * n + 9, size=1000), rng.integers(1 << 50, size=1000), keys - 1])
    np.testing.assert_array_equal(HashIndex(keys).find(keys, wanted), find(keys, wanted))
