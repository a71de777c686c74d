"""How often to save: the exact mean against a simulation, and its minimum against Young's rule."""

import math

import numpy as np
import pytest

from minillm.errors import ConfigError
from minillm.parallel.checkpoint_interval import expected_run_seconds, simulate_run, young_interval


@pytest.mark.parametrize(
    ("interval", "save", "failure", "restart"), [(100, 5, 400, 20), (300, 0, 200, 0), (70, 30, 1000, 100)]
)
def test_mean_of_simulated_runs(interval, save, failure, restart):
    rng = np.random.default_rng(0)
    runs = [simulate_run(1000, interval, save, failure, restart, rng) for _ in range(2000)]
    seconds = np.array([run[0] for run in runs])
    error = seconds.std() / math.sqrt(len(seconds))
    assert abs(seconds.mean() - expected_run_seconds(1000, interval, save, failure, restart)) < 3.5 * error
    wasted_by_formula_without_restart = expected_run_seconds(1000, interval, save, failure, 0)
    assert restart == 0 or abs(seconds.mean() - wasted_by_formula_without_restart) > 4 * error


def test_no_failures_and_many():
    assert expected_run_seconds(1000, 100, 7, 1e12, 50) == pytest.approx(1070, rel=1e-6)
    assert simulate_run(1000, 100, 7, 1e12, 50, np.random.default_rng(0)) == (pytest.approx(1070), 0)
    assert expected_run_seconds(1000, 250, 0, 100, 0) == pytest.approx(4 * 100 * math.expm1(2.5))


def test_young_is_near_the_best_interval():
    for save, failure in ((1, 1000), (5, 3600), (30, 36000)):
        grid = np.geomspace(young_interval(save, failure) / 8, young_interval(save, failure) * 8, 400)
        work = 1e7  # so long that what does not divide matters little
        times = [expected_run_seconds(work, float(each), save, failure, 10) for each in grid]
        best = grid[int(np.argmin(times))]
        assert abs(best / young_interval(save, failure) - 1) < 0.06
        at_young = expected_run_seconds(work, young_interval(save, failure), save, failure, 10)
        assert at_young < 1.001 * min(times)


def test_refusals():
    with pytest.raises(ConfigError, match="interval is 0"):
        expected_run_seconds(10, 0, 1, 1, 1)
    with pytest.raises(ConfigError, match="restart_seconds is -1"):
        expected_run_seconds(10, 1, 1, 1, -1)
    with pytest.raises(ConfigError, match="save_seconds is 0"):
        young_interval(0, 10)
    with pytest.raises(ConfigError, match="failure_seconds is -3"):
        simulate_run(10, 1, 1, -3, 1, np.random.default_rng(0))
