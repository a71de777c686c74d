"""Neighbours, purity and principal components, against loops, scipy and torch; analogies are graded in chapter 05."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from minillm.errors import DataError, ShapeError
from minillm.evaluate.word_vectors import neighbour_purity, neighbours, principal_components, unit_rows


def test_unit_rows():
    vectors = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    vectors[2] = 0
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors).double(), dim=1).numpy()
    np.testing.assert_allclose(unit_rows(vectors), expected, rtol=1e-12)


def test_neighbours_are_those_of_scipy():
    vectors = np.random.default_rng(1).standard_normal((30, 5))
    cosines = 1 - cdist(vectors[[7]], vectors, "cosine")[0]
    found = neighbours(vectors, vectors[7], 4, exclude=(7,))
    expected = sorted((place for place in range(30) if place != 7), key=lambda place: -cosines[place])[:4]
    assert [place for place, _ in found] == expected
    assert [cosine for _, cosine in found] == pytest.approx(cosines[expected], rel=1e-12)
    assert neighbours(vectors, vectors[7], 1)[0] == (7, pytest.approx(1.0))
    assert len(neighbours(vectors, vectors[7], 99, exclude=(7, 3))) == 28


def test_purity_by_a_loop():
    rng = np.random.default_rng(2)
    vectors, kinds = rng.standard_normal((25, 3)), rng.integers(-1, 3, size=25)
    known = [place for place in range(25) if kinds[place] >= 0]
    for n in (1, 4):
        hits = []
        for place in known:
            others = [other for other in known if other != place]
            distances = cdist(vectors[[place]], vectors[others], "cosine")[0]
            hits += [kinds[others[rank]] == kinds[place] for rank in np.argsort(distances)[:n]]
        assert neighbour_purity(vectors, kinds, n) == pytest.approx(np.mean(hits))


def test_principal_components_keep_as_much_as_torchs():
    vectors = np.random.default_rng(3).standard_normal((20, 6)) * np.array([5, 3, 1, 1, 0.5, 0.1])
    places, shares = principal_components(vectors, 2)
    left, sizes, _ = torch.pca_lowrank(torch.from_numpy(vectors), q=6, niter=8)
    expected = (left[:, :2] * sizes[:2]).numpy()
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(shares, vectors_shares(vectors)[:2], rtol=1e-10)
    assert all(column[np.abs(column).argmax()] > 0 for column in places.T)
    assert principal_components(np.ones((3, 2)), 1)[1] == 0          # all alike: nothing to explain


def vectors_shares(vectors):
    """Shares of the variance from the covariance matrix instead of the singular values."""
    values = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    return values / values.sum()


def test_bad_input():
    vectors = np.ones((4, 3))
    with pytest.raises(ShapeError):
        neighbours(vectors, np.ones(2), 1)
    with pytest.raises(ShapeError):
        neighbour_purity(vectors, np.zeros(3, int))
    with pytest.raises(DataError, match="kind"):
        neighbour_purity(vectors, np.array([0, 1, -1, -1]), n=2)
    for n in (0, 4):
        with pytest.raises(DataError, match="n is"):
            principal_components(vectors, n)
    with pytest.raises(DataError, match="two vectors"):
        principal_components(vectors[:1], 1)
