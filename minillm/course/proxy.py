"""What a grader's test holds in its hand: names that stand for functions and objects in another world.

Arguments and results cross by value, through bytes, also when the other world is the library in the same process.
"""

import functools
import importlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from minillm.course import wire
from minillm.course.session import Session
from minillm.errors import DataError

VALUE_TYPES = (int, float, complex, bool, str, bytes, type(None), list, tuple, dict, set, Tensor, np.ndarray)
MAX_ITEMS = 100_000  # of an iterator that `list` walks to its end

Send = Callable[[bytes], bytes]


class GraderError(DataError):
    """A test asks for something that its world does not have."""


class Ended(Exception):
    """The graded program ended, hung or sent rubbish: no answer will come any more."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


class RaisedThere(Exception):
    """An exception of the graded code.

    Args:
        names: its class and the bases of that, by name.
        message: what it says.
        line: the line in the learner's file, if it passed one.
        code: that line.
    """

    def __init__(self, names: list[str], message: str, line: int | None = None, code: str = ""):
        super().__init__(names, message, line, code)
        self.names, self.message, self.line, self.code = names, message, line, code

    def __str__(self) -> str:
        said = f"{self.names[0]}: {self.message}" if self.message else self.names[0]
        return said if self.line is None else f"{said} (line {self.line}: {self.code})"


class NoValue(AssertionError):
    """An object came back where the library's function returns a value, which a test could compare."""


class World:
    """A set of names and the way to reach them.

    Args:
        library: {name: the library's own object} of what a test may use; tells which results must be values.
        send: carries a request to the session and brings its answer.
    """

    def __init__(self, library: dict[str, Any], send: Send):
        self.library, self.send = library, send
        self._accepted: set[int] = set()  # numbers of objects that tests may hold

    def request(self, content: dict[str, Any], like: Any = None) -> Any:
        """Ask the session.

        Args:
            content: see `Session`.
            like: the library's counterpart of what is called, if known.

        Raises:
            RaisedThere: what the graded code raised.
            Ended: when the answer is no answer.
            NoValue: when an object came instead of a value; a test might believe what it says of itself.
        """
        made: list[Handle] = []
        answer = self.send(wire.dumps(_outward(content)))
        try:
            reply = wire.loads(answer, lambda remote: self._handle(remote, like, made))
            if isinstance(reply, dict) and list(reply) == ["value"]:
                if returns_value(like) and not self._accepted.issuperset(handle._remote.number for handle in made):
                    raise NoValue(f"the result is an object of class {made[0]._remote.kind}, not a value")
                self._accepted.update(handle._remote.number for handle in made)
                return reply["value"]
            raised = _checked(reply["raised"])
        except (wire.WireError, KeyError, TypeError) as error:
            raise Ended("crashed", f"the program's answer cannot be read ({error})") from None
        raise raised

    def _handle(self, remote: wire.Remote, like: Any, made: list["Handle"]) -> "Handle":
        made.append(Handle(self, remote, like if isinstance(like, type) else None))
        return made[-1]


@functools.cache
def returns_value(function: Any) -> bool:
    """Whether a library function's annotation says that it returns numbers, text, tensors, or containers of such."""
    if function is None or isinstance(function, type):
        return False
    try:
        return _is_value_type(typing.get_type_hints(function).get("return", object))
    except (TypeError, NameError, AttributeError):
        return False


def _is_value_type(hint: Any) -> bool:
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    kind = typing.get_origin(hint) or hint
    if kind in (types.UnionType, typing.Union) or (kind in (list, tuple, dict, set, frozenset) and parts):
        return all(_is_value_type(part) for part in parts)
    return kind in VALUE_TYPES


def _checked(raised: dict) -> RaisedThere:
    names, message, line, code = (raised[key] for key in ("names", "message", "line", "code"))
    types_fit = isinstance(message, str) and isinstance(code, str) and isinstance(line, int | None)
    if not (types_fit and isinstance(names, list) and names and all(isinstance(name, str) for name in names[:50])):
        raise TypeError("a badly formed exception")
    return RaisedThere([name[:100] for name in names[:50]], message[:500], line, code[:200])


def _outward(value: Any) -> Any:
    """Handles, however deep, as what stands for them on the wire."""
    if isinstance(value, Handle):
        return value._remote
    if isinstance(value, list):
        return [_outward(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_outward(item) for item in value)
    if isinstance(value, dict):
        return {key: _outward(item) for key, item in value.items()}
    return value


class Callee:
    """Something that can be called there: a function, a class, a method, a module."""

    def __init__(self, world: World, root: Any, path: tuple[str, ...] = (), like: Any = None):
        self._world, self._root, self._path, self._like = world, root, path, like

    def _request(self, do: str, **more: Any) -> Any:
        return self._world.request({"do": do, "target": (self._root, list(self._path)), **more}, self._called())

    def _called(self) -> Any:
        """The library's counterpart of what a call reaches."""
        return self._like

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._request("call", args=list(args), kwargs=kwargs, after=False)

    def after(self, *args: Any, **kwargs: Any) -> tuple[Any, list]:
        """Call, and return the result and the positional arguments as they are after the call."""
        return self._request("call", args=list(args), kwargs=kwargs, after=True)

    def gradients(self, *args: Any, output_gradient: Any, **kwargs: Any) -> tuple:
        """Call and differentiate.

        Args:
            args: floating-point tensors are differentiated by.
            output_gradient: gradient of the loss by the result; a list of them for a result of several tensors.
            kwargs: passed on.

        Returns:
            (value, gradients of the positional arguments), for a module also {parameter name: gradient}.
        """
        value, by_input, by_name = self._request(
            "gradients", args=list(args), kwargs=kwargs, output_gradient=output_gradient
        )
        return (value, by_input) if by_name is None else (value, by_input, by_name)

    def __getattr__(self, name: str) -> "Callee":
        if name.startswith("__"):
            raise AttributeError(name)
        return Callee(self._world, self._root, (*self._path, name), getattr(self._like, name, None))

    def __repr__(self) -> str:
        root = self._root if isinstance(self._root, str) else f"<{self._root.kind}>"
        return ".".join([root, *self._path])


class Handle(Callee):
    """An object that stayed there. Call it, call its methods, read (`get`) and write (`set`) its attributes."""

    def __init__(self, world: World, remote: wire.Remote, kind: type | None = None):
        super().__init__(world, remote, (), kind)
        self._remote = remote

    def _called(self) -> Any:
        return getattr(self._like, "forward", None) or vars(self._like or object).get("__call__")

    def get(self, name: str) -> Any:
        """The attribute's value; `name` may have dots ("linear.weight")."""
        return self._world.request({"do": "get", "target": (self._remote, name.split("."))})

    def set(self, name: str, value: Any) -> None:
        """Write an attribute; `name` may have dots."""
        *path, last = name.split(".")
        self._world.request({"do": "set", "target": (self._remote, path), "name": last, "value": value})

    def take(self, n: int) -> list:
        """Up to n next items of an iterator."""
        items, _ = self._next(n)
        return items

    def _next(self, n: int) -> tuple[list, bool]:
        reply = self._world.request({"do": "next", "target": (self._root, []), "n": n})
        if not (isinstance(reply, tuple) and len(reply) == 2 and isinstance(reply[0], list) and len(reply[0]) <= n):
            raise Ended("crashed", "the program's answer cannot be read (not a list of items)")
        return reply

    def __next__(self) -> Any:
        items, _ = self._next(1)
        if not items:
            raise StopIteration
        return items[0]

    def __iter__(self) -> Iterator[Any]:
        seen, ended = 0, False
        while not ended:
            items, ended = self._next(1000)
            yield from items
            seen += len(items)
            if seen > MAX_ITEMS:
                raise Ended("failed", f"the iterator did not end after {MAX_ITEMS} items")


class Impl:
    """The library or a learner's file, as a test sees it: `impl.attention(...)`, `impl.GPT(config)`."""

    def __init__(self, world: World):
        self._world = world

    def __getattr__(self, name: str) -> Callee:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._world.library:
            raise GraderError(
                f"impl has no {name!r}, only {', '.join(self._world.library)}: a test can use the chapter's tasks and "
                "what exercise.toml lists under `given`"
            )
        return Callee(self._world, name, (), self._world.library[name])


def names_of(chapter: Any) -> dict[str, str]:
    """The top-level names of a chapter's tasks and of what it gives, each with its module."""
    objects = [f"{task.module}:{task.top}" for task in chapter.tasks] + list(chapter.given)
    return {name.partition(":")[2].partition(".")[0]: name.partition(":")[0] for name in objects}


def library_impl(chapter: Any) -> Impl:
    """The library's own functions behind the same bytes that a learner's file is behind."""
    found = library_objects(chapter)
    return Impl(World(found, Session(found).answer))


def library_objects(chapter: Any) -> dict[str, Any]:
    """{name: the library's own function or class} of what tests of a chapter may use."""
    return {name: getattr(importlib.import_module(module), name) for name, module in names_of(chapter).items()}
