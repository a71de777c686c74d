"""The training loop on a mesh against the loop in one process: float64, Muon and AdamW, checkpoints from any to any."""

import os
import signal
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError, ConfigError, DataError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.agreement import AgreedStop, first_rank_alone
from minillm.parallel.grid import Parallel3D, PipelineConfig
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.run_checkpoints import RanksCheckpoints
from minillm.parallel.training import (
    MeshModel,
    check_mesh,
    gradients_on_mesh,
    shared_validation_loss,
    whole_model,
)
from minillm.train import checkpoint as checkpoint_module
from minillm.train.checkpoint import CheckpointFolder, read_weights
from minillm.train.hooks import Hook
from minillm.train.loop import LoopConfig, train, validation_loss
from minillm.train.recipes import Recipe, make_optimizer, make_schedule

CONFIG = GPTConfig(
    vocab_size=16, max_seq_len=8, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, norm="rms", position="rotary",
    feed_forward="relu2", qk_norm=True, max_score=12.0, token_shift=True, tie_embeddings=False, logit_cap=15.0,
)  # fmt: skip
MUON, ADAMW = Recipe("muon", 0.03, 2, 0.1), Recipe("adamw", 0.01, 2, 0.1)
N_STEPS = 6


def whole(config=CONFIG):
    model = GPT(config, torch.Generator().manual_seed(0)).double()
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    return model


def rows(step, rank=0, size=1):
    """Eight rows, of which the first count fewer targets: a mean of the ranks' means is another number."""
    dice = np.random.default_rng(step)
    inputs, targets = dice.integers(0, 16, (8, 8)), dice.integers(0, 16, (8, 8))
    targets[0, :6] = targets[1, :3] = targets[2, step % 5 :] = -100
    return tuple(np.split(array, size)[rank] for array in (inputs, targets))


class Reports(Hook):
    """(loss, norm) of each step, and what the validations gave."""

    def __init__(self):
        self.steps, self.validations, self.saved = [], [], []

    def on_step(self, report):
        self.steps.append((report.loss, report.gradient_norm))

    def on_log(self, entry):
        if entry["kind"] == "validation":
            self.validations.append(entry["loss"])

    def on_checkpoint(self, step, path):
        self.saved.append(step)


def loop_config(n_steps, n_parts=1):
    return LoopConfig(
        n_steps, n_microbatches=n_parts, max_norm=0.5, validate_every=3, checkpoint_every=4, spike_sigmas=0
    )


def single_run(folder, recipe, n_steps=N_STEPS, resume=False, config=CONFIG):
    torch.manual_seed(7)
    model, heard = whole(config), Reports()
    optimizer = make_optimizer(recipe, model, config)
    train(
        model, optimizer, rows, loop_config(n_steps), schedule=make_schedule(recipe, N_STEPS), hooks=[heard],
        validate=lambda stop: validation_loss(model, rows, 3, stop),
        checkpoints=CheckpointFolder(folder), resume=resume, run_config={"model": "small"},
    )  # fmt: skip
    return heard, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def mesh_run(world, folder, size, recipe, n_steps=N_STEPS, resume=False, config=CONFIG, hooks=(), wrong=None):
    """The same on this rank of a mesh."""
    mesh = Mesh(size, world)
    torch.manual_seed(7 + mesh.place["dp"])
    n_parts = 2 if size.pp > 1 else 1
    cut = MeshModel(
        Parallel3D(whole(config), mesh, PipelineConfig(n_microbatches=n_parts)), partial(make_optimizer, recipe)
    )
    if wrong is not None:
        wrong(cut)

    def single():
        model = whole(config)
        return model, make_optimizer(recipe, model, config)

    def validate(should_stop):
        model = whole_model(cut, config, world.device)
        return shared_validation_loss(model, world, rows, 3, should_stop)

    heard, own_rows = Reports(), partial(rows, rank=mesh.dp.rank, size=mesh.dp.size)
    with AgreedStop(world) as stop:
        result = train(
            cut.model, cut.optimizer, own_rows, loop_config(n_steps, n_parts),
            schedule=make_schedule(recipe, N_STEPS), hooks=[heard, *hooks], validate=validate,
            checkpoints=RanksCheckpoints(folder, 3, world, cut, single, str(size)), resume=resume,
            run_config={"model": "small"}, stop=stop, gradients=gradients_on_mesh(cut),
        )  # fmt: skip
    return heard, cut.gather_weights(), (result.step, result.stopped_by)


def on_mesh(folder, size, recipe=MUON, **settings):
    def run(world):
        return mesh_run(world, folder, size, recipe, **settings)

    return launch(run, size.world_size, timeout_seconds=20, show_output=False)


def distance(one, other):
    return float(np.abs(np.array(one) - np.array(other)).max())


def check_same(found, expected):
    """Reports and weights agree to 1e-12."""
    assert distance(found[0].steps, expected[0].steps) < 1e-12
    assert distance(found[0].validations, expected[0].validations) < 1e-12
    assert all((found[1][name] - tensor).abs().max() < 1e-12 for name, tensor in expected[1].items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One process, for each recipe."""
    folders = tmp_path_factory.mktemp("single")
    return {recipe: single_run(folders / recipe.optimizer, recipe) for recipe in (MUON, ADAMW)}


def resumed_part(run):
    """What a run from step 4 on reports: two steps; the validation at 6."""
    heard = Reports()
    heard.steps, heard.validations = run[0].steps[4:], run[0].validations[1:]
    return heard, run[1]


@pytest.mark.parametrize(
    ("size", "recipe", "other"),
    [
        (MeshSize(dp=2, tp=2), MUON, MeshSize(pp=2)),
        pytest.param(MeshSize(dp=2, pp=2), MUON, MeshSize(tp=2), marks=pytest.mark.slow),
        pytest.param(MeshSize(pp=2, tp=2), ADAMW, MeshSize(dp=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_on_a_mesh_is_that_of_one_process_and_goes_on_on_any_other(tmp_path, uninterrupted, size, recipe, other):
    for found in on_mesh(tmp_path / "run", size, recipe):
        check_same(found, uninterrupted[recipe])
        assert found[0].saved == [4, 6] and found[2] == (6, None)
    os.rename(tmp_path / "run/step-000006", tmp_path / "last")
    assert set(read_weights(tmp_path / "last")) == set(whole().state_dict())
    for found in on_mesh(tmp_path / "run", other, recipe, resume=True):
        check_same(found, resumed_part(uninterrupted[recipe]))
    os.rename(tmp_path / "run/step-000006", tmp_path / "also last")
    check_same(single_run(tmp_path / "run", recipe, resume=True), resumed_part(uninterrupted[recipe]))


def test_a_run_of_one_process_goes_on_on_a_mesh(tmp_path, uninterrupted):
    single_run(tmp_path, MUON, n_steps=4)
    for found in on_mesh(tmp_path, MeshSize(dp=2, tp=2), resume=True):
        check_same(found, resumed_part(uninterrupted[MUON]))


@pytest.mark.slow
def test_dropout_goes_on_bit_by_bit_on_the_same_mesh_and_differs_between_copies(tmp_path):
    config = GPTConfig(**{**vars(CONFIG), "dropout": 0.3})
    size = MeshSize(dp=2)
    straight = on_mesh(tmp_path / "a", size, config=config)
    on_mesh(tmp_path / "b", size, config=config, n_steps=4)
    halves = on_mesh(tmp_path / "b", size, config=config, resume=True)
    assert halves[0][0].steps == straight[0][0].steps[4:]
    assert all(torch.equal(halves[1][1][name], tensor) for name, tensor in straight[0][1].items())
    states = read_state_of_ranks(tmp_path / "a/step-000006")
    assert states[0] != states[1]


def read_state_of_ranks(path):
    return [each["torch"]["state"] for each in checkpoint_module.read_state(path)["extra"]["ranks"]["generators"]]


# --- the comparison can fail


def muon_on_slices_alone(cut):
    """Orthogonalises what the rank has, which is not what one process does."""
    from minillm.train.optim import MuonAndAdamW

    cut.optimizer.__class__ = MuonAndAdamW


def mean_of_means(cut):
    """Each copy takes the mean over its own targets, and the ranks the mean of those."""
    original = cut.grid.engine.step

    def step(inputs, targets, loss_sum, n_tokens, scale):
        return original(inputs, targets, loss_sum, 2 * int((targets != -100).sum()), scale)

    cut.grid.engine.step = step


def clip_alone(cut):
    """Each rank clips by the norm of what it holds."""
    from minillm.train.clip import clip_gradients

    cut.clip = lambda max_norm: clip_gradients(cut.grid.parameters(), max_norm)


@pytest.mark.parametrize(
    ("wrong", "size"),
    [
        (muon_on_slices_alone, MeshSize(tp=2)),
        (mean_of_means, MeshSize(dp=2)),
        (clip_alone, MeshSize(tp=2)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_comparison_notices(tmp_path, uninterrupted, wrong, size):
    found = on_mesh(tmp_path, size, MUON, wrong=wrong)[0]
    assert distance(found[0].steps, uninterrupted[MUON][0].steps) > 1e-4


# --- stopping together, waiting for one


class SignalAt(Hook):
    """SIGTERM to this process after a step."""

    def on_step(self, report):
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_is_saved(tmp_path, uninterrupted):
    def run(world):
        hooks = [SignalAt()] if world.rank == 1 else []
        return mesh_run(world, tmp_path, MeshSize(dp=2), MUON, hooks=hooks)

    for heard, _, ended in launch(run, 2, timeout_seconds=20, show_output=False):
        assert ended == (3, "SIGTERM") and heard.saved == [3]
    for found in on_mesh(tmp_path, MeshSize(dp=2), resume=True):
        heard = Reports()
        heard.steps, heard.validations = uninterrupted[MUON][0].steps[3:], uninterrupted[MUON][0].validations
        check_same(found, (heard, uninterrupted[MUON][1]))


@pytest.mark.slow
def test_the_others_wait_for_rank_0_longer_than_the_timeout_and_share_its_error(tmp_path):
    def slow(world):
        begin = time.monotonic()
        first_rank_alone(world, lambda: time.sleep(1.5))
        return time.monotonic() - begin

    assert min(launch(slow, 2, timeout_seconds=0.7, show_output=False)) > 1.4

    def missing():
        raise DataError("no text")

    def fails(world):
        try:
            first_rank_alone(world, missing)
        except DataError as error:
            return str(error), getattr(error, "told", False)

    assert launch(fails, 2, timeout_seconds=20, show_output=False) == [("no text", False), ("no text", True)]


def test_a_full_disk_is_a_warning_on_all_ranks_and_training_goes_on(tmp_path, monkeypatch):
    original = checkpoint_module.write_checkpoint

    def full_once(folder, step, parts, extra):
        if step == 4:
            raise OSError(28, "No space left on device")
        original(folder, step, parts, extra)

    monkeypatch.setattr(checkpoint_module, "write_checkpoint", full_once)

    def run(world):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            heard, _, ended = mesh_run(world, tmp_path, MeshSize(dp=2), ADAMW)
        return heard.saved, ended, [str(w.message) for w in caught if "without this checkpoint" in str(w.message)]

    for saved, ended, told in launch(run, 2, timeout_seconds=20, show_output=False):
        assert saved == [6] and ended == (6, None) and len(told) == 1 and "No space left" in told[0]


def test_a_checkpoint_of_another_run_is_refused_on_every_rank(tmp_path):
    single_run(tmp_path, ADAMW, n_steps=4)
    wider = GPTConfig(**{**vars(CONFIG), "d_model": 32})

    def run(world):
        with pytest.raises(CheckpointError, match="expected .32, 32. float64, found .16, 16. float64"):
            mesh_run(world, tmp_path, MeshSize(dp=2), ADAMW, resume=True, config=wider)
        return True

    assert launch(run, 2, timeout_seconds=20, show_output=False) == [True, True]


# --- the parts


@pytest.mark.parametrize("n_batches", [1, 5])
def test_validation_shared_out_is_validation(n_batches):
    model = whole()
    expected = validation_loss(model, rows, n_batches, lambda: False)["loss"]

    def run(world):
        stopped = shared_validation_loss(model, world, rows, n_batches, lambda: True)
        return shared_validation_loss(model, world, rows, n_batches, lambda: False)["loss"], stopped

    for found, stopped in launch(run, 3, timeout_seconds=20, show_output=False):
        assert abs(found - expected) < 1e-13 and stopped is None


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (MeshSize(dp=3), "dp=3 does not divide the 8 rows"),
        (MeshSize(dp=4), "4 microbatches of the 2 rows"),
        (MeshSize(tp=3), "n_heads 4"),
        (MeshSize(tp=4), "n_kv_heads 2"),
        (MeshSize(pp=3), "n_layers 2"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_divide_is_refused(size, words):
    with pytest.raises(ConfigError, match=words):
        check_mesh(size, CONFIG, batch_size=8, n_microbatches=4)


def test_a_batch_without_a_counted_target_is_refused_on_all_ranks(tmp_path):
    def run(world):
        cut = MeshModel(Parallel3D(whole(), Mesh(MeshSize(dp=2), world)), partial(make_optimizer, ADAMW))
        nothing, step = np.full((2, 8), -100), gradients_on_mesh(cut)
        with pytest.raises(ShapeError, match="no target that counts"):
            train(cut.model, cut.optimizer, lambda _: (0 * nothing, nothing), LoopConfig(1), gradients=step)
        return True

    assert launch(run, 2, timeout_seconds=20, show_output=False) == [True, True]
