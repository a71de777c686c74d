"""Mixed precision: the best bits for a budget against all there are, sensitivities, and weights that are kept exact."""

import itertools

import pytest
import torch
from torch import nn

from minillm.compress.grid import QuantSpec
from minillm.compress.mixed import DenseAndSparseLinear, allocate_bits, sensitivity, split_outliers
from minillm.compress.packed_linear import stored_bytes
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError, ShapeError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_of_bits_is_better(seed):
    values = torch.rand(5, 4, generator=seeded(seed)).sort(-1, descending=True).values.tolist()
    rises = {f"layer {i}": dict(zip((2, 3, 4, 8), row, strict=True)) for i, row in enumerate(values)}
    sizes = {name: int(torch.randint(1, 9, (), generator=seeded(seed + i))) * 10 for i, name in enumerate(rises)}
    for budget in (2.0, 2.3, 3.1, 4.0, 5.55, 8.0):
        chosen = allocate_bits(rises, sizes, budget)
        best = min(
            sum(rises[name][bits] for name, bits in zip(rises, choice, strict=True))
            for choice in itertools.product((2, 3, 4, 8), repeat=5)
            if sum(sizes[name] * bits for name, bits in zip(rises, choice, strict=True))
            <= budget * sum(sizes.values()) + 1e-6
        )
        assert sum(rises[name][bits] for name, bits in chosen.items()) == pytest.approx(best, abs=1e-12)
        assert sum(sizes[name] * bits for name, bits in chosen.items()) <= budget * sum(sizes.values()) + 1e-6


def test_a_budget_below_the_fewest_bits_is_refused_and_useless_bits_are_not_spent():
    rises, sizes = {"a": {3: 1.0, 4: 1.0}, "b": {2: 0.5, 4: 0.6}}, {"a": 10, "b": 10}
    with pytest.raises(ConfigError, match="the fewest bits everywhere are 2.50"):
        allocate_bits(rises, sizes, 2.4)
    assert allocate_bits(rises, sizes, 2.5) == allocate_bits(rises, sizes, 8.0) == {"a": 3, "b": 2}


def test_sensitivity_is_the_loss_with_one_layer_rounded_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4))
    x, target = torch.randn(50, 24, generator=seeded()), torch.randn(50, 4, generator=seeded(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(some):
        return nn.functional.mse_loss(some(x), target).item()

    rises = sensitivity(model, ["0", "2"], [QuantSpec(2), QuantSpec(4, 8)], loss)
    for name, spec in itertools.product(("0", "2"), (QuantSpec(2), QuantSpec(4, 8))):
        layer = model.get_submodule(name)
        changed = nn.Sequential(*model)
        changed[int(name)] = QuantLinear(layer, spec)
        assert rises[name][spec.bits] == pytest.approx(loss(changed) - loss(model), abs=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def fails(some):
        if fails.calls:
            raise RuntimeError
        fails.calls += 1
        return 0.0

    fails.calls = 0
    with pytest.raises(RuntimeError):
        sensitivity(model, ["0"], [QuantSpec(2)], fails)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_most_important_weights_are_taken_out():
    weight = torch.randn(13, 17, generator=seeded())
    size = torch.rand(17, generator=seeded(1)) + 0.01
    for importance, given in ((weight.abs(), None), (weight.abs() * size, size)):
        dense, places = split_outliers(weight, 0.1, given)
        assert len(places) == 22 and places.tolist() == sorted(importance.flatten().topk(22).indices.tolist())
        expected = weight.clone().flatten()
        expected[places] = 0
        assert torch.equal(dense.flatten(), expected)
    assert len(split_outliers(weight, 0.0)[1]) == 0 and len(split_outliers(weight, 1.0)[1]) == 221
    assert split_outliers(torch.ones(2, 3), 0.5)[1].tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="share=1.5"):
        split_outliers(weight, 1.5)
    with pytest.raises(ShapeError, match="input_size"):
        split_outliers(weight, 0.5, size[:3])


def test_a_layer_keeps_its_outliers_and_counts_them():
    layer = nn.Linear(64, 40)
    layer.weight.data.flatten()[::100] *= 30
    spec = QuantSpec(2, 16)
    packed, plain = DenseAndSparseLinear(layer, spec, share=0.011), QuantLinear(layer, spec)
    places = packed.places.long()
    assert torch.equal(packed.matrix().flatten()[places], layer.weight.detach().flatten()[places].half().float())
    errors = [(some.matrix() - layer.weight).norm().item() for some in (packed, plain)]
    assert errors[0] < 0.75 * errors[1]
    assert stored_bytes(packed) == stored_bytes(plain) + 28 * (4 + 2)
    x = torch.randn(3, 64, generator=seeded(), requires_grad=True)
    torch.testing.assert_close(packed(x), nn.functional.linear(x, packed.matrix(), layer.bias))
    again = DenseAndSparseLinear.empty(layer, **packed.settings())
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again.matrix(), packed.matrix())
    with pytest.raises(ConfigError, match="packed already"):
        DenseAndSparseLinear(plain, spec)
