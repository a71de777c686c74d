"""BitFit: only the biases are trained, which a model has or has not; nothing is added to it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from minillm import surgery
from minillm.adapt.delta import TrainedInPlace
from minillm.adapt.heads import head_modules
from minillm.adapt.layers import layers_of
from minillm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BitFitConfig:
    """Which biases are trained.

    Args:
        targets: modules whose biases are trained, by whole name, ending or regular expression (`surgery.find`); none
            means all linear layers and norms, as in the paper.
        heads: modules, such as a new classifier, that are trained and saved whole.

    The number that a head adds to each token's score (`head_bias` of BERT) belongs to its old task and stays.

    Source:
        Ben Zaken et al. 2021, arXiv:2106.10199, section 3.
    """

    method: ClassVar[str] = "bitfit"

    targets: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("targets", "heads"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> TrainedInPlace:
        """Train the biases where they are; their old numbers are kept for `disable` and `remove`."""
        return TrainedInPlace(model, biases_of(model, self))


def biases_of(model: nn.Module, config: BitFitConfig) -> list[str]:
    """Names of the biases to be trained.

    Raises:
        ConfigError: if a target means nothing, or the model has no biases: then nothing, or a head alone, would be
            trained without a word.

    Example:
        >>> biases_of(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False)), BitFitConfig())
        ['0.bias', '1.bias']
    """
    meant = surgery.find(model, config.targets) if config.targets else dict(model.named_modules())
    inside = {id(part) for head in head_modules(model, config.heads).values() for part in head.modules()}
    named = [f"{name}.bias" if name else "bias" for name, module in meant.items()
             if isinstance(getattr(module, "bias", None), nn.Parameter) and id(module) not in inside]  # fmt: skip
    layers = () if config.targets else layers_of(model)
    if not named or (layers and not any(name.startswith(f"{layer}.") for name in named for layer in layers)):
        where = " among " + ", ".join(config.targets) if config.targets else " in its layers"
        raise ConfigError(
            f"this {type(model).__name__} has no biases{where}, as LLaMA and T5 have none: BitFit has nothing to "
            "train; take a model with biases (GPT-2, BERT) or another method (LoRA, adapters)"
        )
    return named
