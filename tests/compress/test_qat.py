"""Rounding in training: torch's fake quantization, gradients, the learned step in closed form, layers, models."""

import math

import pytest
import torch
from helpers.adapt_models import ids_of, small_gpt
from torch import nn

from minillm import surgery
from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.nf4 import BLOCK
from minillm.compress.packed_linear import PackedLinear, pack_model, stored_bytes
from minillm.compress.qat import (
    FakeQuantLinear,
    LearnedStep,
    RangeRounding,
    convert,
    fake_quantize,
    initial_step,
    lsq_quantize,
    prepare_qat,
    scale_gradient,
    straight_through,
)
from minillm.errors import ConfigError, DataError
from minillm.nn.attention import StretchedLinear
from minillm.train.accumulation import accumulate_gradients

IDS = ids_of((3, 11))
SPECS = [
    QuantSpec(bits=8),
    QuantSpec(bits=4, group_size=5),
    QuantSpec(bits=2, group_size=-1),
    QuantSpec(bits=3, symmetric=True),
    QuantSpec(bits=4, symmetric=True, convention="full_range"),
    QuantSpec(bits=4, group_size=8, symmetric=True, convention="ggml"),
]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_straight_through_is_exact_one_way_and_the_identity_the_other():
    values = (normal(1000, dtype=torch.float32) * 10 ** normal(1000, seed=1, dtype=torch.float32)).requires_grad_()
    rounded, gradient = (values / 0.37).round() * 0.37, normal(1000, seed=2, dtype=torch.float32)
    out = straight_through(values, rounded)
    assert torch.equal(out, rounded)
    assert torch.equal(torch.autograd.grad(out, values, gradient)[0], gradient)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_fake_quantization_is_torchs(bits, signed):
    """Per tensor and per channel. Scales are powers of two, since torch multiplies by 1 / scale."""
    n_levels = 2**bits
    low, high = (-(n_levels // 2), n_levels // 2 - 1) if signed else (0, n_levels - 1)
    values = (normal(6, 50, seed=bits) * n_levels / 8).requires_grad_()
    values.data[0, :8] = torch.arange(8) * 0.25 * 0.5              # halves, which go to the even step
    gradient, zero = normal(6, 50, seed=1), 0 if signed else n_levels // 3
    theirs = torch.fake_quantize_per_tensor_affine(values, 0.25, zero, low, high)
    ours = fake_quantize(values, torch.tensor(0.25), torch.tensor(float(zero - low)), n_levels)
    assert torch.equal(ours, theirs)
    expected, found = (torch.autograd.grad(out, values, gradient)[0] for out in (theirs, ours))
    assert torch.equal(found, expected) and 0 < (found == 0).double().mean() < 0.9
    scales = 2.0 ** torch.randint(-4, 1, (6,), generator=torch.Generator().manual_seed(0))
    zeros = torch.randint(0, n_levels, (6,), generator=torch.Generator().manual_seed(1)) + low
    theirs = torch.fake_quantize_per_channel_affine(values.float(), scales, zeros.int(), 0, low, high).double()
    ours = fake_quantize(values, scales.double()[:, None], (zeros - low).double()[:, None], n_levels)
    assert torch.equal(ours, theirs)
    expected, found = (torch.autograd.grad(out, values, gradient)[0] for out in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_by_the_scale_is_torchs_too():
    values, scale = normal(400, dtype=torch.float32), torch.tensor([0.25], requires_grad=True)
    theirs_scale, zero = scale.detach().clone().requires_grad_(), torch.tensor([2.0])
    gradient = normal(400, seed=1, dtype=torch.float32)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(values, theirs_scale, zero, 0, 7, 1.0)
    ours = fake_quantize(values, scale, zero, 8)
    assert torch.equal(ours, theirs)
    found, expected = (torch.autograd.grad(out, by, gradient)[0] for out, by in ((ours, scale), (theirs, theirs_scale)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fake_quantization_rounds_to_the_grid_bit_by_bit():
    for spec in SPECS:
        weight = normal(5, 23, seed=3, dtype=torch.float32)
        assert torch.equal(RangeRounding(spec)(weight), round_to_grid(weight, stored(find_grid(weight, spec))))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_learned_step_by_the_formula(bits):
    n_below, n_above = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    values, step = (3 * normal(4, 30)).requires_grad_(), (0.2 + normal(4, 1, seed=1).abs() / n_above).requires_grad_()
    gradient = normal(4, 30, seed=2)
    out = lsq_quantize(values, step, n_below, n_above, n_sharing=30)
    ratio = (values / step).detach()
    under, over = ratio <= -n_below, ratio >= n_above
    codes = torch.where(under, -n_below, torch.where(over, n_above, ratio.round()))
    torch.testing.assert_close(out, codes * step, rtol=1e-14, atol=1e-14)
    by_values, by_step = torch.autograd.grad(out, (values, step), gradient)
    torch.testing.assert_close(by_values, gradient * (~under & ~over), rtol=1e-14, atol=1e-14)
    slopes = torch.where(under, -n_below, torch.where(over, n_above, ratio.round() - ratio))
    expected = (gradient * slopes).sum(-1, keepdim=True) / math.sqrt(30 * n_above)
    torch.testing.assert_close(by_step, expected, rtol=1e-12, atol=1e-12)


def test_gradient_of_the_step_is_the_slope_where_the_rounding_error_in_steps_is_held_still():
    """The surrogate: codes move with v / step, but keep the distance to the nearest whole number that they have now."""
    values, step, gradient = 2 * normal(200), torch.tensor(0.3, dtype=torch.float64), normal(200, seed=1)
    moved = (values / step).clamp(-4, 3)
    distance = moved.round() - moved

    def surrogate(s):
        return gradient @ (s * ((values / s).clamp(-4, 3) + distance))

    slope = (surrogate(step + 1e-6) - surrogate(step - 1e-6)) / 2e-6
    step.requires_grad_()
    found = torch.autograd.grad(lsq_quantize(values, step, 4, 3, n_sharing=1), step, gradient)[0] * math.sqrt(3)
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-6)


def test_learned_steps_begin_at_twice_the_mean_and_count_only_weights_that_are_there():
    weight = normal(3, 10)
    by_row = initial_step(weight, QuantSpec(bits=3, symmetric=True))
    torch.testing.assert_close(by_row, 2 * weight.abs().mean(1, keepdim=True) / math.sqrt(3))
    in_groups = initial_step(weight, QuantSpec(bits=4, group_size=4, symmetric=True))
    means = [weight[:, :4].abs().mean(1), weight[:, 4:8].abs().mean(1), weight[:, 8:].abs().mean(1)]
    torch.testing.assert_close(in_groups, 2 * torch.stack(means, 1) / math.sqrt(7))
    whole = initial_step(weight, QuantSpec(bits=4, group_size=-1, symmetric=True))
    torch.testing.assert_close(whole, (2 * weight.abs().mean() / math.sqrt(7)).expand(3, 1))
    with pytest.raises(DataError, match="not finite"):
        initial_step(weight / 0, QuantSpec(symmetric=True))


def test_a_learned_step_finds_the_best_grid():
    """Alone, with the weights held still, gradient descent ends where a search over all steps ends."""
    weight = normal(1, 4000)
    rounding = LearnedStep(weight, QuantSpec(bits=3, symmetric=True)).double()
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        (rounding(weight) - weight).square().sum().backward()
        optimizer.step()
    errors = {s: (weight - s * (weight / s).round().clamp(-4, 3)).square().mean().item() for s in
              [0.3 + 0.005 * n for n in range(120)]}  # fmt: skip
    found = (rounding(weight) - weight).square().mean().item()
    assert found < 1.02 * min(errors.values()) and abs(rounding.step.item() - min(errors, key=errors.get)) < 0.03


def test_scale_gradient():
    x, gradient = normal(5).requires_grad_(), normal(5, seed=1)
    out = scale_gradient(x, 0.3)
    assert torch.equal(out, x)
    torch.testing.assert_close(torch.autograd.grad(out, x, gradient)[0], 0.3 * gradient, rtol=1e-15, atol=1e-15)


HOWS = [(f"{spec.bits} bits, {spec.group_size}, {spec.convention}", spec) for spec in SPECS] + [
    (f"learned, {spec.bits} bits, {spec.group_size}", lambda weight, spec=spec: LearnedStep(weight, spec))
    for spec in (QuantSpec(bits=2, symmetric=True), QuantSpec(bits=4, group_size=6, symmetric=True))
]


@pytest.mark.parametrize("how", [how for _, how in HOWS], ids=[name for name, _ in HOWS])
def test_a_model_learns_with_rounded_weights_and_is_stored_as_it_was_trained(how):
    model = small_gpt(dtype=torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    operation = prepare_qat(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = IDS[:, :-1], IDS[:, 1:]
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(accumulate_gradients(model, inputs, targets, 1).item())
        optimizer.step()
    assert losses[-1] < losses[0]
    trained = model(IDS)
    fake = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)}
    matrices = {name: layer.weight.detach().clone() for name, layer in fake.items()}
    conversion = convert(model)
    packed = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert packed.keys() == fake.keys() and all(torch.equal(packed[name].weight, matrices[name]) for name in packed)
    torch.testing.assert_close(model(IDS), trained, rtol=1e-5, atol=1e-5)
    conversion.restore()
    torch.testing.assert_close(model(IDS), trained, rtol=0, atol=0)
    operation.restore()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and any(not torch.equal(after[name], before[name]) for name in before)


def test_bytes_of_a_converted_model():
    layer = nn.Sequential(nn.Linear(64, 32, bias=False))
    prepare_qat(layer, QuantSpec(bits=4, group_size=32, symmetric=True))
    conversion = convert(layer)
    assert 64 * 32 // 2 + 2 * 64 <= stored_bytes(layer) <= 64 * 32 // 2 + 4 * 64
    conversion.restore()


def test_layers_of_other_kinds_are_rounded_too():
    stretched = StretchedLinear(6, 4, True, stretch=2.0)
    layer = FakeQuantLinear(stretched, RangeRounding(QuantSpec(bits=8)))
    x = normal(5, 6, dtype=torch.float32)
    torch.testing.assert_close(layer(x), stretched(x), rtol=0.02, atol=0.002)
    narrow = FakeQuantLinear(nn.Linear(6, 4).bfloat16(), LearnedStep(torch.ones(4, 6), QuantSpec(symmetric=True)))
    narrow(x.bfloat16()).sum().backward()
    assert narrow.base.weight.grad.dtype == torch.bfloat16 and narrow.rounding.step.grad.dtype == torch.float32


def test_what_cannot_be_prepared_is_refused_and_stays_as_it_was():
    model = small_gpt()
    with pytest.raises(ConfigError, match="prepare_qat before"):
        convert(model)
    prepare_qat(model, QuantSpec(), targets="qkv").restore()
    operation = prepare_qat(model, QuantSpec())
    with pytest.raises(ConfigError, match="rounds its weights already"):
        prepare_qat(model, QuantSpec())
    operation.restore()
    with pytest.raises(ConfigError, match="learned step"):
        prepare_qat(model, lambda weight: LearnedStep(weight, QuantSpec()))
    assert not any(isinstance(module, FakeQuantLinear) for module in model.modules())
    pack_model(model, block_size=BLOCK)
    with pytest.raises(ConfigError, match="packed already"):
        prepare_qat(model, QuantSpec())
    tied = nn.ModuleDict({"table": nn.Embedding(3, 2), "out": nn.Linear(2, 3, bias=False)})
    tied["out"].weight = tied["table"].weight
    with pytest.raises(ConfigError, match="shares its matrix"):
        prepare_qat(tied, QuantSpec())
    with pytest.raises(ConfigError, match="no linear layer"):
        FakeQuantLinear(nn.Embedding(3, 2), RangeRounding(QuantSpec()))
    assert not surgery.is_packed(tied["out"])


def test_a_step_that_crosses_zero_still_makes_a_grid():
    rounding = LearnedStep(torch.ones(2, 4), QuantSpec(bits=3, symmetric=True))
    rounding.step.data = torch.tensor([[-0.5], [0.0]])
    weight = normal(2, 4, dtype=torch.float32).requires_grad_()
    out = rounding(weight)
    assert torch.equal(out[0], ((weight[0] / 0.5).round().clamp(-4, 3) * 0.5)) and out.isfinite().all()
    out.sum().backward()
    assert weight.grad.isfinite().all() and rounding.step.grad.isfinite().all()
