"""Tensors in the safetensors format: a length, a JSON table of contents, then the bytes. Nothing in it can be executed.

Layout: 8 bytes little-endian N, N bytes of JSON {name: {"dtype", "shape", "data_offsets": [from, to]}} padded with
spaces to a multiple of 8, then the data; offsets count from the end of the header.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minillm.errors import CheckpointError

DTYPE_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def tensor_file_chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece, so that no second copy of all tensors is ever in memory.

    Args:
        tensors: name -> tensor of any device; wide number formats come first in the file, so that all stay aligned.
        metadata: texts for the "__metadata__" entry.

    Yields:
        the length and header, then the bytes of each tensor.

    Raises:
        CheckpointError: if a tensor has a number format that the file cannot name.

    Source:
        the format: github.com/huggingface/safetensors, "Format".
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_CODES:
            raise CheckpointError(f"{name} has dtype {tensor.dtype}, which cannot be saved; convert it first")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        end = offset + tensors[name].numel() * tensors[name].element_size()
        shape, code = list(tensors[name].shape), DTYPE_CODES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if it is not a safetensors file; the message says what it looks like instead.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file but {kind_of_file(path)} ({error})") from error


def kind_of_file(path: Path) -> str:
    """What the first bytes look like, in words."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        return f"unreadable, {error.strerror}"
    if not start:
        return "empty"
    if start[:2] == b"PK":
        return "a zip archive (torch.save?), which may hold a pickle and is not opened"
    if start[:1] == b"\x80" and len(start) > 1 and start[1] <= 5:
        return "a Python pickle, which could run code and is not opened"
    return f"data that begins with {start!r}"


def untie(state: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keep one name for each tensor that a model holds under several (tied weights).

    Args:
        state: a module's state_dict.

    Returns:
        name -> tensor without repetitions, and {other name: kept name}.

    Raises:
        CheckpointError: if an entry is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first_name: dict[tuple, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name} in the model's state is a {type(value).__name__}; only tensors can be saved")
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in first_name:
            tied[name] = first_name[place]
        else:
            tensors[name] = value
            first_name[place] = name
    return tensors, tied
