"""BART's corruptions: exact shares, distributions, inverses, and a loop written from the paper."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare, poisson

from minillm.data.infilling import (
    delete_chosen,
    fill_in,
    infill,
    infill_spans,
    mask_chosen,
    permute_sentences,
    place_spans,
    poisson_lengths,
    random_choice,
    rotate_document,
    split_sentences,
)
from minillm.errors import ConfigError, DataError

MASK = 99


def test_masking_and_deletion():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        ids = generator.integers(0, 50, 40)
        chosen = random_choice(40, 0.3, generator)
        assert chosen.sum() == 12
        masked, rest = mask_chosen(ids, chosen, MASK), delete_chosen(ids, chosen)
        assert (masked == MASK).sum() == 12 and (masked[~chosen] == ids[~chosen]).all()
        assert rest.tolist() == [i for i, gone in zip(ids.tolist(), chosen.tolist(), strict=True) if not gone]
        restored = np.empty(40, int)
        restored[~chosen], restored[chosen] = rest, ids[chosen]
        assert (restored == ids).all()


def test_lengths_are_poisson_with_zeros():
    generator = np.random.default_rng(0)
    lengths = poisson_lengths(20_000, 3.0, generator)
    assert lengths.sum() == 20_000 and lengths[-1] > 0
    counts = np.bincount(np.minimum(lengths[:-1], 8), minlength=9)
    expected = (len(lengths) - 1) * np.array([*poisson.pmf(range(8), 3.0), poisson.sf(7, 3.0)])
    assert chisquare(counts, expected).pvalue > 1e-3
    assert poisson_lengths(0, 3.0, generator).tolist() == []


def test_all_places_are_equally_likely():
    generator = np.random.default_rng(1)
    counts = Counter(tuple(place_spans(np.array([2, 1]), 5, generator).tolist()) for _ in range(3000))
    assert set(counts) == {(a, b) for a in range(4) for b in range(5) if b >= a + 2}  # never one over the other
    assert chisquare(list(counts.values())).pvalue > 1e-3


def by_the_paper(ids, starts, lengths):
    """Replace the spans from the last to the first, so that places stay what they were."""
    text = list(ids)
    for start, length in reversed(list(zip(starts, lengths, strict=True))):
        text[start : start + length] = [MASK]
    return text


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 1.0])
def test_infilled_texts_against_the_loop_and_back(rate):
    for seed in range(60):
        generator = np.random.default_rng(seed)
        n_tokens = int(generator.integers(0, 40))
        ids = generator.integers(0, 50, n_tokens)
        lengths = poisson_lengths(round(rate * n_tokens), 3.0, generator)
        starts = place_spans(lengths, n_tokens, generator)
        assert (np.diff(starts) >= lengths[:-1]).all() and (starts + lengths <= n_tokens).all()
        damaged = infill_spans(ids, starts, lengths, MASK)
        assert damaged.tolist() == by_the_paper(ids.tolist(), starts.tolist(), lengths.tolist())
        spans = [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        assert (fill_in(damaged, spans, MASK) == ids).all()
        assert (damaged != MASK).sum() == n_tokens - round(rate * n_tokens)


def test_infill_is_reproducible_and_inserts_masks():
    ids = np.arange(50)
    assert (infill(ids, MASK, np.random.default_rng(5)) == infill(ids, MASK, np.random.default_rng(5))).all()
    kept = [(infill(ids, MASK, np.random.default_rng(seed)) != MASK).sum() for seed in range(5)]
    assert kept == [35] * 5


def test_sentences_change_places_and_stay_whole():
    ids = np.array([5, 6, 1, 7, 1, 8, 2, 9])
    sentences = [(5, 6, 1), (7, 1), (8, 2), (9,)]
    assert [tuple(s.tolist()) for s in split_sentences(ids, [1, 2])] == sentences
    orders = Counter()
    for seed in range(1200):
        permuted = permute_sentences(ids, [1, 2], np.random.default_rng(seed)).tolist()
        order = tuple(sorted(range(4), key=lambda number: permuted.index(sentences[number][0])))
        assert permuted == [i for number in order for i in sentences[number]]
        orders[order] += 1
    assert len(orders) == 24 and chisquare(list(orders.values())).pvalue > 1e-3
    assert permute_sentences([], [1], np.random.default_rng(0)).tolist() == []


def test_rotation():
    starts = Counter()
    for seed in range(1000):
        rotated = rotate_document(np.arange(5), np.random.default_rng(seed))
        assert ((rotated - rotated[0]) % 5).tolist() == [0, 1, 2, 3, 4]
        starts[int(rotated[0])] += 1
    assert len(starts) == 5 and chisquare(list(starts.values())).pvalue > 1e-3
    assert rotate_document([], np.random.default_rng(0)).tolist() == []


def test_bad_input():
    generator = np.random.default_rng(0)
    for rate in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="rate"):
            infill([1, 2], MASK, generator, rate)
        with pytest.raises(ConfigError, match="rate"):
            random_choice(5, rate, generator)
    with pytest.raises(ConfigError, match="mean_length"):
        poisson_lengths(3, 0.0, generator)
    with pytest.raises(ConfigError, match="do not fit"):
        place_spans(np.array([4]), 3, generator)
    with pytest.raises(DataError, match="2 masks for 1 spans"):
        fill_in(np.array([MASK, MASK]), [[1]], MASK)
