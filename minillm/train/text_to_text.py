"""Teaching an encoder-decoder: it reads the source and the true target so far, and is asked for the next token.

Dimensions: B batch, T positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm.errors import ShapeError
from minillm.train.loss import IGNORED, SmoothedLoss, next_token_loss


def shift_right(targets: Tensor, start_id: int) -> Tensor:
    """What the decoder reads while it is taught: the start, then each target but the last.

    Args:
        targets: (B, T) ids; -100 where none is wanted.
        start_id: the id that begins every text; it also stands where the target is -100.

    Returns:
        (B, T) ids.

    Raises:
        ShapeError: if targets are not (B, T).

    Example:
        >>> shift_right(torch.tensor([[7, 8, 1], [7, 1, -100]]), start_id=0).tolist()
        [[0, 7, 8], [0, 7, 1]]
    """
    if targets.dim() != 2:
        raise ShapeError(f"targets have shape {tuple(targets.shape)}, expected (B, T)")
    start = torch.full_like(targets[:, :1], start_id)
    inputs = torch.cat((start, targets[:, :-1]), dim=1)            # (B, T)
    return inputs.masked_fill(inputs == IGNORED, start_id)


@dataclass(frozen=True)
class TextToTextLoss:
    """Cross-entropy of the targets given source and target so far, as a `loss_sum` of the training loop.

    Args:
        start_id: what the decoder reads first.
        pad_id: fills the sources on the right; it is hidden from the model.
        smoothing: of the targets, see `SmoothedLoss`; the paper has 0.1.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 5.4.
    """

    start_id: int
    pad_id: int
    smoothing: float = 0.0

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets.

        Args:
            model: (source ids, target ids, source mask) -> logits, as `Transformer` and `T5`.
            inputs: (B, S) sources, filled up with `pad_id`.
            targets: (B, T) targets with their end, filled up with -100.

        Returns:
            a scalar, float32.
        """
        read = shift_right(targets, self.start_id)                 # (B, T)
        loss = SmoothedLoss(self.smoothing) if self.smoothing else next_token_loss
        return loss(lambda source_ids: model(source_ids, read, source_ids != self.pad_id), inputs, targets)
