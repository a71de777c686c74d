"""Feed-forward layers: what each position computes on its own, between the rounds of attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.nn import functional
from minillm.nn.linear import Linear, linear

FEED_FORWARDS = ("gelu", "swiglu", "relu2")


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


class FeedForward(nn.Module):
    """A learned feed-forward layer of one of three kinds.

    Args:
        d_model: width C of input and output.
        d_ff: hidden width F.
        kind: "gelu" (tanh form), "swiglu" or "relu2".
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
        self.gate = Linear(d_model, d_ff, bias, std, generator) if kind == "swiglu" else None
        self.up = Linear(d_model, d_ff, bias, std, generator)
        self.down = Linear(d_ff, d_model, bias, output_std, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        hidden = self.up(x)                                        # (..., F)
        if self.kind == "swiglu":
            return self.down(self.activate(self.gate(x)) * hidden)
        return self.down(self.activate(hidden))

    def activate(self, hidden: Tensor) -> Tensor:
        """The nonlinearity of this kind, on (..., F)."""
        if self.kernels == "naive":
            functions = {"gelu": functional.gelu_tanh, "swiglu": functional.silu, "relu2": functional.relu2}
            return functions[self.kind](hidden)
        if self.kind == "gelu":
            return F.gelu(hidden, approximate="tanh")
        return F.silu(hidden) if self.kind == "swiglu" else F.relu(hidden).square()
