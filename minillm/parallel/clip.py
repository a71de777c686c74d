"""Gradient clipping when no rank has the whole gradient: the norm is that of all of it, and the same on every rank.

A norm of a rank's own part would clip each rank by another factor: another model, and a loss as plausible as ever.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from minillm.errors import ConfigError, TrainingError
from minillm.parallel.comm import Comm
from minillm.train.clip import gradients_of


def global_gradient_norm(
    parameters: Iterable[Tensor],
    comms: Sequence[Comm] = (),
    is_counted: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Euclidean length of the whole model's gradient, of which each rank has a part.

    The squares of this rank's part are added up over `comms`, one after another, so each number must be counted on one
    rank of them only. Where gradients are copies (data parallel), their group is not among `comms`; where some are and
    some are not (norms and biases under tensor parallelism, the tied embedding of two stages), `is_counted` says on
    which rank the copy counts.

    Args:
        parameters: this rank's, with `.grad`; those without one count as 0.
        comms: groups among which the gradient is divided, for example (mesh.tp, mesh.pp), or (mesh.dp,) for ZeRO.
        is_counted: whether a parameter counts on this rank; None counts all.

    Returns:
        a float64 scalar, the same on all ranks of `comms`; not finite as soon as one counted entry is not.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> def norm(comm):
        ...     own, copied = torch.zeros(1), torch.zeros(1)
        ...     own.grad, copied.grad = torch.tensor([2.0]), torch.tensor([1.0])
        ...     return global_gradient_norm([own, copied], [comm], lambda p: p is own or comm.rank == 0).item()
        >>> launch_threads(norm, 2)  # 2^2 + 2^2 + 1^2 = 3^2
        [3.0, 3.0]
    """
    counted = gradients_of(p for p in parameters if is_counted is None or is_counted(p))
    device = counted[0].device if counted else (comms[0].device if comms else torch.device("cpu"))
    square = torch.zeros((), dtype=torch.float64, device=device)
    if counted:
        is_half = any(gradient.dtype in (torch.float16, torch.bfloat16) for gradient in counted)
        norms = torch._foreach_norm(counted, 2, torch.float32 if is_half else None)
        square += torch.stack([norm.double() for norm in norms]).square().sum()
    for comm in comms:
        comm.all_reduce(square)
    return square.sqrt()


def clip_global_gradients(
    parameters: Iterable[Tensor],
    max_norm: float,
    comms: Sequence[Comm] = (),
    is_counted: Callable[[Tensor], bool] | None = None,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Shorten the whole gradient, in place, if it is longer than `max_norm`: each rank its own part, by one factor.

    The factor is min(1, max_norm / (norm + 1e-6)), as in `minillm.train.clip.clip_gradients`.

    Args:
        parameters: this rank's, with `.grad`, all of which are scaled, counted or not.
        max_norm: the largest norm allowed, above 0; infinity only measures.
        comms: as in `global_gradient_norm`.
        is_counted: as there.
        error_if_nonfinite: raise, on all ranks alike, when the norm is not finite; no gradient is changed then.

    Returns:
        the norm before clipping, a float64 scalar, the same on all ranks.

    Raises:
        ConfigError: if `max_norm` is not above 0.
        TrainingError: if the norm is not finite and `error_if_nonfinite`.

    Source:
        Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}, expected a number above 0 (float('inf') only measures)")
    parameters = list(parameters)
    norm = global_gradient_norm(parameters, comms, is_counted)
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError(f"the gradient norm is {norm.item()}: the gradients are not finite, none was changed")
    gradients = gradients_of(parameters)
    if gradients and not math.isinf(max_norm):
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype) if same_dtype(gradients) else factor.item())
    return norm


def same_dtype(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors have one dtype and device, as torch's many-tensor functions want it for a tensor factor."""
    return len({(tensor.dtype, tensor.device) for tensor in tensors}) == 1
