"""The loss of a language model: how surprised it was by each next token, in nats.

Dimensions: N tokens (all leading dimensions together), V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from minillm.errors import ConfigError, DataError, ShapeError

REDUCTIONS = ("mean", "sum", "none")
IGNORED = -100  # a target with this id is not counted


def log_sum_exp(scores: Tensor) -> Tensor:
    """log(sum(exp(scores))) over the last dimension, without overflow.

    exp(1000) is infinite, but adding a constant to all scores adds the same constant to the result;
    with the largest score taken out first, no exponent is above 0 and the largest is exactly 0.

    Args:
        scores: (..., V), any finite size; -inf is allowed and counts as exp(-inf) = 0.

    Returns:
        (...), -inf where all scores of a row are -inf.

    Example:
        >>> log_sum_exp(torch.tensor([100.0, 100.0]))  # 100 + log 2, though exp(100) is beyond float32
        tensor(100.6931)
    """
    largest = scores.detach().amax(dim=-1, keepdim=True)
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    return (scores - largest).exp().sum(dim=-1).log() + largest.squeeze(-1)


def token_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Minus the log-probability of each target token in nats: log_sum_exp(logits) - logits[target].

    Args:
        logits: (..., V) unnormalised scores; sizes of 1e4 and more are fine.
        targets: (...) integer token ids, each 0 .. V-1 or `ignore_index`.
        ignore_index: a target with this id costs nothing and is not counted in the mean.
        reduction: "mean" over the counted tokens (NaN when there is none), "sum", or "none".

    Returns:
        a scalar, or (...) for "none" with 0 at ignored places; float32 when the logits are of 16 bits.

    Raises:
        ShapeError: if the targets do not have the shape of the logits without V.
        DataError: if a target is outside the vocabulary.
        ConfigError: if the reduction is unknown.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> token_cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.6931, 0.1269])
        >>> token_cross_entropy(logits, torch.tensor([0, -100]))
        tensor(0.6931)
    """
    check_loss_arguments(logits, targets, reduction)
    counted = targets != ignore_index
    chosen = targets.masked_fill(~counted, 0)
    check_targets(chosen, logits.shape[-1])
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    target_logits = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    losses = (log_sum_exp(logits) - target_logits).masked_fill(~counted, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum()


def kernel_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """The same as `token_cross_entropy` through torch's own kernel, which makes fewer passes over the logits.

    Args:
        logits: (..., V) unnormalised scores.
        targets: (...) integer token ids, each 0 .. V-1 or `ignore_index`.
        ignore_index: a target with this id costs nothing and is not counted in the mean.
        reduction: "mean", "sum" or "none".

    Returns:
        a scalar, or (...) for "none"; float32 when the logits are of 16 bits.

    Raises:
        ShapeError, DataError, ConfigError: as `token_cross_entropy`.
    """
    check_loss_arguments(logits, targets, reduction)
    vocab_size = logits.shape[-1]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    try:
        losses = functional.cross_entropy(
            logits.reshape(-1, vocab_size), targets.reshape(-1), ignore_index=ignore_index, reduction=reduction
        )
    except IndexError:
        check_targets(targets.masked_fill(targets == ignore_index, 0), vocab_size)
        raise
    return losses.view(targets.shape) if reduction == "none" else losses


def next_token_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `model(inputs)`, summed over the counted targets, in nats.

    Args:
        model: (B, T) ids -> (B, T, V) logits.
        inputs: (B, T) int64.
        targets: (B, T) int64; -100 is not counted.

    Returns:
        a scalar, float32.
    """
    return kernel_cross_entropy(model(inputs), targets, ignore_index=IGNORED, reduction="sum")


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, ignore_index: int = IGNORED) -> Tensor:
    """Cross-entropy against targets that are a little unsure, summed over the counted ones, in nats.

    The target has probability 1 - smoothing + smoothing / V, every other id smoothing / V. So the loss is
    (1 - smoothing) times that of the target plus smoothing times the mean over all V ids.

    Args:
        logits: (..., V) unnormalised scores.
        targets: (...) integer token ids, each 0 .. V-1 or `ignore_index`.
        smoothing: from 0 (plain cross-entropy) to 1.
        ignore_index: a target with this id costs nothing.

    Returns:
        a scalar.

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7.

    Example:
        >>> smoothed_cross_entropy(torch.tensor([[3.0, 0.0], [0.0, 9.0]]), torch.tensor([0, -100]), smoothing=0.5)
        tensor(0.7986)
    """
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    chosen = targets.masked_fill(~counted, 0).unsqueeze(-1)
    of_target = log_shares.gather(-1, chosen).squeeze(-1)
    losses = -(1 - smoothing) * of_target - smoothing * log_shares.mean(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum()


@dataclass(frozen=True)
class SmoothedLoss:
    """`smoothed_cross_entropy` as a `loss_sum` of the training loop.

    Args:
        smoothing: from 0 (plain cross-entropy) to 1.

    Raises:
        ConfigError: if it is out of range.

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0]]])
        >>> SmoothedLoss(0.5)(lambda inputs: logits, torch.tensor([[1]]), torch.tensor([[0]]))
        tensor(0.7986)
    """

    smoothing: float = 0.1

    def __post_init__(self):
        if not 0 <= self.smoothing <= 1:
            raise ConfigError(f"smoothing is {self.smoothing}, expected a number from 0 to 1")

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets; arguments and errors as those of `next_token_loss`."""
        logits = model(inputs)
        check_loss_arguments(logits, targets, "sum")
        if not targets.is_cuda:                                    # asking a GPU would make every step wait for it
            check_targets(targets.masked_fill(targets == IGNORED, 0), logits.shape[-1])
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return smoothed_cross_entropy(logits, targets, self.smoothing)


def check_loss_arguments(logits: Tensor, targets: Tensor, reduction: str) -> None:
    """Refuse shapes that do not belong together and unknown reductions."""
    if logits.dim() == 0 or logits.shape[:-1] != targets.shape:
        raise ShapeError(
            f"targets have shape {tuple(targets.shape)}, logits {tuple(logits.shape)}; "
            "expected targets (...) with logits (..., V)"
        )
    if targets.is_floating_point():
        raise ShapeError(f"targets are {targets.dtype}, expected integer token ids (torch.int64)")
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction {reduction!r} is unknown; known are {', '.join(REDUCTIONS)}")


def check_targets(targets: Tensor, vocab_size: int) -> None:
    """Refuse token ids outside 0 .. vocab_size - 1, naming the first one."""
    outside = (targets < 0) | (targets >= vocab_size)
    if bool(outside.any()):
        first = int(targets[outside].reshape(-1)[0])
        raise DataError(f"target id {first} is outside the vocabulary 0 .. {vocab_size - 1}; check the tokenizer")
