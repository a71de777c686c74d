"""What training keeps besides activations: bytes of parameters, gradients and optimizer, by formula and as they are.

Dimensions: P ranks; Psi, the number of parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import ConfigError
from minillm.parallel.zero import ZeroOptimizer


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one rank; `optimizer` has its moments and the master copy of the parameters, if there is one."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def model_state_bytes(
    n_parameters: int,
    world_size: int,
    stage: int,
    parameter_bytes: int = 2,
    gradient_bytes: int = 2,
    optimizer_bytes: int = 12,
) -> StateBytes:
    """Bytes on each rank at the four stages of ZeRO.

    Stage 0 (data parallel) keeps everything everywhere: 16 Psi with the bytes below. Stage 1 divides the optimizer's
    state among the ranks: 4 Psi + 12 Psi / P. Stage 2 the gradients as well: 2 Psi + 14 Psi / P. Stage 3 all: 16 Psi /
    P.

    Args:
        n_parameters: Psi.
        world_size: P; where it does not divide Psi, each rank's share is rounded up.
        stage: 0 to 3.
        parameter_bytes: per parameter; 2 for bfloat16.
        gradient_bytes: per parameter.
        optimizer_bytes: per parameter; 12 for AdamW in float32 with a float32 copy of the parameters.

    Raises:
        ConfigError: if the stage is unknown or a number too small.

    Source:
        Rajbhandari et al. 2020, arXiv:1910.02054, figure 1: K = 12.

    Example:
        >>> [model_state_bytes(7_500_000_000, 64, stage).total / 1e9 for stage in range(4)]
        [120.0, 31.40625, 16.640625, 1.875]
    """
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError(
            f"stage {stage} of {n_parameters} parameters on {world_size} ranks: expected a stage from 0 to 3, "
            "1 rank or more, 0 parameters or more"
        )
    share = -(-n_parameters // world_size)
    return StateBytes(
        parameter_bytes * (share if stage >= 3 else n_parameters),
        gradient_bytes * (share if stage >= 2 else n_parameters),
        optimizer_bytes * (share if stage >= 1 else n_parameters),
    )


def storage_bytes(tensors: Iterable[Tensor], but_not: Iterable[Tensor] = ()) -> int:
    """Bytes of the memory behind some tensors, each block once, however many are views of it.

    Args:
        tensors: any.
        but_not: tensors whose memory is not counted.

    Example:
        >>> import torch
        >>> flat = torch.zeros(10)
        >>> storage_bytes([flat[:2], flat[5:], torch.zeros(3)])
        52
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in but_not}
    blocks = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(n_bytes for place, n_bytes in blocks.items() if place not in known)


def measured_state_bytes(module: nn.Module, optimizer: Optimizer | ZeroOptimizer) -> StateBytes:
    """What this rank really keeps: the memory of parameters, of their gradients, and of the optimizer.

    Whoever asks between backward and zero_grad sees the gradients. Counters of one number per parameter (AdamW's number
    of the step) are left out, as in the formula.

    Args:
        module: its parameters; under `FullyShardedDataParallel`, at rest, these are this rank's pieces.
        optimizer: over them, or the `ZeroOptimizer` of the module.
    """
    inner = optimizer.optimizer if isinstance(optimizer, ZeroOptimizer) else optimizer
    pieces = optimizer.pieces if isinstance(optimizer, ZeroOptimizer) else []
    parameters = [parameter.data for parameter in module.parameters()]
    gradients = [tensor.grad for tensor in (*module.parameters(), *pieces) if tensor.grad is not None]
    stepped = [parameter.data for group in inner.param_groups for parameter in group["params"]]
    state = [value for entries in inner.state.values() for value in entries.values() if isinstance(value, Tensor)]
    kept = [*stepped, *(value for value in state if value.dim() > 0)]
    return StateBytes(storage_bytes(parameters), storage_bytes(gradients), storage_bytes(kept, parameters))
