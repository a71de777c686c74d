"""Many variants of a submission against a chapter's graders, fast: a fork of this warm process for each.

For faults that we plant ourselves (mutants, wrong answers), so nothing here is a boundary against a hostile program:
that is the worker's business. A fork inherits torch, the library and the graders, and ends with the first failing test.
"""

import contextlib
import importlib
import inspect
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.course.grader import case_rng
from minillm.course.grading import Grader
from minillm.course.proxy import Send, names_of
from minillm.course.substitution import graded_session

FIRST_LIMIT_SECONDS = 60.0
SHORTEST_LIMIT_SECONDS = 3.0
PATIENCE = 15  # times as long as the reference
MORE_MEMORY_BYTES = 4 << 30  # beyond what the process has when it is forked
READ_BYTES = 1 << 16
STATM = Path("/proc/self/statm")  # the first number is the size of the process in pages


@dataclass(frozen=True)
class Trial:
    """A submission, the task whose tests it is given to, and the name by which a report calls it."""

    name: str
    text: str
    task_id: str
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """How a trial went.

    Args:
        trial: what was tried.
        passed: whether every test of the task passed.
        message: why not.
        seconds: how long it took.
        loaded: modules that were imported on the way.
    """

    trial: Trial
    passed: bool
    message: str
    seconds: float
    loaded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Here:
    """A program in this very process."""

    send: Send


class Trials:
    """The tests of a chapter, ready to be run on many submissions.

    Args:
        grader: has the chapter, its tests, and knows what a submission keeps for itself.
    """

    def __init__(self, grader: Grader) -> None:
        self.grader, self.chapter = grader, grader.chapter
        self.limits: dict[str, float] = {}

    def measure(self, reference: str, jobs: int = 1) -> list[Verdict]:
        """Give the reference to every task; from its times follow the limits of all others.

        What the tests import on their way is imported here too, so that the forks that follow find it.
        """
        tasks = [task.id for task in self.chapter.tasks]
        self.limits = dict.fromkeys(tasks, FIRST_LIMIT_SECONDS)
        verdicts = list(self.run([Trial("the reference", reference, task) for task in tasks], jobs))
        for verdict in verdicts:
            self.limits[verdict.trial.task_id] = max(SHORTEST_LIMIT_SECONDS, PATIENCE * verdict.seconds)
            for name in verdict.loaded:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        return verdicts

    def run(self, trials: Sequence[Trial], jobs: int = 2) -> Iterator[Verdict]:
        """Run all trials, `jobs` at a time; verdicts come in the order of the trials."""
        waiting, running = deque(enumerate(trials)), {}
        done: dict[int, Verdict] = {}
        following = 0
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    number, trial = waiting.popleft()
                    child = Child(self, trial, self.limits[trial.task_id])
                    running[child.pipe] = (number, child)
                first_deadline = min(child.deadline for _, child in running.values())
                ready, _, _ = select.select(list(running), [], [], max(0.0, first_deadline - time.monotonic()))
                for pipe, (number, child) in list(running.items()):
                    if pipe in ready and child.read() or time.monotonic() > child.deadline:
                        del running[pipe]
                        done[number] = child.verdict()
                while following in done:
                    yield done.pop(following)
                    following += 1
        finally:
            for _, child in running.values():
                child.verdict()

    def first_failure(self, trial: Trial) -> str | None:
        """What the first failing test says of a submission, in this very process, which is spoiled afterwards."""
        task, names = self.chapter.task(trial.task_id), names_of(self.chapter)
        places = [(each.id, each.module, each.name) for each in self.chapter.tasks]
        request = {"source": trial.text, "places": places, "task": task.id, "own": self.grader.holes(task)}
        try:
            impl = self.grader.impl(Here(graded_session(request | {"names": names}).answer))
            for check in self.grader.checks[task.id]:
                for case in range(check.grading.cases):
                    fixtures = {"impl": impl, "rng": case_rng(trial.seed, check.name, case)}
                    check.run(**{name: fixtures[name] for name in inspect.signature(check.run).parameters})
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return None


class Child:
    """A fork that runs one trial and writes its verdict into a pipe."""

    def __init__(self, trials: Trials, trial: Trial, limit_seconds: float) -> None:
        self.trial, self.started = trial, time.monotonic()
        self.limit_seconds, self.deadline = limit_seconds, self.started + limit_seconds
        self.received, self.folder = b"", tempfile.TemporaryDirectory(prefix="minillm-trial-")
        self.pipe, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                _enter(self.folder.name, limit_seconds)
                before = set(sys.modules)
                message = trials.first_failure(trial)
                _write(writer, json.dumps([message is None, (message or "")[:2000], new_modules(before)]).encode())
            finally:
                os._exit(0)
        os.close(writer)

    def read(self) -> bool:
        """Take what has come; whether it was the end."""
        part = os.read(self.pipe, READ_BYTES)
        self.received += part
        return not part

    def verdict(self) -> Verdict:
        """End the child and say how it went."""
        seconds = time.monotonic() - self.started
        late = time.monotonic() > self.deadline
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)
        self.folder.cleanup()
        try:
            passed, message, loaded = json.loads(self.received)
        except ValueError:
            passed, loaded = False, ()
            message = f"no answer in {self.limit_seconds:.1f} s" if late else "the process ended without an answer"
        return Verdict(self.trial, passed, message, seconds, tuple(loaded))


def new_modules(before: set[str]) -> list[str]:
    """What was imported since, without what has no file to import it from again."""
    return [name for name, module in sys.modules.items() if name not in before and getattr(module, "__spec__", None)]


def _write(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _enter(folder: str, limit_seconds: float) -> None:
    """Make the fork harmless: its own process group and folder, no output, bounded time and memory."""
    os.setsid()
    torch.set_num_threads(1)  # those of the parent are not here
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    seconds = int(limit_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if STATM.exists():  # on Linux; elsewhere the limit on time must do
        size = int(STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY_BYTES,) * 2)
