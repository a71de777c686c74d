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


def warmup_inverse_square_root(step: int, d_model: int, n_warmup_steps: int) -> float:
    """Rise in a straight line, then fall with the square root of the step, for ever: the schedule of the Transformer.

    With s = step + 1 the rate is 1 / sqrt(d_model) * min(1 / sqrt(s), s / n_warmup_steps^1.5).

    Args:
        step: the step about to be made, from 0.
        d_model: width of the model; a wider one gets a smaller rate.
        n_warmup_steps: number of warm-up steps, at least 1; the last of them has the largest rate.

    Returns:
        the learning rate itself: give the optimizer's groups a base rate of 1.

    Raises:
        ConfigError: if the step is negative or another number below 1.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, eq. (3); d_model 512 and 4000 warm-up steps there.

    Example:
        >>> [warmup_inverse_square_root(step, d_model=4, n_warmup_steps=4) for step in (0, 1, 3, 15)]
        [0.0625, 0.125, 0.25, 0.125]
    """
    if step < 0 or d_model < 1 or n_warmup_steps < 1:
        raise ConfigError(
            f"step {step}, d_model {d_model}, {n_warmup_steps} warm-up steps: expected at least 0, 1 and 1"
        )
    number = step + 1
    return d_model**-0.5 * min(number**-0.5, number * n_warmup_steps**-1.5)


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
