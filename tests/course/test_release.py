"""Hand-outs: the answers are gone, everything else is there, and a learner can work with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.course.chapter import read_chapter
from minillm.course.release import project_files, release
from minillm.course.skeleton import reference_file
from minillm.course.stripped import is_hole
from minillm.course.syllabus import ROOT
from minillm.errors import ConfigError, CourseError

ANSWER = "    total = sum(x) + len(x) * LIMIT\n    return round(total / LIMIT, 2) + 1\n"
LIBRARY = f'LIMIT = 3\n\n\ndef score(x):\n    """Score x."""\n{ANSWER}\n\ndef other(x):\n    return x\n'
TASK = '[[task]]\nid = "{id}"\nobject = "minillm.{object}"\npoints = 1\nhint = "h"\n'


def notebook(code: str, said: str = "") -> str:
    output = [{"output_type": "stream", "text": [said]}]
    return json.dumps({"cells": [{"cell_type": "code", "source": code.splitlines(True), "outputs": output}]})


FILES = {
    "README.md": "# Project\n",
    "minillm/__init__.py": "",
    "minillm/scores.py": LIBRARY,
    "minillm/free.py": "def free(x):\n    return [value * 2 + 1 for value in x if value]\n",
    "chapters/08_scores/exercise.toml": 'title = "Scores"\n' + TASK.format(id="8.1", object="scores:score"),
    "chapters/08_scores/exercise.py": "# the skeleton\n",
    "chapters/08_scores/README.md": "Text.\n\n```python\nfrom minillm.scores import score\n```\n",
    "chapters/08_scores/wrong.py": "def score(x):\n    return 0\n",
    "chapters/09_free/exercise.toml": 'title = "Free"\n' + TASK.format(id="9.1", object="free:free"),
    "chapters/09_free/wrong.py": "",
    "notebooks/08_scores.ipynb": notebook("1 + 1"),
    "notebooks/09_free.ipynb": notebook("2 + 2", "4\n"),
    "notebooks/10_quotes.ipynb": notebook("show(score)", "def score(x):\n" + ANSWER),
    "tests/test_scores.py": "def test_one():\n    assert True\n",
    "tests/test_copies.py": "def mine(x):\n" + ANSWER,
    "tests/graders/test_08_scores.py": "def test_score(impl):\n    assert impl.score([1]) == 2\n",
    "tests/course/test_machine.py": "",
    "runs/old/settings.json": "{}",
    "homework/08_scores/exercise.py": "mine",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(text)
    return tmp_path / "clone"


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_in_it_and_what_is_not(clone, tmp_path):
    lines = release(tmp_path / "out", ["08"], clone)
    gone = {"chapters/08_scores/wrong.py", "chapters/09_free/wrong.py", "notebooks/08_scores.ipynb"}
    gone |= {"tests/course/test_machine.py", "runs/old/settings.json", "homework/08_scores/exercise.py"}
    gone |= {"notebooks/10_quotes.ipynb", "tests/test_copies.py"}
    assert written(tmp_path / "out") == FILES.keys() - gone | {"HANDOUT.md"}
    for name in FILES.keys() - gone - {"minillm/scores.py"}:
        assert (tmp_path / "out" / name).read_text() == FILES[name]
    assert "1 functions of chapters 08" in lines[0]
    assert sum("notebooks/10_quotes.ipynb" in line or "tests/test_copies.py" in line for line in lines[1:]) == 2


def test_chapters_that_block_each_other_are_named(clone, tmp_path):
    (clone / "minillm/free.py").write_text("from minillm.scores import score\n\n\ndef free(x):\n    return score(x)\n")
    said = "\n".join(release(tmp_path / "out", (), clone))
    assert "chapter 09 needs 1 functions that chapter 08 has as holes" in said
    assert "chapter 08 needs" not in said


def test_only_the_taught_functions_are_holes(clone, tmp_path):
    release(tmp_path / "out", ["08"], clone)
    hole = '    # TASK 8.1 (1 point)\n    # h\n    raise NotImplementedError("task 8.1")\n'
    assert (tmp_path / "out/minillm/scores.py").read_text() == LIBRARY.replace(ANSWER, hole)
    release(tmp_path / "all", (), clone)
    for number in ("08", "09"):
        assert is_hole(read_chapter(number, tmp_path / "all").tasks[0], tmp_path / "all")


@pytest.mark.parametrize(
    "name, text",
    [
        ("minillm/again.py", "from minillm.scores import LIMIT\n\n\ndef again(x):\n" + ANSWER),
        ("tests/graders/test_08_scores.py", "def oracle(x):\n" + ANSWER),
        ("chapters/08_scores/exercise.py", "def score(x):\n" + ANSWER),
        ("chapters/08_scores/README.md", "Text\n\n```python\ndef score(x):\n" + ANSWER + "```\n"),
    ],
)
def test_answers_where_they_are_needed_stop_the_release(clone, tmp_path, name, text):
    (clone / name).write_text(text)
    with pytest.raises(CourseError, match=name):
        release(tmp_path / "out", ["08"], clone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone"]


def test_bad_targets(clone, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CourseError, match="exists"):
        release(tmp_path / "out", ["08"], clone)
    with pytest.raises(ConfigError, match="08_scores"):
        release(tmp_path / "new", ["11"], clone)
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="cannot be written"):
        release(tmp_path / "file" / "new", ["08"], clone)
    assert main(["course", "release"]) == 2


def test_files_are_what_git_knows_or_would_add():
    names = {path.as_posix() for path in project_files(ROOT)}
    assert {"README.md", ".gitignore", "minillm/cli.py", "chapters/syllabus.toml"} <= names
    assert not any(name.startswith((".venv", "runs/", "homework/")) or "__pycache__" in name for name in names)


@pytest.mark.slow
def test_a_learner_can_work_with_it(tmp_path):
    """Every task but those that need another chapter's holes: all points with the reference, none with the skeleton."""
    release(tmp_path / "out", ["08"])

    def course(*words: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "minillm", "course", *words]
        return subprocess.run(line, cwd=tmp_path / "out", capture_output=True, text=True)

    assert course("start", "08").returncode == 0
    empty = course("test", "08")
    assert empty.returncode == 1 and "points so far: 0 of" in empty.stdout
    chapter = read_chapter("08")
    (tmp_path / "out/homework/08_attention/exercise.py").write_text(reference_file(chapter))
    full = course("test", "08")
    assert f"points so far: {chapter.points} of {chapter.points}" in full.stdout, full.stdout + full.stderr
    assert full.returncode == 0
