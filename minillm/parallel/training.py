"""Between the training loop, which knows one model, and a mesh of ranks, which hold it in parts.

The loop asks for the gradients of a batch, for a checkpoint, for the validation loss; here every rank does its share of
each, and all get the same numbers. So all make the same decisions, at the same step.

Dimensions: B rows of a rank's batch, T sequence length, P ranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.comm import Comm
from minillm.parallel.full_state import (
    gather_full_state,
    gather_optimizer_state,
    layout_of,
    load_full_optimizer_state,
    load_full_state,
)
from minillm.parallel.grid import Parallel3D, PipelineConfig, check_grid
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.muon import SlicedMuonAndAdamW
from minillm.train.accumulation import LossSum
from minillm.train.loop import Batches, Gradients, Session, to_device, validation_loss
from minillm.train.loss import IGNORED, next_token_loss
from minillm.train.optim import MuonAndAdamW
from minillm.train.precision import Precision

MakeOptimizer = Callable[[nn.Module, GPTConfig], Optimizer]


class CutModel(Protocol):
    """A model and its optimizer, cut over the ranks of a mesh; `MeshModel` is ours, `engine.EngineModel` is torch's.

    All ranks call the methods together.
    """

    model: nn.Module
    optimizer: Optimizer
    mesh: Mesh

    def gradients(self, inputs: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, int]:
        """Put the gradient of the mean loss over all ranks' rows, times `scale`, into `.grad`.

        Args:
            inputs: (B, T) token ids, the rows of this place on the dp axis.
            targets: (B, T) token ids; -100 is not counted.
            scale: factor on the gradients, not on the loss returned.

        Returns:
            the mean loss, a float64 scalar, and the number of counted targets; the same on all ranks.
        """

    def clip(self, max_norm: float) -> Tensor:
        """Shorten the whole gradient; the norm before it, the same on all ranks."""

    def gather_weights(self) -> dict[str, Tensor]:
        """The whole model's state_dict, on every rank."""

    def gather_optimizer(self) -> dict:
        """The whole model's optimizer state by name, on rank 0."""

    def scatter(self, weights: Mapping[str, Tensor], optimizer_state: dict) -> None:
        """Take this rank's part of both."""


def check_mesh(size: MeshSize, config: GPTConfig, batch_size: int, n_microbatches: int) -> None:
    """Refuse a mesh that does not divide the model or the batch.

    Args:
        size: of the mesh.
        config: of the model.
        batch_size: rows of the global batch.
        n_microbatches: parts of a rank's rows.

    Raises:
        ConfigError: naming the first thing that does not fit, and why it must.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=2, n_heads=2, d_model=4)
        >>> check_mesh(MeshSize(dp=3), config, batch_size=8, n_microbatches=1)
        Traceback (most recent call last):
        minillm.errors.ConfigError: dp=3 does not divide the 8 rows of a batch: each copy takes as many; ...
    """
    if batch_size % size.dp:
        raise ConfigError(
            f"dp={size.dp} does not divide the {batch_size} rows of a batch: each copy takes as many; choose another "
            "dp or --batch-size"
        )
    if n_microbatches > batch_size // size.dp:
        raise ConfigError(
            f"{n_microbatches} microbatches of the {batch_size // size.dp} rows that each of dp={size.dp} copies has; "
            "expected at most one per row"
        )
    check_grid(config, size, PipelineConfig(n_microbatches=n_microbatches))


class MeshModel:
    """This rank's part of a decoder and of its optimizer on a dp x pp x tp mesh, by the means of this package.

    Args:
        grid: this rank's part of the model.
        make_optimizer: (part, config with the part's numbers of heads) -> optimizer over the part's parameters.
        loss_sum: (model, inputs, targets) -> summed loss; None is the cross-entropy.
    """

    def __init__(self, grid: Parallel3D, make_optimizer: MakeOptimizer, loss_sum: LossSum | None = None):
        self.grid, self.loss_sum, self.model, self.mesh = grid, loss_sum, grid.part, grid.mesh
        optimizer = make_optimizer(grid.part, heads_of_part(grid.config, grid.mesh.tp.size))
        self.optimizer = self.sliced(optimizer)

    def sliced(self, optimizer: Optimizer) -> Optimizer:
        """Muon must know that its matrices are slices; AdamW need not."""
        if self.mesh.tp.size == 1 or not isinstance(optimizer, MuonAndAdamW):
            return optimizer
        layout = layout_of(self.model, self.mesh)
        splits = {parameter: layout[name] for parameter, name in self.grid.names.items()}
        groups = [{key: v for key, v in group.items() if key != "param_names"} for group in optimizer.param_groups]
        return SlicedMuonAndAdamW(groups, splits, self.mesh.tp)

    def gradients(self, inputs: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, int]:
        """See `CutModel`."""
        report = self.grid.gradients(inputs, targets, self.loss_sum, scale)
        return report.loss, report.n_tokens

    def clip(self, max_norm: float) -> Tensor:
        """See `CutModel`."""
        return self.grid.clip(max_norm)

    def gather_weights(self) -> dict[str, Tensor]:
        """See `CutModel`."""
        return gather_full_state(self.model, self.mesh)

    def gather_optimizer(self) -> dict:
        """See `CutModel`."""
        return gather_optimizer_state(self.optimizer, self.model, self.mesh, everywhere=False)

    def scatter(self, weights: Mapping[str, Tensor], optimizer_state: dict) -> None:
        """See `CutModel`."""
        load_full_state(self.model, self.mesh, weights)
        load_full_optimizer_state(self.optimizer, self.model, self.mesh, optimizer_state)


def heads_of_part(config: GPTConfig, size: int) -> GPTConfig:
    """The config with the heads of one of `size` tensor-parallel ranks: it says how many rows its queries have."""
    return replace(
        config, d_model=config.d_model // size, n_heads=config.n_heads // size, n_kv_heads=config.n_kv_heads // size
    )


def gradients_on_mesh(cut: CutModel) -> Gradients:
    """What the training loop calls in the place of its own `gradients_of_batch`.

    The mean is over the counted targets of the global batch, wherever they are: ranks with few of them weigh little.

    Args:
        cut: the model and its mesh.

    Returns:
        (session, inputs, targets) -> loss in nats per token, norm before clipping, number of counted targets; inputs
        and targets are the rows of this place on the dp axis, the numbers are the same on all ranks.
    """

    def gradients(session: Session, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, int]:
        scaler = session.precision.scaler
        scale = 1.0 if scaler is None else scaler.scale
        rows = to_device(inputs, session.device), to_device(targets, session.device)
        loss, n_tokens = cut.gradients(*rows, scale)
        if n_tokens == 0:
            raise ShapeError(f"{len(inputs)} rows on each rank have no target that counts (all are {IGNORED})")
        if scaler is not None:
            scaler.unscale(session.parameters)
        norm = cut.clip(session.config.max_norm)
        numbers = torch.stack([loss, norm.to(loss)])
        cut.mesh.world.broadcast(numbers)                             # one opinion on what comes next, to the last bit
        loss, norm = numbers.tolist()
        return loss, norm, n_tokens

    return gradients


def whole_model(cut: CutModel, config: GPTConfig, device: torch.device) -> GPT:
    """The whole model with its present weights, on every rank; called by all of them.

    Args:
        cut: where the weights are.
        config: of the whole model.
        device: where to.
    """
    weights = cut.gather_weights()
    model = GPT(config, torch.Generator().manual_seed(0)).to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights)
    return model.to(device).eval()


def shared_validation_loss(
    model: nn.Module,
    world: Comm,
    batches: Batches,
    n_batches: int,
    should_stop: Callable[[], bool],
    loss_sum: LossSum = next_token_loss,
    precision: Precision | None = None,
) -> dict[str, float] | None:
    """`validation_loss` with the batches dealt out: rank r of P takes the batches r, r + P, ...

    Args:
        model: the whole model, on every rank.
        world: all ranks.
        batches: step -> inputs and targets, the same on all ranks.
        n_batches: how many, 1 or more.
        should_stop: asked once, by all ranks.
        loss_sum: as in `validation_loss`.
        precision: as there.

    Returns:
        as there, the same on all ranks.
    """
    if should_stop():
        return None
    mine = range(world.rank, n_batches, world.size)
    counted: list[int] = []

    def own_batch(number: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = batches(mine[number])
        counted.append(int(np.count_nonzero(targets != IGNORED)))
        return inputs, targets

    total = 0.0
    if mine:
        figures = validation_loss(model, own_batch, len(mine), lambda: False, loss_sum, precision)
        total = figures["loss"] * sum(counted)
    return {"loss": world.all_numbers(total) / world.all_numbers(sum(counted))}
