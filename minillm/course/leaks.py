"""Whether a text for learners contains statements of the answers."""

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache

from minillm.course.chapter import CourseChapter, split_object
from minillm.course.source import Definition, find, parse, read_module

TRIVIAL = 8  # a statement of fewer syntax nodes (names, numbers, calls) gives nothing away
SMALL = 5  # but several small ones together may


def leaks(chapter: CourseChapter, text: str) -> list[str]:
    """Statements of cut bodies that a text for learners contains: whole statements, whatever their layout and comments.

    Statements too small to give anything away, and those of starters, do not count.

    Args:
        chapter: whose answers are looked for.
        text: Python source that a learner gets.

    Returns:
        One line for each: "line 12: scores = ... (task 8.1)"; empty if nothing leaks.
    """
    secret = secrets(chapter)
    found = []
    for node in ast.walk(parse(text, "the learner's file")):
        if isinstance(node, ast.stmt) and (statement := normalised(node)) in secret:
            found.append(f"line {node.lineno}: {statement} ({secret[statement]})")
    return found


def secrets(chapter: CourseChapter, smallest: int = TRIVIAL) -> dict[str, str]:
    """Statement of a cut or removed body -> whose it is; statements of fewer syntax nodes are left out."""
    found: dict[str, str] = {}
    for task in chapter.tasks:
        started = {normalised(node) for node in ast.walk(parse(task.starter)) if isinstance(node, ast.stmt)}
        for module, name in ((task.module, task.name), *(split_object(name, "remove") for name in task.remove)):
            node = find(read_module(module, chapter.root), name, module).node
            for statement in body_statements(node, smallest):
                if statement not in started:
                    found.setdefault(statement, f"task {task.id}")
    return found


def body_statements(node: Definition, smallest: int) -> Iterator[str]:
    """The normalised statements of a body that could give something away."""
    documented = ast.get_docstring(node, clean=False) is not None
    for statement in node.body[1 if documented else 0 :]:
        for part in ast.walk(statement):
            if isinstance(part, ast.stmt) and not _is_trivial(part, smallest):
                yield normalised(part)


def normalised(node: ast.stmt) -> str:
    """A simple statement whole, a compound one by its head, in one layout."""
    return ast.unparse(node).partition("\n")[0] if hasattr(node, "body") else ast.unparse(node)


def _is_trivial(node: ast.stmt, smallest: int) -> bool:
    if isinstance(node, Definition | ast.Raise | ast.Import | ast.ImportFrom | ast.Try):
        return True
    limit = 2 * smallest if hasattr(node, "body") else smallest  # many loops begin alike
    if hasattr(node, "body"):
        node = parse(normalised(node) + " pass").body[0] if not isinstance(node, ast.Match) else ast.Pass()
    if isinstance(node, ast.AnnAssign):
        node = ast.Assign([node.target], node.value or ast.Constant(None))
    grammar = ast.expr_context | ast.operator | ast.unaryop | ast.cmpop | ast.boolop
    return sum(not isinstance(part, grammar) for part in ast.walk(node)) < limit


def answers(chapter: CourseChapter) -> dict[str, set[str]]:
    """Whose -> the statements of that answer, smaller ones than in `leaks` included."""
    found: dict[str, set[str]] = {}
    for statement, owner in secrets(chapter, SMALL).items():
        found.setdefault(owner, set()).add(statement)
    return found


def gives_away(text: str, known: Mapping[str, set[str]]) -> list[str]:
    """Functions that contain more than half of an answer's statements.

    Library code that stays may share a line with an answer, which `leaks` would report; this finds whole copies.

    Args:
        text: Python source of a copy for learners.
        known: from `answers`.

    Returns:
        One line for each: "line 12: mix has 3 of 4 statements of task 8.1".
    """
    found = []
    for line, name, mine in functions_of(text):
        for owner, answer in known.items():
            if 2 * len(mine & answer) > len(answer):
                found.append(f"line {line}: {name} has {len(mine & answer)} of {len(answer)} statements of {owner}")
    return found


@lru_cache(maxsize=2048)  # the library is read once for each chapter: most files are always the same
def functions_of(text: str) -> tuple[tuple[int, str, frozenset[str]], ...]:
    """Line, name and normalised statements of each function in a text."""
    return tuple(
        (node.lineno, node.name, frozenset(normalised(part) for part in statements_in(node)))
        for node in ast.walk(parse(text, "the copy"))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def statements_in(function: ast.AST) -> Iterator[ast.stmt]:
    """All statements inside of a function, at any depth."""
    return (part for part in ast.walk(function) if isinstance(part, ast.stmt) and part is not function)
