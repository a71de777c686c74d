"""What a module's names are, which of them a piece of code uses, and the imports that bring them elsewhere."""

import ast
import builtins
import symtable
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minillm.course.source import Definition, parse

WIDTH = 120


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
