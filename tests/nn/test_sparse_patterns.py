"""Patterns of attention against loops over pairs, and attention under them against attention over the pairs allowed."""

import pytest
import torch

from minillm.errors import ConfigError, ShapeError
from minillm.nn.attention import causal_mask, mix_heads
from minillm.nn.sparse_patterns import (
    block_mask,
    global_mask,
    neighbour_mask,
    random_layout,
    strided_mask,
    summary_mask,
    window_mask,
)

SIZES = [(1, 1), (5, 5), (3, 8), (8, 8), (1, 6), (0, 4)]


def by_pairs(n_queries, n_keys, allowed):
    """The mask of a rule for two positions; queries are the last of the keys."""
    past = n_keys - n_queries
    rows = [[bool(allowed(t + past, s)) for s in range(n_keys)] for t in range(n_queries)]
    return torch.tensor(rows, dtype=torch.bool).view(n_queries, n_keys)


@pytest.mark.parametrize(("n_queries", "n_keys"), SIZES)
@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_windows_strides_and_summaries_pair_by_pair(n_queries, n_keys, length):
    pairs = {
        "window": (window_mask(n_queries, n_keys, length), lambda t, s: s in range(t - length + 1, t + 1)),
        "stride": (strided_mask(n_queries, n_keys, length), lambda t, s: s in range(t, -1, -length)),
    }
    for n in {1, (length + 1) // 2, length}:

        def summed(t, s, n=n):
            return s <= t and (s // length == t // length or s % length in range(length - n, length))

        pairs[f"summary {n}"] = (summary_mask(n_queries, n_keys, length, n), summed)
    for name, (mask, rule) in pairs.items():
        assert mask.dtype == torch.bool and torch.equal(mask, by_pairs(n_queries, n_keys, rule)), name


@pytest.mark.parametrize("n_positions", [0, 1, 6])
@pytest.mark.parametrize("radius", [0, 1, 9])
def test_neighbours_pair_by_pair(n_positions, radius):
    expected = by_pairs(n_positions, n_positions, lambda t, s: s in range(t - radius, t + radius + 1))
    assert torch.equal(neighbour_mask(n_positions, radius), expected)


@pytest.mark.parametrize("chosen", [[], [0], [5, 2], [1, 1]], ids=str)
def test_global_positions_pair_by_pair(chosen):
    expected = by_pairs(6, 6, lambda t, s: t in chosen or s in chosen)
    assert torch.equal(global_mask(6, torch.tensor(chosen, dtype=torch.int64)), expected)


def test_window_of_everything_is_the_whole_past():
    for mask in (window_mask(4, 9, 9), strided_mask(4, 9, 1)):
        assert torch.equal(mask, causal_mask(4, 9))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_a_window_then_strides_reach_the_whole_past(stride):
    near, far = window_mask(13, 13, stride).float(), strided_mask(13, 13, stride).float()
    assert torch.equal(far @ near > 0, causal_mask(13, 13))        # in two layers, as the paper promises


@pytest.mark.parametrize(("n_queries", "n_keys"), [(6, 6), (5, 7), (1, 9)])
@pytest.mark.parametrize("block_size", [1, 2, 4, 20])
def test_blocks_pair_by_pair(n_queries, n_keys, block_size):
    shape = (-(-n_queries // block_size), -(-n_keys // block_size))
    layout = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = block_mask(layout, block_size, n_queries, n_keys)
    for t in range(n_queries):
        assert mask[t].tolist() == [bool(layout[t // block_size, s // block_size]) for s in range(n_keys)]


@pytest.mark.parametrize("seed", range(3))
def test_random_layouts_have_the_blocks_promised(seed):
    layout = random_layout(9, n_near=1, n_global=2, n_random=2, generator=torch.Generator().manual_seed(seed))
    fixed = by_pairs(9, 9, lambda t, s: abs(t - s) <= 1 or t < 2 or s < 2)
    assert (layout & fixed).equal(fixed)
    extra = (layout & ~fixed).sum(dim=-1).tolist()
    assert extra == [min(2, n) for n in (~fixed).sum(dim=-1).tolist()]
    other = random_layout(9, 1, 2, 2, torch.Generator().manual_seed(seed + 10))
    assert torch.equal(layout, random_layout(9, 1, 2, 2, torch.Generator().manual_seed(seed)))
    assert not torch.equal(layout, other)
    assert random_layout(3, 0, 9, 0).all() and random_layout(0, 1, 1, 1).shape == (0, 0)


@pytest.mark.parametrize("kernels", ["torch", "naive", "tiled"])
def test_attention_under_a_pattern_is_attention_over_the_keys_it_allows(kernels):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 12, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    patterns = {
        "block": block_mask(random_layout(4, 0, 1, 1, generator), 3, 12, 12),
        "long": neighbour_mask(12, 2) | global_mask(12, torch.tensor([0])),
        "sparse": window_mask(12, 12, 3) | strided_mask(12, 12, 3),
        "summed": summary_mask(12, 12, 4, 1),
    }
    for name, mask in patterns.items():
        mixed = mix_heads(query, key, value, mask, kernels=kernels)
        for head in range(2):
            for t in range(12):
                seen = mask[t].nonzero().flatten()
                weights = (key[0, head, seen] @ query[0, head, t] / 2.0).softmax(0)
                expected = weights @ value[0, head, seen]
                torch.testing.assert_close(mixed[0, head, t], expected, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: window_mask(3, 3, 0), ConfigError, "window is 0"),
        (lambda: window_mask(4, 3, 2), ShapeError, "4 queries"),
        (lambda: neighbour_mask(3, -1), ConfigError, "radius is -1"),
        (lambda: global_mask(3, torch.tensor([3])), ShapeError, r"\[3\], there are 0 to 2"),
        (lambda: global_mask(3, torch.tensor([-1])), ShapeError, "global positions"),
        (lambda: strided_mask(3, 3, 0), ConfigError, "stride is 0"),
        (lambda: summary_mask(3, 3, 2, 0), ConfigError, "n_summaries is 0"),
        (lambda: summary_mask(3, 3, 2, 3), ConfigError, "only 2 positions"),
        (lambda: block_mask(torch.ones(2, 2), 2, 4, 4), ShapeError, "need bool"),
        (lambda: block_mask(torch.ones(2, 1, dtype=torch.bool), 2, 4, 4), ShapeError, r"shape \(2, 2\)"),
        (lambda: block_mask(torch.ones(2, 2, dtype=torch.bool), 0, 4, 4), ConfigError, "block_size is 0"),
        (lambda: random_layout(3, -1, 0, 0), ConfigError, "none may be negative"),
    ],
)
def test_patterns_that_cannot_be_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
