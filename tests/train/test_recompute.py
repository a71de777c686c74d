"""The oracles are the plain forward pass and torch.utils.checkpoint."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.train.recompute import kept_bytes, recompute, recomputing


def make(dropout=0.0, family="gpt2", dtype=torch.float64, **overrides):
    config = model_config(family, "nano", vocab_size=13, max_seq_len=8, dropout=dropout, **overrides)
    return GPT(config, torch.Generator().manual_seed(0)).to(dtype)


IDS = torch.randint(13, (3, 8), generator=torch.Generator().manual_seed(1))


def gradients(model, forward):
    model.zero_grad()
    torch.manual_seed(5)
    loss = nn.functional.cross_entropy(forward(model).flatten(0, 1).float(), IDS.flatten())
    loss.backward()
    return [loss.detach(), torch.rand(1), *(parameter.grad.clone() for parameter in model.parameters())]


def ours(model):
    with recomputing(model.blocks):
        return model(IDS)


def theirs(model):
    x, rotation = model.embed(IDS, 0, None)
    for block in model.blocks:
        x = checkpoint(block, x, None, True, rotation, use_reentrant=False)
    return model.logits(model.final_norm(x))


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_those_of_the_plain_pass_and_of_torch(family, dropout):
    model = make(dropout, family)
    expected, found, torchs = (gradients(model, run) for run in (lambda model: model(IDS), ours, theirs))
    for plain, recomputed, torchs_own in zip(expected, found, torchs, strict=True):  # also the next random number
        torch.testing.assert_close(recomputed, plain, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(recomputed, torchs_own, rtol=1e-10, atol=1e-14)


def test_autocast_is_the_same_the_second_time():
    model = make(dtype=torch.float32)

    def under_autocast(forward):
        def run(model):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(model)

        return run

    expected, found = (gradients(model, under_autocast(run)) for run in (lambda model: model(IDS), ours))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not torch.equal(expected[2], gradients(model, ours)[2])


def test_less_is_kept_and_the_wrapper_leaves_nothing_behind():
    model = make(n_layers=6)
    names = list(model.state_dict())
    plain = kept_bytes(lambda: model(IDS), model.parameters())
    less = kept_bytes(lambda: ours(model), model.parameters())
    assert plain > 3 * less
    with pytest.raises(RuntimeError, match="stop"), recomputing(model.blocks):
        assert list(model.state_dict()) == names
        raise RuntimeError("stop")
    assert all("forward" not in vars(block) for block in model.blocks)
    assert kept_bytes(lambda: model(IDS), model.parameters()) == plain


def test_kept_bytes_counts_each_memory_once():
    x, weight = torch.ones(4, 8, requires_grad=True), torch.ones(8, 2, requires_grad=True)
    assert kept_bytes(lambda: x @ weight) == 4 * (32 + 16)
    assert kept_bytes(lambda: x @ weight, [weight]) == 4 * 32
    assert kept_bytes(lambda: (x @ weight) + (x @ weight)) == 4 * (32 + 16)
    assert kept_bytes(lambda: x + x) == 0


def test_frozen_parameters_and_inputs_without_gradient():
    layer = nn.Linear(3, 3, dtype=torch.float64)
    layer.bias.requires_grad_(False)
    x = torch.ones(2, 3, dtype=torch.float64)
    recompute(lambda x: layer(x).tanh(), x, list(layer.parameters())).sum().backward()
    found, layer.weight.grad = layer.weight.grad, None
    layer(x).tanh().sum().backward()
    assert torch.equal(found, layer.weight.grad) and layer.bias.grad is None


def test_a_parameter_of_the_function_that_it_does_not_use():
    weight, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    recompute(lambda x: x * weight, torch.ones(2), [weight, unused]).sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0] and unused.grad is None
