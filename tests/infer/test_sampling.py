"""Sampling: filters by hand, drawn frequencies by a chi-square test, settings out of range."""

import math

import pytest
import torch
from scipy.stats import chisquare

from minillm.errors import SamplingError, ShapeError
from minillm.infer.sampling import (
    GREEDY,
    SamplingConfig,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
    seen_tokens,
)

SHARES = torch.tensor([0.05, 0.4, 0.25, 0.3])
LOGITS = SHARES.log()[None]


def kept(logits):
    return logits.isfinite()[0].tolist()


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [False, True, False, False]), (3, [False, True, True, True]), (4, [True] * 4)],
)
def test_top_k_by_hand(k, expected):
    assert kept(keep_top_k(LOGITS, k)) == expected


def test_top_k_keeps_equals():
    assert kept(keep_top_k(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 2)) == [True, True, True, False]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [False, True, False, False]),
        (0.39, [False, True, False, False]),
        (0.5, [False, True, False, True]),
        (0.69, [False, True, False, True]),
        (0.71, [False, True, True, True]),
        (0.96, [True, True, True, True]),
        (1.0, [True, True, True, True]),
    ],
)
def test_top_p_by_hand(p, expected):
    assert kept(keep_top_p(LOGITS, p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.0, [True] * 4),
        (0.12, [True] * 4),
        (0.13, [False, True, True, True]),
        (0.7, [False, True, False, True]),
        (1.0, [False, True, False, False]),
    ],
)
def test_min_p_by_hand(p, expected):
    assert kept(keep_min_p(LOGITS, p)) == expected


def test_filters_treat_rows_apart():
    logits = torch.stack((SHARES.log(), SHARES.flip(0).log()))
    for filtered in (keep_top_k(logits, 2), keep_top_p(logits, 0.69), keep_min_p(logits, 0.7)):
        assert filtered.isfinite().tolist() == [[False, True, False, True], [True, False, True, False]]


def test_repetition_penalty_by_hand():
    logits = torch.tensor([[3.0, -1.0, 0.5], [3.0, -1.0, 0.5]])
    seen = seen_tokens([[0, 1, 1], []], 3)
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.5, -2.0, 0.5], [3.0, -1.0, 0.5]]


def test_temperature_divides_before_the_filters():
    config = SamplingConfig(temperature=4.0, top_p=0.6)
    expected = keep_top_p(LOGITS / 4.0, 0.6)
    assert torch.equal(filter_logits(LOGITS, config), expected)
    assert kept(expected) != kept(keep_top_p(LOGITS, 0.6))


def expected_shares(config):
    """The distribution by its definition, with a sort in Python."""
    shares = [share ** (1 / config.temperature) for share in SHARES.tolist()]
    order = sorted(range(4), key=lambda i: -shares[i])
    order = order[: config.top_k or 4]
    total, chosen = sum(shares[i] for i in order), []
    for i in order:
        if sum(shares[j] for j in chosen) / total < config.top_p:
            chosen.append(i)
    mass = sum(shares[i] for i in chosen)
    return [shares[i] / mass if i in chosen else 0.0 for i in range(4)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.7}],
    ids=str,
)
def test_drawn_frequencies(settings):
    config, n_draws = SamplingConfig(**settings), 20_000
    ids = sample(LOGITS.expand(n_draws, -1), config, torch.Generator().manual_seed(0))
    counts, shares = torch.bincount(ids, minlength=4).tolist(), expected_shares(config)
    possible = [i for i in range(4) if shares[i] > 0]
    assert sum(counts[i] for i in possible) == n_draws, "a token outside the filter was drawn"
    if len(possible) > 1:
        result = chisquare([counts[i] for i in possible], [n_draws * shares[i] for i in possible])
        assert result.pvalue > 1e-3


def test_greedy_takes_the_first_of_equals_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample(torch.tensor([[1.0, 2.0, 2.0], [0.0, -1.0, -2.0]]), GREEDY, generator).tolist() == [1, 0]
    assert torch.equal(before, generator.get_state())


def test_sampling_is_decided_by_its_generator_alone():
    draws = [
        sample(torch.zeros(50, 9), SamplingConfig(), torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2] and set(draws[0]) <= set(range(9))


def test_bf16_and_extreme_scores():
    logits = torch.tensor([[1e30, -1e30, -math.inf]])
    assert sample(logits.bfloat16(), SamplingConfig(), torch.Generator().manual_seed(0)).tolist() == [0]
    assert sample(logits, SamplingConfig(temperature=1e-3), torch.Generator().manual_seed(0)).tolist() == [0]


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]], ids=str)
@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(), SamplingConfig(top_p=0.5)])
def test_scores_without_a_choice_are_refused(row, config):
    with pytest.raises(SamplingError, match="row 1"):
        sample(torch.tensor([[0.0, 0.0], row]), config, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SamplingError, match=message):
        SamplingConfig(**settings)


def test_settings_that_do_not_fit_the_scores_are_refused():
    with pytest.raises(SamplingError, match="top_k is 5, expected 1 to 4"):
        sample(LOGITS, SamplingConfig(top_k=5))
    with pytest.raises(SamplingError, match="seen"):
        sample(LOGITS, SamplingConfig(repetition_penalty=1.2))
    with pytest.raises(ShapeError, match="logits"):
        sample(LOGITS[0], GREEDY)
    with pytest.raises(SamplingError, match="vocabulary is empty"):
        sample(torch.zeros(1, 0), GREEDY)


@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(), SamplingConfig(top_k=2, top_p=0.5, min_p=0.1)])
def test_batch_of_nothing(config):
    assert sample(torch.zeros(0, 4), config).shape == (0,)
