"""A learner's functions inside the library: used, counted, and gone afterwards."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.toy_course import write_toy_course

from minillm.cli import main
from minillm.course import with_my
from minillm.course.chapter import all_chapters, read_chapter
from minillm.course.learner import homework, start
from minillm.course.skeleton import def_source, reference_file, with_function
from minillm.errors import CourseError
from minillm.nn import attention
from minillm.tokenizers import bpe, bpe_naive
from minillm.train import optim


@pytest.fixture
def work(tmp_path: Path):
    write_toy_course(tmp_path / "clone")
    work = homework("08", tmp_path / "mine", tmp_path / "clone")
    start(work)
    return work


def test_passing_functions_are_in_place_and_counted_until_the_end(work, tmp_path):
    solution = def_source(reference_file(work.chapter), "split_heads")
    work.file.write_text(with_function(work.file.read_text(), "split_heads", solution))
    before = attention.split_heads, attention.merge_heads
    layer = attention.SelfAttention(8, 2, 2, kernels="naive")
    with with_my.my_functions(["08", "08"], tmp_path / "mine", tmp_path / "clone") as mine:
        assert [task.id for task in mine.passed] == ["8.1"]
        assert [task.id for task in mine.failed] == ["8.2"]
        assert attention.split_heads.__code__.co_filename != before[0].__code__.co_filename
        assert attention.merge_heads is before[1]
        layer(torch.zeros(1, 3, 8))
        assert mine.calls == {"8.1": 3}
        assert list(mine.report()) == ["your functions and how often they were called: split_heads (3)"]
    assert (attention.split_heads, attention.merge_heads) == before


def test_everything_is_put_back_after_an_error(work, tmp_path):
    work.file.write_text(reference_file(work.chapter))
    before = attention.split_heads
    with pytest.raises(KeyError), with_my.my_functions(["08"], tmp_path / "mine", tmp_path / "clone"):
        assert attention.split_heads is not before
        raise KeyError
    assert attention.split_heads is before


def test_nothing_passes_or_nothing_is_there(work, tmp_path):
    with (
        pytest.raises(CourseError, match="no task in .* passes yet"),
        with_my.my_functions(["08"], tmp_path / "mine", tmp_path / "clone"),
    ):
        pass
    shutil.rmtree(tmp_path / "mine")
    with (
        pytest.raises(CourseError, match="minillm course start 08"),
        with_my.my_functions(["08"], tmp_path / "mine", tmp_path / "clone"),
    ):
        pass


def test_what_was_not_used_is_said():
    tasks = read_chapter("08").tasks[:2]
    mine = with_my.MyFunctions(list(tasks))
    mine.calls[tasks[1].id] = 1200
    assert list(mine.report()) == [
        f"your functions and how often they were called: {tasks[1].name} (1,200)",
        f"in place, but this run had no use for them: {tasks[0].name}",
    ]


def test_the_formula_steps_as_the_optimizer(monkeypatch):
    def trained() -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4))
        optimizer = optim.AdamW([weight], lr=0.1, betas=(0.8, 0.95), weight_decay=0.3)
        for step in range(5):
            optimizer.zero_grad()
            (weight.sin() * (step + 1)).sum().backward()
            optimizer.step()
        return weight.detach()

    expected = trained()
    undo = with_my._readable_adamw()
    calls = []
    original = optim.adamw_step
    monkeypatch.setattr(optim, "adamw_step", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    torch.testing.assert_close(trained(), expected, rtol=1e-10, atol=1e-12)
    undo()
    assert len(calls) == 5
    assert torch.equal(trained(), expected)
    assert len(calls) == 5


def test_the_plain_trainer_takes_the_fast_ones_place():
    fast = bpe.train_merges
    undo = with_my._readable_merges()
    assert bpe.train_merges is bpe_naive.train_merges
    undo()
    assert bpe.train_merges is fast


def test_every_twin_belongs_to_a_task():
    tasks = {task.object for chapter in all_chapters() for task in chapter.tasks}
    assert set(with_my.TWINS) <= tasks


@pytest.mark.slow
def test_a_model_is_trained_with_a_learners_attention(tmp_path, capsys):
    work = homework("08", tmp_path / "mine")
    start(work)
    work.file.write_text(reference_file(work.chapter))
    run = ["train", "--steps", "2", "--size", "nano", "--batch-size", "2", "--max-seq-len", "32", "--vocab-size", "300"]
    run += ["--validate-every", "0", "--sample-every", "0", "--out", str(tmp_path / "run")]
    assert main([*run, "--with-my", "08", "--homework", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    assert "yours: attention_weights" in said
    assert "called: attention_weights (" in said
    assert main([*run[:2], "3", *run[3:], "--resume", "--homework", str(tmp_path / "mine")]) == 0
    assert "yours: attention_weights" in capsys.readouterr().out
