"""A decoder as a judge of texts: one answer per text, from the vector of its last token, which has seen all others.

For one answer per token `bert_heads.TokenClassifier` takes a decoder too; each token then knows the past alone.

Dimensions: B batch, T positions, C width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ShapeError
from minillm.models.bert_heads import check_classes
from minillm.models.gpt import GPT
from minillm.nn.linear import Linear


def last_real(mask: Tensor) -> Tensor:
    """Where each row has its last real token.

    Args:
        mask: (B, T) bool, True where a token is real; padding on the left or on the right.

    Returns:
        (B,) positions.

    Raises:
        ShapeError: if it is no such mask, or a row has no real token.

    Example:
        >>> last_real(torch.tensor([[True, True, False], [False, False, True]])).tolist()
        [1, 2]
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ShapeError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected bool (B, T)")
    if not bool(mask.any(dim=1).all()):
        raise ShapeError("a row of the mask has no real token; leave out empty texts")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)    # (B,)


class LastTokenClassifier(nn.Module):
    """One of K classes for a whole text, from the vector of its last real token.

    Args:
        body: the decoder; trained further with the head. Its own head is not used.
        n_classes: number of classes K, at least 2.
        dropout: chance of dropping a number of the last vector while training.
        generator: where the initial weights come from; None is torch's own default generator.
        bias: whether each class has a number of its own beside its vector; the source and `transformers` have none.

    Raises:
        ConfigError: if the number is below 2.

    Source:
        Radford et al. 2018, "Improving language understanding by generative pre-training", section 3.2.
    """

    def __init__(
        self,
        body: GPT,
        n_classes: int,
        dropout: float = 0.1,
        generator: torch.Generator | None = None,
        bias: bool = True,
    ):
        super().__init__()
        check_classes(n_classes)
        self.body, self.dropout = body, dropout
        self.head = Linear(body.config.d_model, n_classes, bias, generator=generator)

    def forward(self, token_ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Score the classes.

        Args:
            token_ids: (B, T).
            mask: (B, T) bool, True where a token is real; None if all are.
            positions: (B, T), needed when the padding is on the left, as in `GPT.forward`.

        Returns:
            (B, K) logits.
        """
        hidden = self.body.hidden(token_ids, None, mask, positions)  # (B, T, C)
        rows = torch.arange(len(token_ids), device=token_ids.device)  # (B,)
        last = hidden[:, -1] if mask is None else hidden[rows, last_real(mask)]  # (B, C)
        return self.head(F.dropout(last, self.dropout, self.training))
