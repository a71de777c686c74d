"""The oracle is torch's clip_grad_norm_."""

import pytest
import torch

from minillm.errors import ConfigError, TrainingError
from minillm.train.clip import clip_gradients, gradient_norm


def parameters(scale=1.0):
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.zeros(shape, dtype=torch.float64) for shape in ((3, 4), (5,), (2, 2, 2), ())]
    for tensor in tensors[:3]:
        tensor.grad = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale
    return tensors


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e3, float("inf")])
def test_equals_torch(max_norm):
    ours, theirs = parameters(3.0), parameters(3.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(clip_gradients(iter(ours), max_norm), expected, rtol=1e-12, atol=0)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=0)
    assert ours[3].grad is None


def test_a_short_gradient_keeps_its_bits():
    tensors = parameters(0.01)
    before = [tensor.grad.clone() for tensor in tensors[:3]]
    clip_gradients(tensors, 10.0)
    assert all(torch.equal(tensor.grad, old) for tensor, old in zip(tensors[:3], before, strict=True))


def test_one_tensor_and_none():
    weight = torch.zeros(2)
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients(weight, 1.0) == 5.0
    assert clip_gradients([], 1.0) == 0.0
    assert clip_gradients([torch.zeros(3)], 1.0) == 0.0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_finite(poison):
    tensors = parameters()
    tensors[1].grad[2] = poison
    before = tensors[0].grad.clone()
    assert not gradient_norm(tensors).isfinite()
    with pytest.raises(TrainingError, match="not finite"):
        clip_gradients(tensors, 1.0, error_if_nonfinite=True)
    assert torch.equal(tensors[0].grad, before)
    assert not clip_gradients(tensors, 1.0).isfinite()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_bad_maximum(max_norm):
    with pytest.raises(ConfigError, match="max_norm"):
        clip_gradients(parameters(), max_norm)
