"""Gradient clipping: one long gradient vector, shortened when it is too long."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from minillm.errors import ConfigError, TrainingError


def gradient_norm(parameters: Iterable[Tensor] | Tensor) -> Tensor:
    """Euclidean length of all gradients taken as one vector; parameters without a gradient count as 0.

    Args:
        parameters: tensors with `.grad`, any iterable, read once.

    Returns:
        a scalar tensor; 0 if no parameter has a gradient, not finite as soon as one gradient entry is not.

    Example:
        >>> a, b = torch.zeros(1), torch.zeros(1)
        >>> a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
        >>> gradient_norm([a, b])
        tensor(5.)
    """
    return clip_gradients(parameters, max_norm=math.inf)


def clip_gradients(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, error_if_nonfinite: bool = False
) -> Tensor:
    """Shorten the gradients, in place, if their common length is above `max_norm`; leave them alone otherwise.

    The norm is the Euclidean length of all gradients taken as one long vector. The factor, one for all, is
    min(1, max_norm / (norm + 1e-6)), as in torch's `clip_grad_norm_`.

    Args:
        parameters: tensors with `.grad`, any iterable, read once.
        max_norm: the largest norm allowed, above 0; infinity only measures.
        error_if_nonfinite: raise when the norm is NaN or infinite, before any gradient is changed;
            otherwise gradients become NaN or 0 and the caller must look at the norm returned.

    Returns:
        the norm before clipping, a scalar tensor; 0 if no parameter has a gradient.

    Raises:
        ConfigError: if `max_norm` is not above 0.
        TrainingError: if the norm is not finite and `error_if_nonfinite`.

    Source:
        Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.

    Example:
        >>> weight = torch.zeros(2)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients([weight], max_norm=1.0)
        tensor(5.)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}, expected a number above 0 (float('inf') only measures)")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError(f"the gradient norm is {norm.item()}: the gradients are not finite, none was changed")
    if not math.isinf(max_norm):
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def gradients_of(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    """The gradients that exist, in order."""
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
