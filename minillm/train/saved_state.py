"""The plain pair: any module, optimizer and step to one path or file object, and back."""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError
from minillm.train.checkpoint import check_weights, save_failure

PathOrFile = str | os.PathLike | BinaryIO


def save_state(module: nn.Module, optimizer: Optimizer, step: int, path_or_file: PathOrFile) -> None:
    """Save weights, optimizer and step with torch.save.

    A path is replaced only when the new file is whole and on the disk; a file object is written from where it stands.

    Args:
        module: any module.
        optimizer: any torch optimizer.
        step: number of steps made so far.
        path_or_file: where to.

    Raises:
        CheckpointError: if it cannot be written (disk full?); a file that was there before is untouched.
    """
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    if not isinstance(path_or_file, str | os.PathLike):
        write_content(content, path_or_file, Path(getattr(path_or_file, "name", "the file")))
        return
    path = Path(path_or_file)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            write_content(content, file, path)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(save_failure(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_content(content: dict, file: BinaryIO, path: Path) -> None:
    """torch.save reports a full disk as a RuntimeError about positions; say what it is."""
    try:
        torch.save(content, file)
        file.flush()
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise CheckpointError(save_failure(path, cause)) from error


def load_state(path_or_file: PathOrFile, module: nn.Module, optimizer: Optimizer) -> int:
    """Load what `save_state` wrote; nothing changes unless all of it fits.

    Args:
        path_or_file: where from; a file object is read from where it stands.
        module: of the same architecture; changed in place.
        optimizer: of the same kind over the same parameters in the same order; changed in place.

    Returns:
        the step.

    Raises:
        CheckpointError: if it is missing, damaged, not such a file, or for another module or optimizer. Only tensors,
            numbers, texts, lists and dictionaries are read: nothing in the file is executed.
    """
    content = read_content(path_or_file)
    check_weights(Path(str(path_or_file)), content["model"], module)
    check_groups(content["optimizer"], optimizer)
    module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]


def read_content(path_or_file: PathOrFile) -> dict:
    """The dictionary of `save_state`, with every way of being damaged turned into one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a foreign pickle gets our error, not torch's advice
            content = torch.load(path_or_file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error).partition("\n")[0]
        raise CheckpointError(f"{path_or_file} refused: it holds more than tensors and plain data ({text})") from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        text = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path_or_file} is missing, cut off or not a saved state ({text})") from error
    if not isinstance(content, Mapping) or not content.keys() >= {"model", "optimizer", "step"}:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path_or_file}: expected model, optimizer and step, found {found}")
    return dict(content)


def check_groups(saved: Mapping, optimizer: Optimizer) -> None:
    """Refuse optimizer state with other groups, before the module is changed."""
    expected = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in saved.get("param_groups", [])]
    if expected != found:
        raise CheckpointError(f"the saved optimizer has groups of {found} parameters, this one of {expected}")
