"""Relative positions: oracles are loops over distances in whole numbers."""

import pytest
import torch

from minillm.errors import ConfigError, ShapeError
from minillm.nn.relative_position import (
    RelativeBias,
    alibi_bias,
    alibi_slopes,
    relative_buckets,
    relative_distances,
)


def bucket_by_hand(distance, n_buckets, max_distance, bidirectional):
    """The bucket of one distance; n_exact (max / n_exact)^(k / n_shared) <= far is decided in whole numbers."""
    n_each = n_buckets // 2 if bidirectional else n_buckets
    far = abs(distance) if bidirectional else max(-distance, 0)
    first = n_each if bidirectional and distance > 0 else 0
    n_exact = n_each // 2
    if far < n_exact:
        return first + far
    n_shared = n_each - n_exact
    steps = [k for k in range(n_shared) if max_distance**k * n_exact ** (n_shared - k) <= far**n_shared]
    return first + n_exact + max(steps)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (16, 50), (4, 3)])
def test_buckets_are_those_of_the_rule_in_whole_numbers(n_buckets, max_distance, bidirectional):
    distances = torch.arange(-3 * max_distance, 3 * max_distance)
    expected = [bucket_by_hand(d, n_buckets, max_distance, bidirectional) for d in distances.tolist()]
    got = relative_buckets(distances, n_buckets, max_distance, bidirectional)
    assert got.dtype == torch.int64 and got.tolist() == expected
    assert set(expected) == set(range(n_buckets)) - ({n_buckets // 2} if bidirectional else set())


def test_buckets_keep_any_shape_and_whole_type():
    distances = torch.arange(-12, 12, dtype=torch.int32).view(2, 3, 4)
    assert torch.equal(relative_buckets(distances), relative_buckets(distances.long().flatten()).view(2, 3, 4))
    assert relative_buckets(distances[:, :0]).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("n_buckets", "max_distance", "bidirectional"),
    [(31, 128, True), (2, 128, True), (1, 128, False), (0, 9, False), (32, 8, True), (32, 16, False), (-4, 128, True)],
)
def test_buckets_that_cannot_be_are_refused(n_buckets, max_distance, bidirectional):
    with pytest.raises(ConfigError, match="do not fit"):
        relative_buckets(torch.arange(3), n_buckets, max_distance, bidirectional)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_distances_that_are_no_whole_numbers_are_refused(dtype):
    with pytest.raises(ShapeError, match="expected integers"):
        relative_buckets(torch.zeros(3, dtype=dtype))


def test_distances_of_rows_with_positions_of_their_own():
    query, key = torch.tensor([[4, 5], [0, 1]]), torch.tensor([[3, 4, 5], [0, 0, 1]])
    distances = relative_distances(query, key)
    assert distances.shape == (2, 2, 3)
    assert all(distances[b, t, s] == key[b, s] - query[b, t] for b in range(2) for t in range(2) for s in range(3))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_learned_number_for_each_head_and_bucket(bidirectional):
    layer = RelativeBias(3, 8, 20, bidirectional, std=1.0, generator=torch.Generator().manual_seed(0)).double()
    query, key = torch.tensor([[4, 30], [0, 1]]), torch.tensor([[3, 4, 90], [0, 0, 1]])
    bias = layer(query, key)
    assert bias.shape == (2, 3, 2, 3) and [name for name, _ in layer.named_parameters()] == ["weight"]
    for b, h, t, s in torch.cartesian_prod(*(torch.arange(n) for n in bias.shape)).tolist():
        bucket = bucket_by_hand(int(key[b, s] - query[b, t]), 8, 20, bidirectional)
        assert bias[b, h, t, s] == layer.weight[bucket, h]
    bias.sum().backward()
    assert layer.weight.grad.sum() == 2 * 3 * 2 * 3
    assert torch.equal(layer(torch.tensor([4, 30]), torch.tensor([3, 4, 90])), bias[0])


def test_slopes_by_hand():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8] and alibi_slopes(2).tolist() == [2.0**-4, 2.0**-8]
    twelve = [2.0**-i for i in range(1, 9)] + [2.0 ** -(i / 2) for i in (1, 3, 5, 7)]
    assert alibi_slopes(12).tolist() == pytest.approx(twelve, rel=1e-15)


@pytest.mark.parametrize("n_heads", [1, 3, 5, 6, 7, 12, 16, 25, 112])
def test_every_head_has_a_slope_of_its_own(n_heads):
    slopes = alibi_slopes(n_heads)
    assert slopes.shape == (n_heads,) and len(set(slopes.tolist())) == n_heads
    assert (slopes > 0).all() and (slopes < 1).all() and slopes.min() == 2.0**-8


def test_no_head_has_no_slope():
    with pytest.raises(ConfigError, match="n_heads is 0"):
        alibi_slopes(0)


def test_scores_fall_with_the_distance_in_both_directions():
    positions = torch.tensor([[0, 1, 5], [2, 2, 3]])
    slopes = alibi_slopes(6)
    bias = alibi_bias(relative_distances(positions, positions), slopes)
    assert bias.shape == (2, 6, 3, 3)
    for b, h, t, s in torch.cartesian_prod(*(torch.arange(n) for n in bias.shape)).tolist():
        assert bias[b, h, t, s] == -slopes[h] * abs(int(positions[b, t] - positions[b, s]))
