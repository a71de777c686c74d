"""Layers of encoders and decoders with an encoder: the original Transformer, BERT and T5 differ in their settings.

Dimensions: B batch, T positions of this sequence, S positions of the source, C width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.nn.attention import SelfAttention
from minillm.nn.cache import KVCache
from minillm.nn.feedforward import FeedForward
from minillm.nn.norm import LayerNorm, RMSNorm
from minillm.nn.source_attention import SourceAttention

NORMS = ("layer", "rms")
NORM_PLACES = ("post", "pre")


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What a layer is made of; the models' own configs are made into one.

    Args:
        d_model: width C.
        n_heads: number of heads H.
        d_ff: hidden width F of the feed-forward layer.
        d_head: head width D; 0 means C / H.
        scale: what the scores are multiplied by; 0 means 1 / sqrt(D).
        feed_forward: a kind of `FeedForward`.
        norm: "layer" (with scale and shift) or "rms" (with scale).
        norm_place: "post" normalises each sum, "pre" what each part reads.
        norm_epsilon: added to the variance or mean square.
        bias: whether linear maps have biases.
        dropout: chance of dropping a number of a part's output while training.
        std: standard deviation of the initial weights.
        kernels: "torch" or "naive".

    Raises:
        ConfigError: if norm or its place is unknown.
    """

    d_model: int
    n_heads: int
    d_ff: int
    d_head: int = 0
    scale: float = 0.0
    feed_forward: str = "relu"
    norm: str = "layer"
    norm_place: str = "post"
    norm_epsilon: float = 1e-5
    bias: bool = True
    dropout: float = 0.0
    std: float = 0.02
    kernels: str = "torch"

    def __post_init__(self):
        for name, known in (("norm", NORMS), ("norm_place", NORM_PLACES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {known}")


def norm_of(config: LayerConfig) -> LayerNorm | RMSNorm:
    """The kind of norm the config asks for, of width C."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, weight=True, epsilon=config.norm_epsilon, kernels=config.kernels)
    return LayerNorm(config.d_model, bias=True, epsilon=config.norm_epsilon, kernels=config.kernels)


def attention_of(config: LayerConfig, kind: type[nn.Module], generator: torch.Generator | None) -> nn.Module:
    """Self-attention or attention to a source with the config's settings."""
    return kind(
        config.d_model,
        config.n_heads,
        config.n_heads,
        bias=config.bias,
        std=config.std,
        output_std=config.std,
        kernels=config.kernels,
        generator=generator,
        d_head=config.d_head,
        scale=config.scale,
    )


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, a feed-forward layer, and how a part is added.

    Args:
        config: the layer's settings.
        generator: where the initial weights come from; None is torch's own default generator.
    """

    def __init__(self, config: LayerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.attention = attention_of(config, SelfAttention, generator)
        self.attention_norm = norm_of(config)
        self.feed_forward = FeedForward(
            config.d_model,
            config.d_ff,
            config.feed_forward,
            bias=config.bias,
            std=config.std,
            output_std=config.std,
            kernels=config.kernels,
            generator=generator,
        )
        self.feed_forward_norm = norm_of(config)
        self.dropout, self.norm_first = config.dropout, config.norm_place == "pre"

    def add(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """norm(x + part(x)), or x + part(norm(x)) where norms come first; the part's output passes through dropout.

        Source:
            Vaswani et al. 2017, arXiv:1706.03762, section 3.1 (post); Xiong et al. 2020, arXiv:2002.04745, table 1.
        """
        if self.norm_first:
            return x + F.dropout(part(norm(x)), self.dropout, self.training)
        return norm(x + F.dropout(part(x), self.dropout, self.training))


class EncoderLayer(Layer):
    """Every position looks at every real position, then computes on its own.

    Args:
        config: the layer's settings.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.1.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """One layer.

        Args:
            x: (B, T, C).
            mask: bool, broadcastable to (B, H, T, T), True where attention is allowed; None allows all.
            bias: numbers added to the scores, broadcastable to (B, H, T, T), or None.

        Returns:
            (B, T, C).
        """
        x = self.add(x, lambda inner: self.attention(inner, mask, bias=bias), self.attention_norm)  # (B, T, C)
        return self.add(x, self.feed_forward, self.feed_forward_norm)


class DecoderLayer(Layer):
    """Every position looks back, then at the source, then computes on its own.

    Args:
        config: the layer's settings.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.1.
    """

    def __init__(self, config: LayerConfig, generator: torch.Generator | None = None):
        super().__init__(config, generator)
        self.source_attention = attention_of(config, SourceAttention, generator)
        self.source_norm = norm_of(config)

    def forward(
        self,
        x: Tensor,
        source: tuple[Tensor, Tensor],
        source_mask: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        layer: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: (B, T, C).
            source: keys and values (B, H, S, D) of the source, by `source_attention.keys_values`.
            source_mask: bool, broadcastable to (B, H, T, S), True where the source may be seen.
            mask: as `causal`, `cache`, `layer` and `bias` an argument of `SelfAttention.forward`.
            causal: hide later positions.
            cache: keys and values of earlier positions.
            layer: which layer of the cache this is.
            bias: numbers added to the scores of the self-attention.

        Returns:
            (B, T, C).
        """
        key, value = source
        x = self.add(
            x, lambda inner: self.attention(inner, mask, causal, None, cache, layer, bias), self.attention_norm
        )  # (B, T, C)
        x = self.add(
            x, lambda inner: self.source_attention.attend(inner, key, value, source_mask), self.source_norm
        )  # (B, T, C)
        return self.add(x, self.feed_forward, self.feed_forward_norm)


class DecoderCache:
    """What a decoder remembers while it writes: keys and values of the source, and those of what it wrote.

    Attributes:
        sources: for each layer the source's keys and values (B, H, S, D).
        source_mask: (B, 1, 1, S) bool, True for real tokens of the source, or None.
        written: keys and values of the ids so far.
    """

    def __init__(self, sources: list[tuple[Tensor, Tensor]], source_mask: Tensor | None, max_seq_len: int):
        """Room for `max_seq_len` ids; dtype and device are those of the sources."""
        key = sources[0][0]
        batch_size, n_heads, _, d_head = key.shape
        self.sources, self.source_mask = sources, source_mask
        self.written = KVCache(len(sources), batch_size, n_heads, max_seq_len, d_head, key.dtype, key.device)

    def select(self, rows: Tensor) -> None:
        """Row n becomes what row rows[n] was, in beam search: the beam that goes on from that one.

        Args:
            rows: (N,) indices; N may differ from the number of rows so far.
        """
        self.sources = [(key[rows], value[rows]) for key, value in self.sources]
        self.source_mask = None if self.source_mask is None else self.source_mask[rows]
        self.written.keys, self.written.values = self.written.keys[:, rows], self.written.values[:, rows]
