"""Fixtures of the graders: `impl` is the library, or the file given by `--solution`; `rng` is fresh for every case.

With `--solution` each task's tests share a program in a worker process, as in `minillm course grade`.
"""

import re
from pathlib import Path

import pytest

from minillm.course.chapter import read_chapter
from minillm.course.grader import case_rng, grading
from minillm.course.grading import Grader, read_submission
from minillm.course.proxy import Ended, RaisedThere, library_impl

POINTS = pytest.StashKey()  # chapter number -> (chapter, {task id: whether all of its tests have passed})


def read_chapter_of(path):
    return read_chapter(re.match(r"test_(\d\d)_", path.name)[1])


def pytest_generate_tests(metafunc):
    marked = grading(metafunc.function)
    if "rng" in metafunc.fixturenames:
        cases = marked.cases if marked else 1
        metafunc.parametrize("rng", range(cases), indirect=True, ids=[f"case{n}" for n in range(1, cases + 1)])


@pytest.fixture
def rng(request):
    return case_rng(0, request.function.__name__, request.param)


@pytest.fixture(scope="module")
def chapter(request):
    return read_chapter_of(request.path)


class Solution:
    """A learner's file and the programs that run it, one for each task."""

    def __init__(self, chapter, file):
        from minillm.course.remote import Worker

        self.source = read_submission(file)
        self.grader, self.worker = Grader(chapter), Worker()
        self.task_id, self.program, self.error = None, None, None

    def impl(self, task_id):
        """What stands for the file in the tests of this task; the error of a file that cannot be loaded, every time."""
        if task_id != self.task_id or (self.program is not None and self.program.ended):
            self.close_program()
            self.task_id = task_id
            try:
                self.program = self.grader.program(self.source, self.worker, self.grader.chapter.task(task_id))
            except (RaisedThere, Ended) as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.grader.impl(self.program)

    def close_program(self):
        if self.program is not None:
            self.program.close()
        self.program = self.error = None

    def close(self):
        self.close_program()
        self.worker.close()
        self.grader.close()


@pytest.fixture(scope="module")
def solution(request, chapter):
    file = request.config.getoption("--solution")
    if file is None:
        yield None
        return
    opened = Solution(chapter, Path(file))
    yield opened
    opened.close()


@pytest.fixture
def impl(request, chapter, solution, tmp_path, monkeypatch):
    if solution is not None:
        return solution.impl(grading(request.function).task_id)
    monkeypatch.chdir(tmp_path)
    return library_impl(chapter)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marked = grading(getattr(item, "function", None))
    if marked is None or (report.when != "call" and report.passed):
        return
    if report.failed and item.config.getoption("--solution") and call.excinfo.errisinstance(
        (AssertionError, RaisedThere, Ended)
    ):
        report.longrepr = f"task {marked.task_id}: {call.excinfo.value}"  # the learner's file is not in the traceback
    points = item.config.stash.setdefault(POINTS, {})
    chapter, passed = points.setdefault(item.path.name, (read_chapter_of(item.path), {}))
    passed[marked.task_id] = report.passed and passed.get(marked.task_id, True)


def pytest_terminal_summary(terminalreporter, config):
    for chapter, passed in config.stash.get(POINTS, {}).values():
        terminalreporter.section(f"points of chapter {chapter.number}: {chapter.title}")
        scores = {task.id: task.points * passed[task.id] for task in chapter.tasks if task.id in passed}
        for task in chapter.tasks:
            if task.id in passed:
                terminalreporter.write_line(f"{task.id:>6}  {scores[task.id]}/{task.points}  {task.name}")
        total = sum(task.points for task in chapter.tasks if task.id in passed)
        terminalreporter.write_line(f"{'points':>6}  {sum(scores.values())}/{total}")
