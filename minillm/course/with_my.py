"""A learner's functions in the library itself, so that "it passes" becomes "my model talks".

Only functions that pass their visible tests take the library's place; their calls are counted, so that it can be said
afterwards which of them the run really used.
"""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch

from minillm.course.chapter import Task
from minillm.course.grading import Grader, read_submission
from minillm.course.learner import Homework, homework, read_file, shown
from minillm.course.remote import Worker
from minillm.course.substitution import Place, Substitution, load_solution
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError


@dataclass
class MyFunctions:
    """What of a learner's work is in place.

    Args:
        passed: tasks whose functions are the learner's now.
        failed: tasks that do not pass, so that the library's functions stay.
        calls: task id -> how often the learner's function was called.
    """

    passed: list[Task] = field(default_factory=list)
    failed: list[Task] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def report(self) -> Iterator[str]:
        """Lines that say which functions were used how often."""
        used = [f"{task.name} ({self.calls[task.id]:,})" for task in self.passed if self.calls[task.id]]
        idle = [task.name for task in self.passed if not self.calls[task.id]]
        yield "your functions and how often they were called: " + (", ".join(used) or "none")
        if idle:
            yield f"in place, but this run had no use for them: {', '.join(idle)}"


@contextmanager
def my_functions(numbers: Iterable[str], folder: Path | None = None, root: Path = ROOT) -> Iterator[MyFunctions]:
    """Put the passing functions of some chapters' homework in the library's place until the block ends.

    Fast twins of these functions in the library give way too: see `TWINS`.

    Args:
        numbers: of the chapters.
        folder: where the homework is; None is `homework/` in the clone.
        root: the clone.

    Raises:
        CourseError: if a chapter was not begun or none of its tasks passes.
    """
    works = [homework(number, folder, root) for number in dict.fromkeys(numbers)]
    mine, undo = MyFunctions(), []
    with Worker() as worker:
        passed = {work: passing(work, worker) for work in works}
    try:
        for work in works:
            _put_in_place(work, passed[work], mine, undo)
        yield mine
    finally:
        while undo:
            undo.pop()()


def passing(work: Homework, worker: Worker) -> set[str]:
    """The ids of the tasks whose visible tests pass.

    Raises:
        CourseError: if the chapter was not begun, or none passes.
    """
    read_file(work)
    with Grader(work.chapter, root=work.chapter.root) as grader:
        report = grader.grade(read_submission(work.file), worker)
    passed = {result.id for result in report.tasks if result.status == "passed"}
    if not passed:
        number = work.chapter.number
        raise CourseError(f"no task in {shown(work.file)} passes yet; see: minillm course test {number}")
    return passed


def _put_in_place(work: Homework, passed: set[str], mine: MyFunctions, undo: list[Callable[[], None]]) -> None:
    places = [Place(task.id, task.module, task.name) for task in work.chapter.tasks]
    name = f"homework_{work.chapter.number}"
    solution = load_solution(read_submission(work.file), str(work.file), name)
    undo.append(lambda: sys.modules.pop(name, None))
    for place in places:
        if place.task_id in passed:
            count_calls(solution, place, mine.calls)
    substitution = Substitution(solution, places, passed)
    undo.append(substitution.restore)
    for task in work.chapter.tasks:
        (mine.passed if task.id in passed else mine.failed).append(task)
        if task.id in passed and task.object in TWINS:
            undo.append(TWINS[task.object]())


def count_calls(solution: ModuleType, place: Place, calls: Counter[str]) -> None:
    """Wrap a learner's function so that its calls are counted; properties and the like are left alone."""
    owner = vars(solution)[place.top] if place.method else solution
    function = vars(owner)[place.method or place.top]
    if not inspect.isfunction(function):
        return

    @functools.wraps(function)
    def counted(*args, **kwargs):
        calls[place.task_id] += 1
        return function(*args, **kwargs)

    setattr(owner, place.method or place.top, counted)


def _readable_adamw() -> Callable[[], None]:
    """Let the AdamW optimizer call `adamw_step` for each parameter, in place of its passes over slices of memory."""
    from minillm.train import optim

    def by_formula(tensors: list[list[torch.Tensor]], step: int, group: dict) -> None:
        settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        for parameter, gradient, exp_avg, exp_avg_sq in tensors:
            new = optim.adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, **settings)
            for old, value in zip((parameter, exp_avg, exp_avg_sq), new, strict=True):
                old.copy_(value)

    return _replaced(optim, "adamw_in_slices", by_formula)


def _readable_merges() -> Callable[[], None]:
    """Let the BPE tokenizer learn its merges with the plain trainer, in place of the one that keeps an index."""
    from minillm.tokenizers import bpe, bpe_naive

    return _replaced(bpe, "train_merges", bpe_naive.train_merges)


def _replaced(module: ModuleType, name: str, new: Callable) -> Callable[[], None]:
    """Set a module's function; returns what puts the old one back."""
    old = getattr(module, name)
    setattr(module, name, new)
    return lambda: setattr(module, name, old)


# Where the library runs a fast version of a task's function, that one must give way, or the learner's is never called.
TWINS = {
    "minillm.train.optim:adamw_step": _readable_adamw,
    "minillm.tokenizers.bpe_naive:train_merges": _readable_merges,
}
