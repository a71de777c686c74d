"""Put a learner's functions in the place of the library's, so that everything which uses them runs on the learner's.

For grading, one task is the learner's and the others it builds on are the library's; for `minillm train --with-my`, all
that pass are the learner's.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from minillm.course.session import Session
from minillm.errors import CourseError

FILE_NAME = "exercise.py"


@dataclass(frozen=True)
class Place:
    """Where a task's function lives in the library: task id, module, and function or Class.method."""

    task_id: str
    module: str
    name: str

    @property
    def top(self) -> str:
        """The function's name, or its class's."""
        return self.name.partition(".")[0]

    @property
    def method(self) -> str:
        """The method's name; empty for a plain function."""
        return self.name.partition(".")[2]


def load_solution(source: str, file_name: str = FILE_NAME, module_name: str = "exercise") -> ModuleType:
    """Execute a learner's file as a module.

    Args:
        source: its text.
        file_name: what tracebacks call it.
        module_name: what it is called in `sys.modules`.
    """
    module = ModuleType(module_name)
    module.__file__ = file_name
    sys.modules[module_name] = module
    exec(compile(source, file_name, "exec"), vars(module))
    return module


class Substitution:
    """Replaces library functions by those of a solution, everywhere in the library modules that are loaded.

    A method replaces the one of the library's class; other methods and attributes that only the learner's class has
    come along. In the solution itself, the names of tasks that are not replaced mean the library's.

    Args:
        solution: the learner's module.
        places: all tasks of the chapter.
        graded: ids of the tasks that become the learner's.
        own: ids of tasks that the solution keeps for itself when it calls them, though the library's stay in place:
            those that the reference does without, and which a grading library therefore does not have.

    Raises:
        CourseError: if the solution lacks a function it should have; nothing is replaced then.
    """

    def __init__(self, solution: ModuleType, places: Iterable[Place], graded: set[str], own: set[str] = frozenset()):
        self.solution, self._undo = solution, []
        places = list(places)
        self._learners = {place.top: vars(solution).get(place.top) for place in places}
        new = {place.task_id: solution_object(solution, place) for place in places if place.task_id in graded}
        for place in places:
            library = importlib.import_module(place.module)
            if place.method:
                self._replace_method(place, getattr(library, place.top), new.get(place.task_id), place.task_id in own)
            elif place.task_id in graded:
                self._replace_everywhere(getattr(library, place.top), new[place.task_id])
            elif place.task_id not in own:
                self._set(solution, place.top, getattr(library, place.top))

    def restore(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def _set(self, owner: Any, name: str, value: Any) -> None:
        missing = object()
        before = vars(owner).get(name, missing)
        setattr(owner, name, value)
        self._undo.append(
            lambda: delattr(owner, name) if before is missing else setattr(owner, name, before)
        )

    def _replace_method(self, place: Place, library_class: type, new: Any, own: bool) -> None:
        learners = self._learners[place.top]
        if isinstance(learners, type) and learners is not library_class:
            for name, value in list(vars(learners).items()):
                if name not in vars(library_class):
                    self._set_method(library_class, name, value)
            if own and place.method in vars(learners):
                self._set_method(library_class, place.method, vars(learners)[place.method])
        if new is not None:
            self._set_method(library_class, place.method, new)
        self._set(self.solution, place.top, library_class)

    def _set_method(self, library_class: type, name: str, value: Any) -> None:
        for function in plain_functions(value):
            for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                if variable == "__class__":
                    cell.cell_contents = library_class  # so that super() works
        self._set(library_class, name, value)

    def _replace_everywhere(self, old: Any, new: Any) -> None:
        if old is new:
            return
        modules = [module for name, module in list(sys.modules.items()) if _is_library(name)]
        for module in modules:
            for name, value in list(vars(module).items()):
                if value is old:
                    self._set(module, name, new)
                elif isinstance(value, dict | list):
                    self._replace_in(value, old, new)
                elif isinstance(value, type) and value.__module__ == module.__name__:
                    self._replace_in_class(value, old, new)
                else:
                    self._replace_default(value, old, new)

    def _replace_in_class(self, owner: type, old: Any, new: Any) -> None:
        for name, value in list(vars(owner).items()):
            if value is old:
                self._set(owner, name, new)
            elif isinstance(value, staticmethod) and value.__func__ is old:
                self._set(owner, name, staticmethod(new))
            else:
                self._replace_default(value, old, new)

    def _replace_in(self, container: dict | list, old: Any, new: Any) -> None:
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if value is old:
                container[key] = new
                self._undo.append(lambda key=key: container.__setitem__(key, old))

    def _replace_default(self, function: Any, old: Any, new: Any) -> None:
        for which in ("__defaults__", "__kwdefaults__"):
            defaults = getattr(function, which, None) if isinstance(function, FunctionType) else None
            if isinstance(defaults, tuple) and any(value is old for value in defaults):
                setattr(function, which, tuple(new if value is old else value for value in defaults))
                self._undo.append(lambda which=which, defaults=defaults: setattr(function, which, defaults))
            elif isinstance(defaults, dict):
                self._replace_in(defaults, old, new)


def solution_object(solution: ModuleType, place: Place) -> Any:
    """The learner's function, or the raw entry (function, property, staticmethod...) in the learner's class.

    Raises:
        CourseError: if it is not there.
    """
    found = vars(solution).get(place.top)
    if place.method:
        found = vars(found).get(place.method) if isinstance(found, type) else None
    if found is None:
        raise CourseError(f"the file has no {place.name} (task {place.task_id}); keep the names of the skeleton")
    return found


def has(solution: ModuleType, place: Place) -> bool:
    """Whether the file defines a task's function."""
    found = vars(solution).get(place.top)
    return found is not None and (not place.method or place.method in getattr(found, "__dict__", {}))


def plain_functions(value: Any) -> Iterator[FunctionType]:
    """The functions inside a class's entry: under staticmethod, classmethod, property and decorators."""
    if isinstance(value, property):
        candidates: list[Callable | None] = [value.fget, value.fset, value.fdel]
    else:
        candidates = [getattr(value, "__func__", value)]
    for function in candidates:
        while function is not None:
            if inspect.isfunction(function):
                yield function
            function = getattr(function, "__wrapped__", None)


def _is_library(name: str) -> bool:
    return name.split(".")[0] == "minillm" and not name.startswith("minillm.course")


def graded_session(request: dict[str, Any]) -> Session:
    """What the untrusted side does with the first message: load the file, bind it, offer the names.

    Args:
        request: `source` (the learner's file), `places` ([task id, module, name] of all tasks), `task`, `own` (ids),
            `names` ({name: module} of what tests may use), `cut` (ids of tasks whose answers the grading library itself
            lacks, as in a hand-out: the file's own functions take their place, if it has them).
    """
    places = [Place(*row) for row in request["places"]]
    for module in request["names"].values():
        importlib.import_module(module)
    solution = load_solution(request["source"])
    cut = {place.task_id for place in places if place.task_id in request.get("cut", ()) and has(solution, place)}
    Substitution(solution, places, {request["task"], *cut}, set(request["own"]))
    names = {name: getattr(sys.modules[module], name) for name, module in request["names"].items()}
    return Session(names, (FILE_NAME,))
