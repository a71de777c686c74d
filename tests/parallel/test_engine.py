"""PyTorch's engines on our model: losses, norms and weights of one process in float64, and checkpoints both ways."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed.fsdp  # the forked ranks inherit the slow imports
import torch.distributed.pipelining
import torch.distributed.tensor.parallel  # noqa: F401
from torch import nn

from minillm.errors import ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.engine import EngineModel, check_engine
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.train.clip import clip_gradients
from minillm.train.grouping import decay_groups
from minillm.train.loss import next_token_loss
from minillm.train.optim import AdamW
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

SHAPE = {"vocab_size": 16, "max_seq_len": 8, "n_layers": 2, "n_heads": 4, "d_model": 16}
CONFIGS = {
    "gpt2": GPTConfig(**SHAPE, bias=True),
    "modern": GPTConfig(
        **SHAPE, n_kv_heads=2, norm="rms", position="rotary", feed_forward="swiglu", qk_norm=True, token_shift=True,
        tie_embeddings=False, logit_cap=15.0,
    ),
    "bloom": GPTConfig(**SHAPE, bias=True, position="alibi", embedding_norm=True),
}  # fmt: skip
N_STEPS, MAX_NORM = 3, 0.5


def whole_model(name):
    model = GPT(CONFIGS[name], torch.Generator().manual_seed(0)).double()
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    return model


def batch(step):
    """Four rows; the first ones count fewer targets, so that means of means are wrong."""
    dice = np.random.default_rng(step)
    inputs, targets = torch.from_numpy(dice.integers(0, 16, (4, 8))), torch.from_numpy(dice.integers(0, 16, (4, 8)))
    targets[0, :5] = targets[1, :2] = -100
    return inputs, targets


def ours(model, config=None):
    return AdamW(decay_groups(model, 0.1), lr=0.02, betas=(0.9, 0.95))


def single_run(name, n_steps, model=None, optimizer=None, first=0):
    model = model or whole_model(name)
    optimizer = optimizer or ours(model)
    numbers = []
    for step in range(first, first + n_steps):
        inputs, targets = batch(step)
        loss = next_token_loss(model, inputs, targets) / (targets != -100).sum()
        loss.backward()
        norm = clip_gradients(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        numbers.append((loss.item(), norm.item()))
    return numbers, model, optimizer


def engine_run(cut, n_steps, first=0):
    numbers, dp = [], cut.mesh.dp
    for step in range(first, first + n_steps):
        inputs, targets = (rows.chunk(dp.size)[dp.rank] for rows in batch(step))
        loss, n_tokens = cut.gradients(inputs, targets, 1.0)
        assert n_tokens == 25
        norm = cut.clip(MAX_NORM)
        cut.optimizer.step()
        cut.optimizer.zero_grad()
        numbers.append((loss.item(), norm.item()))
    return numbers


def train_and_resume(world, engine, size, name, saved):
    """From nothing for three steps; then from what another engine saved."""
    mesh = Mesh(size, world)
    n_parts = 2 if size.pp > 1 else 1
    cut = EngineModel(engine, whole_model(name), mesh, ours, n_parts)
    begun = engine_run(cut, N_STEPS)
    gathered = copy.deepcopy((cut.gather_weights(), cut.gather_optimizer()))
    cut.scatter(*saved)
    return begun, *gathered, engine_run(cut, 2, first=N_STEPS)


def largest_difference(one, other):
    return float(np.abs(np.array(one) - np.array(other)).max())


def check_weights(found, expected):
    """The gradient of a key's bias is 0 but for rounding, which AdamW divides by its size plus 1e-8: 1e-11 there."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        bound = 1e-11 if name.endswith("qkv.bias") else 1e-12
        assert (found[name] - tensor).abs().max() < bound, name


CASES = [
    ("fsdp2", MeshSize(dp=2), "gpt2"),
    ("tp", MeshSize(tp=2), "bloom"),
    pytest.param("tp", MeshSize(dp=2, tp=2), "modern", marks=pytest.mark.slow),
    pytest.param("pp", MeshSize(pp=2), "gpt2", marks=pytest.mark.slow),
    pytest.param("pp", MeshSize(dp=2, pp=2), "modern", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("engine", "size", "name"), CASES, ids=lambda value: str(value))
def test_an_engine_trains_as_one_process_and_goes_on_from_its_checkpoint(engine, size, name):
    expected, model, optimizer = single_run(name, N_STEPS)
    saved = copy.deepcopy((dict(model.state_dict()), optimizer_state_by_name(optimizer, model)))
    later, final, _ = single_run(name, 2, model, optimizer, first=N_STEPS)
    ranks = launch(
        train_and_resume, size.world_size, engine, size, name, saved, timeout_seconds=20, show_output=False
    )
    for begun, weights, _, resumed in ranks:
        assert largest_difference(begun, expected) < 1e-12
        assert largest_difference(resumed, later) < 1e-12
        check_weights(weights, saved[0])
    _, weights, state, _ = ranks[0]
    # What the engine gathered is a checkpoint of one process: our optimizer goes on from it.
    model = whole_model(name)
    model.load_state_dict(weights)
    optimizer = ours(model)
    load_optimizer_state_by_name(optimizer, model, state)
    again, ours_final, _ = single_run(name, 2, model, optimizer, first=N_STEPS)
    assert largest_difference(again, later) < 1e-12
    check_weights(ours_final.state_dict(), final.state_dict())


def test_meshes_and_models_that_an_engine_cannot_cut_are_refused():
    config = CONFIGS["modern"]
    for engine, size, words in (
        ("fsdp2", MeshSize(tp=2), "along dp only"),
        ("tp", MeshSize(pp=2), "along dp and tp only"),
        ("tp", MeshSize(tp=4), "n_kv_heads"),
        ("pp", MeshSize(pp=4), "2 layers"),
        ("deepspeed", MeshSize(), "known are fsdp2, tp, pp"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_engine(engine, size, config)


# --- the comparison can fail


def steps_with(world, engine, size, wrong):
    mesh = Mesh(size, world)
    cut = EngineModel(engine, whole_model("gpt2"), mesh, ours)
    wrong(cut)
    return engine_run(cut, N_STEPS)


def forget_the_factor(cut):
    """fully_shard takes the mean over the ranks; who does not know it has half of the gradient."""
    cut.is_fully_sharded = False


def norm_of_the_own_part(cut):
    """Each rank clips by the norm of the slices that it has."""

    def clip(max_norm):
        local = [p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in cut.model.parameters()]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in local]))
        for gradient in local:
            gradient.mul_(min(1.0, max_norm / (norm.item() + 1e-6)))
        return norm

    cut.clip = clip


def rows_in_order(cut):
    """Contiguous shares of the fused matrix are not heads: rank 0 would get queries, rank 1 keys and values."""
    attention = cut.model.blocks[0].attention
    with torch.no_grad():
        full = attention.qkv.weight.full_tensor()
        order = torch.cat([torch.arange(0, 48, 2), torch.arange(1, 48, 2)])
        attention.qkv.weight.to_local().copy_(full[order].chunk(2)[cut.mesh.tp.rank])


@pytest.mark.parametrize(
    ("engine", "size", "wrong"),
    [
        ("fsdp2", MeshSize(dp=2), forget_the_factor),
        pytest.param("fsdp2", MeshSize(dp=2), norm_of_the_own_part, marks=pytest.mark.slow),
        ("tp", MeshSize(tp=2), rows_in_order),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_comparison_notices(engine, size, wrong):
    expected = single_run("gpt2", N_STEPS)[0]
    found = launch(steps_with, size.world_size, engine, size, wrong, timeout_seconds=20, show_output=False)[0]
    assert largest_difference(found, expected) > 1e-3
