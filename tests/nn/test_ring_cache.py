"""A cache of constant size for sliding windows: equal to the full cache, and to attention under a window at once."""

import pytest
import torch

from minillm.errors import ShapeError
from minillm.nn.attention import SelfAttention
from minillm.nn.cache import KVCache, RingCache

EXACT = {"rtol": 1e-10, "atol": 1e-12}
SIZES = (2, 2, 2, 20, 3)  # layers, batch, key/value heads, positions, width
PIECES = ([1] * 12, [12], [7, 1, 1, 3], [2, 5, 1, 4], [0, 3, 0, 9])


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("window", [1, 2, 5, 12, 40])
def test_what_a_window_sees_is_what_the_full_cache_holds(pieces, window):
    ring, full = RingCache(*SIZES, window=window, dtype=torch.float64), KVCache(*SIZES, dtype=torch.float64)
    n_bytes = ring.n_bytes
    for number, n_new in enumerate(pieces):
        for layer in range(2):
            key, value = (rand(2, 2, n_new, 3, seed=100 * number + 10 * layer + s) for s in (0, 1))
            n_seen = min(full.length, window - 1) + n_new
            for got, whole in zip(ring.update(layer, key, value), full.update(layer, key, value), strict=True):
                assert torch.equal(got, whole[:, :, whole.shape[2] - n_seen :])
        ring.advance(n_new)
        full.advance(n_new)
    assert ring.length == full.length == 12 and ring.n_bytes == n_bytes == 2 * 8 * 24 * min(window, 20)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("kernels", ["torch", "naive", "tiled"])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_pieces_is_attention_at_once(pieces, kernels, alibi, masked):
    layer = SelfAttention(12, 4, 2, window=4, kernels=kernels, alibi=alibi).double()
    x, mask = rand(2, 12, 12), None
    if masked:                                                     # padding on the left of the second row
        mask = (torch.arange(12) >= torch.tensor([0, 3])[:, None])[:, None, None]
    whole = layer(x, mask) if masked else layer(x, causal=True)
    for cache in (RingCache(1, 2, 2, 12, 3, window=4, dtype=x.dtype), KVCache(1, 2, 2, 12, 3, dtype=x.dtype)):
        found = []
        for part in x.split(pieces, dim=1):
            end = cache.length + part.shape[1]
            found.append(layer(part, None if mask is None else mask[..., :end], cache=cache))
            cache.advance(part.shape[1])
        torch.testing.assert_close(torch.cat(found, dim=1), whole, **EXACT)


def test_numbers_of_another_width_are_brought_to_that_of_the_cache():
    cache, new = RingCache(1, 1, 1, 9, 2, window=3, dtype=torch.float64), torch.ones(1, 1, 2, 2)
    cache.update(0, new, new)
    assert cache.keys[0, 0, 0].tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


def test_it_refuses_before_anything_is_written():
    cache = RingCache(*SIZES, window=4, dtype=torch.float64)
    cache.advance(19)
    for shape, message in (((2, 2, 2, 3), "19 of 20 positions, 2 more"), ((1, 2, 1, 3), "do not fit")):
        with pytest.raises(ShapeError, match=message):
            cache.update(0, rand(*shape), rand(*shape))
    with pytest.raises(ShapeError, match="do not fit"):
        cache.update(0, rand(2, 2, 1, 3), rand(2, 2, 1, 2))
    assert not cache.keys.any() and not cache.values.any() and cache.length == 19
    with pytest.raises(ShapeError, match="window is 0"):
        RingCache(*SIZES, window=0)


@pytest.mark.parametrize(("window", "message"), [(0, "see all positions"), (5, "last 4 positions, .* 5 positions")])
def test_a_layer_that_sees_more_than_is_kept_is_refused(window, message):
    layer, cache = SelfAttention(6, 2, 2, window=window), RingCache(1, 1, 2, 20, 3, window=4)
    with pytest.raises(ShapeError, match=message):
        layer(torch.ones(1, 1, 6), cache=cache)
    SelfAttention(6, 2, 2, window=3)(torch.ones(1, 1, 6), cache=cache)


def test_the_memory_is_used_again_after_a_reset():
    cache, key = RingCache(1, 1, 1, 9, 1, window=2), torch.ones(1, 1, 1, 1)
    for _ in range(3):
        cache.update(0, key, key)
        cache.advance(1)
    cache.reset()
    assert [x.shape[2] for x in cache.update(0, 2 * key, key)] == [1, 1] and cache.keys[0, 0, 0, 0] == 2
