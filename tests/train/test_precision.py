"""The oracle of the loss scaler is torch's GradScaler on a scripted sequence of overflows."""

import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError, ConfigError
from minillm.train.precision import LossScaler, Precision

OVERFLOWS = [0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_trajectory_is_that_of_torch():
    settings = {"init_scale": 1024.0, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 3}
    ours, theirs = LossScaler(**settings), torch.amp.GradScaler("cpu", **settings)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    ours_scales, their_scales = [], []
    for overflow in OVERFLOWS:
        theirs.scale(weight.sum()).backward()
        if overflow:
            weight.grad[1] = torch.inf
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(bool(overflow))
        ours_scales.append(ours.scale)
        their_scales.append(theirs.get_scale())
    assert ours_scales == their_scales
    assert len(set(ours_scales)) > 4


def test_unscale_and_overflow_stays_visible():
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    weights[0].grad, weights[1].grad = torch.tensor([8.0, 16.0, -4.0]), torch.tensor([torch.inf])
    LossScaler(init_scale=8.0).unscale(iter(weights))
    assert weights[0].grad.tolist() == [1.0, 2.0, -0.5]
    assert weights[1].grad.isinf() and weights[2].grad is None


def test_state_goes_on():
    first, second = LossScaler(growth_interval=3), LossScaler(growth_interval=3)
    first.update(True), first.update(False), first.update(False)
    second.load_state_dict(first.state_dict())
    assert (second.scale, second.n_good_steps) == (32768.0, 2)
    second.update(False)
    assert second.scale == 65536.0
    for bad in ({}, {"scale": -1.0, "n_good_steps": 1}, {"scale": 1.0}, {"scale": float("nan"), "n_good_steps": 0}):
        with pytest.raises(CheckpointError, match="loss scaler"):
            second.load_state_dict(bad)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_made_in_the_format(name, dtype):
    precision = Precision(name)
    layer = nn.Linear(4, 4)
    with precision.autocast("cpu"):
        result = layer(torch.ones(1, 4))
    assert result.dtype == (dtype or torch.float32)
    assert layer.weight.dtype == torch.float32
    assert (precision.scaler is not None) == (name == "fp16")


def test_bad_settings():
    with pytest.raises(ConfigError, match="tf32.*known"):
        Precision("tf32")
    for settings in ({"init_scale": 0}, {"growth_factor": 1}, {"backoff_factor": 1}, {"growth_interval": 0}):
        with pytest.raises(ConfigError, match="expected"):
            LossScaler(**settings)
