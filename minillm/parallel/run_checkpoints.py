"""Checkpoints of a run on many ranks in the very format of one process: what one mesh saved, any other goes on with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError
from minillm.parallel.agreement import first_rank_alone
from minillm.parallel.comm import Comm
from minillm.runtime import generator_states, restore_generators
from minillm.train.checkpoint import CheckpointFolder, RunParts, checkpoint_steps, load_checkpoint
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

Single = Callable[[], tuple[nn.Module, Optimizer]]


class Cut(Protocol):
    """A model and its optimizer as several ranks hold them; all methods are called by all ranks."""

    def gather_weights(self) -> dict[str, Tensor]:
        """The whole model's state_dict, on every rank."""

    def gather_optimizer(self) -> dict:
        """The state of the whole model's optimizer, as `optimizer_state_by_name` gives it, on rank 0 at least."""

    def scatter(self, weights: Mapping[str, Tensor], optimizer_state: dict) -> None:
        """Take this rank's part of a whole model and of its optimizer's state."""


class RanksCheckpoints:
    """The interface of `CheckpointFolder` for a training loop that runs on every rank; rank 0 writes.

    For the time of saving or loading, the whole model and its optimizer are on the processor of each rank. All ranks
    must see the folder.

    Args:
        folder: as in `CheckpointFolder`.
        keep_last: as there.
        world: all ranks.
        cut: gathers and scatters.
        single: makes the whole model and its optimizer, as one process would have them.
        where: says how the run is cut ("dp=2,tp=2"); random numbers go on exactly where it is the same.
    """

    def __init__(self, folder: str | Path, keep_last: int, world: Comm, cut: Cut, single: Single, where: str):
        self.folder, self.world, self.cut, self.single, self.where = Path(folder), world, cut, single, where
        self.files: CheckpointFolder | None = None

        def open_folder() -> None:
            self.files = CheckpointFolder(folder, keep_last)

        first_rank_alone(world, open_folder)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return first_rank_alone(self.world, lambda: checkpoint_steps(self.folder))

    def path(self, step: int) -> Path:
        """Where the checkpoint of that step is, or would be."""
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, parts: RunParts, extra: Mapping[str, object] | None = None) -> Path:
        """Write the checkpoint of that step; see `CheckpointFolder.save`. An error of rank 0 is one on all ranks."""
        weights, optimizer_state = self.cut.gather_weights(), self.cut.gather_optimizer()
        states = self.world.all_objects(generator_states(parts.generators))
        ranks = {"where": self.where, "generators": states}

        def write() -> Path:
            model, optimizer = self.single()
            model.load_state_dict(weights)
            load_optimizer_state_by_name(optimizer, model, optimizer_state)
            whole = replace(parts, model=model, optimizer=optimizer)
            try:
                return self.files.save(step, whole, {**(extra or {}), "ranks": ranks})
            except CheckpointError as error:
                error.is_of_disk = isinstance(error.__cause__, OSError)
                raise

        try:
            return first_rank_alone(self.world, write)
        except CheckpointError as error:
            if getattr(error, "is_of_disk", False):                # so that all ranks go on, as the loop does then
                raise error from OSError("on rank 0")
            raise

    def resume(self, parts: RunParts) -> dict | None:
        """Bring every rank into the state of the newest valid checkpoint; see `CheckpointFolder.resume`."""
        path = first_rank_alone(self.world, lambda: self.files.newest_valid())
        if path is None:
            return None
        model, optimizer = self.single()
        whole = replace(parts, model=model, optimizer=optimizer, generators={})
        state = load_checkpoint(path, whole, verify=False)
        self.cut.scatter(model.state_dict(), optimizer_state_by_name(optimizer, model))
        self.restore_generators(parts, state)
        return state

    def restore_generators(self, parts: RunParts, state: dict) -> None:
        """Each rank's own random numbers go on; on another mesh they begin anew, the same wherever they are wanted."""
        ranks = state["extra"].get("ranks", {})
        if ranks.get("where") == self.where:
            restore_generators(parts.generators, ranks["generators"][self.world.rank])
        else:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * state["step"])
