"""The state of a run: taken out of the live objects, put back into them, and one file that holds it."""

import copy
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError
from minillm.runtime import AnyGenerator, generator_states, restore_generators
from minillm.train.checkpoint import check_weights, save_failure

PathOrFile = str | os.PathLike | BinaryIO


@dataclass
class RunState:
    """A run at one moment, as tensors and plain data; nothing in it changes when the run goes on.

    Attributes:
        model: the module's state_dict.
        optimizer: the optimizer's state_dict.
        step: number of steps made so far; learning rate and batch are functions of it.
        generators: name -> state of a generator that the run draws from.
    """

    model: dict[str, Tensor]
    optimizer: dict
    step: int
    generators: dict[str, dict] = field(default_factory=dict)


def capture_state(
    module: nn.Module, optimizer: Optimizer, step: int, generators: Mapping[str, AnyGenerator] | None = None
) -> RunState:
    """Copy all that a run needs to go on as if it had never stopped.

    Copy: a state_dict is a view of the live tensors, and the next step would change it.

    Args:
        module: any module.
        optimizer: any torch optimizer.
        step: number of steps made so far.
        generators: name -> torch or numpy generator that the run draws from; their states are read with
            `generator_states`.

    Returns:
        the state, which shares no memory with the module and the optimizer.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> state = capture_state(layer, torch.optim.SGD(layer.parameters()), step=7)
        >>> _ = nn.init.constant_(layer.weight, 5.0)
        >>> state.step, state.model["weight"].item()
        (7, 2.0)
    """
    return RunState(
        copy.deepcopy(module.state_dict()),
        copy.deepcopy(optimizer.state_dict()),
        step,
        generator_states(generators or {}),
    )


def restore_state(
    state: RunState, module: nn.Module, optimizer: Optimizer, generators: Mapping[str, AnyGenerator] | None = None
) -> int:
    """Put a captured state back; it may be put back again, since it still shares no memory with anything.

    Args:
        state: what `capture_state` gave.
        module: of the same architecture; changed in place.
        optimizer: of the same kind over the same parameters in the same order; changed in place.
        generators: name -> generator to be put back with `restore_generators`, changed in place; each needs a saved
            state of its name.

    Returns:
        the step.

    Raises:
        CheckpointError: if module, optimizer or generators do not fit; nothing is changed then.
    """
    check_fits(state, module, optimizer, "the captured state")
    restore_generators(generators or {}, state.generators)
    module.load_state_dict(state.model)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    return state.step


def save_state(
    module: nn.Module,
    optimizer: Optimizer,
    step: int,
    path_or_file: PathOrFile,
    generators: Mapping[str, AnyGenerator] | None = None,
) -> None:
    """Save what `capture_state` captures with torch.save.

    A path is replaced only when the new file is whole and on the disk; a file object is written from where it stands.

    Args:
        module: any module.
        optimizer: any torch optimizer.
        step: number of steps made so far.
        path_or_file: where to.
        generators: name -> generator that the run draws from.

    Raises:
        CheckpointError: if it cannot be written (disk full?); a file that was there before is untouched.
    """
    content = vars(capture_state(module, optimizer, step, generators))
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


def load_state(
    path_or_file: PathOrFile,
    module: nn.Module,
    optimizer: Optimizer,
    generators: Mapping[str, AnyGenerator] | None = None,
) -> int:
    """Load what `save_state` wrote; nothing changes unless all of it fits.

    Args:
        path_or_file: where from; a file object is read from where it stands.
        module: of the same architecture; changed in place.
        optimizer: of the same kind over the same parameters in the same order; changed in place.
        generators: name -> generator to be put back, changed in place.

    Returns:
        the step.

    Raises:
        CheckpointError: if it is missing, damaged, not such a file, or for another module, optimizer or set of
            generators. Only tensors, numbers, texts, lists and dictionaries are read: nothing in the file is executed.
    """
    content = read_content(path_or_file)
    state = RunState(content["model"], content["optimizer"], content["step"], content.get("generators", {}))
    check_fits(state, module, optimizer, path_or_file)
    return restore_state(state, module, optimizer, generators)


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


def check_fits(state: RunState, module: nn.Module, optimizer: Optimizer, where: object) -> None:
    """Refuse a state of another module or with other optimizer groups, saying where it is, before anything changes."""
    check_weights(Path(str(where)), state.model, module)
    expected = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in state.optimizer.get("param_groups", [])]
    if expected != found:
        raise CheckpointError(f"the saved optimizer has groups of {found} parameters, this one of {expected}")
