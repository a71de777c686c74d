"""H3 on real grids: what dp=2, pp=2, tp=2 has trained and saved goes on on other grids and on one process."""

import pytest
import torch

from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.grid import Parallel3D, PipelineConfig
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.shard_reader import ShardReader
from minillm.parallel.sharded_checkpoint import ShardedCheckpoints
from minillm.parallel.training_shards import (
    model_shards,
    optimizer_shards,
    restore_model,
    restore_optimizer,
    tensor_parallel_pieces,
)
from minillm.train.clip import clip_gradients
from minillm.train.loss import next_token_loss
from minillm.train.optim import AdamW

KINDS = {
    "tied": {"bias": True, "position": "learned"},
    "modern": {"norm": "rms", "position": "rotary", "qk_norm": True, "n_kv_heads": 2, "tie_embeddings": False},
}
TWO = PipelineConfig(n_microbatches=2)


def whole(kind, seed=0):
    config = GPTConfig(vocab_size=12, max_seq_len=6, n_layers=4, n_heads=4, d_model=16, **KINDS[kind])
    return GPT(config, torch.Generator().manual_seed(seed)).double()


def batch(step):
    inputs, targets = torch.randint(12, (2, 8, 6), generator=torch.Generator().manual_seed(step))
    targets[0, 1:] = -100
    return inputs, targets


def optimizer_of(model):
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2)


def single_step(model, optimizer, step):
    inputs, targets = batch(step)
    optimizer.zero_grad()
    loss = next_token_loss(model, inputs, targets) / (targets != -100).sum()
    loss.backward()
    norm = clip_gradients(model.parameters(), 0.5)
    optimizer.step()
    return loss.item(), norm.item()


def grid_run(comm, kind, size, folder, first, last):
    """Steps `first` to `last` on a grid, from the checkpoint in the folder if there is one, into a new one."""
    mesh = Mesh(size, comm)
    grid = Parallel3D(whole(kind, seed=comm.rank), mesh, TWO)
    pieces = tensor_parallel_pieces(grid.config, mesh.tp.rank, mesh.tp.size)
    optimizer = optimizer_of(grid.part)
    checkpoints = ShardedCheckpoints(folder, comm)
    if first:
        reader = ShardReader(checkpoints.newest_valid())
        restore_model(grid.part, reader, pieces)
        restore_optimizer(optimizer, grid.part, reader, pieces)
    seen = []
    for step in range(first, last):
        rows = [part.chunk(mesh.dp.size)[mesh.dp.rank] for part in batch(step)]
        seen.append(grid.train_step(optimizer, *rows, max_norm=0.5))
    shards, rest = optimizer_shards(optimizer, grid.part, pieces)
    checkpoints.save(last, shards | model_shards(grid.part, pieces), {}, {"optimizer": rest})
    return seen


@pytest.mark.parametrize(
    ("kind", "second"),
    [pytest.param("tied", MeshSize(tp=2), marks=pytest.mark.slow), ("modern", MeshSize(dp=2, pp=2))],
    ids=str,
)
def test_a_grid_goes_on_as_another_and_as_one_process(tmp_path, kind, second):
    model = whole(kind)
    optimizer = optimizer_of(model)
    expected = [single_step(model, optimizer, step) for step in range(2)]
    first = MeshSize(dp=2, pp=2, tp=2)
    seen = launch(grid_run, 8, kind, first, tmp_path, 0, 1, timeout_seconds=20, show_output=False)[0]
    seen += launch(grid_run, second.world_size, kind, second, tmp_path, 1, 2, timeout_seconds=20, show_output=False)[0]
    assert seen == [pytest.approx(each, abs=1e-12) for each in expected]
    alone = whole(kind, seed=7)
    its_optimizer = optimizer_of(alone)
    reader = ShardReader(tmp_path / "step-000002", verify=True)
    restore_model(alone, reader)
    restore_optimizer(its_optimizer, alone, reader)
    assert single_step(alone, its_optimizer, 2) == pytest.approx(single_step(model, optimizer, 2), abs=1e-12)
    for (name, ours), (_, right) in zip(alone.named_parameters(), model.named_parameters(), strict=True):
        assert (ours - right).abs().max() < 1e-12, name
