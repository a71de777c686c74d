"""Wrong answers: the mistakes that learners make, each as one function that must lose the points of exactly its tasks.

`chapters/NN/wrong.py` is source and is never run. Its names resolve in the exercise file, into whose reference version
each function is put in place of the right one:

    @wrong("8.2", "mask after softmax")
    def attention_weights(query, key, mask=None):
        ...
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from minillm.course.chapter import CourseChapter, Task
from minillm.course.skeleton import with_function
from minillm.course.source import shifted
from minillm.errors import DataError

Function = TypeVar("Function", bound=Callable)
FEWEST = 3


def wrong(*tasks_and_reason: str) -> Callable[[Function], Function]:
    """Mark a function as a wrong answer.

    Args:
        tasks_and_reason: ids of the tasks it must fail, the first being the one whose function it replaces; the last
            string says what is wrong with it.

    Returns:
        a decorator that leaves the function as it is: the mark is read from the source.

    Raises:
        DataError: if there is not at least one task and a reason.
    """
    if len(tasks_and_reason) < 2 or not all(isinstance(text, str) and text for text in tasks_and_reason):
        raise DataError(f'wrong{tasks_and_reason} must name a task and say what is wrong: @wrong("8.2", "no mask")')
    return lambda function: function


@dataclass(frozen=True)
class WrongAnswer:
    """One wrong answer.

    Args:
        task: the task whose function it is.
        fails: ids of all tasks that it must fail.
        reason: what is wrong.
        line: where it stands in wrong.py.
        source: the function without the mark; decorators below the mark are kept.
    """

    task: Task
    fails: frozenset[str]
    reason: str
    line: int
    source: str

    def submission(self, reference: str) -> str:
        """The reference submission with this function in it.

        Args:
            reference: what `skeleton.reference_file` gives.
        """
        return with_function(reference, self.task.name, self.source)


def read_wrong_answers(chapter: CourseChapter) -> list[WrongAnswer]:
    """All wrong answers of a chapter, in the order of its `wrong.py`, which is parsed and not executed.

    Raises:
        DataError: if there is no such file, it is not Python, holds anything but imports and marked functions, names an
            unknown task, or a function is called otherwise than the object of its first task; or if one is there twice.
    """
    path = chapter.folder / "wrong.py"
    try:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except FileNotFoundError as error:
        raise DataError(f"there is no {path}: a chapter needs {FEWEST} wrong answers for each task") from error
    except (SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not Python: {error}") from error
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found.append(_wrong_answer(chapter, node, text, f"{path}, line {node.lineno}"))
        elif not _harmless(node):
            raise DataError(f"{path}, line {node.lineno}: expected imports and functions marked by @wrong only")
    known: dict[tuple[str, str], int] = {}
    for answer in found:
        same = known.setdefault((answer.task.id, ast.unparse(ast.parse(answer.source))), answer.line)
        if same != answer.line:
            raise DataError(f"{path}: the functions of lines {same} and {answer.line} are the same answer")
    return found


def too_few(chapter: CourseChapter, answers: list[WrongAnswer]) -> dict[str, int]:
    """Tasks with fewer than three wrong answers of their own, and how many they have."""
    counts = {task.id: sum(answer.task.id == task.id for answer in answers) for task in chapter.tasks}
    return {task: count for task, count in counts.items() if count < FEWEST}


def _harmless(node: ast.stmt) -> bool:
    """A docstring or an import."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom)


def _wrong_answer(chapter: CourseChapter, node: ast.FunctionDef, text: str, where: str) -> WrongAnswer:
    mark = node.decorator_list[0] if node.decorator_list else None
    marked = isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "wrong"
    if not marked or mark.keywords or not all(isinstance(argument, ast.Constant) for argument in mark.args):
        raise DataError(f'{where}: {node.name} lacks its first decorator @wrong("task", "what is wrong")')
    *ids, reason = [argument.value for argument in mark.args]
    wrong(*ids, reason)
    tasks = {task.id: task for task in chapter.tasks}
    if unknown := [each for each in ids if each not in tasks]:
        raise DataError(f"{where}: unknown tasks {unknown}; chapter {chapter.number} has {list(tasks)}")
    task = tasks[ids[0]]
    if node.name != task.name.rpartition(".")[2]:
        raise DataError(f"{where}: {node.name} cannot stand in for {task.name}, the object of task {task.id}")
    first = node.decorator_list[1].lineno if len(node.decorator_list) > 1 else node.lineno
    source = "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])
    return WrongAnswer(task, frozenset(ids), reason, node.lineno, shifted(source, "", ""))
