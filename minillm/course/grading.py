"""Grading: the trusted tests run here, the learner's file in a `remote.Worker`; a report is kept as it grows."""

import compileall
import csv
import hashlib
import hmac
import importlib
import importlib.util
import inspect
import json
import os
import py_compile
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from minillm.course.chapter import CourseChapter, Task, read_chapter
from minillm.course.grader import Grading, case_rng, grading
from minillm.course.proxy import Ended, GraderError, Impl, RaisedThere, World, library_impl, library_objects, names_of
from minillm.course.remote import Limits, Program, Worker
from minillm.course.stripped import is_hole, stripped_copy, uses
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError, DataError

SCHEMA = 1
MAX_SOURCE_BYTES = 1 << 20
N_HIDDEN_SEEDS = 2
ONE_FOLDER = threading.Lock()  # a process has one working folder, however many graders and threads it has


@dataclass(frozen=True)
class Check:
    """One test function of a grader."""

    name: str
    title: str
    run: Callable[..., None]
    grading: Grading


@dataclass
class TaskResult:
    """How one task went.

    Args:
        id: the task.
        points: what it is worth.
        score: all of its points or 0.
        status: passed, failed, not_implemented, timeout or crashed.
        message: what went wrong first: which test and case, what was expected.
        failures: the same for every test that failed, each with its first bad case.
        line: the line in the learner's file where an exception passed, or None.
        seconds: time the learner's program took.
        output: the beginning of what the program printed; empty when seeds are hidden.
    """

    id: str
    points: int
    score: int = 0
    status: str = "passed"
    message: str = ""
    failures: list[str] = field(default_factory=list)
    line: int | None = None
    seconds: float = 0.0
    output: str = ""


@dataclass
class Report:
    """The results of one submission.

    Args:
        chapter: two digits.
        title: the chapter's.
        submission: whose it is: a file's name unless something else was said.
        seeds: the visible ones.
        n_hidden_seeds: how many more there were.
        commit: of the clone that graded; empty if it is none.
        n_tasks: how many there will be.
        protection: what the operating system kept from the program, see `worker.py`.
        tasks: those graded so far.
    """

    chapter: str
    title: str
    submission: str
    seeds: list[int]
    n_hidden_seeds: int
    commit: str
    n_tasks: int
    protection: list[str] = field(default_factory=list)
    tasks: list[TaskResult] = field(default_factory=list)

    @property
    def score(self) -> int:
        """Points reached."""
        return sum(task.score for task in self.tasks)

    @property
    def points(self) -> int:
        """Points of the tasks graded."""
        return sum(task.points for task in self.tasks)

    @property
    def complete(self) -> bool:
        """Whether every task has its result."""
        return len(self.tasks) == self.n_tasks

    def to_json(self) -> str:
        """The report as JSON; equal submissions and seeds give equal text but for the `seconds`."""
        content = {"schema": SCHEMA, **asdict(self), "score": self.score, "points": self.points}
        return json.dumps(content | {"complete": self.complete}, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON; the file is always whole, the old one or the new one."""
        write_whole(path, self.to_json())


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Grader:
    """What is needed to grade submissions of one chapter: its tests, and for each task a library without the answers.

    Args:
        chapter: which one; a number, a folder, or read already.
        seeds: every test runs once for each; seed 0 is the one that learners see.
        secret: the course's; makes more seeds, different for every submission, that nobody can guess. None: no more.
        limits: what a program may use.
        root: the clone with `chapters/` and `tests/graders/`.
        checks: the tests file; None finds it.
    """

    def __init__(
        self,
        chapter: CourseChapter | int | str | Path,
        seeds: Iterable[int] = (0,),
        secret: str | None = None,
        limits: Limits | None = None,
        root: Path = ROOT,
        checks: Path | None = None,
    ):
        self.chapter = chapter if isinstance(chapter, CourseChapter) else read_chapter(chapter, root)
        self.seeds, self.secret, self.limits = list(seeds), secret, limits or Limits()
        self.checks = read_checks(self.chapter, checks or checks_file(self.chapter, root))
        self.commit = commit_of(root)
        self._n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small tensors, and a worker per processor: more threads only wait for each other
        self._folder = tempfile.TemporaryDirectory(prefix="minillm-course-")
        os.chmod(self._folder.name, 0o755)  # libraries with holes; the child that reads them may have to be `nobody`
        self._lock = threading.Lock()
        self._objects = library_objects(self.chapter)
        self._libraries: dict[str, Path] = {}
        self._requests: dict[str, dict[str, Any]] = {}
        self._reference_seconds: dict[str, float] = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the libraries written for the tasks; torch has its threads again."""
        self._folder.cleanup()
        torch.set_num_threads(self._n_threads)

    def grade(
        self,
        source: str,
        worker: Worker,
        submission: str = "submission",
        tasks: Iterable[str] | None = None,
        out: Path | None = None,
    ) -> Report:
        """Grade one file.

        Args:
            source: its text.
            worker: where it runs.
            submission: a name; the hidden seeds depend on it.
            tasks: ids; None is all.
            out: where to write the report as JSON after every task.

        Raises:
            ConfigError: for a task that the chapter does not have.
        """
        chosen = list(self.chapter.tasks) if tasks is None else [self.chapter.task(task_id) for task_id in tasks]
        n_hidden = N_HIDDEN_SEEDS if self.secret else 0
        about = (self.chapter.number, self.chapter.title, submission, self.seeds, n_hidden, self.commit, len(chosen))
        worker.start()
        report = Report(*about, list(worker.protection))
        for task in chosen:
            report.tasks.append(self.grade_task(source, worker, task, submission))
            if out is not None:
                report.write(out)
        return report

    def grade_task(self, source: str, worker: Worker, task: Task, submission: str) -> TaskResult:
        """Run one task's tests on the learner's function; more time is given if the reference turns out to be slow."""
        seconds = self.limits.allowed_seconds(0.0)
        result = self._attempt(source, worker, task, submission, seconds)
        if result.status == "timeout":
            longer = self.limits.allowed_seconds(self.reference_seconds(task))
            if longer > seconds:
                result = self._attempt(source, worker, task, submission, longer)
        return result

    def _attempt(self, source: str, worker: Worker, task: Task, submission: str, cpu_seconds: int) -> TaskResult:
        result = TaskResult(task.id, task.points)
        try:
            program = self.program(source, worker, task, cpu_seconds)
        except (RaisedThere, Ended) as error:
            note_failure(result, task, "the file cannot be loaded", error)
            return result
        try:
            run_checks(self.checks[task.id], self.impl(program), self.seeds_of(task, submission), task, result)
        finally:
            program.close()
        result.seconds = round(program.seconds, 3)
        result.output = "" if self.secret else plain_text(program.output)
        result.score = task.points if result.status == "passed" else 0
        return result

    def program(self, source: str, worker: Worker, task: Task, cpu_seconds: int | None = None) -> Program:
        """The learner's file, loaded for one task.

        Args:
            source: its text.
            worker: where it runs.
            task: its function is the learner's; those it builds on are the library's.
            cpu_seconds: time for loading and all tests; None takes the least that `limits` allow.

        Raises:
            RaisedThere: what the file raised while it was loaded.
            Ended: if it ended or hung.
        """
        seconds = self.limits.allowed_seconds(0.0) if cpu_seconds is None else cpu_seconds
        with self._lock:  # Python 3.11's `ast` fails now and then in two threads at once
            library, request = self._library(task), {"source": source, **self._request(task)}
        return worker.program(library, request, seconds, self.limits)

    def _request(self, task: Task) -> dict[str, Any]:
        """What the worker is told of a task."""
        if task.id not in self._requests:
            self._requests[task.id] = {
                "task": task.id,
                "names": names_of(self.chapter),
                "own": self.holes(task),
                "places": [(other.id, other.module, other.name) for other in self.chapter.tasks],
                "cut": [other.id for other in self.chapter.tasks if is_hole(other, self.chapter.root)],
            }
        return self._requests[task.id]

    def impl(self, program: Program) -> Impl:
        """What the tests hold in their hand."""
        return Impl(World(self._objects, program.send))

    def seeds_of(self, task: Task, submission: str) -> list[int]:
        """The visible seeds, then the hidden ones."""
        if not self.secret:
            return self.seeds
        message = f"{self.chapter.number}/{task.id}/{submission}"
        digest = hmac.new(self.secret.encode(), message.encode(), hashlib.sha256).digest()
        return self.seeds + [int.from_bytes(digest[8 * n : 8 * n + 8], "big") for n in range(N_HIDDEN_SEEDS)]

    def holes(self, task: Task) -> list[str]:
        """The other tasks whose answers the tested function does not need, and therefore does not get."""
        needed = uses(self.chapter, task)
        for check in self.checks[task.id]:
            needed |= set(check.grading.needs)
            for other in check.grading.needs:
                needed |= uses(self.chapter, self.chapter.task(other))
        return [other.id for other in self.chapter.tasks if other.id != task.id and other.id not in needed]

    def library(self, task: Task) -> Path:
        """A folder with the library modules that the task needs, the task itself and the `holes` cut out."""
        with self._lock:
            return self._library(task)

    def _library(self, task: Task) -> Path:
        if task.id not in self._libraries:
            folder = Path(self._folder.name) / f"task-{task.id}"
            holes = [task, *(self.chapter.task(other) for other in self.holes(task))]
            modules = ["minillm.course.substitution", *names_of(self.chapter).values()]
            stripped_copy(folder, holes, modules, self.chapter.root)
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            compileall.compile_dir(folder, quiet=2, invalidation_mode=mode)
            self._libraries[task.id] = folder
        return self._libraries[task.id]

    def reference_seconds(self, task: Task) -> float:
        """How long the library's own function takes for the task's tests on this machine, measured once."""
        with self._lock:
            if task.id not in self._reference_seconds:
                with ONE_FOLDER, tempfile.TemporaryDirectory() as folder, chdir(folder):
                    begin = time.process_time()
                    run_checks(self.checks[task.id], library_impl(self.chapter), self.seeds[:1], task, None)
                    n_seeds = len(self.seeds) + (N_HIDDEN_SEEDS if self.secret else 0)
                    self._reference_seconds[task.id] = (time.process_time() - begin) * n_seeds
            return self._reference_seconds[task.id]


def grade(
    chapter: CourseChapter | int | str | Path,
    submission: str | Path,
    seeds: Iterable[int] = (0,),
    secret: str | None = None,
    tasks: Iterable[str] | None = None,
    name: str | None = None,
    out: Path | None = None,
    limits: Limits | None = None,
    root: Path = ROOT,
) -> Report:
    """Grade one submission; see `Grader` and `Grader.grade`.

    Args:
        chapter: which one.
        submission: the file's text, or its path.
        seeds: visible seeds.
        secret: for hidden seeds.
        tasks: ids; None is all.
        name: whose it is; the file's name if None.
        out: where to write the report after every task.
        limits: what the program may use.
        root: the clone.
    """
    if isinstance(submission, Path) and not submission.is_file():
        raise DataError(f"there is no file {submission} to grade")
    with Grader(chapter, seeds, secret, limits, root) as grader, Worker() as worker:
        if isinstance(submission, Path):
            return grade_readable(grader, submission, worker, name or submission.name, tasks, out)
        return grader.grade(submission, worker, name or "submission", tasks, out)


def grade_class(
    chapter: CourseChapter | int | str | Path,
    folder: Path,
    csv_path: Path,
    secret: str | None = None,
    seeds: Iterable[int] = (0,),
    reports: Path | None = None,
    limits: Limits | None = None,
    n_workers: int | None = None,
    root: Path = ROOT,
) -> list[Report]:
    """Grade every submission in a folder, several at a time.

    Args:
        chapter: which one.
        folder: holds `NAME.py` files, or folders NAME each with an `exercise.py`.
        csv_path: one line per submission: name, score, points, the score of each task, a note; whole at any time.
        secret: for hidden seeds.
        seeds: visible seeds.
        reports: a folder for one JSON per submission; None writes none.
        limits: what a program may use.
        n_workers: how many at a time; None takes one per processor.
        root: the clone.

    Returns:
        the reports, ordered by name.

    Raises:
        DataError: if the folder holds no submissions.
    """
    # what torch.autograd.grad imports when first called, parsing source: not while another thread parses (Python 3.11)
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    found = submissions_in(folder)
    done: dict[str, Report] = {}
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_workers = min(n_workers or n_processors, len(found))
    lock = threading.Lock()
    if reports is not None:
        reports.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> None:
        worker = workers.get()
        try:
            out = None if reports is None else reports / f"{name}.json"
            report = grade_readable(grader, found[name], worker, name, out=out)
        finally:
            workers.put(worker)
        with lock:
            done[name] = report
            write_csv(csv_path, grader.chapter, [done[key] for key in sorted(done)])

    with Grader(chapter, seeds, secret, limits, root) as grader:
        opened = [Worker((folder,)) for _ in range(n_workers)]
        for worker in opened:
            workers.put(worker)
        try:
            with ThreadPoolExecutor(n_workers) as pool:
                list(pool.map(one, sorted(found)))
        finally:
            for worker in opened:
                worker.close()
    return [done[name] for name in sorted(done)]


def grade_readable(
    grader: Grader,
    path: Path,
    worker: Worker,
    name: str,
    tasks: Iterable[str] | None = None,
    out: Path | None = None,
) -> Report:
    """Grade a file; one that cannot be read gets 0 points and a report that says why."""
    try:
        source = read_submission(path)
    except DataError as error:
        n_hidden = N_HIDDEN_SEEDS if grader.secret else 0
        about = (grader.chapter.number, grader.chapter.title, name, grader.seeds, n_hidden, grader.commit)
        tasks = [
            TaskResult(task.id, task.points, status="crashed", message=str(error), failures=[str(error)])
            for task in grader.chapter.tasks
        ]
        report = Report(*about, len(tasks), list(worker.protection), tasks)
        if out is not None:
            report.write(out)
        return report
    return grader.grade(source, worker, name, tasks, out)


def submissions_in(folder: Path) -> dict[str, Path]:
    """Name -> file, for `NAME.py` and `NAME/exercise.py`.

    Raises:
        DataError: if there are none.
    """
    files = {path.stem: path for path in folder.glob("*.py")} if folder.is_dir() else {}
    files |= {path.parent.name: path for path in folder.glob("*/exercise.py")} if folder.is_dir() else {}
    if not files:
        raise DataError(f"{folder} holds no submissions; expected files NAME.py or folders NAME with an exercise.py")
    return files


def read_submission(path: Path) -> str:
    """The text of a learner's file.

    Raises:
        DataError: if it is missing, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise DataError(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_SOURCE_BYTES} are graded")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def write_csv(path: Path, chapter: CourseChapter, reports: list[Report]) -> None:
    """One line per report; the first line names the columns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["submission", "score", "points", *(task.id for task in chapter.tasks), "note"])
        for report in reports:
            scores = {task.id: task.score for task in report.tasks}
            row = [scores.get(task.id, "") for task in chapter.tasks]
            wrong = [f"{task.id} {task.status}" for task in report.tasks if task.status != "passed"]
            writer.writerow([_cell(report.submission), report.score, chapter.points, *row, "; ".join(wrong)])
    os.replace(temporary, path)


def _cell(text: str) -> str:
    """A name that a spreadsheet will not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def run_checks(checks: list[Check], impl: Impl, seeds: list[int], task: Task, result: TaskResult | None) -> None:
    """Run tests until the program has ended or said that the task is not written; note failures in `result`.

    Without a `result` whatever happens is ignored (the time is what counts then).
    """
    for check in checks:
        for seed, case in [(seed, case) for seed in seeds for case in range(check.grading.cases)]:
            try:
                arguments = {"impl": impl, "rng": case_rng(seed, check.name, case)}
                check.run(**{name: arguments[name] for name in inspect.signature(check.run).parameters})
            except GraderError:
                raise
            except Exception as error:
                if result is None:
                    continue
                where = check.title if check.grading.cases * len(seeds) == 1 else f"{check.title}, case {case + 1}"
                note_failure(result, task, where if seed == seeds[0] else f"{where} of other random numbers", error)
                if isinstance(error, Ended) or result.status == "not_implemented":
                    return
                break


def note_failure(result: TaskResult, task: Task, where: str, error: Exception) -> None:
    """Add one failed test to a result; the first one decides status, message and line."""
    message, status, line = str(error), "failed", None
    if isinstance(error, Ended):
        status = error.status
    elif isinstance(error, RaisedThere):
        line, said = error.line, f"task {task.id}"
        if error.names[0] == "NotImplementedError" and error.message == said:
            status, where, message = "not_implemented", f"task {task.id}", "is not written yet"
        elif error.names[0] == "NotImplementedError" and error.message.startswith("task "):
            message = f"{error}; the function of {error.message} is not available when task {task.id} is tested"
    elif not isinstance(error, AssertionError):
        message = f"the test cannot use the answer ({type(error).__name__}: {message[:200]})"
    message = plain_text(message)
    text = f"{where} {message}" if status == "not_implemented" else f"{where}: {message}"
    if not result.failures:
        result.status, result.message, result.line = status, text, line
    elif isinstance(error, Ended):
        result.status = status
    result.failures.append(text)


def plain_text(text: str) -> str:
    """Text from a learner's program, without what a terminal or a CI log would take for a command."""
    lines = []
    for line in text.splitlines():
        line = "".join(c if c.isprintable() or c == "\t" else "?" for c in line).replace("##[", "## [")
        lines.append(line.replace("::", ": :", 1) if line.lstrip().startswith("::") else line)
    return "\n".join(lines)


def read_checks(chapter: CourseChapter, path: Path) -> dict[str, list[Check]]:
    """Task id -> its tests, in the order of the file.

    Raises:
        CourseError: no such file, a test of an unknown task or with other parameters than impl and rng, a task
            without a test.
    """
    if not path.is_file():
        raise CourseError(f"chapter {chapter.number} has no grader: {path} is missing")
    spec = importlib.util.spec_from_file_location(f"minillm_grader_{chapter.number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checks: dict[str, list[Check]] = {task.id: [] for task in chapter.tasks}
    for name, test in vars(module).items():
        marked = grading(test)
        if not name.startswith("test_") or not callable(test):
            continue
        if marked is None or marked.task_id not in checks:
            raise CourseError(f"{path.name}: {name} belongs to no task; mark it @task(...) with one of {list(checks)}")
        if not set(inspect.signature(test).parameters) <= {"impl", "rng"}:
            raise CourseError(f"{path.name}: {name} may only take impl and rng")
        title = name.removeprefix("test_").replace("_", " ")
        checks[marked.task_id].append(Check(name, title, test, marked))
    if empty := [task_id for task_id, tests in checks.items() if not tests]:
        raise CourseError(f"{path.name}: no test for task {', '.join(empty)}")
    return checks


def checks_file(chapter: CourseChapter, root: Path = ROOT) -> Path:
    """The grader's file of a chapter."""
    return root / "tests" / "graders" / f"test_{chapter.folder.name}.py"


def commit_of(root: Path) -> str:
    """The commit that is checked out; empty if it cannot be told."""
    try:
        words = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def table(report: Report) -> Iterator[str]:
    """The report as lines of text for a learner."""
    for task in report.tasks:
        yield f"{task.id:>6}  {task.score}/{task.points}  {task.status.replace('_', ' ')}"
        if task.status != "passed":
            yield f"        {task.message}"
            if task.line is not None:
                yield f"        see line {task.line} of your file"
    yield f"{'points':>6}  {report.score}/{report.points}"

