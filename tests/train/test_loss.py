"""The oracle is torch's cross_entropy in float64, and the definition at sizes where exp would overflow."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.train.loss import SmoothedLoss, kernel_cross_entropy, log_sum_exp, token_cross_entropy

BOTH = pytest.mark.parametrize("loss", [token_cross_entropy, kernel_cross_entropy], ids=["primitives", "kernel"])


def scores_and_targets(scale=1.0):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(3, 5, 7, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    targets = torch.randint(0, 7, (3, 5), generator=generator)
    targets[0, 1] = targets[2, 4] = -100
    return logits, targets


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_values_and_gradients_are_those_of_torch(loss, reduction, scale):
    logits, targets = scores_and_targets(scale)
    expected = cross_entropy(logits.view(-1, 7), targets.view(-1), reduction=reduction)
    weights = torch.arange(1.0, expected.numel() + 1, dtype=torch.float64).view(expected.shape)
    expected_gradient = torch.autograd.grad((expected * weights).sum(), logits)[0]
    actual = loss(logits, targets, reduction=reduction)
    actual_gradient = torch.autograd.grad((actual.reshape(expected.shape) * weights).sum(), logits)[0]
    assert actual.shape == (targets.shape if reduction == "none" else ())
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@BOTH
def test_huge_scores_by_hand(loss):
    logits = torch.tensor([[1e4, 1e4], [-1e4, -1e4], [1e4, 0.0], [1e4, 0.0]])
    losses = loss(logits, torch.tensor([0, 1, 0, 1]), reduction="none")
    torch.testing.assert_close(losses, torch.tensor([math.log(2), math.log(2), 0.0, 1e4]), rtol=1e-4, atol=1e-3)


@BOTH
def test_another_ignored_id_and_nothing_counted(loss):
    logits, targets = scores_and_targets()
    only = loss(logits, targets.where(targets != 3, -100))
    torch.testing.assert_close(loss(logits, targets.masked_fill(targets == -100, 3), ignore_index=3), only)
    assert loss(logits, torch.full((3, 5), -100)).isnan()
    assert loss(logits, torch.full((3, 5), -100), reduction="sum") == 0


@BOTH
def test_sixteen_bits_are_computed_in_float32(loss):
    logits, targets = scores_and_targets()
    halves = logits.detach().bfloat16()
    assert loss(halves, targets).dtype == torch.float32
    torch.testing.assert_close(loss(halves, targets), loss(halves.float(), targets))


@BOTH
def test_bad_input(loss):
    logits, targets = scores_and_targets()
    with pytest.raises(ShapeError, match=r"\(3, 4\).*\(3, 5, 7\)"):
        loss(logits, targets[:, :4])
    with pytest.raises(ShapeError, match="float"):
        loss(logits, targets.double())
    with pytest.raises(DataError, match=r"7 is outside the vocabulary 0 \.\. 6"):
        loss(logits, targets.masked_fill(targets == -100, 7))
    with pytest.raises(DataError, match="-1 is outside"):
        loss(logits, targets.masked_fill(targets == -100, -1))
    with pytest.raises(ConfigError, match="median"):
        loss(logits, targets, reduction="median")


def test_log_sum_exp_of_minus_infinities():
    infinite = -math.inf
    rows = torch.tensor([[infinite, infinite], [infinite, 2.0], [1000.0, 1000.0]], dtype=torch.float64)
    expected = torch.tensor([infinite, 2.0, 1000.0 + math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(log_sum_exp(rows), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_smoothed_loss_equals_torch(smoothing):
    logits, targets = scores_and_targets()
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing)
    found = SmoothedLoss(smoothing)(lambda inputs: logits, targets, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    with pytest.raises(ConfigError, match="smoothing"):
        SmoothedLoss(1.5)
    with pytest.raises(DataError, match="outside"):
        SmoothedLoss(smoothing)(lambda inputs: logits, targets, targets.clamp(min=0) + logits.shape[-1])
    with pytest.raises(ShapeError, match="targets"):
        SmoothedLoss(smoothing)(lambda inputs: logits, targets, targets[..., :1])
