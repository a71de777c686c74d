"""H3, second half: our checkpoint in PyTorch's engines and theirs in ours, without a bit of difference."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from minillm.errors import CheckpointError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.pieces import cut_piece
from minillm.parallel.shard_reader import ShardReader
from minillm.parallel.sharded_checkpoint import Shard, ShardedCheckpoints
from minillm.parallel.threads import launch_threads
from minillm.parallel.torch_checkpoint import (
    read_torch_checkpoint,
    sharded_to_torch,
    torch_to_sharded,
    write_torch_checkpoint,
)
from minillm.parallel.training_shards import (
    model_shards,
    optimizer_shards,
    restore_model,
    restore_optimizer,
    tensor_parallel_pieces,
)
from minillm.train.optim import AdamW

CONFIG = GPTConfig(vocab_size=10, max_seq_len=6, n_layers=2, n_heads=2, d_model=6, d_ff=14, tie_embeddings=False)


def new_run(seed, kind=torch.optim.AdamW):
    model = GPT(CONFIG, torch.Generator().manual_seed(seed)).double()
    return model, kind(model.parameters(), lr=0.01, betas=(0.8, 0.9))


def train(model, optimizer, steps):
    for step in steps:
        ids = torch.randint(10, (2, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def engine_goes_on(comm, folder, target):
    """fully_shard on 3 ranks (widths of 6 and 14 do not divide) loads, makes a step, and saves."""
    model, optimizer = new_run(seed=9)
    mesh = Mesh(MeshSize(dp=comm.size), comm).to_device_mesh()["dp"]
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.9))
    weights, state = get_state_dict(model, optimizer)
    content = {"model": weights, "optim": state}
    dcp.load(content, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optim"])
    loaded = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    train(model, optimizer, [3])
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": state}, checkpoint_id=target)
    return loaded, {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_ours_to_fully_shard_and_back(tmp_path, kind=AdamW):
    """Written at tp=2, read by fully_shard on 3 ranks, saved by it after a step, read here by one process."""
    model, optimizer = new_run(seed=0, kind=kind)
    train(model, optimizer, [0, 1, 2])

    def write(comm):
        pieces = tensor_parallel_pieces(CONFIG, comm.rank, 2)
        optimizer_whole, rest = optimizer_shards(optimizer, model)
        shards = {}
        for name, shard in (model_shards(model) | optimizer_whole).items():
            piece = shard.piece if not shard.tensor.dim() else pieces[name.split("/")[1]]
            shards[name] = Shard(cut_piece(shard.tensor, piece).clone(), piece)
        return ShardedCheckpoints(tmp_path / "ours", comm).save(3, shards, {}, {"optimizer": rest})

    path = launch_threads(write, 2)[0]
    sharded_to_torch(path, tmp_path / "dcp")
    loaded, stepped = launch(
        engine_goes_on, 3, tmp_path / "dcp", tmp_path / "dcp-3", timeout_seconds=20, show_output=False
    )[0]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(model).items())
    back = torch_to_sharded(tmp_path / "dcp-3", tmp_path / "back", 4)
    whole = {name: ShardReader(back).read(f"model/{name}") for name in stepped}
    assert all(torch.equal(whole[name], stepped[name]) for name in stepped)
    ours, its_optimizer = new_run(seed=5, kind=kind)
    train(ours, its_optimizer, [0])
    restore_model(ours, ShardReader(back))
    restore_optimizer(its_optimizer, ours, ShardReader(back))
    train(model, optimizer, [3, 4])
    train(ours, its_optimizer, [4])
    difference = max((a - b).abs().max() for a, b in zip(model.parameters(), ours.parameters(), strict=True))
    assert difference < 1e-12


@pytest.mark.parametrize("kind", [torch.optim.AdamW, AdamW])
def test_there_and_back_changes_no_bit(tmp_path, kind):
    model, optimizer = new_run(seed=0, kind=kind)
    train(model, optimizer, [0, 1])
    shards, rest = optimizer_shards(optimizer, model)
    shards |= model_shards(model)
    save = lambda comm: ShardedCheckpoints(tmp_path / "ours", comm).save(2, shards, {}, {"optimizer": rest})  # noqa: E731
    path = launch_threads(save, 1)[0]
    sharded_to_torch(path, tmp_path / "dcp")
    back = torch_to_sharded(tmp_path / "dcp", tmp_path / "back", 2)
    first, second = ShardReader(path, verify=True), ShardReader(back, verify=True)
    for name in first.names("model/") + [n for n in first.names("optimizer/") if not n.endswith("/step")]:
        assert torch.equal(first.read(name), second.read(name)), name
    other, its_optimizer = new_run(seed=1, kind=kind)
    train(other, its_optimizer, [7])
    restore_model(other, second)
    restore_optimizer(its_optimizer, other, second)
    train(model, optimizer, [2])
    train(other, its_optimizer, [2])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_alone_and_foreign_folders(tmp_path):
    model, _ = new_run(seed=0)
    write_torch_checkpoint(tmp_path / "dcp", weights_of(model))
    weights, optimizer = read_torch_checkpoint(tmp_path / "dcp")
    assert optimizer is None and all(torch.equal(weights[name], t) for name, t in weights_of(model).items())
    with pytest.raises(CheckpointError, match="not empty"):
        write_torch_checkpoint(tmp_path / "dcp", weights)
    with pytest.raises(CheckpointError, match="not a DCP folder"):
        read_torch_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"other": torch.ones(2)}, checkpoint_id=tmp_path / "other", no_dist=True)
    with pytest.raises(CheckpointError, match="no tensors below 'model'"):
        read_torch_checkpoint(tmp_path / "other")
