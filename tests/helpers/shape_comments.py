"""Hold every shape comment of the library to the truth while the tests run.

A comment such as `# (B, H, T, S)` at the end of a statement speaks about the value that the statement makes:
`name = ...` (also over several lines), `a, b = ...` (every tensor of the tuple), `name += ...` and `return ...`.
Dimensions of one call must agree with each other. Not to be used together with a debugger or coverage.
"""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMMENT = re.compile(r"#\s*\((?P<dims>(?:\.\.\.|[\w*/+\- ])(?:[\w*/+\- .]|,)*)\)")
RETURNED = "return"


@dataclass(frozen=True)
class ShapeComment:
    """What one statement says: the names it assigns (or RETURNED), the dimensions, the line of the comment."""

    names: tuple[str, ...]
    dims: tuple[str, ...]
    line: int


@cache
def comments_of(filename: str) -> dict[int, ShapeComment]:
    """Every line of a commented statement -> its comment; the comment stands on the statement's last line."""
    source = Path(filename).read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        names = names_made_by(node)
        match = COMMENT.search(lines[node.end_lineno - 1], node.end_col_offset) if names else None
        if match:
            dims = tuple(dim.strip() for dim in match["dims"].split(",") if dim.strip())
            comment = ShapeComment(names, dims, node.end_lineno)
            found |= {line: comment for line in range(node.lineno, node.end_lineno + 1)}
    return found


def names_made_by(node: ast.AST) -> tuple[str, ...]:
    """The plain variables that a statement assigns, RETURNED for a return, nothing for anything else."""
    if isinstance(node, ast.Return):
        return (RETURNED,) if node.value is not None else ()
    if isinstance(node, ast.Assign):
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets[:1]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    else:
        return ()
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


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
        pending: ShapeComment | None = None

        def verify(comment: ShapeComment, values) -> None:
            for value in values:
                if hasattr(value, "shape"):
                    check_shape_comment(f"{filename}:{comment.line}", tuple(value.shape), comment.dims, sizes)
                    if seen is not None:
                        seen.add((filename, comment.line))

        def trace_line(frame, event, value):
            nonlocal pending
            current = comments.get(frame.f_lineno)
            if pending is not None and (event == "return" or current is not pending):
                if pending.names == (RETURNED,):
                    if event == "return":
                        verify(pending, value if isinstance(value, tuple) else (value,))
                elif event in ("line", "return"):
                    verify(pending, (frame.f_locals.get(name) for name in pending.names))
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
