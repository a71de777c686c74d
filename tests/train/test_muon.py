"""Muon against the singular value decomposition, and against torch's own Muon."""

import pytest
import torch
from torch import nn

from minillm.errors import ConfigError
from minillm.train.grouping import decay_groups, muon_and_adamw
from minillm.train.muon import equalize_neurons, muon_scale, muon_step, orthogonalize
from minillm.train.optim import AdamW, Muon


def random_matrices(*shape, seed=3, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (3, 24, 48), (2, 3, 40, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_become_about_one(shape, dtype):
    result = orthogonalize(1e-3 * random_matrices(*shape), dtype=dtype)
    values = torch.linalg.svdvals(result)
    assert result.shape == shape and result.dtype == torch.float64
    assert values.min() > 0.66 and values.max() < 1.2


def test_singular_vectors_are_kept():
    matrices = random_matrices(5, 12, 30)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices)
    rotated = left.mT @ result @ right.mT
    off_diagonal = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-10
    nearest = left @ right
    cosine = (result * nearest).sum((-2, -1)) / (result.norm(dim=(-2, -1)) * nearest.norm(dim=(-2, -1)))
    assert cosine.min() > 0.98


def test_the_polynomial_on_each_singular_value():
    """With a known S the result is U p(p(p(p(p(S / |S|))))) V^T."""
    left, _, right = torch.linalg.svd(random_matrices(4, 4))
    values = torch.tensor([5.0, 1.0, 0.2, 0.05], dtype=torch.float64)
    expected = values / values.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    result = orthogonalize(left @ values.diag() @ right)
    torch.testing.assert_close(result, left @ expected.diag() @ right, rtol=1e-9, atol=1e-12)


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def run(optimizer, parameters, n_steps=6):
    for step in range(n_steps):
        for index, parameter in enumerate(parameters):
            parameter.grad = random_matrices(*parameter.shape, seed=100 * step + index, dtype=parameter.dtype)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def weights(dtype=torch.float64):
    shapes = [(24, 8), (8, 24), (8, 8), (8, 8), (24, 8)]
    return [nn.Parameter(random_matrices(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
def test_equals_torch(nesterov, adjust_lr_fn):
    """torch's Muon makes its products in bf16, so agreement is to bf16."""
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    ours, theirs = weights(torch.float32), weights(torch.float32)
    actual = run(Muon(ours, **settings, ns_dtype="bf16"), ours)
    expected = run(torch.optim.Muon(theirs, **settings), theirs)
    for mine, other, start in zip(actual, expected, weights(torch.float32), strict=True):
        assert (mine - other).norm() < 0.02 * (other - start).norm()


@pytest.mark.parametrize("nesterov", [True, False])
def test_pure_step_is_the_optimizer(nesterov):
    actual = run(Muon(parameters := weights(), lr=0.1, weight_decay=0.2, nesterov=nesterov), parameters)
    for index, weight in enumerate(weights()):
        weight, buffer = weight.detach(), torch.zeros_like(weight)
        for step in range(6):
            gradient = random_matrices(*weight.shape, seed=100 * step + index)
            weight, buffer = muon_step(weight, gradient, buffer, 0.1, weight_decay=0.2, nesterov=nesterov)
        torch.testing.assert_close(actual[index], weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("split", "sizes"), [(3, (8, 8, 8)), ((16, 4, 4), (16, 4, 4))])
def test_split_weights_are_those_of_separate_ones(split, sizes):
    whole = nn.Parameter(random_matrices(24, 8, seed=0))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split(sizes)]
    fused, apart = Muon([whole], lr=0.1, split=split), Muon(parts, lr=0.1)
    for step in range(4):
        whole.grad = random_matrices(24, 8, seed=step)
        for part, gradient in zip(parts, whole.grad.split(sizes), strict=True):
            part.grad = gradient.clone()
        fused.step()
        apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts]), rtol=1e-10, atol=1e-12)
    assert torch.linalg.matrix_rank(orthogonalize(whole.grad)) == 8


def test_scale_rules():
    assert muon_scale(32, 8) == 2.0 and muon_scale(8, 32) == 1.0
    assert muon_scale(8, 100, "match_rms_adamw") == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="known are"):
        muon_scale(8, 8, "rms")


def small_model():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "qkv": nn.Linear(4, 12), "norm": nn.LayerNorm(12),
                           "out": nn.Linear(12, 4, bias=False), "head": nn.Linear(4, 7, bias=False)})  # fmt: skip
    model["head"].weight = model["embedding"].weight
    return model


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    optimizer = muon_and_adamw(small_model(), weight_decay=0.1, splits={"qkv.weight": 3})
    by_rule = [(group["use_muon"], group.get("split"), group["weight_decay"], group["param_names"])
               for group in optimizer.param_groups]  # fmt: skip
    assert by_rule == [
        (True, 3, 0.1, ["qkv.weight"]),
        (True, 1, 0.1, ["out.weight"]),
        (False, None, 0.1, ["embedding.weight"]),
        (False, None, 0.0, ["qkv.bias", "norm.weight", "norm.bias"]),
    ]


def test_both_rules_in_one_optimizer_are_the_two_optimizers():
    together, apart = small_model().double(), small_model().double()
    apart.load_state_dict(together.state_dict())
    both = muon_and_adamw(together, muon_lr=0.1, adamw_lr=0.01, betas=(0.8, 0.9))
    matrices = [apart["qkv"].weight, apart["out"].weight]
    rest = [apart["embedding"].weight, apart["qkv"].bias, *apart["norm"].parameters()]
    muon, adamw = Muon(matrices, lr=0.1), AdamW(rest, lr=0.01, betas=(0.8, 0.9), weight_decay=0.0)
    for step in range(3):
        for name, parameter in together.named_parameters():
            parameter.grad = random_matrices(*parameter.shape, seed=step)
            apart.get_parameter(name).grad = parameter.grad.clone()
        both.step(), muon.step(), adamw.step()
    for name, parameter in together.named_parameters():
        torch.testing.assert_close(parameter, apart.get_parameter(name), rtol=1e-12, atol=0)


def test_decay_groups_leave_out_frozen_and_count_tied_ones_once():
    model = small_model()
    model["out"].weight.requires_grad_(False)
    matrices, vectors = decay_groups(model, 0.1)
    assert [name for name, _ in matrices["params"]] == ["embedding.weight", "qkv.weight"]
    assert [name for name, _ in vectors["params"]] == ["qkv.bias", "norm.weight", "norm.bias"]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert len(decay_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


def test_equal_neurons_by_hand_over_two_steps():
    first, second = random_matrices(2, 6, 4, seed=1), random_matrices(2, 6, 4, seed=2)
    _, mean_square = equalize_neurons(first, torch.zeros(2, 6, 1, dtype=torch.float64), 0.9)
    actual, mean_square = equalize_neurons(second, mean_square, 0.9)
    expected_square = 0.09 * first.pow(2).mean(-1) + 0.1 * second.pow(2).mean(-1)
    torch.testing.assert_close(mean_square[..., 0], expected_square, rtol=1e-12, atol=0)
    expected = second / expected_square.sqrt()[..., None]
    expected *= (second.pow(2).sum((1, 2)) / expected.pow(2).sum((1, 2))).sqrt()[:, None, None]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_first_update_has_rows_of_one_length_in_every_part():
    weight = nn.Parameter(torch.zeros(24, 8, dtype=torch.float64))
    weight.grad = random_matrices(24, 8) * torch.logspace(-2, 2, 24)[:, None]
    Muon([weight], lr=1.0, split=(16, 8), neuron_beta=0.95, adjust_lr_fn="original").step()
    for part in weight.detach().split((16, 8)):
        lengths = part.norm(dim=1)
        torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), rtol=1e-9, atol=0)


def test_equal_neurons_leave_zeros_and_refuse_a_bad_beta():
    zeros = torch.zeros(3, 4)
    assert torch.equal(equalize_neurons(zeros, torch.zeros(3, 1), 0.95)[0], zeros)
    with pytest.raises(ConfigError, match="neuron_beta"):
        Muon([nn.Parameter(torch.zeros(2, 2))], neuron_beta=1.0)


def test_the_head_may_have_a_rate_of_its_own():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 7)})
    optimizer = muon_and_adamw(model, adamw_lr=0.02, head_lr=0.01, weight_decay=0.1)
    by_rate = [(group["lr"], group["weight_decay"], group["param_names"]) for group in optimizer.param_groups]
    assert by_rate == [
        (0.02, 0.1, ["embedding.weight"]),
        (0.01, 0.1, ["head.weight"]),
        (0.02, 0.0, ["norm.weight", "norm.bias", "head.bias"]),
    ]
