"""Binary and ternary weights: least squares by brute force and in closed form, splitting, bytes, layers, models."""

import itertools
import math

import pytest
import torch
from helpers.adapt_models import ids_of, small_gpt
from torch import nn

from minillm import surgery
from minillm.compress.binary import (
    best_ternary,
    binarize,
    pack_trits,
    split_ternary,
    ternarize,
    unpack_trits,
)
from minillm.compress.binary_linear import (
    BinaryLinear,
    BinaryRounding,
    TernaryLinear,
    TernaryRounding,
    TwiceBinaryLinear,
    TwiceBinaryRounding,
    split_layers,
)
from minillm.compress.packed_linear import quantize_model, stored_bytes
from minillm.compress.qat import FakeQuantLinear, convert, prepare_qat
from minillm.compress.saved import forms_of, rebuild
from minillm.errors import ConfigError, DataError, ShapeError

IDS = ids_of((2, 9))


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(weight, found):
    signs, alpha = found
    return (weight - signs * alpha).square().sum(-1)


def least_error(weight, values):
    """Over all signs from `values`, each with its best alpha: for one row."""
    errors = []
    for chosen in itertools.product(values, repeat=len(weight)):
        signs = torch.tensor(chosen, dtype=weight.dtype)
        alpha = (weight @ signs / signs.square().sum()).clamp(min=0) if signs.any() else torch.zeros(())
        errors.append((weight - alpha * signs).square().sum())
    return min(errors)


@pytest.mark.parametrize("seed", range(3))
def test_no_signs_and_no_alpha_are_better(seed):
    row = normal(6, seed=seed)
    for make, values in ((binarize, (-1.0, 1.0)), (best_ternary, (-1.0, 0.0, 1.0))):
        torch.testing.assert_close(error(row, make(row)), least_error(row, values), rtol=1e-12, atol=1e-12)
    assert error(row, ternarize(row)) >= error(row, best_ternary(row)) - 1e-12


def test_errors_of_normal_weights_are_those_of_the_integrals():
    """Binary: 1 - 2/pi. Ternary with threshold t: 1 - (2 phi(t))^2 / (2 Q(t)); t = 0.7 sqrt(2/pi), at best 0.6120."""
    weight = normal(1, 400_000, seed=4)

    def ternary(t):
        density, tail = math.exp(-t * t / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(t / math.sqrt(2))
        return 1 - 4 * density**2 / (2 * tail)

    least = min(ternary(t / 1000) for t in range(1, 2000))
    expected = (1 - 2 / math.pi, ternary(0.7 * math.sqrt(2 / math.pi)), least)
    for make, right in zip((binarize, ternarize, best_ternary), expected, strict=True):
        assert abs(error(weight, make(weight)).item() / weight.numel() - right) < 0.003


def test_rows_are_rounded_one_by_one_and_zeros_are_no_trouble():
    weight = normal(2, 3, 7)
    weight[0, 1] = 0.0
    weight[1, 2, :] = 2.5
    for make in (binarize, ternarize, best_ternary):
        signs, alpha = make(weight)
        assert signs.dtype == alpha.dtype == torch.float64 and alpha.shape == (2, 3, 1)
        for place in itertools.product(range(2), range(3)):
            alone = make(weight[place])
            assert torch.equal(alone[0], signs[place]) and torch.allclose(alone[1], alpha[place], rtol=1e-14)
        assert not (signs * alpha)[0, 1].any()
        assert (signs * alpha)[1, 2].unique().tolist() == [2.5]


def test_alike_sizes_stay_or_go_together():
    weight = torch.tensor([[4.0, -4.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, 1.0, 0.0]])
    assert best_ternary(weight)[0].tolist() == [[1, -1, 0, 0, 0], [1, 1, -1, 1, 0]]


@pytest.mark.parametrize("shape", [(9,), (5, 64), (2, 3, 33)], ids=str)
def test_two_binary_forms_add_up_to_the_ternary_one(shape):
    weight = normal(*shape, seed=len(shape)) + 0.05
    first, second = split_ternary(weight)
    torch.testing.assert_close(first + second, weight, rtol=1e-13, atol=1e-13)
    (signs, alpha), halves = ternarize(weight), [binarize(half) for half in (first, second)]
    torch.testing.assert_close(sum(s * a for s, a in halves), signs * alpha, rtol=1e-13, atol=1e-13)
    assert first.ne(0).all() and second.ne(0).all()
    for _, half_alpha in halves:
        torch.testing.assert_close(half_alpha, alpha / 2, rtol=1e-13, atol=1e-13)


def test_splitting_rows_without_small_weights_and_of_zeros():
    weight = torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    first, second = split_ternary(weight)
    assert first.tolist() == second.tolist() == [[0.5, -0.5, 0.5], [0.0, 0.0, 0.0]]


ONE_SIDED = [1.0] + [0.15] * 9  # the threshold is 0.1645; what is below it adds up to 1.35, what stays to 1


def test_what_cannot_be_split_is_refused():
    with pytest.raises(DataError, match="outweigh"):
        split_ternary(torch.stack([normal(10), torch.tensor(ONE_SIDED, dtype=torch.float64)]))
    first, second = split_ternary(torch.tensor(ONE_SIDED) * torch.tensor([1.0, -1.0]).repeat(5))
    assert first.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("n_weights", [1, 4, 5, 7, 8, 40, 83])
def test_bytes_come_back(n_weights):
    generator = torch.Generator().manual_seed(n_weights)
    trits = torch.randint(-1, 2, (n_weights,), generator=generator)
    packed = pack_trits(trits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(n_weights / 5) and packed.max() <= 242
    assert unpack_trits(packed, n_weights).tolist() == trits.tolist()
    with pytest.raises(ShapeError, match="bytes were given"):
        unpack_trits(packed, n_weights + 5)


LAYERS = {
    "binary": (BinaryRounding, BinaryLinear, lambda o, i: o * math.ceil(i / 8)),
    "ternary": (TernaryRounding, TernaryLinear, lambda o, i: math.ceil(o * i / 5)),
    "best": (lambda: TernaryRounding(True), lambda layer: TernaryLinear(layer, True), lambda o, i: -(-o * i // 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_packed_layers_hold_what_was_trained(name):
    rounding, pack, n_bytes = LAYERS[name]
    layer = nn.Linear(13, 7)
    layer.weight.data = normal(7, 13, dtype=torch.float32)
    trained = FakeQuantLinear(layer, rounding())
    packed = trained.packed()
    assert isinstance(packed, type(pack(layer))) and torch.equal(packed.weight, trained.weight)
    x = normal(4, 13, seed=1, dtype=torch.float32)
    assert torch.equal(packed(x), trained(x))
    assert stored_bytes(packed) == n_bytes(7, 13) + 2 * 7 + 4 * 7
    with pytest.raises(ConfigError, match="packed already"):
        pack(packed)
    again = pack(nn.Linear(13, 7))
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again.weight, packed.weight)


def test_the_gradient_goes_straight_to_every_weight():
    for rounding in (BinaryRounding(), TernaryRounding(), TernaryRounding(best=True)):
        weight, gradient = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
        assert torch.equal(torch.autograd.grad(rounding(weight), weight, gradient)[0], gradient)
    rounding = TwiceBinaryRounding(normal(3, 5, seed=2))
    found = torch.autograd.grad(rounding(weight), (weight, rounding.second), gradient)
    assert all(torch.equal(one, gradient) for one in found)


def test_a_model_is_split_and_computes_the_same():
    model = small_gpt()
    prepare_qat(model, lambda _: TernaryRounding())
    before = model(IDS)
    n_parameters = surgery.count(model).total
    assert split_layers(model) == sum(isinstance(module, FakeQuantLinear) for module in model.modules())
    n_split = sum(module.base.weight.numel() for module in model.modules() if isinstance(module, FakeQuantLinear))
    assert surgery.count(model).total == n_parameters + n_split
    torch.testing.assert_close(model(IDS), before, rtol=1e-3, atol=1e-3)  # alphas are rounded to 16 bits
    trained = model(IDS)
    convert(model)
    assert torch.equal(model(IDS), trained)
    packed = [module for module in model.modules() if isinstance(module, TwiceBinaryLinear)]
    assert sum(layer.packed.numel() for layer in packed) == 2 * n_split // 8
    with pytest.raises(ConfigError, match="no layer rounds to ternary"):
        split_layers(model)


def test_twice_binary_from_one_weight():
    layer = nn.Linear(40, 3)
    twice, once = TwiceBinaryLinear(layer), TernaryLinear(layer)
    torch.testing.assert_close(twice.weight, once.weight, rtol=1e-3, atol=1e-3)
    assert torch.equal(twice.bias, layer.bias) and [name for name, _ in twice.named_parameters()] == ["bias"]
    with pytest.raises(ConfigError, match="packed already"):
        TwiceBinaryLinear(once)


@pytest.mark.parametrize("make", [BinaryLinear, TernaryLinear, TwiceBinaryLinear])
def test_models_of_these_layers_are_built_again_from_their_table(make):
    model, again = small_gpt(0), small_gpt(1)
    quantize_model(model, lambda _, layer: make(layer))
    rebuild(again, forms_of(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IDS), model(IDS))


def test_a_model_that_cannot_be_split_stays_as_it_was():
    model = small_gpt()
    prepare_qat(model, lambda _: TernaryRounding())
    layers = [module for module in model.modules() if isinstance(module, FakeQuantLinear)]
    row = layers[-1].base.weight.data[0]
    row[:] = torch.tensor(ONE_SIDED).repeat(len(row) // 10 + 1)[: len(row)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError):
        split_layers(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
