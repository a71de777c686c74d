"""`minillm course grade` from the command line: one file, a class, and every form of report."""

import csv
import json
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.course.chapter import read_chapter
from minillm.course.results import check_gradescope
from minillm.course.skeleton import def_source, reference_file, skeleton, with_function

CHAPTER = read_chapter("08")


@pytest.mark.slow
def test_one_file_and_its_reports(tmp_path: Path, capsys):
    file, secret = tmp_path / "ann.py", tmp_path / "secret.txt"
    done = def_source(reference_file(CHAPTER), CHAPTER.tasks[0].name)
    file.write_text(with_function(skeleton(CHAPTER), CHAPTER.tasks[0].name, done))
    secret.write_text("a secret\n")
    reports = {name: tmp_path / name for name in ("report.json", "results.json", "summary.md")}
    words = ["--json", str(reports["report.json"]), "--gradescope", str(reports["results.json"])]
    words += ["--summary", str(reports["summary.md"]), "--secret-file", str(secret)]
    assert main(["course", "grade", "08", str(file), *words]) == 0
    points = CHAPTER.tasks[0].points
    assert f"{points}/{CHAPTER.points}" in capsys.readouterr().out
    report, results = (json.loads(reports[name].read_text()) for name in ("report.json", "results.json"))
    check_gradescope(results)
    assert report["score"] == results["score"] == points
    assert report["complete"] and report["n_hidden_seeds"] > 0
    assert "not implemented" in reports["summary.md"].read_text().replace("_", " ")


@pytest.mark.slow
def test_a_class_becomes_a_table(tmp_path: Path, capsys):
    folder = tmp_path / "class"
    (folder / "ben").mkdir(parents=True)
    (folder / "ann.py").write_text(reference_file(CHAPTER))
    (folder / "ben" / "exercise.py").write_text(skeleton(CHAPTER))
    table = tmp_path / "grades.csv"
    assert main(["course", "grade", "08", str(folder), "--csv", str(table), "--processes", "2"]) == 0
    with table.open() as file:
        rows = {row["submission"]: row["score"] for row in csv.DictReader(file)}
    assert rows == {"ann": str(CHAPTER.points), "ben": "0"}
    assert "2 submissions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grade"], "which chapter"),
        (["grade", "08"], "what to grade"),
        (["grade", "08", "missing.py"], "missing.py"),
        (["grade", "08", "x.py", "--secret", "a", "--secret-file", "b"], "not both"),
        (["grade", "08", "x.py", "--processes", "-1"], "processes"),
        (["grade", "08", "x.py", "--secret-file", "missing.txt"], "missing.txt"),
        (["release"], "say where"),
        (["gradescope"], "which chapter"),
        (["test", "99"], "99"),
        (["reset", "08", "--folder", "nowhere"], "minillm course start 08"),
    ],
)
def test_bad_words_are_explained(words, said, capsys):
    assert main(["course", *words]) == 2
    assert said in capsys.readouterr().err
