"""Comparing what came back with what is right, and saying where they differ so that the bug can be found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from minillm.course.proxy import Callee, RaisedThere


class Wrong(AssertionError):
    """The graded code answered, and the answer is wrong."""


def expect(condition: bool, message: str) -> None:
    """Fail with this message unless the condition holds."""
    if not condition:
        raise Wrong(message)


@contextmanager
def expect_error(
    kind: type[BaseException] | tuple[type[BaseException], ...], match: str | None = None
) -> Iterator[None]:
    """The block must raise this kind of exception (by class name; errors of this library are ValueErrors).

    Args:
        kind: one class, or several of which any will do.
        match: text that the message must contain.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(one.__name__ for one in kinds)
    try:
        yield
    except RaisedThere as error:
        if not {one.__name__ for one in kinds} & set(error.names):
            raise
        if match is not None and match not in error.message:
            raise Wrong(f"the {wanted} should say {match!r}; it says {error.message!r}") from None
        return
    raise Wrong(f"this input must be refused with {wanted}; no error was raised")


def expect_close(got: Any, expected: Any, tolerance: float = 1e-10, what: str = "") -> None:
    """Equal kind, shape and dtype, finite where expected is, and |got - expected| <= tolerance * max(1, |expected|).

    Args:
        got: what came back: tensor, array, number, or a list, tuple or dict of such.
        expected: of the same kind.
        tolerance: 1e-10 suits float64; give about 1e-5 for float32.
        what: names the value in the message ("the weights").

    Raises:
        Wrong: saying what differs: kind, shape, dtype, or the first entry beyond the tolerance and by how much.
    """
    _compare(got, expected, tolerance, what)


def expect_equal(got: Any, expected: Any, what: str = "") -> None:
    """Equal kind, shape, dtype and every entry; text, bytes, lists, dicts and sets alike."""
    _compare(got, expected, None, what)


def _compare(got: Any, expected: Any, tolerance: float | None, what: str) -> None:
    name = what or "the result"
    if isinstance(got, Callee):
        raise Wrong(f"{name} is an object ({got!r}), expected {_short(expected)}")
    if isinstance(expected, torch.Tensor | np.ndarray | np.generic):
        return _compare_arrays(got, expected, tolerance, name)
    if isinstance(expected, list | tuple):
        return _compare_sequences(got, expected, tolerance, name)
    if isinstance(expected, dict):
        return _compare_dicts(got, expected, tolerance, name)
    numbers = _is_number(got) and _is_number(expected)
    if type(got) is not type(expected) and not (numbers and isinstance(got, float) == isinstance(expected, float)):
        raise Wrong(f"{name} is {_short(got)} of type {type(got).__name__}, expected {_short(expected)} "
                    f"of type {type(expected).__name__}")
    if numbers:
        same = _entries_agree(np.asarray(got), np.asarray(expected), tolerance).item()
    else:
        same = got == expected
    if not same:
        raise Wrong(f"{name} is {_short(got)}, expected {_short(expected)}{_first_difference(got, expected)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _compare_sequences(got: Any, expected: Any, tolerance: float | None, name: str) -> None:
    if not isinstance(got, list | tuple) or isinstance(got, tuple) != isinstance(expected, tuple):
        raise Wrong(f"{name} is {_short(got)} of type {type(got).__name__}, expected a {_kind(expected)}")
    for place, (one, other) in enumerate(zip(got, expected, strict=False)):
        _compare(one, other, tolerance, f"item {place} of {name}")
    if len(got) != len(expected):
        raise Wrong(f"{name} has {len(got)} items, expected {len(expected)}; the first {min(len(got), len(expected))} "
                    f"agree (got {_short(got)}, expected {_short(expected)})")


def _compare_dicts(got: Any, expected: dict, tolerance: float | None, name: str) -> None:
    if not isinstance(got, dict):
        raise Wrong(f"{name} is {_short(got)} of type {type(got).__name__}, expected a dict")
    for key in expected:
        if key not in got:
            raise Wrong(f"{name} lacks the key {key!r} (expected value {_short(expected[key])})")
        _compare(got[key], expected[key], tolerance, f"entry {key!r} of {name}")
    if extra := [key for key in got if key not in expected]:
        raise Wrong(f"{name} has the key {extra[0]!r} (value {_short(got[extra[0]])}), which should not be there")


def _compare_arrays(got: Any, expected: Any, tolerance: float | None, name: str) -> None:
    if type(got) is torch.nn.Parameter:
        got = got.data
    kind = torch.Tensor if isinstance(expected, torch.Tensor) else np.ndarray
    scalar = isinstance(expected, np.generic)
    if not isinstance(got, np.generic | float | int if scalar else kind):
        raise Wrong(f"{name} is {_short(got)}, expected {_short(expected)}")
    if tuple(np.shape(got)) != tuple(np.shape(expected)):
        raise Wrong(f"{name} has shape {tuple(np.shape(got))}, expected {tuple(np.shape(expected))}")
    if not scalar and got.dtype != expected.dtype:
        raise Wrong(f"{name} has dtype {got.dtype}, expected {expected.dtype}")
    found, right = _plain(got), _plain(expected)
    agree = _entries_agree(found, right, tolerance)
    if not agree.all():
        raise Wrong(_describe(found, right, ~agree, name))


def _plain(value: Any) -> np.ndarray:
    """As a NumPy array in which differences can be computed."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        narrow = value.is_floating_point() and value.dtype not in (torch.float32, torch.float64, torch.float16)
        return (value.float() if narrow else value).numpy()
    return np.asarray(value)


def _entries_agree(got: np.ndarray, expected: np.ndarray, tolerance: float | None) -> np.ndarray:
    same = got == expected
    if expected.dtype.kind in "fc" and got.dtype.kind in "iufc":
        same = same | (np.isnan(got) & np.isnan(expected))
        if tolerance is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                bound = tolerance * np.maximum(1.0, np.abs(expected))
                same = same | (np.isfinite(expected) & (np.abs(got - expected) <= bound))
    return np.asarray(same)


def _describe(got: np.ndarray, expected: np.ndarray, differs: np.ndarray, name: str) -> str:
    first = tuple(int(i) for i in np.argwhere(differs)[0]) if differs.ndim else ()
    where = f"{name} at [{', '.join(map(str, first))}]" if first else name
    text = f"{where} is {_number(got[first])}, expected {_number(expected[first])}"
    if expected.dtype.kind in "iufc":
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(got.astype(np.complex128) - expected.astype(np.complex128))
        if first and np.isfinite(apart[first]):
            text += f" (off by {apart[first]:.3g})"
        largest = np.max(np.where(np.isfinite(apart), apart, 0.0))
        if differs.sum() > 1 and largest > 0:
            text += f"; the largest difference is {largest:.3g}"
    shape = f" of shape {tuple(expected.shape)}" if expected.ndim else ""
    return f"{text}; {int(differs.sum())} of {differs.size} entries{shape} differ" if differs.size > 1 else text


def _number(value: Any) -> str:
    return f"{value:.6g}" if np.asarray(value).dtype.kind == "f" else f"{value}"


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)} items"


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"a {kind} of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:110]}... ({len(text)} characters)"


def _first_difference(got: Any, expected: Any) -> str:
    """For long text and bytes: where they part."""
    if not (isinstance(got, str | bytes) and len(expected) > 20):
        return ""
    shorter = min(len(got), len(expected))
    agree = next((i for i in range(shorter) if got[i] != expected[i]), shorter)
    return f"; they part at position {agree}: {got[agree : agree + 20]!r} instead of {expected[agree : agree + 20]!r}"

