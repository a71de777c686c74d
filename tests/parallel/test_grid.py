"""Grids of ranks against one process in float64, other rows on each data-parallel rank; wrong ones must be seen."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from minillm.errors import CheckpointError, ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.full_state import (
    gather_full_state,
    gather_optimizer_state,
    load_full_optimizer_state,
    load_full_state,
)
from minillm.parallel.grid import Parallel3D, PipelineConfig, check_grid
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.train.optim import AdamW
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

V, T, N_ROWS, N_STEPS = 12, 6, 8, 2
KINDS = {
    "tied": {"norm": "layer", "bias": True, "position": "learned", "n_kv_heads": 4},
    "modern": {
        "norm": "rms", "position": "rotary", "feed_forward": "relu2", "qk_norm": True, "token_shift": True,
        "embedding_norm": True, "logit_cap": 15.0, "n_kv_heads": 2, "tie_embeddings": False,
    },
    "alibi": {"position": "alibi", "parallel_block": True, "feed_forward": "swiglu", "n_kv_heads": 2},
}  # fmt: skip
TWO = PipelineConfig(n_microbatches=2)
INTERLEAVED = PipelineConfig("interleaved", n_microbatches=2, n_chunks=2)
CASES = {
    "tp, positions shared": ("modern", MeshSize(tp=2), TWO, True),
    "dp x pp": ("alibi", MeshSize(dp=2, pp=2), PipelineConfig("gpipe", 3), False),
    "pp x tp": ("modern", MeshSize(pp=2, tp=2), INTERLEAVED, True),
    "dp x pp x tp": ("tied", MeshSize(dp=2, pp=2, tp=2), INTERLEAVED, False),
}


def whole(kind="tied", seed=0):
    config = GPTConfig(vocab_size=V, max_seq_len=T, n_layers=4, n_heads=4, d_model=16, **KINDS[kind])
    return GPT(config, torch.Generator().manual_seed(seed)).double()


def batches():
    """Different rows in every step; how many targets count differs from row to row."""
    inputs, targets = torch.randint(V, (2, N_STEPS, N_ROWS, T), generator=torch.Generator().manual_seed(1))
    targets[:, 0, 1:] = -100
    targets[:, 6] = -100
    return list(zip(inputs, targets, strict=True))


def optimizer_of(parameters):
    """Two groups, as in a real run: matrices decay, vectors do not."""
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=1e-2)


def single_run(kind, n_steps=N_STEPS, max_norm=0.5):
    """Losses and norms, weights and optimizer state of one process, by torch's own loss and clipping."""
    model = whole(kind)
    optimizer, seen = optimizer_of(model.parameters()), []
    for inputs, targets in batches()[:n_steps]:
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen, model, optimizer


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def rows_of(mesh, rows):
    return rows.chunk(mesh.dp.size)[mesh.dp.rank]


def make(comm, kind, size, pipeline, shares):
    """Other ranks than rank 0 begin with other weights, which must not matter."""
    mesh = Mesh(size, comm)
    return mesh, Parallel3D(whole(kind, seed=comm.rank), mesh, pipeline, shares, bucket_bytes=4000)


def run(comm, kind, size, pipeline, shares):
    mesh, model = make(comm, kind, size, pipeline, shares)
    optimizer, seen = optimizer_of(model.parameters()), []
    for inputs, targets in batches():
        seen.append(model.train_step(optimizer, rows_of(mesh, inputs), rows_of(mesh, targets), max_norm=0.5))
    state = gather_full_state(model.part, mesh)
    return seen, state, gather_optimizer_state(optimizer, model.part, mesh, everywhere=True)


@pytest.mark.parametrize("case", CASES)
def test_a_grid_trains_as_one_process(case):
    kind, size, _, _ = CASES[case]
    expected, model, optimizer = single_run(kind)
    results = launch(run, size.world_size, *CASES[case], timeout_seconds=20, show_output=False)
    expected_state = optimizer_state_by_name(optimizer, model)
    for seen, state, saved in results:
        torch.testing.assert_close(double(seen), double(expected), rtol=0, atol=1e-12)
        assert list(state) == list(model.state_dict())
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-12)
        assert list(saved["state"]) == [name for name, _ in model.named_parameters()]
        assert len(saved["groups"]) == 2
        for mine, right in zip(saved["groups"], expected_state["groups"], strict=True):
            assert sorted(mine["names"]) == sorted(right["names"]) and mine["options"] == right["options"]
        for name, entries in expected_state["state"].items():
            assert saved["state"][name]["step"] == N_STEPS
            for key in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(saved["state"][name][key], entries[key], rtol=0, atol=1e-12)


def test_all_cases_have_other_norms_than_the_limit():
    """Clipping must have been at work, or the comparison would say nothing about norms."""
    assert all(norm > 0.6 for kind in KINDS for _, norm in single_run(kind)[0])


def go_on(comm, kind, size, weights, saved):
    """Load what another grid has saved, and make the last step."""
    mesh, model = make(comm, kind, size, TWO, False)
    load_full_state(model.part, mesh, weights)
    optimizer = optimizer_of(model.parameters())
    load_full_optimizer_state(optimizer, model.part, mesh, saved)
    inputs, targets = batches()[-1]
    seen = model.train_step(optimizer, rows_of(mesh, inputs), rows_of(mesh, targets), max_norm=0.5)
    return seen, gather_full_state(model.part, mesh, False), gather_optimizer_state(optimizer, model.part, mesh, False)


MESHES = [pytest.param(MeshSize(pp=2, tp=2), marks=pytest.mark.slow), MeshSize(dp=2, pp=2), MeshSize(dp=2, tp=2)]


@pytest.mark.slow
@pytest.mark.parametrize("size", MESHES, ids=str)
def test_what_one_process_saved_goes_on_on_any_grid_and_back(size):
    expected, model, optimizer = single_run("tied")
    _, before, before_optimizer = single_run("tied", N_STEPS - 1)
    saved = optimizer_state_by_name(before_optimizer, before)
    results = launch(
        go_on, size.world_size, "tied", size, before.state_dict(), saved, timeout_seconds=20, show_output=False
    )
    for rank, (seen, state, again) in enumerate(results):
        assert seen == pytest.approx(expected[-1], abs=1e-12)
        assert (state == {}) == (again["groups"] == []) == (rank > 0)
    restored = whole(seed=5)
    restored.load_state_dict(results[0][1])
    restored_optimizer = optimizer_of(restored.parameters())
    load_optimizer_state_by_name(restored_optimizer, restored, results[0][2])
    for name, parameter in model.named_parameters():
        mine = restored.get_parameter(name)
        torch.testing.assert_close(mine, parameter, rtol=0, atol=1e-12)
        moments = restored_optimizer.state[mine]["exp_avg_sq"]
        torch.testing.assert_close(moments, optimizer.state[parameter]["exp_avg_sq"], rtol=0, atol=1e-12)


def load_wrong_states(comm):
    mesh, model = make(comm, "tied", MeshSize(tp=2), TWO, False)
    state = gather_full_state(model.part, mesh)
    without = {name: tensor for name, tensor in state.items() if name != "final_norm.weight"}
    half = {**state, "token_embedding.weight": state["token_embedding.weight"][:6]}
    before, messages = [parameter.clone() for parameter in model.parameters()], []
    for wrong in (without, half):
        with pytest.raises(CheckpointError) as caught:
            load_full_state(model.part, mesh, wrong)
        messages.append(str(caught.value))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return messages


def test_a_state_of_another_model_is_refused_before_anything_changes():
    missing, shape = launch(load_wrong_states, 2, timeout_seconds=20, show_output=False)[0]
    assert "no parameter final_norm.weight" in missing
    assert "token_embedding.weight has shape (6, 16), expected (12, 16)" in shape


def launches(comm, size):
    mesh, model = make(comm, "tied", size, TWO, False)
    inputs, targets = batches()[0]
    for _ in range(2):
        model.gradients(rows_of(mesh, inputs), rows_of(mesh, targets))
        model.part.zero_grad()
    return model.buckets.launches, len(model.buckets.buckets)


def test_sums_over_the_copies_begin_during_the_last_backward_pass():
    for log, n_buckets in launch(launches, 4, MeshSize(dp=2, pp=2), timeout_seconds=20, show_output=False):
        assert len(log) == n_buckets > 2
        assert log[0].n_missing > log[-1].n_missing


# Wrong ones


def forget_the_other_copies(model):
    """No sum over dp: each rank goes on with its own rows."""
    model.buckets.finish = lambda scale: None
    model.buckets.ready = lambda parameter: None


def count_copies_as_often_as_they_are(model):
    model.is_counted = lambda parameter: True


def forget_the_sum_over_shared_positions(model):
    model.sharding = dataclasses.replace(model.sharding, partial=frozenset())


def first_step(comm, kind, size, shares, spoil):
    mesh, model = make(comm, kind, size, TWO, shares)
    spoil(model)
    inputs, targets = batches()[0]
    report = model.gradients(rows_of(mesh, inputs), rows_of(mesh, targets))
    norm = model.clip(float("inf")).item()
    layout = model.sharding.layout if model.sharding else {}
    whole_here = {name: p.grad for name, p in model.part.named_parameters() if layout.get(name) is None}
    return report.loss.item(), norm, whole_here


def wrong_by(spoil, size, shares=False):
    """How far loss, norm and gradients of whole parameters are from those of one process: right ones, spoilt ones."""
    model, (inputs, targets) = whole(), batches()[0]
    loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}

    def right_and_wrong(comm):
        return [first_step(comm, "tied", size, shares, change) for change in (lambda model: None, spoil)]

    per_rank = launch(right_and_wrong, size.world_size, timeout_seconds=20, show_output=False)
    for results in zip(*per_rank, strict=True):
        yield (
            max(abs(result[0] - loss.item()) for result in results),
            max(abs(result[1] / norm - 1) for result in results),
            max((g - expected[name]).abs().max().item() for _, _, grads in results for name, g in grads.items()),
        )


def test_gradients_that_are_not_added_over_the_copies_are_seen_under_a_right_loss():
    right, (loss, norm, gradient) = wrong_by(forget_the_other_copies, MeshSize(dp=2))
    assert max(right) < 1e-12 and loss < 1e-12 and norm > 0.05 and gradient > 1e-3


@pytest.mark.parametrize("size", [MeshSize(tp=2), MeshSize(pp=2)], ids=str)
def test_copies_counted_as_often_as_they_are_make_the_norm_wrong_alone(size):
    right, (loss, norm, gradient) = wrong_by(count_copies_as_often_as_they_are, size)
    assert max(right) < 1e-12 and loss < 1e-12 and gradient < 1e-12 and norm > 0.01


def test_a_forgotten_sum_over_shared_positions_is_seen():
    right, (loss, _, gradient) = wrong_by(forget_the_sum_over_shared_positions, MeshSize(tp=2), shares=True)
    assert max(right) < 1e-12 and loss < 1e-12 and gradient > 1e-3


# What is refused


@pytest.mark.parametrize(
    ("size", "pipeline", "message"),
    [
        (MeshSize(pp=3), PipelineConfig(n_chunks=2, schedule="interleaved"), "needs 6 layers"),
        (MeshSize(tp=3), TWO, "tp=3 does not divide n_heads 4"),
        (MeshSize(tp=4), TWO, "tp=4 does not divide n_kv_heads 2"),
        (MeshSize(pp=2), PipelineConfig("zigzag"), "schedule 'zigzag' is unknown"),
        (MeshSize(pp=2), PipelineConfig("interleaved", 3, 2), "3 micro-batches on 2 ranks"),
    ],
)
def test_grids_that_do_not_fit_are_refused_without_ranks(size, pipeline, message):
    with pytest.raises(ConfigError, match=message):
        check_grid(whole("modern").config, size, pipeline)


def test_a_mixture_of_experts_can_be_copied_but_not_cut():
    config = GPTConfig(
        vocab_size=V, max_seq_len=T, n_layers=2, n_heads=4, d_model=16, n_experts=2, n_active_experts=1
    )
    check_grid(config, MeshSize(dp=2))
    with pytest.raises(ConfigError, match="mixture of 2 experts"):
        check_grid(config, MeshSize(tp=2))
    with pytest.raises(ConfigError, match="mixture of 2 experts"):
        check_grid(config, MeshSize(pp=2))
