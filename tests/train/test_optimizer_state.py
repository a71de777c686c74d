"""Optimizer state by name must survive what state by number does not: another order."""

import json

import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError
from minillm.train.grouping import decay_groups, muon_and_adamw
from minillm.train.optim import SGD, AdamW, Muon
from minillm.train.optimizer_state import (
    join_tensors,
    load_optimizer_state_by_name,
    merge_rests,
    optimizer_state_by_name,
    split_tensors,
)


def model(reverse=False):
    """The same three weights, registered in another order."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"a": (4, 3), "b": (4, 4), "c": (4,)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    module = nn.Module()
    for name in sorted(values, reverse=reverse):
        module.register_parameter(name, nn.Parameter(values[name]))
    return module


def run(net, optimizer, steps):
    for step in steps:
        for name, parameter in net.named_parameters():
            generator = torch.Generator().manual_seed(100 * step + ord(name))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


BUILD = {
    "adamw": lambda net: AdamW(decay_groups(net, 0.1), lr=0.01),
    "torch adamw": lambda net: torch.optim.AdamW(decay_groups(net, 0.1), lr=0.01),
    "sgd": lambda net: SGD(net.parameters(), lr=0.01, momentum=0.9),
    "muon and adamw": lambda net: muon_and_adamw(net),
}


@pytest.mark.parametrize("kind", BUILD)
def test_another_order_of_parameters(kind):
    whole = model()
    run(whole, BUILD[kind](whole), range(6))
    first, second = model(), model(reverse=True)
    optimizer = BUILD[kind](first)
    run(first, optimizer, range(3))
    tensors, rest = split_tensors(optimizer_state_by_name(optimizer, first))
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    second.load_state_dict(first.state_dict())
    other = BUILD[kind](second)
    for group in other.param_groups:
        group["lr"] = 123.0  # the saved options win
    load_optimizer_state_by_name(other, second, join_tensors(tensors, json.loads(json.dumps(rest))))
    run(second, other, range(3, 6))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name


def test_tied_parameters_have_their_first_name():
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    net["head"].weight = net["embedding"].weight
    optimizer = AdamW(net.parameters())
    net["head"](net["embedding"](torch.tensor([1]))).sum().backward()
    optimizer.step()
    assert list(optimizer_state_by_name(optimizer, net)["state"]) == ["embedding.weight"]


def test_state_that_does_not_fit_is_refused_before_anything_changes():
    net = model()
    optimizer = AdamW(net.parameters())
    run(net, optimizer, range(2))
    saved = optimizer_state_by_name(optimizer, net)
    before = optimizer.state[net.a]["exp_avg"].clone()

    lacking = {"state": {}, "groups": [{"names": ["a", "b"], "options": {}}]}
    with pytest.raises(CheckpointError, match=r"missing \['c'\]"):
        load_optimizer_state_by_name(optimizer, net, lacking)
    misshapen = {**saved, "state": {**saved["state"], "c": {"exp_avg": torch.zeros(5)}}}
    with pytest.raises(CheckpointError, match=r"exp_avg of c: expected shape \(4,\), found \(5,\)"):
        load_optimizer_state_by_name(optimizer, net, misshapen)
    apart = {**saved, "groups": [{"names": ["a"], "options": {}}, {"names": ["b", "c"], "options": {}}]}
    with pytest.raises(CheckpointError, match="several groups"):
        load_optimizer_state_by_name(optimizer, net, apart)
    assert torch.equal(optimizer.state[net.a]["exp_avg"], before)


def test_a_foreign_parameter_is_named_by_its_shape():
    net = model()
    with pytest.raises(CheckpointError, match=r"shape \(7, 7\)"):
        optimizer_state_by_name(Muon([nn.Parameter(torch.zeros(7, 7))]), net)


def test_optimizers_of_ranks_are_merged():
    rest = {"state": {"a": {"n": 1}}, "groups": [{"names": ["a"], "options": {"lr": 0.1, "betas": [0.9, 0.99]}}]}
    other = {"state": {"b": {"n": 2}}, "groups": [{"names": ["b"], "options": {"lr": 0.1, "betas": [0.9, 0.99]}}]}
    merged = merge_rests([rest, other, rest])
    assert merged["groups"] == [{"names": ["a", "b"], "options": {"lr": 0.1, "betas": [0.9, 0.99]}}]
    assert merged["state"] == {"a": {"n": 1}, "b": {"n": 2}}
