"""The learner's file of a chapter, made from the library: signatures and docstrings stay, bodies go.

`skeleton` has holes, `reference_file` is the same file with the library's bodies: a submission with all points.
"""

import ast
import builtins
import symtable
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from textwrap import wrap

from minillm.course.chapter import CourseChapter, Task, split_object
from minillm.course.source import (
    Definition,
    def_source,
    find,
    parse,
    read_module,
    with_bodies,
    with_function,
)
from minillm.errors import ConfigError

__all__ = ["def_source", "leaks", "reference_file", "skeleton", "with_function"]

WIDTH = 120
TRIVIAL = 8  # a statement of fewer syntax nodes (names, numbers, calls) gives nothing away


@dataclass(frozen=True, order=True)
class Import:
    """One imported name: `from module import name as alias`, or `import module as alias` when `name` is empty."""

    module: str
    name: str
    alias: str

    @property
    def bound(self) -> str:
        """The name it defines."""
        return self.alias or self.name or self.module.partition(".")[0]


def skeleton(chapter: CourseChapter) -> str:
    """The file that a learner fills in.

    Raises:
        ConfigError: if the code that stays needs something that `remove` takes away.
    """
    return _exercise_file(chapter, {task.name: hole(task) for task in chapter.tasks})


def reference_file(chapter: CourseChapter) -> str:
    """The same file with the library's own bodies."""
    return _exercise_file(chapter, {})


def hole(task: Task) -> str:
    """The body that a task begins with, without indentation: task and points, the hint, and an error or the starter."""
    points = "1 point" if task.points == 1 else f"{task.points} points"
    lines = [f"# TASK {task.id} ({points})"]
    lines += [f"# {line}" for line in wrap(" ".join(task.hint.split()), WIDTH - 12)]
    return "\n".join([*lines, task.starter or f'raise NotImplementedError("task {task.id}")'])


def _exercise_file(chapter: CourseChapter, bodies: dict[str, str]) -> str:
    parts = []
    for module, top in tops(chapter):
        text = read_module(module, chapter.root)
        removed = {name for task in chapter.tasks for name in removed_from(task, module)}
        text = def_source(without(text, {name for name in removed if name.partition(".")[0] == top}), top)
        mine = {name: body for name, body in bodies.items() if name.partition(".")[0] == top}
        parts.append(with_bodies(text, mine, module).strip("\n"))
    top = _heading(chapter) + "\n\n" + import_lines(needed_imports(chapter))
    return "\n\n\n".join([top.rstrip("\n"), *parts]) + "\n"


def _heading(chapter: CourseChapter) -> str:
    number, first = chapter.number, chapter.tasks[0].id
    return (
        f'"""Chapter {number}, {chapter.title}: fill in the holes ({chapter.points} points).\n\n'
        f"`minillm course test {number}` tests this file, `minillm course test {number} {first}` one task of it.\n"
        'Each docstring says what its function must do; the chapter explains why.\n"""'
    )


def tops(chapter: CourseChapter) -> list[tuple[str, str]]:
    """(module, name) of the functions and classes of the exercise file, in order."""
    return list(dict.fromkeys((task.module, task.top) for task in chapter.tasks))


def removed_from(task: Task, module: str) -> list[str]:
    """Names in a module that the task's `remove` takes away."""
    pairs = (split_object(name, f"task {task.id}") for name in task.remove)
    return [name for place, name in pairs if place == module]


def without(text: str, names: Iterable[str]) -> str:
    """The text without some functions, methods or classes."""
    lines = text.splitlines(keepends=True)
    for place in sorted((find(text, name) for name in names), key=lambda place: -place.start):
        end = place.end
        while end < len(lines) and not lines[end].strip():
            end += 1
        del lines[place.start : end]
    return "".join(lines)


def needed_imports(chapter: CourseChapter) -> set[Import]:
    """What the exercise file must import: names used by its full text, and the chapter's `given` objects.

    Names of the chapter's own tasks stand in the file; removed ones only the cut bodies may use.

    Raises:
        ConfigError: if two modules mean different things by one name, or kept code uses a removed object.
    """
    imports: dict[str, Import] = {}
    own = set(tops(chapter))
    removed = {split_object(name, "remove") for task in chapter.tasks for name in task.remove}
    bodies = {task.name: "pass" for task in chapter.tasks}
    for module, top in tops(chapter):
        text = read_module(module, chapter.root)
        known = bindings(module, text)
        gone = {name for place, name in removed if place == module and name.partition(".")[0] == top}
        full = def_source(without(text, gone), top)
        kept = global_names(with_bodies(full, {name: b for name, b in bodies.items() if name.partition(".")[0] == top}))
        for name in sorted(global_names(full) & known.keys()):
            found = known[name]
            if (found.module, found.name) in own and found.bound == found.name:
                continue
            if (found.module, found.name) in removed:
                if name in kept:
                    raise ConfigError(f"{module}: {top} needs {name} outside the holes, but `remove` takes it away")
                continue
            _add(imports, found)
    for name in chapter.given:
        module, qualified = split_object(name, "given")
        _add(imports, Import(module, qualified, ""))
    return set(imports.values())


def _add(imports: dict[str, Import], new: Import) -> None:
    old = imports.setdefault(new.bound, new)
    if old != new:
        meanings = f"{old.module}.{old.name} and {new.module}.{new.name}"
        raise ConfigError(f"the tasks' modules mean different things by {new.bound}: {meanings}; rename one of them")


def bindings(module: str, text: str) -> dict[str, Import]:
    """What each name at a module's margin is, as the import that gives it elsewhere."""
    known: dict[str, Import] = {}
    for node in parse(text, module).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                new = Import(alias.name, "", alias.asname or "")
                known[new.bound] = new
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                new = Import(node.module or "", alias.name, alias.asname or "")
                known[new.bound] = new
        else:
            for name in defined_names(node):
                known[name] = Import(module, name, "")
    return known


def defined_names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the margin defines."""
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
    elif isinstance(node, ast.If | ast.Try | ast.With):
        for part in ast.iter_child_nodes(node):
            yield from defined_names(part) if isinstance(part, ast.stmt) else ()


def global_names(text: str) -> set[str]:
    """The names of a module's margin that the text uses, in bodies, signatures, decorators and quoted annotations."""

    def collect(table: symtable.SymbolTable) -> Iterator[str]:
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (is_module or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from collect(child)

    names = set(collect(symtable.symtable(text, "exercise", "exec")))
    return (names | _quoted_names(text)) - set(dir(builtins))


def _quoted_names(text: str) -> set[str]:
    """Names in annotations that are written as strings."""
    names: set[str] = set()
    for node in ast.walk(parse(text)):
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
        for part in ast.walk(annotation) if annotation is not None else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                names |= {name.id for name in ast.walk(parse(part.value)) if isinstance(name, ast.Name)}
    return names


def import_lines(imports: Iterable[Import]) -> str:
    """Import statements in the order that ruff wants: the standard library, other packages, this one."""
    groups: tuple[list[Import], list[Import], list[Import]] = ([], [], [])
    for one in imports:
        package = one.module.partition(".")[0]
        groups[2 if package == "minillm" else 0 if package in sys.stdlib_module_names else 1].append(one)
    return "\n\n".join("\n".join(_group_lines(group)) for group in groups if group)


def _group_lines(group: list[Import]) -> Iterator[str]:
    for one in sorted(one for one in group if not one.name):
        yield f"import {one.module}" + (f" as {one.alias}" if one.alias else "")
    lines: list[tuple[str, int, str, str]] = []
    for module in {one.module for one in group if one.name}:
        mine = [one for one in group if one.module == module and one.name]
        plain = sorted((_kind(one.name), one.name) for one in mine if not one.alias)
        if plain:
            names = [name for _, name in plain]
            line = f"from {module} import {', '.join(names)}"
            if len(line) > WIDTH:
                line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
            lines.append((module, plain[0][0], names[0], line))
        for one in mine:
            if one.alias:
                line = f"from {module} import {one.name} as {one.alias}"
                lines.append((module, _kind(one.name), one.name, line))
    yield from (line for *_, line in sorted(lines))


def _kind(name: str) -> int:
    """Constants come first, then classes, then the rest, as in isort's order."""
    if len(name) > 1 and name.isupper():
        return 0
    return 1 if name[0].isupper() else 2


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


def secrets(chapter: CourseChapter) -> dict[str, str]:
    """Statement of a cut or removed body -> whose it is."""
    found: dict[str, str] = {}
    for task in chapter.tasks:
        started = {normalised(node) for node in ast.walk(parse(task.starter)) if isinstance(node, ast.stmt)}
        for module, name in ((task.module, task.name), *(split_object(name, "remove") for name in task.remove)):
            node = find(read_module(module, chapter.root), name, module).node
            for statement in body_statements(node):
                if statement not in started:
                    found.setdefault(statement, f"task {task.id}")
    return found


def body_statements(node: Definition) -> Iterator[str]:
    """The normalised statements of a body that could give something away."""
    documented = ast.get_docstring(node, clean=False) is not None
    for statement in node.body[1 if documented else 0 :]:
        for part in ast.walk(statement):
            if isinstance(part, ast.stmt) and not _is_trivial(part):
                yield normalised(part)


def normalised(node: ast.stmt) -> str:
    """A simple statement whole, a compound one by its head, in one layout."""
    return ast.unparse(node).partition("\n")[0] if hasattr(node, "body") else ast.unparse(node)


def _is_trivial(node: ast.stmt) -> bool:
    if isinstance(node, Definition | ast.Raise | ast.Import | ast.ImportFrom | ast.Try):
        return True
    if hasattr(node, "body"):
        node = parse(normalised(node) + " pass").body[0] if not isinstance(node, ast.Match) else ast.Pass()
    grammar = ast.expr_context | ast.operator | ast.unaryop | ast.cmpop | ast.boolop
    return sum(not isinstance(part, grammar) for part in ast.walk(node)) < TRIVIAL
