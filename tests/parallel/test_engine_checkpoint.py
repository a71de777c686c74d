"""DCP to and from our checkpoint: what one process has, fully_shard goes on with, and the other way round."""

import copy

import pytest
import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp  # noqa: F401  the forked ranks inherit the slow imports

from minillm.errors import CheckpointError, ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.engine import EngineModel
from minillm.parallel.engine_checkpoint import load_with_torch, save_with_torch
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.torch_checkpoint import read_torch_checkpoint, write_torch_checkpoint
from minillm.train.grouping import decay_groups
from minillm.train.loss import next_token_loss
from minillm.train.optim import AdamW
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

CONFIG = GPTConfig(vocab_size=16, max_seq_len=8, n_layers=2, n_heads=2, d_model=16, tie_embeddings=False)


def whole_model():
    return GPT(CONFIG, torch.Generator().manual_seed(0)).double()


def adamw(model, config=None):
    return AdamW(decay_groups(model, 0.1), lr=0.02)


def batch(step):
    ids = torch.randint(0, 16, (4, 9), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:]


def steps(model, optimizer, first, last):
    losses = []
    for step in range(first, last):
        inputs, targets = batch(step)
        loss = next_token_loss(model, inputs, targets) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def sharded_steps(world, source, target):
    """Two steps under fully_shard from one DCP folder, then into another."""
    cut = EngineModel("fsdp2", whole_model(), Mesh(MeshSize(dp=world.size), world), adamw)
    load_with_torch(cut, source)
    losses = []
    for step in (2, 3):
        inputs, targets = (rows.chunk(world.size)[world.rank] for rows in batch(step))
        losses.append(cut.gradients(inputs, targets, 1.0)[0].item())
        cut.optimizer.step()
        cut.optimizer.zero_grad()
    save_with_torch(cut, target)
    with pytest.raises(CheckpointError, match="not empty"):
        save_with_torch(cut, target)
    with pytest.raises(CheckpointError, match="metadata"):
        load_with_torch(cut, target / "nowhere")
    return losses


@pytest.mark.slow
def test_dcp_carries_a_run_to_fully_shard_and_back(tmp_path):
    model = whole_model()
    optimizer = adamw(model)
    steps(model, optimizer, 0, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer_state_by_name(optimizer, model)))
    expected = steps(model, optimizer, 2, 6)
    write_torch_checkpoint(tmp_path / "from", *saved)
    for losses in launch(
        sharded_steps, 2, tmp_path / "from", tmp_path / "to", timeout_seconds=20, show_output=False
    ):
        assert losses == pytest.approx(expected[:2], abs=1e-12, rel=0)
    weights, state = read_torch_checkpoint(tmp_path / "to")
    model = whole_model()
    model.load_state_dict(weights)
    optimizer = adamw(model)
    load_optimizer_state_by_name(optimizer, model, state)
    assert steps(model, optimizer, 4, 6) == pytest.approx(expected[2:], abs=1e-12, rel=0)


def test_other_engines_are_refused(tmp_path):
    def run(world):
        cut = EngineModel("tp", whole_model(), Mesh(MeshSize(tp=2), world), adamw)
        with pytest.raises(ConfigError, match="engine tp"):
            save_with_torch(cut, tmp_path / "x")
        with pytest.raises(ConfigError, match="engine tp"):
            load_with_torch(cut, tmp_path / "x")
        return True

    assert launch(run, 2, timeout_seconds=20, show_output=False) == [True, True]
