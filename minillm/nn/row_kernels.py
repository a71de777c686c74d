"""Passes over large tensors on a CPU, a block at a time, with their derivatives by hand.

Written one operation after the other, a norm sends a tensor larger than the cache to memory and back for
every operation. Here all operations of a block are done before the next block begins, so that only what goes in and
what comes out travels. Each class stands beside the readable function that it equals.

Dimensions: N rows (all leading dimensions together), M rows of a block, C width of a row; B H T D as in
`minillm.nn.attention`.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 17  # numbers of each tensor in a block: half a MiB in fp32, so that the four or five of them stay in cache


def blocks(n_rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices of rows that hold at most `BLOCK` numbers, or one row.

    Args:
        n_rows: how many there are.
        numbers_per_row: of each row.

    Example:
        >>> list(blocks(5, BLOCK // 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK // max(1, numbers_per_row))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def are_faster(x: Tensor) -> bool:
    """Whether to train through these: on a CPU, where a derivative will be asked for."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled()


class RMSRows(torch.autograd.Function):
    """`functional.rms_norm`: w * x / rms(x).

    With y = x * r and r = 1 / sqrt(mean(x^2) + epsilon), the gradient by x is (h - y * mean(h * y)) * r, where h is the
    gradient by w * y times w, and that by w is the gradient times y, summed over all rows.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])                          # (N, C)
        normed, scale = torch.empty_like(rows), rows.new_empty(rows.shape[0], 1)
        result = normed if weight is None else torch.empty_like(rows, dtype=(rows[:0] * weight).dtype)  # (N, C)
        for block in blocks(*rows.shape):
            part = rows[block]                                     # (M, C)
            mean_square = torch.linalg.vecdot(part, part)[:, None] / rows.shape[1]  # (M, 1)
            torch.rsqrt(mean_square + epsilon, out=scale[block])
            torch.mul(part, scale[block], out=normed[block])
            if weight is not None:
                torch.mul(normed[block], weight, out=result[block])
        ctx.save_for_backward(normed, scale, weight)
        return result.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, scale, weight = ctx.saved_tensors
        rows = gradient.reshape(normed.shape)                      # (N, C)
        by_x, by_weight = torch.empty_like(normed), None if weight is None else torch.zeros_like(weight)
        for block in blocks(*normed.shape):
            slope = rows[block]                                    # (M, C)
            if weight is not None:
                by_weight += (slope * normed[block]).sum(dim=0)
                slope = slope * weight                             # (M, C)
            along = (slope * normed[block]).mean(dim=-1, keepdim=True)  # (M, 1)
            torch.addcmul(slope, normed[block], along, value=-1, out=by_x[block]).mul_(scale[block])
        return by_x.view(gradient.shape), by_weight, None


class Rotation(torch.autograd.Function):
    """`position.rotate` in the layout "halves", to the last bit; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
        ctx.save_for_backward(cosine, sine)
        return turned(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return turned(gradient, cosine, -sine), None, None


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Every pair (x[i], x[i + D/2]) turned by its angle.

    Args:
        x: (B, H, T, D).
        cosine: (T, D / 2) or (B, 1, T, D / 2), in the dtype of x.
        sine: likewise.

    Returns:
        (B, H, T, D), contiguous.
    """
    result = torch.empty(x.shape, dtype=x.dtype)                   # (B, H, T, D)
    of_each_row = cosine.dim() == 4
    for block in blocks(x.shape[0], math.prod(x.shape[1:])):
        c, s = (cosine[block], sine[block]) if of_each_row else (cosine, sine)
        first, second = x[block].chunk(2, dim=-1)
        new_first, new_second = result[block].chunk(2, dim=-1)
        torch.mul(first, c, out=new_first).sub_(second * s)
        torch.mul(first, s, out=new_second).add_(second * c)
    return result
