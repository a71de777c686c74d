"""The embedding table: one learned vector per token id."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import DataError
from minillm.nn.linear import normal_weight


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Look up the row of each id.

    Args:
        token_ids: (...) integers from 0 to V - 1.
        weight: (V, C) one vector per id.

    Returns:
        (..., C).

    Raises:
        DataError: if an id is outside the table.

    Example:
        >>> embedding(torch.tensor([1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """
    check_ids(token_ids, weight.shape[0])
    return weight[token_ids]                                       # (..., C)


def check_ids(token_ids: Tensor, vocab_size: int) -> None:
    """Check that every id is in the vocabulary.

    Args:
        token_ids: (...) integers.
        vocab_size: number of rows of the table.

    Raises:
        DataError: naming the smallest and largest id if one is outside 0 .. vocab_size - 1.
    """
    if token_ids.numel() == 0:
        return
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"token ids run from {low} to {high}, the vocabulary has ids 0 to {vocab_size - 1}; "
            "encode the text with the tokenizer that the model was trained with"
        )


class Embedding(nn.Module):
    """A learned table of `n_rows` vectors of width `d_model`.

    Args:
        n_rows: number of ids V (or of positions).
        d_model: width C of a vector.
        std: standard deviation of the normal initial vectors.
        generator: where the initial vectors come from; None is torch's own default generator.
    """

    def __init__(self, n_rows: int, d_model: int, std: float = 0.02, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(normal_weight(n_rows, d_model, std, generator))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map (...) ids to (..., C) vectors."""
        if not token_ids.is_cuda:                                  # asking a GPU would make every step wait for it
            check_ids(token_ids, self.weight.shape[0])
        return F.embedding(token_ids, self.weight)

    def extra_repr(self) -> str:
        n_rows, d_model = self.weight.shape
        return f"n_rows={n_rows}, d_model={d_model}"
