"""Windows and their pairs; what the graders of chapter 05 do not look at."""

import numpy as np

from minillm.data.context_windows import keep_probabilities, window_pairs


def test_pairs_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    for boundary in (None, 0):
        ids, reaches = rng.integers(0, 6, size=60), rng.integers(1, 5, size=60)
        expected = [
            (ids[place], ids[other])
            for place in range(60)
            for other in range(max(0, place - reaches[place]), min(60, place + reaches[place] + 1))
            if other != place and (boundary is None or 0 not in ids[min(place, other) : max(place, other) + 1])
        ]
        centres, contexts = window_pairs(ids, reaches, boundary)
        assert list(zip(centres, contexts, strict=True)) == expected


def test_near_pairs_come_more_often_than_far_ones():
    """With reaches drawn from 1 .. 4 a neighbour at distance d counts with probability (5 - d) / 4."""
    rng, n = np.random.default_rng(1), 20_000
    centres, contexts = window_pairs(np.arange(n), rng.integers(1, 5, size=n))
    found = np.bincount(np.abs(centres - contexts), minlength=5)[1:] / (2 * n)
    np.testing.assert_allclose(found, [1, 0.75, 0.5, 0.25], atol=0.02)


def test_a_thinned_text_keeps_the_ranking():
    counts = np.array([5000, 900, 40, 3, 0])
    kept = counts * keep_probabilities(counts, 1e-2)
    assert (np.diff(kept) <= 0).all() and kept[0] < 0.2 * counts[0] and kept[2] == 40
