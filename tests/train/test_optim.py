"""The oracles are torch's optimizers in float64 over 50 steps, and the pure single-tensor updates."""

import copy

import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError, ConfigError, ShapeError
from minillm.train import optim
from minillm.train.optim import SGD, AdamW, Muon, adamw_step, sgd_step


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    for parameter in parts.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return parts


def loss_of_step(net, step):
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return (net(inputs) - inputs[:, :3].sin()).square().sum()


def run(net, optimizer, n_steps, first=0):
    losses = []
    for step in range(first, first + n_steps):
        optimizer.zero_grad()
        loss = loss_of_step(net, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def groups(net):
    vectors = {"params": [net[0].bias, net[2].bias], "lr": 3e-3, "weight_decay": 0}
    return [{"params": [net[0].weight, net[2].weight]}, vectors]


def assert_same(ours, theirs):
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}")


KINDS = {
    "adamw": (AdamW, torch.optim.AdamW, {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    "adamw-fused": (AdamW, torch.optim.AdamW, {"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.3, "fused": True}),
    "sgd": (SGD, torch.optim.SGD, {"lr": 1e-2}),
    "sgd-momentum": (SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd-dampening": (SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "dampening": 0.3}),
    "sgd-nesterov": (SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
}
ALL = pytest.mark.parametrize("kind", KINDS)


@ALL
@pytest.mark.parametrize("slice_size", [1 << 18, 7])
def test_fifty_steps_equal_torch(kind, slice_size, monkeypatch):
    monkeypatch.setattr(optim, "SLICE_SIZE", slice_size)
    ours_type, torch_type, settings = KINDS[kind]
    ours, theirs = model(), model()
    losses = run(ours, ours_type(groups(ours), **settings), 50)
    expected = run(theirs, torch_type(groups(theirs), **settings), 50)
    assert_same(ours, theirs)
    assert losses == pytest.approx(expected, rel=1e-10)
    assert losses[-1] < losses[0]


@ALL
@pytest.mark.parametrize("direction", ["ours to torch", "torch to ours"])
def test_state_goes_over_to_torch_and_back(kind, direction):
    ours_type, torch_type, settings = KINDS[kind]
    first_type, second_type = (ours_type, torch_type) if direction == "ours to torch" else (torch_type, ours_type)
    whole, begun = model(), model()
    run(whole, torch_type(groups(whole), **settings), 20)
    first = first_type(groups(begun), **settings)
    run(begun, first, 10)
    second = second_type(groups(begun), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(begun, second, 10, first=10)
    assert_same(begun, whole)


@ALL
def test_closure_and_missing_gradients(kind):
    ours_type, torch_type, settings = KINDS[kind]
    nets = model(), model()
    losses = []
    for net, optimizer_type in zip(nets, (ours_type, torch_type), strict=True):
        optimizer = optimizer_type(net.parameters(), **settings)
        for step in range(4):
            net[0].weight.requires_grad_(step != 0)  # a parameter that is younger than the others

            def closure(net=net, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = loss_of_step(net, step)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
    assert_same(*nets)
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-10)


def test_pure_adamw_is_the_optimizer():
    net = model()
    optimizer = AdamW(net.parameters(), lr=0.02, betas=(0.7, 0.9), eps=1e-4, weight_decay=0.2)
    weight, mean, square = net[0].weight.detach().clone(), *(torch.zeros(20, 6, dtype=torch.float64) for _ in range(2))
    for step in range(5):
        optimizer.zero_grad()
        loss_of_step(net, step).backward()
        weight, mean, square = adamw_step(
            weight, net[0].weight.grad, mean, square, step + 1, 0.02, betas=(0.7, 0.9), eps=1e-4, weight_decay=0.2
        )
        optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), weight, rtol=1e-11, atol=0)
    torch.testing.assert_close(optimizer.state[net[0].weight]["exp_avg_sq"], square, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("nesterov", "dampening"), [(False, 0.0), (True, 0.0), (False, 0.4)])
def test_pure_sgd_is_the_optimizer(nesterov, dampening):
    net = model()
    optimizer = SGD(net.parameters(), lr=0.002, momentum=0.8, dampening=dampening, weight_decay=0.2, nesterov=nesterov)
    weight, buffer = net[0].weight.detach().clone(), None
    for step in range(5):
        optimizer.zero_grad()
        loss_of_step(net, step).backward()
        weight, buffer = sgd_step(weight, net[0].weight.grad, buffer, 0.002, 0.8, 0.2, nesterov, dampening)
        optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), weight, rtol=1e-11, atol=0)


def test_parameters_that_are_not_contiguous():
    base = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    ours, theirs = nn.Parameter(base.clone().t()), nn.Parameter(base.clone().t())
    for parameter, optimizer in ((ours, AdamW([ours], lr=0.1)), (theirs, torch.optim.AdamW([theirs], lr=0.1))):
        for _ in range(3):
            parameter.grad = torch.arange(12.0, dtype=torch.float64).view(4, 3).sin()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_bad_settings_and_inputs():
    weights = [nn.Parameter(torch.zeros(4, 3))]
    for build in (
        lambda: AdamW(weights, lr=-1),
        lambda: AdamW(weights, betas=(0.9, 1.0)),
        lambda: AdamW(weights, eps=float("nan")),
        lambda: SGD(weights, momentum=1.0),
        lambda: SGD(weights, nesterov=True),
        lambda: Muon(weights, split=3),
        lambda: Muon(weights, split=(3, 2)),
        lambda: Muon(weights, split=0),
        lambda: Muon(weights, ns_steps=0),
        lambda: Muon(weights, ns_dtype="int8"),
        lambda: Muon(weights, adjust_lr_fn="none"),
        lambda: Muon([nn.Parameter(torch.zeros(3))]),
    ):
        with pytest.raises(ConfigError):
            build()
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ShapeError, match="sparse"):
        SGD(embedding.parameters(), lr=0.1).step()
    amsgrad = torch.optim.AdamW(weights, amsgrad=True).state_dict()
    with pytest.raises(CheckpointError, match="amsgrad"):
        AdamW(weights).load_state_dict(amsgrad)
