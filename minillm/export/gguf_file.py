"""The GGUF file format, version 3: a table of settings, a table of tensors, and their bytes.

    "GGUF"  version  number of tensors  number of settings
    settings: key, type, value
    tensors: name, dimensions from the fastest to the slowest, block type, place in the data
    zeros up to a multiple of 32, then each tensor's bytes, each filled up with zeros to a multiple of 32

All numbers are little-endian; a text is its length in 8 bytes and its UTF-8. The names that llama.cpp gives settings
and tensors are in `gguf`, not here.

Source:
    ggml's docs/gguf.md.
"""

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.compress import ggml
from minillm.errors import CheckpointError
from minillm.train.checkpoint import sync_folder, write_file

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
ALIGNMENT_KEY = "general.alignment"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of settings
UINT32, INT32, FLOAT32, BOOL, TEXT, ARRAY = 4, 5, 6, 7, 8, 9
MAX_DIMS = 4
Value = bool | int | float | str | Sequence


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file.

    Attributes:
        shape: as numpy has it; the last dimension is the fastest, and blocks are cut from it.
        block_type: a name of `ggml.TYPES`.
        data: (rows, row bytes) uint8, where all dimensions but the last count the rows.
    """

    shape: tuple[int, ...]
    block_type: str
    data: np.ndarray

    def decoded(self) -> np.ndarray:
        """The numbers that the bytes mean, float32, of that shape."""
        return ggml.decode(self.data, self.block_type).reshape(self.shape)


def padding(n_bytes: int, alignment: int = ALIGNMENT) -> int:
    """How many zeros fill n_bytes up to a multiple.

    Example:
        >>> padding(33), padding(64)
        (31, 0)
    """
    return -n_bytes % alignment


def text_bytes(text: str) -> bytes:
    """A text: its length, then its UTF-8."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def value_bytes(value: Value) -> bytes:
    """A setting's type and value: a bool, a text, an int as uint32, a float as float32, or a list of one kind.

    An empty list is one of texts; ints in a list are int32, as token types are.

    Raises:
        CheckpointError: for a value of another kind, or an int that does not fit.

    Example:
        >>> value_bytes(7).hex(), value_bytes([True]).hex()
        ('0400000007000000', '0900000007000000010000000000000001')
    """
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + text_bytes(value)
    if isinstance(value, list | tuple):
        kind = type(value[0]) if value else str
        if kind in (list, tuple) or any(type(item) is not kind for item in value):
            raise CheckpointError("a list in a GGUF file holds texts, numbers or bools, all of one kind")
        number = {bool: BOOL, int: INT32, float: FLOAT32}.get(kind, TEXT)
        items = [text_bytes(item) if number == TEXT else number_bytes(item, number) for item in value]
        return struct.pack("<IIQ", ARRAY, number, len(items)) + b"".join(items)
    number = {bool: BOOL, int: UINT32, float: FLOAT32}.get(type(value), TEXT)
    return struct.pack("<I", number) + number_bytes(value, number)


def number_bytes(value: bool | int | float, number: int) -> bytes:
    """One number in the format that has this number; TEXT is none."""
    try:
        return struct.pack(f"<{NUMBERS[number]}", value)
    except (KeyError, struct.error, OverflowError) as error:
        raise CheckpointError(f"{value!r} cannot be a setting of a GGUF file: {error or type(value)}") from error


def head_bytes(metadata: Mapping[str, Value], tensors: Mapping[str, StoredTensor]) -> bytes:
    """Everything before the data."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [text_bytes(key) + value_bytes(value) for key, value in metadata.items()]
    place = 0
    for name, tensor in tensors.items():
        dims, number = tensor.shape[::-1], ggml.block_type(tensor.block_type).number
        parts.append(text_bytes(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, place))
        place += tensor.data.nbytes + padding(tensor.data.nbytes)
    head = b"".join(parts)
    return head + bytes(padding(len(head)))


def write_gguf(path: str | Path, metadata: Mapping[str, Value], tensors: Mapping[str, StoredTensor]) -> Path:
    """Write a file; it appears complete or not at all.

    Args:
        path: a file that is not there yet.
        metadata: key -> value, see `value_bytes`.
        tensors: name -> bytes, in the order in which they are written.

    Returns:
        the path.

    Raises:
        CheckpointError: if the file is there already or cannot be written, or a value has no form in it.
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} is there already; choose another name, or remove it first")

    def chunks() -> Iterator[bytes | memoryview]:
        yield head_bytes(metadata, tensors)
        for tensor in tensors.values():
            yield memoryview(np.ascontiguousarray(tensor.data).reshape(-1))
            yield bytes(padding(tensor.data.nbytes))

    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(temporary, chunks())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


class Cursor:
    """Reads a buffer from front to back, and says where it ends too soon.

    Args:
        data: the file's bytes.
        name: of the file, for messages.
    """

    def __init__(self, data: np.ndarray, name: str):
        self.data, self.name, self.place = data, name, 0

    def take(self, n_bytes: int) -> bytes:
        """The next bytes.

        Raises:
            CheckpointError: if there are not so many.
        """
        if n_bytes > len(self.data) - self.place:
            raise CheckpointError(
                f"{self.name} was cut off or is damaged: {n_bytes} bytes expected at {self.place}, the file ends at "
                f"{len(self.data)}"
            )
        self.place += n_bytes
        return self.data[self.place - n_bytes : self.place].tobytes()

    def numbers(self, form: str) -> tuple:
        """The next numbers of a `struct` form."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def text(self) -> str:
        """The next text."""
        (length,) = self.numbers("Q")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.name} is damaged: no UTF-8 before byte {self.place}") from error

    def value(self, kind: int | None = None) -> Value:
        """The next value, of a type that stands before it if none is given."""
        if kind is None:
            (kind,) = self.numbers("I")
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner, length = self.numbers("IQ")
            if inner in NUMBERS:
                return list(self.numbers(f"{self.bounded(length)}{NUMBERS[inner]}"))
            if inner == TEXT:
                return [self.text() for _ in range(self.bounded(length))]
        if kind not in NUMBERS:
            raise CheckpointError(f"{self.name} is damaged or newer: no type of setting has the number {kind}")
        return self.numbers(NUMBERS[kind])[0]

    def bounded(self, length: int) -> int:
        """A count of things of at least a byte each, which cannot be more than the bytes left."""
        if length > len(self.data) - self.place:
            self.take(length)
        return length


def read_gguf(path: str | Path) -> tuple[dict[str, Value], dict[str, StoredTensor]]:
    """Settings and tensors of a file; the tensors' bytes are mapped, not read, until they are used.

    Args:
        path: a GGUF file of version 3 whose tensors all have types of `ggml.TYPES`.

    Returns:
        key -> value, and name -> tensor.

    Raises:
        CheckpointError: if the file is missing, of another format or version, damaged, or has other types.
    """
    try:
        cursor = Cursor(np.memmap(path, dtype=np.uint8, mode="r"), str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a GGUF file ({error})") from error
    if cursor.take(4) != MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
    version, n_tensors, n_settings = cursor.numbers("IQQ")
    if version != VERSION:
        raise CheckpointError(f"{path} is GGUF of version {version}; this library reads version {VERSION}")
    metadata = {cursor.text(): cursor.value() for _ in range(cursor.bounded(n_settings))}
    infos = [tensor_info(cursor) for _ in range(cursor.bounded(n_tensors))]
    alignment = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
    start = cursor.place + padding(cursor.place, alignment)
    return metadata, {name: stored_at(cursor, name, start, *info) for name, *info in infos}


def tensor_info(cursor: Cursor) -> tuple[str, tuple[int, ...], str, int]:
    """Name, shape, block type and place of the next tensor in the table."""
    name = cursor.text()
    (n_dims,) = cursor.numbers("I")
    if n_dims > MAX_DIMS:
        raise CheckpointError(f"{cursor.name} is damaged: {name!r} has {n_dims} dimensions")
    *dims, number, place = cursor.numbers(f"{n_dims}QIQ")
    names = [kind.name for kind in ggml.TYPES.values() if kind.number == number]
    if not names:
        raise CheckpointError(f"{cursor.name}: {name} has block type {number}; known here: {', '.join(ggml.TYPES)}")
    return name, tuple(dims[::-1]), names[0], place


def stored_at(
    cursor: Cursor, name: str, start: int, shape: tuple[int, ...], block_type: str, place: int
) -> StoredTensor:
    """The bytes of a tensor, checked to lie within the file."""
    kind = ggml.block_type(block_type)
    width, n_rows = (shape[-1], math.prod(shape[:-1])) if shape else (1, 1)
    row_bytes = width // kind.n_weights * kind.n_bytes
    if width % kind.n_weights or start + place + n_rows * row_bytes > len(cursor.data):
        raise CheckpointError(f"{cursor.name} was cut off or is damaged: {name} of shape {shape} is not all there")
    data = cursor.data[start + place :][: n_rows * row_bytes]
    return StoredTensor(shape, block_type, data.reshape(n_rows, row_bytes))
