"""Faults 1 to 4, 9, 10 and 13 of the list: killed while saving, damaged, disk full, foreign, another model."""

import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minillm.errors import CheckpointError, ConfigError
from minillm.train import checkpoint
from minillm.train.checkpoint import CheckpointFolder, RunParts, load_checkpoint, read_state, verify_checkpoint
from minillm.train.optim import AdamW
from minillm.train.precision import LossScaler
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

MODEL_FILE, STATE_FILE = "model.safetensors", "state.json"


def make_parts(seed=0, width=6, **settings):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, width), nn.BatchNorm1d(width), nn.Linear(width, 5, bias=False))
    model[2].weight = model[0].weight
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    optimizer = AdamW(model.parameters(), lr=0.1)
    defaults = {"config": {"d_model": width, "sizes": (1, 2)}, "tokenizer_fingerprint": "ab12"}
    return RunParts(model, optimizer, **{**defaults, **settings})


def step(parts, n_steps=1):
    for _ in range(n_steps):
        parts.optimizer.zero_grad()
        parts.model(torch.tensor([0, 1, 2, 4])).square().mean().backward()
        parts.optimizer.step()


def bits(parts):
    """Everything that training changes, as bytes."""
    tensors = dict(parts.model.state_dict())
    for index, moments in enumerate(parts.optimizer.state.values()):
        tensors |= {f"{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3 and the bits of each."""
    parts, folder, history = make_parts(), CheckpointFolder(tmp_path / "run"), {}
    for number in (1, 2, 3):
        step(parts)
        folder.save(number, parts, {"tokens": 10 * number})
        history[number] = bits(parts)
    return folder, history


def test_all_parts_come_back_bit_by_bit(tmp_path):
    drawing = {"torch": torch.Generator().manual_seed(3), "numpy": np.random.default_rng(4)}
    parts = make_parts(generators=drawing, scaler=LossScaler())
    step(parts, 3)
    parts.scaler.update(True)
    folder = CheckpointFolder(tmp_path)
    folder.save(3, parts, {"tokens": 30})
    expected = bits(parts), torch.rand(3, generator=drawing["torch"]), drawing["numpy"].random(3)

    others = {"torch": torch.Generator(), "numpy": np.random.default_rng()}
    fresh = make_parts(seed=9, generators=others, scaler=LossScaler())
    state = folder.resume(fresh)
    assert (state["step"], state["extra"]) == (3, {"tokens": 30})
    assert bits(fresh) == expected[0]
    assert torch.equal(torch.rand(3, generator=others["torch"]), expected[1])
    assert np.array_equal(others["numpy"].random(3), expected[2])
    assert fresh.scaler.scale == 32768.0
    assert fresh.model[2].weight is fresh.model[0].weight


def test_tied_weights_are_stored_once_and_safetensors_reads_them(saved):
    folder, _ = saved
    tensors = load_file(folder.path(3) / MODEL_FILE)
    assert "0.weight" in tensors and "2.weight" not in tensors
    assert read_state(folder.path(3))["tied"] == {"2.weight": "0.weight"}


def test_the_writer_agrees_with_safetensors(tmp_path):
    tensors = {
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "empty": torch.zeros(0, 4),
        "bits": torch.tensor([True, False, True]),
        "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "part": torch.arange(10)[3:6],
        "名": torch.tensor([1, 2], dtype=torch.uint8),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(tensor_file_chunks(tensors, {"format": "pt"})))
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in tensors.items())
    with pytest.raises(CheckpointError, match="complex64"):
        list(tensor_file_chunks({"z": torch.zeros(2, dtype=torch.complex64)}, {}))


def test_checksums_are_those_of_sha256sum(saved):
    folder, _ = saved
    assert os.system(f"cd '{folder.path(3)}' && sha256sum --quiet --strict -c SHA256SUMS") == 0


def test_weights_alone(tmp_path):
    parts = make_parts()
    parts.optimizer, optimizer = None, parts.optimizer
    path = CheckpointFolder(tmp_path).save(1, parts)
    fresh = make_parts(seed=1)
    load_checkpoint(path, RunParts(fresh.model))
    assert torch.equal(fresh.model[0].weight, parts.model[0].weight)
    parts.optimizer = optimizer
    with pytest.raises(CheckpointError, match="weights only"):
        load_checkpoint(path, parts)


# --- 1: killed while saving


@contextmanager
def no_fork_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn about threads
        yield


def fork(work):
    """Run `work` in a child that shares the imported torch; return its process id."""
    with no_fork_warning():
        child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_while_saving_sixty_times(tmp_path, one_thread):
    """Whenever the kill comes, the newest checkpoint is a whole one, not older than the last one completed."""
    parts, dice = make_parts(width=2000), random.Random(0)
    first = time.perf_counter()
    CheckpointFolder(tmp_path).save(1, parts)
    seconds = 4 * (time.perf_counter() - first)  # from start to kill, at most; grows on a busy machine
    newest, n_leftovers, n_moved = 1, 0, 0

    def save_forever(step):
        folder = CheckpointFolder(tmp_path)
        while True:
            step += 1
            with torch.no_grad():
                parts.model[0].weight.fill_(step)
            folder.save(step, parts)

    for _ in range(60):
        child = fork(lambda: save_forever(newest))  # noqa: B023
        time.sleep(dice.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        n_leftovers += any(tmp_path.glob(".tmp-*"))
        fresh = make_parts(seed=1, width=2000)
        folder = CheckpointFolder(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a rename makes a checkpoint whole: nothing is ever passed over
            state = folder.resume(fresh)
        assert not list(tmp_path.glob(".tmp-*"))
        assert state["step"] >= newest
        if state["step"] > 1:
            assert torch.equal(fresh.model[0].weight, torch.full((5, 2000), float(state["step"])))
        n_moved += state["step"] > newest
        seconds *= 1.0 if state["step"] > newest else 1.05
        newest = state["step"]
    assert n_leftovers > 5 and n_moved > 5  # the kills did hit savings, and savings did succeed


# --- 2 and 3: flipped bits and cut files


@pytest.mark.parametrize("file", [MODEL_FILE, "optimizer.safetensors", "optimizer.json", STATE_FILE, "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["bit", "empty", "30 %", "99.9 %", "gone"])
def test_damage_is_found_and_the_one_before_is_used(saved, file, damage):
    folder, history = saved
    path = folder.path(3) / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "bit":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    else:
        share = {"empty": 0.0, "30 %": 0.3, "99.9 %": 0.999}[damage]
        path.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    with pytest.raises(CheckpointError, match="step-000003"):
        load_checkpoint(folder.path(3), untouched := make_parts(seed=5))
    assert bits(untouched) == bits(make_parts(seed=5))
    fresh = make_parts(seed=6)
    with pytest.warns(UserWarning, match="damaged checkpoint passed over, using step-000002"):
        assert folder.resume(fresh)["step"] == 2
    assert bits(fresh) == history[2]


def test_all_damaged_is_an_error_that_names_them(saved):
    folder, _ = saved
    for number in folder.steps():
        (folder.path(number) / MODEL_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint.*is sound.*step-000003.*step-000001"):
        folder.resume(make_parts())


def test_a_damaged_step_can_be_saved_again_and_a_sound_one_cannot(saved):
    folder, _ = saved
    (folder.path(3) / STATE_FILE).write_bytes(b"{}")
    folder.save(3, make_parts(), {"second": True})
    verify_checkpoint(folder.path(3))
    with pytest.raises(CheckpointError, match="exists already"):
        folder.save(3, make_parts())
    assert read_state(folder.path(3))["extra"] == {"second": True}


def test_an_empty_folder_has_nothing_to_resume(tmp_path):
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "step-000009").write_text("a file, no folder")
    assert CheckpointFolder(tmp_path).resume(make_parts()) is None


# --- 4: disk full


def assert_disk_full(error, folder, history):
    text = str(error)
    assert "disk full" in text and "MB free" in text and "untouched" in text
    assert folder.steps() == [1, 2, 3] and not list(folder.folder.glob(".tmp-*"))
    fresh = make_parts(seed=6)
    folder.resume(fresh)
    assert bits(fresh) == history[3]


@pytest.mark.parametrize("limit_bytes", [0, 100, 400])
def test_disk_full_by_file_size_limit(saved, one_thread, limit_bytes):
    folder, history = saved

    def save_with_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        with pytest.raises(CheckpointError) as caught:
            folder.save(4, make_parts())
        assert_disk_full(caught.value, folder, history)

    child = fork(save_with_limit)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("file", [MODEL_FILE, "optimizer.json", STATE_FILE, "SHA256SUMS"])
def test_disk_full_by_the_full_device(saved, monkeypatch, file):
    """The file is a link to /dev/full, which takes no byte."""
    folder, history = saved
    write = checkpoint.write_file

    def write_there(path, chunks):
        if path.name == file:
            path.symlink_to("/dev/full")
        return write(path, chunks)

    monkeypatch.setattr(checkpoint, "write_file", write_there)
    with pytest.raises(CheckpointError) as caught:
        folder.save(4, make_parts())
    monkeypatch.undo()
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert_disk_full(caught.value, folder, history)


def test_every_file_and_both_folders_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced, sync, renames = [], os.fsync, []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (renames.append(len(synced)), rename(a, b)))
    CheckpointFolder(tmp_path).save(1, make_parts())
    names = [path.rpartition("/")[2] for path in synced]
    assert set(names[: renames[0]]) == {
        MODEL_FILE, "optimizer.safetensors", "optimizer.json", STATE_FILE, "SHA256SUMS", ".tmp-step-000001",
    }  # fmt: skip
    assert names[renames[0] :] == [tmp_path.name]


# --- 9: foreign files


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def reseal(path):
    """Make the checksums true again, as somebody with bad intentions would."""
    lines = [f"{checkpoint.sha256_of(file)}  {file.name}\n" for file in path.iterdir() if file.name != "SHA256SUMS"]
    (path / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize("protocol", [0, 2, 4, "zip"])
@pytest.mark.parametrize("file", [MODEL_FILE, "optimizer.safetensors", "optimizer.json", STATE_FILE])
def test_a_pickle_is_never_opened(saved, monkeypatch, tmp_path, protocol, file):
    folder, _ = saved
    monkeypatch.chdir(tmp_path)
    path = folder.path(3) / file
    if protocol == "zip":
        torch.save({"weights": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    reseal(folder.path(3))
    parts = make_parts(seed=5)
    words = {0: "begins with|not JSON", "zip": "zip archive"}.get(protocol, "Python pickle")
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(folder.path(3), parts)
    assert not (tmp_path / "exploded").exists()
    assert bits(parts) == bits(make_parts(seed=5))


def test_other_foreign_content(saved):
    folder, _ = saved
    path = folder.path(3)
    for content, words in (('{"format": 99}', "format 99"), ("[]", "expected a JSON object"), ("{}", "format None")):
        (path / STATE_FILE).write_text(content)
        reseal(path)
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path, make_parts())
    (path / "SHA256SUMS").write_text("00  ../../etc/passwd\n00  model.safetensors\n00  state.json\n")
    with pytest.raises(CheckpointError, match="etc/passwd"):
        verify_checkpoint(path)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_checkpoint(folder.folder / "step-000077", make_parts())
    with pytest.raises(CheckpointError, match="empty"):
        (path / MODEL_FILE).write_bytes(b"")
        read_tensor_file(path / MODEL_FILE)


# --- 10: another run


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config": {"d_model": 8, "sizes": (1, 2)}}, "d_model: expected 8, found 6"),
        ({"config": {"d_model": 6, "sizes": (1, 2), "n_heads": 2}}, "n_heads: expected 2, found 'nothing'"),
        ({"tokenizer_fingerprint": "cd34"}, "tokenizer: expected cd34, found ab12"),
        ({"width": 7, "config": {}}, r"0\.weight: expected \(5, 7\) float32, found \(5, 6\) float32"),
        ({"scaler": LossScaler()}, "not in fp16"),
        ({"generators": {"dropout": torch.Generator()}}, "generator 'dropout'.*found nothing"),
    ],
)
def test_another_run_is_refused_before_anything_changes(saved, other, words):
    folder, _ = saved
    parts = make_parts(seed=5, **other)
    before = bits(parts)
    with pytest.raises(CheckpointError, match=words):
        folder.resume(parts)
    assert bits(parts) == before


def test_another_optimizer_is_refused_before_anything_changes(saved):
    folder, _ = saved
    parts = make_parts(seed=5)
    parts.optimizer = AdamW([parts.model[0].weight])
    before = bits(parts)
    with pytest.raises(CheckpointError, match="optimizer state for other parameters"):
        folder.resume(parts)
    assert bits(parts) == before


def test_another_model_of_the_same_shapes_lists_names(saved):
    folder, _ = saved
    parts = make_parts()
    other = RunParts(nn.ModuleDict({"table": parts.model[0]}))
    with pytest.raises(CheckpointError, match=r"table\.weight: expected \(5, 6\) float32, found nothing"):
        folder.resume(other)


def test_not_finite_is_never_saved(tmp_path):
    parts, folder = make_parts(), CheckpointFolder(tmp_path)
    with torch.no_grad():
        parts.model[0].weight[1, 1] = torch.nan
    with pytest.raises(CheckpointError, match=r"0\.weight is not finite"):
        folder.save(1, parts)
    assert list(tmp_path.iterdir()) == []


def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    for extra in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(CheckpointError, match="tensors, numbers, texts"):
            CheckpointFolder(tmp_path).save(1, make_parts(), extra)
    assert list(tmp_path.iterdir()) == []


# --- 13: how many are kept


def test_the_newest_are_kept(tmp_path):
    folder, parts = CheckpointFolder(tmp_path, keep_last=2), make_parts()
    for number in (1, 5, 12, 1_000_000, 1_000_001):
        folder.save(number, parts)
    assert folder.steps() == [1_000_000, 1_000_001]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-1000001"]


@pytest.mark.parametrize("keep_last", [1, 0, -3])
def test_keeping_one_is_refused(tmp_path, keep_last):
    with pytest.raises(ConfigError, match="2 or more"):
        CheckpointFolder(tmp_path, keep_last=keep_last)


@pytest.mark.parametrize("failing", ["rename", "rmtree"])
def test_a_delete_that_fails_is_a_warning(tmp_path, monkeypatch, failing):
    folder, parts = CheckpointFolder(tmp_path, keep_last=2), make_parts()
    folder.save(1, parts), folder.save(2, parts)
    rename = os.rename

    def refuse(source, target=None, **_):
        if target is not None and ".tmp-delete" not in str(target):
            return rename(source, target)
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(*((os, "rename", refuse) if failing == "rename" else (shutil, "rmtree", refuse)))
    with pytest.warns(UserWarning, match="could not be deleted"):
        folder.save(3, parts)
    monkeypatch.undo()
    assert folder.steps()[-2:] == [2, 3]
    verify_checkpoint(folder.path(3))
    assert not list(CheckpointFolder(tmp_path).folder.glob(".tmp-*"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make"):
        CheckpointFolder(tmp_path / "file" / "run")


def test_state_is_readable_json(saved):
    folder, _ = saved
    state = json.loads((folder.path(2) / STATE_FILE).read_text())
    assert state["config"] == {"d_model": 6, "sizes": [1, 2]}
    assert state["versions"]["torch"] == torch.__version__
