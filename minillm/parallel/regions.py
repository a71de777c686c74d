"""Into a parallel region and out of it: four pairs of a forward and a backward that belong together.

Where all ranks hold the same tensor and each then works on its own part, the gradient comes back in parts, which must
be added; where each brings a part and all go on with the sum, the gradient is the same for all. Whatever a function
does in forward, its partner does in backward: copy and reduce ("f" and "g"), scatter and gather.

Dimensions: P ranks.
"""

from typing import Any

import torch
from torch import Tensor

from minillm.errors import ShapeError
from minillm.parallel.comm import Comm


def part_along(x: Tensor, dim: int, comm: Comm) -> Tensor:
    """This rank's of P equal parts of a tensor along one dimension, a contiguous copy.

    Raises:
        ShapeError: if P does not divide the dimension.
    """
    if x.shape[dim] % comm.size:
        raise ShapeError(
            f"dimension {dim} of {tuple(x.shape)} cannot be cut into {comm.size} equal parts for the ranks of "
            f"{comm.name}; give a size that {comm.size} divides"
        )
    return x.chunk(comm.size, dim)[comm.rank].contiguous()


def gather_along(x: Tensor, dim: int, comm: Comm) -> Tensor:
    """The parts of all ranks side by side along one dimension, in rank order, on each of them."""
    parts = x.new_empty(comm.size, *x.shape)
    comm.all_gather(parts, x.contiguous())
    return torch.cat(parts.unbind(0), dim) if dim % x.dim() else parts.flatten(0, 1)


def reduce_scatter_along(x: Tensor, dim: int, comm: Comm) -> Tensor:
    """Add up over the ranks; this rank keeps its part of the sum along one dimension.

    Raises:
        ShapeError: if P does not divide the dimension.
    """
    part = torch.empty_like(part_along(x, dim, comm))
    comm.reduce_scatter(part, torch.cat([piece.unsqueeze(0) for piece in x.chunk(comm.size, dim)]))
    return part


def sum_of(x: Tensor, comm: Comm) -> Tensor:
    """The sum over all ranks, a new tensor: what comes in may be somebody else's, too."""
    total = x.clone(memory_format=torch.contiguous_format)
    comm.all_reduce(total)
    return total


class CopyToRegion(torch.autograd.Function):
    """Megatron's f: forward hands on, backward adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm) -> Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return sum_of(gradient, ctx.comm), None


class ReduceFromRegion(torch.autograd.Function):
    """Megatron's g: forward adds up, backward hands on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm) -> Tensor:
        return sum_of(x, comm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class ScatterToRegion(torch.autograd.Function):
    """Forward keeps this rank's part along `dim`, backward gathers the parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, comm: Comm) -> Tensor:
        ctx.dim, ctx.comm = dim, comm
        return part_along(x, dim, comm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gather_along(gradient, ctx.dim, ctx.comm), None, None


class GatherFromRegion(torch.autograd.Function):
    """Forward gathers along `dim`; backward keeps this rank's part, of the sum over the ranks if `add`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, comm: Comm, add: bool) -> Tensor:
        ctx.dim, ctx.comm, ctx.add = dim, comm, add
        return gather_along(x, dim, comm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        backward = reduce_scatter_along if ctx.add else part_along
        return backward(gradient, ctx.dim, ctx.comm), None, None, None


class ReduceScatterToRegion(torch.autograd.Function):
    """Forward adds up and keeps this rank's part along `dim`, backward gathers the parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, comm: Comm) -> Tensor:
        ctx.dim, ctx.comm = dim, comm
        return reduce_scatter_along(x, dim, comm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gather_along(gradient, ctx.dim, ctx.comm), None, None


def copy_to_tensor_model_parallel_region(x: Tensor, comm: Comm) -> Tensor:
    """f: all ranks go on with the same x, each on its own part of the work; their gradients are added.

    Args:
        x: (...), the same on all ranks.
        comm: the tensor-parallel ranks.

    Returns:
        x; in backward its gradient is the sum of those that the ranks found.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3 and figure 3.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> def slope(comm):
        ...     x = torch.ones(1, requires_grad=True)
        ...     y = copy_to_tensor_model_parallel_region(x, comm)
        ...     (10.0 ** comm.rank * y).backward()
        ...     return x.grad.item()
        >>> launch_threads(slope, 3)
        [111.0, 111.0, 111.0]
    """
    return CopyToRegion.apply(x, comm)


def reduce_from_tensor_model_parallel_region(x: Tensor, comm: Comm) -> Tensor:
    """g: the ranks' results are added, and all go on with the sum.

    The gradient of a sum by each term is the gradient of the sum itself. All ranks go on with the same computation, so
    all have it already: adding theirs up would count it P times.

    Args:
        x: (...), this rank's term.
        comm: the tensor-parallel ranks.

    Returns:
        the sum over the ranks.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3 and figure 3.
    """
    return ReduceFromRegion.apply(x, comm)


def scatter_to_tensor_model_parallel_region(x: Tensor, comm: Comm) -> Tensor:
    """Each rank goes on with its part of the last dimension; gradients are gathered.

    Args:
        x: (..., N), the same on all ranks; P divides N.
        comm: the tensor-parallel ranks.

    Returns:
        (..., N / P).

    Raises:
        ShapeError: if P does not divide N.
    """
    return ScatterToRegion.apply(x, -1, comm)


def gather_from_tensor_model_parallel_region(x: Tensor, comm: Comm) -> Tensor:
    """All ranks go on with the parts of all along the last dimension; each takes its part of the gradient.

    Args:
        x: (..., N / P), this rank's part.
        comm: the tensor-parallel ranks.

    Returns:
        (..., N), the same on all ranks, which must go on with the same computation.
    """
    return GatherFromRegion.apply(x, -1, comm, False)


def scatter_to_sequence_parallel_region(x: Tensor, comm: Comm) -> Tensor:
    """Each rank goes on with its part of the positions; gradients are gathered.

    Args:
        x: (B, T, ...), the same on all ranks; P divides T.
        comm: the tensor-parallel ranks.

    Returns:
        (B, T / P, ...).

    Raises:
        ShapeError: if P does not divide T.
    """
    return ScatterToRegion.apply(x, 1, comm)


def gather_from_sequence_parallel_region(x: Tensor, comm: Comm, tensor_parallel_output_grad: bool = True) -> Tensor:
    """All ranks go on with all positions.

    Args:
        x: (B, T / P, ...), this rank's positions.
        comm: the tensor-parallel ranks.
        tensor_parallel_output_grad: whether the ranks then work on different parts (of heads, hidden numbers or the
            vocabulary), so that their gradients must be added; False if all do the same with it.

    Returns:
        (B, T, ...).

    Source:
        Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2 and figure 5 (their g).
    """
    return GatherFromRegion.apply(x, 1, comm, tensor_parallel_output_grad)


def reduce_scatter_to_sequence_parallel_region(x: Tensor, comm: Comm) -> Tensor:
    """The ranks' terms are added, and each goes on with its part of the positions.

    Args:
        x: (B, T, ...), this rank's term for all positions; P divides T.
        comm: the tensor-parallel ranks.

    Returns:
        (B, T / P, ...).

    Raises:
        ShapeError: if P does not divide T.

    Source:
        Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2 and figure 5 (their g with a bar).
    """
    return ReduceScatterToRegion.apply(x, 1, comm)
