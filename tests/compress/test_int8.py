"""Activations in eight bits: ranges, LLM.int8(), SmoothQuant, integers; against torch, bitsandbytes, fractions."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from minillm.compress.activations import AffineRange, affine_range, quantize_rows, record_ranges
from minillm.compress.integer_only import fixed_point, integer_linear, scale_down
from minillm.compress.llm_int8 import LLMInt8Linear, int8_product, integer_product, mixed_product, outlier_columns
from minillm.compress.smoothquant import smooth_model, smoothing_scales
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models.gpt import GPT, GPTConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.7), (0.4, 5.0), (-3.1, -0.2), (-2.0, 0.0), (0.0, 1e-3)])
def test_an_affine_range_rounds_as_torch_does_and_meets_zero(low, high, bits):
    found = affine_range(low, high, bits)
    x = torch.linspace(low - 1.0, high + 1.0, 501)
    expected = torch.fake_quantize_per_tensor_affine(x, found.scale, found.zero, 0, 2**bits - 1)
    torch.testing.assert_close(found.rounded(x), expected, rtol=1e-6, atol=1e-6 * found.scale)
    assert 0 <= found.zero < 2**bits and found.values(torch.tensor(found.zero)).item() == 0.0
    inside = torch.linspace(min(low, 0.0), max(high, 0.0), 301)
    assert ((found.rounded(inside) - inside).abs() <= found.scale * 0.5001 + found.scale * 0.5 * (bits == 2)).all()


def test_ranges_that_are_none():
    assert affine_range(0.0, 0.0) == AffineRange(1.0, 0)
    for low, high in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ConfigError, match="expected finite numbers in order"):
            affine_range(low, high)
    with pytest.raises(ConfigError, match="2 to 8 bits"):
        affine_range(0.0, 1.0, bits=9)


def test_rows_have_their_own_scales_and_zero_rows_stay_zero():
    x = normal(5, 33) * torch.tensor([1.0, 1e-3, 1e4, 0.0, 1e-30])[:, None]
    codes, scale = quantize_rows(x)
    assert codes.dtype == torch.int8 and codes[[0, 1, 2, 4]].abs().amax(-1).tolist() == [127] * 4
    assert ((codes * scale - x).abs() <= scale * 0.5001).all() and (codes[3] == 0).all() and scale[3] == 1
    assert quantize_rows(x, bits=4)[0].abs().max() == 7
    with pytest.raises(DataError, match="NaN or infinite"):
        quantize_rows(torch.tensor([[1.0, float("inf")]]))


def test_recorded_ranges_are_the_ends_of_what_flowed():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    batches = [normal(7, 4, seed=seed) for seed in range(3)]
    inner = torch.cat([model[:2](batch) for batch in batches])
    ranges = record_ranges(model, ["0", "2"], batches)
    assert ranges["2"] == (inner.min().item(), inner.max().item())
    assert ranges["0"] == (torch.cat(batches).min().item(), torch.cat(batches).max().item())
    assert not model[0]._forward_pre_hooks
    batches[1][2, 3] = 1000.0
    assert record_ranges(model, ["0"], batches)["0"][1] == 1000.0
    assert record_ranges(model, ["0"], batches, coverage=0.9)["0"][1] < 3.0
    with pytest.raises(DataError, match="no text"):
        record_ranges(model, ["0"], [])
    with pytest.raises(ConfigError, match="coverage"):
        record_ranges(model, ["0"], batches, coverage=0.0)


def test_outlier_columns_are_those_with_one_large_number():
    x = normal(3, 4, 10).clamp(-3, 3)
    x[0, 1, 2], x[2, 3, 7] = -6.0, 6.5
    assert outlier_columns(x).nonzero().flatten().tolist() == [2, 7]
    assert not outlier_columns(x, float("inf")).any()


def test_products_of_integers_are_exact_where_floats_are_not():
    codes = torch.randint(-127, 128, (3, 3000), generator=seeded()).to(torch.int8)
    weight = torch.randint(-127, 128, (5, 3000), generator=seeded(1)).to(torch.int8)
    rows, others = codes.tolist(), weight.tolist()
    expected = [[sum(a * b for a, b in zip(row, other, strict=True)) for other in others] for row in rows]
    product = integer_product(codes, weight)
    assert product.dtype == torch.int32 and product.tolist() == expected
    with pytest.raises(ShapeError, match="width 3000"):
        integer_product(codes, weight[:, :5])


def test_outliers_ruin_the_plain_product_and_not_the_mixed_one():
    """A constructed layer: 3 of 128 columns are 60 times as large. Their rows' scales cost the others their bits."""
    x, weight = normal(64, 128), normal(96, 128, seed=1) / 11
    x[:, [5, 40, 99]] *= 60
    weight[:, [5, 40, 99]] /= 60
    exact = x @ weight.T
    stored = quantize_rows(weight)
    errors = [
        ((product - exact).norm() / exact.norm()).item()
        for product in (int8_product(x, *stored), mixed_product(x, *stored))
    ]
    assert errors[0] > 0.15 and errors[1] < 0.5 * errors[0]
    torch.testing.assert_close(mixed_product(x, *stored, float("inf")), int8_product(x, *stored))
    everything = mixed_product(x, *stored, 1e-9)
    torch.testing.assert_close(everything, x @ (stored[0] * stored[1]).T, rtol=1e-4, atol=1e-4)


@pytest.mark.oracle
def test_vectorwise_codes_and_products_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    x, weight = normal(16, 64).half(), normal(24, 64, seed=1).half()
    x[:, 7] = 20 * x[:, 7].sign()  # small numbers of such a column enter bitsandbytes' scales, not those of the paper
    codes, scale, _ = functional.int8_vectorwise_quant(weight)
    ours = quantize_rows(weight.float())
    assert (codes - ours[0]).abs().max() <= 1 and (codes != ours[0]).float().mean() < 0.005
    torch.testing.assert_close(scale[:, None].float() / 127, ours[1])
    x_codes, x_scale, columns = functional.int8_vectorwise_quant(x, threshold=6.0)
    assert columns.tolist() == outlier_columns(x.float()).nonzero().flatten().tolist()
    inner = functional.int8_linear_matmul(x_codes, codes)
    expected = inner.float() * x_scale[:, None].float() * scale.float() / 127**2
    kept = x.float()[:, columns] @ (codes[:, columns] * scale[:, None].float() / 127).T
    found = mixed_product(x.float(), codes, scale[:, None].float() / 127)
    torch.testing.assert_close(found, expected + kept, rtol=0.02, atol=0.02)


def test_a_layer_of_llm_int8():
    layer = nn.Linear(48, 20)
    packed = LLMInt8Linear(layer)
    x = normal(3, 5, 48)
    with torch.no_grad():
        assert (packed(x) - layer(x)).norm() / layer(x).norm() < 0.02
    x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(packed(x).sum(), x)[0], packed.matrix().sum(0).expand(3, 5, -1))
    with pytest.raises(ConfigError, match="packed already"):
        LLMInt8Linear(packed)
    with pytest.raises(ConfigError, match="threshold"):
        LLMInt8Linear(layer, 0.0)


def test_smoothing_makes_both_sides_equally_large():
    inputs, weights = torch.tensor([9.0, 0.25, 0.0, 2.0]), torch.tensor([1.0, 4.0, 3.0, 0.0])
    scales = smoothing_scales(inputs, weights)
    torch.testing.assert_close((inputs / scales)[:2], (weights * scales)[:2])
    assert scales[2:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(smoothing_scales(inputs, weights, 1.0)[:2], inputs[:2])
    torch.testing.assert_close(smoothing_scales(inputs, weights, 0.0)[:2], 1 / weights[:2])
    with pytest.raises(ConfigError, match="alpha=1.5"):
        smoothing_scales(inputs, weights, 1.5)
    with pytest.raises(ShapeError):
        smoothing_scales(inputs, weights[:2])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("norms_only", [True, False])
def test_a_smoothed_model_computes_the_same_and_its_outliers_are_gone(kind, norms_only):
    more = {"norm": "rms", "position": "rotary", "feed_forward": "swiglu", "n_kv_heads": 2}
    more = more if kind == "llama" else {"bias": True}
    config = GPTConfig(vocab_size=50, max_seq_len=32, n_layers=2, n_heads=4, d_model=32, **more)
    model = GPT(config, seeded()).double().eval()
    for block in model.blocks:
        block.attention_norm.weight.data[3] = 40.0
    ids = torch.randint(50, (2, 32), generator=seeded(1))
    before = model(ids)
    scales = smooth_model(model, [ids], norms_only=norms_only)
    torch.testing.assert_close(model(ids), before, rtol=1e-9, atol=1e-9)
    assert scales["blocks.0.attention.qkv"][3] > 3 * scales["blocks.0.attention.qkv"].median()
    assert ("blocks.0.attention.output" in scales) is not norms_only
    largest = {}
    handle = model.blocks[0].attention.qkv.register_forward_pre_hook(
        lambda layer, inputs: largest.update(x=inputs[0].abs().flatten(0, 1).amax(0))
    )
    model(ids)
    handle.remove()
    assert largest["x"][3] < 10 * largest["x"].median(), "it was 40 times as large, and the root of that is left"
    with pytest.raises(DataError, match="no text"):
        smooth_model(model, [])


@pytest.mark.parametrize("seed", range(3))
def test_a_fixed_point_number_is_as_near_as_31_bits_can_be(seed):
    for multiplier in (10.0 ** torch.empty(200, dtype=torch.float64).uniform_(-9, 3, generator=seeded(seed))).tolist():
        mantissa, shift = fixed_point(multiplier)
        assert 2**30 <= mantissa < 2**31
        wrong = abs(Fraction(mantissa) / Fraction(2) ** (31 + shift) - Fraction(multiplier))
        assert wrong <= Fraction(multiplier) / 2**31
    assert fixed_point(1.0 - 2.0**-40) == (2**30, -1)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="expected a positive number"):
            fixed_point(bad)


def test_scaling_down_is_exact_rational_arithmetic():
    sums = torch.randint(-(2**31), 2**31 - 1, (50,), generator=seeded()).int()
    for multiplier in (0.7, 1.3e-5, 0.00123, 0.4999999, 2.5, 3e-9):
        mantissa, shift = fixed_point(multiplier)
        found = scale_down(sums, torch.tensor(mantissa), torch.tensor(shift)).tolist()
        exact = [Fraction(total) * mantissa / Fraction(2) ** (31 + shift) for total in sums.tolist()]
        assert found == [(value + Fraction(1, 2)).__floor__() for value in exact]


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_of_whole_numbers_is_the_real_one_rounded_once(has_bias):
    """Against the same codes in fractions, the sums must agree to half a step of the output; beside the float layer."""
    weight, x = normal(12, 40) / 6, torch.relu(normal(30, 40, seed=1))
    bias = normal(12, seed=2) if has_bias else None
    exact = nn.functional.linear(x, weight, bias)
    inputs, outputs = affine_range(-0.4, x.max().item()), affine_range(exact.min().item(), exact.max().item())
    layer = integer_linear(weight, bias, inputs, outputs)
    codes = layer(inputs.codes(x))
    assert codes.dtype == torch.uint8 and layer.codes.dtype == torch.int8 and layer.bias.dtype == torch.int32
    rounded_weight = (quantize_rows(weight.double())[0] * quantize_rows(weight.double())[1])
    real = nn.functional.linear(inputs.rounded(x).double(), rounded_weight, None if bias is None else bias.double())
    ideal = real / outputs.scale + outputs.zero
    assert (codes - ideal.clamp(0, 255)).abs().max() <= 0.52
    assert (outputs.values(codes) - exact).norm() / exact.norm() < 0.02
    with pytest.raises(DataError, match="above 32 bits"):
        integer_linear(weight, torch.full((12,), 1e9), inputs, outputs)
