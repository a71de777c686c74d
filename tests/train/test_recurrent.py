"""Training with a carried state: what is carried, what is cut, and that all kinds learn."""

import io
import math
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillm.data.batches import StreamBatches
from minillm.errors import ConfigError, DataError, TrainingError
from minillm.models.lstm import RecurrentConfig, RecurrentLM
from minillm.train.hooks import Hook, ProgressLine
from minillm.train.recurrent import CarriedState, RecurrentTraining, train_recurrent

END = 0


def config(kind="lstm", **settings):
    return RecurrentConfig(vocab_size=5, end_of_text_id=END, kind=kind, d_hidden=8, **settings)


def tensors(batch):
    return [torch.from_numpy(each) for each in batch]


@pytest.mark.parametrize("carry", [True, False])
def test_the_state_is_carried_and_its_gradient_is_not(carry):
    ids = np.random.default_rng(0).integers(1, 5, size=26)
    batches, model = StreamBatches(ids, 2, 5), RecurrentLM(config(), torch.Generator().manual_seed(0)).double()
    carried = CarriedState(batches, carry)
    for step in range(5):                                          # three batches make an epoch, of 5, 5 and 2 steps
        inputs, targets = tensors(batches.batch(step))
        model.zero_grad()
        loss = carried(model, inputs, targets)
        loss.backward()
        gradient = model.layers.weight_hh_l0.grad.clone()
        before = None
        for earlier in range(step - step % 3, step if carry else 0):
            with torch.no_grad():
                _, before = model(tensors(batches.batch(earlier))[0], before)
        model.zero_grad()
        expected = F.cross_entropy(model(inputs, before)[0].flatten(0, 1), targets.flatten(), reduction="sum")
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, model.layers.weight_hh_l0.grad)


def test_a_resumed_run_begins_with_an_empty_state_in_the_right_place():
    batches = StreamBatches(np.arange(1, 26) % 4 + 1, 2, 5)
    model = RecurrentLM(config(), torch.Generator().manual_seed(0))
    carried = CarriedState(batches)
    carried(model, *tensors(batches.batch(0)))
    carried.on_start(2, 9, ())
    assert carried.step == 2 and carried.state is None
    loss = carried(model, *tensors(batches.batch(2)))
    inputs, targets = tensors(batches.batch(2))
    expected = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_each_kind_learns_what_needs_memory(kind):
    """After 1 3 comes 1, after 2 3 comes 2: the last id alone does not say which."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([[first, 3, first, END] for first in rng.integers(1, 3, size=500)])
    training = RecurrentTraining(n_steps=150, batch_size=4, seq_len=16, learning_rate=0.03)
    model = train_recurrent(ids, config(kind), training, progress=False)
    assert not model.training
    nats = -model.log_probabilities([1, 3, 1, END, 2, 3, 2, END])
    assert nats[[0, 4]] == pytest.approx([math.log(2)] * 2, abs=0.35) and nats[[1, 2, 3, 5, 6, 7]].max() < 0.1


def test_the_same_seed_gives_the_same_model_and_progress_is_told():
    ids, training = np.arange(200) % 5, RecurrentTraining(n_steps=6, batch_size=2, seq_len=8)
    told = io.StringIO()
    first = train_recurrent(ids, config(), training, seed=3, progress=False, hooks=[ProgressLine(told)])
    second = train_recurrent(ids, config(), training, seed=3, progress=False)
    other = train_recurrent(ids, config(), training, seed=4, progress=False)
    for ours, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, same)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert "loss" in told.getvalue() and "tokens/s" in told.getvalue()


def test_half_a_training_is_no_model():
    class Stop(Hook):
        def on_step(self, report):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingError, match="SIGTERM stopped the training after 1 of 9 steps"):
        train_recurrent(np.arange(90) % 5, config(), RecurrentTraining(n_steps=9), progress=False, hooks=[Stop()])


def test_bad_settings_are_refused():
    for name, value in (("n_steps", 0), ("batch_size", 0), ("seq_len", 0), ("learning_rate", -1.0), ("max_norm", 0.0)):
        with pytest.raises(ConfigError, match=name):
            RecurrentTraining(**{"n_steps": 5, name: value})
    with pytest.raises(ConfigError, match="weight_decay"):
        RecurrentTraining(n_steps=5, weight_decay=float("nan"))
    with pytest.raises(DataError, match="tokens"):
        train_recurrent([1, 2], config(), RecurrentTraining(n_steps=5, batch_size=8), progress=False)
