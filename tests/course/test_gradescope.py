"""The Gradescope zip: what is in it, and what the program inside writes for good, bad and missing submissions."""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.toy_course import write_toy_course

from minillm.cli import main
from minillm.course import gradescope
from minillm.course.grading import Grader
from minillm.course.remote import Worker
from minillm.course.results import check_gradescope
from minillm.course.skeleton import reference_file, skeleton, with_function
from minillm.course.stripped import needed_modules
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    write_toy_course(tmp_path / "clone")
    return tmp_path / "clone"


def hand_in(base: Path, text: str, name: str = "exercise.py") -> None:
    (base / "submission").mkdir(parents=True, exist_ok=True)
    (base / "submission" / name).write_text(text)


def results(base: Path) -> dict:
    content = json.loads((base / "results" / "results.json").read_text())
    check_gradescope(content)
    return content


def test_the_zip_has_scripts_grader_and_library_but_no_wrong_answers(tmp_path):
    out = tmp_path / "autograder.zip"
    assert main(["course", "gradescope", "08", "--out", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        names = set(archive.namelist())
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        setup, run = archive.read("setup.sh").decode(), archive.read("run_autograder").decode()
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755
    assert {"constraints.txt", "chapters/08_attention/exercise.toml", "tests/graders/test_08_attention.py"} <= names
    assert {"minillm/nn/attention.py", "minillm/course/worker.py"} <= names
    assert not any("wrong.py" in name or name == gradescope.SECRET or "chapters/17" in name for name in names)
    assert "-c constraints.txt numpy torch" in setup
    assert run.endswith("-m minillm.course.gradescope 08\n")
    for script in (setup, run):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_equal_projects_give_equal_zips(tmp_path):
    for name in ("a.zip", "b.zip"):
        gradescope.write_zip("08", tmp_path / name, "secret")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read(gradescope.SECRET) == b"secret\n"


def test_every_package_is_pinned_and_what_is_imported_is_installed():
    pinned = {line.partition("==")[0].strip().lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(gradescope.PACKAGES) <= pinned
    graders = sorted((ROOT / "tests" / "graders").glob("test_*.py"))
    modules = needed_modules(["minillm.course.grading", "minillm.course.results", "minillm.course.gradescope"])
    files = [*graders, *(ROOT / (name.replace(".", "/") + ".py") for name in modules)]
    found = set()
    for file in filter(Path.is_file, files):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    assert found - sys.stdlib_module_names - {"minillm", ""} <= set(gradescope.PACKAGES) | {"matplotlib", "datasets"}


def test_errors_of_the_command(tmp_path, clone):
    (clone / "tests/graders/test_08_toy.py").unlink()
    with pytest.raises(CourseError, match="no grader"):
        gradescope.write_zip("08", tmp_path / "a.zip", root=clone)
    with pytest.raises(CourseError, match="cannot be written"):
        gradescope.write_zip("08", tmp_path / "missing" / "a.zip")
    (tmp_path / "empty").write_text("\n")
    assert main(["course", "gradescope", "08", "--secret-file", str(tmp_path / "empty")]) == 2


def test_points_are_written_and_the_secret_is_gone_before(clone, tmp_path):
    base, chapter = tmp_path / "autograder", gradescope.read_chapter("08", clone)
    hand_in(base, reference_file(chapter), "my_file.py")
    (clone / gradescope.SECRET).write_text("the secret\n")
    gradescope.run_autograder(gradescope.Settings("08", base), clone)
    content = results(base)
    assert content["score"] == 3 and [test["status"] for test in content["tests"]] == ["passed", "passed"]
    assert content["extra_data"]["n_hidden_seeds"] > 0
    assert not (clone / gradescope.SECRET).exists()


def test_nothing_to_grade_says_what_is_wanted(clone, tmp_path):
    base = tmp_path / "autograder"
    for files, said in [((), "no Python file"), (("a.py", "b.py"), "a.py, b.py")]:
        for name in files:
            hand_in(base, "", name)
        gradescope.run_autograder(gradescope.Settings("08", base), clone)
        content = results(base)
        assert content["score"] == 0 and "exercise.py" in content["output"] and said in content["output"]
        assert [test["max_score"] for test in content["tests"]] == [2, 1]


def test_a_fault_of_ours_is_said_and_results_stay_valid(clone, tmp_path, monkeypatch):
    base = tmp_path / "autograder"
    hand_in(base, "")

    def broken(*_):
        assert "was stopped before" in results(base)["output"]  # there is a file before anything can go wrong
        raise RuntimeError("broken")

    monkeypatch.setattr(gradescope, "grade_into", broken)
    with pytest.raises(RuntimeError):
        gradescope.run_autograder(gradescope.Settings("08", base), clone)
    assert "RuntimeError" in results(base)["output"]


@pytest.mark.parametrize(
    "text, name",
    [
        ('{"users": [{"id": 7}, {"id": 3}]}', "3-7"),
        ('{"users": []}', "submission"),
        ("not JSON", "submission"),
        ('{"users": 3}', "submission"),
    ],
)
def test_students_keep_their_hidden_inputs(tmp_path, text, name):
    (tmp_path / "metadata.json").write_text(text)
    assert gradescope.student(tmp_path / "metadata.json") == name
    assert gradescope.student(tmp_path / "none.json") == "submission"


@pytest.mark.slow
def test_the_unpacked_zip_grades(tmp_path):
    source, base = tmp_path / "autograder" / "source", tmp_path / "autograder"
    gradescope.write_zip("08", tmp_path / "a.zip", "secret")
    shutil.unpack_archive(tmp_path / "a.zip", source)
    chapter = gradescope.read_chapter("08")
    for text, score in [(reference_file(chapter), chapter.points), (skeleton(chapter), 0)]:
        hand_in(base, text)
        line = [sys.executable, "-m", "minillm.course.gradescope", "08", "--base", str(base)]
        done = subprocess.run(line, cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert results(base)["score"] == score


def test_root_without_namespaces_runs_the_program_as_nobody(clone, tmp_path):
    """As in an ordinary container; elsewhere, or with a Python that only root can read, there is nothing to see."""
    chapter = gradescope.read_chapter("08", clone)
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    spy = f"def merge_heads(x):\n    import os\n    return os.getuid(), os.listdir({str(closed)!r})\n"
    with Grader(chapter, root=clone) as grader, Worker() as worker:
        worker._isolate = "user"
        report = grader.grade(reference_file(chapter), worker)
        assert report.score == chapter.points
        if "user" not in worker.protection:
            pytest.skip(f"this is not root, or only root can read {sys.base_prefix}")
        report = grader.grade(with_function(reference_file(chapter), "merge_heads", spy), worker, tasks=["8.2"])
        assert "PermissionError" in report.tasks[0].message
