"""Fastfood against its explicit matrix, intrinsic training against the chain rule, and a task of known dimension."""

import copy
import math

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from scipy.linalg import hadamard
from torch import nn
from torch.func import functional_call

from minillm import surgery
from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.fastfood import Fastfood, fast_walsh_hadamard, walsh_hadamard
from minillm.adapt.intrinsic import IntrinsicConfig, layer_of, smallest_dimension
from minillm.errors import ConfigError, ShapeError

IDS = ids_of((3, 9))
MODELS = {
    "gpt": (small_gpt, lambda model: model(IDS)),
    "llama": (lambda: small_gpt(norm="rms", position="rotary", feed_forward="swiglu", n_kv_heads=2,
                                tie_embeddings=False), lambda model: model(IDS)),
    "bert": (small_bert, lambda model: model(IDS)),
    "t5": (small_t5, lambda model: model(IDS, IDS[:, :5])),
}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def explicit(projection):
    """P as the product of its five matrices, with scipy's Hadamard matrix; (D, d)."""
    n = len(projection.order)
    h = torch.from_numpy(hadamard(n)).double()
    signs = projection.signs.double().repeat(n // len(projection.signs))
    order = torch.eye(n, dtype=torch.float64)[projection.order]
    product = h @ projection.normal.double().diag() @ order @ h @ signs.diag()
    return product[: projection.n_out, : projection.n_in]


@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 256, 1024])
def test_both_transforms_are_the_hadamard_matrix(size):
    x = torch.randn(3, size, generator=seeded(), dtype=torch.float64)
    expected = x @ torch.from_numpy(hadamard(size)).double()
    torch.testing.assert_close(walsh_hadamard(x), expected)
    torch.testing.assert_close(fast_walsh_hadamard(x), expected)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), size * x)


@pytest.mark.parametrize("size", [0, 3, 12])
def test_other_sizes_are_refused(size):
    with pytest.raises(ShapeError, match=f"dimension is {size}, expected a power of two"):
        walsh_hadamard(torch.ones(2, size))
    with pytest.raises(ShapeError, match="power of two"):
        fast_walsh_hadamard(torch.ones(2, size))


@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (7, 3), (64, 64), (100, 5), (33, 17)])
def test_fastfood_is_its_explicit_matrix_and_its_transpose(n_out, n_in):
    projection = Fastfood(n_out, n_in, seed=n_out)
    matrix = explicit(projection)
    x, y = (torch.randn(n, generator=seeded(n), dtype=torch.float64) for n in (n_in, n_out))
    torch.testing.assert_close(projection(x), matrix @ x)
    torch.testing.assert_close(projection.transposed(y), matrix.T @ y)


def test_lengths_stay_on_average_and_columns_are_nearly_at_right_angles():
    x = torch.randn(20, generator=seeded(), dtype=torch.float64)
    ratios = torch.stack([Fastfood(3000, 20, seed)(x).norm() / x.norm() for seed in range(60)])
    assert abs(float(ratios.square().mean()) - 1) < 0.02 and float(ratios.std()) < 0.06
    columns = torch.stack([Fastfood(3000, 20, 1)(unit) for unit in torch.eye(20, dtype=torch.float64)])
    angles = columns @ columns.T - torch.eye(20)
    assert angles.abs().max() < 0.15


def test_a_seed_means_one_projection_in_every_number_format():
    one, other = Fastfood(50, 4, 3), Fastfood(50, 4, 3).double()
    torch.testing.assert_close(one(torch.ones(4)).double(), other(torch.ones(4).double()), rtol=1e-5, atol=1e-6)
    assert torch.equal(one.normal.double(), other.normal)
    assert not torch.equal(one.normal, Fastfood(50, 4, 4).normal)


@pytest.mark.parametrize("structure", ["did", "said"])
@pytest.mark.parametrize("name", MODELS)
def test_results_and_gradients_are_those_of_start_plus_p_theta(name, structure):
    """The model with start + factor * P theta written into its parameters, and the chain rule with the explicit P."""
    make, run = MODELS[name]
    plain, model = make().eval(), make().eval()
    start = run(model).detach()
    adapted = adapt(model, IntrinsicConfig(dimension=24, structure=structure))
    assert torch.equal(run(model), start)
    trained = adapted.trainable_parameters()
    theta, factors = trained["theta"], trained.get("factors")
    assert sum(p.numel() for p in trained.values()) == adapted.count().trainable == 24
    theta.data.normal_(0.0, 3.0, generator=seeded())
    if factors is not None:
        factors.data.normal_(1.0, 0.3, generator=seeded(1))
    named = dict(plain.named_parameters())
    layers = list(dict.fromkeys(map(layer_of, named)))
    unit_steps = [adapted.delta.shift.projection(unit) for unit in torch.eye(len(theta), dtype=torch.float64)]
    steps = (torch.stack(unit_steps, dim=1) @ theta).split([p.numel() for p in named.values()])
    moved = {}
    for (key, parameter), step in zip(named.items(), steps, strict=True):
        factor = 1.0 if factors is None else factors[layers.index(layer_of(key))]
        moved[key] = parameter.detach() + factor * step.view_as(parameter)

    class Run(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain

        def forward(self):
            return run(self.inner)

    expected = functional_call(Run(), {f"inner.{key}": value for key, value in moved.items()}, ())
    out = run(model)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert (out - start).abs().max() > 1e-2
    want = torch.autograd.grad(expected.square().sum(), list(trained.values()))
    out.square().sum().backward()
    for parameter, gradient in zip(trained.values(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-8)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("structure", ["did", "said"])
@torch.no_grad()
def test_the_base_comes_back_to_the_bit(structure):
    model = small_gpt().eval()
    out, before = model(IDS), {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    adapted = adapt(model, IntrinsicConfig(dimension=9, structure=structure))
    adapted.trainable_parameters()["theta"] += 1.0
    changed = model(IDS)
    assert not torch.equal(changed, out)
    with adapted.disable():
        assert torch.equal(model(IDS), out)
    adapted.merge()
    assert torch.equal(model(IDS), changed)
    with pytest.raises(ConfigError, match="unmerge"):
        adapted.merge()
    adapted.unmerge()
    assert torch.equal(model(IDS), changed)
    adapted.remove()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(IDS), out) and [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("structure", ["did", "said"])
def test_losses_can_be_added_up_one_after_another_and_steps_are_seen(structure):
    """Moved parameters are kept for a while: never too long, and never those of an old theta."""
    adapted = adapt(small_gpt(), IntrinsicConfig(dimension=9, structure=structure))
    model, theta = adapted.model, adapted.trainable_parameters()["theta"]
    theta.data += 0.1
    losses = [model(IDS[i : i + 1]).square().mean() for i in range(2)]
    (wanted,) = torch.autograd.grad(sum(losses), theta)
    losses = [model(IDS[i : i + 1]).square().mean() for i in range(2)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(theta.grad, wanted)
    theta.grad = None
    for i in range(2):
        model(IDS[i : i + 1]).square().mean().backward()
    torch.testing.assert_close(theta.grad, wanted)
    with torch.no_grad():
        before = model(IDS)
        theta -= 0.1 * theta.grad
        assert not torch.equal(model(IDS), before)
    model(IDS).sum().backward()


def test_frozen_numbers_stay_and_training_lowers_the_loss():
    model = small_gpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, IntrinsicConfig(dimension=40))
    optimizer = torch.optim.Adam(adapted.trainable_parameters().values(), lr=0.1)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_delta_is_theta_and_a_seed(tmp_path):
    adapted = adapt(small_gpt(), IntrinsicConfig(dimension=12, structure="said", seed=5))
    for parameter in adapted.trainable_parameters().values():
        parameter.data.normal_(generator=seeded())
    adapted.save(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2000
    assert torch.equal(load_delta(small_gpt(), tmp_path).model(IDS), adapted.model(IDS))


class Scores(nn.Module):
    """A body and a new head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def test_a_head_is_trained_whole_and_not_moved():
    model = Scores().double()
    adapted = adapt(model, IntrinsicConfig(dimension=4, heads="head"))
    assert adapted.delta.deltas[0].shift.sizes == [30, 5]
    assert set(adapted.trainable_parameters()) == {"theta", "head.weight", "head.bias"}
    model(torch.ones(2, 6).double()).sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {"head.weight", "head.bias", "intrinsic_shift.theta"}


class KDimensional(nn.Module):
    """A task that only asks for k linear measurements of 150 numbers to have given values."""

    def __init__(self, k):
        super().__init__()
        self.numbers = nn.Parameter(torch.randn(150, generator=seeded(1), dtype=torch.float64))
        self.asked = torch.randn(k, 150, generator=seeded(2), dtype=torch.float64)
        self.wanted = torch.randn(k, generator=seeded(3), dtype=torch.float64)

    def forward(self):
        return (self.asked @ self.numbers - self.wanted).square().sum()


def loss_reached(k, dimension, structure="did"):
    model = KDimensional(k)
    adapted = adapt(model, IntrinsicConfig(dimension=dimension, structure=structure))
    optimizer = torch.optim.LBFGS(
        adapted.trainable_parameters().values(), max_iter=300, tolerance_change=0, tolerance_grad=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = model()
        value.backward()
        return value

    optimizer.step(loss)
    return float(model().detach())


def test_a_k_dimensional_task_is_solved_by_k_numbers_and_by_no_fewer():
    k = 8
    short, enough = loss_reached(k, k - 1), loss_reached(k, k)
    projection = Fastfood(150, k - 1, 0)
    model = KDimensional(k)
    columns = model.asked @ torch.stack([projection(unit) for unit in torch.eye(k - 1).double()], 1)
    gap = model.wanted - model.asked @ model.numbers.detach()
    best = (columns @ torch.linalg.lstsq(columns, gap[:, None]).solution - gap[:, None]).square().sum()
    assert enough < 1e-12 and short > 1e-3 and math.isclose(short, float(best), rel_tol=1e-5)


def test_the_smallest_dimension_is_found():
    found = smallest_dimension(lambda d: 1.0 / (1.0 + loss_reached(6, d)), 1.0, [8, 2, 6, 4], share=0.999)
    assert found.dimension == 6 and list(found.qualities) == [2, 4, 6]
    none = smallest_dimension(lambda d: 0.1, 1.0, [1, 2])
    assert none.dimension is None and none.needed == 0.9 and none.qualities == {1: 0.1, 2: 0.1}
    with pytest.raises(ConfigError, match="0 dimensions"):
        smallest_dimension(lambda d: 1.0, 1.0, [])
    with pytest.raises(ConfigError, match="full quality -2"):
        smallest_dimension(lambda d: 1.0, -2.0, [1])


def test_misuse_is_named():
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="dimension is"):
            IntrinsicConfig(dimension=wrong)
    with pytest.raises(ConfigError, match="structure is 'sald'"):
        IntrinsicConfig(structure="sald")
    with pytest.raises(ConfigError, match="leaves nothing beside the factors of 5 layers"):
        adapt(small_gpt(), IntrinsicConfig(dimension=5, structure="said"))
    with pytest.raises(ConfigError, match="31 dimensions were asked for; only 30"):
        adapt(nn.Linear(5, 6, bias=False), IntrinsicConfig(dimension=31))
    with pytest.raises(ConfigError, match="recurrent"):
        adapt(nn.Sequential(nn.LSTM(2, 2)), IntrinsicConfig(dimension=1))
    model = small_gpt()
    adapted = adapt(model, IntrinsicConfig(dimension=3))
    with pytest.raises(ConfigError, match="adapted already"):
        adapt(model, IntrinsicConfig(dimension=3))
    with pytest.raises(ConfigError, match="adapted already"):
        adapted.add(IntrinsicConfig(dimension=3), "second")


def test_a_tied_table_moves_as_one():
    model = small_gpt()
    adapted = adapt(model, IntrinsicConfig(dimension=3))
    adapted.trainable_parameters()["theta"].data += 1.0
    assert sum(adapted.delta.shift.sizes) == surgery.count(copy.deepcopy(small_gpt())).total
    assert model.token_embedding.weight is model.token_embedding.weight, "made once for all who read it"


def test_a_projection_without_its_order_or_signs_is_noticed():
    projection = Fastfood(100, 5, 0)
    matrix, x = explicit(projection), torch.randn(5, generator=seeded(), dtype=torch.float64)
    for name in ("order", "signs", "normal"):
        broken = copy.deepcopy(projection)
        plain = torch.arange(128) if name == "order" else torch.ones_like(getattr(broken, name))
        setattr(broken, name, plain)
        assert (broken(x) - matrix @ x).abs().max() > 0.05
