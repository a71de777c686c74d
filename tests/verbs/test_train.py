"""`minillm train`: what a run leaves behind, stopping and going on, settings from everywhere."""

import json
import os
import signal

import pytest
import torch

from minillm.cli import main
from minillm.data.batches import SequentialBatches
from minillm.data.reading import read_documents
from minillm.train.hooks import ProgressLine
from minillm.verbs import training
from minillm.verbs.run_folder import RunFolder, open_run

PNG = b"\x89PNG\r\n\x1a\n"
CPU = torch.device("cpu")


def metrics_without_times(out):
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: entry[key] for key in entry if key not in ("seconds", "tokens_per_second")} for entry in entries]


def weights(out):
    return open_run(out, CPU).model.state_dict()


class InterruptAt(ProgressLine):
    """Presses Ctrl-C after a step."""

    step = 7

    def on_step(self, report):
        super().on_step(report)
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_leaves_everything_in_its_folder(trained, text_file):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "settings.json", "tokenizer.json", "text", "checkpoints", "metrics.jsonl", "loss.png", "samples.txt",
    }  # fmt: skip
    assert (trained / "loss.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-000015", "step-000020"]
    entries = metrics_without_times(trained)
    steps = {kind: [entry["step"] for entry in entries if entry["kind"] == kind] for kind in ("train", "validation")}
    assert steps == {"train": [*range(1, 21)], "validation": [10, 20]}
    samples = (trained / "samples.txt").read_text(encoding="utf-8")
    assert samples.startswith("--- step 10\nAnna") and "--- step 20\nAnna" in samples
    losses = [entry["loss"] for entry in entries if entry["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5  # it learned
    settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))
    assert settings["data"] == [str(text_file)] and settings["steps"] == 20 and settings["size"] == "nano"


def test_each_document_is_learned_from_or_set_aside(trained, text_file):
    folder, run = RunFolder(trained), open_run(trained, CPU)
    parts = {part: folder.open_text(part, run.tokenizer) for part in ("train", "validation")}
    assert [parts[part].n_documents for part in parts] == [7, 1]
    found = [text for part in parts.values() for text in run.tokenizer.decode(part[:]).split("<|endoftext|>")[:-1]]
    assert sorted(found) == sorted(read_documents(text_file))


def test_other_model_tokenizer_and_optimizer_of_one_undivided_text(tmp_path, text_file):
    one = tmp_path / "one.txt"
    one.write_text(text_file.read_text(encoding="utf-8").replace("***", ""), encoding="utf-8")
    words = "--model gpt2 --size nano --precision fp32 --vocab-size 280 --max-seq-len 16 --batch-size 4 --steps 2"
    assert main(["train", "--data", str(one), *words.split(), "--microbatches", "2", "--out", str(tmp_path / "r")]) == 0
    run = open_run(tmp_path / "r", CPU)
    assert run.tokenizer.kind == "bpe" and run.tokenizer.vocab_size == 280
    assert run.model.config.position == "learned" and run.step == 2


def test_the_same_seed_makes_the_same_run_and_another_seed_another(train_small, tmp_path):
    words = ["--steps", "2", "--dropout", "0.2"]
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert train_small(tmp_path / name, *words, "--seed", seed) == 0
    a, b, c = (metrics_without_times(tmp_path / name) for name in "abc")
    assert a == b and a != c


def test_interrupted_and_resumed_is_the_uninterrupted_run(train_small, tmp_path, text_file, monkeypatch, capsys):
    """Ctrl-C between two lines of metrics, mid-epoch, with dropout; the rest crosses the end of the epoch."""
    text = tmp_path / "moved later.txt"
    text.write_text("\n".join(list(read_documents(text_file))[0:2]), encoding="utf-8")
    words = "--steps 16 --log-every 4 --validate-every 5 --sample-every 6 --checkpoint-every 3 --dropout 0.1".split()
    words += ["--data", str(text)]
    assert train_small(tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "ProgressLine", InterruptAt)
        assert train_small(tmp_path / "halves", *words) == 130
    assert "--resume" in capsys.readouterr().err
    assert metrics_without_times(tmp_path / "halves")[-1]["step"] == 6
    tokens = RunFolder(tmp_path / "halves").open_text("train", open_run(tmp_path / "halves", CPU).tokenizer)
    n_epoch = SequentialBatches(tokens, 4, 32, seed=0).batches_per_epoch
    assert InterruptAt.step % n_epoch and InterruptAt.step < n_epoch < 16

    text.unlink()  # a run keeps what it learns from
    torch.manual_seed(99)
    assert main(["train", "--out", str(tmp_path / "halves"), "--resume"]) == 0
    assert metrics_without_times(tmp_path / "halves") == metrics_without_times(tmp_path / "whole")
    assert (tmp_path / "halves/samples.txt").read_bytes() == (tmp_path / "whole/samples.txt").read_bytes()
    halves, whole = weights(tmp_path / "halves"), weights(tmp_path / "whole")
    assert all(torch.equal(halves[name], whole[name]) for name in whole)


def test_a_resume_may_ask_for_more_steps_and_they_are_remembered(train_small, tmp_path, monkeypatch):
    out = tmp_path / "r"
    assert train_small(out, "--steps", "3") == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "ProgressLine", InterruptAt)
        assert main(["train", "--out", str(out), "--resume", "--steps", "9"]) == 130
    assert open_run(out, CPU).step == 7
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert open_run(out, CPU).step == 9
    before = (out / "metrics.jsonl").read_bytes()
    assert main(["train", "--out", str(out), "--resume"]) == 0  # finished: nothing to do
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_resume_with_other_settings_is_refused_naming_them(trained, refuses):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    shown = refuses(["train", "--out", trained, "--resume", "--batch-size", "8", "--model", "gpt2", "--size", "nano"],
                    "batch_size 8, the run has 4", "model 'gpt2', the run has 'modern'")  # fmt: skip
    assert "size 'nano'" not in shown
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_second_run_into_the_same_folder_is_refused(trained, text_file, refuses):
    before = (trained / "metrics.jsonl").read_bytes()
    refuses(["train", "--data", text_file, "--out", trained], trained, "holds a run already", "--resume")
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_resume_without_a_run_is_refused(tmp_path, refuses):
    refuses(["train", "--out", tmp_path / "none", "--resume"], tmp_path / "none", "no run")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("model", ["gpt2", "modern"])
def test_dry_run_says_what_the_run_will_be_and_writes_nothing(train_small, tmp_path, capsys, model):
    assert train_small(tmp_path / "r", "--model", model, "--steps", "1", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert not (tmp_path / "r").exists()
    settings, costs = json.loads(shown[: shown.index("}") + 1]), shown[shown.index("}") + 2 :]
    assert settings["model"] == model and settings["max_seq_len"] == 32
    assert train_small(tmp_path / "r", "--model", model, "--steps", "1") == 0
    n_weights = sum(weight.numel() for weight in open_run(tmp_path / "r", CPU).model.parameters())
    assert f"parameters    {n_weights:,} (2 layers, 2 heads, width 64, 257 token ids)" in costs
    before = (tmp_path / "r/settings.json").read_bytes()
    assert train_small(tmp_path / "r", "--steps", "99", "--dry-run") == 0  # also where there is a run
    assert (tmp_path / "r/settings.json").read_bytes() == before


def test_flags_win_over_the_settings_file_and_that_over_the_defaults(text_file, tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_text(f'data = ["{text_file}"]\nsteps = 7\nbatch-size = 5\ntokenizer = "chars"\n', encoding="utf-8")
    assert main(["train", "--config", str(file), "--steps", "8", "--dry-run", "--out", str(tmp_path / "r")]) == 0
    shown = capsys.readouterr().out
    settings = json.loads(shown[: shown.index("}") + 1])
    assert (settings["steps"], settings["batch_size"], settings["tokenizer"]) == (8, 5, "chars")
    assert (settings["max_seq_len"], settings["model"]) == (128, "modern")


def test_an_unknown_key_of_the_settings_file_is_named(tmp_path, refuses):
    (tmp_path / "settings.toml").write_text("stepz = 7\n", encoding="utf-8")
    refuses(["train", "--config", tmp_path / "settings.toml"], "stepz", "steps", "settings.toml")


def test_a_preset_fills_in_what_is_not_given(tmp_path, text_file, capsys):
    words = ["--preset", "gpu", "--size", "small", "--vocab-size", "300", "--out", str(tmp_path / "r"), "--dry-run"]
    words += ["--steps", "300"]                                    # given, although it is the default
    assert main(["train", "--data", str(text_file), *words]) == 0
    shown = capsys.readouterr().out
    settings = json.loads(shown[: shown.index("}") + 1])
    assert (settings["size"], settings["vocab_size"], settings["steps"]) == ("small", 300, 300)
    assert (settings["model"], settings["device"], settings["max_seq_len"]) == ("gpt2", "cuda", 1024)


def test_the_folder_is_named_after_text_and_model_when_none_is_given(tmp_path, text_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--size", "nano", "--tokenizer", "bytes", "--dry-run"]
    assert main(["train", "--data", str(text_file), *words]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[: shown.index("}") + 1])["out"] == "runs/small-modern-nano"
    assert list(tmp_path.iterdir()) == []
