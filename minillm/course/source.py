"""Python source by its syntax tree: find a function, take its text, cut its body, put another in its place.

Everything outside the piece that is changed stays byte for byte. Positions are 0-based line numbers.
"""

import ast
import io
import threading
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minillm.course.syllabus import ROOT
from minillm.errors import ConfigError, DataError

_ONE_AT_A_TIME = threading.Lock()  # Python 3.11's parser counts its recursion wrongly in two threads: cpython#106905
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Place:
    """Where a definition stands: lines [start, end) with its decorators, the column its code begins at, its node."""

    start: int
    end: int
    indent: str
    node: Definition


def module_file(module: str, root: Path = ROOT) -> Path:
    """The file of a library module.

    Raises:
        ConfigError: if the library has no such module.
    """
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise ConfigError(f"there is no module {module} in {root}; write minillm.package.module:function")


def read_module(module: str, root: Path = ROOT) -> str:
    """The source text of a library module."""
    return module_file(module, root).read_text(encoding="utf-8")


def parse(text: str, where: str = "the file") -> ast.Module:
    """The syntax tree.

    Raises:
        DataError: if the text is not Python; the message has the line.
    """
    try:
        with _ONE_AT_A_TIME:
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise DataError(f"{where}{f', line {line}' if line else ''}: this is not Python: {error}") from error


def find(text: str, name: str, where: str = "the file") -> Place:
    """Where the function, method (`Class.method`) or class `name` is defined; of several with one name, the last.

    Raises:
        ConfigError: if there is none.
    """
    nodes: list[ast.stmt] = parse(text, where).body
    found: Definition | None = None
    for part in name.split("."):
        found = next((node for node in reversed(nodes) if isinstance(node, Definition) and node.name == part), None)
        if found is None:
            raise ConfigError(f"{where} defines no {name}; check the name, or define it at the left margin")
        nodes = found.body
    return place_of(found)


def place_of(node: Definition) -> Place:
    """The lines of a definition, its decorators included."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return Place(first - 1, node.end_lineno, " " * node.col_offset, node)


def def_source(file_text: str, qualified_name: str) -> str:
    """The text of one function, method or class with its decorators, moved to the left margin.

    Raises:
        ConfigError: if the text does not define it.
    """
    place = find(file_text, qualified_name)
    lines = file_text.splitlines(keepends=True)[place.start : place.end]
    return shifted("".join(lines), place.indent, "").rstrip("\n") + "\n"


def with_function(file_text: str, qualified_name: str, new_def_source: str) -> str:
    """The text with one function or method replaced; all else stays as it is.

    Args:
        file_text: a library module or a submission.
        qualified_name: "function" or "Class.method".
        new_def_source: one definition with any indentation; its own decorators if it has some, else the old ones stay.

    Raises:
        ConfigError: if the text does not define the name, or the new source is not one function of that name.
        DataError: if one of them is not Python.
    """
    place = find(file_text, qualified_name)
    new = shifted(new_def_source.strip("\n"), leading_space(new_def_source), "") + "\n"
    nodes = parse(new, "the new function").body
    name = qualified_name.rpartition(".")[2]
    if len(nodes) != 1 or not isinstance(nodes[0], Definition) or nodes[0].name != name:
        raise ConfigError(f"the new source must be one definition of {name} and nothing else")
    first = place.start if nodes[0].decorator_list else place.node.lineno - 1
    lines = file_text.splitlines(keepends=True)
    return "".join(lines[:first]) + shifted(new, "", place.indent) + "".join(lines[place.end :])


def with_bodies(text: str, bodies: Mapping[str, str], where: str = "the file") -> str:
    """The text with the bodies of some functions replaced; signature, decorators and docstring stay byte for byte.

    Args:
        text: Python source.
        bodies: name ("function" or "Class.method") -> the new body without indentation; its docstring is not in it.
        where: what errors call the text.

    Raises:
        ConfigError: if a name is not defined, or is a class.
    """
    lines = text.splitlines(keepends=True)
    places = sorted(((find(text, name, where), body) for name, body in bodies.items()), key=lambda pair: -pair[0].start)
    for place, body in places:
        if isinstance(place.node, ast.ClassDef):
            raise ConfigError(f"{where}: {place.node.name} is a class; name its methods one by one")
        head = _head(lines, place)
        indent = place.indent + "    "
        new = "".join(indent + line + "\n" if line.strip() else "\n" for line in body.strip("\n").split("\n"))
        end = _end_with_comments(lines, place, indent)
        lines[place.start : end] = [head + "\n", new]
        lines = "".join(lines).splitlines(keepends=True)
    return "".join(lines)


def _head(lines: list[str], place: Place) -> str:
    """Decorators, signature and docstring, exactly as they stand, without the last line's end."""
    node, first = place.node, place.node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        row, column = first.end_lineno - 1, first.end_col_offset
    else:
        row, column = _signature_end("".join(lines[node.lineno - 1 : node.end_lineno]))
        row += node.lineno - 1
        column = len(lines[row][:column].encode())
    last = lines[row].encode()[:column].decode().rstrip()
    return "".join(lines[place.start : row]) + last


def _signature_end(text: str) -> tuple[int, int]:
    """Line and column just behind the colon that ends the signature of a `def`."""
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == ":" and depth == 0:
                return token.end[0] - 1, token.end[1]
    raise DataError("a function without a colon")


def _end_with_comments(lines: list[str], place: Place, indent: str) -> int:
    """The end of the definition, comments of its body behind the last statement included."""
    end = place.end
    for number in range(place.end, len(lines)):
        line = lines[number]
        if line.strip() and not (line.startswith(indent) and line.lstrip().startswith("#")):
            break
        end = number + 1 if line.strip() else end
    return end


def leading_space(text: str) -> str:
    """The indentation of the first line that is not empty."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line[: len(line) - len(line.lstrip())]


def shifted(text: str, old: str, new: str) -> str:
    """One definition moved from indentation `old` to `new`; strings over several lines (not docstrings) are untouched.

    Raises:
        DataError: if the text is not Python.
    """
    if old == new:
        return text
    fixed = _inside_strings(text if not old else "if True:\n" + text, first_line=2 if old else 1)
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.strip() and number not in fixed:
            lines[number] = new + (line[len(old) :] if line.startswith(old) else line.lstrip(" "))
    return "".join(lines)


def _inside_strings(text: str, first_line: int) -> set[int]:
    """The lines that begin inside a string which is not a docstring, counted from `first_line`."""
    tree = parse(text, "the function")
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, Definition) and ast.get_docstring(node, clean=False) is not None
    }
    inside: set[int] = set()
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
        )
        if is_string and id(node) not in docstrings:
            inside |= _string_lines(text, node, first_line)
    return inside


def _string_lines(text: str, node: ast.expr, first_line: int) -> set[int]:
    """Lines of a string node that begin inside one of its quoted parts (a line between two parts is ordinary code)."""
    segment = ast.get_source_segment(text, node, padded=False) or ""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO("(" + segment + ")").readline):
        if token.start[0] != token.end[0]:
            lines |= set(range(token.start[0], token.end[0]))
    return {node.lineno - first_line + line for line in lines}
