"""Mutual information and the vectors made of it, against loops and scipy."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg

from minillm.errors import DataError
from minillm.statistical.pmi import count_vectors, mutual_information, pair_counts


def test_pairs_are_counted():
    rng = np.random.default_rng(0)
    centres, contexts = rng.integers(0, 5, size=(2, 300))
    found = pair_counts(centres, contexts, 6)
    expected = [[sum((centres == a) & (contexts == b)) for b in range(6)] for a in range(6)]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("power", [1.0, 0.75])
def test_mutual_information_by_a_loop(power):
    rng = np.random.default_rng(1)
    pairs, counts = rng.integers(0, 4, size=(5, 5)), rng.integers(1, 9, size=5)
    pairs[2] = 0
    found = mutual_information(pairs, counts, power)
    total = sum(float(count) ** power for count in counts)
    for a in range(5):
        for b in range(5):
            if pairs[a, b] == 0:
                assert found[a, b] == -math.inf
            else:
                share = pairs[a, b] / pairs[a].sum()
                assert found[a, b] == pytest.approx(math.log(share / (counts[b] ** power / total)), rel=1e-12)


def test_a_word_that_does_not_occur_is_in_no_pair():
    assert mutual_information(np.array([[2, 0], [0, 0]]), np.array([2, 0]))[0, 1] == -math.inf
    with pytest.raises(DataError, match="count 0"):
        mutual_information(np.array([[0, 2], [2, 0]]), np.array([2, 0]))


def test_count_vectors_are_the_best_of_their_width():
    rng = np.random.default_rng(2)
    information = rng.standard_normal((12, 12)) * 2
    information[3, 4] = -math.inf
    found = count_vectors(information, 3)
    left, sizes, _ = scipy.sparse.linalg.svds(np.maximum(information, 0), k=3)
    expected = left * np.sqrt(sizes)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-9)   # up to signs and order
    for width in (0, 13):
        with pytest.raises(DataError, match="d_model"):
            count_vectors(information, width)
