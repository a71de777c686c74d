"""Learning from a teacher: torch's divergence, the gradient in closed form, the limit of high temperatures, masks."""

import math

import pytest
import torch
from torch.nn import functional as F

from minillm.compress.distill import DistillationLoss, soft_target_loss
from minillm.errors import ConfigError, ShapeError
from minillm.train.accumulation import accumulate_gradients
from minillm.train.loss import next_token_loss


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.7])
def test_loss_and_gradient(temperature):
    logits, teacher = 3 * normal(2, 4, 7).requires_grad_(), (3 * normal(2, 4, 7, seed=1)).requires_grad_()
    logits = logits.detach().requires_grad_()
    loss = soft_target_loss(logits, teacher, temperature)
    log_shares = (logits / temperature).log_softmax(-1)
    target = (teacher / temperature).softmax(-1)
    expected = temperature**2 * F.kl_div(log_shares, target, reduction="none").sum(-1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    closed = temperature * ((logits / temperature).softmax(-1) - target)
    torch.testing.assert_close(logits.grad, closed, rtol=1e-12, atol=1e-12)
    assert teacher.grad is None


def test_high_temperatures_compare_the_logits_themselves():
    logits, teacher = normal(5, 7).requires_grad_(), normal(5, 7, seed=1)
    gradient = torch.autograd.grad(soft_target_loss(logits, teacher, 1e4).sum(), logits)[0]
    centred = (logits - logits.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(gradient, centred / 7, rtol=2e-3, atol=1e-4)


def test_nothing_to_learn_where_the_two_agree():
    logits = (50 * normal(3, 5)).requires_grad_()
    loss = soft_target_loss(logits, logits.detach() + 2.0, 2.0)    # a constant changes no distribution
    assert loss.abs().max() < 1e-12 and torch.autograd.grad(loss.sum(), logits)[0].abs().max() < 1e-12
    assert soft_target_loss(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])).item() == 1e4


class Table(torch.nn.Module):
    """(B, T) ids to the logits of a table."""

    def __init__(self, seed, dtype=torch.float64):
        super().__init__()
        self.table = torch.nn.Parameter(normal(6, 6, seed=seed, dtype=dtype))

    def forward(self, ids):
        return self.table[ids]


@pytest.mark.parametrize("hard_share", [0.0, 0.3, 1.0])
def test_the_mixture_in_the_training_loop(hard_share):
    student, teacher = Table(0), Table(1)
    inputs = torch.arange(12).view(3, 4) % 6
    targets = (inputs + 1) % 6
    targets[0, 1:] = -100
    loss_sum = DistillationLoss(teacher, 2.0, hard_share)
    counted = targets != -100
    soft = soft_target_loss(student(inputs), teacher(inputs), 2.0)[counted].sum()
    expected = hard_share * next_token_loss(student, inputs, targets) + (1 - hard_share) * soft
    torch.testing.assert_close(loss_sum(student, inputs, targets), expected, rtol=1e-12, atol=1e-12)
    mean = accumulate_gradients(student, inputs, targets, 3, loss_sum)
    torch.testing.assert_close(mean, expected.detach() / counted.sum(), rtol=1e-6, atol=1e-6)
    assert teacher.table.grad is None and student.table.grad.abs().sum() > 0
    alone = torch.autograd.grad(expected / counted.sum(), student.table)[0]
    torch.testing.assert_close(student.table.grad, alone, rtol=1e-10, atol=1e-10)


def test_narrow_logits_are_widened():
    loss = DistillationLoss(Table(1, torch.bfloat16), 2.0)(Table(0, torch.bfloat16), torch.zeros(1, 1).long(),
                                                           torch.zeros(1, 1).long())  # fmt: skip
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_bad_settings_are_refused():
    with pytest.raises(ShapeError, match="same vocabulary"):
        soft_target_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            soft_target_loss(torch.zeros(3), torch.zeros(3), temperature)
        with pytest.raises(ConfigError, match="temperature"):
            DistillationLoss(Table(0), temperature)
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="hard_share"):
            DistillationLoss(Table(0), 1.0, share)
