"""Sharded optimizer and ZeRO 1 and 2 against one process in float64; bytes, traffic and ownership against formulas."""

import math

import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError, CommError, ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.comm import Pending
from minillm.parallel.data_parallel import DistributedDataParallel
from minillm.parallel.flat import FlatLayout
from minillm.parallel.launch import launch
from minillm.parallel.memory import measured_state_bytes, model_state_bytes
from minillm.parallel.sharded_optimizer import ShardedOptimizer, assign_owners
from minillm.parallel.threads import launch_threads
from minillm.parallel.traffic import CommCounter
from minillm.parallel.zero import ZeroOptimizer
from minillm.train.grouping import decay_groups
from minillm.train.loss import next_token_loss
from minillm.train.optim import AdamW, Muon
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

CONFIG = GPTConfig(vocab_size=11, max_seq_len=6, n_layers=2, n_heads=2, d_model=8, bias=True)
N_STEPS, B, T = 4, 7, 6


def make_model(seed=0, dtype=torch.float64):
    return GPT(CONFIG, torch.Generator().manual_seed(seed)).to(dtype)


def batch(step):
    """Rows that do not divide among the ranks, with ignored targets: parts with different numbers of tokens."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randint(11, (B, T), generator=generator)
    targets = torch.randint(11, (B, T), generator=generator)
    targets[0, :4] = -100
    return inputs, targets


def single(optimizer_class=torch.optim.AdamW, max_norm=0.5, n_steps=N_STEPS, weight_decay=0.1, **settings):
    """One process on the whole batch."""
    model = make_model()
    optimizer = optimizer_class(decay_groups(model, weight_decay), **settings)
    norms = []
    for step in range(n_steps):
        inputs, targets = batch(step)
        (next_token_loss(model, inputs, targets) / (targets != -100).sum()).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, norms


def scale_of(targets):
    return 1 / int((targets != -100).sum())


def part(comm, step):
    return (tensor.tensor_split(comm.size)[comm.rank] for tensor in batch(step))


def zero(comm, stage, optimizer_class=torch.optim.AdamW, bucket_bytes=3000, wrong="", **settings):
    """ZeRO on this rank's rows; `wrong` plants a fault."""
    model = make_model(seed=comm.rank)
    optimizer = ZeroOptimizer(
        model, optimizer_class, comm, stage, decay_groups(model, 0.1), bucket_bytes=bucket_bytes, **settings
    )
    if wrong == "own gradients only":
        plant_own_gradients(comm)
    norms = []
    for step in range(N_STEPS):
        inputs, targets = part(comm, step)
        scale = scale_of(batch(step)[1])
        if wrong == "mean of means":
            next_token_loss(model, inputs, targets).div((targets != -100).sum()).backward()
            scale = None
        else:
            next_token_loss(model, inputs, targets).backward()
        optimizer.finish_gradient_synchronization(scale)
        if wrong == "averaged twice":
            for piece in optimizer.pieces:
                piece.grad /= comm.size
        if wrong == "own norm":
            norms.append(nn.utils.clip_grad_norm_(optimizer.pieces, 0.5).item())
        else:
            norms.append(optimizer.clip_gradients(0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), norms, optimizer.full_state_by_name()


def plant_own_gradients(comm):
    """Each rank keeps its own gradient of what it owns instead of the sum."""

    def keep(output, tensor, async_op):
        output.copy_(tensor.view(comm.size, -1)[comm.rank])
        return Pending(comm, "nothing")

    comm.reduce_scatter = keep


def difference(state, other):
    return max((state[name] - other[name]).abs().max().item() for name in other)


@pytest.mark.parametrize(
    ("stage", "size"), [(1, 4), (2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2), (2, 4)))]
)
def test_training_equals_one_process(stage, size):
    model, optimizer, norms = single(lr=0.01)
    expected_state = optimizer_state_by_name(optimizer, model)
    results = launch(lambda comm: zero(comm, stage, lr=0.01), size, show_output=False, timeout_seconds=20, checked=True)
    for state, rank_norms, optimizer_state in results:
        assert difference(state, model.state_dict()) < 1e-12
        assert rank_norms == pytest.approx(norms, rel=1e-12)
        assert max(norms) > 0.5  # clipping took place
        assert [sorted(g["names"]) for g in optimizer_state["groups"]] == [
            sorted(g["names"]) for g in expected_state["groups"]
        ]
        for name, entries in expected_state["state"].items():
            for key, value in entries.items():
                torch.testing.assert_close(optimizer_state["state"][name][key], value, rtol=1e-11, atol=1e-13)
    fresh = make_model()
    resumed = torch.optim.AdamW(decay_groups(fresh, 0.1), lr=0.01)
    load_optimizer_state_by_name(resumed, fresh, optimizer_state)  # a single process can go on from it


@pytest.mark.parametrize(
    ("optimizer_class", "settings"),
    [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (AdamW, {"lr": 0.01}), (torch.optim.RMSprop, {"lr": 0.001})],
)
def test_other_optimizers(optimizer_class, settings):
    model, _, _ = single(optimizer_class, **settings)
    for state, _, _ in launch_threads(lambda comm: zero(comm, 2, optimizer_class, **settings), 2):
        assert difference(state, model.state_dict()) < 1e-12


@pytest.mark.parametrize("wrong", ["mean of means", "averaged twice", "own gradients only", "own norm"])
def test_mutations_are_noticed(wrong):
    model, _, norms = single(lr=0.01)
    state, rank_norms, _ = launch_threads(lambda comm: zero(comm, 1, wrong=wrong, lr=0.01), 2)[1]
    assert rank_norms != pytest.approx(norms, rel=1e-3)
    assert difference(state, model.state_dict()) > (1e-6 if wrong == "own norm" else 1e-4)


def test_mutation_without_a_common_start_gradients_are_of_no_model(monkeypatch):
    monkeypatch.setattr("minillm.parallel.zero.broadcast_module", lambda *_: None)
    model, _, norms = single(lr=0.01)
    state, rank_norms, _ = launch_threads(lambda comm: zero(comm, 2, lr=0.01), 2)[0]
    assert rank_norms != pytest.approx(norms, rel=1e-3)
    assert difference(state, model.state_dict()) > 1e-3


def test_same_data_on_all_ranks_would_hide_a_missing_sum():
    """Why the tests above give each rank rows of its own."""

    def same_data(comm, is_summed):
        model = make_model()
        optimizer = ZeroOptimizer(model, torch.optim.SGD, comm, 1, lr=0.1)
        inputs, targets = batch(0)
        if not is_summed:
            plant_own_gradients(comm)
        next_token_loss(model, inputs, targets).backward()
        optimizer.finish_gradient_synchronization(scale_of(targets) * (0.5 if is_summed else 1.0))
        optimizer.step()
        return model.state_dict()

    right, wrong = (launch_threads(same_data, 2, flag)[0] for flag in (True, False))
    assert difference(right, wrong) < 1e-15


def test_every_number_is_owned_once_and_pieces_are_memory_of_the_parameters():
    def look(comm):
        model = make_model()
        optimizer = ZeroOptimizer(model, torch.optim.SGD, comm, 1, bucket_bytes=3000, lr=0.1)
        parameters = dict(model.named_parameters())
        for piece in optimizer.owned:
            inside = parameters[piece.name].detach().view(-1)[piece.begin : piece.end]
            assert piece.parameter.data_ptr() == inside.data_ptr()
            assert piece.parameter.numel() == piece.end - piece.begin
        for bucket in optimizer.buckets:
            assert {p.untyped_storage().data_ptr() for p in bucket.parameters} == {bucket.flat.data_ptr()}
            assert sum(p.numel() for p in bucket.pieces) <= bucket.layout.shard_numbers
        return [(piece.name, piece.begin, piece.end) for piece in optimizer.owned]

    owned = [range_ for of_rank in launch_threads(look, 3) for range_ in of_rank]
    for name, parameter in make_model().named_parameters():
        ranges = sorted((begin, end) for other, begin, end in owned if other == name)
        assert ranges[0][0] == 0
        assert ranges[-1][1] == parameter.numel()
        assert all(before[1] == after[0] for before, after in zip(ranges, ranges[1:], strict=False))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shapes", [[(3, 4), (5,)], [(1,)], [(2, 0), (7,), (1, 1)], []])
def test_layout_partitions_any_shapes(shapes, size):
    layout = FlatLayout(shapes, size)
    numbers = [[0] * math.prod(shape) for shape in shapes]
    for rank in range(size):
        for piece in layout.pieces(rank):
            place = layout.offsets[piece.index] + piece.begin
            assert place == rank * layout.shard_numbers + piece.offset
            for number in range(piece.begin, piece.end):
                numbers[piece.index][number] += 1
    assert all(count == 1 for tensor in numbers for count in tensor)
    assert layout.padded_numbers - layout.n_numbers < max(size, 1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_bytes_are_those_of_the_paper(size):
    """16 Psi, 4 Psi + 12 Psi / P, 2 Psi + 14 Psi / P: bfloat16 model and gradients, real AdamW on float32 masters."""
    sizes = GPTConfig(vocab_size=16, max_seq_len=8, n_layers=2, n_heads=2, d_model=8)

    def train(comm, stage):
        model = GPT(sizes, torch.Generator().manual_seed(0)).bfloat16()
        optimizer = ZeroOptimizer(model, torch.optim.AdamW, comm, stage, master_dtype=torch.float32, bucket_bytes=1000)
        ids = torch.randint(16, (2, 8), generator=torch.Generator().manual_seed(comm.rank))
        model(ids).float().square().mean().backward()
        optimizer.finish_gradient_synchronization()
        optimizer.step()
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        return measured_state_bytes(model, optimizer), n_parameters

    for stage in (1, 2):
        for measured, n_parameters in launch_threads(train, size, stage):
            assert n_parameters % size == 0
            assert measured == model_state_bytes(n_parameters, size, stage)
            assert (
                measured.total == (4 if stage == 1 else 2) * n_parameters + (12, 14)[stage - 1] * n_parameters // size
            )


def test_bytes_of_plain_data_parallel_and_with_padding():
    model = make_model(dtype=torch.bfloat16)
    numbers = sum(parameter.numel() for parameter in model.parameters())

    def train(comm):
        model = make_model(dtype=torch.bfloat16)
        optimizer = ZeroOptimizer(model, torch.optim.AdamW, comm, 1, master_dtype=torch.float32, lr=0.01)
        next_token_loss(model, *batch(comm.rank)).backward()
        optimizer.finish_gradient_synchronization()
        optimizer.step()
        return measured_state_bytes(model, optimizer), optimizer.buckets[0].layout

    (whole, layout), *_ = launch_threads(train, 1)
    assert whole.total == 16 * numbers == model_state_bytes(numbers, 1, 0).total
    assert layout.padded_numbers == numbers
    for rank, (measured, layout) in enumerate(launch_threads(train, 5)):
        assert layout.padded_numbers > numbers
        assert measured.parameters == 2 * layout.padded_numbers
        real = min(layout.shard_numbers, numbers - rank * layout.shard_numbers)
        assert layout.shard_numbers * 12 - measured.optimizer == 12 * (layout.shard_numbers - real)


def test_stage_2_frees_gradients_during_backward():
    def train(comm):
        model = make_model()
        optimizer = ZeroOptimizer(model, torch.optim.SGD, comm, 2, bucket_bytes=1, lr=0.1)
        alive = []

        def look(_):
            whole = sum(p.numel() for p in model.parameters() if p.grad is not None)
            buffers = sum(b.scatter.flat.numel() for b in optimizer.buckets if b.scatter.flat is not None)
            alive.append(whole + buffers)

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(look)
        next_token_loss(model, *part(comm, 0)).backward()
        optimizer.finish_gradient_synchronization()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(bucket.scatter.flat is None for bucket in optimizer.buckets)
        return max(alive), sum(p.numel() for p in model.parameters()), max(p.numel() for p in model.parameters())

    for most, numbers, largest in launch_threads(train, 2):
        assert most <= 3 * largest + 2 < 0.6 * numbers


def test_traffic_is_that_of_an_all_reduce():
    def train(comm, stage):
        model = make_model()
        optimizer = ZeroOptimizer(model, torch.optim.SGD, comm, stage, bucket_bytes=3000, find_unused=False, lr=0.1)
        comm.counter.clear()
        next_token_loss(model, *part(comm, 0)).backward()
        optimizer.finish_gradient_synchronization()
        optimizer.step()
        padded = sum(bucket.layout.padded_numbers for bucket in optimizer.buckets)
        return comm.counter, 8 * padded, len(optimizer.buckets)

    for stage in (1, 2):
        for counter, n_bytes, n_buckets in launch_threads(train, 2, stage, counters=[CommCounter(), CommCounter()]):
            assert counter.count("reduce_scatter") == counter.count("all_gather") == n_buckets > 2
            assert counter.n_bytes("reduce_scatter") == counter.n_bytes("all_gather") == n_bytes
            assert counter.sent_bytes() == 2 * (2 - 1) / 2 * n_bytes  # 2 (P - 1) / P of the model: an all-reduce
            assert counter.count() == 2 * n_buckets


class Partial(nn.Module):
    """A frozen, a tied, an unused parameter, and one that only rank 0 uses."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.second.weight = self.first.weight
        self.frozen, self.unused, self.sometimes = (nn.Linear(4, 4).double() for _ in range(3))
        self.frozen.requires_grad_(False)

    def forward(self, x, rank):
        x = self.frozen(self.second(torch.tanh(self.first(x))))
        return self.sometimes(x) if rank == 0 else x


def rows_of(rank):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(50 + rank), dtype=torch.float64)


@pytest.mark.parametrize("stage", [1, 2])
def test_frozen_tied_and_unused_parameters(stage):
    expected = Partial(0)
    optimizer = torch.optim.AdamW([p for p in expected.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        sum(expected(rows_of(rank), rank).square().sum() for rank in range(2)).backward()
        optimizer.step()
        optimizer.zero_grad()

    def train(comm):
        model = Partial(comm.rank)
        optimizer = ZeroOptimizer(model, torch.optim.AdamW, comm, stage, bucket_bytes=100, lr=0.01)
        for _ in range(3):
            model(rows_of(comm.rank), comm.rank).square().sum().backward()
            optimizer.finish_gradient_synchronization(1.0)
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    for state in launch(train, 2, show_output=False, timeout_seconds=20):
        assert difference(state, expected.state_dict()) < 1e-12
        assert torch.equal(state["unused.weight"], Partial(0).unused.weight)  # no decay for what nobody used


@pytest.mark.parametrize("stage", [1, 2])
def test_several_passes_before_a_step(stage):
    model, _, _ = single(torch.optim.SGD, math.inf, n_steps=1, weight_decay=0.0, lr=0.1)

    def train(comm):
        copy = make_model()
        optimizer = ZeroOptimizer(copy, torch.optim.SGD, comm, stage, bucket_bytes=3000, lr=0.1)
        inputs, targets = part(comm, 0)
        with optimizer.no_sync():
            next_token_loss(copy, inputs[:1], targets[:1]).backward()
        next_token_loss(copy, inputs[1:], targets[1:]).backward()
        optimizer.finish_gradient_synchronization(scale_of(batch(0)[1]))
        optimizer.step()
        return copy.state_dict()

    for state in launch_threads(train, 2):
        assert difference(state, model.state_dict()) < 1e-12


def test_stage_2_adds_up_synchronized_passes_and_stage_1_refuses():
    model, _, _ = single(torch.optim.SGD, math.inf, n_steps=1, weight_decay=0.0, lr=0.1)

    def train(comm, stage):
        copy = make_model()
        optimizer = ZeroOptimizer(copy, torch.optim.SGD, comm, stage, lr=0.1)
        for rows in (slice(0, 1), slice(1, None)):
            inputs, targets = part(comm, 0)
            next_token_loss(copy, inputs[rows], targets[rows]).backward()
            optimizer.finish_gradient_synchronization(scale_of(batch(0)[1]))
        optimizer.step()
        return copy.state_dict()

    for state in launch_threads(train, 2, 2):
        assert difference(state, model.state_dict()) < 1e-12
    with pytest.raises(CommError, match="zero_grad"):
        launch_threads(train, 2, 1)


def test_state_of_one_process_goes_on_here():
    model, optimizer, _ = single(n_steps=2, lr=0.01)
    half, state = {k: v.clone() for k, v in model.state_dict().items()}, optimizer_state_by_name(optimizer, model)
    finished, _, _ = single(lr=0.01)

    def resume(comm):
        copy = make_model(seed=5)
        optimizer = ZeroOptimizer(copy, torch.optim.AdamW, comm, 2, decay_groups(copy, 0.1), bucket_bytes=3000, lr=1.0)
        copy.load_state_dict(half)
        optimizer.load_full_state_by_name(state)
        for step in range(2, N_STEPS):
            next_token_loss(copy, *part(comm, step)).backward()
            optimizer.finish_gradient_synchronization(scale_of(batch(step)[1]))
            optimizer.clip_gradients(0.5)
            optimizer.step()
            optimizer.zero_grad()
        wrong = {**state, "state": {name: {"exp_avg": torch.zeros(1, 1)} for name in state["state"]}}
        for message, damaged in (("missing", {**state, "groups": []}), ("expected shape", wrong)):
            with pytest.raises(CheckpointError, match=message):
                optimizer.load_full_state_by_name(damaged)
        return copy.state_dict()

    for resumed in launch_threads(resume, 3):
        assert difference(resumed, finished.state_dict()) < 1e-12


def test_masters_follow_weights_that_are_loaded_and_the_other_way_round():
    def load(comm):
        model = make_model(dtype=torch.bfloat16)
        optimizer = ZeroOptimizer(model, torch.optim.SGD, comm, 1, master_dtype=torch.float32, lr=0.1)
        model.load_state_dict(make_model(seed=7, dtype=torch.bfloat16).state_dict())
        optimizer.refresh_masters()
        for piece in optimizer.owned:
            whole = dict(model.named_parameters())[piece.name].detach().view(-1)
            assert torch.equal(piece.parameter, whole[piece.begin : piece.end].float())
            piece.parameter.data.fill_(2.0)
        optimizer.gather_parameters()
        return all(bool((parameter == 2).all()) for parameter in model.parameters())

    assert launch_threads(load, 2) == [True, True]


def test_bad_input_is_refused():
    def make(comm, **settings):
        model = make_model()
        frozen = settings.pop("frozen", False)
        model.requires_grad_(not frozen)
        groups = settings.pop("groups", lambda model: None)(model)
        ZeroOptimizer(model, torch.optim.SGD, comm, groups=groups, lr=0.1, **settings)

    for message, settings in {
        "expected 1 or 2": {"stage": 3},
        "no trained parameter": {"frozen": True},
        "in no group: .'token_embedding.weight": {"groups": lambda model: [{"params": [model.final_norm.weight]}]},
        "each once": {"groups": lambda model: [{"params": [*model.parameters(), nn.Parameter(torch.zeros(1))]}]},
    }.items():
        with pytest.raises(ConfigError, match=message):
            launch_threads(lambda comm, settings=settings: make(comm, **settings), 1)
    for wrong in ({"stage": 4}, {"world_size": 0}):
        with pytest.raises(ConfigError, match="expected a stage"):
            model_state_bytes(**{"n_parameters": 10, "world_size": 2, "stage": 1, **wrong})


# The sharded optimizer: whole parameters


def sharded(comm, optimizer_class, groups=decay_groups, **settings):
    model = make_model(seed=comm.rank)
    copies = DistributedDataParallel(model, comm)
    optimizer = ShardedOptimizer(groups(model, 0.1), optimizer_class, comm, **settings)
    norms = []
    for step in range(N_STEPS):
        inputs, targets = part(comm, step)
        next_token_loss(copies, inputs, targets).backward()
        copies.finish_gradient_synchronization(scale_of(batch(step)[1]))
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), norms, optimizer.full_state_dict(), len(optimizer.local.state)


@pytest.mark.parametrize("size", [2, 4])
def test_sharded_optimizer_equals_one_process(size):
    model, optimizer, norms = single(lr=0.01)
    results = launch(
        lambda comm: sharded(comm, torch.optim.AdamW, lr=0.01), size, show_output=False, timeout_seconds=20
    )
    assert sum(n_local for *_, n_local in results) == len(list(model.parameters()))
    for state, rank_norms, optimizer_state, _ in results:
        assert difference(state, model.state_dict()) < 1e-12
        assert rank_norms == pytest.approx(norms, rel=1e-12)
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                torch.testing.assert_close(optimizer_state["state"][index][key], value, rtol=1e-11, atol=1e-13)


def matrices_of_blocks(model, _):
    return [p for name, p in model.named_parameters() if p.dim() == 2 and "blocks" in name]


def test_sharded_optimizer_keeps_matrices_whole_for_muon():
    model = make_model()
    optimizer = Muon(matrices_of_blocks(model, 0), lr=0.02)
    for step in range(N_STEPS):
        inputs, targets = batch(step)
        (next_token_loss(model, inputs, targets) * scale_of(targets)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        model.zero_grad()

    def train(comm):
        copy = make_model(seed=comm.rank)
        copies = DistributedDataParallel(copy, comm)
        optimizer = ShardedOptimizer(matrices_of_blocks(copy, 0), Muon, comm, lr=0.02)
        for step in range(N_STEPS):
            next_token_loss(copies, *part(comm, step)).backward()
            copies.finish_gradient_synchronization(scale_of(batch(step)[1]))
            nn.utils.clip_grad_norm_(copy.parameters(), 0.5)
            optimizer.step()
            copy.zero_grad()
        return copy.state_dict()

    for state in launch_threads(train, 3):
        assert difference(state, model.state_dict()) < 1e-9  # Newton-Schulz in float32 inside
    with pytest.raises(ConfigError):
        launch_threads(lambda comm: ZeroOptimizer(make_model(), Muon, comm), 2)


def test_mutation_without_broadcast_after_the_step_the_copies_part():
    def train(comm):
        model = make_model()
        optimizer = ShardedOptimizer(model.parameters(), torch.optim.SGD, comm, lr=0.1)
        optimizer.broadcast_parameters = lambda: None
        next_token_loss(model, *batch(0)).backward()
        optimizer.step()
        return model.state_dict()

    first, second = launch_threads(train, 2)
    assert difference(first, second) > 1e-2


def test_sharded_optimizer_follows_settings_and_loads_state():
    def train(comm, is_resumed):
        model = make_model()
        optimizer = ShardedOptimizer(decay_groups(model, 0.1), torch.optim.AdamW, comm, lr=1.0)
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            inputs, targets = batch(step)
            next_token_loss(model, inputs, targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            if is_resumed:
                saved = optimizer.full_state_dict()
                optimizer = ShardedOptimizer(decay_groups(model, 0.1), torch.optim.AdamW, comm, lr=1.0)
                optimizer.load_full_state_dict(saved)
        with pytest.raises(CheckpointError, match="groups of"):
            optimizer.load_full_state_dict({"state": {}, "param_groups": []})
        return model.state_dict()

    model = make_model()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1.0)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        next_token_loss(model, *batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for is_resumed in (False, True):
        for state in launch_threads(train, 2, is_resumed):
            assert difference(state, model.state_dict()) < 1e-12


def test_a_group_may_come_later_and_more_ranks_than_parameters():
    def train(comm):
        first, later = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        optimizer = ShardedOptimizer([first], torch.optim.SGD, comm, lr=0.5)
        optimizer.add_param_group({"params": [later], "lr": 0.25})
        for parameter in (first, later):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return first[0].item(), later[0].item(), optimizer.owner[later]

    assert launch_threads(train, 3) == [(0.5, 0.75, 1)] * 3


def test_owners_are_balanced():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 100, (40,), generator=generator).tolist()
    owners = assign_owners(sizes, 4)
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(4)]
    assert max(loads) - min(loads) <= 5
    with pytest.raises(ConfigError, match="n_ranks is 0"):
        assign_owners([1], 0)
