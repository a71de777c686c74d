"""What a language model is to predict: at every position the token that comes next."""

import torch
from torch import Tensor

from minillm.errors import ShapeError


def next_token_targets(token_ids: Tensor, counted: Tensor | None = None, ignore_index: int = -100) -> Tensor:
    """The target of each position is the token after it; where there is none to learn it is `ignore_index`.

    Args:
        token_ids: (..., T) integer ids, also the model's inputs.
        counted: (..., T) bool, True for each token that is to be predicted, False for padding and for whatever else
            the model shall read but not learn to write; None counts all.
        ignore_index: what the loss leaves out.

    Returns:
        (..., T) in the dtype of `token_ids`; the last position has no token after it.

    Raises:
        ShapeError: if `counted` has another shape or is not bool.

    Example:
        >>> ids = torch.tensor([[7, 8, 9, 0]])
        >>> next_token_targets(ids).tolist()
        [[8, 9, 0, -100]]
        >>> next_token_targets(ids, torch.tensor([[True, True, True, False]])).tolist()  # the 0 is padding
        [[8, 9, -100, -100]]
    """
    if counted is not None and (counted.shape != token_ids.shape or counted.dtype != torch.bool):
        raise ShapeError(
            f"counted is {counted.dtype} of shape {tuple(counted.shape)}, expected bool of shape "
            f"{tuple(token_ids.shape)} like the token ids"
        )
    targets = torch.full_like(token_ids, ignore_index)             # (..., T)
    targets[..., :-1] = token_ids[..., 1:]
    if counted is not None:
        targets[..., :-1].masked_fill_(~counted[..., 1:], ignore_index)
    return targets
