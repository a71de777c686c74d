"""Fully sharded data parallel against one process in float64 and against torch's own; memory and traffic by count."""

import math
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from minillm.errors import CheckpointError, CommError, ConfigError
from minillm.models.gpt import GPT, Block, GPTConfig
from minillm.parallel.comm import Pending
from minillm.parallel.fsdp import FullyShardedDataParallel
from minillm.parallel.launch import launch
from minillm.parallel.memory import measured_state_bytes, model_state_bytes
from minillm.parallel.threads import launch_threads
from minillm.parallel.traffic import CommCounter, SlowLink
from minillm.train.grouping import decay_groups
from minillm.train.loss import next_token_loss
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

CONFIG = GPTConfig(vocab_size=11, max_seq_len=6, n_layers=3, n_heads=2, d_model=8, bias=True)
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


def part(comm, step):
    return (tensor.tensor_split(comm.size)[comm.rank] for tensor in batch(step))


def scale_of(step):
    return 1 / int((batch(step)[1] != -100).sum())


def single(max_norm=0.5, n_steps=N_STEPS):
    """One process on the whole batch."""
    model = make_model()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=0.01)
    norms = []
    for step in range(n_steps):
        (next_token_loss(model, *batch(step)) * scale_of(step)).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, norms


def train(comm, wrong="", **settings):
    """The same on this rank's rows; `wrong` plants a fault."""
    model = make_model(seed=comm.rank)
    groups = decay_groups(model, 0.1)
    sharded = FullyShardedDataParallel(model, comm, **{"wrap": [Block], **settings})
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    if wrong == "own gradients only":
        comm.reduce_scatter = lambda output, tensor, async_op: (
            output.copy_(tensor.view(comm.size, -1)[comm.rank]) is None or Pending(comm, "nothing")
        )
    norms = []
    for step in range(N_STEPS):
        comm.counter = CommCounter()
        next_token_loss(sharded, *part(comm, step)).backward()
        sharded.finish_gradient_synchronization(scale_of(step) * (0.5 if wrong == "averaged twice" else 1.0))
        if wrong == "own norm":
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        else:
            norms.append(sharded.clip_gradients(0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    counter = comm.counter
    comm.counter = None
    return sharded.full_state_dict(), norms, sharded.full_state_by_name(optimizer), counter, padded_bytes(sharded)


def padded_bytes(sharded):
    return [sum(b.full.element_size() * b.layout.padded_numbers for b in unit.buffers) for unit in sharded.units]


def difference(state, other):
    return max((state[name] - other[name]).abs().max().item() for name in other)


FULL_RUNS = [(2, None, True), pytest.param(2, True, False, marks=pytest.mark.slow), (4, True, True)]


@pytest.mark.parametrize(("size", "reshard", "prefetch"), FULL_RUNS)
def test_training_equals_one_process(size, reshard, prefetch):
    model, optimizer, norms = single()
    expected_state = optimizer_state_by_name(optimizer, model)
    results = launch(
        lambda comm: train(comm, reshard_after_forward=reshard, prefetch=prefetch),
        size, show_output=False, timeout_seconds=20, checked=True,
    )  # fmt: skip
    for state, rank_norms, optimizer_state, _, _ in results:
        assert list(state) == list(model.state_dict())
        assert difference(state, model.state_dict()) < 1e-12
        assert rank_norms == pytest.approx(norms, rel=1e-12)
        for name, entries in expected_state["state"].items():
            for key, value in entries.items():
                torch.testing.assert_close(optimizer_state["state"][name][key], value, rtol=1e-11, atol=1e-13)
    fresh = make_model()
    load_optimizer_state_by_name(torch.optim.AdamW(decay_groups(fresh, 0.1), lr=0.01), fresh, optimizer_state)


def test_state_of_one_process_goes_on_here():
    model, optimizer, _ = single(n_steps=2)
    half, state = {k: v.clone() for k, v in model.state_dict().items()}, optimizer_state_by_name(optimizer, model)
    finished, _, _ = single()

    def resume(comm):
        copy = make_model(seed=5)
        groups = decay_groups(copy, 0.1)
        sharded = FullyShardedDataParallel(copy, comm, [Block])
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        sharded.load_full(half)
        sharded.load_full_state_by_name(optimizer, state)
        for step in range(2, N_STEPS):
            next_token_loss(sharded, *part(comm, step)).backward()
            sharded.finish_gradient_synchronization(scale_of(step))
            sharded.clip_gradients(0.5)
            optimizer.step()
            optimizer.zero_grad()
        return sharded.full_state_dict()

    for resumed in launch_threads(resume, 3):
        assert difference(resumed, finished.state_dict()) < 1e-12


NESTED = ("blocks.1", "blocks.1.feed_forward")


@pytest.mark.parametrize("wrap", [(), [Block], [nn.Module], lambda name, part: name in NESTED])
def test_any_cut_into_units_gives_the_same(wrap):
    model, _, norms = single()
    if wrap == [nn.Module]:
        wrap = lambda name, part: not isinstance(part, nn.ModuleList) and "embedding" not in name  # noqa: E731
    for state, rank_norms, *_ in launch_threads(lambda comm: train(comm, wrap=wrap), 2):
        assert difference(state, model.state_dict()) < 1e-12
        assert rank_norms == pytest.approx(norms, rel=1e-12)


@pytest.mark.parametrize("wrong", ["averaged twice", "own gradients only", "own norm"])
def test_mutations_are_noticed(wrong):
    model, _, norms = single()
    state, rank_norms, *_ = launch_threads(lambda comm: train(comm, wrong), 2)[1]
    assert rank_norms != pytest.approx(norms, rel=1e-3)
    assert difference(state, model.state_dict()) > 1e-6


def torch_engine(comm):
    """Steps of `fully_shard` on this rank's rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.simplefilter("ignore")
    model = make_model()
    mesh = init_device_mesh("cpu", (comm.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=0.01)
    norms = []
    for step in range(N_STEPS):
        (next_token_loss(model, *part(comm, step)) * scale_of(step) * comm.size).backward()  # it takes the mean
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).full_tensor().item())
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}, norms


def test_training_equals_torch_fully_shard():
    ours, theirs = (launch(function, 2, show_output=False, timeout_seconds=20)[0] for function in (train, torch_engine))
    assert difference(ours[0], theirs[0]) < 1e-12
    assert ours[1] == pytest.approx(theirs[1], rel=1e-12)


@pytest.mark.parametrize(("reshard", "factor"), [(True, 3), (False, 2)])
def test_traffic_is_that_of_the_paper(reshard, factor):
    for *_, counter, unit_bytes in launch_threads(lambda comm: train(comm, reshard_after_forward=reshard), 2):
        n_units = len(unit_bytes)
        assert n_units == 1 + CONFIG.n_layers
        assert counter.count("reduce_scatter") == n_units
        assert counter.count("all_gather") == (factor - 1) * n_units
        moved = counter.n_bytes("all_gather") + counter.n_bytes("reduce_scatter")
        assert moved == factor * sum(unit_bytes)
        sent = counter.sent_bytes("all_gather") + counter.sent_bytes("reduce_scatter")
        assert sent == factor * (2 - 1) / 2 * sum(unit_bytes)


def test_without_reshard_of_the_root_its_parameters_travel_twice_only():
    *_, counter, (root, *blocks) = launch_threads(train, 2)[0]
    assert counter.n_bytes("all_gather") + counter.n_bytes("reduce_scatter") == 2 * root + 3 * sum(blocks)


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_at_rest_are_16_psi_over_p(size):
    """float32 shard, gradient and two moments: 16 bytes, computing in bfloat16."""
    sizes = GPTConfig(vocab_size=16, max_seq_len=8, n_layers=2, n_heads=2, d_model=8)

    def rest(comm):
        model = GPT(sizes, torch.Generator().manual_seed(0))
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        sharded = FullyShardedDataParallel(model, comm, [Block], compute_dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        ids = torch.randint(16, (2, 8), generator=torch.Generator().manual_seed(comm.rank))
        sharded(ids).float().square().mean().backward()
        sharded.finish_gradient_synchronization()
        optimizer.step()
        whole = sum(buffer.full.untyped_storage().nbytes() for unit in sharded.units for buffer in unit.buffers)
        return measured_state_bytes(model, optimizer), n_parameters, whole

    for measured, n_parameters, whole in launch_threads(rest, size):
        assert whole == 0
        assert measured.total == 16 * n_parameters // size == model_state_bytes(n_parameters, size, 3).total
        assert measured == model_state_bytes(n_parameters, size, 3, 4, 4, 8)


@pytest.mark.parametrize("prefetch", [True, False])
def test_at_most_two_units_are_whole_besides_the_root(prefetch):
    def look(comm):
        model = make_model()
        sharded = FullyShardedDataParallel(model, comm, [Block], prefetch=prefetch)
        most, gradients = [], []

        def count(*_):
            units = sharded.units[1:]
            most.append(sum(any(b.full.untyped_storage().nbytes() for b in unit.buffers) for unit in units))
            gradients.append(sum(any(b.scatter.flat is not None for b in unit.buffers) for unit in units))

        for part_ in model.modules():
            part_.register_forward_hook(count)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(count)
        next_token_loss(sharded, *part(comm, 0)).backward()
        sharded.finish_gradient_synchronization()
        return max(most), max(gradients)

    assert launch_threads(look, 2) == [(2 if prefetch else 1, 2)] * 2


def test_the_next_unit_is_fetched_while_one_computes():
    def look(comm):
        model = make_model()
        sharded = FullyShardedDataParallel(model, comm, [Block])
        log = []
        next_token_loss(sharded, *part(comm, 0)).backward()
        sharded.finish_gradient_synchronization()
        blocks = [unit.buffers[0] for unit in sharded.units[1:]]
        for block in model.blocks:
            block.attention.register_forward_hook(lambda *_: log.append([b.pending is not None for b in blocks]))
        next_token_loss(sharded, *part(comm, 0))
        return log

    assert launch_threads(look, 2)[0] == [[False, True, False], [False, False, True], [False, False, False]]


class Foreign(nn.Module):
    """Not of this library: tied over units, frozen, used by rank 0 only, never used, called twice, several outputs."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed, self.encoder = nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.first, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.frozen, self.sometimes, self.unused, self.twice = (nn.Linear(8, 8) for _ in range(4))
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.encoder.layers[1].linear1.weight.requires_grad_(False)
        self.pair = Pair()
        self.double()

    def forward(self, x, rank=1):
        x = self.twice(self.encoder(self.twice(self.embed(x))))
        x = self.tied(self.frozen(torch.tanh(self.first(x))))
        x, extra = self.pair(x)
        x = self.norm(x.flatten(0, 1))
        return {"output": self.sometimes(x) if rank == 0 else x, "parts": (extra, [x])}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.left(x), self.right(x).square().mean()


def rows_of(rank):
    return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(50 + rank), dtype=torch.float64)


def loss_of(output):
    return output["output"].square().sum() + 3 * output["parts"][0] + output["parts"][1][0].sum()


def foreign_steps(model, forwards, synchronize, n_steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, eps=1e-4)
    for _ in range(n_steps):
        for forward in forwards:
            loss_of(forward()).backward()
        synchronize()
        optimizer.step()
        optimizer.zero_grad()


CHOSEN = (
    "embed", "encoder.layers.0", "encoder.layers.1", "first", "tied", "frozen", "unused", "twice", "pair",
)  # fmt: skip


@pytest.mark.parametrize("reshard", [pytest.param(None, marks=pytest.mark.slow), True, False])
def test_foreign_module_with_every_difficulty(reshard):
    expected = Foreign(0)
    rows = [lambda r=rank: expected(rows_of(r), rank=r) for rank in range(2)]
    foreign_steps(expected, rows, lambda: None)

    def run(comm):
        model = Foreign(comm.rank)
        sharded = FullyShardedDataParallel(model, comm, lambda name, _: name in CHOSEN, reshard_after_forward=reshard)
        assert "first.weight" in sharded.root.names.values()  # tied over two units
        foreign_steps(
            model, [lambda: sharded(rows_of(comm.rank), rank=comm.rank)],
            lambda: sharded.finish_gradient_synchronization(1.0),
        )  # fmt: skip
        return sharded.full_state_dict()

    for state in launch(run, 2, show_output=False, timeout_seconds=20):
        names = [name for name in state if not name.startswith("norm.")]  # running means are each rank's own
        assert difference(state, {name: expected.state_dict()[name] for name in names}) < 1e-12
        assert torch.equal(state["unused.weight"], Foreign(0).unused.weight)
        assert torch.equal(state["first.weight"], state["tied.weight"])


def test_several_passes_add_up_and_zero_grad_may_come_after_forward():
    model, _, _ = single(math.inf, n_steps=2)

    def run(comm):
        copy = make_model(seed=comm.rank)
        groups = decay_groups(copy, 0.1)
        sharded = FullyShardedDataParallel(copy, comm, [Block])
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        for step in range(2):
            inputs, targets = part(comm, step)
            for rows in (slice(0, 1), slice(1, None)):
                loss = next_token_loss(sharded, inputs[rows], targets[rows])
                if rows.start == 0:
                    optimizer.zero_grad()
                loss.backward()
                sharded.finish_gradient_synchronization(scale_of(step))
            optimizer.step()
        return sharded.full_state_dict()

    for state in launch_threads(run, 2):
        assert difference(state, model.state_dict()) < 1e-12


def test_two_backward_passes_without_synchronization_are_refused():
    def run(comm):
        sharded = FullyShardedDataParallel(make_model(), comm, [Block])
        next_token_loss(sharded, *part(comm, 0)).backward()
        next_token_loss(sharded, *part(comm, 1)).backward()

    with pytest.raises(CommError, match="finish_gradient_synchronization"):
        launch_threads(run, 2)


def test_evaluation_between_forward_and_step_and_after():
    """Whole parameters of before a step are never used after it."""
    model, _, _ = single(math.inf, n_steps=1)
    expected = model(batch(3)[0])

    def run(comm, reshard):
        copy = make_model()
        groups = decay_groups(copy, 0.1)
        sharded = FullyShardedDataParallel(copy, comm, [Block], reshard_after_forward=reshard)
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        next_token_loss(sharded, *part(comm, 0)).backward()
        sharded.finish_gradient_synchronization(scale_of(0))
        with torch.no_grad():
            sharded(batch(2)[0])
        sharded(batch(2)[0])  # a forward whose backward never comes
        optimizer.step()
        with torch.inference_mode():
            after = sharded(batch(3)[0])
        with sharded.gather_full_parameters() as whole:
            inside = whole(batch(3)[0]).detach()
            assert whole.token_embedding.weight.shape == (11, 8)
        assert whole.token_embedding.weight.dim() == 1
        optimizer.zero_grad()
        next_token_loss(sharded, *part(comm, 1)).backward()  # and training goes on
        return after.clone(), inside

    for reshard in (None, False):
        for after, inside in launch_threads(run, 2, reshard):
            torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(inside, expected, rtol=0, atol=1e-12)


class Recomputed(nn.Module):
    """Two layers, each of whose activations are computed again in backward."""

    def __init__(self, use_reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)).double()
        self.use_reentrant = use_reentrant

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if self.use_reentrant is None else checkpoint(layer, x, use_reentrant=self.use_reentrant)
        return x


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_activations(use_reentrant):
    x = rows_of(0)[0, :, :4].requires_grad_()
    expected = Recomputed(None)
    expected(x).square().sum().backward()

    models = [Recomputed(use_reentrant) for _ in range(2)]

    def run(comm):
        model = models[comm.rank]
        sharded = FullyShardedDataParallel(model, comm, [nn.Sequential])
        sharded(x.detach().clone().requires_grad_()).square().sum().backward()
        sharded.finish_gradient_synchronization()
        return [comm.all_objects(p.grad) for p in model.parameters()]

    for gradients in launch_threads(run, 2):
        for pieces, parameter in zip(gradients, expected.parameters(), strict=True):
            whole = torch.cat([piece for piece in pieces if piece is not None])
            torch.testing.assert_close(whole, parameter.grad.flatten(), rtol=1e-12, atol=1e-12)


def test_bfloat16_computes_on_float32_masters():
    """Equal to a bfloat16 copy of the masters on each rank; updates too small for bfloat16 are not lost."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(x)))

    def run(comm, reduce_dtype, models):
        model = models[comm.rank]
        sharded = FullyShardedDataParallel(
            model, comm, [nn.Linear], compute_dtype=torch.bfloat16, reduce_dtype=reduce_dtype
        )
        seen = []
        model.layer.register_forward_hook(lambda _, args, output: seen.append((args[0].dtype, output.dtype)))
        sharded(rows_of(comm.rank)[0].float()).float().square().sum().backward()
        sharded.finish_gradient_synchronization(1.0)
        gradients = [comm.all_objects(p.grad) for p in model.parameters()]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        torch.optim.SGD(model.parameters(), lr=1e-6).step()
        return gradients, seen, sharded.full_state_dict()

    expected = [torch.zeros_like(p) for p in Small().parameters()]
    for rank in range(2):
        copy = Small().bfloat16()
        copy(rows_of(rank)[0].bfloat16()).float().square().sum().backward()
        for total, parameter in zip(expected, copy.parameters(), strict=True):
            total += parameter.grad.float()
    for gradients, seen, state in launch_threads(run, 2, torch.float32, [Small(), Small()]):
        assert seen == [(torch.bfloat16, torch.bfloat16)]
        for pieces, whole in zip(gradients, expected, strict=True):
            torch.testing.assert_close(torch.cat([p for p in pieces if p is not None]), whole.flatten())
        for (name, before), gradient in zip(Small().state_dict().items(), expected, strict=True):
            torch.testing.assert_close(state[name], before - 1e-6 * gradient, rtol=0, atol=1e-8)
    gradients, *_ = launch_threads(run, 2, None, [Small(), Small()])[0]
    whole = torch.cat([p for p in gradients[0] if p is not None])
    assert (whole - expected[0].flatten()).abs().max() < 0.02 * expected[0].abs().max()


def test_whole_weights_go_in_and_out():
    def run(comm):
        model = make_model(seed=comm.rank)
        sharded = FullyShardedDataParallel(model, comm, [Block])
        other = make_model(seed=9).state_dict()
        sharded.load_full(other)
        state = sharded.full_state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in other.items())
        for message, wrong in {
            "missing .'final_norm.weight'": {k: v for k, v in other.items() if k != "final_norm.weight"},
            "not known here .'extra'": {**other, "extra": torch.zeros(1)},
            "expected shape .11, 8.": {**other, "token_embedding.weight": torch.zeros(8, 11)},
        }.items():
            with pytest.raises(CheckpointError, match=message):
                sharded.load_full(wrong)
        return [(piece.name, piece.begin, piece.end) for piece in sharded.owned]

    owned = [range_ for of_rank in launch_threads(run, 3) for range_ in of_rank]
    for name, parameter in make_model().named_parameters():
        ranges = sorted((begin, end) for other, begin, end in owned if other == name)
        assert (ranges[0][0], ranges[-1][1]) == (0, parameter.numel())
        assert all(before[1] == after[0] for before, after in zip(ranges, ranges[1:], strict=False))


class Sleepy(nn.Module):
    """A layer whose products take their time without a processor, and whose weights take as long on the wire."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        time.sleep(0.02)
        return self.layer(x)


@pytest.mark.slow
def test_prefetching_hides_a_slow_link():
    def forward_seconds(comm, prefetch):
        model = nn.Sequential(*(Sleepy() for _ in range(5)))
        sharded = FullyShardedDataParallel(model, comm, [Sleepy], prefetch=prefetch)
        seconds = []
        with torch.no_grad():
            for _ in range(3):
                comm.barrier()
                begin = time.perf_counter()
                sharded(torch.ones(1, 16))
                seconds.append(time.perf_counter() - begin)
        return min(seconds[1:])  # the first one learns the order

    sent = 16 * 16 * 4 / 2
    with_prefetch, without = (
        max(launch_threads(forward_seconds, 2, flag, links=[SlowLink(sent / 0.02) for _ in range(2)]))
        for flag in (True, False)
    )
    assert without > 5 * 0.04  # five times: fetch, then compute
    assert with_prefetch < 0.85 * without  # six times 0.02 s if nothing disturbs


def test_mutation_without_a_common_start_the_result_is_of_no_model(monkeypatch):
    monkeypatch.setattr("minillm.parallel.fsdp.broadcast_module", lambda *_: None)
    model, _, norms = single()
    state, rank_norms, *_ = launch_threads(train, 2)[0]
    assert rank_norms != pytest.approx(norms, rel=1e-3)
    assert difference(state, model.state_dict()) > 1e-3


def test_without_the_message_about_unused_parameters_and_pieces_are_memory_of_the_shard():
    model, _, _ = single()
    for state, *_ in launch_threads(lambda comm: train(comm, find_unused=False), 2):
        assert difference(state, model.state_dict()) < 1e-12

    def look(comm):
        sharded = FullyShardedDataParallel(make_model(), comm, [Block])
        blocks = {p.untyped_storage().data_ptr() for p in sharded.module.parameters() if p.numel()}
        return blocks == {
            buffer.shard.untyped_storage().data_ptr() for unit in sharded.units for buffer in unit.buffers
        }

    assert launch_threads(look, 3) == [True] * 3


def test_one_rank_and_loss_of_an_untied_head():
    def run(comm):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        sharded = FullyShardedDataParallel(model, comm, [nn.Linear])
        functional.mse_loss(sharded(torch.ones(2, 3)), torch.zeros(2, 3)).backward()
        sharded.finish_gradient_synchronization()
        return all(p.grad is not None for p in model.parameters())

    assert launch_threads(run, 1) == [True]


def test_bad_wrap_is_refused():
    for wrap, message in (([nn.LSTM], "made of Attention|made of Block"), ([nn.ModuleList], "never called")):
        with pytest.raises(ConfigError, match=message):
            launch_threads(lambda comm, wrap=wrap: FullyShardedDataParallel(make_model(), comm, wrap), 1)
