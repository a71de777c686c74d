"""Feed-forward layers: what each position computes on its own, between the rounds of attention."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.nn import functional
from minillm.nn.linear import Linear, linear

FEED_FORWARDS = ("gelu", "gelu_exact", "relu", "relu2", "swiglu", "geglu")
GATED = ("swiglu", "geglu")
CACHED = 1 << 20  # numbers (4 MiB in fp32) up to which several passes over a tensor stay in the cache


def gelu_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ gelu_tanh(up @ x), the feed-forward layer of GPT-2.

    Args:
        x: (..., C).
        up: (F, C) weight.
        down: (C, F) weight.

    Returns:
        (..., C).

    Source:
        Radford et al. 2019, "Language models are unsupervised multitask learners"; biases left out.
    """
    return linear(functional.gelu_tanh(linear(x, up)), down)       # (..., C)


def swiglu_feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ (silu(gate @ x) * (up @ x)): one half of the hidden numbers decides how much of the other passes.

    Args:
        x: (..., C).
        gate: (F, C) weight.
        up: (F, C) weight.
        down: (C, F) weight.

    Returns:
        (..., C).

    Source:
        Shazeer 2020, arXiv:2002.05202, eq. (6).

    Example:
        >>> one = torch.ones(1, 1)
        >>> round(swiglu_feed_forward(torch.tensor([2.0]), one, 3 * one, one).item(), 3)
        10.57
    """
    return linear(functional.silu(linear(x, gate)) * linear(x, up), down)  # (..., C)


def geglu_feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ (gelu_tanh(gate @ x) * (up @ x)): SwiGLU with another curve, as in T5 v1.1.

    Args:
        x: (..., C).
        gate: (F, C) weight.
        up: (F, C) weight.
        down: (C, F) weight.

    Returns:
        (..., C).

    Source:
        Shazeer 2020, arXiv:2002.05202, eq. (6), with the tanh form of GELU.

    Example:
        >>> one = torch.ones(1, 1)
        >>> round(geglu_feed_forward(torch.tensor([2.0]), one, 3 * one, one).item(), 3)
        11.728
    """
    return linear(functional.gelu_tanh(linear(x, gate)) * linear(x, up), down)  # (..., C)


def relu_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ max(up @ x, 0), the feed-forward layer of the first Transformer.

    Args:
        x: (..., C).
        up: (F, C) weight.
        down: (C, F) weight.

    Returns:
        (..., C).

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, eq. (2); biases left out.
    """
    return linear(functional.relu(linear(x, up)), down)            # (..., C)


def relu2_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ max(up @ x, 0)^2.

    Args:
        x: (..., C).
        up: (F, C) weight.
        down: (C, F) weight.

    Returns:
        (..., C).

    Source:
        So et al. 2021, arXiv:2109.08668, section 3.
    """
    return linear(functional.relu2(linear(x, up)), down)           # (..., C)


class SigmoidGelu(torch.autograd.Function):
    """`gelu_tanh` as x * sigmoid(x * (a + b x^2)), with its derivative by hand.

    tanh(u) = 2 * sigmoid(2 u) - 1 makes the two the same. On a CPU sigmoid takes a quarter of the time of tanh, and the
    backward pass uses the sigmoid that the forward pass computed: together about 0.6 of the time of the library's
    kernel, as long as the intermediate results stay in the processor's cache.
    """

    LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
    CUBIC = LINEAR * 0.044715

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        gate = x.square().mul_(SigmoidGelu.CUBIC).add_(SigmoidGelu.LINEAR).mul_(x).sigmoid_()  # (..., F)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = x.square().mul_(3.0 * SigmoidGelu.CUBIC).add_(SigmoidGelu.LINEAR).mul_(x)
        return slope.mul_(1.0 - gate).add_(1.0).mul_(gate).mul_(gradient)


def sigmoid_gelu_is_faster(hidden: Tensor) -> bool:
    """Whether to train through `SigmoidGelu`: on a CPU, not in 16 bits, and small enough for the cache."""
    wide = hidden.dtype in (torch.float32, torch.float64)
    return wide and hidden.requires_grad and hidden.device.type == "cpu" and hidden.numel() <= CACHED


class FeedForward(nn.Module):
    """A learned feed-forward layer of one of several kinds.

    Args:
        d_model: width C of input and output.
        d_ff: hidden width F.
        kind: "gelu" (tanh form), "gelu_exact" (by the error function), "relu", "relu2", or with a gate "swiglu" or
            "geglu" (tanh form).
        bias: whether the linear maps have biases.
        std: standard deviation of the initial weights.
        output_std: that of the last map, which writes into the residual stream.
        kernels: "torch" or "naive", see `minillm.nn.functional`.
        generator: where the initial weights come from; None is torch's own default generator.

    Raises:
        ConfigError: if the kind is unknown.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        kind: str = "gelu",
        bias: bool = False,
        std: float = 0.02,
        output_std: float = 0.02,
        kernels: str = "torch",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        functional.check_kernels(kernels)
        if kind not in FEED_FORWARDS:
            raise ConfigError(f"feed-forward kind is {kind!r}, expected one of {FEED_FORWARDS}")
        self.kind, self.kernels = kind, kernels
        self.gate = Linear(d_model, d_ff, bias, std, generator) if kind in GATED else None
        self.up = Linear(d_model, d_ff, bias, std, generator)
        self.down = Linear(d_ff, d_model, bias, output_std, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        hidden = self.up(x)                                        # (..., F)
        if self.gate is not None:
            return self.down(self.activate(self.gate(x)) * hidden)
        return self.down(self.activate(hidden))

    def activate(self, hidden: Tensor) -> Tensor:
        """The nonlinearity of this kind, on (..., F)."""
        if self.kernels == "naive":
            return NAIVE[self.kind](hidden)
        if self.kind in ("gelu", "geglu"):
            fits = sigmoid_gelu_is_faster(hidden)
            return SigmoidGelu.apply(hidden) if fits else F.gelu(hidden, approximate="tanh")
        return FUSED[self.kind](hidden)


NAIVE = {
    "gelu": functional.gelu_tanh,
    "gelu_exact": functional.gelu,
    "relu": functional.relu,
    "relu2": functional.relu2,
    "swiglu": functional.silu,
    "geglu": functional.gelu_tanh,
}
FUSED = {"gelu_exact": F.gelu, "relu": F.relu, "relu2": lambda hidden: F.relu(hidden).square(), "swiglu": F.silu}
