"""Teaching an encoder: which tokens were hidden, and how two segments belong together.

Dimensions: B batch, T positions.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from minillm.errors import ConfigError
from minillm.train.loss import IGNORED, kernel_cross_entropy


@dataclass(frozen=True)
class MaskedTextLoss:
    """Cross-entropy of the hidden tokens, as a `loss_sum` of the training loop.

    Args:
        pad_id: fills the texts on the right; it is hidden from the model.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 1.
    """

    pad_id: int

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets.

        Args:
            model: a `Bert`.
            inputs: (B, T) texts with some tokens hidden, filled up with `pad_id`.
            targets: (B, T) the hidden tokens, -100 elsewhere.

        Returns:
            a scalar, float32.
        """
        hidden = model.hidden(inputs, mask=inputs != self.pad_id)  # (B, T, C)
        return hidden_token_loss(model, hidden, targets)


@dataclass(frozen=True)
class MaskedPairLoss:
    """The sum of two losses: the hidden tokens, and the question about the two segments; a `loss_sum` of the loop.

    The target at the first position, [CLS], which is never hidden, is the pair's label. As the loop divides by the
    number of counted targets, an answer weighs as much as a token, times `pair_weight`.

    Args:
        pad_id: fills the rows on the right; it is hidden from the model.
        separator_id: the id behind each segment.
        pair_weight: factor on the question's loss; 0 asks it without teaching (then leave the pair head out of the
            optimizer).

    Raises:
        ConfigError: if the weight is negative.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, appendix A.2; Lan et al. 2019, arXiv:1909.11942, section 3.1.
    """

    pad_id: int
    separator_id: int
    pair_weight: float = 1.0

    def __post_init__(self):
        if not self.pair_weight >= 0:
            raise ConfigError(f"pair_weight is {self.pair_weight}, expected at least 0")

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets.

        Args:
            model: a `Bert` with a pair head.
            inputs: (B, T) rows of `pair_example`, filled up with `pad_id`.
            targets: (B, T) likewise, filled up with -100.

        Returns:
            a scalar, float32.
        """
        segments = segments_of(inputs, self.separator_id)          # (B, T)
        hidden = model.hidden(inputs, segments, inputs != self.pad_id)  # (B, T, C)
        answers = kernel_cross_entropy(model.pair_logits(hidden), targets[:, 0], reduction="sum")
        return hidden_token_loss(model, hidden[:, 1:], targets[:, 1:]) + self.pair_weight * answers


def hidden_token_loss(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the counted targets, summed; only their places go through the head, the costliest part.

    Args:
        model: a `Bert`.
        hidden: (B, T, C) its last vectors.
        targets: (B, T) ids, -100 where nothing is asked.

    Returns:
        a scalar, float32.
    """
    asked = targets != IGNORED                                     # (B, T)
    return kernel_cross_entropy(model.logits(hidden[asked]), targets[asked], reduction="sum")


def segments_of(token_ids: Tensor, separator_id: int) -> Tensor:
    """0 up to and with the first separator of each row, 1 behind it.

    Args:
        token_ids: (B, T).
        separator_id: the id behind each segment.

    Returns:
        (B, T) int64.

    Example:
        >>> import torch
        >>> segments_of(torch.tensor([[1, 7, 2, 5, 2, 0]]), separator_id=2).tolist()
        [[0, 0, 0, 1, 1, 1]]
    """
    is_separator = (token_ids == separator_id).long()              # (B, T)
    return (is_separator.cumsum(dim=1) - is_separator).clamp(max=1)  # (B, T)
