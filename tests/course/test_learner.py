"""A learner's way through a chapter: begin, try, fail, see a hint, pass; and their file is never lost."""

import json
import os
from pathlib import Path

import pytest
from helpers.toy_course import write_toy_course

from minillm.cli import main
from minillm.course import learner
from minillm.course.chapter import read_chapter
from minillm.course.skeleton import def_source, reference_file, skeleton, with_function
from minillm.errors import ConfigError, CourseError, DataError


@pytest.fixture
def work(tmp_path: Path) -> learner.Homework:
    write_toy_course(tmp_path / "clone")
    return learner.homework("08", tmp_path / "mine", tmp_path / "clone")


def reference(work: learner.Homework, name: str) -> str:
    return def_source(reference_file(work.chapter), name)


def fill_in(work: learner.Homework, name: str, source: str) -> None:
    work.file.write_text(with_function(work.file.read_text(), name, source))


def test_start_writes_the_skeleton(work):
    assert learner.start(work) == work.file
    assert work.file == work.folder / "exercise.py"
    assert work.file.read_text() == skeleton(work.chapter)


def test_default_folder_is_homework_in_the_clone(work, tmp_path):
    assert learner.homework("08", root=tmp_path / "clone").folder == tmp_path / "clone" / "homework" / "08_toy"


def test_a_learners_file_is_never_overwritten(work):
    learner.start(work)
    work.file.write_text("mine")
    with pytest.raises(CourseError, match="--force"):
        learner.start(work)
    assert work.file.read_text() == "mine"


def test_force_keeps_a_copy_each_time(work):
    learner.start(work)
    for number, text in enumerate(["first", "second"], 1):
        work.file.write_text(text)
        kept = learner.start(work, force=True)
        assert kept.name == f"exercise.old-{number}.py" and kept.read_text() == text
    assert work.file.read_text() == skeleton(work.chapter)


def test_reset_of_one_task_leaves_the_others(work):
    learner.start(work)
    for name in ("split_heads", "merge_heads"):
        fill_in(work, name, reference(work, name))
    before = work.file.read_text()
    kept = learner.reset(work, "8.1")
    assert kept.read_text() == before
    text = work.file.read_text()
    assert def_source(text, "split_heads") == def_source(skeleton(work.chapter), "split_heads")
    assert def_source(text, "merge_heads") == reference(work, "merge_heads")


def test_reset_of_a_chapter(work):
    learner.start(work)
    work.file.write_bytes(b"\xff not UTF-8")
    assert learner.reset(work).read_bytes() == b"\xff not UTF-8"
    assert work.file.read_text() == skeleton(work.chapter)


def test_reset_errors(work):
    with pytest.raises(CourseError, match="minillm course start 08"):
        learner.reset(work)
    learner.start(work)
    with pytest.raises(ConfigError, match="8.1, 8.2"):
        learner.reset(work, "8.3")
    work.file.write_text("def split_heads(:\n")
    with pytest.raises(DataError, match="line 1"):
        learner.reset(work, "8.1")
    assert work.file.read_text() == "def split_heads(:\n"


def test_folder_that_cannot_be_written(work):
    work.folder.parent.write_text("a file")
    with pytest.raises(CourseError, match="--folder"):
        learner.start(work)


def test_the_way_of_a_learner(work):
    """One worker for the whole story: starting it takes seconds."""
    learner.start(work)
    with learner.Tester(work) as tester:
        lines = tester.test()
        assert [line.split(":")[-1] for line in lines[:2]] == [" not implemented", " not implemented"]
        assert lines[-1] == "points so far: 0 of 3"

        fill_in(work, "split_heads", "def split_heads(x, n_heads):\n    print('here')\n    return x.nothing()\n")
        first = "\n".join(tester.test(["8.1"]))
        assert "8.1  0/2  split_heads: failed" in first
        assert "no attribute 'nothing'" in first
        line = work.file.read_text().splitlines().index("    return x.nothing()") + 1
        assert f"exercise.py:{line}" in first
        assert "| here" in first
        assert "hint:" not in first
        second = "\n".join(tester.test(["8.1"]))
        assert "hint: Cut, then exchange." in second

        fill_in(work, "split_heads", reference(work, "split_heads"))
        lines = tester.test(["8.1"])
        assert lines == ["  8.1  2/2  split_heads: passed", "points so far: 2 of 3"]
        assert learner.load_progress(work).of(work.chapter.task("8.1")).failures == 0

        fill_in(work, "merge_heads", "def merge_heads(x):\n    return x.flatten(-2)\n")
        text = "\n".join(tester.test())
        assert "8.1  2/2" in text and "8.2  0/1  merge_heads: failed" in text
        assert "points so far: 2 of 3" in text

        work.file.write_text("def broken(:\n")
        text = "\n".join(tester.test(["8.2"]))
        assert "SyntaxError" in text and "exercise.py:1" in text
        progress = learner.load_progress(work).of(work.chapter.task("8.2"))
        assert (progress.status, progress.failures) == ("failed", 1)  # a typing slip is no failure of the task
        assert "\n".join(tester.test()).count("SyntaxError") == 1
        work.file.write_bytes(b"\xff")
        assert "UTF-8" in "\n".join(tester.test())
        with pytest.raises(ConfigError, match="no task '8.9'"):
            tester.test(["8.9"])


def test_testing_before_starting_says_how(work):
    with pytest.raises(CourseError, match="minillm course start 08"):
        learner.test(work)


def test_an_updated_exercise_is_mentioned_and_nothing_is_overwritten(work):
    learner.start(work)
    work.file.write_text("mine")
    assert len(list(learner.closing_lines(work, learner.load_progress(work)))) == 1
    with (work.chapter.folder / "exercise.py").open("a") as file:
        file.write("# a new version\n")
    lines = list(learner.closing_lines(work, learner.load_progress(work)))
    assert "has changed" in lines[1]
    with pytest.raises(CourseError):
        learner.start(work)
    assert work.file.read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"tasks": {"8.1": {"nonsense": 1}}, "skeleton": ""}', '{"tasks": 3}']
)
def test_damaged_progress_counts_as_none(work, damage):
    learner.start(work)
    work.progress_file.write_text(damage)
    assert learner.load_progress(work) == learner.Progress()


def test_progress_is_plain_json(work):
    learner.start(work)
    progress = learner.load_progress(work)
    learner.note(progress.of(work.chapter.task("8.1")), "failed", 0)
    learner.save_progress(work, progress)
    table = json.loads(work.progress_file.read_text())
    assert table["tasks"]["8.1"] == {"score": 0, "failures": 1, "status": "failed"}
    assert learner.load_progress(work) == progress


def test_hints_count_failures_not_empty_holes():
    progress = learner.TaskProgress()
    for status, failures in [
        ("not_implemented", 0),
        ("failed", 1),
        ("not_implemented", 1),
        ("timeout", 2),
        ("passed", 0),
    ]:
        learner.note(progress, status, 0)
        assert progress.failures == failures


def test_status_over_chapters(work, tmp_path):
    def table():
        return "\n".join(learner.status(tmp_path / "mine", tmp_path / "clone"))

    assert "08_toy   0/3     0/2           minillm course start 08" in table()
    learner.start(work)
    progress = learner.load_progress(work)
    learner.note(progress.of(work.chapter.task("8.1")), "passed", 2)
    learner.save_progress(work, progress)
    assert "08_toy   2/3     1/2           task 8.2" in table()
    learner.note(progress.of(work.chapter.task("8.2")), "passed", 1)
    learner.save_progress(work, progress)
    assert "done" in table() and "all      3/3" in table()


def test_changes_are_seen_by_time_or_size_and_a_missing_file_is_awaited(tmp_path):
    file = tmp_path / "exercise.py"

    def write(text, time):
        file.write_text(text)
        os.utime(file, ns=(time, time))

    write("1", 10)
    between = [lambda: None, lambda: write("22", 10), file.unlink, lambda: write("33", 20), None]
    seen = []

    def sleep(seconds):
        assert 0 < seconds <= 1
        if (action := between.pop(0)) is None:
            raise KeyboardInterrupt
        action()

    with pytest.raises(KeyboardInterrupt):
        for _ in learner.changes(file, sleep):
            seen.append(file.read_text())
    assert seen == ["1", "22", "33"]


def test_watch_ends_when_all_passes(work, monkeypatch):
    learner.start(work)
    said = []

    def sleep(seconds):
        work.file.write_text(reference_file(work.chapter))

    learner.watch(work, ["8.2"], said.append, sleep)
    text = "\n".join(said)
    assert text.index("not implemented") < text.index("waiting for") < text.index("8.2  1/1  merge_heads: passed")


def test_commands(work, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("minillm.course.learner.ROOT", tmp_path / "clone")
    monkeypatch.setattr(
        "minillm.course.learner.read_chapter", lambda number, root: read_chapter(number, tmp_path / "clone")
    )
    folder = ["--folder", str(tmp_path / "mine")]
    assert main(["course", "start"]) == 2
    assert "which chapter" in capsys.readouterr().err
    assert main(["course", "test", "08", *folder]) == 2
    assert "minillm course start 08" in capsys.readouterr().err
    assert main(["course", "start", "08", *folder]) == 0
    assert "minillm course test 08 8.1" in capsys.readouterr().out
    assert main(["course", "start", "08", *folder]) == 2
    assert main(["course", "start", "08", "--force", *folder]) == 0
    assert "exercise.old-1.py" in capsys.readouterr().out
    assert main(["course", "reset", "08", "8.2", *folder]) == 0
    assert "task 8.2 is a hole again" in capsys.readouterr().out
    work.file.write_text(with_function(skeleton(work.chapter), "merge_heads", reference(work, "merge_heads")))
    assert main(["course", "test", "08", "8.2", *folder]) == 0
    assert "8.2  1/1" in capsys.readouterr().out
    assert main(["course", "test", "08", "8.9", *folder]) == 2
