"""How values cross between a trusted grader and a learner's program: JSON for the structure, NPZ for the numbers.

Nothing that arrives can run code: no pickle, no class but frozen dataclasses of this library, every size checked before
anything is allocated. What cannot be written down (a module, an iterator) stays where it is and travels as a `Handle`.
"""

import dataclasses
import importlib
import io
import itertools
import json
import math
import re
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from minillm.errors import DataError

MAX_STRUCTURE_BYTES = 8 << 20
MAX_ARRAY_BYTES = 128 << 20
MAX_DEPTH = 64
HEADER = struct.Struct(">II")  # bytes of JSON, bytes of NPZ
DTYPES = {str(x).removeprefix("torch."): x for x in vars(torch).values() if isinstance(x, torch.dtype)}
_SAFE_KINDS = "biufcSU"  # kinds of NumPy dtypes that hold no Python objects
# NumPy's own reader evaluates the header with `ast`, which is more than is needed and, in Python 3.11, not for threads.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][biufcSU]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}(?:, |,)?)*)\), \} *\n",
    re.DOTALL,
)
_BROKEN = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError, RecursionError),
    *(MemoryError, EOFError, ImportError, zipfile.BadZipFile, struct.error, NotImplementedError),
)


class WireError(DataError):
    """Bytes that are not a message, or a value that cannot be one."""


@dataclasses.dataclass(frozen=True)
class Seeded:
    """Becomes a fresh random generator on the other side: torch's, or NumPy's with library="numpy"."""

    seed: int
    library: str = "torch"


@dataclasses.dataclass(frozen=True)
class Endless:
    """Becomes an iterator on the other side that repeats these items for ever."""

    items: list


@dataclasses.dataclass(frozen=True)
class Remote:
    """An object that stayed on the other side: its number there and the name of its class."""

    number: int
    kind: str = ""


def dumps(value: Any, keep: Callable[[Any], int] | None = None) -> bytes:
    """Write a value down.

    Args:
        value: None, bool, int, float, complex, fraction, str, bytes, list, tuple, dict, set, range, slice, path,
            NumPy arrays and scalars, torch tensors (with `requires_grad` and `.grad` of leaves), dtypes, devices,
            `Seeded`, `Endless`, `Remote`, frozen dataclasses of this library, nested at will. One tensor in two
            places stays one tensor.
        keep: is given an object that cannot be written down and returns the number by which it can be found again.

    Returns:
        The header and the two parts; `loads` reads them.

    Raises:
        WireError: a value that cannot be written down (without `keep`), or one beyond the size limits.
    """
    writer = _Writer(keep)
    try:
        structure = json.dumps(writer.write(value, 0)).encode("ascii")
    except (ValueError, RecursionError) as error:
        raise WireError(f"this value cannot be sent: {error}") from None
    arrays = io.BytesIO()
    if writer.arrays:
        np.savez(arrays, **writer.arrays)
    _check_sizes(len(structure), arrays.tell())
    return HEADER.pack(len(structure), arrays.tell()) + structure + arrays.getvalue()


def loads(data: bytes, find: Callable[[Remote], Any] | None = None, importing: bool = False) -> Any:
    """Read a value that `dumps` wrote, trusting nothing about the bytes.

    Args:
        data: header and both parts.
        find: turns a `Remote` into what stands for it on this side; None leaves it.
        importing: whether a dataclass may import its module; a trusted side says no and takes loaded ones only.

    Raises:
        WireError: whatever is wrong with the bytes.
    """
    try:
        n_structure, n_arrays = HEADER.unpack_from(data)
        _check_sizes(n_structure, n_arrays)
        if len(data) != HEADER.size + n_structure + n_arrays:
            raise WireError(f"a message of {len(data)} bytes, its header says {HEADER.size + n_structure + n_arrays}")
        arrays = _read_arrays(data[HEADER.size + n_structure :])
        structure = json.loads(data[HEADER.size : HEADER.size + n_structure])
        return _Reader(arrays, find, importing).read(structure, 0)
    except WireError:
        raise
    except _BROKEN as error:
        raise WireError(f"not a message: {type(error).__name__}: {str(error)[:200]}") from None


def body_bytes(header: bytes) -> int:
    """How many bytes follow this header.

    Raises:
        WireError: if they are too many.
    """
    n_structure, n_arrays = HEADER.unpack(header)
    _check_sizes(n_structure, n_arrays)
    return n_structure + n_arrays


def _check_sizes(n_structure: int, n_arrays: int) -> None:
    if n_structure > MAX_STRUCTURE_BYTES or n_arrays > MAX_ARRAY_BYTES:
        raise WireError(
            f"a value of {n_structure + n_arrays} bytes; at most {MAX_STRUCTURE_BYTES} of structure "
            f"and {MAX_ARRAY_BYTES} of numbers can be sent"
        )


def _read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file; sizes are compared before memory is taken."""
    if not data:
        return {}
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
                raise WireError("arrays must be stored uncompressed")
            if entry.filename in arrays or len(arrays) > 100_000:
                raise WireError("too many arrays, or one name twice")
            arrays[entry.filename] = _read_array(archive.read(entry))
    return arrays


def _read_array(data: bytes) -> np.ndarray:
    header = _NPY_HEADER.match(data)
    if header is None:
        raise WireError("an array whose NPY header is not as NumPy writes it, or of a dtype that is not read")
    dtype, fortran = np.dtype(header[1].decode("ascii")), header[2] == b"True"
    shape = tuple(int(size) for size in header[3].replace(b",", b" ").split())
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise WireError(f"an array of shape {shape} does not have {len(data) - header.end()} bytes")
    flat = np.frombuffer(data, np.uint8, offset=header.end()).copy()
    if dtype.kind == "b":
        flat = (flat != 0).view(np.uint8)
    array = flat.view(dtype) if flat.size else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


class _Writer:
    """Turns values into JSON with a `type` in every object, and collects the arrays."""

    def __init__(self, keep: Callable[[Any], int] | None):
        self.keep, self.arrays, self.known = keep, {}, {}
        self.alive: list[Any] = []  # so that no id is given twice

    def write(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError(f"a value nested deeper than {MAX_DEPTH}")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in _SAFE_KINDS:
            return self._array(value)
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
            return self._tensor(value, depth)
        for kinds, name, content in _PLAIN:
            if isinstance(value, kinds):
                return {"type": name, "value": content(value)}
        for kinds, name, content in _CONTAINERS:
            if isinstance(value, kinds):
                return {"type": name, "value": self._items(content(value), depth, name.endswith("set"))}
        if isinstance(value, bool | int | float | str):  # a subclass
            return next(plain(value) for plain in (int, float, str) if isinstance(value, plain))
        if _is_config(type(value)):
            return self._config(value, depth)
        if self.keep is None:
            raise WireError(f"a {type(value).__name__} cannot be sent; arrays, tensors, numbers, text and lists can")
        return {"type": "remote", "value": [self.keep(value), type(value).__name__[:100]]}

    def _items(self, items: Any, depth: int, unordered: bool) -> list:
        written = [self.write(item, depth + 1) for item in items]
        return sorted(written, key=json.dumps) if unordered else written

    def _name(self, array: np.ndarray) -> str:
        self.arrays[f"a{len(self.arrays)}"] = array
        return f"a{len(self.arrays) - 1}"

    def _array(self, value: np.ndarray | np.generic) -> dict:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        if id(value) not in self.known:
            self.alive.append(value)
            array = np.asarray(value)
            self.known[id(value)] = self._name(array.astype(array.dtype.newbyteorder("="), copy=False))
        return {"type": kind, "value": self.known[id(value)]}

    def _tensor(self, value: torch.Tensor, depth: int) -> dict:
        if id(value) in self.known:
            return self.known[id(value)]
        self.alive.append(value)
        flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
        written = {"type": "tensor", "value": self._name(flat.numpy()), "shape": list(value.shape)}
        written["dtype"] = str(value.dtype).removeprefix("torch.")
        if value.is_leaf and value.requires_grad:
            written["leaf"] = "parameter" if isinstance(value, torch.nn.Parameter) else "tensor"
        if value.is_leaf and value.grad is not None:
            written["grad"] = self.write(value.grad, depth + 1)
        self.known[id(value)] = written
        return written

    def _config(self, value: Any, depth: int) -> dict:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"type": "config", "value": self._items(fields.items(), depth, False), "class": name}


def _is_config(kind: type) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        and kind.__dataclass_params__.frozen
        and kind.__module__.startswith("minillm.")
        and not kind.__module__.startswith("minillm.course")
    )


_PLAIN: tuple[tuple[Any, str, Callable], ...] = (
    (complex, "complex", lambda value: [value.real, value.imag]),
    (Fraction, "fraction", lambda value: [value.numerator, value.denominator]),
    (bytes | bytearray, "bytes", lambda value: bytes(value).hex()),
    (torch.dtype, "dtype", lambda value: str(value).removeprefix("torch.")),
    (torch.device, "device", str),
    (PurePath, "path", str),
    (range, "range", lambda value: [value.start, value.stop, value.step]),
    (slice, "slice", lambda value: [value.start, value.stop, value.step]),
    (Seeded, "seeded", lambda value: [value.seed, value.library]),
    (Remote, "remote", lambda value: [value.number, value.kind]),
)
_CONTAINERS: tuple[tuple[Any, str, Callable], ...] = (
    (Endless, "endless", lambda value: value.items),
    (tuple, "tuple", list),
    (list, "list", list),
    (dict, "dict", lambda value: [list(pair) for pair in value.items()]),
    (set, "set", list),
    (frozenset, "frozenset", list),
)


class _Reader:
    """Turns JSON back into values; whatever is not as `_Writer` writes it raises."""

    def __init__(self, arrays: dict[str, np.ndarray], find: Callable[[Remote], Any] | None, importing: bool):
        self.arrays, self.find, self.importing = arrays, find, importing
        self.tensors: dict[str, torch.Tensor] = {}

    def read(self, node: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError(f"a value nested deeper than {MAX_DEPTH}")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        kind, value = node["type"], node["value"]
        if kind == "tensor":
            return self._tensor(node, depth)
        if kind == "array":
            return self._array(value)
        if kind == "scalar":
            return self._array(value)[()]
        if kind == "config":
            return self._config(node["class"], [self.read(item, depth + 1) for item in value])
        if kind in _READ_ITEMS:
            return _READ_ITEMS[kind]([self.read(item, depth + 1) for item in value])
        if kind == "remote":
            remote = Remote(int(value[0]), str(value[1]))
            return remote if self.find is None else self.find(remote)
        return _READ_PLAIN[kind](value)

    def _array(self, name: str) -> np.ndarray:
        return self.arrays[f"{name}.npy"]

    def _tensor(self, node: dict, depth: int) -> torch.Tensor:
        name = node["value"]
        if name not in self.tensors:
            flat, dtype, shape = self._array(name), DTYPES[node["dtype"]], [int(size) for size in node["shape"]]
            if flat.dtype != np.uint8 or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != flat.size:
                raise WireError(f"{flat.size} bytes are not a {dtype} tensor of shape {shape}")
            if dtype == torch.bool:
                flat = (flat != 0).view(np.uint8)
            tensor = torch.from_numpy(flat.reshape(-1)).view(dtype).reshape(shape)
            if "leaf" in node:
                parameter = node["leaf"] == "parameter"
                tensor = torch.nn.Parameter(tensor) if parameter else tensor.requires_grad_()
            if "grad" in node:
                tensor.grad = self.read(node["grad"], depth + 1)
            self.tensors[name] = tensor
        return self.tensors[name]

    def _config(self, name: str, pairs: list) -> Any:
        module_name, _, qualified = name.partition(":")
        if not module_name.startswith("minillm."):
            raise WireError(f"{name} is not of this library")
        found = importlib.import_module(module_name) if self.importing else sys.modules[module_name]
        for part in qualified.split("."):
            found = vars(found)[part]
        if not (isinstance(found, type) and _is_config(found)):
            raise WireError(f"{name} is not a frozen dataclass of this library")
        return found(**dict(pairs))


def _generator(value: list) -> torch.Generator | np.random.Generator:
    seed, library = value
    return np.random.default_rng(seed) if library == "numpy" else torch.Generator().manual_seed(seed)


def _fraction(value: list) -> Fraction:
    numerator, denominator = value
    if type(numerator) is not int or type(denominator) is not int or denominator < 1:
        raise WireError("a fraction is two integers, the second above 0")
    return Fraction(numerator, denominator)


_READ_ITEMS: dict[str, Callable[[list], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": lambda items: {key: value for key, value in items},
    "endless": itertools.cycle,
}
_READ_PLAIN: dict[str, Callable[[Any], Any]] = {
    "complex": lambda value: complex(*value),
    "fraction": _fraction,
    "bytes": bytes.fromhex,
    "dtype": DTYPES.__getitem__,
    "device": torch.device,
    "path": Path,
    "range": lambda value: range(*value),
    "slice": lambda value: slice(*value),
    "seeded": _generator,
}



def receive(channel: socket.socket, deadline: float | None = None) -> bytes:
    """The next message, header included.

    Args:
        channel: a connected stream.
        deadline: on the clock of `time.monotonic`, in seconds; None waits for ever.

    Raises:
        WireError: if the stream ends or the message is too large.
        TimeoutError: after the deadline.
    """
    header = _receive_bytes(channel, HEADER.size, deadline)
    return header + _receive_bytes(channel, body_bytes(header), deadline)


def _receive_bytes(channel: socket.socket, n: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < n:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            channel.settimeout(remaining)
        part = channel.recv(min(n - len(received), 1 << 20))
        if not part:
            raise WireError("the other side has ended")
        received += part
    return bytes(received)
