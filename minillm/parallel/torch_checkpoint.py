"""To and from PyTorch's own distributed checkpoint (DCP), which its engines read at any layout of theirs.

DCP's names for what we call "model/<name>" and "optimizer/<name>/<key>" are model.<name> and optim.state.<name>.<key>,
as `torch.distributed.checkpoint.state_dict.get_state_dict` makes them. One process converts; the numbers stay the same.

A DCP folder holds pickles, which can run code when they are read: read only what comes from someone you trust.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from minillm.errors import CheckpointError
from minillm.parallel.pieces import Piece
from minillm.parallel.shard_reader import ShardReader
from minillm.parallel.sharded_checkpoint import Shard, ShardedCheckpoints
from minillm.parallel.threads import launch_threads
from minillm.parallel.training_shards import MODEL, OPTIMIZER
from minillm.train.optimizer_state import join_tensors, merge_rests, split_tensors


def write_torch_checkpoint(folder: str | Path, weights: Mapping[str, Tensor], optimizer: Mapping | None = None) -> None:
    """Write a model, and its optimizer if given, as a DCP folder, by one process.

    Args:
        folder: must not exist yet, or be empty.
        weights: name -> tensor.
        optimizer: as `train.optimizer_state.optimizer_state_by_name` gives it; plain numbers such as the step count
            become tensors, as torch's optimizers have them.

    Raises:
        CheckpointError: if there is something in the folder.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; choose another folder for the DCP checkpoint")
    content: dict[str, Any] = {"model": dict(weights)}
    if optimizer is not None:
        state = {name: {key: as_tensor(v) for key, v in each.items()} for name, each in optimizer["state"].items()}
        filled = torch_options if is_adamw(optimizer) else dict
        groups = [{**filled(group["options"]), "params": list(group["names"])} for group in optimizer["groups"]]
        content["optim"] = {"state": state, "param_groups": groups}
    with alone():
        dcp.save(content, checkpoint_id=folder, no_dist=True)


def read_torch_checkpoint(folder: str | Path) -> tuple[dict[str, Tensor], dict | None]:
    """A model and its optimizer from a DCP folder, whole, whatever ranks wrote it.

    Args:
        folder: written by `write_torch_checkpoint`, or by `dcp.save` of {"model": ..., "optim": ...}.

    Returns:
        name -> tensor, and the optimizer as `optimizer_state_by_name` gives it, or None if there is none.

    Raises:
        CheckpointError: if it is not such a folder.
    """
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata()
    except (OSError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a DCP folder ({error}); expected one with a .metadata file") from error
    paths = metadata.planner_data or {}
    content = {
        key: place_for(stored)
        for key, stored in metadata.state_dict_metadata.items()
        if paths.get(key, (key,))[0] in ("model", "optim")
    }
    with alone():
        dcp.load(content, checkpoint_id=folder, no_dist=True)
    return sort_by_path({paths.get(key, (key,)): value for key, value in content.items()}, folder)


def place_for(stored: object) -> Tensor | None:
    """An empty tensor for what is stored; None for what is none."""
    is_tensor = isinstance(stored, TensorStorageMetadata)
    return torch.empty(stored.size, dtype=stored.properties.dtype) if is_tensor else None


def sort_by_path(content: Mapping[tuple, Any], folder: str | Path) -> tuple[dict[str, Tensor], dict | None]:
    """Weights, and the optimizer by name, from values by their paths in the saved dictionaries."""
    weights: dict[str, Tensor] = {}
    state: dict[str, dict] = {}
    groups: dict[int, dict] = {}
    for path, value in content.items():
        match path:
            case ("model", *names) if isinstance(value, Tensor):
                weights[".".join(map(str, names))] = value
            case ("optim", "state", name, key):
                state.setdefault(name, {})[key] = as_number(key, value)
            case ("optim", "param_groups", int(number), option):
                groups.setdefault(number, {})[option] = value
    if not weights:
        raise CheckpointError(f"{folder} has no tensors below 'model'; save {{'model': model.state_dict()}} with DCP")
    if not groups:
        return weights, None
    named = [{"names": groups[number].pop("params"), "options": groups[number]} for number in sorted(groups)]
    optimizer = {"state": state, "groups": named}
    if is_adamw(optimizer):
        named = [{**group, "options": our_options(group["options"])} for group in named]
    return weights, {**optimizer, "groups": named}


def is_adamw(optimizer: Mapping) -> bool:
    """Whether named state looks like that of AdamW, torch's or ours."""
    return any("exp_avg_sq" in entries for entries in optimizer["state"].values())


def torch_options(options: Mapping) -> dict:
    """A group's options as torch's AdamW has them: its switches, which change no number, at their defaults."""
    return torch.optim.AdamW([torch.zeros(1)]).defaults | {k: v for k, v in options.items() if k != "fused"}


def our_options(options: Mapping) -> dict:
    """The way back: without torch's switches, unless one was changed."""
    defaults = torch.optim.AdamW([torch.zeros(1)]).defaults
    kept = ("lr", "betas", "eps", "weight_decay")
    return {k: v for k, v in options.items() if k in kept or k not in defaults or v != defaults[k]}


def as_tensor(value: Any) -> Tensor:
    """A number as torch's optimizers keep it; tensors as they are."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float32)


def as_number(key: str, value: Any) -> Any:
    """The step count as a plain number, which every optimizer can load; everything else as it is."""
    return int(value) if key == "step" and isinstance(value, Tensor) and value.numel() == 1 else value


@contextmanager
def alone() -> Iterator[None]:
    """A context for DCP in one process, without its advice to start more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        yield


def sharded_to_torch(path: str | Path, folder: str | Path) -> None:
    """Convert one of our sharded checkpoints to a DCP folder.

    Args:
        path: the folder step-N; its checksums are compared.
        folder: to be written.

    Raises:
        CheckpointError: as `ShardReader` and `write_torch_checkpoint`.
    """
    reader = ShardReader(path, verify=True)
    weights = {name.removeprefix(MODEL): reader.read(name) for name in reader.names(MODEL)}
    tensors = {name.removeprefix(OPTIMIZER): reader.read(name) for name in reader.names(OPTIMIZER)}
    rest = merge_rests([state["optimizer"] for state in reader.rank_states if "optimizer" in state])
    write_torch_checkpoint(folder, weights, join_tensors(tensors, rest) if rest["groups"] else None)


def torch_to_sharded(
    folder: str | Path, target: str | Path, step: int, state: Mapping[str, object] | None = None
) -> Path:
    """Convert a DCP folder to one of our sharded checkpoints, written by one rank and readable by any number.

    Args:
        folder: of DCP.
        target: the run's folder of checkpoints; made if missing.
        step: number of steps made, which DCP does not say.
        state: of the run, as in `ShardedCheckpoints.save`.

    Returns:
        the folder step-N.

    Raises:
        CheckpointError: as `read_torch_checkpoint` and `ShardedCheckpoints.save`.
    """
    weights, optimizer = read_torch_checkpoint(folder)
    tensors = {MODEL + name: tensor for name, tensor in weights.items()}
    rank_state = {}
    if optimizer is not None:
        optimizer_tensors, rank_state["optimizer"] = split_tensors(optimizer)
        tensors |= {OPTIMIZER + name: tensor for name, tensor in optimizer_tensors.items()}
    shards = {name: Shard(tensor, Piece(tuple(tensor.shape))) for name, tensor in tensors.items()}
    return launch_threads(lambda comm: ShardedCheckpoints(target, comm).save(step, shards, state, rank_state), 1)[0]
