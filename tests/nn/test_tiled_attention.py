"""Attention in tiles: the oracles are the readable attention and torch's kernel, in float64."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from minillm.errors import ConfigError, ShapeError
from minillm.nn.attention import attention, biased_attention, causal_mask, mix_heads, padding_mask
from minillm.nn.relative_position import RelativeBias, alibi_slopes
from minillm.nn.sparse_patterns import window_mask
from minillm.nn.tiled_attention import running_softmax, tiled_attention

EXACT = {"rtol": 1e-10, "atol": 1e-12}
TILES = [(1, 1), (2, 3), (4, 4), (5, 2), (128, 512)]


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves, rand(*value.shape, seed=5))


def heads(n_queries, n_keys, n_heads=4, n_kv_heads=2, batch_size=2, d_head=6):
    query = rand(batch_size, n_heads, n_queries, d_head)
    return query, *(rand(batch_size, n_kv_heads, n_keys, d_head, seed=s) for s in (1, 2))


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(9, 9), (1, 7), (4, 11), (7, 3)])
def test_every_key_seen(tile, n_kv_heads, n_queries, n_keys):
    inputs = heads(n_queries, n_keys, n_kv_heads=n_kv_heads)
    ours = gradients(lambda q, k, v: tiled_attention(q, k, v, tile=tile), *inputs)
    torch_kernel = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=True), *inputs)
    torch.testing.assert_close(ours, torch_kernel, **EXACT)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("n_kv_heads", [4, 1])
@pytest.mark.parametrize("n_queries", [9, 4, 1])
@pytest.mark.parametrize("window", [0, 1, 3, 4, 20])
def test_the_past_only_and_windows(tile, n_kv_heads, n_queries, window):
    inputs = heads(n_queries, 9, n_kv_heads=n_kv_heads)
    mask = window_mask(n_queries, 9, window) if window else causal_mask(n_queries, 9)
    ours = gradients(lambda q, k, v: tiled_attention(q, k, v, causal=True, window=window, tile=tile), *inputs)
    torch_kernel = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), *inputs)
    torch.testing.assert_close(ours, torch_kernel, **EXACT)


MASKS = {"padding": (2, 1, 1, 9), "pairs": (7, 9), "heads": (1, 4, 7, 1), "everything": (2, 4, 7, 9)}


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_any_shape_and_rows_that_see_nothing(tile, shape, causal):
    inputs, mask = heads(7, 9), rand(*shape, seed=3) > 0.0
    mask[..., 0, :] = False                                        # a whole row of queries, or of the batch
    allowed = mask & causal_mask(7, 9) if causal else mask
    ours = gradients(lambda q, k, v: tiled_attention(q, k, v, mask, causal, tile=tile), *inputs)
    readable = gradients(lambda q, k, v: attention(q, k, v, allowed), *inputs)
    torch.testing.assert_close(ours, readable, **EXACT)
    nothing = ~allowed.expand(2, 4, 7, 9).any(dim=-1)
    assert nothing.any() and (ours[0][nothing] == 0).all() and (ours[1][0][nothing] == 0).all()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (4, 7, 9), (7, 9), (4, 1, 1), (2, 4, 7, 9)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_and_its_gradient(tile, shape, masked):
    inputs, mask = (*heads(7, 9), rand(*shape, seed=4)), padding_mask(torch.tensor([4, 0]), 9) if masked else None
    ours = gradients(lambda q, k, v, b: tiled_attention(q, k, v, mask, bias=b, tile=tile), *inputs)
    readable = gradients(lambda q, k, v, b: biased_attention(q, k, v, b, mask), *inputs)
    torch.testing.assert_close(ours, readable, **EXACT)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_everything_together(tile, window, causal):
    inputs, mask = (*heads(5, 9), rand(4, 5, 9, seed=4)), padding_mask(torch.tensor([9, 6]), 9)
    slopes = alibi_slopes(4)
    settings = {"causal": causal, "window": window, "slopes": slopes}
    ours = gradients(lambda q, k, v, b: tiled_attention(q, k, v, mask, bias=b, tile=tile, **settings), *inputs)
    hide = mask & window_mask(5, 9, window or 9) if causal or window else mask
    distance = (torch.arange(9) - torch.arange(4, 9)[:, None]).abs()
    falling = -slopes[:, None, None] * distance
    readable = gradients(lambda q, k, v, b: biased_attention(q, k, v, b + falling, hide), *inputs)
    torch.testing.assert_close(ours, readable, **EXACT)


def test_gradients_by_finite_differences():
    inputs = [x.requires_grad_() for x in heads(3, 5, n_heads=2, n_kv_heads=1, batch_size=1, d_head=3)]
    bias = rand(2, 3, 5, seed=9).requires_grad_()
    settings = {"causal": True, "window": 3, "tile": (2, 2)}
    assert torch.autograd.gradcheck(lambda q, k, v, b: tiled_attention(q, k, v, bias=b, **settings), (*inputs, bias))


@pytest.mark.parametrize("seed", range(4))
def test_the_real_tile_at_odd_lengths(seed):
    generator = torch.Generator().manual_seed(seed)
    n_queries, n_more, window = (int(torch.randint(1, top, (1,), generator=generator)) for top in (700, 900, 600))
    inputs = heads(n_queries, n_queries + n_more, batch_size=1, d_head=4)
    ours = gradients(lambda q, k, v: tiled_attention(q, k, v, causal=True, window=window), *inputs)
    mask = window_mask(n_queries, n_queries + n_more, window)
    torch_kernel = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), *inputs)
    torch.testing.assert_close(ours, torch_kernel, **EXACT)


@pytest.mark.parametrize("size", [1e-6, 30.0, 1e4])
def test_huge_scores_neither_overflow_nor_drown(size):
    query, key, value = heads(9, 9)
    ours = gradients(lambda q, k, v: tiled_attention(q * size, k, v, causal=True, tile=(2, 3)), query, key, value)
    readable = gradients(lambda q, k, v: attention(q * size, k, v, causal_mask(9, 9)), query, key, value)
    torch.testing.assert_close(ours, readable, rtol=1e-9, atol=1e-9 * max(size, 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_short_number_formats(dtype):
    inputs = heads(40, 50)
    exact = gradients(lambda q, k, v: tiled_attention(q, k, v, causal=True, tile=(16, 16)), *inputs)
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    value = tiled_attention(*leaves, causal=True, tile=(16, 16))
    rough = torch.autograd.grad(value, leaves, rand(*value.shape, seed=5).to(dtype))
    assert value.dtype == dtype and all(gradient.dtype == dtype for gradient in rough)
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close((value.double(), tuple(g.double() for g in rough)), exact, **tolerance)


def test_autocast_does_not_reach_the_tiles():
    inputs = [x.float() for x in heads(40, 50)]
    with torch.autocast("cpu", torch.bfloat16):
        value = tiled_attention(*inputs, causal=True)
    torch.testing.assert_close(value, tiled_attention(*inputs, causal=True), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (2, 0, 0)], ids=str)
def test_edge_shapes(shape):
    batch_size, n_queries, n_keys = shape
    inputs = heads(n_queries, n_keys, batch_size=batch_size)
    value, grads = gradients(lambda q, k, v: tiled_attention(q, k, v), *inputs)
    assert value.shape == inputs[0].shape and (value == 0).all() == (value.numel() == 0 or n_keys == 0)
    assert [g.shape for g in grads] == [x.shape for x in inputs]


@pytest.mark.parametrize("window", [0, 20])
def test_what_is_kept_for_the_backward_pass_grows_with_the_length_only(window):
    def kept_bytes(n_positions):
        inputs = [x.requires_grad_() for x in heads(n_positions, n_positions, batch_size=1)]
        seen = {}

        def remember(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            value = tiled_attention(*inputs, causal=True, window=window)
        assert value.requires_grad
        return sum(seen.values())

    short, long = kept_bytes(300), kept_bytes(600)
    assert long == 2 * short == 600 * 8 * (4 * 6 + 2 * 6 + 2 * 6 + 4 * 6 + 4)  # q, k, v, the result, one number a query


def test_tiles_in_which_everything_is_hidden_are_skipped(monkeypatch):
    steps = []
    monkeypatch.setattr(
        "minillm.nn.tiled_attention.running_softmax",
        lambda scores, *rest: steps.append(tuple(scores.shape)) or running_softmax(scores, *rest),
    )
    inputs = heads(8, 8, n_heads=1, n_kv_heads=1, batch_size=1)
    for settings, n_tiles in (({}, 16), ({"causal": True}, 10), ({"window": 2}, 7), ({"window": 1}, 4)):
        steps.clear()
        tiled_attention(*inputs, tile=(2, 2), **settings)
        assert len(steps) == n_tiles, settings
    steps.clear()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[5, 3] = mask[1, 7] = True
    tiled_attention(*inputs, mask, tile=(2, 2))
    assert len(steps) == 2


def test_a_step_of_the_running_softmax_at_a_time():
    scores, value = rand(3, 5, 11) * 20, rand(3, 11, 4, seed=1)
    scores[1, 2] = -math.inf
    scores[:, :, 4:7] = -math.inf                                  # one whole step with nothing to see
    highest = torch.full((3, 5, 1), torch.finfo(torch.float64).min, dtype=torch.float64)
    state = (highest, torch.zeros_like(highest), torch.zeros(3, 5, 4, dtype=torch.float64))
    for keys in (slice(0, 4), slice(4, 7), slice(7, 8), slice(8, 11)):
        state = running_softmax(scores[:, :, keys].clone(), value[:, keys], *state)
    highest, total, mixed = state
    seen, natural = scores.amax(-1, keepdim=True) > -math.inf, scores * math.log(2.0)
    log_sums = (highest + total.log2()) * math.log(2.0)
    torch.testing.assert_close(log_sums[seen], natural.logsumexp(-1, keepdim=True)[seen], **EXACT)
    torch.testing.assert_close(mixed / total.where(seen, 1.0), natural.softmax(-1).nan_to_num() @ value, **EXACT)


def test_a_learned_relative_bias_learns_through_the_tiles():
    layer = RelativeBias(4, 8, 20, std=1.0, generator=torch.Generator().manual_seed(0)).double()
    inputs, positions, results = heads(9, 9), torch.arange(9), []
    for kernels in ("tiled", "naive"):
        value = mix_heads(*inputs, causal=True, kernels=kernels, bias=layer(positions, positions))
        results.append((value, torch.autograd.grad(value, layer.weight, rand(*value.shape, seed=5))))
    torch.testing.assert_close(*results, **EXACT)


def test_no_second_derivative_is_promised():
    query, key, value = (x.requires_grad_() for x in heads(3, 3))
    squares = tiled_attention(query, key, value).square().sum()
    (first,) = torch.autograd.grad(squares, query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="4 query heads cannot share 3"):
        tiled_attention(*heads(3, 3, n_kv_heads=3))
    for settings in ({"causal": True}, {"window": 2}):
        with pytest.raises(ShapeError, match="5 queries"):
            tiled_attention(*heads(5, 3), **settings)
    with pytest.raises(ConfigError, match="tile is"):
        tiled_attention(*heads(3, 3), tile=(0, 4))
