"""Every command on the pages for learners and instructors runs, in the order in which they stand there."""

import json
import shlex
import subprocess
import sys

import pytest

from minillm.cli import main
from minillm.config import parse_config
from minillm.course.chapter import read_chapter
from minillm.course.fences import blocks
from minillm.course.skeleton import reference_file, skeleton
from minillm.course.syllabus import ROOT
from minillm.course.texts import page_complaints
from minillm.verbs.course import ACTIONS

HOMEWORK = "homework/08_attention/exercise.py"


def commands(page):
    text = (ROOT / "chapters" / page).read_text(encoding="utf-8")
    consoles = [block.text for block in blocks(text) if block.words == ("console",)]
    return [shlex.split(line, comments=True) for text in consoles for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("page", ["LEARNERS.md", "INSTRUCTORS.md"])
def test_links_and_commands_exist(page):
    assert page_complaints(ROOT / "chapters" / page) == []
    assert len(commands(page)) >= 8


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder to work in, which plays the clone's part for homework."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_learners_page(desk, capsys):
    file = desk / HOMEWORK
    for words in commands("LEARNERS.md"):
        if words[:3] == ["python", "-m", "pytest"]:
            words = [sys.executable, *words[1:-1], f"--solution={file}", "-q"]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-3000:]
            continue
        assert words[0] == "minillm"
        if words[1] == "train":
            words += ["--homework", str(desk / "homework"), "--device", "cpu"]
            words[words.index("200")] = "20"
        elif words[1] == "course":
            words += ["--folder", str(desk / "homework")]
        assert main(words[1:]) == 0, words
        said = capsys.readouterr().out
        if words[2] == "start":
            assert "7 tasks" in said and file.read_text() == skeleton(read_chapter("08"))
            file.write_text(reference_file(read_chapter("08")))
        elif words[2] == "test" and "8.2" in words:
            assert "causal_mask: passed" in said
        elif words[2] == "reset":
            assert "TASK 8.2" in file.read_text()
            file.write_text(reference_file(read_chapter("08")))
        elif words[1] == "train":
            assert "attention" in said and "how often they were called" in said


@pytest.mark.slow
def test_the_instructors_page(desk, capsys):
    chapter = read_chapter("08")
    (desk / "secret.txt").write_text("a line of text\n")
    (desk / "homework/08_attention").mkdir(parents=True)
    (desk / HOMEWORK).write_text(reference_file(chapter))
    (desk / "submissions").mkdir()
    (desk / "submissions" / "ada.py").write_text(reference_file(chapter))
    (desk / "submissions" / "ben.py").write_text(skeleton(chapter))
    ran = []
    for words in commands("INSTRUCTORS.md"):
        assert words[:2] == ["minillm", "course"]
        ran.append(words[2])
        if words[2] in ("check", "build"):  # the gates run by themselves in CI
            parse_config(ACTIONS[words[2]].settings, words[3:], "minillm course")
            continue
        assert main(words[1:]) == 0, words
        capsys.readouterr()
    assert set(ran) == {"release", "grade", "gradescope", "check", "build"}
    report = json.loads((desk / "report.json").read_text())
    assert report["score"] == report["points"] == 12 and report["n_hidden_seeds"] > 0
    lines = (desk / "grades.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["ada", "12", "12"], ["ben", "0", "12"]]
    assert (desk / "autograder_08.zip").is_file() and (desk / "handout" / "minillm").is_dir()
