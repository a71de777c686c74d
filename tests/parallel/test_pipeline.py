"""The engine against one process in float64, and against PyTorch's own pipelines; wrong ones must be seen."""

import time
import weakref

import pytest
import torch
import torch.distributed.pipelining as torch_pipelining
import torch.fx.experimental.symbolic_shapes  # noqa: F401, torch's pipelines import it for half a second in every rank
from torch import nn
from torch.nn import functional

from minillm.errors import CommError, ConfigError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel import pipeline
from minillm.parallel.comm import CommCounter
from minillm.parallel.launch import launch
from minillm.parallel.pipeline import PipelineEngine, counts_once, sync_tied_gradients
from minillm.parallel.schedule_checks import peak_in_flight
from minillm.parallel.schedules import Schedule, in_turns, make_schedule, naive_order
from minillm.parallel.stages import PipelineStage
from minillm.parallel.threads import launch_threads

V, T, C = 11, 6, 8
KINDS = {
    "tied": {"token_shift": True, "embedding_norm": True},
    "untied": {"tie_embeddings": False, "position": "rotary", "norm": "rms", "qk_norm": True},
}
# kind, name, P, M, v; micro-batches that do not divide the rows are among them
CASES = [
    ("tied", "naive", 2, 1, 1), ("untied", "gpipe", 2, 3, 1), ("tied", "gpipe", 4, 4, 1), ("tied", "1f1b", 2, 5, 1),
    ("untied", "1f1b", 4, 3, 1), ("tied", "1f1b", 4, 5, 1), ("tied", "interleaved", 2, 4, 2),
    ("untied", "interleaved", 2, 4, 2), ("untied", "interleaved", 2, 2, 2), ("tied", "interleaved", 4, 4, 1),
]  # fmt: skip


def whole(kind="tied", n_layers=4):
    config = GPTConfig(vocab_size=V, max_seq_len=T, n_layers=n_layers, n_heads=2, d_model=C, **KINDS[kind])
    return GPT(config, torch.Generator().manual_seed(0)).double()


def batch(n_rows=5):
    """Rows that count different numbers of targets; one row counts none."""
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(V, (2, n_rows, T), generator=generator)
    targets[0, : T - 1] = -100
    targets[-1] = -100
    return inputs, targets


def single_gradients(kind):
    """Loss and gradients of one process, by torch's own cross-entropy on the whole batch."""
    model, (inputs, targets) = whole(kind), batch()
    loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def step_of_rank(comm, kind, name, n_microbatches, n_chunks, is_synced=True, engine=PipelineEngine):
    stage = PipelineStage(whole(kind), comm.rank, comm.size, n_chunks)
    schedule = make_schedule(name, comm.size, n_microbatches, n_chunks)
    inputs, targets = batch()
    report = engine(stage, comm, schedule).step(inputs, targets)
    if is_synced:
        sync_tied_gradients(stage, comm)
    return report, {name: parameter.grad for name, parameter in stage.named_parameters()}


def largest_difference(results, expected):
    """Over all ranks and parameters; every parameter must be somewhere."""
    assert {name for _, gradients in results for name in gradients} == set(expected)
    pairs = [(gradient, expected[name]) for _, gradients in results for name, gradient in gradients.items()]
    return max((gradient - right).abs().max().item() for gradient, right in pairs)


def steps_of_rank(comm, cases):
    return [step_of_rank(comm, *case) for case in cases]


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_every_schedule_gives_the_gradients_of_one_process(n_ranks):
    cases = [(kind, name, *numbers) for kind, name, size, *numbers in CASES if size == n_ranks]
    per_rank = launch(steps_of_rank, n_ranks, cases, timeout_seconds=20, show_output=False)
    for (kind, name, n_microbatches, n_chunks), *results in zip(cases, *per_rank, strict=True):
        loss, expected = single_gradients(kind)
        assert largest_difference(results, expected) < 1e-15, (kind, name, n_microbatches, n_chunks)
        peaks = peak_in_flight(make_schedule(name, n_ranks, n_microbatches, n_chunks))
        assert [report.peak_in_flight for report, _ in results] == peaks
        for report, _ in results:
            assert report.loss_sum.item() / report.n_tokens == pytest.approx(loss, abs=1e-14)
            assert 0 < report.idle_seconds < report.seconds


def test_the_peaks_that_the_runs_are_compared_with_are_those_of_the_formulas():
    """GPipe keeps M; 1F1B min(P - rank, M); interleaved rank 0 P v + P - 1 chunks (the first warm-up, and one)."""
    assert peak_in_flight(make_schedule("1f1b", 4, 5)) == [4, 3, 2, 1]
    assert peak_in_flight(make_schedule("gpipe", 4, 4)) == [4, 4, 4, 4]
    assert peak_in_flight(make_schedule("interleaved", 2, 4, 2)) == [5, 3]


def test_one_rank_accumulates_and_threads_do_as_well():
    loss, expected = single_gradients("tied")
    results = launch(step_of_rank, 1, "tied", "1f1b", 5, 1, show_output=False)
    assert largest_difference(results, expected) < 1e-15 and results[0][0].peak_in_flight == 1
    results = launch_threads(step_of_rank, 2, "tied", "interleaved", 4, 2)
    assert largest_difference(results, expected) < 1e-15


class OneChunk(nn.Module):
    """A stage of torch's pipelines."""

    def __init__(self, stage, chunk):
        super().__init__()
        self.stage, self.chunk = stage, chunk

    def forward(self, x):
        return self.stage(x, self.chunk)


TORCH = {
    "gpipe": torch_pipelining.ScheduleGPipe,
    "1f1b": torch_pipelining.Schedule1F1B,
    "interleaved": torch_pipelining.ScheduleInterleaved1F1B,
}


def torch_pipeline(comm, kind, name, n_microbatches, n_chunks):
    """Loss and gradients of the same stages under PyTorch's engine."""
    part = PipelineStage(whole(kind), comm.rank, comm.size, n_chunks)
    inputs, targets = (rows[:4] for rows in batch())
    n_tokens = (targets != -100).sum()

    def loss_of(logits, wanted):
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / n_tokens

    stages = [
        torch_pipelining.PipelineStage(
            OneChunk(part, chunk), chunk * comm.size + comm.rank, comm.size * n_chunks, comm.device, group=comm.group
        )
        for chunk in range(n_chunks)
    ]
    schedule = TORCH[name](stages if n_chunks > 1 else stages[0], n_microbatches, loss_fn=loss_of, scale_grads=False)
    arguments = [inputs] if comm.rank == 0 else []
    extra = {"target": targets, "losses": []} if comm.rank == comm.size - 1 else {}
    schedule.step(*arguments, **extra)
    return {name: parameter.grad for name, parameter in part.named_parameters()}


def ours_beside_torch(comm, name, n_microbatches, n_chunks):
    expected = torch_pipeline(comm, "untied", name, n_microbatches, n_chunks)
    stage = PipelineStage(whole("untied"), comm.rank, comm.size, n_chunks)
    engine = PipelineEngine(stage, comm, make_schedule(name, comm.size, n_microbatches, n_chunks))
    engine.step(*(rows[:4] for rows in batch()))
    mine = {name: parameter.grad for name, parameter in stage.named_parameters()}
    return max((mine[name] - expected[name]).abs().max().item() for name in expected)


def all_beside_torch(comm):
    cases = [("gpipe", 4, 1), ("1f1b", 4, 1), ("interleaved", 4, 2)]
    return [ours_beside_torch(comm, *case) for case in cases]


@pytest.mark.filterwarnings("ignore")
def test_the_same_as_pytorchs_own_pipelines():
    for differences in launch(all_beside_torch, 2, timeout_seconds=20, show_output=False):
        assert max(differences) < 1e-15


# Wrong ones


def test_a_tied_table_whose_gradients_are_not_added_is_another_gradient():
    _, expected = single_gradients("tied")
    results = launch(step_of_rank, 2, "tied", "1f1b", 2, 1, False, timeout_seconds=20, show_output=False)
    assert largest_difference(results, expected) > 1e-2


class LastMicrobatchOnly(PipelineEngine):
    """The mistake of a known engine: gradients are set back for each micro-batch. Its loss is right."""

    def backward(self, run, action):
        self.stage.zero_grad()
        super().backward(run, action)


class MeansOfMicrobatches(PipelineEngine):
    """Each micro-batch divides by its own counted targets."""

    def loss(self, run, action, x):
        n_tokens = (run.targets[action.microbatch] != -100).sum().clamp(min=1)
        return super().loss(run, action, x) / n_tokens / len(run.targets) / run.factor


def wrong_engines(comm):
    engines = LastMicrobatchOnly, MeansOfMicrobatches
    return [step_of_rank(comm, "tied", "1f1b", 5, 1, True, engine) for engine in engines]


def test_wrong_gradients_under_a_right_loss_are_seen():
    loss, expected = single_gradients("tied")
    per_rank = launch(wrong_engines, 2, timeout_seconds=20, show_output=False)
    for results in zip(*per_rank, strict=True):
        report, _ = results[0]
        assert report.loss_sum.item() / report.n_tokens == pytest.approx(loss, abs=1e-14)
        assert largest_difference(results, expected) > 1e-3


def schedule_with_warm_up(*n_warmup, n_microbatches=4):
    order = naive_order(n_microbatches)
    actions = tuple(tuple(in_turns(order, order, n)) for n in n_warmup)
    return Schedule("wrong", n_microbatches, 1, actions)


def step_with(comm, schedule):
    stage = PipelineStage(whole(), comm.rank, comm.size)
    return PipelineEngine(stage, comm, schedule).step(*batch()).peak_in_flight


def test_a_warm_up_that_locks_the_ranks_is_refused_before_anything_is_sent():
    with pytest.raises(ConfigError, match="would wait for ever: rank 0 at B0 from rank 1"):
        launch(step_with, 2, schedule_with_warm_up(0, 1), timeout_seconds=20, show_output=False)


@pytest.mark.slow
def test_without_that_check_the_lock_is_an_error_in_seconds(monkeypatch):
    monkeypatch.setattr(pipeline, "check_schedule", lambda schedule: None)
    start = time.monotonic()
    with pytest.raises(CommError, match="rank . of 2 in world: recv from rank . "):
        launch(step_with, 2, schedule_with_warm_up(0, 1), timeout_seconds=1, show_output=False)
    assert time.monotonic() - start < 10


def test_a_warm_up_that_is_too_long_is_seen_in_the_memory():
    peaks = launch(step_with, 2, schedule_with_warm_up(3, 0), timeout_seconds=20, show_output=False)
    assert peaks == [4, 1] and peak_in_flight(make_schedule("1f1b", 2, 4)) == [2, 1]


# What goes over the wire, what is kept, what is refused


def volume(comm):
    inputs, targets = batch(4)
    for name, n_chunks in (("1f1b", 1), ("interleaved", 2)):
        comm.counter.clear()
        stage = PipelineStage(whole("untied"), comm.rank, comm.size, n_chunks)
        PipelineEngine(stage, comm, make_schedule(name, comm.size, 4, n_chunks)).step(inputs, targets)
        yield comm.counter.count("send"), comm.counter.n_bytes("send")


def test_bytes_sent_are_those_of_the_boundaries():
    counters = [CommCounter() for _ in range(2)]
    results = launch(lambda comm: list(volume(comm)), 2, counters=counters, timeout_seconds=20, show_output=False)
    boundary_bytes = 4 * T * C * 8  # B T C in float64, however many micro-batches
    assert results[0][0] == results[1][0] == (4, boundary_bytes)  # rank 0 sends vectors, rank 1 gradients
    # stages 0, 1, 2, 3 on ranks 0, 1, 0, 1: three boundaries, each forward and backward
    assert sum(n_bytes for _, n_bytes in (rank[1] for rank in results)) == 3 * 2 * boundary_bytes


class Watched(nn.Module):
    """A stage whose outputs are watched: are they freed once they have been sent?"""

    dtype = torch.float64

    def __init__(self, patience_seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.patience_seconds, self.outputs, self.alive = patience_seconds, [], []

    def boundary_shape(self, n_rows, n_positions):
        return n_rows, n_positions, 1000

    def forward(self, x, chunk=0):
        x = x[..., None].expand(*x.shape, 1000) if x.dim() == 2 else x
        output = x * self.weight + 0.0
        end = time.monotonic() + self.patience_seconds
        while self.n_alive() > 2 and time.monotonic() < end:       # what was sent before has time to arrive
            time.sleep(0.001)
        self.alive.append(self.n_alive())
        self.outputs.append(weakref.ref(output.untyped_storage()))
        return output

    def n_alive(self):
        return sum(other() is not None for other in self.outputs)


class Hoarder(PipelineEngine):
    """Keeps what was sent."""

    def send(self, run, tensor, action, target_stage):
        self.hoard = [*getattr(self, "hoard", []), tensor]
        super().send(run, tensor, action, target_stage)


def watch(comm, engine, patience_seconds):
    stage = Watched(patience_seconds if comm.rank == 0 else 0.0)
    inputs, targets = batch(8)
    engine = engine(stage, comm, make_schedule("gpipe", comm.size, 8))
    report = engine.step(inputs, targets, lambda model, x, y: model(x).square().mean())
    return max(stage.alive), report.peak_in_flight


def test_what_was_sent_is_freed_though_its_way_back_is_kept():
    (alive, peak), _ = launch(watch, 2, PipelineEngine, 5.0, timeout_seconds=20, show_output=False)
    assert peak == 8 and alive <= 2
    (alive, _), _ = launch(watch, 2, Hoarder, 0.02, timeout_seconds=20, show_output=False)
    assert alive == 7


def different_rows(comm):
    stage = PipelineStage(whole(), comm.rank, comm.size)
    inputs, targets = batch(4 + comm.rank)
    PipelineEngine(stage, comm, make_schedule("gpipe", comm.size, 2)).step(inputs, targets)


def test_stages_with_different_batches_are_told_so():
    with pytest.raises(CommError, match=r"came with different batches: .*\[\[4, 6, \d+, 2\], \[5, 6, \d+, 2\]\]"):
        launch(different_rows, 2, timeout_seconds=20, show_output=False)


def test_schedules_and_batches_that_do_not_fit():
    with pytest.raises(ConfigError, match="a schedule for 4 ranks in a pipeline of 2"):
        launch_threads(step_with, 2, make_schedule("1f1b", 4, 4))
    with pytest.raises(ShapeError, match="in 6 micro-batches: expected one shape .* with 6 rows or more"):
        launch_threads(step_with, 1, make_schedule("1f1b", 1, 6))


def evaluation(comm):
    stage = PipelineStage(whole(), comm.rank, comm.size)
    report = PipelineEngine(stage, comm, make_schedule("1f1b", comm.size, 3)).evaluate(*batch())
    assert report.peak_in_flight == 0 and all(parameter.grad is None for parameter in stage.parameters())
    return report.loss_sum.item() / report.n_tokens


def test_evaluation_keeps_nothing():
    loss, _ = single_gradients("tied")
    assert launch(evaluation, 2, timeout_seconds=20, show_output=False) == pytest.approx([loss, loss], abs=1e-14)


def frozen_and_scaled(comm):
    model = whole()
    model.requires_grad_(False)
    model.blocks[3].requires_grad_(True)
    stage = PipelineStage(model, comm.rank, comm.size)
    engine = PipelineEngine(stage, comm, make_schedule("1f1b", comm.size, 2))
    report = engine.step(*batch(), n_tokens=10, scale=3.0)
    gradients = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    return report, gradients


def test_a_frozen_stage_a_given_token_count_and_a_scale():
    loss, expected = single_gradients("tied")
    (report, nothing), (_, gradients) = launch(frozen_and_scaled, 2, timeout_seconds=20, show_output=False)
    assert nothing == {} and all(name.startswith("blocks.3.") for name in gradients)
    assert report.loss_sum.item() == pytest.approx(loss * report.n_tokens, abs=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name] * report.n_tokens / 10 * 3.0, rtol=0, atol=1e-14)


def test_only_the_first_copy_of_a_tied_table_counts():
    model = whole()
    first, last = (PipelineStage(model, rank, 2) for rank in range(2))
    assert counts_once(first, "token_embedding.weight") and not counts_once(last, "token_embedding.weight")
    assert counts_once(last, "final_norm.weight")
