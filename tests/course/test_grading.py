"""Grading: who gets points, what a learner reads, and that the report is whole and the same every time."""

import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from minillm.course import grading
from minillm.course.grading import (
    Grader,
    TaskResult,
    grade,
    grade_class,
    note_failure,
    plain_text,
    read_checks,
    read_submission,
    submissions_in,
    table,
)
from minillm.course.proxy import Ended, RaisedThere
from minillm.course.remote import Limits
from minillm.course.skeleton import with_function
from minillm.course.syllabus import ROOT
from minillm.errors import ConfigError, CourseError, DataError

LATE_MASK = """
def attention_weights(query, key, mask=None):
    weights = functional.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]))
    return weights if mask is None else weights * mask
"""


def by_id(report):
    return {task.id: task for task in report.tasks}


def without_times(report):
    content = json.loads(report.to_json())
    for task in content["tasks"]:
        del task["seconds"]
    return content


def test_the_reference_gets_all_points_and_the_skeleton_none(grader, worker, reference, stub):
    report = grader.grade(reference, worker)
    assert [task.status for task in report.tasks] == ["passed"] * 4 and report.score == report.points == 7
    report = grader.grade(stub, worker)
    assert [task.status for task in report.tasks] == ["not_implemented"] * 4 and report.score == 0
    assert by_id(report)["90.2"].message == "task 90.2 is not written yet"


def test_a_wrong_function_fails_its_task_only_and_says_where(grader, worker, reference):
    report = grader.grade(with_function(reference, "attention_weights", LATE_MASK), worker)
    failed = by_id(report)["90.2"]
    assert [task.score for task in report.tasks] == [2, 0, 1, 1]
    assert failed.status == "failed" and failed.line is None and len(failed.failures) == 1
    assert failed.message.startswith("weights under a mask, case 1: the weights at [0, 0, 0] is ")
    assert "expected 1 (off by " in failed.message and "entries of shape (2, 4, 4) differ" in failed.message


@pytest.mark.parametrize("task_id", ["90.1", "90.2", "90.3", "90.4"])
def test_poison_in_one_task_fails_that_task(grader, worker, reference, small, task_id):
    poison = "def f(self, *args, **kwargs):\n    raise RuntimeError('poison')\n"
    name = small.task(task_id).name
    poisoned = with_function(reference, name, poison.replace("f(self, ", f"{name.rpartition('.')[2]}("))
    report = grader.grade(poisoned, worker)
    assert [task.id for task in report.tasks if task.status != "passed"] == [task_id]
    failed = by_id(report)[task_id]
    assert "RuntimeError: poison (line" in failed.message
    assert poisoned.splitlines()[failed.line - 1].strip() == "raise RuntimeError('poison')"


def test_all_tests_of_a_task_are_tried(grader, worker, reference):
    always = "def causal_mask(n_queries, n_keys, device=None):\n    return torch.ones(n_queries, n_keys).bool()\n"
    failed = by_id(grader.grade(with_function(reference, "causal_mask", always), worker, tasks=["90.1"]))["90.1"]
    assert failed.failures == [
        "mask by hand: mask of 2 and 3 at [0, 2] is True, expected False; 1 of 6 entries of shape (2, 3) differ",
        "more queries than keys: this input must be refused with ValueError; no error was raised",
    ]


def test_a_changed_input_is_noticed(grader, worker, reference):
    changing = "def merge_heads(x):\n    y = x.transpose(-3, -2).flatten(-2)\n    x += 1\n    return y\n"
    failed = by_id(grader.grade(with_function(reference, "merge_heads", changing), worker, tasks=["90.3"]))["90.3"]
    assert "the input afterwards" in failed.message


def test_gradients_say_of_what(grader, worker, reference):
    wrong = "def forward(self, x):\n    return x @ self.weight.T.detach()\n"
    failed = by_id(grader.grade(with_function(reference, "Linear.forward", wrong), worker, tasks=["90.4"]))["90.4"]
    assert "gradient of the weight" in failed.message


def test_a_file_that_cannot_be_loaded(grader, worker, reference):
    report = grader.grade("x = 1\n" + reference + "\n1 / 0\n", worker)
    failed = by_id(report)["90.1"]
    assert report.score == 0 and failed.message.startswith("the file cannot be loaded: ZeroDivisionError")
    assert failed.line == len(reference.splitlines()) + 3


def test_a_missing_function_is_named(grader, worker, reference):
    report = grader.grade(reference.replace("def merge_heads", "def merge_head"), worker)
    assert [task.score for task in report.tasks] == [2, 3, 0, 1]
    assert "no merge_heads (task 90.3); keep the names of the skeleton" in by_id(report)["90.3"].message


def test_a_function_may_use_the_learners_own_but_not_the_answer(grader, worker, reference, stub):
    """90.2's reference does without 90.3, so the worker's library has a hole there; the learner's own is used."""
    using = "def attention_weights(query, key, mask=None):\n    return merge_heads(query)\n"
    own = with_function(reference, "attention_weights", using)
    assert "the weights has shape (4, 16)" in by_id(grader.grade(own, worker, tasks=["90.2"]))["90.2"].message
    looking = using.replace("merge_heads(", "attention_module.merge_heads(")
    looking = "from minillm.nn import attention as attention_module\n" + with_function(
        reference, "attention_weights", looking
    )
    message = by_id(grader.grade(looking, worker, tasks=["90.2"]))["90.2"].message
    assert "the function of task 90.3 is not available when task 90.2 is tested" in message


def test_output_is_shown_without_and_hidden_with_a_secret(clone, worker, reference):
    printing = "print('loading')\n" + reference
    with Grader("90", root=clone) as grader:
        assert by_id(grader.grade(printing, worker, tasks=["90.1"]))["90.1"].output == "loading"
    with Grader("90", secret="s", root=clone) as grader:
        assert by_id(grader.grade(printing, worker, tasks=["90.1"]))["90.1"].output == ""


def test_reports_are_the_same_every_time(clone, worker, reference):
    wrong = with_function(reference, "attention_weights", LATE_MASK)
    reports = []
    for _ in range(2):
        with Grader("90", secret="course", root=clone) as grader:
            reports.append(without_times(grader.grade(wrong, worker, "ada")))
    assert reports[0] == reports[1] and reports[0]["n_hidden_seeds"] == 2


def test_hidden_seeds_depend_on_secret_submission_and_task(clone):
    with Grader("90", secret="a", root=clone) as one, Grader("90", secret="b", root=clone) as other:
        first, second = one.chapter.tasks[:2]
        drawn = [one.seeds_of(first, "ada"), one.seeds_of(first, "bob"), one.seeds_of(second, "ada")]
        drawn.append(other.seeds_of(first, "ada"))
        assert all(seeds[0] == 0 and len(seeds) == 3 for seeds in drawn)
        assert len({seed for seeds in drawn for seed in seeds[1:]}) == 8
        assert one.seeds_of(first, "ada") == drawn[0]


def test_a_function_that_knows_the_visible_cases_fails_the_hidden_ones(clone, worker, reference):
    """It stores nothing but behaves well only for inputs of seed 0, told by their sum."""
    with Grader("90", root=clone) as grader:
        printing = "def merge_heads(x):\n    print(float(x.sum()))\n    return x.transpose(-3, -2).flatten(-2)\n"
        seen = by_id(grader.grade(with_function(reference, "merge_heads", printing), worker, tasks=["90.3"]))["90.3"]
    knowing = printing.replace("print(float(x.sum()))", f"x = x if float(x.sum()) == {seen.output} else 0 * x")
    for secret, status in ((None, "passed"), ("course", "failed")):
        with Grader("90", secret=secret, root=clone) as grader:
            report = grader.grade(with_function(reference, "merge_heads", knowing), worker, tasks=["90.3"])
        assert by_id(report)["90.3"].status == status
    assert "of other random numbers" in by_id(report)["90.3"].message


def test_the_report_is_written_after_every_task(grader, worker, reference, tmp_path, monkeypatch):
    out, seen = tmp_path / "report.json", []
    original = grading.Report.write
    monkeypatch.setattr(
        grading.Report, "write", lambda self, path: (original(self, path), seen.append(json.loads(path.read_text())))
    )
    grader.grade(reference, worker, out=out)
    assert [len(content["tasks"]) for content in seen] == [1, 2, 3, 4]
    assert [content["complete"] for content in seen] == [False, False, False, True]
    assert seen[-1]["schema"] == 1 and seen[-1]["score"] == 7 and list(tmp_path.iterdir()) == [out]
    fields = {"id", "points", "score", "status", "message", "failures", "line", "seconds", "output"}
    assert set(seen[-1]["tasks"][0]) == fields


def test_a_slow_reference_means_more_time(clone, worker, reference, monkeypatch):
    slow = "def merge_heads(x):\n    import time\n    time.sleep(1.3)\n    return x.transpose(-3, -2).flatten(-2)\n"
    with Grader("90", limits=Limits(cpu_seconds=1, wall_factor=1.0), root=clone) as grader:
        file = with_function(reference, "merge_heads", slow)
        assert by_id(grader.grade(file, worker, tasks=["90.3"]))["90.3"].status == "timeout"
        monkeypatch.setitem(grader._reference_seconds, "90.3", 1.0)
        assert by_id(grader.grade(file, worker, tasks=["90.3"]))["90.3"].status == "passed"


def test_the_references_time_is_measured(grader, small):
    assert 0 < grader.reference_seconds(small.task("90.2")) < 5


def test_unknown_tasks_are_refused(grader, worker, reference):
    with pytest.raises(ConfigError, match="no task '90.7'"):
        grader.grade(reference, worker, tasks=["90.7"])


def test_one_file_by_its_path(clone, reference, tmp_path):
    file = tmp_path / "ada.py"
    with pytest.raises(DataError, match="no file"):
        grade("90", file, root=clone)
    file.write_bytes(b"\xff\xfe")
    report = grade("90", file, root=clone, out=tmp_path / "report.json")
    assert report.submission == "ada.py" and report.score == 0 and report.complete
    assert "not UTF-8" in json.loads((tmp_path / "report.json").read_text())["tasks"][0]["message"]


@pytest.mark.slow
def test_a_class_is_graded_into_one_table(clone, reference, stub, tmp_path):
    folder = tmp_path / "class"
    for name in ("cy", "=bob()"):
        (folder / name).mkdir(parents=True)
        (folder / name / "exercise.py").write_text(stub)
    (folder / "ada.py").write_text(reference)
    (folder / "dee.py").write_bytes(b"\xff")
    (folder / "eve.py").write_text("import os\n" + f"print(os.listdir({str(folder)!r}))\n" + reference)
    limits, reports = Limits(cpu_seconds=10), tmp_path / "reports"
    graded = grade_class("90", folder, tmp_path / "class.csv", "s", reports=reports, limits=limits, root=clone)
    with open(tmp_path / "class.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["submission", "score", "points", "90.1", "90.2", "90.3", "90.4", "note"]
    assert [row[:3] for row in rows[1:]] == [
        ["'=bob()", "0", "7"],
        ["ada", "7", "7"],
        ["cy", "0", "7"],
        ["dee", "0", "7"],
        ["eve", "7", "7"],
    ]
    assert "90.1 not_implemented" in rows[3][-1] and [report.score for report in graded] == [0, 7, 0, 0, 7]
    assert sorted(path.stem for path in reports.iterdir()) == ["=bob()", "ada", "cy", "dee", "eve"]


def test_submissions_are_found_or_missed(tmp_path):
    with pytest.raises(DataError, match="holds no submissions"):
        submissions_in(tmp_path)
    with pytest.raises(DataError, match="holds no submissions"):
        submissions_in(tmp_path / "nowhere")


def test_submissions_have_a_size(tmp_path):
    (tmp_path / "a.py").write_text("#" * (grading.MAX_SOURCE_BYTES + 1))
    with pytest.raises(DataError, match="at most"):
        read_submission(tmp_path / "a.py")
    with pytest.raises(DataError, match="cannot be read"):
        read_submission(tmp_path / "b.py")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def test_x(impl): pass", "test_x belongs to no task"),
        ("@task('91.1')\ndef test_x(impl): pass", "test_x belongs to no task"),
        ("@task('90.1')\ndef test_x(impl, tmp_path): pass", "test_x may only take impl and rng"),
        ("@task('90.1')\ndef test_x(impl): pass", "no test for task 90.2, 90.3, 90.4"),
    ],
)
def test_graders_are_checked(small, tmp_path, text, says):
    file = tmp_path / "test_90_small.py"
    file.write_text("from minillm.course.grader import task\n" + text)
    with pytest.raises(CourseError, match=says):
        read_checks(small, file)
    with pytest.raises(CourseError, match="is missing"):
        read_checks(small, tmp_path / "nothing.py")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RaisedThere(["NotImplementedError"], "task 90.1", 4), "not_implemented", "task 90.1 is not written yet"),
        (RaisedThere(["NotImplementedError"], "later", 4), "failed", "t: NotImplementedError: later (line 4: )"),
        (RaisedThere(["KeyError", "Exception"], "3"), "failed", "t: KeyError: 3"),
        (Ended("timeout", "no answer"), "timeout", "t: no answer"),
        (AssertionError("no"), "failed", "t: no"),
        (TypeError("no tensor"), "failed", "t: the test cannot use the answer (TypeError: no tensor)"),
    ],
)
def test_failures_become_words(small, error, status, message):
    result = TaskResult("90.1", 2)
    note_failure(result, small.task("90.1"), "t", error)
    assert (result.status, result.message, result.failures) == (status, message, [message])


def test_a_learners_text_cannot_command_a_terminal_or_a_log():
    text, plain = "a\x1b[2J\x07b\n  ::error::x\n##[debug]y\na::b\tc", "a?[2J?b\n  : :error::x\n## [debug]y\na::b\tc"
    assert plain_text(text) == plain


def test_the_table_for_learners(grader, worker, stub):
    lines = list(table(grader.grade(stub, worker, tasks=["90.1"])))
    assert lines[0] == "  90.1  0/2  not implemented" and lines[-1] == "points  0/2"
    assert "is not written yet" in lines[1] and "see line" in lines[2]


@pytest.mark.slow
def test_pytest_says_the_same(reference, tmp_path):
    """The real chapter 08 under pytest, on the library and on a learner's file with one mistake."""
    from minillm.course.chapter import read_chapter
    from minillm.course.skeleton import reference_file

    chapter = read_chapter("08")
    weights = next(task for task in chapter.tasks if task.name == "attention_weights")
    (tmp_path / "mine.py").write_text(with_function(reference_file(chapter), "attention_weights", LATE_MASK))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/graders/test_08_attention.py"]
    library = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert library.returncode == 0 and f"points  {chapter.points}/{chapter.points}" in library.stdout
    mine = subprocess.run([*words, f"--solution={tmp_path / 'mine.py'}"], cwd=ROOT, capture_output=True, text=True)
    assert mine.returncode == 1 and f"points  {chapter.points - weights.points}/{chapter.points}" in mine.stdout
    assert f"task {weights.id}: " in mine.stdout and "Traceback" not in mine.stdout


def test_graders_in_several_threads_share_one_working_folder_in_turn(clone, monkeypatch):
    where, seen = os.getcwd(), []

    def slow_checks(*_):
        seen.append(os.getcwd())
        time.sleep(0.05)
        assert os.getcwd() == seen[-1]

    monkeypatch.setattr(grading, "run_checks", slow_checks)
    with ExitStack() as opened, ThreadPoolExecutor(4) as pool:
        graders = [opened.enter_context(Grader("90", root=clone)) for _ in range(4)]
        list(pool.map(lambda grader: grader.reference_seconds(grader.chapter.tasks[0]), graders))
    assert len(set(seen)) == 4 and os.getcwd() == where
