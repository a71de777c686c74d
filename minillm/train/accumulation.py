"""The gradient of a batch that is too large for one pass: several passes whose gradients add up.

Dimensions: B rows of the batch, T sequence length.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minillm.errors import ShapeError
from minillm.train.loss import IGNORED, next_token_loss

LossSum = Callable[[nn.Module, Tensor, Tensor], Tensor]


def accumulate_gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    n_microbatches: int,
    loss_sum: LossSum = next_token_loss,
    scale: float = 1.0,
) -> Tensor:
    """Add the gradient of the batch's mean loss to the parameters' `.grad`, one part of the batch after another.

    Backward adds to `.grad`, so parts may follow one another; only one part's activations are kept at a time. The mean
    is over the counted targets of the whole batch: each part's loss is its sum divided by that one number, so that a
    part with few counted targets weighs little. A mean of the parts' means would be another gradient.

    Args:
        model: what `loss_sum` expects.
        inputs: (B, T) token ids.
        targets: (B, T) token ids; -100 is not counted.
        n_microbatches: number of parts the rows are split into, from 1 to B; the first ones are one row longer where
            it does not divide B.
        loss_sum: (model, inputs, targets) of one part -> loss summed over its counted targets.
        scale: factor on the gradients (loss scaling), not on the loss returned.

    Returns:
        the mean loss over the counted targets of the whole batch, a scalar without gradient.

    Raises:
        ShapeError: if the two shapes differ or there are more parts than rows.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> def count(weight, inputs, targets):
        ...     return (weight * (targets != -100)).sum()
        >>> _ = accumulate_gradients(weight, torch.zeros(3, 1), torch.tensor([[1], [-100], [1]]), 2, loss_sum=count)
        >>> weight.grad  # two counted targets of weight 1/2, though they lie in different parts
        tensor([1.])
    """
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError(
            f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} in {n_microbatches} parts: expected one "
            "shape (B, T) with B rows for 1 to B parts"
        )
    n_tokens = (targets != IGNORED).sum()
    losses = []
    parts = zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True)
    for part_inputs, part_targets in parts:
        loss = loss_sum(model, part_inputs, part_targets)
        (scale * loss / n_tokens).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum() / n_tokens
