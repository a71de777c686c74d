"""Learning rates as pure functions of the step: nothing to save, nothing to resume.

Each takes the step about to be made (0 is the first) and gives the learning rate of that step.
"""

import math

from minillm.errors import ConfigError


def constant(step: int, max_learning_rate: float) -> float:
    """The same learning rate at each step.

    Args:
        step: the step about to be made; not used.
        max_learning_rate: the rate.

    Returns:
        `max_learning_rate`.
    """
    return max_learning_rate


def warmup_cosine(
    step: int, max_learning_rate: float, min_learning_rate: float, n_warmup_steps: int, n_steps: int
) -> float:
    """Rise in a straight line to the maximum, then fall along half a cosine to the minimum.

    Step s of the warm-up has (s + 1) / n_warmup_steps of the maximum, so that step 0 already moves; step
    n_warmup_steps - 1 first has the maximum, step n_warmup_steps starts the cosine, n_steps and after have the minimum.

    Args:
        step: the step about to be made, from 0.
        max_learning_rate: the rate after the warm-up.
        min_learning_rate: the rate at step `n_steps` and after.
        n_warmup_steps: number of warm-up steps, may be 0.
        n_steps: number of steps in all, warm-up included.

    Returns:
        the learning rate.

    Raises:
        ConfigError: if a step is negative, the warm-up is longer than the run, or the minimum above the maximum.

    Source:
        the cosine: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. (5), without restarts;
        warm-up: Goyal et al. 2017, arXiv:1706.02677.

    Example:
        >>> [warmup_cosine(step, 1.0, 0.0, 2, 6) for step in (0, 1, 2, 4, 6)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    if step >= n_steps:
        return min_learning_rate
    progress = (step - n_warmup_steps) / (n_steps - n_warmup_steps)
    return min_learning_rate + 0.5 * (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress))


def warmup_linear_to_zero(step: int, max_learning_rate: float, n_warmup_steps: int, n_steps: int) -> float:
    """Rise in a straight line to the maximum, then fall in a straight line to 0 at `n_steps`.

    Args:
        step: the step about to be made, from 0.
        max_learning_rate: the rate after the warm-up.
        n_warmup_steps: number of warm-up steps, may be 0; step s of them has (s + 1) / n_warmup_steps of the maximum.
        n_steps: number of steps in all, warm-up included.

    Returns:
        the learning rate; 0 from `n_steps` on.

    Raises:
        ConfigError: as `warmup_cosine`.

    Example:
        >>> [warmup_linear_to_zero(step, 1.0, 2, 6) for step in (0, 1, 2, 4, 6)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    check_schedule(step, max_learning_rate, 0.0, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    return max_learning_rate * max(0, n_steps - step) / max(1, n_steps - n_warmup_steps)


def warmup_stable_decay(
    step: int, max_learning_rate: float, min_learning_rate: float, n_warmup_steps: int, n_decay_steps: int, n_steps: int
) -> float:
    """Rise to the maximum, stay there, and fall in a straight line to the minimum over the last `n_decay_steps`.

    Args:
        step: the step about to be made, from 0.
        max_learning_rate: the rate of the long middle.
        min_learning_rate: the rate at step `n_steps` and after.
        n_warmup_steps: number of warm-up steps, may be 0; step s of them has (s + 1) / n_warmup_steps of the maximum.
        n_decay_steps: number of steps of the fall; warm-up and fall together fit into `n_steps`.
        n_steps: number of steps in all.

    Returns:
        the learning rate.

    Raises:
        ConfigError: as `warmup_cosine`, or if warm-up and fall overlap.

    Source:
        Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4.2; there the fall may have other forms.

    Example:
        >>> [warmup_stable_decay(step, 1.0, 0.0, 2, 4, 10) for step in (0, 1, 5, 6, 8, 10)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if n_decay_steps < 0 or n_warmup_steps + n_decay_steps > n_steps:
        raise ConfigError(
            f"{n_warmup_steps} warm-up and {n_decay_steps} decay steps do not fit into {n_steps} steps; shorten one"
        )
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    remaining = min(n_decay_steps, max(0, n_steps - step)) / max(1, n_decay_steps)
    if step < n_steps - n_decay_steps:
        return max_learning_rate
    return min_learning_rate + (max_learning_rate - min_learning_rate) * remaining


def check_schedule(step: int, max_learning_rate: float, min_learning_rate: float, n_warmup_steps: int, n_steps: int):
    """Refuse step numbers and rates that make no schedule."""
    if step < 0 or n_warmup_steps < 0 or n_warmup_steps > n_steps:
        raise ConfigError(
            f"step {step} of {n_steps} with {n_warmup_steps} warm-up steps: expected step >= 0 "
            "and 0 <= n_warmup_steps <= n_steps"
        )
    if not 0 <= min_learning_rate <= max_learning_rate:
        raise ConfigError(
            f"learning rate from {max_learning_rate} down to {min_learning_rate}: expected 0 <= minimum <= maximum"
        )
