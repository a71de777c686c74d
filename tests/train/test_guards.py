"""When a step must not be made."""

import math

import numpy as np
import pytest

from minillm.train.guards import reason_to_skip, spike_threshold


def test_threshold_is_mean_and_sigmas():
    losses = np.random.default_rng(0).normal(3.0, 0.5, size=100).tolist()
    assert spike_threshold(losses, 6.0) == pytest.approx(np.mean(losses) + 6 * np.std(losses), rel=1e-12)


def test_no_threshold_without_history_or_when_off():
    assert spike_threshold([1.0] * 63) == math.inf
    assert spike_threshold([1.0] * 100, n_sigmas=0.0) == math.inf
    assert spike_threshold([], min_history=0) == math.inf


def test_a_constant_loss_leaves_room():
    assert spike_threshold([2.0] * 64, 6.0) == pytest.approx(2.12)


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "loss is nan"),
        (math.inf, 1.0, "loss is inf"),
        (1.0, math.nan, "gradient norm is nan"),
        (1.0, math.inf, "gradient norm is inf"),
        (5.1, 1.0, "loss spike"),
        (5.0, 1e9, None),
    ],
)
def test_reasons(loss, norm, reason):
    assert reason_to_skip(loss, norm, threshold=5.0) == reason
