"""Span corruption, prefixes and UL2's mixture: exact counts, the inverse, and loops written from the papers."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from minillm.data.corruption import (
    UL2_DENOISERS,
    Denoiser,
    corrupt_by_mixture,
    corrupt_spans,
    hide_spans,
    prefix_example,
    prefix_mask,
    random_lengths,
    random_spans,
    restore_spans,
    span_counts,
    split_prefix,
)
from minillm.errors import ConfigError, DataError

SENTINELS = list(range(1000, 1100))


def runs(hidden):
    return [len(list(group)) for value, group in itertools.groupby(hidden.tolist()) if value]


@pytest.mark.parametrize("rate, mean_length", [(0.15, 3.0), (0.5, 3.0), (0.15, 64.0), (0.5, 1.0), (0.9, 2.0)])
@pytest.mark.parametrize("n_tokens", [2, 3, 7, 20, 100, 257])
def test_exact_numbers_of_tokens_and_spans(n_tokens, rate, mean_length):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    assert abs(n_hidden - rate * n_tokens) <= 0.5 or n_hidden in (1, n_tokens - 1)
    for seed in range(5):
        hidden = random_spans(n_tokens, np.random.default_rng(seed), rate, mean_length)
        assert hidden.shape == (n_tokens,) and hidden.sum() == n_hidden and len(runs(hidden)) == n_spans
        assert not hidden[0] and hidden[-1]


def test_all_cuts_are_equally_likely():
    generator = np.random.default_rng(0)
    counts = Counter(tuple(random_lengths(6, 3, generator).tolist()) for _ in range(5000))
    assert set(counts) == {cut for cut in itertools.product(range(1, 5), repeat=3) if sum(cut) == 6}
    assert chisquare(list(counts.values())).pvalue > 1e-3


def by_the_paper(ids, hidden, sentinels):
    """Walk through the text; at each border of a hidden span take the next sentinel."""
    inputs, targets, number, inside = [], [], 0, False
    for token_id, is_hidden in zip(ids, hidden, strict=True):
        if is_hidden and not inside:
            inputs.append(sentinels[number])
            targets.append(sentinels[number])
            number += 1
        (targets if is_hidden else inputs).append(token_id)
        inside = is_hidden
    return inputs, [*targets, sentinels[number]]


def test_any_spans_against_the_loop_and_back():
    for seed in range(200):
        generator = np.random.default_rng(seed)
        n_tokens = int(generator.integers(1, 30))
        ids, hidden = generator.integers(0, 9, n_tokens), generator.random(n_tokens) < generator.random()
        inputs, targets = hide_spans(ids, hidden, SENTINELS)
        assert (inputs.tolist(), targets.tolist()) == by_the_paper(ids.tolist(), hidden.tolist(), SENTINELS)
        assert (restore_spans(inputs, targets, SENTINELS) == ids).all()
        assert inputs.dtype == targets.dtype == np.int64


def test_the_figure_of_the_paper():
    words = "Thank you for inviting me to your party last week .".split()
    hidden = np.isin(words, ["for", "inviting", "last"])
    inputs, targets = hide_spans(np.arange(len(words)), hidden, SENTINELS)
    names = dict(enumerate(words)) | {1000: "<X>", 1001: "<Y>", 1002: "<Z>"}
    assert " ".join(names[i] for i in inputs.tolist()) == "Thank you <X> me to your party <Y> week ."
    assert " ".join(names[i] for i in targets.tolist()) == "<X> for inviting <Y> last <Z>"


def test_corrupted_texts_come_back():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        ids = generator.integers(0, 900, 200)
        inputs, targets = corrupt_spans(ids, SENTINELS, generator)
        assert len(inputs) == 170 + 10 and len(targets) == 30 + 10 + 1
        assert (restore_spans(inputs, targets, SENTINELS) == ids).all()


def test_what_a_careless_model_writes_is_put_in_as_far_as_it_goes():
    assert restore_spans(np.array([1, 1000, 2, 1001]), np.array([7, 1001, 8, 1000]), SENTINELS).tolist() == [1, 2, 8]


def test_prefixes():
    starts = Counter()
    for seed in range(2000):
        prefix, rest = split_prefix([1, 2, 3, 4, 5], np.random.default_rng(seed))
        assert [*prefix, *rest] == [1, 2, 3, 4, 5]
        starts[len(prefix)] += 1
    assert sorted(starts) == [1, 2, 3, 4] and chisquare(list(starts.values())).pvalue > 1e-3
    inputs, targets = prefix_example([1], [2, 3])
    assert inputs.tolist() == [1, 2] and targets.tolist() == [2, 3]
    mask = prefix_mask([0, 1, 3, 5], 5)
    for row, n_prefix in enumerate([0, 1, 3, 5]):
        for query, key in itertools.product(range(5), repeat=2):
            assert mask[row, query, key] == (key <= query or key < n_prefix)


def test_mixture_draws_every_denoiser_and_says_which_kind():
    modes, ids, seen = {"R": 900, "S": 901, "X": 902}, np.arange(200), Counter()
    for seed in range(1400):
        inputs, targets = corrupt_by_mixture(ids, modes, SENTINELS, np.random.default_rng(seed))
        assert (restore_spans(inputs[1:], targets, SENTINELS) == ids).all()
        n_sentinels = int((targets >= 1000).sum())
        seen[int(inputs[0]), n_sentinels - 1, len(targets) - n_sentinels] += 1
    expected = {
        (900, 10, 30): 200, (900, 4, 30): 200, (901, 1, 50): 200, (902, 33, 100): 200, (902, 12, 100): 200,
        (902, 1, 30): 200, (902, 2, 100): 200,
    }  # fmt: skip
    assert seen.keys() == expected.keys() and chisquare([seen[key] for key in expected]).pvalue > 1e-3


def test_sequential_denoiser_hides_the_end():
    assert Denoiser("S", 0.25).hidden(8, np.random.default_rng(0)).tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("n_tokens", [2, 3, 10, 50, 301])
def test_sentinels_that_the_text_promises_suffice(n_tokens):
    for denoiser in UL2_DENOISERS:
        hidden = denoiser.hidden(n_tokens, np.random.default_rng(0))
        hide_spans(np.zeros(n_tokens, int), hidden, SENTINELS[: int(n_tokens / 6 + 2)])


def test_bad_input():
    generator = np.random.default_rng(0)
    for arguments in [(1,), (10, 0.0), (10, 1.0), (10, 0.5, 0.5)]:
        with pytest.raises(ConfigError, match="expected at least 2 tokens"):
            span_counts(*arguments)
    with pytest.raises(ConfigError, match="cannot be cut"):
        random_lengths(2, 3, generator)
    with pytest.raises(DataError, match="need 2 sentinels"):
        hide_spans([1, 2], np.array([False, True]), SENTINELS[:1])
    with pytest.raises(DataError, match="does not contain"):
        hide_spans([1, 1000], np.array([False, True]), SENTINELS)
    with pytest.raises(DataError, match="bool"):
        hide_spans([1, 2], np.array([0, 1]), SENTINELS)
    with pytest.raises(DataError, match="at least 2"):
        split_prefix([1], generator)
    with pytest.raises(ConfigError, match="mode"):
        Denoiser("T", 0.5)
    with pytest.raises(ConfigError, match="no id"):
        corrupt_by_mixture(np.arange(9), {}, SENTINELS, generator)
