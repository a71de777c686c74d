"""The loop against one written out in torch; stopped and resumed it ends with the same bits (faults 5-7, 11, 12)."""

import io
import math
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from minillm.data.batches import SequentialBatches
from minillm.errors import CheckpointError, ConfigError, ShapeError, TrainingError
from minillm.train import checkpoint as checkpoint_module
from minillm.train.checkpoint import CheckpointFolder, newest_valid_checkpoint, read_weights
from minillm.train.hooks import Hook, MetricsLog, ProgressLine
from minillm.train.loop import LoopConfig, next_token_loss, train, validation_loss
from minillm.train.metrics import read_metrics
from minillm.train.optim import SGD, AdamW
from minillm.train.schedule import warmup_cosine
from minillm.train.signals import StopSignals, exit_code

VOCAB = 7


def make_model(seed=0, dropout=0.2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Dropout(dropout), nn.Linear(8, VOCAB)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def batches(step):
    """A pure function of the step; a sixth of the targets do not count, unevenly over the rows."""
    dice = np.random.default_rng(step)
    inputs = dice.integers(0, VOCAB, (4, 6))
    targets = (3 * inputs + 1) % VOCAB
    targets[0, : 1 + step % 5] = -100
    return inputs, targets


def schedule(step):
    return warmup_cosine(step, 1.0, 0.1, 4, 20)


def flat(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


class Losses(Hook):
    """Collects the reports of all steps."""

    def __init__(self):
        self.reports = []

    def on_step(self, report):
        self.reports.append(report)


# --- what a step computes


def test_the_loop_is_the_loop_written_out_in_torch():
    ours, theirs = make_model(dropout=0.0, dtype=torch.float64), make_model(dropout=0.0, dtype=torch.float64)
    heard = Losses()
    config = LoopConfig(20, max_norm=0.3, spike_sigmas=0)
    train(ours, AdamW(ours.parameters(), lr=0.05), batches, config, schedule=schedule, hooks=[heard])
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.05)
    for step in range(20):
        inputs, targets = map(torch.from_numpy, batches(step))
        optimizer.param_groups[0]["lr"] = 0.05 * schedule(step)
        loss = nn.functional.cross_entropy(theirs(inputs).view(-1, VOCAB), targets.view(-1))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        report = heard.reports[step]
        assert (report.step, report.skipped) == (step + 1, None)
        assert report.loss == pytest.approx(loss.item(), rel=1e-10)
        assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-10)
        assert report.learning_rate == optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-10, atol=1e-13)
    assert report.tokens == sum(int((batches(step)[1] != -100).sum()) for step in range(20))


@pytest.mark.parametrize("n_microbatches", [2, 3, 4])
def test_accumulation_is_the_large_batch(n_microbatches):
    results = []
    for n_parts in (1, n_microbatches):
        model = make_model(dropout=0.0, dtype=torch.float64)
        result = train(model, SGD(model.parameters(), lr=0.5), batches, LoopConfig(5, n_microbatches=n_parts))
        results.append((flat(model), result.loss))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-14)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)


def test_one_rate_per_group_or_one_factor():
    model = make_model()
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}]
    optimizer = SGD(groups)
    train(model, optimizer, batches, LoopConfig(1), schedule=lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]
    train(model, optimizer, batches, LoopConfig(1), schedule=lambda step: [0.3, 0.2])
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.2]
    with pytest.raises(ConfigError, match="1 learning rates for 2 groups"):
        train(model, optimizer, batches, LoopConfig(1), schedule=lambda step: [0.3])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(precision):
    model = make_model(dropout=0.0)
    heard = Losses()
    train(model, AdamW(model.parameters(), lr=0.03), batches, LoopConfig(80, precision), hooks=[heard])
    assert heard.reports[-1].loss < 0.25 * heard.reports[0].loss
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


# --- stopping and going on


def start(folder, n_steps, resume=False, folder_type=CheckpointFolder, run_batches=batches, seed=0, **settings):
    """A run with all that can go wrong on a resume: dropout, accumulated state, a schedule, validation, samples."""
    if not resume:
        torch.manual_seed(11)
    model = make_model(seed)
    optimizer = AdamW(model.parameters(), lr=0.05)
    drawing = np.random.default_rng(5 if not resume else 99)
    heard = Losses()

    def validate(should_stop):
        figures = validation_loss(model, batches, 3, should_stop)
        return None if figures is None else {**figures, "noise": drawing.random()}

    defaults = {"validate_every": 4, "sample_every": 6, "log_every": 3, "precision": "fp32"}
    config = LoopConfig(n_steps, **{**defaults, **settings.pop("config", {})})
    arguments = {"schedule": schedule, "validate": validate, "sample": lambda stop: "text", **settings}
    result = train(
        model, optimizer, run_batches, config, checkpoints=folder_type(folder), resume=resume,
        hooks=[heard, MetricsLog(folder / "metrics.jsonl"), *arguments.pop("hooks", ())],
        generators={"drawing": drawing}, **arguments,
    )  # fmt: skip
    return model, optimizer, heard.reports, result


def outcome(run, folder):
    """Everything that must be equal: weights, optimizer, the next random numbers, and the metrics without times."""
    model, optimizer, reports, result = run
    moments = torch.cat([torch.as_tensor(value, dtype=torch.float32).reshape(-1)
                         for entries in optimizer.state.values() for value in entries.values()])  # fmt: skip
    lines = [{key: value for key, value in entry.items() if "second" not in key}
             for entry in read_metrics(folder / "metrics.jsonl")]  # fmt: skip
    dropped = torch.nn.functional.dropout(torch.ones(40), 0.5)
    losses = {report.step: report.loss for report in reports}
    return {"weights": flat(model), "moments": moments, "random": dropped, "losses": losses, "lines": lines,
            "counts": (result.step, result.tokens, result.n_skipped)}  # fmt: skip


def differences(found, expected):
    """Names of what is not equal to the bit; losses are compared where both have them."""
    names = [name for name in ("weights", "moments", "random") if not torch.equal(found[name], expected[name])]
    names += [name for name in ("lines", "counts") if found[name] != expected[name]]
    if any(expected["losses"][step] != loss for step, loss in found["losses"].items()):
        names.append("losses")
    return names


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return outcome(start(folder, 20), folder)


@pytest.mark.parametrize("stop_at", [1, 4, 5, 12, 19, 20])
def test_resumed_anywhere_the_end_is_the_same_to_the_bit(tmp_path, uninterrupted, stop_at):
    stopper = SignalAt(lambda moment: moment == ("step", stop_at))
    first = start(tmp_path, 20, hooks=[stopper])
    assert first[3].step == stop_at and first[3].stopped_by == "SIGTERM"
    torch.manual_seed(12345)
    second = start(tmp_path, 20, resume=True, seed=9)
    assert differences(outcome(second, tmp_path), uninterrupted) == []
    assert len(second[2]) == 20 - stop_at


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_resume_to_the_bit(tmp_path, precision):
    for name, stops in (("whole", [20]), ("cut", [7, 20])):
        for number, n_steps in enumerate(stops):
            settings = {"config": {"precision": precision, "log_every": 1, "validate_every": 100, "sample_every": 100}}
            settings |= {"validate": None, "sample": None}
            run = start(tmp_path / name, n_steps, resume=number > 0, seed=number, **settings)
    found, expected = (outcome_without_drawing(run, tmp_path / name) for name in ("cut", "whole"))
    assert found[0] == expected[0]
    states = [checkpoint_module.read_state(tmp_path / name / "step-000020") for name in ("cut", "whole")]
    assert states[0]["scaler"] == states[1]["scaler"]
    if precision == "fp16":
        assert states[0]["scaler"]["n_good_steps"] > 7
    weights = [read_weights(tmp_path / name / "step-000020") for name in ("cut", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def outcome_without_drawing(run, folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in entry.items() if "second" not in key} for entry in lines], run


def forget(part):
    """A folder of checkpoints that brings back everything but one part: the negative controls."""

    class Forgetful(CheckpointFolder):
        def resume(self, parts):
            if part == "weights":
                before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
            state = super().resume(parts)
            if part == "weights":
                parts.model.load_state_dict(before)
            elif part == "optimizer":
                parts.optimizer.state.clear()
            elif part == "torch generator":
                torch.manual_seed(1)
            elif part == "base rate":
                parts.optimizer.param_groups[0]["initial_lr"] = 0.04
            elif part == "numpy generator":
                parts.generators["drawing"].random()
            elif part == "log window":
                state["extra"]["progress"]["unlogged_losses"] = []
            elif part == "scaler":
                parts.scaler.load_state_dict({"scale": 65536.0, "n_good_steps": 0})
            return state

    return Forgetful


CONTROLS = {
    "nothing": [],
    "weights": ["weights", "moments", "lines", "losses"],
    "optimizer": ["weights", "moments", "lines", "losses"],
    "torch generator": ["weights", "moments", "random", "lines", "losses"],
    "base rate": ["weights", "moments", "lines", "losses"],
    "numpy generator": ["lines"],
    "log window": ["lines"],
    "data": ["weights", "moments", "lines", "losses"],
    "schedule": ["weights", "moments", "lines", "losses"],
}


@pytest.mark.parametrize("part", CONTROLS)
def test_each_part_that_is_not_brought_back_shows(tmp_path, uninterrupted, part):
    start(tmp_path, 20, hooks=[SignalAt(lambda moment: moment == ("step", 5))])
    shifted = {"run_batches": lambda step: batches(step - 5)} if part == "data" else {}
    shifted |= {"schedule": lambda step: schedule(step - 5)} if part == "schedule" else {}
    run = start(tmp_path, 20, resume=True, seed=9, folder_type=forget(part), **shifted)
    assert differences(outcome(run, tmp_path), uninterrupted) == CONTROLS[part]


def test_a_forgotten_scaler_shows(tmp_path):
    states = []
    for folder_type in (CheckpointFolder, forget("scaler")):
        folder = tmp_path / folder_type.__name__
        settings = {"config": {"precision": "fp16"}, "validate": None, "sample": None}
        start(folder, 5, **settings)
        start(folder, 9, resume=True, folder_type=folder_type, **settings)
        states.append(checkpoint_module.read_state(folder / "step-000009")["scaler"])
    assert states[0] != states[1]


@pytest.mark.parametrize("stop_at", [5, 7, 10, 14])
def test_data_goes_on_in_the_middle_of_an_epoch_and_at_its_border(tmp_path, stop_at):
    """7 batches an epoch: no window is repeated, none is left out, the order is that of the uninterrupted run."""
    source = SequentialBatches(np.arange(29) % VOCAB, batch_size=2, seq_len=2, seed=3)
    assert source.batches_per_epoch == 7
    asked = []

    def recorded(step):
        inputs, targets = source.batch(step)
        asked.append((step, inputs.tolist()))
        return inputs, targets

    start(tmp_path / "whole", 21, run_batches=recorded)
    expected, asked[:] = list(asked), []
    start(tmp_path / "cut", stop_at, run_batches=recorded)
    start(tmp_path / "cut", 21, run_batches=recorded, resume=True)
    assert asked == expected
    assert [step for step, _ in asked] == list(range(21))


# --- signals


class SignalAt(Hook):
    """Sends this process a signal at chosen moments of the run: (event, step)."""

    def __init__(self, chosen, number=signal.SIGTERM):
        self.chosen, self.number = chosen, number

    def at(self, *moment):
        if self.chosen(moment):
            os.kill(os.getpid(), self.number)

    def on_step(self, report):
        self.at("step", report.step)

    def on_log(self, entry):
        self.at(entry["kind"], entry["step"])


def signal_while(monkeypatch, place, number=signal.SIGTERM):
    """Arrange for one signal at a place inside of the work; returns settings for `start`."""
    sent = []

    def once():
        if not sent:
            sent.append(os.kill(os.getpid(), number))

    if place == "step":
        return {"run_batches": lambda step: (once() if step == 6 else None, batches(step))[1]}
    if place == "first step":
        return {"run_batches": lambda step: (once(), batches(step))[1]}
    if place == "sampling":
        return {"sample": lambda should_stop: (once(), None if should_stop() else "text")[1]}
    if place == "saving":
        write = checkpoint_module.write_file
        monkeypatch.setattr(checkpoint_module, "write_file", lambda path, chunks: (once(), write(path, chunks))[1])
        return {"config": {"checkpoint_every": 8}}
    return {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("place", "step"), [("first step", 1), ("step", 7), ("sampling", 6), ("saving", 8)])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(tmp_path, uninterrupted, monkeypatch, place, step, number):
    before = signal.getsignal(number)
    *_, result = start(tmp_path, 20, **signal_while(monkeypatch, place, number))
    assert (result.step, result.stopped_by) == (step, signal.Signals(number).name)
    assert exit_code(result.stopped_by) == 128 + number
    assert result.checkpoint == tmp_path / f"step-{step:06d}" == newest_valid_checkpoint(tmp_path)
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    run = start(tmp_path, 20, resume=True, seed=9)
    assert differences(outcome(run, tmp_path), uninterrupted) == []


def test_a_signal_in_validation_ends_it_early_and_it_is_made_again(tmp_path, uninterrupted):
    asked = []

    class Interrupted(StopSignals):
        def requested(self):
            asked.append(True)
            if len(asked) == 7:  # four steps, the question before the validation, its second batch
                os.kill(os.getpid(), signal.SIGTERM)
            return super().requested()

    with Interrupted() as stop:
        *_, result = start(tmp_path, 20, stop=stop)
    assert (result.step, result.stopped_by) == (4, "SIGTERM")
    assert [e["kind"] for e in read_metrics(tmp_path / "metrics.jsonl")] == ["train"]
    run = start(tmp_path, 20, resume=True, seed=9)
    assert differences(outcome(run, tmp_path), uninterrupted) == []


def test_an_interrupted_duty_leaves_no_trace_in_the_generators(tmp_path):
    model, dice, drawn = make_model(), torch.Generator().manual_seed(1), []

    def sample(should_stop):
        drawn.append(torch.rand(2, generator=dice))
        if len(drawn) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return None if should_stop() else "text"

    for resume in (False, True):
        config, folder = LoopConfig(4, sample_every=2), CheckpointFolder(tmp_path)
        train(model, AdamW(model.parameters()), batches, config, sample=sample, checkpoints=folder, resume=resume,
              generators={"dice": dice})  # fmt: skip
    assert len(drawn) == 3 and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path):
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        *_, result = start(tmp_path, 20, stop=stop)
    assert (result.step, result.checkpoint, result.stopped_by) == (0, None, "SIGTERM")
    assert math.isnan(result.loss) and newest_valid_checkpoint(tmp_path) is None


@pytest.mark.parametrize("place", ["step", "saving"])
def test_a_second_signal_exits_at_once_and_the_old_checkpoint_is_intact(tmp_path, monkeypatch, place):
    start(tmp_path, 6)
    saved = {path: path.read_bytes() for path in (tmp_path / "step-000006").iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        twice = lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]  # noqa: E731
        if place == "saving":
            checkpoint_module.write_file = lambda path, chunks: twice()
        try:
            start(tmp_path, 20, resume=True, run_batches=lambda step: (place == "step" and twice(), batches(step))[1])
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert {path: path.read_bytes() for path in (tmp_path / "step-000006").iterdir()} == saved
    assert start(tmp_path, 8, resume=True)[3].step == 8


# --- guards


def poison(steps, value=math.nan):
    """A loss that is spoilt at these steps (counted from 0)."""
    calls = iter(range(10**6))

    def loss_sum(model, inputs, targets):
        loss = next_token_loss(model, inputs, targets)
        return loss * value if next(calls) in steps else loss

    return loss_sum


@pytest.mark.parametrize("where", ["gradient", "loss nan", "loss inf"])
def test_what_is_not_finite_is_skipped_and_counted(where):
    model = make_model(dropout=0.0)
    optimizer = AdamW(model.parameters(), lr=0.05)
    trail, seen = [], []

    class Trail(Hook):
        def on_step(self, report):
            trail.append((flat(model), report.skipped))

        def on_log(self, entry):
            if entry["kind"] == "skip":
                seen.append((entry["step"], entry["batch"], entry["reason"]))

    loss_sum = poison([3], {"loss nan": math.nan, "loss inf": math.inf, "gradient": 1.0}[where])
    if where == "gradient":
        calls = iter(range(100))
        model[2].bias.register_hook(lambda gradient: gradient * (math.nan if next(calls) == 3 else 1.0))
    result = train(model, optimizer, batches, LoopConfig(6), loss_sum=loss_sum, hooks=[Trail()])
    assert result.n_skipped == 1 and result.step == 6
    assert torch.equal(trail[3][0], trail[2][0]) and not torch.equal(trail[4][0], trail[3][0])
    assert [reason for _, reason in trail].count(None) == 5 and flat(model).isfinite().all()
    reason = {"gradient": "gradient norm is nan", "loss nan": "loss is nan", "loss inf": "loss is inf"}[where]
    assert seen == [(4, 3, reason)]


def test_three_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    settings = {"loss_sum": poison({6, 8, 9, 10}), "config": {"checkpoint_every": 2}}
    with pytest.raises(TrainingError, match=r"step 11: loss is nan, 3 bad steps.*step-000010.*learning rate"):
        start(tmp_path, 20, **settings)
    for step in CheckpointFolder(tmp_path).steps():
        assert all(tensor.isfinite().all() for tensor in read_weights(tmp_path / f"step-{step:06d}").values())
    assert read_metrics(tmp_path / "metrics.jsonl", "skip")[-1]["batch"] == 10
    assert start(tmp_path, 20, resume=True)[3].step == 20


def test_without_a_checkpoint_the_stop_says_none():
    model = make_model()
    with pytest.raises(TrainingError, match="Last good checkpoint: none"):
        train(model, SGD(model.parameters()), batches, LoopConfig(9), loss_sum=poison(range(9)))


def test_a_mad_learning_rate_ends_with_finite_weights(tmp_path):
    model = make_model()
    model.append(nn.Linear(VOCAB, VOCAB))
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(TrainingError, match="not|is nan|is inf"):
        config = LoopConfig(200, checkpoint_every=1, max_norm=math.inf)
        train(model, SGD(model.parameters(), lr=1e9), batches, config, checkpoints=folder)
    assert flat(model).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in read_weights(folder.newest_valid()).values())


def test_overflow_in_fp16_lowers_the_scale_and_is_not_a_bad_step():
    model = make_model(dropout=0.0)
    heard = Losses()
    config = LoopConfig(40, "fp16", max_norm=1.0)
    loss_sum = lambda *arguments: 1e4 * next_token_loss(*arguments)  # noqa: E731
    result = train(model, SGD(model.parameters(), lr=1e-6), batches, config, loss_sum=loss_sum, hooks=[heard])
    assert 3 < result.n_skipped < 40 and heard.reports[-1].skipped is None


def test_a_spike_is_skipped_logged_and_survived(tmp_path):
    def noisy(step):
        inputs, targets = batches(step)
        return inputs, np.where(np.random.default_rng(1000 + step).random(targets.shape) < 0.4, inputs, targets)

    def run(folder, **settings):
        settings |= {"run_batches": noisy, "schedule": None, "validate": None, "sample": None}
        *_, reports, result = start(folder, 160, **settings)
        return np.mean([report.loss for report in reports[-30:]]), result, folder

    clean, result, _ = run(tmp_path / "clean")
    assert result.n_skipped == 0
    spiked, result, folder = run(tmp_path / "spiked", loss_sum=poison({90}, 1000.0))
    assert result.n_skipped == 1
    [skip] = read_metrics(folder / "metrics.jsonl", "skip")
    assert (skip["reason"], skip["batch"], skip["step"]) == ("loss spike", 90, 91)
    assert spiked == pytest.approx(clean, rel=0.01)


def test_a_spike_does_not_hide_the_next_one():
    model = make_model(dropout=0.0)
    config = LoopConfig(100, spike_window=64)
    large, small = poison({80}, 1000.0), poison({84}, 100.0)
    both = lambda *arguments: large(*arguments) * small(*arguments) / next_token_loss(*arguments)  # noqa: E731
    assert train(model, SGD(model.parameters(), lr=1e-6), batches, config, loss_sum=both).n_skipped == 2
    shifted = poison(set(range(80, 100)), 1.5)
    result = train(make_model(), SGD(model.parameters(), lr=1e-6), batches, config, loss_sum=shifted)
    assert 0 < result.n_skipped < 20  # a lasting change is accepted after a while


# --- saving


def test_a_failed_save_in_the_middle_is_a_warning_and_at_the_end_an_error(tmp_path, monkeypatch):
    write = checkpoint_module.write_file

    def full_at(*steps):
        def write_file(path, chunks):
            if path.parent.name in [f".tmp-step-{step:06d}" for step in steps]:
                raise OSError(28, "No space left on device")
            return write(path, chunks)

        monkeypatch.setattr(checkpoint_module, "write_file", write_file)

    full_at(2)
    with pytest.warns(UserWarning, match=r"goes on without.*disk full"):
        start(tmp_path / "a", 6, config={"checkpoint_every": 2})
    assert CheckpointFolder(tmp_path / "a").steps() == [4, 6]
    full_at(6)
    with pytest.raises(CheckpointError, match="disk full"), pytest.warns(UserWarning, match="goes on without"):
        start(tmp_path / "b", 6, config={"checkpoint_every": 2})
    assert CheckpointFolder(tmp_path / "b").steps() == [2, 4]


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path):
    start(tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="checkpoints up to step 3"):
        start(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_config_or_tokenizer_is_refused(tmp_path):
    identity = {"run_config": {"d_model": 8}, "tokenizer_fingerprint": "ab"}
    start(tmp_path, 3, **identity)
    assert start(tmp_path, 4, resume=True, **identity)[3].step == 4
    for other in ({"run_config": {"d_model": 9}}, {"tokenizer_fingerprint": "cd"}):
        with pytest.raises(CheckpointError, match="another run"):
            start(tmp_path, 5, resume=True, **{**identity, **other})


def test_a_checkpoint_that_no_loop_made(tmp_path):
    model = make_model()
    optimizer = AdamW(model.parameters())
    folder = CheckpointFolder(tmp_path)
    folder.save(3, checkpoint_module.RunParts(model, optimizer, generators={"torch": torch.default_generator}))
    with pytest.raises(CheckpointError, match="not saved by this training loop"):
        train(model, optimizer, batches, LoopConfig(5), checkpoints=folder, resume=True)


# --- the rest


def test_metrics_lines(tmp_path):
    *_, reports, result = start(tmp_path, 7)
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [(e["kind"], e["step"]) for e in entries] == [
        ("train", 3), ("validation", 4), ("train", 6), ("sample", 6), ("train", 7), ("validation", 7), ("sample", 7),
    ]  # fmt: skip
    assert list(entries[0]) == ["kind", "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"]
    assert entries[2]["loss"] == pytest.approx(np.mean([report.loss for report in reports[3:6]]))
    assert entries[2]["grad_norm"] == reports[5].gradient_norm
    assert result.validation == {key: entries[5][key] for key in ("loss", "noise")}
    assert entries[-1]["text"] == "text"


def test_the_line_in_the_terminal():
    model, out = make_model(), io.StringIO()
    train(model, SGD(model.parameters()), batches, LoopConfig(4, validate_every=2), hooks=[ProgressLine(out)],
          validate=lambda stop: {"loss": 1.25}, sample=lambda stop: "once upon")  # fmt: skip
    text = out.getvalue()
    assert "4/4" in text and "tokens/s" in text and "loss" in text
    assert "step 2: validation loss 1.2500" in text and "step 4: sample once upon" in text


def test_validation_by_hand():
    model = make_model(dropout=0.5).double()
    model[1].eval()
    model.train()
    found = validation_loss(model, batches, 5, lambda: False)
    assert model.training and model[1].training
    pairs = [tuple(map(torch.from_numpy, batches(step))) for step in range(5)]
    inputs, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
    expected = nn.functional.cross_entropy(model.eval()(inputs).view(-1, VOCAB), targets.view(-1))
    assert found == {"loss": pytest.approx(expected.item(), rel=1e-12)}
    answers = iter([False, False, True])
    assert validation_loss(model, batches, 5, lambda: next(answers)) is None
    with pytest.raises(ConfigError, match="n_batches"):
        validation_loss(model, batches, 0, lambda: False)


@pytest.mark.parametrize(
    "settings",
    [{"n_steps": -1}, {"n_microbatches": 0}, {"log_every": 0}, {"max_bad_steps": 0}, {"spike_sigmas": -1.0}],
)
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LoopConfig(**{"n_steps": 1, **settings})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((np.zeros((2, 3)), np.zeros((2, 4))), r"one shape \(B, T\)"),
        ((np.zeros((1, 3)), np.zeros((1, 3))), "B >= 2"),
        ((np.zeros((2, 3)), np.full((2, 3), -100)), "no target that counts"),
    ],
)
def test_bad_batches(bad, words):
    model = make_model()
    with pytest.raises(ShapeError, match=words):
        train(model, SGD(model.parameters()), lambda step: bad, LoopConfig(1, n_microbatches=2))


def test_a_memory_map_may_be_read_only_and_of_16_bits(tmp_path):
    np.arange(60, dtype=np.uint16).tofile(tmp_path / "ids")
    ids = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r") % VOCAB
    ids.flags.writeable = False
    model = make_model()
    rows = ids.reshape(6, 10)
    assert train(model, SGD(model.parameters()), lambda step: (rows[:, :-1], rows[:, 1:]), LoopConfig(1)).tokens == 54
