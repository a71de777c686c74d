"""Sequence parallelism: between the matrix products every rank keeps its share of the positions only.

Norms, dropout and residuals look at one position at a time, so a rank needs no more than its share for them. Before the
products that are cut by heads or hidden numbers the positions are gathered, behind them summed and scattered: together
what the all-reduce of tensor parallelism moves, but the vectors between are stored once, not P times.

Dimensions: B batch, T positions, C width, P ranks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minillm.parallel.comm import Comm
from minillm.parallel.regions import gather_along, gather_from_sequence_parallel_region


class GatheredSequence:
    """Positions gathered for one or more products. Only this rank's share of them is kept until the backward pass.

    In the backward pass the first product that needs the whole gathers it again, and the last lets it go.

    Args:
        share: (B, T / P, C), this rank's positions.
        comm: the tensor-parallel ranks.
    """

    def __init__(self, share: Tensor, comm: Comm):
        self.share, self.comm = share.detach(), comm
        self.n_products = 0
        self.whole: Tensor | None = None

    def again(self, share: Tensor) -> Tensor:
        """(B, T, C), gathered again from this rank's share."""
        if self.whole is None:
            self.whole = gather_along(share, 1, self.comm)
        return self.whole

    def release(self) -> None:
        """A product has had its backward pass."""
        self.n_products -= 1
        if self.n_products <= 0:
            self.whole = None


class GatheredProduct(torch.autograd.Function):
    """x W^T + b for gathered positions x, of which only the rank's share is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor, origin: GatheredSequence):
        ctx.save_for_backward(share, weight)
        ctx.origin = origin
        origin.n_products += 1
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        share, weight = ctx.saved_tensors
        x_needs, weight_needs, bias_needs = ctx.needs_input_grad[:3]
        rows = gradient.flatten(0, -2)                             # a row for each position
        by_x = gradient @ weight.to(gradient.dtype) if x_needs else None
        by_weight = None
        if weight_needs:
            x = ctx.origin.again(share).flatten(0, -2)
            by_weight = (rows.T @ x.to(rows.dtype)).to(weight.dtype)
        ctx.origin.release()
        return by_x, by_weight, rows.sum(0) if bias_needs else None, None, None


def enter_sequence_products(share: Tensor, comm: Comm) -> Tensor:
    """All positions, for products with weights that are cut over the ranks; see `GatheredSequence`.

    Under autocast they are gathered in its 16 bits, as the products will want them.

    Args:
        share: (B, T / P, C), this rank's positions.
        comm: the tensor-parallel ranks.

    Returns:
        (B, T, C), which remembers where it came from as its attribute `origin`.
    """
    if torch.is_autocast_enabled(share.device.type):
        share = share.to(torch.get_autocast_dtype(share.device.type))
    whole = gather_from_sequence_parallel_region(share, comm)
    whole.origin = GatheredSequence(share, comm)
    return whole


def sequence_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, saving no more than this rank's positions if x was made by `enter_sequence_products`.

    Args:
        x: (B, T, C).
        weight: (N, C), this rank's rows.
        bias: (N,) or None.

    Returns:
        (B, T, N).
    """
    origin = getattr(x, "origin", None)
    if origin is None:
        return F.linear(x, weight, bias)
    return GatheredProduct.apply(x, weight, bias, origin.share, origin)
