"""Quote the library in a text: a function's source as it stands today, so that text and code cannot drift apart."""

import ast
import importlib
import inspect
import sys
import textwrap
from functools import reduce

from minillm.course.fences import fenced
from minillm.errors import CourseError


def show(shown: object, docstring: bool = True) -> None:
    """Print the library's own source of a function, method or class; in a notebook, as highlighted code.

    Args:
        shown: what to quote.
        docstring: False leaves its docstring out, for readers who have just been told what it says.

    Raises:
        CourseError: if the object has no Python source.
    """
    text = quoted(shown, docstring)
    session = sys.modules.get("IPython")
    if session is None or session.get_ipython() is None:
        print(text)
        return
    from IPython.display import display

    marks = {"quotes": name_of(shown), "docstring": docstring} if in_the_library(shown) else {}
    display(as_output(text), raw=True, metadata={"minillm": marks} if marks else None)


def quoted(shown: object, docstring: bool = True) -> str:
    """The source of an object without indentation, under the name of its file if that is the library's.

    Raises:
        CourseError: if the object has no Python source.
    """
    try:
        source = textwrap.dedent(inspect.getsource(_plain(shown))).rstrip()
    except (TypeError, OSError) as error:
        expected = "expected a function, method or class written in Python"
        raise CourseError(f"cannot show {shown!r}: {expected} ({error})") from error
    source = source if docstring else without_docstring(source)
    return f"# {_plain(shown).__module__.replace('.', '/')}.py\n{source}" if in_the_library(shown) else source


def quoted_by_name(name: str, docstring: bool = True) -> str:
    """`quoted` for an object that is given as "minillm.nn.attention:causal_mask".

    Raises:
        CourseError: if there is no such object.
    """
    module, _, path = name.partition(":")
    try:
        return quoted(reduce(inspect.getattr_static, path.split("."), importlib.import_module(module)), docstring)
    except (ImportError, AttributeError) as error:
        raise CourseError(f"a notebook quotes {name}, which is not there any more: {error}") from error


def without_docstring(source: str) -> str:
    """A definition's source less its docstring.

    Example:
        >>> print(without_docstring('def one():\\n    "The first."\\n    return 1'))
        def one():
            return 1
    """
    node = ast.parse(source).body[0]
    if ast.get_docstring(node) is None or len(node.body) == 1:
        return source
    lines, text = source.splitlines(), node.body[0]
    return "\n".join(lines[: text.lineno - 1] + lines[text.end_lineno :]).rstrip()


def as_output(text: str) -> dict[str, str]:
    """Code as a notebook's output: highlighted where Markdown is rendered, plain elsewhere."""
    return {"text/markdown": fenced(text, "python"), "text/plain": text}


def in_the_library(shown: object) -> bool:
    return getattr(_plain(shown), "__module__", "").split(".")[0] == "minillm"


def name_of(shown: object) -> str:
    """ "module:qualified name" of a function, method or class."""
    return f"{_plain(shown).__module__}:{_plain(shown).__qualname__}"


def _plain(shown: object) -> object:
    """The function inside a property, a static, class or bound method, or a decorator that says what it wraps."""
    if isinstance(shown, property):
        shown = shown.fget
    return inspect.unwrap(getattr(shown, "__func__", shown))
