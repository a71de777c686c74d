"""A copy of the library in which some functions are holes: for the graded worker, and for hand-outs without answers."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from minillm.course.chapter import CourseChapter, Task, split_object
from minillm.course.imports import Import, bindings
from minillm.course.skeleton import HOLE, hole
from minillm.course.source import Definition, find, module_file, parse, read_module, with_bodies
from minillm.course.syllabus import ROOT

REMOVED = 'raise NotImplementedError("left out of this copy: it would give task {id} away")'


def stripped_copy(
    target: Path, holes: Iterable[Task], modules: Iterable[str] | None = None, root: Path = ROOT
) -> list[Path]:
    """Write the minillm package without some answers.

    The tasks' functions keep signature and docstring and raise NotImplementedError naming the task; what their `remove`
    names raises too (it stays callable by name, so that code which imports it can still be imported).

    Args:
        target: a folder; `target/minillm` is written.
        holes: the tasks to cut.
        modules: write these and the minillm modules they import; None writes all.
        root: the clone to copy from.

    Returns:
        the files written, with paths relative to `target`.
    """
    by_module = cut_bodies(holes, root)
    names = all_modules(root) if modules is None else needed_modules(modules, root)
    written = []
    for name in sorted(names):
        file = module_file(name, root)
        text = with_bodies(file.read_text(encoding="utf-8"), by_module.get(name, {}), name)
        path = file.relative_to(root)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
        written.append(path)
    return written


def cut_bodies(holes: Iterable[Task], root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Module -> {function or method: the body it has in the copy}."""
    holes = list(holes)
    bodies: dict[str, dict[str, str]] = defaultdict(dict)
    for task in holes:
        for module, name in (split_object(name, f"task {task.id}") for name in task.remove):
            node = find(read_module(module, root), name, module).node
            for qualified in methods_of(name, node) if isinstance(node, ast.ClassDef) else [name]:
                bodies[module][qualified] = REMOVED.format(id=task.id)
    for task in holes:  # a task that another one removes is still a task
        bodies[task.module][task.name] = hole(replace(task, starter=""))
    return bodies


def is_hole(task: Task, root: Path = ROOT) -> bool:
    """Whether the library of this copy has a hole where the task's answer was."""
    last = find(read_module(task.module, root), task.name, task.module).node.body[-1]
    return ast.unparse(last) == ast.unparse(parse(HOLE.format(id=task.id)))


def methods_of(name: str, node: ast.ClassDef) -> list[str]:
    """Class.method for each method of a class."""
    return [f"{name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)]


def all_modules(root: Path = ROOT) -> set[str]:
    """Every module of the package."""
    files = (file.relative_to(root).with_suffix("") for file in (root / "minillm").rglob("*.py"))
    return {".".join(file.parts[:-1] if file.name == "__init__" else file.parts) for file in files}


def needed_modules(modules: Iterable[str], root: Path = ROOT) -> set[str]:
    """The modules, the packages they are in, and what all of these import from minillm, anywhere in their code."""
    known = all_modules(root)
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name not in known:
            continue
        found.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        for node in ast.walk(parse(read_module(name, root), name)):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def uses(chapter: CourseChapter, task: Task) -> set[str]:
    """The other tasks of the chapter whose functions the task's reference reaches, directly or through the library.

    A method reaches its class's constructor and the methods it calls on `self`; who names a class reaches all its
    methods. What is called on an argument cannot be seen.
    """
    reached = reach(chapter.root, [(task.module, task.name)])
    return {other.id for other in chapter.tasks if other is not task and (other.module, other.name) in reached}


def needs(chapter: CourseChapter, other: CourseChapter) -> set[str]:
    """The tasks of another chapter without which this one's functions or its graders' given objects cannot run."""
    begin = [(task.module, task.name) for task in chapter.tasks]
    reached = reach(chapter.root, begin + [split_object(name, "given") for name in chapter.given])
    return {task.id for task in other.tasks if (task.module, task.name) in reached}


def reach(root: Path, begin: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """(module, qualified name) of every library function that these name, directly or through others."""
    library = _Library(root)
    reached, waiting = set(), list(begin)
    while waiting:
        place = waiting.pop()
        if place not in reached:
            reached.add(place)
            waiting += library.reached_from(*place)
    return reached


@dataclass(frozen=True)
class _Module:
    names: dict[str, Import]
    nodes: dict[str, ast.stmt]


@dataclass
class _Library:
    """Who names whom among the library's functions; modules are read when first asked for."""

    root: Path
    modules: dict[str, _Module] = field(default_factory=dict)

    def module(self, name: str) -> _Module:
        if name not in self.modules:
            text = read_module(name, self.root)
            nodes = {}
            for node in parse(text, name).body:
                nodes |= {bound: node for bound in bound_by(node)}
            self.modules[name] = _Module(bindings(name, text), nodes)
        return self.modules[name]

    def reached_from(self, module: str, name: str) -> Iterator[tuple[str, str]]:
        """(module, qualified name) of what one function, class, method or constant names."""
        top, _, method = name.partition(".")
        node = self.module(module).nodes.get(top)
        if node is None:
            return
        if isinstance(node, ast.ClassDef):
            yield from self._of_class(module, node, method)
            node = next((part for part in node.body if getattr(part, "name", None) == method), None)
            if node is None:
                return
        yield from self._named(module, node)

    def _of_class(self, module: str, node: ast.ClassDef, method: str) -> Iterator[tuple[str, str]]:
        methods = set(methods_of(node.name, node))
        bases = [place for base in node.bases for place in self._named(module, base)]
        if not method:  # the class as a whole
            yield from ((module, name) for name in methods)
            yield from bases
            return
        part = next((part for part in node.body if getattr(part, "name", None) == method), None)
        called = {"__init__", "__post_init__"} | (own_attributes(part) if part else set())
        for name in called - {method}:
            if f"{node.name}.{name}" in methods:
                yield module, f"{node.name}.{name}"
            else:
                yield from ((place, f"{base}.{name}") for place, base in bases)
        if part is None:  # inherited
            yield from ((place, f"{base}.{method}") for place, base in bases)

    def _named(self, module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
        known = self.module(module).names
        for name in free_names(node) & known.keys():
            yield from self._resolved(known[name])
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in known:
                yield from self._attribute(known[part.value.id], part.attr)

    def _resolved(self, found: Import) -> Iterator[tuple[str, str]]:
        if not self._is_ours(found.module):
            return
        if found.name and found.name not in self.module(found.module).nodes:
            origin = self.module(found.module).names.get(found.name)  # imported there from elsewhere
            yield from self._resolved(origin) if origin and origin != found else ()
        elif found.name:
            yield found.module, found.name

    def _attribute(self, found: Import, attribute: str) -> Iterator[tuple[str, str]]:
        """`functional.softmax`, where `functional` is a module of the library, or `Class.method`."""
        as_module = f"{found.module}.{found.name}" if found.name else found.module
        if self._is_ours(as_module):
            yield from self._resolved(Import(as_module, attribute, ""))
        else:
            yield from ((module, f"{name}.{attribute}") for module, name in self._resolved(found) if found.name)

    def _is_ours(self, module: str) -> bool:
        if module.partition(".")[0] != "minillm":
            return False
        path = self.root.joinpath(*module.split("."))
        return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def bound_by(node: ast.stmt) -> list[str]:
    """Names that a definition or an assignment at a module's margin binds; imports bind none of their own."""
    if isinstance(node, Definition):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return []


def free_names(node: ast.AST) -> set[str]:
    """Names that the code reads and does not bind itself."""
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    bound = {part.id for part in names if not isinstance(part.ctx, ast.Load)}
    bound |= {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
    return {part.id for part in names if isinstance(part.ctx, ast.Load)} - bound


def own_attributes(node: ast.AST) -> set[str]:
    """The names x in self.x and cls.x."""
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in ("self", "cls")
    }
