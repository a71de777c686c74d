"""Cross-entropy when every rank has the scores of a part of the vocabulary only: two numbers per position go round.

Dimensions: N positions (all leading dimensions together), V vocabulary, P ranks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minillm.parallel.comm import Comm
from minillm.parallel.tensor import own_ids
from minillm.train.loss import IGNORED, check_loss_arguments, check_targets


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
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    shifted = logits - largest.unsqueeze(-1)
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = shifted.exp_()
    sums = torch.stack((powers.sum(dim=-1), target_score))         # this rank's part of both
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers.div_(sums[0].unsqueeze(-1))


class VocabParallelCrossEntropy(torch.autograd.Function):
    """`losses_from_parts`, and its gradient: softmax minus one at the target, of which each rank has its part."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, counted: Tensor, comm: Comm) -> Tensor:
        losses, weights = losses_from_parts(logits, targets, comm)
        local, mine = own_ids(targets, logits.shape[-1], comm)
        ctx.save_for_backward(weights, local, mine, counted)
        return losses.masked_fill(~counted, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weights, local, mine, counted = ctx.saved_tensors
        gradient = gradient.masked_fill(~counted, 0.0).unsqueeze(-1)
        by_logits = weights * gradient
        by_logits.scatter_add_(-1, local.unsqueeze(-1), -gradient.masked_fill(~mine.unsqueeze(-1), 0.0))
        return by_logits, None, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, comm: Comm, ignore_index: int = IGNORED, reduction: str = "mean"
) -> Tensor:
    """Minus the log-probability of each target in nats, as `minillm.train.loss.token_cross_entropy`.

    Of N positions' scores 3 N numbers are exchanged (the largest, the sum of exponentials, the target's score) instead
    of N V. A cap on the logits is the model's business: it acts on each score alone.

    Args:
        logits: (..., V / P), this rank's part of the scores: those of ids rank * V / P and on.
        targets: (...) ids 0 .. V - 1 or `ignore_index`, the same on all ranks.
        comm: the tensor-parallel ranks.
        ignore_index: a target with this id costs nothing and is not counted in the mean.
        reduction: "mean" over the counted targets (NaN when there is none), "sum", or "none".

    Returns:
        a scalar, or (...), the same on all ranks; float32 when the logits are of 16 bits.

    Raises:
        ShapeError: if the targets do not have the shape of the logits without their last dimension.
        DataError: if a target is outside the vocabulary.
        ConfigError: if the reduction is unknown.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3 ("fuse the output of the parallel GEMM with the loss").

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> scores = torch.tensor([2.0, 0.0])
        >>> def loss(comm):
        ...     part = scores[comm.rank].view(1, 1)  # a vocabulary of two ids, one on each rank
        ...     return round(vocab_parallel_cross_entropy(part, torch.tensor([0]), comm).item(), 4)
        >>> launch_threads(loss, 2)
        [0.1269, 0.1269]
    """
    check_loss_arguments(logits, targets, reduction)
    counted = targets != ignore_index
    chosen = targets.masked_fill(~counted, 0)
    if not targets.is_cuda:                                        # asking a GPU would make every step wait for it
        check_targets(chosen, logits.shape[-1] * comm.size)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    losses = VocabParallelCrossEntropy.apply(logits, chosen, counted, comm)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum()


class VocabParallelLoss:
    """`minillm.train.loss.next_token_loss` for a sharded model, as the training loop's `loss_sum`.

    Args:
        comm: the tensor-parallel ranks.
    """

    def __init__(self, comm: Comm):
        self.comm = comm

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of `model(inputs)` (B, T, V / P), summed over the counted targets (B, T), in nats."""
        return vocab_parallel_cross_entropy(model(inputs), targets, self.comm, reduction="sum")
