"""Schedules against closed forms at their corners, and against torch's own where it has one."""

import math

import pytest
import torch

from minillm.errors import ConfigError
from minillm.train.schedule import constant, warmup_cosine, warmup_linear_to_zero, warmup_stable_decay


def test_cosine_part_is_that_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.03)
    for step in range(41):
        expected = optimizer.param_groups[0]["lr"]
        assert warmup_cosine(step, 0.3, 0.03, 0, 40) == pytest.approx(expected, rel=1e-9)
        assert warmup_cosine(step + 7, 0.3, 0.03, 7, 47) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_warmup_is_a_straight_line_that_ends_at_the_maximum():
    for schedule in (
        lambda step: warmup_cosine(step, 2.0, 0.1, 10, 50),
        lambda step: warmup_linear_to_zero(step, 2.0, 10, 50),
        lambda step: warmup_stable_decay(step, 2.0, 0.1, 10, 5, 50),
    ):
        assert [schedule(step) for step in range(10)] == pytest.approx([0.2 * (step + 1) for step in range(10)])
        assert schedule(10) == pytest.approx(2.0)


def test_ends():
    assert [warmup_cosine(step, 1.0, 0.25, 2, 10) for step in (10, 11, 10**9)] == [0.25] * 3
    assert [warmup_linear_to_zero(step, 1.0, 2, 10) for step in (6, 9, 10, 99)] == [0.5, 0.125, 0.0, 0.0]
    assert warmup_stable_decay(45, 1.0, 0.2, 0, 10, 50) == pytest.approx(0.6)
    assert [warmup_stable_decay(step, 1.0, 0.2, 0, 10, 50) for step in (0, 39, 40, 50, 70)] == [1, 1, 1, 0.2, 0.2]
    assert constant(12345, 0.7) == 0.7


def test_runs_without_warmup_decay_or_steps():
    assert warmup_stable_decay(9, 1.0, 0.0, 0, 0, 10) == 1.0
    assert warmup_cosine(0, 1.0, 0.5, 0, 0) == 0.5
    assert warmup_linear_to_zero(0, 1.0, 4, 4) == 0.25
    assert warmup_linear_to_zero(4, 1.0, 4, 4) == 0.0


@pytest.mark.parametrize(
    "arguments",
    [(-1, 1.0, 0.0, 2, 10), (0, 1.0, 0.0, 11, 10), (0, 1.0, 2.0, 2, 10), (0, 1.0, 0.0, -1, 10), (0, math.nan, 0, 1, 2)],
)
def test_bad_settings(arguments):
    with pytest.raises(ConfigError, match="expected"):
        warmup_cosine(*arguments)


def test_overlapping_parts():
    with pytest.raises(ConfigError, match="do not fit into 10"):
        warmup_stable_decay(0, 1.0, 0.0, 6, 5, 10)
