"""Normalisation layers: keep the size of each vector steady from layer to layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.nn import functional
from minillm.nn.row_kernels import RMSRows, are_faster


class LayerNorm(nn.Module):
    """Layer normalisation with a learned scale (one at first) and, when asked, a learned shift (zero at first).

    Args:
        d_model: width C of the vectors.
        weight: whether to learn a scale.
        bias: whether to learn a shift.
        epsilon: added to the variance.
        kernels: "torch" or "naive", see `minillm.nn.functional`.
    """

    def __init__(
        self, d_model: int, weight: bool = True, bias: bool = False, epsilon: float = 1e-5, kernels: str = "torch"
    ):
        super().__init__()
        functional.check_kernels(kernels)
        self.weight = nn.Parameter(torch.ones(d_model)) if weight else None
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.shape, self.epsilon, self.kernels = (d_model,), epsilon, kernels

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        if self.kernels == "naive":
            return functional.layer_norm(x, self.weight, self.bias, self.epsilon)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)


class RMSNorm(nn.Module):
    """Normalisation to a root mean square of 1, with a learned scale when asked.

    Args:
        d_model: width C of the vectors.
        weight: whether to learn a scale.
        epsilon: added to the mean square.
        kernels: "torch" or "naive", see `minillm.nn.functional`.
    """

    def __init__(self, d_model: int, weight: bool = False, epsilon: float = 1e-5, kernels: str = "torch"):
        super().__init__()
        functional.check_kernels(kernels)
        self.weight = nn.Parameter(torch.ones(d_model)) if weight else None
        self.shape, self.epsilon, self.kernels = (d_model,), epsilon, kernels

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        if self.kernels == "naive":
            return functional.rms_norm(x, self.weight, self.epsilon)
        if are_faster(x):
            return RMSRows.apply(x, self.weight, self.epsilon)
        return F.rms_norm(x, self.shape, self.weight, self.epsilon)
