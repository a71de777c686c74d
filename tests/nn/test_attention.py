"""Attention: the oracle is torch's own kernel in float64."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from minillm.errors import ConfigError, ShapeError
from minillm.nn.attention import (
    CrossAttention,
    SelfAttention,
    add_alibi,
    attention,
    attention_weights,
    biased_attention,
    causal_mask,
    merge_heads,
    mix_heads,
    padding_mask,
    product_attention,
    share_heads,
    split_heads,
)
from minillm.nn.cache import KVCache
from minillm.nn.position import rotary_angles
from minillm.nn.source_attention import SourceAttention

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves, rand(*value.shape, seed=5))


def test_causal_mask_by_hand():
    assert causal_mask(2, 3).tolist() == [[True, True, False], [True, True, True]]
    assert causal_mask(0, 2).shape == (0, 2)


def test_causal_mask_refuses_more_queries_than_keys():
    with pytest.raises(ShapeError, match="3 queries"):
        causal_mask(3, 2)


def test_padding_mask_by_hand_and_with_the_past_only():
    mask = padding_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.shape == (3, 1, 1, 3) and mask.dtype == torch.bool
    assert mask[:, 0, 0].tolist() == [[False] * 3, [True, True, False], [True] * 3]
    both = causal_mask(3, 3) & mask
    assert both[1, 0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]


@pytest.mark.parametrize("lengths", [[4], [-1], [[1]]], ids=str)
def test_padding_mask_refuses_impossible_lengths(lengths):
    with pytest.raises(ShapeError, match="lengths"):
        padding_mask(torch.tensor(lengths), 3)


def test_padding_never_changes_what_the_real_positions_see():
    inputs = [rand(2, 3, 5, 4, seed=s) for s in range(3)]
    padded = attention(*inputs, causal_mask(5, 5) & padding_mask(torch.tensor([2, 5]), 5))
    alone = attention(*(x[:1, :, :2] for x in inputs), causal_mask(2, 2))
    torch.testing.assert_close(padded[:1, :, :2], alone, **EXACT)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_agrees_with_torch(n_heads, n_kv_heads, masked):
    inputs = rand(2, n_heads, 3, 8), rand(2, n_kv_heads, 5, 8), rand(2, n_kv_heads, 5, 8, seed=1)
    mask = causal_mask(3, 5) if masked else None
    ours = gradients(lambda q, k, v: attention(q, k, v, mask), *inputs)
    oracle = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), *inputs)
    torch.testing.assert_close(ours, oracle, **EXACT)


def test_attention_gradient_by_finite_differences():
    inputs = [rand(1, 2, 3, 4, seed=s).requires_grad_() for s in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, causal_mask(3, 3)), inputs)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_any_leading_dimensions(leading):
    query, key, value = (rand(*leading, 4, 6, seed=s) for s in range(3))
    flat = [x.reshape(-1, 1, 4, 6) for x in (query, key, value)]
    expected = scaled_dot_product_attention(*flat, attn_mask=causal_mask(4, 4)).reshape(*leading, 4, 6)
    torch.testing.assert_close(attention(query, key, value, causal_mask(4, 4)), expected, **EXACT)


def test_a_query_that_may_see_nothing_gives_zeros_and_no_nan_gradient():
    inputs = [rand(1, 2, 3, 4, seed=s) for s in range(3)]
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    value, grads = gradients(lambda q, k, v: attention(q, k, v, mask), *inputs)
    assert (value[:, :, 1] == 0).all() and (value[:, :, 0] != 0).all()
    assert all(gradient.isfinite().all() for gradient in grads) and (grads[0][:, :, 1] == 0).all()


def test_weights_are_shares_and_respect_the_mask():
    weights = attention_weights(rand(2, 3, 4), rand(2, 5, 4), causal_mask(3, 5))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64), **EXACT)
    assert (weights[:, ~causal_mask(3, 5)] == 0).all() and (weights[:, causal_mask(3, 5)] > 0).all()


def test_product_attention_agrees_with_attention():
    inputs = [rand(2, 3, 5, 4, seed=s) for s in range(3)]
    for mask in (None, causal_mask(5, 5)):
        ours = gradients(lambda q, k, v, mask=mask: product_attention(q, k, v, mask), *inputs)
        readable = gradients(lambda q, k, v, mask=mask: attention(q, k, v, mask), *inputs)
        torch.testing.assert_close(ours, readable, **EXACT)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 4, 2, 8), (1, 3, 2, 8), (1, 3, 2, 8)], "evenly"),
        ([(1, 4, 2, 8), (1, 4, 2, 6), (1, 4, 2, 6)], "key has shape"),
        ([(1, 4, 2, 8), (1, 4, 2, 8), (1, 4, 3, 8)], "value has shape"),
        ([(2, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 8)], "leading"),
    ],
)
def test_attention_refuses_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ShapeError, match=message):
        attention(*(rand(*shape) for shape in shapes))


def test_attention_refuses_a_float_mask():
    with pytest.raises(ShapeError, match="bool"):
        attention(rand(2, 3), rand(2, 3), rand(2, 3), torch.zeros(2, 2))


def test_heads_are_cut_in_order_and_merged_back():
    x = torch.arange(12.0).view(1, 2, 6)
    assert split_heads(x, 3)[0, 1].tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert torch.equal(merge_heads(split_heads(x, 3)), x)
    with pytest.raises(ShapeError, match="4 heads"):
        split_heads(x, 4)


def test_shared_heads_stand_side_by_side():
    x = rand(2, 3, 4, 5)
    shared = share_heads(x, 6)
    assert shared.shape == (2, 6, 4, 5)
    assert all(torch.equal(shared[:, head], x[:, head // 2]) for head in range(6))
    for n_kv_heads in (0, 3):
        with pytest.raises(ShapeError, match="evenly"):
            share_heads(rand(1, n_kv_heads, 2, 4), 4)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_kernels_agree(n_kv_heads, qk_norm, masked):
    settings = {"bias": True, "qk_norm": qk_norm, "std": 0.3, "output_std": 0.3}
    fast = SelfAttention(16, 4, n_kv_heads, **settings).double()
    naive = SelfAttention(16, 4, n_kv_heads, kernels="naive", **settings).double()
    naive.load_state_dict(fast.state_dict())
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril() & (torch.arange(5) != 1) if masked else None
    angles = rotary_angles(torch.arange(5), 4)
    rotation = (angles.cos(), angles.sin())
    results = []
    for layer in (fast, naive):
        x = rand(2, 5, 16).requires_grad_()
        value = layer(x, mask, causal=not masked, rotation=rotation)
        results.append((value, torch.autograd.grad(value, [x, *layer.parameters()], rand(2, 5, 16, seed=8))))
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("n_kv_heads", [4, 1])
def test_queries_and_keys_that_are_rotated_together_are_those_rotated_one_by_one(n_kv_heads, layout):
    layer = SelfAttention(24, 4, n_kv_heads, std=0.3, rotary_layout=layout)
    angles = rotary_angles(torch.arange(7), 6).float()
    x, rotation = rand(3, 7, 24).float(), (angles.cos(), angles.sin())
    one_by_one = layer.queries_keys_values(x, rotation)
    with torch.no_grad():
        together = layer.queries_keys_values(x, rotation)
    for mine, theirs in zip(together, one_by_one, strict=True):
        assert torch.equal(mine, theirs)


def test_self_attention_agrees_with_torch_multihead():
    ours = SelfAttention(12, 3, 3, bias=True, std=0.3, output_std=0.3).double()
    oracle = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    weights = {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}
    weights |= {"out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias}
    oracle.load_state_dict(weights)
    x = rand(2, 5, 12)
    expected, _ = oracle(x, x, x, attn_mask=~causal_mask(5, 5), need_weights=False)
    torch.testing.assert_close(ours(x, causal=True), expected, **EXACT)


def test_queries_and_keys_tell_who_looks_where():
    layer = SelfAttention(16, 4, 2, std=0.5, output_std=0.5, qk_norm=True, max_score=9.0).double()
    x, angles = rand(2, 5, 16), rotary_angles(torch.arange(5), 4)
    rotation = (angles.cos(), angles.sin())
    query, key, value = layer.queries_keys_values(x, rotation)
    weights = attention_weights(query, share_heads(key, 4), causal_mask(5, 5))
    mixed = layer.output(merge_heads(weights @ share_heads(value, 4)))
    torch.testing.assert_close(mixed, layer(x, causal=True, rotation=rotation), **EXACT)


@pytest.mark.parametrize("kernels", ["torch", "naive"])
def test_cross_attention_agrees_with_torch_multihead(kernels):
    ours = CrossAttention(12, 3, 3, d_source=10, bias=True, std=0.3, output_std=0.3, kernels=kernels).double()
    oracle = torch.nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True).double()
    rows = ours.key_value.weight.chunk(2), ours.key_value.bias.chunk(2)
    weights = {"q_proj_weight": ours.query.weight, "k_proj_weight": rows[0][0], "v_proj_weight": rows[0][1]}
    weights |= {"in_proj_bias": torch.cat((ours.query.bias, *rows[1]))}
    weights |= {"out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias}
    oracle.load_state_dict(weights)
    x, source, real = rand(2, 5, 12), rand(2, 7, 10), padding_mask(torch.tensor([4, 7]), 7)
    expected, _ = oracle(x, source, source, key_padding_mask=~real[:, 0, 0], need_weights=False)
    torch.testing.assert_close(ours(x, source, real), expected, **EXACT)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_kernels_agree_with_shared_heads(masked):
    settings = {"std": 0.3, "output_std": 0.3}
    fast = CrossAttention(16, 4, 2, **settings).double()
    naive = CrossAttention(16, 4, 2, kernels="naive", **settings).double()
    naive.load_state_dict(fast.state_dict())
    mask = padding_mask(torch.tensor([0, 3]), 6) if masked else None  # the first source has nothing to offer
    results = []
    for layer in (fast, naive):
        inputs = [rand(2, 5, 16).requires_grad_(), rand(2, 6, 16, seed=1).requires_grad_()]
        value = layer(*inputs, mask)
        results.append((value, torch.autograd.grad(value, [*inputs, *layer.parameters()], rand(2, 5, 16, seed=8))))
        assert not masked or (value[0] == 0).all()
    torch.testing.assert_close(*results, **EXACT)


def test_cross_attention_refuses_what_does_not_fit():
    layer = CrossAttention(16, 4, 2)
    with pytest.raises(ShapeError, match="source has shape"):
        layer(torch.zeros(2, 3, 16), torch.zeros(1, 3, 16))
    with pytest.raises(ShapeError, match="x has shape"):
        layer(torch.zeros(3, 16), torch.zeros(1, 3, 16))
    with pytest.raises(ConfigError, match="multiple"):
        CrossAttention(16, 4, 3)


KERNELS = ("torch", "naive", "tiled")
BIASES = {"distances": (4, 3, 5), "rows": (2, 1, 1, 5), "everything": (2, 4, 3, 5)}
MASKS = {"no mask": None, "padding": (2, 1, 1, 5), "everything": (2, 4, 3, 5), "keys": (5,)}


def some_mask(shape):
    """Bool, about two thirds True, with one row that hides everything where there are several."""
    mask = rand(*shape, seed=3) > -0.5
    if len(shape) > 1:
        mask[0, 0, 0] = False
    return mask


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_bias_is_added_to_the_scores_of_every_kernel(kernels, n_kv_heads, bias, mask):
    mask = None if MASKS[mask] is None else some_mask(MASKS[mask])
    inputs = rand(2, 4, 3, 8), rand(2, n_kv_heads, 5, 8), rand(2, n_kv_heads, 5, 8, seed=1), rand(*BIASES[bias], seed=2)

    def by_hand(query, key, value, bias):
        scores = torch.einsum("bhtd,bhsd->bhts", query, key.repeat_interleave(4 // n_kv_heads, 1)) / 8**0.5 + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        weights = scores.softmax(-1) if mask is None else scores.softmax(-1) * mask
        return torch.einsum("bhts,bhsd->bhtd", weights, value.repeat_interleave(4 // n_kv_heads, 1))

    ours = gradients(lambda q, k, v, b: mix_heads(q, k, v, mask, kernels=kernels, bias=b), *inputs)
    torch.testing.assert_close(ours, gradients(by_hand, *inputs), **EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_bias_and_the_past_only(kernels):
    inputs, bias = [rand(2, 3, 5, 4, seed=s) for s in range(3)], rand(3, 5, 5)
    hidden = bias.masked_fill(~causal_mask(5, 5), -torch.inf)
    expected = scaled_dot_product_attention(*inputs, hidden.expand(2, 3, 5, 5))
    torch.testing.assert_close(mix_heads(*inputs, causal=True, kernels=kernels, bias=bias), expected, **EXACT)
    torch.testing.assert_close(biased_attention(*inputs, bias, causal_mask(5, 5)), expected, **EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_rows_that_see_nothing_are_zero_in_every_kernel(kernels, dtype, biased, n_queries):
    inputs = [rand(2, 4, n, 8).to(dtype) for n in (n_queries, 5, 5)]
    mask, bias = padding_mask(torch.tensor([0, 3]), 5), rand(4, n_queries, 5) if biased else None

    def mixed(query, key, value):
        return mix_heads(query, key, value, mask, kernels=kernels, bias=bias).double()

    value, grads = gradients(mixed, *inputs)
    assert (value[0] == 0).all() and (value[1] != 0).any()
    assert all(gradient.isfinite().all() and (gradient[0] == 0).all() for gradient in grads)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("mask", "bias", "message"),
    [
        (torch.ones(2, 1, 1, 5), None, "mask has dtype torch.float32"),
        (torch.ones(2, 1, 1, 5, dtype=torch.int64), None, "mask has dtype torch.int64.*mask.bool"),
        (torch.ones(2, 5, dtype=torch.bool), None, r"mask has shape \(2, 5\)"),
        (torch.ones(3, 1, 1, 5, dtype=torch.bool), None, r"mask has shape \(3, 1, 1, 5\)"),
        (None, torch.ones(4, 3, 5, dtype=torch.bool), "a bool is a mask"),
        (None, torch.ones(4, 3, 5, dtype=torch.int64), "bias has dtype torch.int64"),
        (None, torch.ones(3, 3, 5), r"bias has shape \(3, 3, 5\)"),
        (None, torch.ones(1, 2, 4, 3, 5), "bias has shape"),
    ],
)
def test_masks_and_biases_that_mean_something_else_are_refused(kernels, mask, bias, message):
    with pytest.raises(ShapeError, match=message):
        mix_heads(*(torch.ones(2, 4, n, 8) for n in (3, 5, 5)), mask, kernels=kernels, bias=bias)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_self_attention_with_heads_of_any_width_and_unscaled_scores(kernels, qk_norm):
    layer = SelfAttention(10, 4, 2, std=0.3, output_std=0.3, qk_norm=qk_norm, d_head=6, scale=1.0, kernels=kernels)
    layer, x, bias = layer.double(), rand(2, 5, 10), rand(4, 5, 5)
    assert layer.sections == (24, 12, 12) and layer.output.weight.shape == (10, 24)
    query, key, value = (x @ rows.T for rows in layer.qkv.weight.split(layer.sections))
    mixed = []
    for head in range(4):
        q, k, v = (t.unflatten(-1, (-1, 6))[:, :, h] for t, h in ((query, head), (key, head // 2), (value, head // 2)))
        if qk_norm:
            q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() for t in (q, k))
        scores = (q @ k.mT + bias[head]).masked_fill(~causal_mask(5, 5), -torch.inf)
        mixed.append(scores.softmax(-1) @ v)
    expected = torch.cat(mixed, dim=-1) @ layer.output.weight.T
    torch.testing.assert_close(layer(x, causal=True, bias=bias), expected, **EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
def test_cross_attention_with_heads_of_any_width_and_unscaled_scores(kernels):
    layer = CrossAttention(10, 3, 3, d_source=7, std=0.3, output_std=0.3, d_head=4, scale=1.0, kernels=kernels).double()
    x, source, mask = rand(2, 5, 10), rand(2, 6, 7), padding_mask(torch.tensor([6, 2]), 6)
    key, value = (source @ layer.key_value.weight.T).chunk(2, dim=-1)
    mixed = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = (x @ layer.query.weight[part].T) @ key[..., part].mT
        mixed.append(scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1) @ value[..., part])
    expected = torch.cat(mixed, dim=-1) @ layer.output.weight.T
    torch.testing.assert_close(layer(x, source, mask), expected, **EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
def test_keys_and_values_of_a_source_serve_many_steps(kernels):
    layer = SourceAttention(16, 4, 2, d_source=6, bias=True, std=0.3, output_std=0.3, kernels=kernels).double()
    x, source, mask = rand(2, 5, 16), rand(2, 7, 6), padding_mask(torch.tensor([7, 2]), 7)
    kept = layer.keys_values(source)
    steps = torch.cat([layer.attend(x[:, step : step + 1], *kept, mask) for step in range(5)], dim=1)
    torch.testing.assert_close(steps, layer(x, source, mask), **EXACT)
    strong = torch.full((4, 1, 7), -1e9, dtype=torch.float64).index_fill(-1, torch.tensor([1]), 0.0)
    chosen = layer.attend(x, *(part[:, :, 1:2] for part in kept))
    torch.testing.assert_close(layer.attend(x, *kept, bias=strong), chosen, **EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("window", [0, 1, 2, 9])
@pytest.mark.parametrize("n_past", [0, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_scores_fall_with_the_distance_and_end_at_the_window(kernels, window, n_past, biased):
    layer = SelfAttention(12, 3, 1, std=0.3, output_std=0.3, alibi=True, window=window, kernels=kernels).double()
    x, real = rand(2, 6, 12), padding_mask(torch.tensor([6, 4]), 6)
    bias = rand(3, 6 - n_past, 6) if biased else None
    cache = KVCache(1, 2, 1, 6, 4, dtype=torch.float64)
    if n_past:
        layer(x[:, :n_past], causal=True, cache=cache)
        cache.advance(n_past)
    mask = causal_mask(6 - n_past, 6) & real
    got = layer(x[:, n_past:], mask, cache=cache, bias=bias)
    query, key, value = layer.queries_keys_values(x)
    mixed = torch.zeros(2, 6, 12, dtype=torch.float64)
    for b, head, t in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(n_past, 6)).tolist():
        scores = {
            s: query[b, head, t] @ key[b, 0, s] / 2.0
            - (t - s) * [2.0**-4, 2.0**-8, 2.0**-2][head]
            + (bias[head, t - n_past, s] if biased else 0.0)
            for s in range(t + 1)
            if real[b, 0, 0, s] and (not window or t - s < window)
        }
        if scores:
            weights = torch.stack(list(scores.values())).softmax(0)
            mixed[b, t, 4 * head : 4 * head + 4] = weights @ value[b, 0, list(scores)]
    torch.testing.assert_close(got, layer.output(mixed[:, n_past:]), **EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("window", [1, 3, 5, 8])
@pytest.mark.parametrize("n_queries", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_of_any_kernel(kernels, window, n_queries, masked):
    inputs = rand(2, 4, n_queries, 8), rand(2, 2, 5, 8), rand(2, 2, 5, 8, seed=1)
    mask = padding_mask(torch.tensor([0, 3]), 5) if masked else None
    near = [[0 <= (t + 5 - n_queries) - s < window for s in range(5)] for t in range(n_queries)]
    allowed = torch.tensor(near) if mask is None else torch.tensor(near) & mask
    ours = gradients(lambda q, k, v: mix_heads(q, k, v, mask, kernels=kernels, window=window), *inputs)
    oracle = gradients(lambda q, k, v: attention(q, k, v, allowed), *inputs)
    torch.testing.assert_close(ours, oracle, **EXACT)


def test_bf16_models_count_distances_exactly():
    layer = SelfAttention(8, 2, 2, alibi=True).bfloat16()
    bias = add_alibi(None, layer.slopes, 1, 1000)
    assert bias.dtype == torch.float32 and bias[0, 0, 0] == -999 * 2.0**-4


def test_unknown_layouts_are_refused():
    with pytest.raises(ConfigError, match="layout is 'neox'"):
        SelfAttention(8, 2, 2, rotary_layout="neox")


def test_a_fixed_scale_is_no_weight():
    for layer in (SelfAttention(8, 2, 2, scale=1.0), CrossAttention(8, 2, 2, scale=1.0)):
        assert all(name.endswith("weight") for name in layer.state_dict())
    with pytest.raises(ConfigError, match="multiple"):
        SelfAttention(16, 4, 3, d_head=8)


def test_bf16_products_stay_close_to_the_exact_answer():
    layer = SelfAttention(32, 4, 4, std=0.2, output_std=0.2)
    x = rand(2, 9, 32)
    exact = layer.double()(x, causal=True)
    rough = layer.bfloat16()(x.bfloat16(), causal=True)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.double(), exact, rtol=0.05, atol=0.02)


def test_sections_are_the_rows_of_queries_keys_and_values():
    layer = SelfAttention(16, 4, 2)
    assert layer.sections == (16, 8, 8) and layer.qkv.weight.shape == (32, 16)


def test_self_attention_refuses_uneven_heads():
    for n_heads, n_kv_heads in ((3, 3), (4, 3)):
        with pytest.raises(ConfigError, match="multiple"):
            SelfAttention(16, n_heads, n_kv_heads)


def make_cache():
    return KVCache(n_layers=2, batch_size=1, n_kv_heads=2, max_seq_len=4, d_head=3, dtype=torch.float64)


def test_cache_gives_back_everything_written():
    cache, key, value = make_cache(), rand(1, 2, 4, 3), rand(1, 2, 4, 3, seed=1)
    for start, end in ((0, 3), (3, 4)):
        for layer in range(2):
            keys, values = cache.update(layer, key[:, :, start:end] + layer, value[:, :, start:end] - layer)
            assert torch.equal(keys, key[:, :, :end] + layer) and torch.equal(values, value[:, :, :end] - layer)
        cache.advance(end - start)
    assert cache.length == 4 and cache.n_bytes == 2 * 2 * 2 * 4 * 3 * 8
    cache.reset()
    assert cache.length == 0


def test_cache_refuses_before_it_overruns():
    cache = make_cache()
    cache.advance(3)
    before = cache.keys.clone()
    with pytest.raises(ShapeError, match="3 of 4 positions, 2 more"):
        cache.update(0, rand(1, 2, 2, 3), rand(1, 2, 2, 3))
    with pytest.raises(ShapeError, match="2 more"):
        cache.advance(2)
    assert torch.equal(cache.keys, before) and cache.length == 3


@pytest.mark.parametrize("shape", [(2, 2, 1, 3), (1, 1, 1, 3), (1, 2, 1, 4)], ids=str)
def test_cache_refuses_other_shapes(shape):
    with pytest.raises(ShapeError, match="do not fit"):
        make_cache().update(0, rand(*shape), rand(*shape))


def test_cache_refuses_negative_sizes():
    with pytest.raises(ShapeError, match="negative"):
        KVCache(1, -1, 1, 1, 1)
