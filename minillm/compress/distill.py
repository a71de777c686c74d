"""Learning from another model: the teacher's whole distribution at every position, and not only the right token.

Dimensions: B texts, T positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.train.loss import IGNORED, kernel_cross_entropy


def soft_target_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the divergence KL(teacher || student) of the distributions softmax(logits / T), in nats.

    With the factor T^2 the gradient by the logits is T (student's - teacher's probabilities), whose size hardly depends
    on T; without it a high temperature would switch the loss off.

    Args:
        logits: (..., V) of the student, finite.
        teacher_logits: (..., V); gets no gradient.
        temperature: T, above 0; a high one shows what the teacher thinks of the unlikely tokens.

    Returns:
        (...), one loss for each position, not negative; float32 when the logits are of 16 bits.

    Raises:
        ShapeError: if the two differ in shape.
        ConfigError: if the temperature is not positive.

    Source:
        Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    Example:
        >>> round(soft_target_loss(torch.zeros(2), torch.tensor([2.0, 0.0]), temperature=2.0).item(), 4)
        0.4438
    """
    if logits.shape != teacher_logits.shape:
        raise ShapeError(f"logits have shape {tuple(logits.shape)}, the teacher's {tuple(teacher_logits.shape)}; "
                         "teacher and student need the same inputs and the same vocabulary")  # fmt: skip
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}, expected a number above 0")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide) / temperature, dim=-1)  # (..., V)
    teacher_log_shares = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)  # (..., V)
    differences = teacher_log_shares.exp() * (teacher_log_shares - log_shares)  # (..., V)
    return temperature**2 * differences.sum(-1)


@dataclass(frozen=True)
class DistillationLoss:
    """A mixture of the right tokens and a teacher's distribution as a `loss_sum` of the training loop.

    Args:
        teacher: (B, T) ids -> (B, T, V) logits; is asked without gradient, so set it to `eval()` before.
        temperature: of the teacher's part.
        hard_share: weight of the right tokens' part, 0 to 1; the teacher's has the rest.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    Example:
        >>> logits, ids = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[0]])
        >>> loss = DistillationLoss(lambda ids: torch.tensor([[[2.0, 0.0]]]), temperature=2.0, hard_share=0.5)
        >>> round(loss(lambda ids: logits, ids, ids).item(), 4)  # half of log 2 and half of 0.4438
        0.5685
    """

    teacher: nn.Module
    temperature: float = 1.0
    hard_share: float = 0.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}, expected a number above 0")
        if not 0 <= self.hard_share <= 1:
            raise ConfigError(f"hard_share is {self.hard_share}, expected a number from 0 to 1")

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets; arguments and errors as those of `next_token_loss`."""
        with torch.no_grad():
            teacher_logits = self.teacher(inputs)                  # (B, T, V)
        logits = model(inputs)                                     # (B, T, V)
        hard = kernel_cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        soft = soft_target_loss(logits, teacher_logits, self.temperature)  # (B, T)
        soft = soft.masked_fill(targets == IGNORED, 0.0).sum()
        return self.hard_share * hard + (1 - self.hard_share) * soft
