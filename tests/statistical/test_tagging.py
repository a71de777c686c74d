"""Taggers and their measures against counts by hand."""

from collections import Counter

import numpy as np
import pytest

from minillm.errors import DataError
from minillm.statistical.tagging import crossed, lookup_tags, many_to_one


def test_lookup_takes_the_most_frequent_tag():
    rng = np.random.default_rng(0)
    ids, tags = rng.integers(8, size=200), rng.integers(4, size=200)
    found = lookup_tags(ids, tags, 10)
    for token_id in range(8):
        counts = Counter(tags[ids == token_id].tolist())
        assert found[token_id] == min(tag for tag in counts if counts[tag] == max(counts.values()))
    assert found[8] == found[9] == min(np.flatnonzero(np.bincount(tags) == np.bincount(tags).max()))


def test_many_to_one_by_hand():
    states, tags = np.array([0, 0, 0, 2, 2, 1]), np.array([5, 5, 1, 1, 1, 1])
    accuracy, names = many_to_one(states, tags)
    assert accuracy == pytest.approx(5 / 6) and names.tolist() == [5, 1, 1]
    permuted, _ = many_to_one(2 - states, tags)
    assert permuted == accuracy


def test_many_to_one_of_one_state_is_the_most_frequent_tag_and_of_a_state_per_place_is_one():
    tags = np.array([0, 1, 1, 2])
    assert many_to_one(np.zeros(4, int), tags)[0] == 0.5
    assert many_to_one(np.arange(4), tags)[0] == 1.0


def test_bad_input():
    for states, tags in (([], []), ([0, 1], [0]), ([[0]], [[0]])):
        with pytest.raises(DataError, match="a tag for each place"):
            many_to_one(states, tags)
    with pytest.raises(DataError, match="negative"):
        crossed([0, -1], [0, 0], 2)
    with pytest.raises(DataError, match="outside"):
        lookup_tags([3], [0], vocab_size=3)
