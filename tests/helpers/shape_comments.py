"""Hold every shape comment of the library to the truth while the tests run.

A comment such as `# (B, H, T, S)` at the end of a statement speaks about the value that the statement makes:
`name = ...` (also over several lines), `self.name = ...`, `a, (b, c) = ...` (every tensor of the tuple), `name += ...`,
`for name in ...:` and `return ...`. Dimensions of one call must agree with each other, those that a loop's body is the
first to name within one round of it.
Not to be used together with a debugger or coverage.

`python tests/helpers/shape_comments.py tests/nn tests/models` runs these tests with the tracer on; it fails if
a comment is false, if one stands where nothing can hold it to the truth, or if no test reached it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMENT = re.compile(r"#\s*\((?P<dims>(?:\.\.\.|[\w*/+\- ])(?:[\w*/+\- .]|,)*)\)(?!\s*->)")  # not the key of a mapping
RETURNED = "return"
MISSING = object()


@dataclass(frozen=True)
class ShapeComment:
    """What one statement says: the names it assigns (or RETURNED), the dimensions, the line of the comment."""

    names: tuple[str, ...]
    dims: tuple[str, ...]
    line: int


@cache
def comments_of(filename: str) -> dict[int, ShapeComment]:
    """Every line of a commented statement -> its comment; the comment stands on the statement's last line.

    Of a loop only the line `for ... in ...:` belongs to it.
    """
    source = Path(filename).read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        names, end = names_made_by(node), node.iter if isinstance(node, ast.For) else node
        match = COMMENT.search(lines[end.end_lineno - 1], end.end_col_offset) if names else None
        if match:
            dims = tuple(dim.strip() for dim in match["dims"].split(",") if dim.strip())
            comment = ShapeComment(names, dims, end.end_lineno)
            found |= {line: comment for line in range(node.lineno, end.end_lineno + 1)}
    return found


def names_made_by(node: ast.AST) -> tuple[str, ...]:
    """The variables (`x`, `self.x`) that a statement assigns, RETURNED for a return, nothing for anything else."""
    if isinstance(node, ast.Return):
        return (RETURNED,) if node.value is not None else ()
    if isinstance(node, ast.Assign):
        return tuple(name for target in node.targets[:1] for name in names_in(target))
    if isinstance(node, ast.AugAssign | ast.For) or (isinstance(node, ast.AnnAssign) and node.value is not None):
        return tuple(names_in(node.target))
    return ()


def names_in(target: ast.expr) -> Iterator[str]:
    """The plain and dotted names of a target, tuples unpacked."""
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from names_in(part)
    elif isinstance(target, ast.Name | ast.Attribute):
        yield ast.unparse(target)


def unheld_comments(filename: str) -> list[int]:
    """Lines whose shape comment nothing can make true or false: inside a statement, or where nothing is made."""
    held = {comment.line for comment in comments_of(filename).values()}
    lines = Path(filename).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, start=1) if COMMENT.search(line) and number not in held]


def value_of(name: str, variables: dict) -> object:
    """The value of `x` or `self.x.y` among the variables of a frame; MISSING if it has none."""
    first, *rest = name.split(".")
    value = variables.get(first, MISSING)
    for attribute in rest:
        value = getattr(value, attribute, MISSING)
    return value


@contextmanager
def checked_shape_comments(root: Path, seen: set[tuple[str, int]] | None = None) -> Iterator[None]:
    """Raise AssertionError as soon as a line under `root` makes a tensor that its comment does not describe.

    Args:
        root: folder of the files to hold to their comments.
        seen: collects (file, line) of every comment that was checked.
    """

    def trace(frame, event, _):
        filename = frame.f_code.co_filename
        if not filename.startswith(str(root)) or not (comments := comments_of(filename)):
            return None
        sizes: dict[str, int] = {}
        bound_at: dict[int, set[str]] = {}  # line -> dimensions that it was the first to use
        pending: ShapeComment | None = None

        def verify(comment: ShapeComment, values) -> None:
            for dim in bound_at.pop(comment.line, ()):  # the same line again: a loop's next round has sizes of its own
                del sizes[dim]
            known = set(sizes)
            for value in values:
                if hasattr(value, "shape"):
                    check_shape_comment(f"{filename}:{comment.line}", tuple(value.shape), comment.dims, sizes)
                    if seen is not None:
                        seen.add((filename, comment.line))
            bound_at[comment.line] = set(sizes) - known

        def trace_line(frame, event, value):
            nonlocal pending
            current = comments.get(frame.f_lineno)
            if pending is not None and (event == "return" or current is not pending):
                if pending.names == (RETURNED,):
                    if event == "return":
                        verify(pending, value if isinstance(value, tuple) else (value,))
                elif event in ("line", "return"):
                    verify(pending, (value_of(name, frame.f_locals) for name in pending.names))
            pending = None if event == "exception" else current
            return trace_line

        return trace_line

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


def check_shape_comment(where: str, shape: tuple[int, ...], dims: tuple[str, ...], sizes: dict[str, int]) -> None:
    """Compare one shape with one comment.

    Single names bind a size within one call; numbers must match; other expressions (`T + 1`) only count as a dimension;
    a leading `...` stands for any number of dimensions.
    """
    message = f"{where}: comment says ({', '.join(dims)}), tensor has shape {shape}"
    if dims[:1] == ("...",):
        dims = dims[1:]
        assert len(shape) >= len(dims), message
        shape = shape[len(shape) - len(dims) :]
    assert len(shape) == len(dims), message
    for dim, size in zip(dims, shape, strict=True):
        expected = int(dim) if dim.isdigit() else sizes.setdefault(dim, size) if dim.isidentifier() else size
        assert size == expected, f"{message}, but {dim}={expected}"


class Tracing:
    """A pytest plugin: every test runs with the tracer on; the session fails for comments that are false or idle."""

    def __init__(self, root: Path):
        self.root, self.seen = root, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        with checked_shape_comments(self.root, self.seen):
            return (yield)

    def faults(self) -> list[str]:
        """Comments that nothing holds to the truth, and those that no test reached."""
        files = sorted(self.root.rglob("*.py"))
        unheld = [
            f"{path}:{line}: no statement here makes a tensor" for path in files for line in unheld_comments(str(path))
        ]
        written = {(str(path), comment.line) for path in files for comment in comments_of(str(path)).values()}
        return unheld + [f"{path}:{line}: no test reached this" for path, line in sorted(written - self.seen)]


def main(arguments: list[str], root: Path = ROOT / "minillm") -> int:
    """Run pytest with the tracer on; its exit code, or 1 if all tests passed and a comment is at fault."""
    tracing = Tracing(root)
    code = int(pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[tracing]))
    faults = tracing.faults()
    print(f"{len(tracing.seen)} shape comments were held to the truth", *faults, sep="\n")
    return code or int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
