"""Intrinsic dimension: train all of a model's numbers through a few, start + P theta, with a random fixed P.

Dimensions: D numbers of the model that are reached, d numbers that are trained, m layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.delta import Delta
from minillm.adapt.fastfood import Fastfood
from minillm.errors import ConfigError

STRUCTURES = ("did", "said")


@dataclass(frozen=True, kw_only=True)
class IntrinsicConfig:
    """How many numbers may be trained, and how they reach the model.

    Args:
        dimension: d, all trained numbers.
        structure: "did" moves all of the model by one projection; "said" also learns how far each layer goes: m of
            the d numbers are factors, one for each of m layers, 1 at the start.
        seed: of the projection, which is never saved but made again.
        heads: modules, such as a new classifier, that are trained and saved whole; the projection leaves them out.

    Raises:
        ConfigError: naming the first setting that is out of range.

    Source:
        Aghajanyan et al. 2020, arXiv:2012.13255, section 3; Li et al. 2018, arXiv:1804.08838, section 2.
    """

    method: ClassVar[str] = "intrinsic"

    dimension: int = 200
    structure: str = "did"
    seed: int = 0
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "heads", (self.heads,) if isinstance(self.heads, str) else tuple(self.heads))
        if not isinstance(self.dimension, int) or isinstance(self.dimension, bool) or self.dimension < 1:
            raise ConfigError(f"dimension is {self.dimension!r}, expected a whole number of at least 1")
        if self.structure not in STRUCTURES:
            raise ConfigError(f"structure is {self.structure!r}, expected one of {STRUCTURES}")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> "IntrinsicDelta":
        """Let the model read its numbers through a projection. Nothing is drawn from the generator: P has a seed."""
        return IntrinsicDelta(model, self)


class Projected(torch.autograd.Function):
    """P theta; the gradient by theta is P^T times that by the result. Keeps nothing but the projection."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, projection: Fastfood) -> Tensor:
        ctx.projection = projection
        return projection(theta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.projection.transposed(gradient), None


class Scaled(torch.autograd.Function):
    """factor * step for one parameter; keeps both, so that several losses can go back through it one after another."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, factor: Tensor) -> Tensor:
        ctx.kept = step, factor
        return step * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        step, factor = ctx.kept
        return gradient * factor, (gradient * step).sum()


def layer_of(name: str) -> str:
    """Which layer a parameter belongs to: its name up to the first number, or its first word.

    Example:
        >>> layer_of("blocks.3.attention.qkv.weight"), layer_of("token_embedding.weight")
        ('blocks.3', 'token_embedding')
    """
    words = name.split(".")
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[0] + 1]) if numbers else words[0]


class Shift(nn.Module):
    """What is trained, and what it makes of each of the model's parameters at the moment.

    Moved parameters are made once for all that read them: until the model is called again, a gradient has come back,
    or theta has changed. To generate text, `merge` first: every call makes them anew otherwise.

    Args:
        parameters: name -> parameter of the base, each once.
        config: d, structure and seed.

    Attributes:
        theta: (d,) or with "said" (d - m,); zero at the start.
        factors: (m,) one for each layer, or None.

    Raises:
        ConfigError: if "said" leaves no dimension beside its factors, or d is above D.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: IntrinsicConfig):
        super().__init__()
        first = next(iter(parameters.values()))
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        names = [layer_of(name) for name in parameters]
        layers = list(dict.fromkeys(names))
        self.layer_indices = [layers.index(name) for name in names]
        n_factors = len(layers) if config.structure == "said" else 0
        if config.dimension <= n_factors:
            raise ConfigError(f"dimension {config.dimension} leaves nothing beside the factors of {n_factors} layers")
        dtype = torch.float32 if first.dtype in (torch.float16, torch.bfloat16) else first.dtype
        make = {"dtype": dtype, "device": first.device}
        self.theta = nn.Parameter(torch.zeros(config.dimension - n_factors, **make))
        self.factors = nn.Parameter(torch.ones(n_factors, **make)) if n_factors else None
        self.projection = Fastfood(sum(self.sizes), len(self.theta), config.seed).to(first.device)
        self.base = list(parameters.values())  # a list: they are the model's, not this module's
        self.indices = {id(parameter): index for index, parameter in enumerate(self.base)}
        self.on, self.made, self.made_for = True, [], None

    def now(self, parameter: nn.Parameter) -> Tensor:
        """A parameter of the base as the model is to read it."""
        if not self.on or id(parameter) not in self.indices:
            return parameter
        state = self.state()
        if state != self.made_for:
            self.made, self.made_for = self.moved(), state
        return self.made[self.indices[id(parameter)]]

    def state(self) -> tuple:
        """What the moved parameters depend on, cheaply: other numbers, another place, or a gradient wanted or not."""
        trained = [p for p in (self.theta, self.factors) if p is not None]
        versions = [(p._version, p.data_ptr(), p.requires_grad, p.dtype) for p in trained]
        return (*versions, self.base[0].data_ptr(), self.base[0].dtype, torch.is_grad_enabled())

    def moved(self) -> list[Tensor]:
        """All parameters of the base, moved."""
        step = Projected.apply(self.theta, self.projection)        # (D,)
        if step.requires_grad:
            step.register_hook(self.forget)
        pieces = list(step.split(self.sizes))
        if self.factors is not None:
            factors = self.factors.unbind()
            pieces = [Scaled.apply(piece, factors[i]) for piece, i in zip(pieces, self.layer_indices, strict=True)]
        return [base.detach() + piece.view_as(base).to(base.dtype)
                for base, piece in zip(self.base, pieces, strict=True)]  # fmt: skip

    def forget(self, *_: object) -> None:
        """Make the moved parameters anew at the next access. A hook: what it is called with does not matter."""
        self.made, self.made_for = [], None


NAME = "intrinsic_shift"  # of the module with theta in an adapted model


class IntrinsicDelta(Delta):
    """A projection beside a model, and the model's modules reading their parameters through it.

    Args:
        model: is changed; names and numbers of its parameters stay.
        config: what to train.

    Raises:
        ConfigError: if the model has a layer that reads its parameters past their names (torch's LSTM and GRU), or as
            `Shift`.
    """

    def __init__(self, model: nn.Module, config: IntrinsicConfig):
        if found := [name for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]:
            raise ConfigError(f"{found[0]} is torch's own recurrent layer, whose weights cannot be moved from outside")
        self.model = model
        self.shift = Shift(reached(model, config.heads), config)
        self.overlays = [surgery.overlay(module, reader, intrinsic_now=self.shift.now)
                         for module, reader in readers(model, self.shift)]  # fmt: skip
        model.add_module(NAME, self.shift)
        self.hook = model.register_forward_pre_hook(self.shift.forget)
        self.kept: list[Tensor] = []

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.shift.named_parameters() if name in ("theta", "factors")}

    def switch(self, on: bool) -> None:
        self.shift.on = on

    @torch.no_grad()
    def merge(self) -> None:
        """Write the moved numbers into the base; the old ones are kept, so the way back is exact."""
        moved = self.shift.moved()
        self.kept = [parameter.data for parameter in self.shift.base]
        for parameter, value in zip(self.shift.base, moved, strict=True):
            parameter.data = value
        self.shift.on = False

    def unmerge(self) -> None:
        for parameter, value in zip(self.shift.base, self.kept, strict=True):
            parameter.data = value
        self.kept, self.shift.on = [], True

    def remove(self) -> None:
        self.shift.on = False
        for laid in reversed(self.overlays):
            laid.remove()
        self.overlays = []
        self.hook.remove()
        if NAME in self.model._modules:
            del self.model._modules[NAME]


def reached(model: nn.Module, heads: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that a projection moves: all that are numbers with a point, but those of heads; tied ones once.

    Raises:
        ConfigError: if there are none.
    """
    own = {id(p) for head in (surgery.find(model, heads) if heads else ())
           for p in model.get_submodule(head).parameters()}  # fmt: skip
    found = {name: p for name, p in model.named_parameters() if id(p) not in own and p.is_floating_point()}
    if not found:
        raise ConfigError(f"{type(model).__name__} has no parameters that could be moved")
    return found


def readers(model: nn.Module, shift: Shift) -> Iterator[tuple[nn.Module, type]]:
    """Each module that holds a moved parameter, with a class whose properties stand before its parameters."""
    for module in list(model.modules()):
        named = [name for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
                 if id(p) in shift.indices]  # fmt: skip
        if named:
            yield module, type("Moved", (), {name: property(reader(name)) for name in named})


def reader(name: str) -> Callable[[Any], Tensor]:
    """A function that reads one parameter of a module through its shift."""
    return lambda module: module.intrinsic_now(module._parameters[name])


@dataclass(frozen=True)
class SmallestDimension:
    """What `smallest_dimension` found.

    Attributes:
        dimension: the first that was good enough, or None.
        needed: the quality that counts as good enough.
        qualities: dimension -> quality, of all that were tried.
    """

    dimension: int | None
    needed: float
    qualities: dict[int, float]


def smallest_dimension(
    quality_at: Callable[[int], float], full_quality: float, dimensions: Sequence[int], share: float = 0.9
) -> SmallestDimension:
    """Try dimensions from small to large until one reaches a share of what training everything reaches: d90.

    Args:
        quality_at: trains with so many dimensions and measures, for example the accuracy on held-out texts.
        full_quality: the same measure after training every number; above zero, larger is better.
        dimensions: to try.
        share: of the full quality that is enough.

    Returns:
        the dimension and what was measured on the way.

    Raises:
        ConfigError: if there is nothing to try, or the quality of full training is not positive.

    Source:
        Li et al. 2018, arXiv:1804.08838, section 2; Aghajanyan et al. 2020, arXiv:2012.13255, section 3.

    Example:
        >>> smallest_dimension(lambda dimension: 1 - 1 / dimension, 1.0, [4, 8, 16, 32]).dimension
        16
    """
    if not dimensions or not full_quality > 0:
        raise ConfigError(f"{len(dimensions)} dimensions and full quality {full_quality}: expected both positive")
    qualities: dict[int, float] = {}
    for dimension in sorted(dimensions):
        qualities[dimension] = quality_at(dimension)
        if qualities[dimension] >= share * full_quality:
            return SmallestDimension(dimension, share * full_quality, qualities)
    return SmallestDimension(None, share * full_quality, qualities)
