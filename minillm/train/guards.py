"""When a step must not be made: loss or gradient is not finite, or the loss jumps far out of its recent range."""

import math
import statistics
from collections.abc import Sequence

MIN_RELATIVE_SPREAD = 0.01  # of the mean: a loss that hardly moves must not call 1.001 times itself a spike


def spike_threshold(recent_losses: Sequence[float], n_sigmas: float = 6.0, min_history: int = 64) -> float:
    """The loss above which a step counts as a spike: mean + n_sigmas * standard deviation of the recent losses.

    Args:
        recent_losses: losses of the last steps, any order.
        n_sigmas: how many standard deviations; 0 switches the rule off.
        min_history: with fewer losses there is no threshold.

    Returns:
        the threshold; infinity where there is none. The deviation counts as at least 1 % of the mean.

    Source:
        the rule of OLMo's optimizer that skips steps: OLMo et al. 2025, arXiv:2501.00656 (128 steps, 6 sigma).

    Example:
        >>> spike_threshold([1.0, 3.0] * 50, n_sigmas=6.0)
        8.0
        >>> spike_threshold([1.0, 3.0])
        inf
    """
    if n_sigmas == 0 or len(recent_losses) < max(2, min_history):
        return math.inf
    mean = statistics.fmean(recent_losses)
    spread = math.sqrt(statistics.fmean((loss - mean) ** 2 for loss in recent_losses))
    return mean + n_sigmas * max(spread, MIN_RELATIVE_SPREAD * abs(mean))


def reason_to_skip(loss: float, gradient_norm: float, threshold: float = math.inf) -> str | None:
    """Why this step must not be made, or None.

    Args:
        loss: of this step, nats per token.
        gradient_norm: norm of all gradients before clipping.
        threshold: largest loss that is no spike.

    Returns:
        "loss is nan", "gradient norm is inf", "loss spike" or None.

    Example:
        >>> reason_to_skip(2.0, 1.0), reason_to_skip(float("nan"), 1.0), reason_to_skip(9.0, 1.0, threshold=8.0)
        (None, 'loss is nan', 'loss spike')
    """
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if not math.isfinite(gradient_norm):
        return f"gradient norm is {gradient_norm}"
    return "loss spike" if loss > threshold else None
