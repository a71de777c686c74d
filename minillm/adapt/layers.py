"""Where adapters find their places: the layers of this library's Transformers, and what stands in them."""

from collections.abc import Iterable

from torch import nn

from minillm.errors import ConfigError
from minillm.models.gpt import Block
from minillm.nn.transformer_layers import Layer

NORMS = ("attention_norm", "source_norm", "feed_forward_norm")  # of a layer, where it has them
ATTENTIONS = ("attention", "source_attention")


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model, each with attention and a feed-forward part; a shared one (ALBERT's) once.

    Args:
        model: a GPT of any kind, BERT, T5, Transformer, or one of these under a task's head.

    Returns:
        name -> layer, in the model's order; nothing for a model without such layers.

    Example:
        >>> from minillm.models.gpt import GPT, GPTConfig
        >>> list(layers_of(GPT(GPTConfig(vocab_size=5, max_seq_len=8, n_layers=2, n_heads=1, d_model=4))))
        ['blocks.0', 'blocks.1']
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, Block | Layer)}


def layers_to_adapt(model: nn.Module) -> dict[str, nn.Module]:
    """`layers_of`, at least one.

    Raises:
        ConfigError: if there is none.
    """
    if not (layers := layers_of(model)):
        raise ConfigError(
            f"a {type(model).__name__} has no layers of this library's Transformers (GPT, Bert, T5, Transformer); "
            "LoraConfig works on any model with linear layers"
        )
    return layers


def norm_is_behind(layer: nn.Module) -> bool:
    """Whether a layer normalises the sums (BERT), rather than what its parts read (GPT-2, LLaMA, T5)."""
    return isinstance(layer, Layer) and not layer.norm_first


def parts_named(layers: Iterable[str], model: nn.Module, names: Iterable[str]) -> list[str]:
    """Whole names of those direct children of layers that are there."""
    names = tuple(names)
    return [f"{layer}.{name}" for layer in layers for name in names
            if getattr(model.get_submodule(layer), name, None) is not None]  # fmt: skip
