"""H3: written at one layout, read bit by bit at any other; written by all ranks or not there at all."""

import errno
import functools
import itertools
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError, CommError, ConfigError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel import sharded_checkpoint
from minillm.parallel.elastic import rows_of_rank
from minillm.parallel.flat import FlatLayout
from minillm.parallel.launch import RankDied, launch
from minillm.parallel.layout import Split, slice_of, tensor_layout
from minillm.parallel.mesh import MeshSize
from minillm.parallel.pieces import (
    Piece,
    cut_piece,
    may_overlap,
    piece_from_json,
    piece_of_slice,
    put_piece,
)
from minillm.parallel.shard_reader import ShardReader, read_whole
from minillm.parallel.sharded_checkpoint import (
    Claim,
    Shard,
    ShardedCheckpoints,
    all_or_none,
    assign_writers,
)
from minillm.parallel.threads import launch_threads
from minillm.parallel.training_shards import (
    OwnedParameters,
    model_shards,
    optimizer_shards,
    restore_model,
    restore_optimizer,
    tensor_parallel_pieces,
)
from minillm.parallel.zero import ZeroOptimizer
from minillm.train.checkpoint import verify_checkpoint
from minillm.train.grouping import decay_groups
from minillm.train.optim import AdamW

CONFIG = GPTConfig(vocab_size=24, max_seq_len=8, n_layers=4, n_heads=4, d_model=8, n_kv_heads=2, d_ff=20)


def new_model(seed=0):
    return GPT(CONFIG, torch.Generator().manual_seed(seed)).double()


NAMES = [name for name, _ in new_model().named_parameters()]


@functools.cache
def pieces_of_tp(index, size):
    return tensor_parallel_pieces(CONFIG, index, size)


def trained(seed=0, n_steps=3):
    """A model and optimizer with something in all of its state."""
    model = new_model(seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2)
    ids = torch.randint(24, (2, 8), generator=torch.Generator().manual_seed(seed))
    for _ in range(n_steps):
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()
    return model, optimizer


def block_of(name):
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def names_of_stage(names, stage, pp):
    """Blocks cut into pp stages; what stands before them is the first stage's, what stands behind the last one's."""
    per = CONFIG.n_layers // pp
    chosen = []
    for name in names:
        block = block_of(name)
        home = block // per if block is not None else (0 if "embedding" in name else pp - 1)
        if home == stage:
            chosen.append(name)
    return chosen


def whole_tensors(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{names[parameter]}/{key}"] = torch.as_tensor(value)
    return tensors


def parameter_of(name):
    return name.split("/")[1]


def pieces_at(mesh, rank, tensors, zero):
    """The pieces that a rank of a mesh holds; with ZeRO over dp, optimizer tensors are flattened and cut once more."""
    place = mesh.coordinates(rank)
    names = names_of_stage(NAMES, place["pp"], mesh.pp)
    cut = pieces_of_tp(place["tp"], mesh.tp)
    pieces = {}
    for path, tensor in tensors.items():
        if parameter_of(path) in names:
            pieces[path] = cut[parameter_of(path)] if tensor.dim() else Piece(())
    if zero:
        row = {path: piece for path, piece in pieces.items() if path.endswith("exp_avg")}
        layout = FlatLayout([piece.part_shape for piece in row.values()], mesh.dp)
        owned = {list(row)[part.index]: (part.begin, part.end) for part in layout.pieces(place["dp"])}
        pieces = {path: piece for path, piece in pieces.items() if path not in row}
        pieces |= {path: replace(row[path], flat=flat) for path, flat in owned.items()}
    return pieces


def write_at(folder, mesh, tensors, zero, step=3):
    def body(comm):
        pieces = pieces_at(mesh, comm.rank, tensors, zero)
        shards = {name: Shard(cut_piece(tensors[name], piece).clone(), piece) for name, piece in pieces.items()}
        return ShardedCheckpoints(folder, comm).save(step, shards, {"mesh": str(mesh)}, {"rank": comm.rank})

    return launch_threads(body, mesh.world_size)[0]


LAYOUTS = [
    (MeshSize(), False),
    (MeshSize(dp=3), True),
    (MeshSize(tp=2), False),
    (MeshSize(pp=4), False),
    (MeshSize(dp=2, tp=2, pp=2), True),
]


@pytest.mark.parametrize(("mesh", "zero"), LAYOUTS, ids=str)
def test_written_at_one_layout_read_bit_by_bit_at_all_others(tmp_path, mesh, zero):
    tensors = whole_tensors(*trained())
    path = write_at(tmp_path, mesh, tensors, zero)
    verify_checkpoint(path, ("index.json",))
    whole = read_whole(path)
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[name], tensors[name]) for name in tensors)
    reader = ShardReader(path)
    for other, other_zero in LAYOUTS:
        for rank in range(other.world_size):
            for name, piece in pieces_at(other, rank, tensors, other_zero).items():
                assert torch.equal(reader.read(name, piece), cut_piece(tensors[name], piece)), (name, other, rank)
    assert reader.rank_states == [{"rank": rank} for rank in range(mesh.world_size)]
    assert reader.state == {"mesh": str(mesh)} and reader.step == 3


def test_every_number_is_written_once_and_all_write_about_equally_much(tmp_path):
    tensors = whole_tensors(*trained())
    total = sum(tensor.nbytes for tensor in tensors.values())
    path = write_at(tmp_path, MeshSize(dp=4), tensors, zero=False)
    index = json.loads((path / "index.json").read_text())
    sizes = [(path / f"rank-{rank:05d}.safetensors").stat().st_size for rank in range(4)]
    payload = sum(
        piece_from_json([entry["shape"], part["dim"], part["ranges"], part["flat"]]).n_numbers
        * tensors[name].element_size()
        for name, entry in index["tensors"].items()
        for part in entry["parts"]
    )
    assert payload == total
    assert max(sizes) < 1.5 * total / 4


def test_model_and_optimizer_go_on_elsewhere(tmp_path):
    """Two pipeline stages write; one process reads, and makes the same next step."""
    model, optimizer = trained()

    class Stage(nn.Module):
        def __init__(self, names):
            super().__init__()
            self.names = names
            for name in names:
                self.register_parameter(name.replace(".", "|"), nn.Parameter(dict(model.named_parameters())[name].data))

        def named_parameters(self, *args, **kwargs):
            return ((name, getattr(self, name.replace(".", "|"))) for name in self.names)

        def state_dict(self):
            return dict(self.named_parameters())

    def write(comm):
        stage = Stage(names_of_stage([name for name, _ in model.named_parameters()], comm.rank, 2))
        groups = [
            {"params": [p for _, p in stage.named_parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for _, p in stage.named_parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        mine = AdamW(groups, lr=1e-2)
        for name, parameter in stage.named_parameters():
            mine.state[parameter] = dict(optimizer.state[dict(model.named_parameters())[name]])
        shards, rest = optimizer_shards(mine, stage)
        return ShardedCheckpoints(tmp_path, comm).save(3, model_shards(stage) | shards, {}, {"optimizer": rest})

    path = launch_threads(write, 2)[0]
    other, other_optimizer = trained(seed=1, n_steps=1)
    reader = ShardReader(path, verify=True)
    restore_model(other, reader)
    restore_optimizer(other_optimizer, other, reader)
    ids = torch.randint(24, (2, 8), generator=torch.Generator().manual_seed(5))
    for each, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        its_optimizer.zero_grad()
        each(ids).square().mean().backward()
        its_optimizer.step()
    for (name, ours), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def zero_run(comm, folder, step_from, n_steps):
    """ZeRO from a checkpoint, or from the start; the same rows for any number of ranks."""
    model = new_model()
    groups = decay_groups(model, 0.1)
    zero = ZeroOptimizer(model, torch.optim.AdamW, comm, stage=2, groups=groups, lr=1e-2, bucket_bytes=4000)
    owned = OwnedParameters(zero.owned)
    checkpoints = ShardedCheckpoints(folder, comm)
    if step_from:
        reader = ShardReader(checkpoints.path(step_from))
        restore_model(owned, reader, owned.pieces)
        restore_optimizer(zero.optimizer, owned, reader, owned.pieces)
        gather_zero(zero)
    for step in range(step_from, step_from + n_steps):
        begin, end = rows_of_rank(0, 6, comm.rank, comm.size)
        ids = torch.randint(24, (6, 8), generator=torch.Generator().manual_seed(step))[begin:end]
        zero.zero_grad()
        (model(ids).square().sum() / 1000).backward()
        zero.finish_gradient_synchronization(1.0)
        zero.step()
    shards, rest = optimizer_shards(zero.optimizer, owned, owned.pieces)
    shards |= model_shards(owned, owned.pieces)
    checkpoints.save(step_from + n_steps, shards, {}, {"optimizer": rest})
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gather_zero(zero):
    """Parameters from their owners, as a step does it, without a step."""
    for bucket in zero.buckets:
        bucket.take_masters_values()
        zero.comm.all_gather(bucket.flat, bucket.own)


def test_zero_goes_on_with_another_number_of_ranks(tmp_path):
    """2 ranks, then 3, then 1 (shares with padding) against 2 ranks throughout: one run, float64."""
    launch_threads(zero_run, 2, tmp_path / "a", 0, 2)
    launch_threads(zero_run, 3, tmp_path / "a", 2, 2)
    changed = launch_threads(zero_run, 1, tmp_path / "a", 4, 1)[0]
    alone = launch_threads(zero_run, 2, tmp_path / "b", 0, 5)[0]
    assert max((changed[name] - alone[name]).abs().max() for name in alone) < 1e-12
    assert max((changed[name] - p).abs().max() for name, p in new_model().named_parameters()) > 1e-2


def test_tied_weights_are_saved_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

    model, other = Tied(), Tied()
    path = launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).save(1, model_shards(model)), 1)[0]
    assert "model/second.weight" not in ShardReader(path).table
    restore_model(other, ShardReader(path))
    assert torch.equal(other.second.weight, model.first.weight) and other.second.weight is other.first.weight


# --- pieces


def random_piece(generator, shape):
    dim = int(torch.randint(len(shape), (), generator=generator))
    cuts = sorted(torch.randperm(shape[dim] + 1, generator=generator)[:4].tolist())
    ranges = None if len(cuts) < 4 else ((cuts[0], cuts[1]), (cuts[2], cuts[3]))
    piece = Piece(shape, dim, ranges)
    begin, end = sorted(torch.randint(piece.n_numbers + 1, (2,), generator=generator).tolist())
    return Piece(shape, dim, ranges, (begin, end)) if torch.rand((), generator=generator) < 0.5 else piece


def test_put_is_cut_backwards():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        shape = tuple(torch.randint(1, 6, (int(torch.randint(1, 4, (), generator=generator)),), generator=generator))
        shape = tuple(int(size) for size in shape)
        whole = torch.arange(Piece(shape).n_numbers).view(shape)
        piece = random_piece(generator, shape)
        part = cut_piece(whole, piece)
        assert tuple(part.shape) == piece.part_shape and part.numel() == piece.n_numbers
        empty = torch.full(shape, -1)
        put_piece(empty, part, piece)
        touched = empty >= 0
        assert torch.equal(empty[touched], whole[touched]) and int(touched.sum()) == piece.n_numbers
        assert set(empty[touched].tolist()) == set(part.reshape(-1).tolist())
        assert piece_from_json(json.loads(json.dumps(piece.to_json()))) == piece


def test_no_two_pieces_that_overlap_are_said_not_to():
    generator = torch.Generator().manual_seed(1)
    n_apart = 0
    for _ in range(300):
        shape = (4, 5)
        first, second = random_piece(generator, shape), random_piece(generator, shape)
        numbers = [cut_piece(torch.arange(20).view(shape), piece).reshape(-1).tolist() for piece in (first, second)]
        assert may_overlap(first, second) or not set(numbers[0]) & set(numbers[1])
        n_apart += not may_overlap(first, second)
    assert n_apart > 10


@pytest.mark.parametrize("size", [1, 2])
def test_pieces_of_slices_are_the_layouts(size):
    whole = dict(new_model().named_parameters())
    for index in range(size):
        pieces = tensor_parallel_pieces(CONFIG, index, size)
        for name, split in tensor_layout(CONFIG).items():
            assert torch.equal(cut_piece(whole[name], pieces[name]), slice_of(whole[name], split, index, size))


def test_pieces_refuse_what_does_not_fit():
    with pytest.raises(ShapeError, match="do not lie"):
        Piece((3, 2), 0, ((0, 4),))
    with pytest.raises(ShapeError, match="do not lie"):
        Piece((3, 2), flat=(0, 7))
    with pytest.raises(ShapeError, match="describes"):
        cut_piece(torch.zeros(2, 2), Piece((3, 2)))
    with pytest.raises(ShapeError, match="part has shape"):
        put_piece(torch.zeros(3, 2), torch.zeros(5), Piece((3, 2), flat=(0, 4)))
    with pytest.raises(ShapeError, match="cannot be cut"):
        piece_of_slice((7, 2), Split(0), 0, 2)
    with pytest.raises(ShapeError, match="for a piece"):
        Shard(torch.zeros(3), Piece((2,)))
    with pytest.raises(CheckpointError, match="does not describe"):
        piece_from_json([[3], 0])


def test_mutation_sections_cut_as_one_are_noticed():
    """The wrong cut of a fused matrix (rows 0-3 of 8 instead of a share of each section) gives other numbers."""
    rows = torch.arange(8.0)
    right = cut_piece(rows, piece_of_slice((8,), Split(0, (4, 2, 2)), 0, 2))
    wrong = cut_piece(rows, piece_of_slice((8,), Split(0), 0, 2))
    assert right.tolist() == [0, 1, 4, 6] and wrong.tolist() == [0, 1, 2, 3]


# --- who writes what


def test_writers_share_what_all_hold():
    claim = {name: Claim(Piece((size,)), "F32", 4 * size) for name, size in (("a", 8), ("b", 4), ("c", 3), ("d", 1))}
    assert assign_writers([claim, claim]) == [["a"], ["b", "c", "d"]]
    only = {"e": Claim(Piece((100,)), "F32", 400)}
    assert assign_writers([claim | only, claim]) == [["a", "e"], ["b", "c", "d"]]


def test_writers_refuse_ranks_that_differ_and_parts_that_nobody_holds():
    half, other = Piece((4,), 0, ((0, 2),)), Piece((4,), 0, ((2, 4),))
    assert assign_writers([{"a": Claim(half, "F32", 8)}, {"a": Claim(other, "F32", 8)}]) == [["a"], ["a"]]
    with pytest.raises(CheckpointError, match="hold 2 of the 4 numbers of a"):
        assign_writers([{"a": Claim(half, "F32", 8)}, {"a": Claim(half, "F32", 8)}])
    with pytest.raises(CheckpointError, match="on rank 0 .* on rank 1"):
        assign_writers([{"a": Claim(half, "F32", 8)}, {"a": Claim(other, "F64", 16)}])


def test_same_assignment_whatever_the_order_of_names():
    first = {"a": Claim(Piece((2,)), "F32", 8), "b": Claim(Piece((2,)), "F32", 8)}
    for claims in itertools.permutations([first, first, first]):
        assert sum(len(names) for names in assign_writers(claims)) == 2


# --- all or none


def test_all_or_none_raises_everywhere():
    def body(comm):
        def action():
            if comm.rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return comm.rank

        try:
            return all_or_none(comm, action)
        except (OSError, CheckpointError) as error:
            return f"{type(error).__name__}: {error}"

    told = launch_threads(body, 3)
    assert told[1].startswith("OSError") and "rank 1 failed with OSError" in told[0] and told[0] == told[2]
    assert launch_threads(lambda comm: all_or_none(comm, lambda: 10 * comm.rank), 3) == [[0, 10, 20]] * 3


def shard_of_rank(comm, value=1.0):
    piece = Piece((8,), 0, ((comm.rank * 8 // comm.size, (comm.rank + 1) * 8 // comm.size),))
    return {"model/weight": Shard(torch.full(piece.part_shape, value), piece)}


def test_disk_full_on_one_rank_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    real = sharded_checkpoint.write_file

    def body(comm):
        checkpoints = ShardedCheckpoints(tmp_path, comm)
        checkpoints.save(1, shard_of_rank(comm, 1.0))

        def full(path, chunks):
            if "rank-00002" in path.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, chunks)

        comm.barrier()
        monkeypatch.setattr(sharded_checkpoint, "write_file", full)
        comm.barrier()
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(2, shard_of_rank(comm, 2.0))
        comm.barrier()
        monkeypatch.setattr(sharded_checkpoint, "write_file", real)
        comm.barrier()
        after = checkpoints.newest_valid().name
        checkpoints.save(2, shard_of_rank(comm, 2.0))
        return str(caught.value), after

    for rank, (text, after) in enumerate(launch_threads(body, 4)):
        assert "No space left" in text and after == "step-000001"
        assert ("rank 2 failed" in text) == (rank != 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def half_written(comm, folder):
    """Rank 1 writes half of its file and is killed."""
    checkpoints = ShardedCheckpoints(folder, comm)
    checkpoints.save(1, shard_of_rank(comm, 1.0))
    if comm.rank == 1:
        real = sharded_checkpoint.tensor_file_chunks

        def dying(tensors, metadata):
            chunks = list(real(tensors, metadata))
            yield chunks[0][: len(chunks[0]) // 2]
            os.kill(os.getpid(), signal.SIGKILL)

        sharded_checkpoint.tensor_file_chunks = dying
    checkpoints.save(2, shard_of_rank(comm, 2.0))


def test_half_written_by_a_killed_rank_is_not_there(tmp_path):
    start = time.monotonic()
    with pytest.raises(RankDied, match="rank 1 of 3"):
        launch(half_written, 3, tmp_path, timeout_seconds=10, show_output=False)
    assert time.monotonic() - start < 8
    left = tmp_path / ".tmp-step-000002"
    assert left.exists() and not (left / "index.json").exists()

    def reopen(comm):
        checkpoints = ShardedCheckpoints(tmp_path, comm)
        return checkpoints.newest_valid().name

    assert launch_threads(reopen, 2) == ["step-000001"] * 2
    assert not left.exists()
    assert torch.equal(read_whole(tmp_path / "step-000001")["model/weight"], torch.ones(8))


def test_mutation_renaming_before_the_vote_is_noticed(tmp_path):
    """Were each rank to write straight into the final folder, the half-written checkpoint would look like one."""

    def careless(comm):
        target = tmp_path / "step-000002"
        target.mkdir(exist_ok=True)
        (target / f"rank-{comm.rank}").write_bytes(b"x")
        if comm.rank == 1:
            raise OSError("killed here")

    with pytest.raises(OSError, match="killed"):
        launch_threads(careless, 2)

    def look(comm):
        return ShardedCheckpoints(tmp_path, comm).steps()

    assert launch_threads(look, 1)[0] == [2]  # a folder of that name is there, and only its sums betray it
    with pytest.raises(CheckpointError, match="no checkpoint .* is sound"):
        launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).newest_valid(), 2)


def test_a_missing_rank_is_an_error_within_seconds(tmp_path):
    def body(comm):
        checkpoints = ShardedCheckpoints(tmp_path, comm)
        if comm.rank == 1:
            return None
        with pytest.raises(CommError, match="rank|time"):
            checkpoints.save(1, shard_of_rank(comm))
        return checkpoints.steps()

    assert launch_threads(body, 3, timeout_seconds=0.5)[0] == []


def test_over_gloo_as_over_threads(tmp_path):
    def body(comm):
        checkpoints = ShardedCheckpoints(tmp_path, comm, keep_last=2)
        for step in (1, 2, 3):
            checkpoints.save(step, shard_of_rank(comm, float(step)), {"losses": [0.5]}, {"rank": comm.rank})
        path = checkpoints.newest_valid()
        mine = ShardReader(path).read("model/weight", shard_of_rank(comm)["model/weight"].piece)
        return checkpoints.steps(), path.name, mine.tolist()

    assert launch(body, 4, timeout_seconds=20, show_output=False) == [([2, 3], "step-000003", [3.0, 3.0])] * 4


def test_damage_and_foreign_files_are_named(tmp_path):
    path = launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).save(1, shard_of_rank(comm)), 2)[0]
    launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).save(2, shard_of_rank(comm)), 2)
    with pytest.raises(CheckpointError, match="has no tensor 'model/bias'"):
        ShardReader(path).read("model/bias")
    with pytest.raises(CheckpointError, match="expected \\(9,\\)"):
        ShardReader(path).read("model/weight", Piece((9,)))
    file = tmp_path / "step-000002" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 of rank-00001\.safetensors"):
        ShardReader(tmp_path / "step-000002", verify=True)
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        found = launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).newest_valid(), 1)
    assert found[0].name == "step-000001"
    with pytest.raises(CheckpointError, match="exists already"):
        launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).save(1, shard_of_rank(comm)), 2)
    launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm).save(2, shard_of_rank(comm)), 2)  # over the damaged
    verify_checkpoint(tmp_path / "step-000002", ("index.json",))
    index = json.loads((path / "index.json").read_text())
    index["tensors"]["model/weight"]["parts"].pop()
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="4 numbers of model/weight are in no file"):
        ShardReader(path).read("model/weight")
    index["tensors"]["model/weight"]["parts"][0]["file"] = "../other"
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file of the checkpoint"):
        ShardReader(path).read("model/weight", Piece((8,), 0, ((0, 4),)))
    (path / "index.json").write_text(json.dumps(index | {"format": 9}))
    with pytest.raises(CheckpointError, match="format 9"):
        ShardReader(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    def body(comm):
        value = float("nan") if comm.rank == 1 else 1.0
        return ShardedCheckpoints(tmp_path, comm).save(1, shard_of_rank(comm, value))

    with pytest.raises(CheckpointError, match="not finite at step 1"):
        launch_threads(body, 2)
    with pytest.raises(ConfigError, match="keep_last"):
        launch_threads(lambda comm: ShardedCheckpoints(tmp_path, comm, keep_last=1), 1)
    assert list(tmp_path.iterdir()) == []
