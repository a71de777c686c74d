"""Linear, Embedding, norms and feed-forward layers: modules against torch, naive against fast kernels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.nn.embedding import Embedding, embedding
from minillm.nn.feedforward import (
    FEED_FORWARDS,
    FeedForward,
    SigmoidGelu,
    geglu_feed_forward,
    gelu_feed_forward,
    relu2_feed_forward,
    relu_feed_forward,
    swiglu_feed_forward,
)
from minillm.nn.linear import Linear, linear, normal_weight
from minillm.nn.norm import LayerNorm, RMSNorm


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_modules_agree(first: nn.Module, second: nn.Module, x):
    """Equal outputs and equal gradients of the input and of every parameter."""
    second.load_state_dict(first.state_dict())
    results = []
    for module in (first, second):
        leaf = x.clone().requires_grad_()
        value = module(leaf)
        wanted = [leaf, *module.parameters()]
        results.append((value, torch.autograd.grad(value, wanted, rand(*value.shape, seed=7))))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_agrees_with_torch(bias):
    ours, oracle = Linear(5, 3, bias=bias).double(), nn.Linear(5, 3, bias=bias).double()
    assert_modules_agree(ours, oracle, rand(2, 4, 5))
    torch.testing.assert_close(linear(rand(4, 5), ours.weight, ours.bias), ours(rand(4, 5)), rtol=1e-12, atol=1e-14)


def test_linear_refuses_another_width():
    with pytest.raises(ShapeError, match="width 4"):
        linear(rand(2, 4), rand(3, 5))


def test_initial_weights_come_from_the_generator():
    weights = [Linear(300, 200, std=0.5, generator=torch.Generator().manual_seed(s)).weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert abs(weights[0].std().item() - 0.5) < 0.01 and abs(weights[0].mean().item()) < 0.01
    state = torch.get_rng_state()
    Linear(3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state()), "an explicit generator must leave the global one alone"


def test_zero_std_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert (normal_weight(2, 2, 0.0, generator) == 0).all() and torch.equal(before, generator.get_state())


def test_embedding_agrees_with_torch():
    ours, oracle = Embedding(7, 4).double(), nn.Embedding(7, 4).double()
    oracle.load_state_dict(ours.state_dict())
    ids = torch.tensor([[0, 6, 6], [1, 2, 3]])
    assert torch.equal(ours(ids), oracle(ids)) and torch.equal(embedding(ids, ours.weight), oracle(ids))
    assert ours(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 4)


@pytest.mark.parametrize("bad", [-1, 7])
def test_embedding_names_an_id_outside_the_vocabulary(bad):
    layer = Embedding(7, 4)
    for look_up in (layer, lambda ids: embedding(ids, layer.weight)):
        with pytest.raises(DataError, match="ids 0 to 6"):
            look_up(torch.tensor([0, bad]))


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("kernels", ["torch", "naive"])
def test_rms_norm_module_agrees_with_torch(weight, kernels):
    ours = RMSNorm(6, weight=weight, kernels=kernels).double()
    oracle = nn.RMSNorm(6, eps=1e-5, elementwise_affine=weight).double()
    if weight:
        nn.init.normal_(ours.weight, generator=torch.Generator().manual_seed(3))
    assert_modules_agree(ours, oracle, rand(2, 3, 6))
    with torch.no_grad():
        torch.testing.assert_close(ours(rand(4, 6)), oracle(rand(4, 6)), rtol=1e-10, atol=1e-12)


def test_rms_norm_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(RMSNorm(5).double(), rand(3, 5).requires_grad_())


@pytest.mark.parametrize("kernels", ["torch", "naive"])
def test_layer_norm_module_agrees_with_torch(kernels):
    assert_modules_agree(LayerNorm(6, bias=True, kernels=kernels).double(), nn.LayerNorm(6).double(), rand(2, 3, 6))


@pytest.mark.parametrize("kind", FEED_FORWARDS)
@pytest.mark.parametrize("bias", [False, True])
def test_feed_forward_kernels_agree(kind, bias):
    fast = FeedForward(6, 10, kind, bias=bias, std=0.5, output_std=0.5).double()
    assert_modules_agree(fast, FeedForward(6, 10, kind, bias=bias, kernels="naive").double(), rand(2, 3, 6))


def test_feed_forward_functions_in_closed_form():
    x, gate, up, down = rand(3, 4), rand(5, 4, seed=1), rand(5, 4, seed=2), rand(4, 5, seed=3)
    same = {"rtol": 1e-10, "atol": 1e-12}
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(swiglu_feed_forward(x, gate, up, down), expected, **same)
    expected = F.gelu(x @ up.T, approximate="tanh") @ down.T
    torch.testing.assert_close(gelu_feed_forward(x, up, down), expected, **same)
    torch.testing.assert_close(relu2_feed_forward(x, up, down), F.relu(x @ up.T) ** 2 @ down.T, **same)
    torch.testing.assert_close(relu_feed_forward(x, up, down), F.relu(x @ up.T) @ down.T, **same)
    expected = (F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)) @ down.T
    torch.testing.assert_close(geglu_feed_forward(x, gate, up, down), expected, **same)


@pytest.mark.parametrize("kind", sorted(set(FEED_FORWARDS) - {"gelu_exact"}))
def test_feed_forward_module_is_its_function(kind):
    layer, x = FeedForward(4, 6, kind, std=0.5, output_std=0.5).double(), rand(3, 4)
    functions = {"gelu": gelu_feed_forward, "swiglu": swiglu_feed_forward, "geglu": geglu_feed_forward}
    functions |= {"relu": relu_feed_forward, "relu2": relu2_feed_forward}
    weights = [part.weight for part in (layer.gate, layer.up, layer.down) if part is not None]
    torch.testing.assert_close(layer(x), functions[kind](x, *weights), rtol=1e-10, atol=1e-12)


def test_exact_gelu_is_torchs():
    layer, x = FeedForward(4, 6, "gelu_exact", std=2.0, output_std=0.5).double(), rand(3, 4)
    torch.testing.assert_close(layer(x), layer.down(F.gelu(layer.up(x))), rtol=1e-10, atol=1e-12)


def test_relu_has_no_slope_at_zero():
    for kernels in ("torch", "naive"):
        hidden = torch.tensor([-1.0, 0.0, 2.0, -torch.inf], requires_grad=True)
        FeedForward(4, 4, "relu", kernels=kernels).activate(hidden).sum().backward()
        assert hidden.grad.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_gelu_by_a_sigmoid_is_the_gelu_by_tanh():
    x = (4 * rand(3, 50)).requires_grad_()
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(SigmoidGelu.apply(x), expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(y, x, rand(3, 50, seed=1)) for y in (SigmoidGelu.apply(x), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(SigmoidGelu.apply, x)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    (slope,) = torch.autograd.grad(SigmoidGelu.apply(far).sum(), far)
    assert slope.tolist() == [0.0, 1.0] and SigmoidGelu.apply(far).tolist() == [0.0, 1e4]


def test_unknown_feed_forward_is_refused():
    with pytest.raises(ConfigError, match="'elu'"):
        FeedForward(4, 8, "elu")
