"""Masked language modelling: exact counts, shares, whole words, and the inverse."""

import numpy as np
import pytest
from scipy.stats import chisquare

from minillm.data.masking import (
    MaskingConfig,
    choose_tokens,
    mask_tokens,
    ngram_groups,
    unmask_tokens,
    word_groups,
)
from minillm.errors import ConfigError, DataError

CONFIG = MaskingConfig(vocab_size=50, mask_id=4, special_ids=(0, 1, 2))


def random_text(generator, n_tokens):
    return generator.integers(0, 50, n_tokens)


@pytest.mark.parametrize("n_tokens", [1, 2, 7, 40, 333])
def test_number_chosen_inverse_and_what_is_left_alone(n_tokens):
    for seed in range(30):
        generator = np.random.default_rng([n_tokens, seed])
        ids = random_text(generator, n_tokens)
        inputs, targets = mask_tokens(ids, CONFIG, generator)
        asked = targets != -100
        n_allowed = sum(i not in (0, 1, 2, 4) for i in ids.tolist())
        assert asked.sum() == (max(1, round(0.15 * n_allowed)) if n_allowed else 0)
        assert not np.isin(ids[asked], (0, 1, 2, 4)).any()
        assert (inputs[~asked] == ids[~asked]).all() and (unmask_tokens(inputs, targets) == ids).all()
        assert inputs.dtype == targets.dtype == np.int64


def test_eighty_ten_ten():
    generator = np.random.default_rng(0)
    ids = np.full(60_000, 9)
    inputs, targets = mask_tokens(ids, CONFIG, generator)
    asked = targets != -100
    n_mask, n_same = (inputs[asked] == 4).sum(), (inputs[asked] == 9).sum()
    n_other = asked.sum() - n_mask - n_same
    expected = 9_000 * np.array([0.8, 0.1 + 0.1 / 46, 0.1 * 45 / 46])  # a random token may be the same one
    assert asked.sum() == 9_000
    assert chisquare([n_mask, n_same, n_other], expected).pvalue > 1e-3
    drawn = inputs[asked & ~np.isin(inputs, (4, 9))]
    counts = np.bincount(drawn, minlength=50)
    assert (counts[[0, 1, 2, 4, 9]] == 0).all() and chisquare(np.delete(counts, [0, 1, 2, 4, 9])).pvalue > 1e-3


def test_every_place_is_equally_likely():
    allowed = np.ones(10, bool)
    allowed[3] = False
    generator = np.random.default_rng(1)
    counts = sum(choose_tokens(allowed, 0.3, generator).astype(int) for _ in range(3000))
    assert counts[3] == 0 and counts.sum() == 3 * 3000
    assert chisquare(np.delete(counts, 3)).pvalue > 1e-3


def test_whole_words_are_hidden_whole():
    continues = np.zeros(50, bool)
    continues[30:] = True                                          # ids of 30 and more go on with a word
    config = MaskingConfig(vocab_size=50, mask_id=4, special_ids=(0, 1, 2), rate=0.4, mask_share=1.0, random_share=0.0)
    for seed in range(50):
        generator = np.random.default_rng(seed)
        ids = random_text(generator, 60)
        inputs, targets = mask_tokens(ids, config, generator, continues)
        asked = targets != -100
        assert 0 < asked.sum() <= round(0.4 * (~np.isin(ids, (0, 1, 2, 4))).sum())
        for place in range(1, 60):
            joined = continues[ids[place]] and ids[place - 1] not in (0, 1, 2, 4)
            assert not joined or asked[place] == asked[place - 1]


def test_word_groups_against_a_loop():
    for seed in range(50):
        generator = np.random.default_rng(seed)
        allowed, continues = generator.random(12) < 0.8, generator.random(12) < 0.5
        expected = []
        for place in range(12):
            if not allowed[place]:
                continue
            if continues[place] and place and allowed[place - 1]:
                expected[-1].append(place)
            else:
                expected.append([place])
        assert [group.tolist() for group in word_groups(allowed, continues)] == expected


def test_lengths_of_runs_are_as_one_over_n():
    words = [np.array([place]) for place in range(60_000)]
    for longest in (2, 3, 5):
        runs = ngram_groups(words, longest, np.random.default_rng(longest))
        assert np.array_equal(np.concatenate(runs), np.arange(60_000))
        counts = np.bincount([len(run) for run in runs], minlength=longest + 1)[1:]
        shares = 1 / np.arange(1, longest + 1)
        assert counts.shape == shares.shape and chisquare(counts, counts.sum() * shares / shares.sum()).pvalue > 1e-3


def test_runs_are_of_whole_words_that_touch():
    for seed in range(50):
        generator = np.random.default_rng(seed)
        allowed, continues = generator.random(30) < 0.8, generator.random(30) < 0.4
        words = word_groups(allowed, continues)
        runs = ngram_groups(words, 3, generator)
        assert [place for run in runs for place in run] == [place for word in words for place in word]
        starts = {int(word[0]) for word in words}
        for run in runs:
            assert (np.diff(run) == 1).all() and int(run[0]) in starts
            assert sum(int(place) in starts for place in run) <= 3
    words = word_groups(np.ones(4, bool), np.zeros(4, bool))
    generator = np.random.default_rng(0)
    assert [run.tolist() for run in ngram_groups(words, 1, generator)] == [[0], [1], [2], [3]]
    assert generator.random() == np.random.default_rng(0).random()  # nothing was drawn
    assert ngram_groups([], 3, generator) == []


def test_runs_are_hidden_whole():
    """Every token that is hidden beside another: more often than by chance, and still the right number of them."""
    beside = {}
    for longest in (1, 3):
        config = MaskingConfig(vocab_size=50, mask_id=4, special_ids=(0, 1, 2), longest_ngram=longest)
        ids = np.random.default_rng(0).integers(5, 50, 20_000)
        _, targets = mask_tokens(ids, config, np.random.default_rng(1))
        asked = targets != -100
        assert asked.sum() == 3_000
        beside[longest] = (asked[1:] & asked[:-1]).sum() / 3_000
    assert beside[1] == pytest.approx(0.15, abs=0.03)
    # of 6 + 3 + 2 runs with 18 tokens, 7 are followed by one of the same run, and the 11 last ones by chance
    assert beside[3] == pytest.approx(7 / 18 + 11 / 18 * 0.15, abs=0.03)


def test_a_text_of_nothing_but_specials_stays():
    inputs, targets = mask_tokens([0, 1, 2], CONFIG, np.random.default_rng(0))
    assert inputs.tolist() == [0, 1, 2] and targets.tolist() == [-100] * 3
    assert mask_tokens([], CONFIG, np.random.default_rng(0))[0].shape == (0,)


@pytest.mark.parametrize("settings", [
    {"mask_id": 50}, {"mask_id": -1}, {"special_ids": (99,)}, {"rate": 0.0}, {"rate": 1.5}, {"mask_share": -0.1},
    {"mask_share": 0.9, "random_share": 0.2}, {"special_ids": tuple(range(50))}, {"longest_ngram": 0},
])  # fmt: skip
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match="expected|special"):
        MaskingConfig(**{"vocab_size": 50, "mask_id": 4} | settings)


@pytest.mark.parametrize("ids", [[50], [-1], [[1, 2]], [0.5]])
def test_bad_ids(ids):
    with pytest.raises(DataError, match="token ids"):
        mask_tokens(ids, CONFIG, np.random.default_rng(0))


def test_bad_marks():
    with pytest.raises(DataError, match="bool"):
        word_groups(np.ones(3, int), np.ones(3, bool))
    with pytest.raises(DataError, match="shape"):
        choose_tokens(np.ones(3, bool), 0.5, np.random.default_rng(0), np.ones(4, bool))
