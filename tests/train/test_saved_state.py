"""The plain pair: one path or file object, nothing executed, nothing lost."""

import io
import os
import pickle

import pytest
import torch
from torch import nn

from minillm.errors import CheckpointError
from minillm.train.optim import AdamW
from minillm.train.saved_state import capture_state, load_state, restore_state, save_state


def make(width=4, seed=0, optimizer_type=AdamW):
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    optimizer = optimizer_type(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer_type", [AdamW, torch.optim.AdamW])
@pytest.mark.parametrize("where", ["path", "text", "file", "memory"])
def test_round_trip(tmp_path, where, optimizer_type):
    model, optimizer = make(optimizer_type=optimizer_type)
    other, other_optimizer = make(seed=1, optimizer_type=optimizer_type)
    path = tmp_path / "state.pt"
    if where in ("path", "text"):
        target = source = path if where == "path" else str(path)
        save_state(model, optimizer, 7, target)
        step = load_state(source, other, other_optimizer)
    elif where == "file":
        with path.open("wb") as file:
            save_state(model, optimizer, 7, file)
        with path.open("rb") as file:
            step = load_state(file, other, other_optimizer)
    else:
        save_state(model, optimizer, 7, memory := io.BytesIO())
        memory.seek(0)
        step = load_state(memory, other, other_optimizer)
    assert step == 7
    assert torch.equal(weights(other), weights(model))
    optimizer.step(), other_optimizer.step(), model.zero_grad(), other.zero_grad()
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(torch.as_tensor(ours[i][k]), torch.as_tensor(theirs[i][k])) for i in ours for k in ("step",))


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    model, optimizer = make()
    save_state(model, optimizer, 1, path)
    before = path.read_bytes()
    save = torch.save

    def save_half(content, file):
        memory = io.BytesIO()
        save(content, memory)
        file.write(memory.getvalue()[:500])
        raise RuntimeError("[enforce fail] unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(CheckpointError, match=r"disk full.*untouched"):
        save_state(model, optimizer, 2, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.pt"]


def test_the_full_device():
    model, optimizer = make(width=4000)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(CheckpointError, match=r"/dev/full.*disk full"):
        save_state(model, optimizer, 1, full)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        save_state(*make(), 1, tmp_path / "none" / "state.pt")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("bomb", [pickle.dumps(Bomb()), "zip"], ids=["pickle", "zip"])
def test_malicious_files_are_refused(tmp_path, monkeypatch, bomb):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"model": Bomb(), "optimizer": {}, "step": 1}, path) if bomb == "zip" else path.write_bytes(bomb)
    model, optimizer = make()
    before = weights(model)
    with pytest.raises(CheckpointError, match="refused"):
        load_state(path, model, optimizer)
    assert not (tmp_path / "exploded").exists() and torch.equal(weights(model), before)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_cut_files(tmp_path, share):
    path = tmp_path / "state.pt"
    model, optimizer = make()
    save_state(model, optimizer, 1, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        load_state(path, *make(seed=2))


def test_another_module_or_optimizer_changes_nothing(tmp_path):
    path = tmp_path / "state.pt"
    save_state(*make(), 1, path)
    wide, wide_optimizer = make(width=5)
    before = weights(wide)
    with pytest.raises(CheckpointError, match=r"0\.weight: expected \(5, 3\) float32, found \(4, 3\)"):
        load_state(path, wide, wide_optimizer)
    assert torch.equal(weights(wide), before)
    model, _ = make(seed=3)
    before = weights(model)
    with pytest.raises(CheckpointError, match=r"groups of \[4\] parameters, this one of \[1\]"):
        load_state(path, model, AdamW([model[0].weight]))
    assert torch.equal(weights(model), before)


def test_other_content_and_missing_files(tmp_path):
    path = tmp_path / "other.pt"
    for content, words in (({"weights": 1}, r"found \['weights'\]"), ([1, 2], "found list")):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=words):
            load_state(path, *make())
    with pytest.raises(CheckpointError, match="missing"):
        load_state(tmp_path / "none.pt", *make())


def one_step(model, optimizer, generator):
    optimizer.zero_grad()
    model(torch.rand(2, 3, generator=generator)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer_type", [AdamW, torch.optim.AdamW])
def test_a_captured_state_stays_and_can_be_restored_twice(optimizer_type):
    model, optimizer = make(optimizer_type=optimizer_type)
    generator = torch.Generator().manual_seed(3)
    state = capture_state(model, optimizer, 1, {"noise": generator})
    trails = []
    for _ in range(3):
        assert restore_state(state, model, optimizer, {"noise": generator}) == 1
        for _ in range(3):
            one_step(model, optimizer, generator)
        trails.append(weights(model))
    assert torch.equal(trails[0], trails[1]) and torch.equal(trails[0], trails[2])


def test_generators_in_the_file(tmp_path):
    model, optimizer = make()
    generator = torch.Generator().manual_seed(3)
    save_state(model, optimizer, 1, tmp_path / "state.pt", {"noise": generator})
    one_step(model, optimizer, generator)
    expected = weights(model)
    other, other_optimizer = make(seed=1)
    other_generator = torch.Generator().manual_seed(4)
    load_state(tmp_path / "state.pt", other, other_optimizer, {"noise": other_generator})
    one_step(other, other_optimizer, other_generator)
    assert torch.equal(weights(other), expected)
    before = other_generator.get_state()
    with pytest.raises(CheckpointError, match="another"):
        load_state(tmp_path / "state.pt", *make(seed=2), {"another": other_generator})
    assert torch.equal(other_generator.get_state(), before)
