"""A model under fully_shard and torch's own checkpoint (DCP): every rank writes and reads what it holds.

The folder is the one that `torch_checkpoint` writes and reads for one process, so DCP and our checkpoints carry a run
to each other at any number of ranks. Under the engines tp (rows in torch's order) and pp (each rank has a part of the
optimizer's groups) take `EngineModel.gather_weights` and our checkpoints instead.
"""

import warnings
from pathlib import Path

from minillm.errors import CheckpointError, ConfigError
from minillm.parallel.engine import EngineModel, with_step_tensors


def save_with_torch(cut: EngineModel, folder: str | Path) -> None:
    """Write model and optimizer as a DCP folder, each rank its own part; called by all ranks.

    Args:
        cut: under the engine fsdp2.
        folder: must not hold anything yet; all ranks must see it.

    Raises:
        ConfigError: if it is under another engine.
        CheckpointError: if there is something in the folder.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    check_fsdp2(cut)
    if any(cut.mesh.world.all_objects(Path(folder).exists() and any(Path(folder).iterdir()))):
        raise CheckpointError(f"{folder} is not empty; choose another folder for the DCP checkpoint")
    model, optimizer = get_state_dict(cut.model, cut.optimizer)
    dcp.save({"model": model, "optim": optimizer}, checkpoint_id=folder, process_group=cut.mesh.world.group)


def load_with_torch(cut: EngineModel, folder: str | Path) -> None:
    """Read a DCP folder, written at any number of ranks or by `write_torch_checkpoint`; called by all ranks.

    Args:
        cut: under the engine fsdp2; changed in place.
        folder: trusted: a DCP folder holds pickles.

    Raises:
        ConfigError: if it is under another engine.
        CheckpointError: if there is no such folder.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    check_fsdp2(cut)
    if not (Path(folder) / ".metadata").is_file():
        raise CheckpointError(f"{folder} is not a DCP folder; expected one with a .metadata file")
    model, optimizer = get_state_dict(cut.model, cut.optimizer)  # fills an optimizer that has not stepped yet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        dcp.load({"model": model, "optim": optimizer}, checkpoint_id=folder, process_group=cut.mesh.world.group)
    set_state_dict(cut.model, cut.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    with_step_tensors(cut.optimizer)


def check_fsdp2(cut: EngineModel) -> None:
    """Refuse engines whose parts DCP would not put together as one process has them."""
    if cut.engine != "fsdp2":
        raise ConfigError(f"engine {cut.engine}: DCP is for fsdp2 here; gather the weights into a checkpoint of ours")
