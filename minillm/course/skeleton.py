"""The learner's file of a chapter, made from the library: signatures and docstrings stay, bodies go.

`skeleton` has holes, `reference_file` is the same file with the library's bodies: a submission with all points.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import wrap

from minillm.course.chapter import CourseChapter, Task, split_object
from minillm.course.imports import WIDTH, Import, bindings, global_names, import_lines
from minillm.course.leaks import leaks
from minillm.course.source import def_source, find, read_module, with_bodies, with_function
from minillm.errors import ConfigError

HOLE = 'raise NotImplementedError("task {id}")'

__all__ = ["HOLE", "def_source", "leaks", "reference_file", "skeleton", "with_function"]


def skeleton(chapter: CourseChapter) -> str:
    """The file that a learner fills in.

    Raises:
        ConfigError: if the code that stays needs something that `remove` takes away.
    """
    return _exercise_file(chapter, {task.name: hole(task) for task in chapter.tasks})


def exercise_text(chapter: CourseChapter) -> str:
    """The skeleton as the chapter's folder has it; where it is not there yet, made from the library.

    In a copy whose library has holes it cannot be made: what the cut bodies used is not known there.
    """
    file = chapter.folder / "exercise.py"
    return file.read_text(encoding="utf-8") if file.is_file() else skeleton(chapter)


def reference_file(chapter: CourseChapter) -> str:
    """The same file with the library's own bodies."""
    return _exercise_file(chapter, {})


def hole(task: Task) -> str:
    """The body that a task begins with, without indentation: task and points, the hint, and an error or the starter."""
    points = "1 point" if task.points == 1 else f"{task.points} points"
    lines = [f"# TASK {task.id} ({points})"]
    lines += [f"# {line}" for line in wrap(" ".join(task.hint.split()), WIDTH - 12)]
    return "\n".join([*lines, task.starter or HOLE.format(id=task.id)])


def _exercise_file(chapter: CourseChapter, bodies: dict[str, str]) -> str:
    parts = _pieces(chapter) if bodies else [*_helpers(chapter), *_pieces(chapter, whole=True)]
    imports = import_lines(needed_imports(chapter, parts, bodies))
    texts = [with_bodies(part.text, _of(part.top, bodies), part.module).strip("\n") for part in parts]
    return "\n\n\n".join([(_heading(chapter) + "\n\n" + imports).rstrip("\n"), *texts]) + "\n"


@dataclass(frozen=True)
class Piece:
    """A function or class of the exercise file: its library module, its name, its text with all bodies."""

    module: str
    top: str
    text: str


def _pieces(chapter: CourseChapter, whole: bool = False) -> list[Piece]:
    """The tasks' functions and classes in order; only the whole has the methods that `remove` names."""
    pieces, removed = [], removed_objects(chapter.tasks)
    for module, top in tops(chapter):
        gone = {name for place, name in removed if (place, name.partition(".")[0]) == (module, top)}
        text = read_module(module, chapter.root)
        pieces.append(Piece(module, top, def_source(text if whole else without(text, gone), top)))
    return pieces


def _helpers(chapter: CourseChapter) -> list[Piece]:
    """Removed functions and classes: the reference's bodies may need them, and no copy for learners has them."""
    objects = removed_objects(chapter.tasks) - set(tops(chapter))
    whole = sorted((module, name) for module, name in objects if "." not in name)
    return [Piece(module, name, def_source(read_module(module, chapter.root), name)) for module, name in whole]


def _of(top: str, bodies: dict[str, str]) -> dict[str, str]:
    return {name: body for name, body in bodies.items() if name.partition(".")[0] == top}


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


def removed_objects(tasks: Iterable[Task]) -> set[tuple[str, str]]:
    """(module, name) of what the tasks' `remove` takes away."""
    return {split_object(name, f"task {task.id}") for task in tasks for name in task.remove}


def without(text: str, names: Iterable[str]) -> str:
    """The text without some functions, methods or classes."""
    lines = text.splitlines(keepends=True)
    for place in sorted((find(text, name) for name in names), key=lambda place: -place.start):
        end = place.end
        while end < len(lines) and not lines[end].strip():
            end += 1
        del lines[place.start : end]
    return "".join(lines)


def needed_imports(chapter: CourseChapter, pieces: list[Piece], bodies: dict[str, str]) -> set[Import]:
    """What the exercise file must import: names used by its full text, and the chapter's `given` objects.

    Args:
        chapter: for `given` and `remove`.
        pieces: what stands in the file itself.
        bodies: what replaces cut bodies; only these may use removed objects.

    Raises:
        ConfigError: if two modules mean different things by one name, or kept code uses a removed object.
    """
    imports: dict[str, Import] = {}
    inside = {(piece.module, piece.top) for piece in pieces}
    removed = removed_objects(chapter.tasks)
    for piece in pieces:
        known = bindings(piece.module, read_module(piece.module, chapter.root))
        kept = global_names(with_bodies(piece.text, dict.fromkeys(_of(piece.top, bodies), "pass")))
        for name in sorted(global_names(piece.text) & known.keys()):
            found = known[name]
            if (found.module, found.name) in inside and found.bound == found.name:
                continue
            if (found.module, found.name) not in removed:
                _add(imports, found)
            elif name in kept:
                raise ConfigError(
                    f"{piece.module}: {piece.top} needs {name} outside the holes, but `remove` takes it away"
                )
    for name in chapter.given:
        module, qualified = split_object(name, "given")
        if (module, qualified) not in inside:
            _add(imports, Import(module, qualified, ""))
    return set(imports.values())


def _add(imports: dict[str, Import], new: Import) -> None:
    old = imports.setdefault(new.bound, new)
    if old != new:
        meanings = f"{old.module}.{old.name} and {new.module}.{new.name}"
        raise ConfigError(f"the tasks' modules mean different things by {new.bound}: {meanings}; rename one of them")
