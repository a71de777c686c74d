"""Fine-tuning without new parts: all of the base's own parameters are trained, or those of a part of it.

The old numbers are kept beside the trained ones, so that these methods can be switched, saved and removed like all
others; the change stands in the base's weights from the beginning, so merging has nothing to do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from minillm import surgery
from minillm.adapt.delta import TrainedInPlace
from minillm.adapt.heads import head_modules
from minillm.adapt.layer_order import BEHIND_ENCODER, OF_BODY, depths, stacks
from minillm.errors import ConfigError

FEED_FORWARDS = ("feed_forward", "mlp", "DenseReluDense")  # ours; GPT-2, LLaMA; T5 of transformers


class InPlace(TrainedInPlace):
    """Parameters trained where they stand; as a method of its own, for which merging is no work."""

    def merge(self) -> None:
        pass

    def unmerge(self) -> None:
        pass


def in_place(model: nn.Module, heads: Sequence[str], wanted: Callable[[str], bool]) -> InPlace:
    """Train the parameters all of whose names are wanted, except those of the heads, which `adapt` adds itself.

    Args:
        model: is not changed.
        heads: as in every config.
        wanted: dotted name of a parameter -> whether it belongs to the part. A tied parameter that has another name as
            well, outside of the part, is left alone: it would change the rest too.

    Returns:
        the delta.

    Raises:
        ConfigError: if nothing is left to be trained.
    """
    of_heads = {id(parameter) for head in head_modules(model, heads).values() for parameter in head.parameters()}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    chosen = [group[0] for key, group in names.items() if key not in of_heads and all(map(wanted, group))]
    if not chosen:
        raise ConfigError(f"no parameter of {type(model).__name__} belongs to the part that is to be trained")
    return InPlace(model, chosen)


def set_names(config: object, *fields: str) -> None:
    """Turn one name into a tuple of one, in a frozen config."""
    for field in fields:
        value = getattr(config, field)
        object.__setattr__(config, field, (value,) if isinstance(value, str) else tuple(value))


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """All parameters are trained; on text of a new domain this is continued pre-training.

    Args:
        heads: new modules, such as a classifier, whose numbers do not count when the base is recognised.
    """

    method: ClassVar[str] = "full"
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        set_names(self, "heads")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> InPlace:
        """Train everything."""
        return in_place(model, self.heads, lambda name: True)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Only the head is trained: the model stays what it is and one linear map reads its vectors.

    Args:
        heads: the modules that are trained. A language model whose head is its token embedding (`tie_embeddings`) has
            no head that could be trained alone.

    Raises:
        ConfigError: if none is named.
    """

    method: ClassVar[str] = "head"
    heads: tuple[str, ...] = ("head",)

    def __post_init__(self):
        set_names(self, "heads")
        if not self.heads:
            raise ConfigError("heads is empty: name the modules that are to be trained, for example ('head',)")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> InPlace:
        """Nothing beside the heads, which `adapt` trains for every method."""
        return InPlace(model, ())


@dataclass(frozen=True, kw_only=True)
class LastLayersConfig:
    """The last layers are trained, with what follows them.

    Args:
        n_layers: how many, at least 1; of an encoder-decoder those of the decoder come first. A layer that is used
            again and again (ALBERT) counts once.
        heads: new modules, such as a classifier, whose numbers do not count when the base is recognised.

    Raises:
        ConfigError: if the number is below 1, or, when a model is adapted, above that of its layers.
    """

    method: ClassVar[str] = "last_layers"
    n_layers: int = 1
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        set_names(self, "heads")
        if not isinstance(self.n_layers, int) or isinstance(self.n_layers, bool) or self.n_layers < 1:
            raise ConfigError(f"n_layers is {self.n_layers!r}, expected a whole number of at least 1")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> InPlace:
        """Train what stands at these depths."""
        n_layers, depth = sum(stacks(model).values()), depths(model)
        if self.n_layers > n_layers:
            raise ConfigError(f"n_layers is {self.n_layers}, the model has {n_layers} layers; FullConfig trains all")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        used = {id(parameter) for name, parameter in parameters.items() if not OF_BODY.match(name)}
        first = n_layers - self.n_layers + 1
        return in_place(model, self.heads, lambda name: depth[name] >= first and id(parameters[name]) in used)


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """The feed-forward layers are trained and attention is not; norms belong to neither.

    Args:
        targets: the feed-forward layers, by name as in `surgery.find`; none means what they are called here and in
            `transformers`.
        heads: new modules, such as a classifier, that are trained too.
    """

    method: ClassVar[str] = "feed_forward"
    targets: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        set_names(self, "targets", "heads")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> InPlace:
        """Train what is inside of these modules."""
        last = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        known = [name for name in FEED_FORWARDS if name in last] or list(FEED_FORWARDS)
        inside = tuple(f"{found}." for found in surgery.find(model, self.targets or known))
        return in_place(model, self.heads, lambda name: name.startswith(inside))


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Of an encoder-decoder the encoder is trained, so that a new kind of source is read by the same writer.

    The token embedding, which both halves share, is not.

    Args:
        heads: new modules that are trained too.
    """

    method: ClassVar[str] = "encoder"
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        set_names(self, "heads")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> InPlace:
        """Train the encoder's layers, its norm and its numbers for distances."""
        lists = stacks(model)
        halves = [[stack for stack in lists if half in stack.split(".")] for half in ("encoder", "decoder")]
        if not all(halves):
            raise ConfigError(f"{type(model).__name__} is no encoder-decoder; its lists of layers are {list(lists)}")
        path = halves[0][0].partition("encoder")[0]
        inside = (f"{path}encoder.", f"{path}encoder_distances.")
        return in_place(model, self.heads, lambda name: name.startswith(inside) or bool(BEHIND_ENCODER.search(name)))
