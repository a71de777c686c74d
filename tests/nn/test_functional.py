"""The readable functions against torch's kernels in float64, values and gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.nn import functional


def rand(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def assert_same_value_and_gradient(ours, oracle, *inputs):
    """Equal outputs, and equal gradients for a random direction."""
    value, expected = ours(*inputs), oracle(*inputs)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    direction = rand(*value.shape, seed=99).detach()
    gradients = torch.autograd.grad(value, inputs, direction)
    expected_gradients = torch.autograd.grad(expected, inputs, direction)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)


PAIRS = {
    "softmax": (functional.softmax, lambda x: F.softmax(x, dim=-1)),
    "log_softmax": (functional.log_softmax, lambda x: F.log_softmax(x, dim=-1)),
    "gelu": (functional.gelu, F.gelu),
    "gelu_tanh": (functional.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (functional.silu, F.silu),
    "relu2": (functional.relu2, lambda x: F.relu(x) ** 2),
    "layer_norm": (functional.layer_norm, lambda x: F.layer_norm(x, x.shape[-1:])),
    "rms_norm": (functional.rms_norm, lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5)),
    "cap": (lambda x: functional.cap_logits(x, 2.0), lambda x: 2.0 * torch.tanh(x / 2.0)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (0, 4)], ids=str)
def test_function_agrees_with_torch(name, shape):
    assert_same_value_and_gradient(*PAIRS[name], rand(*shape, scale=3.0))


def test_norms_with_learned_scale_and_shift():
    x, weight, bias = rand(4, 6), rand(6, seed=1), rand(6, seed=2)
    assert_same_value_and_gradient(
        lambda x, w, b: functional.layer_norm(x, w, b, epsilon=1e-3),
        lambda x, w, b: F.layer_norm(x, (6,), w, b, eps=1e-3), x, weight, bias,
    )  # fmt: skip
    assert_same_value_and_gradient(
        lambda x, w: functional.rms_norm(x, w, epsilon=1e-3), lambda x, w: F.rms_norm(x, (6,), w, eps=1e-3), x, weight
    )


def test_softmax_of_huge_and_forbidden_scores():
    x = torch.tensor([[1e4, 1e4 - math.log(3.0)], [-math.inf, -1e4], [-math.inf, -math.inf]], dtype=torch.float64)
    expected = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(functional.softmax(x), expected, rtol=1e-10, atol=0)


def test_softmax_of_a_forbidden_row_has_zero_gradient():
    x = rand(2, 3)
    mask = torch.tensor([[True, True, True], [False, False, False]])
    functional.softmax(x.masked_fill(~mask, -math.inf)).square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad[1] == 0).all() and (x.grad[0] != 0).all()


def test_softmax_over_nothing_is_nothing():
    assert functional.softmax(torch.zeros(3, 0)).shape == (3, 0)


def test_dropout_keeps_the_mean_and_the_rate():
    x = torch.ones(100_000, dtype=torch.float64)
    dropped = functional.dropout(x, 0.25, generator=torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs((dropped == 0).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 100_000)


def test_dropout_is_decided_by_its_generator_alone():
    x = torch.ones(50)
    first, second, other = (functional.dropout(x, 0.5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert functional.dropout(x, 0.5, training=False) is x


@pytest.mark.parametrize("probability", [-0.1, 1.0, math.nan])
def test_dropout_refuses(probability):
    with pytest.raises(ConfigError, match="dropout probability"):
        functional.dropout(torch.ones(2), probability)


def test_unknown_kernels_are_refused():
    with pytest.raises(ConfigError, match="'fast'"):
        functional.check_kernels("fast")
