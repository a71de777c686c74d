"""Chapter 20, Tensor parallel: fill in the holes (14 points).

`minillm course test 20` tests this file, `minillm course test 20 20.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from typing import Any

import torch
from torch import Tensor, nn

from minillm.nn.linear import Linear
from minillm.parallel.comm import Comm
from minillm.parallel.layout import COLUMNS, Split, check_sections
from minillm.parallel.regions import scatter_to_tensor_model_parallel_region, sum_of
from minillm.parallel.tensor import leave_products, own_ids, own_part
from minillm.parallel.tensor_rehearsal import rehearse_losses, rehearse_region, rehearse_row_parallel


def slice_of(full: Tensor, split: Split | None, index: int, size: int) -> Tensor:
    """What rank `index` of `size` holds of a tensor.

    Args:
        full: the whole tensor.
        split: how it is cut; None: not at all.
        index: which part.
        size: number of parts P.

    Returns:
        The part, a tensor of its own; the whole itself if it is not cut.

    Raises:
        ShapeError: if the sections are not the tensor's, or P does not divide one of them.

    Example:
        >>> rows = torch.arange(8)  # four rows of queries, two of keys, two of values
        >>> slice_of(rows, Split(0, (4, 2, 2)), index=1, size=2).tolist()
        [2, 3, 5, 7]
    """
    # TASK 20.1 (2 points)
    # `split` of a tensor cuts it into the sections, `chunk` cuts one section into P equal parts. This rank takes
    # its part of each section and puts them one after another. `check_sections` refuses what cannot be cut: call
    # it before you cut.
    raise NotImplementedError("task 20.1")


class CopyToRegion(torch.autograd.Function):
    """Megatron's f: forward hands on, backward adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm) -> Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # TASK 20.2 (1 point)
        # All ranks went on with the same x, each on another part of the work. What is the derivative of a sum of P
        # losses by x? Backward returns one gradient for each argument of forward after ctx, None for those that are
        # no tensors.
        raise NotImplementedError("task 20.2")


class ReduceFromRegion(torch.autograd.Function):
    """Megatron's g: forward adds up, backward hands on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm) -> Tensor:
        return sum_of(x, comm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # TASK 20.3 (1 point)
        # y = x_0 + x_1 + ..., and every rank already has the gradient of the one common loss by y. What is dy / dx_0?
        raise NotImplementedError("task 20.3")


class RowParallelLinear(Linear):
    """A linear map whose inputs are shared out: each rank has some columns of the weight, and the results are added.

    The bias is added once, after the sum.

    Args:
        whole: the layer; every rank must have the same.
        comm: the tensor-parallel ranks.
        input_is_parallel: whether each rank comes with its part of the inputs; otherwise all come with the whole.
        sequence_parallel: whether each rank is to leave with its positions only.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> whole = Linear(4, 1)
        >>> whole.weight.data = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
        >>> def rows(comm):
        ...     layer = RowParallelLinear(whole, comm, input_is_parallel=False)
        ...     return layer(torch.tensor([1.0, 2.0, 3.0, 4.0])).item()
        >>> launch_threads(rows, 2)
        [4321.0, 4321.0]
    """

    def __init__(self, whole: Linear, comm: Comm, input_is_parallel: bool = True, sequence_parallel: bool = False):
        nn.Module.__init__(self)
        self.weight, self.bias = own_part(whole.weight, COLUMNS, comm), own_part(whole.bias, None, comm)
        self.comm, self.input_is_parallel, self.sequence_parallel = comm, input_is_parallel, sequence_parallel
        self.product = whole.product

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in / P) or (..., d_in) to (..., d_out), or with sequence parallelism to (B, T / P, d_out)."""
        # TASK 20.4 (2 points)
        # Three steps: this rank's inputs (they may have come cut already), its product, and the way out of the region
        # (`leave_products`). How often must the bias be added, and so when?
        raise NotImplementedError("task 20.4")


def losses_from_parts(logits: Tensor, targets: Tensor, comm: Comm) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of each target, log sum exp(scores) - score[target], when each rank has some scores.

    Two exchanges: of the largest scores, which no exponent may exceed on any rank, and of two sums at once, of the
    exponentials and of the target's score, which one rank has and the others count as 0.

    Args:
        logits: (..., V / P), this rank's part of the scores: those of ids rank * V / P and on; left as they are.
        targets: (...) ids from 0 to V - 1, the same on all ranks.
        comm: the tensor-parallel ranks; `own_ids` says which ids are whose.

    Returns:
        (...) losses in nats, the same on all ranks, and (..., V / P), this rank's part of the softmax.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3 ("fuse the output of the parallel GEMM with the loss").
    """
    # TASK 20.5 (3 points)
    # First agree on the largest score of all ranks, position by position (all_reduce with "max"), and take it out
    # of every score. Then two sums over the ranks: the exponentials, and the target's score, which only one rank
    # has. Stack them and one all_reduce does for both. `gather` with the rows of `own_ids` finds the target's
    # score.
    raise NotImplementedError("task 20.5")


def is_partial(name: str, split: Split | None, sequence_parallel: bool) -> bool:
    """Whether all ranks hold a parameter whole while each sees only a part of what it does: gradients to be added.

    The ranks see different things in two places: behind the entrances, each its own heads and hidden numbers; and with
    sequence parallelism each its own positions, from the entrance of the first block to the final norm.

    Args:
        name: of the parameter in the decoder, as in `layout.GPT_PLAN`.
        split: how it is cut; what is cut has its own gradient on each rank.
        sequence_parallel: whether ranks keep only their share of the positions between the products.

    Returns:
        True for a norm of queries and keys, which every rank uses for its heads; with sequence parallelism also for
        what comes after the sum of a block's products (their biases) and for the norms of blocks and of the end. False
        for what acts on all positions before the first block.

    Example:
        >>> is_partial("final_norm.weight", None, sequence_parallel=False)
        False
        >>> is_partial("final_norm.weight", None, sequence_parallel=True)
        True
    """
    # TASK 20.6 (2 points)
    # Follow one position through the model with sequence parallelism: from where to where does only one rank see
    # it? Which parameters act in between? Then switch it off: what is left that all ranks hold and each uses for
    # its own heads?
    raise NotImplementedError("task 20.6")


def merge_parts(output: Tensor, log_sum: Tensor, other: Tensor, other_log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from the attention over each: the weighted mean of the two results.

    The weights are the shares of the sum of powers that each has; their logarithms are all that must be known of it.

    Args:
        output: (..., D) mixed values of some keys.
        log_sum: (..., 1) base-2 logarithm of the sum of 2^score over these keys, scores over ln 2.
        other: (..., D) those of other keys.
        other_log_sum: (..., 1); minus infinity stands for no keys at all (not on both sides).

    Returns:
        (..., D) and (..., 1), those of all keys.

    Source:
        Rabe and Staats 2021, arXiv:2112.05682, section 2; Dao 2023, arXiv:2307.08691, section 3.1.

    Example:
        >>> one_key, three_keys = torch.tensor([8.0]), torch.tensor([4.0])
        >>> output, log_sum = merge_parts(one_key, torch.tensor([0.0]), three_keys, torch.tensor([3.0]).log2())
        >>> output.item(), log_sum.item()
        (5.0, 2.0)
    """
    # TASK 20.7 (2 points)
    # With sums s and t of powers the mean of all is (s * output + t * other) / (s + t). You have log2 s and log2
    # t, either of which may be too large or too small for its power: first the logarithm of the sum
    # (`torch.logaddexp2`), then shares below 1.
    raise NotImplementedError("task 20.7")


def visible_pairs(queries: list[int], keys: list[int], causal: bool = True) -> list[tuple[int, int, bool]]:
    """Which pieces of queries must look at which visiting pieces of keys.

    Args:
        queries: the pieces of the rank that asks, as numbers from the front of the sequence.
        keys: those of the visitor.
        causal: whether later keys are hidden.

    Returns:
        (place among `queries`, place among `keys`, whether it is the same piece, of which only the past is seen).

    Example:
        >>> visible_pairs([1, 2], [0, 3])
        [(0, 0, False), (1, 0, False)]
        >>> visible_pairs([1, 2], [1, 2])
        [(0, 0, True), (1, 0, False), (1, 1, True)]
    """
    # TASK 20.8 (1 point)
    # Compare the numbers of two pieces: earlier keys are seen whole, the same piece's only up to each query,
    # later ones not at all.
    raise NotImplementedError("task 20.8")
