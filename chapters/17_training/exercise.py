"""Chapter 17, Training: fill in the holes (17 points).

`minillm course test 17` tests this file, `minillm course test 17 17.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import copy
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError, ConfigError, ShapeError, TrainingError
from minillm.models.gpt import GPT
from minillm.nn.embedding import Embedding
from minillm.nn.linear import Linear
from minillm.runtime import AnyGenerator, default_generators, generator, generator_states, restore_generators
from minillm.train.accumulation import LossSum
from minillm.train.clip import gradients_of
from minillm.train.loss import IGNORED, next_token_loss
from minillm.train.optim import AdamW
from minillm.train.saved_state import RunState, check_fits
from minillm.train.schedule import check_schedule


def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW for one tensor: a running mean of the gradient over the root of a running mean of its square.

    m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g^2; both start at 0 and are too small by
    1 - beta^step, which is divided out:  parameter * (1 - lr * weight_decay) - lr * m_hat / (sqrt(v_hat) + eps).

    Args:
        parameter: any shape.
        gradient: same shape.
        exp_avg: the mean of the gradient m, same shape, 0 before the first step.
        exp_avg_sq: the mean of the squared gradient v, same shape, 0 before the first step.
        step: the number of this step, 1 for the first.
        lr: learning rate.
        betas: how much of the old means is kept, each in [0, 1).
        eps: added to the root, after the division by 1 - beta2^step.
        weight_decay: share of the parameter, times lr, that is taken away beside the gradient step.

    Returns:
        the new parameter, m and v; the arguments are not changed.

    Source:
        Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.

    Example:
        >>> new, _, _ = adamw_step(torch.tensor(1.0), torch.tensor(0.2), torch.tensor(0.0), torch.tensor(0.0), 1,
        ...                        lr=0.1, weight_decay=0.0)
        >>> new  # the first step has length lr, whatever the gradient
        tensor(0.9000)
    """
    # TASK 17.1 (3 points)
    # First the two running means, then the two corrections, which need the number of this step, then one line for
    # the new parameter. eps is added to the root, not under it, and weight decay never enters the means.
    raise NotImplementedError("task 17.1")


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
    # TASK 17.2 (2 points)
    # Three cases: before the warm-up is over, from n_steps on, and between. In the middle one let a progress from
    # 0 to 1 run through half a cosine. Write down the rates of steps 0, n_warmup_steps - 1, n_warmup_steps and
    # n_steps before you begin.
    raise NotImplementedError("task 17.2")


def clip_gradients(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, error_if_nonfinite: bool = False
) -> Tensor:
    """Shorten the gradients, in place, if their common length is above `max_norm`; leave them alone otherwise.

    The norm is the Euclidean length of all gradients taken as one long vector. The factor, one for all, is
    min(1, max_norm / (norm + 1e-6)), as in torch's `clip_grad_norm_`.

    Args:
        parameters: tensors with `.grad`, any iterable, read once.
        max_norm: the largest norm allowed, above 0; infinity only measures.
        error_if_nonfinite: raise when the norm is NaN or infinite, before any gradient is changed;
            otherwise gradients become NaN or 0 and the caller must look at the norm returned.

    Returns:
        the norm before clipping, a scalar tensor; 0 if no parameter has a gradient.

    Raises:
        ConfigError: if `max_norm` is not above 0.
        TrainingError: if the norm is not finite and `error_if_nonfinite`.

    Source:
        Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.

    Example:
        >>> weight = torch.zeros(2)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients([weight], max_norm=1.0)
        tensor(5.)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    # TASK 17.3 (2 points)
    # One norm for all gradients together: the norm of the norms. The parameters may be a generator, which can be
    # read only once, so put the gradients into a list first.
    raise NotImplementedError("task 17.3")


def accumulate_gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    n_microbatches: int,
    loss_sum: LossSum = next_token_loss,
    scale: float = 1.0,
) -> Tensor:
    """Add the gradient of the batch's mean loss to the parameters' `.grad`, one part of the batch after another.

    Backward adds to `.grad`, so parts may follow one another; only one part's activations are kept at a time. The mean
    is over the counted targets of the whole batch: each part's loss is its sum divided by that one number, so that a
    part with few counted targets weighs little. A mean of the parts' means would be another gradient.

    Args:
        model: what `loss_sum` expects.
        inputs: (B, T) token ids.
        targets: (B, T) token ids; -100 is not counted.
        n_microbatches: number of parts the rows are split into, from 1 to B; the first ones are one row longer where
            it does not divide B.
        loss_sum: (model, inputs, targets) of one part -> loss summed over its counted targets.
        scale: factor on the gradients (loss scaling), not on the loss returned.

    Returns:
        the mean loss over the counted targets of the whole batch, a scalar without gradient.

    Raises:
        ShapeError: if the two shapes differ or there are more parts than rows.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> def count(weight, inputs, targets):
        ...     return (weight * (targets != -100)).sum()
        >>> _ = accumulate_gradients(weight, torch.zeros(3, 1), torch.tensor([[1], [-100], [1]]), 2, loss_sum=count)
        >>> weight.grad  # two counted targets of weight 1/2, though they lie in different parts
        tensor([1.])
    """
    # TASK 17.4 (3 points)
    # Count the targets of the whole batch before you split it. loss_sum gives a sum: what must each part's sum be
    # divided by so that the parts add up to the mean over all? Call backward once for each part; it adds to what
    # is there.
    raise NotImplementedError("task 17.4")


class LossScaler:
    """Multiplies the loss by the largest factor without overflow, so that small fp16 gradients are not 0.

    After `growth_interval` steps without overflow the factor grows; at an overflow the step is skipped and it shrinks.

    Args:
        init_scale: first factor, above 0.
        growth_factor: above 1.
        backoff_factor: between 0 and 1.
        growth_interval: steps without overflow before the factor grows, 1 or more.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

    Example:
        >>> scaler = LossScaler(init_scale=8.0, growth_interval=2)
        >>> for found_overflow in (False, False, True):
        ...     scaler.update(found_overflow)
        ...     print(scaler.scale)
        8.0
        16.0
        8.0
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):
        if not (init_scale > 0 and growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
            raise ConfigError(
                f"loss scaling from {init_scale} by {growth_factor} and {backoff_factor} each {growth_interval} steps: "
                "expected a start above 0, growth above 1, backoff between 0 and 1, an interval of 1 or more"
            )
        self.scale = float(init_scale)
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self.n_good_steps = 0

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients by the factor, in place; an overflow stays visible as inf or NaN.

        Args:
            parameters: tensors with or without `.grad`, any iterable, read once.
        """
        # TASK 17.5 (1 point)
        # Some parameters have no gradient. Change the gradients in place, whatever number format they have.
        raise NotImplementedError("task 17.5")

    def update(self, found_overflow: bool) -> None:
        """Adapt the factor to what a step met.

        An overflow multiplies it by `backoff_factor`. Otherwise the step counts as a good one, and the last of
        `growth_interval` good steps in a row multiplies it by `growth_factor`; then counting begins again.

        Args:
            found_overflow: whether a gradient of this step was not finite, so that the step was skipped.
        """
        # TASK 17.6 (2 points)
        # Play the example of the class through by hand: the count of good steps begins again after every change of
        # the factor, and after an overflow too.
        raise NotImplementedError("task 17.6")

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must hold: the factor and the number of good steps since it last changed."""
        return {"scale": self.scale, "n_good_steps": self.n_good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over the factor and the count that `state_dict` gave.

        Raises:
            CheckpointError: if they are missing or make no sense.
        """
        scale, n_good_steps = state.get("scale"), state.get("n_good_steps")
        if not isinstance(scale, float) or not scale > 0 or not isinstance(n_good_steps, int):
            raise CheckpointError(f"expected the state of a loss scaler (scale, n_good_steps), found {state}")
        self.scale, self.n_good_steps = scale, n_good_steps


def capture_state(
    module: nn.Module, optimizer: Optimizer, step: int, generators: Mapping[str, AnyGenerator] | None = None
) -> RunState:
    """Copy all that a run needs to go on as if it had never stopped.

    Copy: a state_dict is a view of the live tensors, and the next step would change it.

    Args:
        module: any module.
        optimizer: any torch optimizer.
        step: number of steps made so far.
        generators: name -> torch or numpy generator that the run draws from; their states are read with
            `generator_states`.

    Returns:
        the state, which shares no memory with the module and the optimizer.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> state = capture_state(layer, torch.optim.SGD(layer.parameters()), step=7)
        >>> _ = nn.init.constant_(layer.weight, 5.0)
        >>> state.step, state.model["weight"].item()
        (7, 2.0)
    """
    # TASK 17.7 (2 points)
    # state_dict() gives the tensors that the next step will overwrite. How deep must a copy be so that lists and
    # dictionaries of tensors are copied with their content?
    raise NotImplementedError("task 17.7")


def restore_state(
    state: RunState, module: nn.Module, optimizer: Optimizer, generators: Mapping[str, AnyGenerator] | None = None
) -> int:
    """Put a captured state back; it may be put back again, since it still shares no memory with anything.

    Args:
        state: what `capture_state` gave.
        module: of the same architecture; changed in place.
        optimizer: of the same kind over the same parameters in the same order; changed in place.
        generators: name -> generator to be put back with `restore_generators`, changed in place; each needs a saved
            state of its name.

    Returns:
        the step.

    Raises:
        CheckpointError: if module, optimizer or generators do not fit; nothing is changed then.
    """
    # TASK 17.8 (2 points)
    # Check everything before the first change: check_fits looks at module and optimizer, restore_generators at
    # the generators before it changes them. torch's optimizers keep the very tensors that load_state_dict is
    # given: what would the next step do to the state?
    raise NotImplementedError("task 17.8")
