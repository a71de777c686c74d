"""`minillm train --mesh`: the run of one process on many; refusals; under torchrun (slow): stopped, two launchers."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  the forked ranks inherit the slow import
import pytest
import torch

from minillm.cli import main
from minillm.config import config_from_dict, parse_config
from minillm.parallel.launch import launch
from minillm.verbs import many_processes
from minillm.verbs.many_processes import train_on_mesh, words_of
from minillm.verbs.run_folder import open_run
from minillm.verbs.train import Settings, resumed

WORDS = (
    "--size nano --precision fp32 --device cpu --vocab-size 280 --max-seq-len 32 --batch-size 8 --log-every 1 "
    "--validate-every 5 --sample-every 6 --checkpoint-every 4"
).split()
SMALL = Settings(
    size="nano", precision="fp32", device="cpu", vocab_size=280, max_seq_len=32, batch_size=8, log_every=1,
    validate_every=5, sample_every=6, checkpoint_every=4, steps=6,
)  # fmt: skip
ROUNDING = 5e-5  # float32, default settings: Muon, `modern`; six steps, 2.2e-6 seen
SAMPLE_START = 4  # characters
LONG_ROUNDING = 1e-4  # 24 steps: rounding grows with them, and with the processor's kernels; 7.1e-6 seen
ROOT = Path(__file__).parents[2]


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def check_same_run(found, expected, rounding=ROUNDING):
    """The same lines, steps and tokens; losses and norms but for rounding; rates to the bit; samples that begin alike.

    Where two bytes are almost equally likely, rounding decides which one a sample takes, and what follows.
    """
    assert [entry["kind"] for entry in found] == [entry["kind"] for entry in expected]
    for mine, single in zip(found, expected, strict=True):
        assert mine.keys() == single.keys()
        for key in mine.keys() - {"seconds", "tokens_per_second"}:
            if isinstance(mine[key], float) and key != "lr":
                assert mine[key] == pytest.approx(single[key], abs=rounding), (mine, single)
            elif key == "text":
                assert mine[key][:SAMPLE_START] == single[key][:SAMPLE_START], (mine, single)
            else:
                assert mine[key] == single[key], (mine, single)


@pytest.fixture(scope="module")
def single(text_file, tmp_path_factory):
    """The metrics of one process: default model and optimizer, 6 steps."""
    out = tmp_path_factory.mktemp("single") / "run"
    assert main(["train", "--data", str(text_file), *WORDS, "--steps", "6", "--out", str(out)]) == 0
    return metrics(out)


def on_ranks(settings, n_ranks):
    return launch(lambda world: train_on_mesh(world, settings)[0], n_ranks, timeout_seconds=20, show_output=False)


def test_a_run_on_four_processes_is_the_run_of_one_and_its_folder_is_used_as_any_other(
    single, text_file, tmp_path, capsys
):
    out = tmp_path / "mesh"
    results = on_ranks(replace(SMALL, data=(str(text_file),), out=out, mesh="dp=2,tp=2"), 4)
    assert [result.step for result in results] == [6] * 4
    check_same_run(metrics(out), single)
    assert {path.name for path in out.iterdir()} == {
        "settings.json", "tokenizer.json", "text", "checkpoints", "metrics.jsonl", "loss.png", "samples.txt",
    }  # fmt: skip
    assert open_run(out, torch.device("cpu")).step == 6
    assert main(["generate", str(out), "--prompt", "Anna", "--device", "cpu"]) == 0
    assert main(["train", "--out", str(out), "--resume", "--mesh", "dp=1", "--steps", "8"]) == 0
    assert metrics(out)[-1]["step"] == 8 and "done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "mesh", "n_ranks"),
    [("bf16", "pp=2", 2), pytest.param("fp16", "dp=2", 2, marks=pytest.mark.slow)],
)
def test_16_bits_a_pipeline_and_documents(text_file, tmp_path, precision, mesh, n_ranks):
    settings = replace(SMALL, data=(str(text_file),), out=tmp_path / "r", steps=4, precision=precision, microbatches=2)
    on_ranks(replace(settings, mesh=mesh, rows="documents"), n_ranks)
    losses = [entry["loss"] for entry in metrics(tmp_path / "r") if entry["kind"] == "train"]
    main(["train", "--data", str(text_file), *WORDS, "--steps", "4", "--precision", precision, "--microbatches", "2",
          "--rows", "documents", "--out", str(tmp_path / "s")])  # fmt: skip
    expected = [entry["loss"] for entry in metrics(tmp_path / "s") if entry["kind"] == "train"]
    assert losses == pytest.approx(expected, abs=0.02)


def test_an_error_of_rank_0_is_one_on_all_and_leaves_nothing(text_file, tmp_path):
    """257 ids of bytes: the vocabulary is known when the tokenizer is."""
    settings = replace(SMALL, data=(str(text_file),), out=tmp_path / "r", mesh="tp=2", tokenizer="bytes")
    with pytest.raises(ValueError, match="tp=2 does not divide vocab_size 257"):
        on_ranks(settings, 2)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--mesh dp=3", "dp=3 does not divide the 8 rows"),
        ("--mesh tp=4", "n_heads 2"),
        ("--mesh pp=3", "n_layers 2"),
        ("--mesh dp=8 --microbatches 2", "2 microbatches of the 1 rows"),
        ("--mesh dp=2,qp=2", "'qp=2' is not one of"),
        ("--mesh dp=2 --compile", "--no-compile"),
        ("--mesh dp=2 --with-my 08", "--with-my is for one process"),
        ("--mesh dp=2 --engine fsdp2", "--optimizer adamw"),
        ("--mesh tp=2 --engine fsdp2 --optimizer adamw", "along dp only"),
        ("--mesh dp=2 --engine pp --optimizer adamw", "two stages or more"),
        ("--mesh pp=2 --engine pp --optimizer adamw --microbatches 3", "that divide the 8 rows"),
        ("--mesh pp=2 --engine pp --optimizer adamw --rows documents", "--rows windows"),
        ("--engine fsdp2", "say which with --mesh"),
        ("--mesh dp=2 --timeout-seconds 0", "above 0"),
        ("--model mixtral --mesh tp=2", "experts"),
    ],
)
def test_what_cannot_work_is_refused_before_a_process_is_started(text_file, tmp_path, refuses, words, parts):
    refuses(["train", "--data", text_file, *WORDS, "--out", tmp_path / "r", *words.split()], parts)
    assert not (tmp_path / "r").exists()


def test_a_world_that_is_not_the_mesh_is_refused_by_rank_0_alone(text_file, tmp_path, refuses, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    words = ["train", "--data", text_file, *WORDS, "--out", tmp_path / "r"]
    refuses(words, "torchrun started 4 processes and there is no --mesh")
    refuses([*words, "--mesh", "dp=2"], "has 2 places, torchrun started 4")
    monkeypatch.setenv("RANK", "3")
    assert main([str(word) for word in [*words, "--mesh", "dp=2"]]) == 2
    assert capsys.readouterr().err == ""


def test_backend_and_device_go_together(text_file, tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(many_processes, "start_processes", lambda settings, size: 7)
    words = ["train", "--data", str(text_file), *WORDS, "--out", str(tmp_path / "r"), "--mesh", "dp=2"]
    assert main(words) == 7
    assert many_processes.backend_of(replace(SMALL, device="cuda")) == "nccl"
    assert many_processes.backend_of(SMALL) == "gloo"
    for device in ("cuda", "mps"):
        with pytest.raises(ValueError, match="--device cpu"):
            many_processes.backend_of(replace(SMALL, device=device, backend="gloo"))


def test_the_words_that_are_handed_on_mean_the_same_settings():
    settings = replace(SMALL, data=("a", "b c"), mesh="dp=2,tp=2", resume=True, out=Path("x y"), learning_rate=0.5)
    assert parse_config(Settings, words_of(settings)) == settings


# --- under torchrun


def start(words, log):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)


def ended(process, log):
    """The exit code; a process that hangs is killed with its children."""
    try:
        return process.wait(timeout=100)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)
        raise AssertionError(f"hung: {log.read_text()[-2000:]}") from None


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def wait_for(out, step, process):
    """Until the metrics have that step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and (lines := metrics(out)) and lines[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not come so far")


def ranks_of(launcher):
    """Process ids of what a launcher started."""
    found = subprocess.run(["pgrep", "-P", str(launcher.pid), "-f", "minillm"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
def test_torchrun_trains_to_the_loss_of_one_process_although_a_rank_is_killed(text_file, tmp_path):
    words = ["train", "--data", str(text_file), *WORDS, "--steps", "24", "--out"]
    assert main([*words, str(tmp_path / "single")]) == 0
    out, log = tmp_path / "r", tmp_path / "log"
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node", "4", "--max-restarts", "1"]
    process = start([*torchrun, "-m", "minillm", *words, str(out), "--mesh", "dp=2,tp=2"], log)
    wait_for(out, 6, process)
    os.kill(ranks_of(process)[2], signal.SIGKILL)
    assert ended(process, log) == 0, log.read_text()
    check_same_run(metrics(out), metrics(tmp_path / "single"), LONG_ROUNDING)
    shown = log.read_text()
    assert shown.count("done: ") == 1 and "24/24" in shown and "exitcode: -9" in shown


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_another_mesh_goes_on(text_file, tmp_path):
    out, log = tmp_path / "r", tmp_path / "log"
    words = ["--data", str(text_file), *WORDS, "--validate-every", "0", "--sample-every", "0", "--out", str(out)]
    command = [sys.executable, "-m", "minillm", "train", "--mesh", "dp=2", "--steps", "100000", *words]
    process = start(command, log)
    wait_for(out, 2, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process, log) == 128 + signal.SIGTERM, log.read_text()
    assert "stopped by SIGTERM" in log.read_text()
    step = open_run(out, torch.device("cpu")).step
    assert step == metrics(out)[-1]["step"] >= 2
    more = {"steps": step + 1, "mesh": "tp=2", "resume": True}
    on_ranks(config_from_dict(Settings, resumed({"out": out, **more}) | more), 2)
    assert open_run(out, torch.device("cpu")).step == step + 1


@pytest.mark.slow
def test_two_launchers_on_loopback_are_two_hosts(single, text_file, tmp_path):
    out, port = tmp_path / "r", str(29000 + os.getpid() % 2000)
    words = ["-m", "minillm", "train", "--data", str(text_file), *WORDS, "--steps", "6", "--out", str(out)]
    host = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    logs = [tmp_path / f"log{node}" for node in range(2)]
    hosts = [
        start([*TORCHRUN, *host, "--node-rank", str(node), *words, "--mesh", "dp=2"], logs[node]) for node in (0, 1)
    ]
    assert [ended(each, log) for each, log in zip(hosts, logs, strict=True)] == [0, 0], logs[0].read_text()
    check_same_run(metrics(out), single)
