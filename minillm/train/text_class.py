"""Teaching a model to name the class of a whole text, or of each token, as a `loss_sum` of the training loop.

Dimensions: B batch, T positions, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from minillm.errors import DataError, ShapeError
from minillm.train.loss import IGNORED, kernel_cross_entropy


@dataclass(frozen=True)
class TextClassLoss:
    """Cross-entropy of one class per text.

    The loop divides by the number of counted targets. With one in each row that is the number of texts, so that a long
    text weighs as much as a short one.

    Args:
        pad_id: fills the rows on the right and is hidden from the model, except at the first place of a row, where a
            text may begin with the id that ends others.

    Source:
        Radford et al. 2018, "Improving language understanding by generative pre-training", section 3.2.
    """

    pad_id: int

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the texts.

        Args:
            model: (token ids, mask=...) -> (B, K) logits, as `LastTokenClassifier` and `TextClassifier`.
            inputs: (B, T) texts, filled up with `pad_id`.
            targets: (B,) classes, or (B, T) with the class at one place of each row and -100 elsewhere.

        Returns:
            a scalar, float32 or wider.

        Raises:
            ShapeError: if a row has not exactly one class.
        """
        logits = model(inputs, mask=real_tokens(inputs, self.pad_id))  # (B, K)
        return kernel_cross_entropy(logits, row_classes(targets), reduction="sum")


@dataclass(frozen=True)
class TokenClassLoss:
    """Cross-entropy of one class per token, as in tagging.

    Args:
        pad_id: as in `TextClassLoss`.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 5.3 (of a word in several pieces only the first is asked for).
    """

    pad_id: int

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted tokens.

        Args:
            model: (token ids, mask=...) -> (B, T, K) logits, as `TokenClassifier`.
            inputs: (B, T) texts, filled up with `pad_id`.
            targets: (B, T) a class where one is asked for, -100 elsewhere.

        Returns:
            a scalar, float32 or wider.
        """
        logits = model(inputs, mask=real_tokens(inputs, self.pad_id))  # (B, T, K)
        return kernel_cross_entropy(logits, targets, reduction="sum")


def real_tokens(inputs: Tensor, pad_id: int) -> Tensor:
    """Where a row has its text.

    Args:
        inputs: (B, T) texts, filled up with `pad_id` on the right.
        pad_id: as in `TextClassLoss`.

    Returns:
        (B, T) bool, True where a token is real.

    Example:
        >>> import torch
        >>> real_tokens(torch.tensor([[0, 7, 8], [5, 0, 0]]), pad_id=0).tolist()
        [[True, True, True], [True, False, False]]
    """
    mask = inputs != pad_id                                        # (B, T)
    mask[:, 0] = True
    return mask


def row_classes(targets: Tensor) -> Tensor:
    """The one counted target of each row.

    Args:
        targets: (B,), or (B, T) with -100 at all places but one.

    Returns:
        (B,).

    Raises:
        ShapeError: if a row has none, or several.

    Example:
        >>> import torch
        >>> row_classes(torch.tensor([[-100, 1, -100], [-100, -100, 0]])).tolist()
        [1, 0]
    """
    if targets.dim() == 1:
        return targets
    counted = targets != IGNORED                                   # (B, T)
    if targets.dim() != 2 or not bool((counted.sum(dim=1) == 1).all()):
        raise ShapeError(
            f"targets of shape {tuple(targets.shape)}: expected (B, T) with one class in each row, else {IGNORED}"
        )
    return targets[counted]                                        # (B,)


def class_batch(texts: Sequence[Sequence[int]], classes: Sequence[int], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts and their classes as a batch of the training loop; the class stands at the text's last token.

    Args:
        texts: B lists of ids, none empty.
        classes: B numbers, 0 or more.
        pad_id: fills short rows on the right.

    Returns:
        inputs and targets, both (B, T) int64, T the length of the longest text.

    Raises:
        DataError: if there is no text, or an empty one, or not one class for each.

    Example:
        >>> inputs, targets = class_batch([[4, 5], [6]], [1, 0], pad_id=9)
        >>> inputs.tolist(), targets.tolist()
        ([[4, 5], [6, 9]], [[-100, 1], [0, -100]])
    """
    if not len(texts) or len(texts) != len(classes) or not all(len(text) for text in texts) or min(classes) < 0:
        raise DataError(f"{len(texts)} texts with {len(classes)} classes: expected one for each, and no empty text")
    longest = max(map(len, texts))
    inputs = np.full((len(texts), longest), pad_id, np.int64)
    targets = np.full((len(texts), longest), IGNORED, np.int64)
    for row, (text, label) in enumerate(zip(texts, classes, strict=True)):
        inputs[row, : len(text)] = text
        targets[row, len(text) - 1] = label
    return inputs, targets
