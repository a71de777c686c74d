"""The side on which the graded code lives: requests come in as bytes, answers go out as bytes.

The same session serves the library in the grader's own process and a learner's file in a child without rights, so a
test behaves alike in both worlds.
"""

import itertools
import linecache
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch

from minillm.course import wire

MAX_MESSAGE = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # differs from run to run, and answers must not


class Session:
    """Performs requests on named objects and on the objects that earlier answers left here.

    A request is a dict. `do` is one of

    - "call": call `target` with `args` and `kwargs`; with `after` true also return the positional arguments afterwards;
    - "gradients": call and differentiate, see `gradients`;
    - "get" and "set": read or write the attribute `name` (dots allowed) of `target`;
    - "next": up to `n` items of an iterator, and whether it ended.

    `target` is [name or number, attribute path]. An answer is {"value": ...} or {"raised": {...}}.

    Args:
        names: what can be called by name.
        watched: beginnings of file names; the line reported for an exception is the deepest one in such a file.
    """

    def __init__(self, names: dict[str, Any], watched: tuple[str, ...] = ()):
        self.names, self.watched = names, watched
        self.kept: list[Any] = []

    def answer(self, request: bytes) -> bytes:
        """One request -> one answer; whatever the code called raises becomes part of the answer."""
        try:
            content = wire.loads(request, self._find, importing=True)
            return wire.dumps({"value": self._perform(content)}, self._keep)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return wire.dumps({"raised": describe_exception(error, self.watched)})

    def _keep(self, value: Any) -> int:
        for number, kept in enumerate(self.kept):
            if kept is value:
                return number
        self.kept.append(value)
        return len(self.kept) - 1

    def _find(self, remote: wire.Remote) -> Any:
        return self.kept[remote.number]

    def _target(self, target: tuple) -> Any:
        root, path = target
        found = self.names[root] if isinstance(root, str) else root
        for name in path:
            found = getattr(found, name)
        return found

    def _perform(self, request: dict) -> Any:
        target = self._target(request["target"])
        if request["do"] == "get":
            return target
        if request["do"] == "set":
            setattr(target, request["name"], request["value"])
            return None
        if request["do"] == "next":
            return take(target, request["n"])
        args, kwargs = request["args"], request["kwargs"]
        if request["do"] == "gradients":
            return gradients(target, args, kwargs, request["output_gradient"])
        value = target(*args, **kwargs)
        return (value, args) if request["after"] else value


def take(iterator: Any, n: int) -> tuple[list, bool]:
    """Up to `n` next items, and whether the iterator has ended; anything iterable is begun first."""
    iterator = iterator if hasattr(iterator, "__next__") else iter(iterator)
    items = list(itertools.islice(iterator, n))
    return items, len(items) < n


def gradients(target: Callable, args: Iterable, kwargs: dict, output_gradient: Any) -> tuple[Any, list, dict | None]:
    """Call, and differentiate by everything that can be differentiated by.

    Args:
        target: a function, a module, or a method of a module.
        args: the floating-point tensors among them are differentiated by.
        kwargs: passed on as they are.
        output_gradient: the gradient of the loss by the result, or one for each tensor of a tuple.

    Returns:
        the value, one gradient (or None) for each positional argument, and {parameter name: gradient or None} for a
        module, else None. None also stands for a result that is not connected to what it should depend on.
    """
    args = [_leaf(value) for value in args]
    value = target(*args, **kwargs)
    outputs = list(value) if isinstance(value, tuple | list) else [value]
    given = list(output_gradient) if isinstance(output_gradient, tuple | list) else [output_gradient]
    pairs = [(out, gradient) for out, gradient in zip(outputs, given, strict=False) if _is_connected(out)]
    module = target if isinstance(target, torch.nn.Module) else getattr(target, "__self__", None)
    parameters = dict(module.named_parameters()) if isinstance(module, torch.nn.Module) else {}
    wanted = [x for x in [*args, *parameters.values()] if isinstance(x, torch.Tensor) and x.requires_grad]
    found: dict[int, torch.Tensor] = {}
    if pairs and wanted:
        outs, weights = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outs, wanted, weights, allow_unused=True)
        found = {id(leaf): grad for leaf, grad in zip(wanted, grads, strict=True)}
    by_name = {name: found.get(id(parameter)) for name, parameter in parameters.items()}
    return value, [found.get(id(leaf)) for leaf in args], by_name if isinstance(module, torch.nn.Module) else None


def _leaf(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _is_connected(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def describe_exception(error: BaseException, watched: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a learner needs to know of an exception: the names of its class and bases, message, line number and line."""
    try:
        message = str(error)
    except BaseException:
        message = "(its message cannot be read)"
    names = [kind.__name__ for kind in type(error).__mro__ if kind is not object]
    line, code = None, ""
    for frame in traceback.extract_tb(error.__traceback__):
        if watched and frame.filename.startswith(watched):
            line, code = frame.lineno, (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    if line is None and isinstance(error, SyntaxError):
        line, code = error.lineno, (error.text or "").strip()
    return {"names": names, "message": _ADDRESS.sub("", message)[:MAX_MESSAGE], "line": line, "code": code[:200]}
