"""Gradual unfreezing: who learns when, and that nothing else moves."""

import numpy as np
import pytest
import torch
from helpers.adapt_models import small_gpt, small_t5

from minillm import surgery
from minillm.adapt.adapted import adapt
from minillm.adapt.layer_order import depths, layer_groups
from minillm.adapt.partial import LastLayersConfig
from minillm.adapt.unfreezing import GradualUnfreezing
from minillm.errors import ConfigError
from minillm.train.hooks import Hook
from minillm.train.loop import LoopConfig, train
from minillm.train.optim import AdamW


class Watch(Hook):
    def __init__(self, model):
        self.model, self.before, self.moved = model, self.now(model), []

    @staticmethod
    def now(model):
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def on_step(self, report):
        after = self.now(self.model)
        self.moved.append({name for name, value in after.items() if not torch.equal(value, self.before[name])})
        self.before = after


def batches(step):
    ids = np.random.default_rng(step).integers(0, 23, (4, 9))
    return ids[:, :-1], ids[:, 1:]


def test_depths_join_from_the_top_and_what_is_frozen_stays_bit_for_bit():
    model = small_gpt(n_layers=3, tie_embeddings=False)
    depth = depths(model)
    optimizer, watch = AdamW(layer_groups(model, 1e-2)), Watch(model)
    hooks = [watch, GradualUnfreezing(model, steps_per_depth=2)]
    train(model, optimizer, batches, LoopConfig(n_steps=12), hooks=hooks)
    for step, moved in enumerate(watch.moved):
        lowest = max(0, 4 - step // 2)
        assert moved == {name for name, place in depth.items() if place >= lowest}, step
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_who_learns_depends_on_the_step_alone_and_gradients_of_frozen_ones_are_dropped():
    model = small_t5()
    unfreezing = GradualUnfreezing(model, steps_per_depth=3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for step in (100, 3, 0, 7):
        unfreezing.let_learn(step)
        lowest = max(0, 5 - step // 3)
        assert set(surgery.trainable(model)) == {name for name, d in depths(model).items() if d >= lowest}
    at_top = [depth == 5 for depth in depths(model).values()]
    assert [parameter.grad is not None for parameter in model.parameters()] == at_top


def test_what_does_not_take_part_stays_frozen_and_an_empty_depth_is_no_pause():
    model = small_gpt(n_layers=3)
    adapt(model, LastLayersConfig(n_layers=2))
    for parameter in model.final_norm.parameters():                # nothing is left at the highest depth
        parameter.requires_grad_(False)
    part = set(surgery.trainable(model))
    unfreezing = GradualUnfreezing(model, steps_per_depth=1)
    unfreezing.let_learn(0)
    assert set(surgery.trainable(model)) == {name for name in part if name.startswith("blocks.2.")}
    unfreezing.let_learn(9)
    assert set(surgery.trainable(model)) == part


def test_misuse_is_refused():
    model = small_gpt()
    with pytest.raises(ConfigError, match="steps_per_depth 0"):
        GradualUnfreezing(model, 0)
    surgery.freeze(model)
    with pytest.raises(ConfigError, match="0 trainable"):
        GradualUnfreezing(model, 1)
