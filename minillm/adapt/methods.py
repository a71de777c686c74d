"""Every method of adaptation by a short name, as commands call it: its config and its usual learning rate."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from minillm.adapt.adapter import AdapterConfig
from minillm.adapt.bitfit import BitFitConfig
from minillm.adapt.delta import MethodConfig
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.intrinsic import IntrinsicConfig
from minillm.adapt.lora import LoraConfig
from minillm.adapt.partial import FeedForwardConfig, FullConfig, HeadConfig, LastLayersConfig
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.compress.packed_linear import pack_model
from minillm.errors import ConfigError


@dataclass(frozen=True)
class Sizes:
    """How much a method may change; each reads what it knows.

    Args:
        rank: of LoRA's branches.
        alpha: their strength; 0 takes twice the rank.
        targets: layers that LoRA or (IA)3 change, as in `surgery.find`; empty takes the method's own.
        width: of adapters' waists.
        n_virtual: vectors in front: prefixes and prompts.
        d_hidden: width of the network that makes them, where one does.
        n_layers: last layers that are trained.
        dimension: numbers of intrinsic dimension.
    """

    rank: int = 4
    alpha: float = 0.0
    targets: tuple[str, ...] = ()
    width: int = 8
    n_virtual: int = 8
    d_hidden: int = 64
    n_layers: int = 1
    dimension: int = 500


@dataclass(frozen=True)
class Method:
    """One way to adapt.

    Attributes:
        make: sizes -> config.
        learning_rate: what was best of a few in `minillm finetune --table` (benchmarks/finetune_table.md), for Adam.
        packed: whether the base is stored in 4 bits first.
        says: in one line, what is trained.
    """

    make: Callable[[Sizes], MethodConfig]
    learning_rate: float
    says: str
    packed: bool = False


def lora(sizes: Sizes) -> LoraConfig:
    """LoRA on queries and values, or on whole layers that are named."""
    targets = {"targets": sizes.targets, "parts": ()} if sizes.targets else {}
    return LoraConfig(rank=sizes.rank, alpha=sizes.alpha or 2.0 * sizes.rank, **targets)


METHODS = {
    "full": Method(lambda sizes: FullConfig(), 1e-3, "all numbers"),
    "head": Method(lambda sizes: HeadConfig(), 3e-2, "the head alone"),
    "last": Method(lambda sizes: LastLayersConfig(n_layers=sizes.n_layers), 3e-3, "the last layers"),
    "feed_forward": Method(lambda sizes: FeedForwardConfig(), 1e-3, "the feed-forward layers"),
    "bitfit": Method(lambda sizes: BitFitConfig(), 3e-2, "the biases"),
    "lora": Method(lora, 1e-2, "low-rank branches beside queries and values, or beside --targets"),
    "qlora": Method(lora, 1e-2, "the same beside layers stored in 4 bits", packed=True),
    "adapter": Method(lambda sizes: AdapterConfig(bottleneck=sizes.width), 1e-2, "two small networks per layer"),
    "pfeiffer": Method(
        lambda sizes: AdapterConfig(bottleneck=sizes.width, placement="pfeiffer"), 3e-2, "one small network per layer"
    ),
    "prefix": Method(
        lambda sizes: PrefixConfig(n_virtual=sizes.n_virtual, reparametrised=True, d_hidden=sizes.d_hidden),
        3e-3, "keys and values in front, made by a network",
    ),
    "p_tuning_v2": Method(
        lambda sizes: PrefixConfig(n_virtual=sizes.n_virtual), 9e-2, "keys and values in front, learned themselves"
    ),
    "prompt": Method(
        lambda sizes: PromptConfig(n_virtual=sizes.n_virtual, initial="vocabulary"), 9e-2, "word vectors in front"
    ),
    "p_tuning": Method(
        lambda sizes: PTuningConfig(n_virtual=sizes.n_virtual, d_hidden=sizes.d_hidden),
        1e-2, "word vectors in front, made by a network",
    ),
    "ia3": Method(lambda sizes: IA3Config(outputs=sizes.targets), 9e-2, "factors of keys, values and inner numbers"),
    "intrinsic": Method(
        lambda sizes: IntrinsicConfig(dimension=sizes.dimension, structure="said"),
        3e-2, "a few numbers, spread over all by a fixed random map",
    ),
}  # fmt: skip


def method_named(name: str) -> Method:
    """The method.

    Raises:
        ConfigError: if there is none of that name.

    Example:
        >>> method_named("lora").make(Sizes(rank=2)).alpha
        4.0
    """
    if name not in METHODS:
        raise ConfigError(f"the method {name!r} is unknown; known are {', '.join(METHODS)}")
    return METHODS[name]


def ready_for(method: Method, model: nn.Module) -> nn.Module:
    """The base as the method wants it: its linear layers stored in 4 bits for QLoRA, in place, else as it is."""
    if method.packed:
        pack_model(model)
    return model
