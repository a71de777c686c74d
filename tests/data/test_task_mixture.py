"""Mixing tasks: rates against the paper's formula in exact fractions, and batches that are drawn as the rates say."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare

from minillm.data.batches import NOT_COUNTED
from minillm.data.task_mixture import TaskMixture, mixing_rates
from minillm.errors import ConfigError, DataError

SIZES = {"translate": 8000, "question": 1000, "sort": 60}


@pytest.mark.parametrize("limit", [math.inf, 10**6, 2000, 60, 1, 0.5])
def test_proportional_with_a_limit(limit):
    counted = {task: Fraction(min(size, limit)) for task, size in SIZES.items()}
    rates = mixing_rates(SIZES, limit)
    assert list(rates) == list(SIZES)
    for task, count in counted.items():
        assert math.isclose(rates[task], count / sum(counted.values()))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1, 2, 8, 1e6])
def test_temperature_is_a_power_of_the_proportional_rates(temperature):
    plain = mixing_rates(SIZES, 2000)
    total = sum(rate ** (1 / temperature) for rate in plain.values())
    for task, rate in mixing_rates(SIZES, 2000, temperature).items():
        assert math.isclose(rate, plain[task] ** (1 / temperature) / total)


def test_hot_is_equal_and_cold_is_the_largest():
    assert mixing_rates(SIZES, temperature=math.inf) == dict.fromkeys(SIZES, 1 / 3)
    assert mixing_rates({"a": 10**12, "b": 10**11}, temperature=0.001) == {"a": 1.0, "b": 0.0}


def mixture(seed=0, batch_size=64):
    tasks = {name: [([first, 10 + n], [n]) for n in range(2, size)] for name, size, first in (("a", 9, 5), ("b", 4, 6))}
    return TaskMixture(tasks, {"a": 0.25, "b": 0.75}, batch_size, seed, pad_id=0, end_id=1)


def test_rows_are_drawn_as_the_rates_say_and_examples_equally():
    drawn = Counter(row for step in range(50) for row in mixture().drawn(step))
    expected = {("a", n): 800 / 7 for n in range(7)} | {("b", n): 1200 for n in range(2)}
    assert drawn.keys() == expected.keys()
    assert chisquare([drawn[key] for key in expected], list(expected.values())).pvalue > 1e-3


def test_batches_hold_what_was_drawn_and_depend_on_seed_and_step_only():
    mixed = mixture(batch_size=5)
    for step in (3, 0, 3):
        inputs, targets = mixed.batch(step)
        assert inputs.shape == targets.shape == (5, 3) and inputs.dtype == targets.dtype == np.int64
        for (name, number), read, written in zip(mixed.drawn(step), inputs.tolist(), targets.tolist(), strict=True):
            source, target = mixed.tasks[name][number]
            assert read == [*source, 1] and written == [*target, 1, NOT_COUNTED]
    assert (mixture().batch(7)[0] == mixture().batch(7)[0]).all()
    assert (mixture().batch(7)[0] != mixture(seed=1).batch(7)[0]).any()


def test_bad_input():
    for arguments in [({},), ({"a": 0},), ({"a": 1}, 0), ({"a": 1}, math.inf, 0.0), ({"a": 1}, math.nan)]:
        with pytest.raises(ConfigError, match="expected at least one task"):
            mixing_rates(*arguments)
    one = {"a": [([5], [6])]}
    for tasks, rates in [(one, {"b": 1.0}), (one, {"a": 0.5}), (one | {"b": one["a"]}, {"a": 1.5, "b": -0.5})]:
        with pytest.raises(ConfigError, match="rates"):
            TaskMixture(tasks, rates, 1, 0, 0, 1)
    with pytest.raises(ConfigError, match="batch_size"):
        TaskMixture(one, {"a": 1.0}, 0, 0, 0, 1)
    with pytest.raises(DataError, match="no example"):
        TaskMixture({"a": []}, {"a": 1.0}, 1, 0, 0, 1)
    with pytest.raises(DataError, match="step"):
        mixture().batch(-1)
