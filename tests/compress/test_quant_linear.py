"""Layers on grids: product and gradient, bytes, bit-exact saving, kernels beside the exact matrix, whole models."""

import copy
import io

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt
from torch import nn

from minillm import surgery
from minillm.compress import kernels, quant_linear
from minillm.compress.grid import Grid, QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.packed_linear import NF4Linear, quantize_model, stored_bytes
from minillm.compress.packing import packed_width
from minillm.compress.quant_linear import QuantLinear, use_backend
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.nn.attention import StretchedLinear

SPECS = [
    QuantSpec(8, symmetric=True),
    QuantSpec(8),
    QuantSpec(6, 16),
    QuantSpec(4, 32),
    QuantSpec(4, 32, True, "ggml"),
    QuantSpec(4, -1),
    QuantSpec(3, 16, True, "full_range"),
    QuantSpec(3),
    QuantSpec(2, 7),
]
SHAPES = [(48, 64), (7, 9), (1, 1)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of(d_out, d_in, bias=False, seed=0):
    layer = nn.Linear(d_in, d_out, bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=seeded(seed + d_out + d_in))
    return layer


def rounded(layer, spec):
    """An ordinary layer with the weights as they are stored."""
    plain = copy.deepcopy(layer)
    grid = stored(find_grid(layer.weight.detach(), spec))
    plain.weight.data = round_to_grid(layer.weight.detach(), grid)
    return plain


def relative(ours, expected):
    return float((ours.detach() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_and_gradient_are_those_of_the_rounded_matrix(spec, shape, monkeypatch):
    layer = layer_of(*shape, bias=True)
    packed, expected = QuantLinear(layer, spec), rounded(layer, spec)
    assert torch.equal(packed.weight, expected.weight)
    x = torch.randn(2, 3, shape[1], generator=seeded(1), requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for at_once in (1 << 22, 2 * shape[1]):  # whole, and two rows at a time
        monkeypatch.setattr(quant_linear, "AT_ONCE", at_once)
        out, gradient = packed(x), torch.randn(2, 3, shape[0], generator=seeded(2))
        assert torch.allclose(out, expected(y), atol=1e-5)
        (ours,) = torch.autograd.grad(out, x, gradient)
        (theirs,) = torch.autograd.grad(expected(y), y, gradient)
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stored_bytes_are_codes_scales_and_zeros(spec, shape):
    n_rows, n_columns = shape
    n_groups, grids = spec.n_groups(n_columns), 1 if spec.group_size == -1 else n_rows
    expected = n_rows * packed_width(n_columns, spec.bits) + 2 * grids * n_groups
    expected += 0 if spec.symmetric else grids * packed_width(n_groups, spec.bits)
    packed = QuantLinear(layer_of(*shape), spec)
    assert stored_bytes(packed) == expected
    file = io.BytesIO()
    torch.save([tensor.numpy().tobytes() for tensor in packed.state_dict().values()], file)
    assert sum(tensor.numel() * tensor.element_size() for tensor in packed.buffers()) == expected


def test_a_grid_that_is_given_is_kept_and_weights_on_it_are_not_changed():
    layer = layer_of(6, 20)
    grid = stored(find_grid(layer.weight.detach() * 0.8, QuantSpec(3, 8)))  # one that rounding would not find again
    layer.weight.data = round_to_grid(layer.weight.detach(), grid)
    packed = QuantLinear(layer, grid)
    assert torch.equal(packed.weight, layer.weight)
    again = QuantLinear(packed.unpacked(), packed.grid())
    assert torch.equal(again.packed, packed.packed)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_saved_numbers_come_back_bit_by_bit_into_an_empty_layer(spec):
    packed = QuantLinear(layer_of(9, 33), spec)
    empty = nn.Linear(33, 9, bias=False)
    nn.init.zeros_(empty.weight)
    other = QuantLinear(empty, QuantSpec(**packed.settings()))
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other.weight, packed.weight)
    assert other.spec == packed.spec


def test_other_number_formats_of_the_model_leave_the_stored_numbers_alone():
    packed = QuantLinear(layer_of(8, 16, bias=True), QuantSpec(4, 8))
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items() if name != "bias"}
    model = nn.Sequential(packed).to(torch.bfloat16)
    assert packed.weight.dtype == packed.bias.dtype == torch.bfloat16
    assert model(torch.zeros(1, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model.double()
    assert model(torch.zeros(1, 16, dtype=torch.float64)).dtype == torch.float64
    assert all(torch.equal(tensor, packed.state_dict()[name]) for name, tensor in before.items())
    assert packed.scales.dtype == torch.float16


KERNEL_CASES = [
    (QuantSpec(4, 32), "torch"),
    (QuantSpec(4, 64, True), "torch"),
    (QuantSpec(4), "torch"),
    (QuantSpec(3, 32), "torch"),
    (QuantSpec(2, 128, True, "ggml"), "torch"),
    (QuantSpec(8, symmetric=True), "torch"),
    (QuantSpec(8), "torch"),
    (QuantSpec(5), "torch"),
    (QuantSpec(8, symmetric=True), "dynamic"),
    (QuantSpec(8), "dynamic"),
    (QuantSpec(4), "dynamic"),
]


def fast_or_skip(layer, backend):
    try:
        assert layer.choose_backend(backend)
    except ConfigError:
        pytest.skip(f"torch has no kernel {backend} here")


@pytest.mark.parametrize(("spec", "backend"), KERNEL_CASES, ids=str)
@pytest.mark.parametrize("n_rows", [1, 5, 32])
def test_kernels_agree_with_the_exact_matrix(spec, backend, n_rows):
    layer = layer_of(64, 256, bias=True)
    packed = QuantLinear(layer, spec)
    x = torch.randn(n_rows, 1, 256, generator=seeded(4))
    exact = packed(x)
    fast_or_skip(packed, backend)
    with torch.no_grad():
        fast = packed(x)
    assert packed.packed.nbytes * 0.9 < packed.kernel.n_bytes < 64 * 256 * 1.1
    assert fast.shape == exact.shape and fast.dtype == exact.dtype
    assert 0 < relative(fast, exact) < (0.03 if backend == "dynamic" else 0.01)


def test_gradients_and_large_batches_go_by_the_exact_matrix():
    packed = QuantLinear(layer_of(64, 256), QuantSpec(4, 32))
    x = torch.randn(kernels.MAX_ROWS + 1, 256, generator=seeded(4))
    exact = packed(x)
    fast_or_skip(packed, "torch")
    assert torch.equal(packed(x), exact)
    assert not torch.equal(packed(x[:3]), exact[:3])
    assert torch.allclose(packed(x[:3].requires_grad_()), exact[:3], atol=1e-5)


def test_a_kernel_follows_numbers_that_are_loaded_and_leaves_with_the_processor():
    first, second = (QuantLinear(layer_of(64, 256, seed=seed), QuantSpec(4, 32)) for seed in (0, 1))
    fast_or_skip(first, "torch")
    first.load_state_dict(second.state_dict())
    with torch.no_grad():
        assert relative(first(torch.eye(256)[:8]), second(torch.eye(256)[:8])) < 0.01
    first.to("meta")
    assert first.kernel is None


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (QuantSpec(4, 32), (7, 64)),
        (QuantSpec(4, 20), (64, 60)),
        (QuantSpec(8, 32), (64, 64)),
        (QuantSpec(4, 32), (64, 70)),
    ],
    ids=str,
)
def test_where_there_is_no_kernel_auto_does_without_and_a_demand_is_refused(spec, shape):
    packed = QuantLinear(layer_of(*shape), spec)
    x = torch.randn(2, shape[1], generator=seeded(4))
    exact = packed(x)
    used = packed.choose_backend("auto")
    if not used:
        assert torch.equal(packed(x), exact)
        with pytest.raises(ConfigError, match="no kernel"):
            packed.choose_backend("torch")
        assert packed.backend == "dequant"


def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch):
    packed = QuantLinear(layer_of(64, 256), QuantSpec(4, 32))
    wrong = kernels.int4_kernel
    more = kernels.Kernel(lambda x: 1.1 * wrong(packed).multiply(x), 0)
    monkeypatch.setattr(kernels, "int4_kernel", lambda layer: more)
    assert not packed.choose_backend("auto")
    monkeypatch.setattr(kernels, "int4_kernel", wrong)
    monkeypatch.delattr(torch, "_weight_int4pack_mm_for_cpu")
    assert not packed.choose_backend("auto")
    with pytest.raises(ConfigError, match="unknown"):
        packed.choose_backend("cuda")
    with pytest.raises(ConfigError, match="unknown"):
        use_backend(nn.Sequential(packed), "cuda")


@pytest.mark.parametrize("make", [small_gpt, small_bert])
def test_whole_models(make):
    model = make().float().eval()
    ids, before = ids_of((2, 7)), stored_bytes(model)
    layers = surgery.find(model, (), surgery.is_linear, ("head",))
    expected = copy.deepcopy(model)
    for name in layers:
        weight = expected.get_submodule(name).weight.data
        weight.copy_(round_to_grid(weight, stored(find_grid(weight, QuantSpec(3, 8)))))
    seen = []
    operation = quantize_model(
        model, lambda name, layer: seen.append(name) or QuantLinear(layer, QuantSpec(3, 8)), progress=True
    )
    assert seen == list(layers)
    with torch.no_grad():
        assert torch.allclose(outputs(model, ids), outputs(expected, ids), atol=1e-5)
    assert stored_bytes(model) < before
    with pytest.raises(ConfigError, match="packed already"):
        quantize_model(model, lambda name, layer: NF4Linear(layer))
    operation.restore()
    assert stored_bytes(model) == before and not any(surgery.is_packed(module) for module in model.modules())


def outputs(model, ids):
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out[0]


def test_a_layer_that_cannot_be_packed_leaves_the_model_as_it_was():
    model = small_gpt()
    last = list(surgery.find(model, (), surgery.is_linear, ("head",)).values())[-1]
    with torch.no_grad():
        last.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="row 0, column 0"):
        quantize_model(model, lambda name, layer: QuantLinear(layer, QuantSpec(4, 8)))
    assert not any(surgery.is_packed(module) for module in model.modules())


def test_stretch_and_unpacking():
    layer = StretchedLinear(10, 6, True, stretch=3.0)
    layer.bias.data.normal_(generator=seeded(3))
    packed = QuantLinear(layer, QuantSpec(8))
    x = torch.randn(4, 10, generator=seeded(1))
    assert relative(packed(x), layer(x)) < 0.01
    assert torch.allclose(packed.unpacked()(x), packed(x), atol=1e-6)


def test_what_cannot_be_stored_is_refused():
    layer = layer_of(4, 8)
    packed = QuantLinear(layer, QuantSpec(4))
    with pytest.raises(ConfigError, match="packed already"):
        QuantLinear(packed, QuantSpec(4))
    with pytest.raises(ShapeError, match="width 9"):
        packed(torch.zeros(1, 9))
    grid = find_grid(layer.weight.detach(), QuantSpec(4))
    for zero in (grid.zero + 0.5, grid.zero + 16):
        with pytest.raises(ShapeError, match="cannot be stored"):
            QuantLinear(layer, Grid(grid.scale, zero, grid.spec))
    with pytest.raises(ShapeError, match="8 everywhere"):
        QuantLinear(layer, Grid(grid.scale, torch.zeros_like(grid.zero), QuantSpec(4, symmetric=True)))
    with pytest.raises(ShapeError, match="groups"):
        QuantLinear(layer, Grid(grid.scale, grid.zero, QuantSpec(4, 2)))
    assert "bits=4" in repr(packed) and "asymmetric" in repr(packed)
