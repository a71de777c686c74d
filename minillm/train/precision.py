"""Number formats of training: fp32, bf16 (the range of fp32, fewer digits), fp16 (small range: needs loss scaling)."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from minillm.errors import CheckpointError, ConfigError
from minillm.runtime import DTYPES


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
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.scale)

    def update(self, found_overflow: bool) -> None:
        """Adapt the factor to what a step met.

        An overflow multiplies it by `backoff_factor`. Otherwise the step counts as a good one, and the last of
        `growth_interval` good steps in a row multiplies it by `growth_factor`; then counting begins again.

        Args:
            found_overflow: whether a gradient of this step was not finite, so that the step was skipped.
        """
        if found_overflow:
            self.scale *= self.backoff_factor
            self.n_good_steps = 0
            return
        self.n_good_steps += 1
        if self.n_good_steps == self.growth_interval:
            self.scale *= self.growth_factor
            self.n_good_steps = 0

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


class Precision:
    """A number format for the matrix products; weights and optimizer stay in their own (fp32).

    Args:
        name: "fp32", "bf16" or "fp16".

    Attributes:
        scaler: a LossScaler for fp16, None otherwise. bf16 has the range of fp32 and needs none.

    Raises:
        ConfigError: if the name is unknown.
    """

    def __init__(self, name: str = "fp32"):
        if name not in DTYPES:
            raise ConfigError(f"precision {name!r} is unknown; known are {', '.join(DTYPES)}")
        self.name = name
        self.dtype = DTYPES[name]
        self.scaler = LossScaler() if name == "fp16" else None

    def autocast(self, device_type: str = "cpu") -> AbstractContextManager:
        """Within it, matrix products are made in this format; sums, norms and softmax stay in fp32.

        Args:
            device_type: "cpu" or "cuda".
        """
        return nullcontext() if self.name == "fp32" else torch.autocast(device_type, dtype=self.dtype)
