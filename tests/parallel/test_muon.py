"""Muon on slices against Muon on whole matrices; making slices orthogonal each on its own is another optimizer."""

import zlib

import pytest
import torch
from torch import nn

from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.layout import slice_of, tensor_layout
from minillm.parallel.muon import SlicedMuonAndAdamW, gather_slices
from minillm.parallel.threads import launch_threads
from minillm.train.grouping import muon_and_adamw
from minillm.train.optim import MuonAndAdamW

CONFIG = GPTConfig(
    vocab_size=12, max_seq_len=8, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, feed_forward="swiglu", bias=True
)
LAYOUT = tensor_layout(CONFIG)


def whole_model():
    model = GPT(CONFIG, torch.Generator().manual_seed(1)).double()
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return model


def gradient(name, shape, step):
    dice = torch.Generator().manual_seed(zlib.crc32(name.encode()) + step)
    return torch.randn(shape, generator=dice, dtype=torch.float64)


def optimizer_for(model, size, **settings):
    rows = tuple(rows // size for rows in (16, 8, 8))
    return muon_and_adamw(model, weight_decay=0.1, neuron_beta=0.95, splits={"qkv.weight": rows}, **settings)


class Slices(nn.Module):
    """The parameters that one rank holds, under the model's names."""

    def __init__(self, rank, size):
        super().__init__()
        self.names = {}
        for name, parameter in whole_model().named_parameters():
            module, leaf = self, name.split(".")
            for part in leaf[:-1]:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            mine = slice_of(parameter.detach(), LAYOUT[name], rank, size).clone()
            module.register_parameter(leaf[-1], nn.Parameter(mine))


def steps_of(model, optimizer, cut=lambda tensor, name: tensor):
    whole_shapes = {name: parameter.shape for name, parameter in whole_model().named_parameters()}
    for step in range(4):
        for name, parameter in model.named_parameters():
            parameter.grad = cut(gradient(name, whole_shapes[name], step), name).clone()
        optimizer.step()


def unnamed(groups):
    return [{key: value for key, value in group.items() if key != "param_names"} for group in groups]


def on_slices(comm, is_sliced):
    model = Slices(comm.rank, comm.size)
    optimizer = optimizer_for(model, comm.size)
    if is_sliced:
        splits = {parameter: LAYOUT[name] for name, parameter in model.named_parameters()}
        optimizer = SlicedMuonAndAdamW(unnamed(optimizer.param_groups), splits, comm)
    steps_of(model, optimizer, lambda tensor, name: slice_of(tensor, LAYOUT[name], comm.rank, comm.size))
    named = dict(model.named_parameters())
    wholes = gather_slices([p.detach() for p in named.values()], [LAYOUT[name] for name in named], comm)
    return dict(zip(named, wholes, strict=True))


def difference(is_sliced, size):
    model = whole_model()
    steps_of(model, optimizer_for(model, 1))
    ranks = launch_threads(on_slices, size, is_sliced)
    return max((mine[name] - p).abs().max().item() for mine in ranks for name, p in model.named_parameters())


@pytest.mark.parametrize("size", [1, 2])
def test_slices_step_as_the_whole_does(size):
    assert difference(True, size) < 1e-12


def test_the_comparison_notices_slices_made_orthogonal_alone():
    assert isinstance(optimizer_for(whole_model(), 1), MuonAndAdamW)
    assert difference(False, 2) > 1e-3
