"""`minillm quantize`: every method makes a run that others read bit by bit; what fails leaves nothing."""

import hashlib
import json
import re
import shutil

import pytest
import torch

from minillm import surgery
from minillm.cli import main
from minillm.compress.grid import QuantSpec
from minillm.compress.methods import METHODS, ON_GRIDS, quantize_by
from minillm.compress.packed_linear import stored_bytes
from minillm.compress.quant_linear import QuantLinear
from minillm.compress.report import compression_report
from minillm.errors import ConfigError, DataError
from minillm.verbs import quantize
from minillm.verbs.run_folder import open_run

CPU = torch.device("cpu")


def opened(path):
    return open_run(path, CPU)


def quantized(run, out, *words):
    assert main(["quantize", str(run), "--out", str(out), "--windows", "12", *words]) == 0
    return opened(out)


@pytest.fixture(scope="module")
def four_bits(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantized") / "four"
    quantized(trained, out, "--method", "rtn", "--group", "16")
    return out


def windows(run):
    return quantize.windows_of(run, 12)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_is_the_model_in_memory_bit_by_bit(method, trained, tmp_path, capsys):
    run = quantized(trained, tmp_path / "out", "--method", method, "--bits", "5", "--group", "16")
    shown = capsys.readouterr().out
    full = opened(trained)
    report = quantize_by(method, full.model, windows(full), QuantSpec(5, 16))
    before, after = full.model.state_dict(), run.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(full.model(ids), run.model(ids))
    assert run.step == full.step
    assert str(report) in shown and str(compression_report(run.model)) in shown
    linear = compression_report(run.model).linear
    assert len(report.layers) == len(linear_layers(run.model)) and all(0 < each.error < 0.1 for each in report.layers)
    assert linear.bits_per_weight < 9.1


def linear_layers(model):
    return [name for name, module in model.named_modules() if surgery.is_packed(module)]


def test_a_file_takes_what_the_report_says(four_bits):
    run = opened(four_bits)
    report = compression_report(run.model)
    file = next(four_bits.glob("checkpoints/step-*/model.safetensors"))
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == report.whole.n_bytes == stored_bytes(run.model)
    assert (four_bits / "quantize.txt").read_text().endswith(f"{report}\n")
    assert all(isinstance(run.model.get_submodule(name), QuantLinear) for name in linear_layers(run.model))


def test_generate_and_evaluate_read_it(four_bits, trained, capsys):
    words = ["--prompt", "Anna", "--max-new-tokens", "8", "--temperature", "0"]
    assert main(["generate", str(four_bits), *words]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Anna") and len(text) > 6
    figures = []
    for path in (trained, four_bits):
        assert main(["evaluate", str(path), "--no-simple"]) == 0
        figures.append(float(re.search(r"([\d.]+) nats per token", capsys.readouterr().out)[1]))
    assert figures[0] != figures[1] and abs(figures[1] - figures[0]) < 0.1
    assert main(["evaluate", str(four_bits)]) == 0
    n_weights = opened(trained).model.n_parameters()
    assert "| this run | " in capsys.readouterr().out
    assert compression_report(opened(four_bits).model).whole.n_weights == n_weights


def test_names_that_are_not_given_are_made(trained, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(trained, run)
    assert main(["quantize", str(run), "--method", "nf4", "--windows", "2"]) == 0
    assert main(["quantize", str(run), "--method", "rtn", "--bits", "3", "--symmetric", "--windows", "2"]) == 0
    assert linear_layers(opened(tmp_path / "small-nf4").model)
    layer = opened(tmp_path / "small-rtn3").model.blocks[0].feed_forward.up
    assert layer.spec.bits == 3 and layer.zeros is None


def test_what_cannot_be_done_is_refused_and_leaves_nothing(trained, four_bits, tmp_path, refuses):
    out = tmp_path / "out"
    refuses(["quantize", tmp_path / "none"], "is not a run")
    refuses(["quantize", trained, "--out", four_bits], "exists already")
    refuses(["quantize", trained, "--out", out, "--bits", "9", "--method", "rtn"], "bits=9")
    refuses(["quantize", trained, "--out", out, "--windows", "0"], "windows is 0")
    refuses(["quantize", trained, "--out", out, "--convention", "ggml"], "symmetric=True")
    refuses(["quantize", four_bits, "--out", out], "packed already")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(trained, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    assert main(["quantize", str(trained), "--out", str(tmp_path / "out"), "--method", "nf4", "--windows", "1"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_packed_layers_of_another_version_are_refused(four_bits, tmp_path, refuses, monkeypatch):
    monkeypatch.setattr("minillm.compress.saved.FORMAT", 2)
    refuses(["generate", four_bits], "format 1, this version reads format 2", "quantize again")
    monkeypatch.undo()
    run = tmp_path / "run"
    shutil.copytree(four_bits, run)
    state = next(run.glob("checkpoints/step-*/state.json"))
    content = json.loads(state.read_text())
    content["config"]["quantized"]["layers"].popitem()
    state.write_text(json.dumps(content))
    sums = state.with_name("SHA256SUMS")
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    lines = [line if "state.json" not in line else f"{digest}  state.json" for line in sums.read_text().splitlines()]
    sums.write_text("\n".join(lines) + "\n")
    refuses(["generate", run], "model")


def test_it_is_not_exported_a_second_time(four_bits, refuses, tmp_path):
    refuses(["export", four_bits, tmp_path / "hf"], "is quantized already")


def test_training_cannot_go_on_with_it(four_bits, train_small, capsys):
    assert train_small(four_bits, "--steps", "40", "--resume") == 2
    assert "is quantized" in capsys.readouterr().err


def test_methods_are_those_of_the_library(trained):
    assert set(quantize.METHODS) == set(METHODS) and set(ON_GRIDS) < set(METHODS)
    run = opened(trained)
    with pytest.raises(ConfigError, match="unknown"):
        quantize_by("gtpq", run.model, windows(run))
    for method in ("rtn", "gptq", "awq"):
        with pytest.raises(DataError, match="no text"):
            quantize_by(method, run.model, [])
    assert linear_layers(run.model) == []


def test_a_layer_that_fails_leaves_the_model_as_it_was(trained):
    run = opened(trained)
    text = windows(run)
    with torch.no_grad():
        run.model.blocks[-1].feed_forward.down.weight[0, 0] = float("inf")
    for method in ("rtn", "nf4"):
        with pytest.raises((ConfigError, DataError), match="finite"):
            quantize_by(method, run.model, text)
        assert linear_layers(run.model) == []


def test_the_table_of_token_vectors_too(trained, tmp_path):
    run = quantized(trained, tmp_path / "out", "--method", "rtn", "--embedding", "4", "--head", "--group", "16")
    report = compression_report(run.model)
    assert report.embeddings.bits_per_weight == 4 + 16 / 16 + 4 / 16
    assert report.whole.n_weights == opened(trained).model.n_parameters()
