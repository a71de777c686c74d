"""What is put on top of a pretrained encoder for a task: one answer per text, one per token, or a span of the text.

Dimensions: B batch, T positions, C width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.models.bert import Bert
from minillm.nn.linear import Linear


class TextClassifier(nn.Module):
    """One of K classes for a whole text (or pair), from the vector of its first token.

    Args:
        body: the encoder; trained further with the head.
        n_classes: number of classes K, at least 2.
        dropout: chance of dropping a number of the pooled vector while training.
        generator: where the initial weights come from; None is torch's own default generator.

    Raises:
        ConfigError: if the number is below 2.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 4.1.
    """

    def __init__(
        self, body: Bert, n_classes: int, dropout: float = 0.1, generator: torch.Generator | None = None
    ):
        super().__init__()
        check_classes(n_classes)
        width = body.config.d_model
        self.body, self.dropout = body, dropout
        self.pooler = Linear(width, width, True, generator=generator) if body.pooler is None else body.pooler
        self.head = Linear(width, n_classes, True, generator=generator)

    def forward(self, token_ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Arguments of `Bert.forward` -> (B, K) logits."""
        first = self.body.hidden(token_ids, segments, mask)[:, 0]  # (B, C)
        pooled = torch.tanh(self.pooler(first))                    # (B, C)
        return self.head(F.dropout(pooled, self.dropout, self.training))


class TokenClassifier(nn.Module):
    """One of K classes for each token: names of people and places, parts of speech.

    Args:
        body: the encoder; trained further with the head.
        n_classes: number of classes K, at least 2.
        dropout: chance of dropping a number of each last vector while training.
        generator: where the initial weights come from; None is torch's own default generator.

    Raises:
        ConfigError: if the number is below 2.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 5.3.
    """

    def __init__(
        self, body: Bert, n_classes: int, dropout: float = 0.1, generator: torch.Generator | None = None
    ):
        super().__init__()
        check_classes(n_classes)
        self.body, self.dropout = body, dropout
        self.head = Linear(body.config.d_model, n_classes, True, generator=generator)

    def forward(self, token_ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Arguments of `Bert.forward` -> (B, T, K) logits."""
        hidden = self.body.hidden(token_ids, segments, mask)       # (B, T, C)
        return self.head(F.dropout(hidden, self.dropout, self.training))


class SpanReader(nn.Module):
    """Where in the text the answer begins and where it ends.

    Args:
        body: the encoder; trained further with the head.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 4.2.
    """

    def __init__(self, body: Bert, generator: torch.Generator | None = None):
        super().__init__()
        self.body = body
        self.head = Linear(body.config.d_model, 2, True, generator=generator)

    def forward(
        self, token_ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Arguments of `Bert.forward` -> two (B, T) logits, of the first and of the last token of the answer."""
        scores = self.head(self.body.hidden(token_ids, segments, mask))  # (B, T, 2)
        return scores[..., 0], scores[..., 1]


def best_spans(
    first_scores: Tensor, last_scores: Tensor, allowed: Tensor | None = None, max_length: int = 0
) -> Tensor:
    """The span with the largest sum of both scores that does not end before it begins.

    Args:
        first_scores: (B, T).
        last_scores: (B, T).
        allowed: (B, T) bool, True for tokens that an answer may begin and end with (those of the text, not of the
            question); None allows all.
        max_length: the most tokens of a span; 0 means any number.

    Returns:
        (B, 2) first and last position.

    Raises:
        ShapeError: if the shapes differ.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 4.2.

    Example:
        >>> best_spans(torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[9.0, 2.0, 1.0]])).tolist()
        [[0, 0]]
    """
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError(
            f"scores have shapes {tuple(first_scores.shape)} and {tuple(last_scores.shape)}, expected (B, T) both"
        )
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]      # (B, T, T)
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool, device=sums.device).triu()  # (T, T)
    if max_length:
        fits = fits.tril(max_length - 1)                           # (T, T)
    if allowed is not None:
        fits = fits & allowed[:, :, None] & allowed[:, None, :]
    best = sums.masked_fill(~fits, -torch.inf).flatten(1).argmax(dim=1)  # (B,)
    return torch.stack((best // n_positions, best % n_positions), dim=1)  # (B, 2)


def check_classes(n_classes: int) -> None:
    """Refuse fewer than two classes.

    Raises:
        ConfigError: for those.
    """
    if n_classes < 2:
        raise ConfigError(f"n_classes is {n_classes}, expected at least 2")
