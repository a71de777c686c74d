"""A checkpoint folder in the Hugging Face layout: config.json and safetensors, in one file or in several with an index.

    DIR/config.json                        the model's kind and shape
        model.safetensors                  all tensors, or:
        model-00001-of-00002.safetensors   ...
        model.safetensors.index.json       {"metadata": {"total_size": N}, "weight_map": {tensor name: file name}}
        tokenizer.json  tokenizer_config.json  generation_config.json
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minillm.errors import CheckpointError
from minillm.train.checkpoint import sync_folder, write_file
from minillm.train.tensor_file import kind_of_file, tensor_file_chunks

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SHARD_BYTES = 5 * 10**9


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: if the file is missing, cut off, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON, or was cut off ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


class TensorFolder:
    """The tensors of a folder by name, whichever file holds them; each is read when it is asked for.

    Args:
        folder: holds model.safetensors, or an index and its files.

    Attributes:
        shapes: name -> shape, from the files' tables of contents alone.

    Raises:
        CheckpointError: if there are no weights, a file is missing or damaged, or index and files contradict each
            other. Pickles (pytorch_model.bin) are not opened: they could run code.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.file_of: dict[str, Path] = {}
        index = indexed_files(folder)
        for file in self.files(index):
            self.add(file)
        self.check_index(index)

    def files(self, index: Mapping[str, str] | None) -> list[Path]:
        """The weight files, in order."""
        if index is not None:
            return [self.folder / name for name in sorted(set(index.values()))]
        if (self.folder / WEIGHTS).is_file():
            return [self.folder / WEIGHTS]
        if pickles := [name for name in PICKLES if (self.folder / name).exists()]:
            raise CheckpointError(
                f"{self.folder} has its weights in {pickles[0]}, a Python pickle, which could run code and is not "
                "opened; save the model again as safetensors"
            )
        raise CheckpointError(f"{self.folder} has no weights: neither {WEIGHTS} nor {INDEX} is there")

    def add(self, file: Path) -> None:
        """Note the names and shapes of one file."""
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    if name in self.file_of:
                        raise CheckpointError(f"{name} is both in {self.file_of[name].name} and in {file.name}")
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    self.file_of[name] = file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a safetensors file but {kind_of_file(file)} ({error})") from error

    def check_index(self, index: Mapping[str, str] | None) -> None:
        """Every tensor must be where the index says."""
        if index is None:
            return
        there = {name: file.name for name, file in self.file_of.items()}
        if wrong := sorted(name for name in index.keys() | there.keys() if index.get(name) != there.get(name)):
            raise CheckpointError(
                f"{self.folder / INDEX} and the files disagree about {wrong[0]}: "
                f"{index.get(wrong[0])} in the index, found in {there.get(wrong[0])}"
            )

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        with safe_open(self.file_of[name], framework="pt") as tensors:
            return tensors.get_tensor(name)


def indexed_files(folder: Path) -> dict[str, str] | None:
    """The index's tensor name -> file name, or None where there is no index."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return None
    files = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map of tensor names to file names")
    if outside := [name for name in files.values() if Path(name).name != name or name in ("", "..")]:
        raise CheckpointError(f"{folder / INDEX} names {outside[0]!r}; files must lie in the folder itself")
    return files


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes its place as `target` when the block ends well, and vanishes otherwise.

    Args:
        target: must not exist yet, or be empty.

    Yields:
        the temporary folder beside it.

    Raises:
        CheckpointError: if the target holds something already, or cannot be written.
    """
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} is there already; choose a new folder, or remove it first")
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sync_folder(temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON and bring it to the disk."""
    write_file(path, [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()])


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors into one file, or into several with an index if they are larger than `shard_bytes` together.

    Args:
        folder: an empty folder.
        tensors: name -> tensor.
        shard_bytes: the most bytes of tensors in one file; a larger tensor gets a file of its own.
    """
    shards = list(split_by_size(tensors, shard_bytes))
    if len(shards) <= 1:
        write_file(folder / WEIGHTS, tensor_file_chunks(tensors, {"format": "pt"}))
        return
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, tensor_file_chunks(shard, {"format": "pt"}))
    files = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(map(n_bytes, tensors.values()))
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def split_by_size(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterable[dict[str, Tensor]]:
    """Cut a mapping, in its order, into parts of at most `shard_bytes`.

    Example:
        >>> import torch
        >>> four_bytes = torch.zeros(1)
        >>> [list(part) for part in split_by_size({"a": four_bytes, "b": four_bytes, "c": four_bytes}, 8)]
        [['a', 'b'], ['c']]
    """
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + n_bytes(tensor) > shard_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += n_bytes(tensor)
    if part:
        yield part


def n_bytes(tensor: Tensor) -> int:
    """Memory of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()
