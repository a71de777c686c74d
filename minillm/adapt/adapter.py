"""Adapters: small networks with a narrow waist, put between the frozen parts of each layer and trained alone.

An adapter adds to a vector h what it makes of it: h + W_up f(W_down h + b_down) + b_up.

Dimensions: B batch, T positions, C width, M width of the waist.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.delta import Delta, Several, TrainedInPlace
from minillm.adapt.layers import ATTENTIONS, NORMS, layers_to_adapt, norm_is_behind, parts_named
from minillm.errors import ConfigError
from minillm.models.gpt import check_count
from minillm.nn.linear import Linear

PLACEMENTS = ("houlsby", "pfeiffer")
CHILD = "adapter"  # name of the new module within the one whose output it changes
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """How wide the adapters are, where they stand and how they start.

    Args:
        bottleneck: M, width of the waist.
        placement: "houlsby" has an adapter behind each attention and behind the feed-forward part of each layer, on
            what these add to the residual stream, before it is added. "pfeiffer" has one, behind the feed-forward part;
            it reads the sum (normalised where the model normalises sums) and adds to the part's own output.
        activation: f, one of `ACTIVATIONS`.
        initial_std: standard deviation of both matrices at the start, cut off at twice that; biases are 0. The paper
            has 0.01, its code 0.001. Were it 0, no matrix would ever get a gradient.
        zero_up: start W_up at zero instead: the model is then exactly the base at first, and learns all the same.
        source_attention: whether Houlsby's adapters stand also behind a decoder's attention to its source.
        train_norms: whether the layers' norms are trained too, as in the paper; they are saved with the adapter.
        heads: modules, such as a new classifier, that are trained and saved whole.

    Raises:
        ConfigError: naming the first setting that is out of range.

    Source:
        Houlsby et al. 2019, arXiv:1902.00751, section 2.1 and figure 2; "pfeiffer": Pfeiffer et al. 2020,
        arXiv:2005.00052, equation 1, whose order of sum and norm the `adapters` package has too.
    """

    method: ClassVar[str] = "adapter"

    bottleneck: int = 16
    placement: str = "houlsby"
    activation: str = "gelu"
    initial_std: float = 0.01
    zero_up: bool = False
    source_attention: bool = True
    train_norms: bool = False
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "heads", (self.heads,) if isinstance(self.heads, str) else tuple(self.heads))
        check_count("bottleneck", self.bottleneck, at_least=1)
        for name, allowed in (("placement", PLACEMENTS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}")
        if not 0.0 < self.initial_std < math.inf:
            raise ConfigError(
                f"initial_std is {self.initial_std}, expected a positive number: with both matrices at 0 neither gets "
                "a gradient; for an exact start take zero_up=True"
            )

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> Delta:
        """Put an adapter in every place, all or none."""
        delta = AdapterDelta(model, self, generator)
        if not self.train_norms:
            return delta
        norms = parts_named(layers_to_adapt(model), model, NORMS)
        named = [f"{norm}.{kind}" for norm in norms for kind, _ in model.get_submodule(norm).named_parameters()]
        return Several([delta, TrainedInPlace(model, named)])


def adapter_count(d_model: int, bottleneck: int, n_adapters: int) -> int:
    """How many numbers adapters have: two matrices and two biases each, n (2 C M + M + C).

    Args:
        d_model: width C.
        bottleneck: M.
        n_adapters: of the whole model; Houlsby's 2 a layer, Pfeiffer's 1.

    Source:
        Houlsby et al. 2019, arXiv:1902.00751, section 2.1: "2md + d + m" for one.

    Example:
        >>> adapter_count(d_model=768, bottleneck=64, n_adapters=2 * 12)
        2379264
    """
    return n_adapters * (2 * d_model * bottleneck + bottleneck + d_model)


class Bottleneck(nn.Module):
    """What an adapter adds to a vector: W_up f(W_down h + b_down) + b_up, without h itself.

    Args:
        d_model: width C.
        config: width of the waist, activation and initial values.
        generator: where initial numbers come from; None is torch's own default generator.

    Example:
        >>> Bottleneck(8, AdapterConfig(bottleneck=2, zero_up=True))(torch.ones(3, 8)).abs().max().item()
        0.0
    """

    def __init__(self, d_model: int, config: AdapterConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.down = Linear(d_model, config.bottleneck, bias=True, std=0.0)
        self.up = Linear(config.bottleneck, d_model, bias=True, std=0.0)
        self.activation, self.is_on = config.activation, True
        std = config.initial_std
        for layer in (self.down,) if config.zero_up else (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std, generator)

    def forward(self, h: Tensor) -> Tensor:
        """Map (..., C) to (..., C), in h's number format."""
        wide = h.to(self.down.weight.dtype)
        return self.up(ACTIVATIONS[self.activation](self.down(wide))).to(h.dtype)


class Behind:
    """Laid over a module: its output h becomes h + adapter(h)."""

    def forward(self, *args, **kwargs) -> Tensor:
        """The module's own arguments -> (..., C)."""
        h = super().forward(*args, **kwargs)
        return h + self.adapter(h) if self.adapter.is_on else h


class BehindSum:
    """Laid over a part whose sum with its input is normalised: its output h becomes h + adapter(norm(x + h))."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        h = super().forward(x)
        return h + self.adapter(self.norm_of_sum(x + h)) if self.adapter.is_on else h


@dataclass(frozen=True)
class Place:
    """Where an adapter goes.

    Attributes:
        name: of the module whose output it changes.
        d_model: width C of that output.
        methods: what is laid over that module.
        attributes: what these methods need beside the adapter.
    """

    name: str
    d_model: int
    methods: type = Behind
    attributes: dict[str, nn.Module] = field(default_factory=dict)


def places_of(name: str, layer: nn.Module, config: AdapterConfig) -> list[Place]:
    """Where the adapters of one layer go.

    A layer that does not normalise sums gives x + h, so that Pfeiffer's h + adapter(x + h), to which x is added, is an
    adapter on the output of the whole layer.

    Args:
        name: of the layer in its model.
        layer: the layer.
        config: the placement.
    """
    width = surgery.matrix_of(layer.attention.output).shape[0]
    if config.placement == "houlsby":
        attentions = [part for part in ATTENTIONS if hasattr(layer, part)][: 1 + config.source_attention]
        parts = [*(f"{part}.output" for part in attentions), "feed_forward"]
        return [Place(f"{name}.{part}", width) for part in parts]
    if norm_is_behind(layer):
        return [Place(f"{name}.feed_forward", width, BehindSum, {"norm_of_sum": layer.feed_forward_norm})]
    return [Place(name, width)]


class AdapterDelta(Delta):
    """The adapters in all layers of one model.

    Args:
        model: is changed: modules get a child named `adapter` and its addition to their output; names stay.
        config: what to put where.
        generator: where initial numbers come from; None is torch's own default generator.

    Raises:
        ConfigError: if the model has no layers, or adapters already; it is as it was then.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None):
        self.model, self.overlays = model, {}
        layers = layers_to_adapt(model)
        places = [place for name, layer in layers.items() for place in places_of(name, layer, config)]
        for place in places:
            if hasattr(model.get_submodule(place.name), CHILD):
                raise ConfigError(f"{place.name} has an adapter already; remove it first")
        for place in places:
            self.put(place, config, generator)

    def put(self, place: Place, config: AdapterConfig, generator: torch.Generator | None) -> None:
        """Put one adapter in its place."""
        host = self.model.get_submodule(place.name)
        like = next(host.parameters())
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        adapter = Bottleneck(place.d_model, config, generator).to(like.device, dtype)
        host.add_module(CHILD, adapter.train(host.training))
        self.overlays[place.name] = surgery.overlay(host, place.methods, **place.attributes)

    @property
    def adapters(self) -> dict[str, Bottleneck]:
        """Name in the model -> adapter."""
        return {f"{name}.{CHILD}": self.model.get_submodule(f"{name}.{CHILD}") for name in self.overlays}

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{kind}": parameter
                for name, adapter in self.adapters.items()
                for kind, parameter in adapter.named_parameters()}  # fmt: skip

    def switch(self, on: bool) -> None:
        for adapter in self.adapters.values():
            adapter.is_on = on

    def remove(self) -> None:
        while self.overlays:
            name, overlay = self.overlays.popitem()
            overlay.remove()
            delattr(overlay.module, CHILD)
