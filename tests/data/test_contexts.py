"""Batches of contexts: every example once an epoch, the same for the same seed, with its own target."""

import numpy as np
import pytest

from minillm.data.batches import NOT_COUNTED
from minillm.data.contexts import ContextBatches
from minillm.errors import ConfigError, DataError

IDS = np.array([4, 5, 6, 0, 7, 0, 8, 9, 1, 2, 0])  # 11 ids; each but the end-of-text id occurs once


def example_rows(contexts, targets):
    pairs = zip(contexts.tolist(), targets[:, -1].tolist(), strict=True)
    return sorted((*context, target) for context, target in pairs)


EXPECTED = sorted([
    (0, 0, 4), (0, 4, 5), (4, 5, 6), (5, 6, 0), (0, 0, 7), (0, 7, 0), (0, 0, 8), (0, 8, 9), (8, 9, 1), (9, 1, 2),
    (1, 2, 0),
])  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 11, 30])
def test_every_example_once_in_every_epoch(batch_size):
    batches = ContextBatches(IDS, 2, 0, batch_size, seed=0)
    n_epochs = 3 * batch_size
    found = [batches.batch(step) for step in range(n_epochs * len(IDS) // batch_size)]
    contexts, targets = (np.concatenate(part) for part in zip(*found, strict=True))
    assert (targets[:, :-1] == NOT_COUNTED).all()
    orders = set()
    for epoch in range(n_epochs):
        here = slice(epoch * len(IDS), (epoch + 1) * len(IDS))
        assert example_rows(contexts[here], targets[here]) == EXPECTED
        orders.add(tuple(map(tuple, contexts[here].tolist())))
    assert len(orders) > 1  # shuffled anew


def test_any_step_in_any_order_and_the_seed_decides():
    one, other = (ContextBatches(IDS, 2, 0, 4, seed=1) for _ in range(2))
    forwards = [one.batch(step) for step in range(9)]
    for step in (8, 0, 5, 1, 7, 2):
        for left, right in zip(other.batch(step), forwards[step], strict=True):
            np.testing.assert_array_equal(left, right)
    different = ContextBatches(IDS, 2, 0, 4, seed=2).batch(0)
    assert not np.array_equal(different[0], forwards[0][0])


def test_batches_per_epoch():
    assert [ContextBatches(IDS, 2, 0, size, 0).batches_per_epoch for size in (1, 4, 11, 12)] == [11, 3, 1, 1]


@pytest.mark.parametrize("wrong", [{"n_before": 0}, {"batch_size": 0}, {"seed": -1}])
def test_sizes_out_of_range_are_named(wrong):
    settings = {"n_before": 2, "batch_size": 3, "seed": 0} | wrong
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ContextBatches(IDS, settings["n_before"], 0, settings["batch_size"], settings["seed"])


def test_no_text_and_no_step():
    with pytest.raises(DataError, match="at least one id"):
        ContextBatches(IDS[:0], 2, 0, 3, 0)
    with pytest.raises(DataError, match="one sequence"):
        ContextBatches(IDS.reshape(1, -1), 2, 0, 3, 0)
    with pytest.raises(DataError, match="step"):
        ContextBatches(IDS, 2, 0, 3, 0).batch(-1)
