"""The Transformer of 2017: an encoder reads a source, a decoder writes a text about it, token by token.

Dimensions: B batch, S positions of the source, T positions of the target, C width, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import check_count, what_each_may_see
from minillm.nn.embedding import Embedding
from minillm.nn.functional import KERNELS
from minillm.nn.linear import Linear
from minillm.nn.position import sinusoidal_positions
from minillm.nn.transformer_layers import NORM_PLACES, DecoderCache, DecoderLayer, EncoderLayer, LayerConfig, norm_of
from minillm.shapes import check_shape


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that decides the shape of an encoder-decoder; checked when made.

    Args:
        vocab_size: number of token ids V, of source and target together.
        max_seq_len: the longest source, and the longest target, in tokens.
        n_layers: number of encoder layers.
        n_decoder_layers: number of decoder layers; 0 means n_layers.
        n_heads: number of heads H, dividing d_model.
        d_model: width C, even.
        d_ff: hidden width F of the feed-forward layers; 0 means 4 C.
        norm_place: "post" as in the paper, or "pre" (with one more norm behind the last layer).
        norm_epsilon: added to the variance in the norms.
        tie_embeddings: whether the head uses the token embedding's weights.
        dropout: chance of dropping a number of the embedding and of each part's output while training.
        kernels: "torch" for the library's fused kernels, "naive" for our readable functions.

    Raises:
        ConfigError: naming the first setting that is out of range or contradicts another.
    """

    vocab_size: int
    max_seq_len: int
    n_layers: int
    n_heads: int
    d_model: int
    n_decoder_layers: int = 0
    d_ff: int = 0
    norm_place: str = "post"
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    kernels: str = "torch"

    def __post_init__(self):
        for name in ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model"):
            check_count(name, getattr(self, name), at_least=1)
        for name in ("n_decoder_layers", "d_ff"):
            check_count(name, getattr(self, name), at_least=0)
        object.__setattr__(self, "n_decoder_layers", self.n_decoder_layers or self.n_layers)
        object.__setattr__(self, "d_ff", self.d_ff or 4 * self.d_model)
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ConfigError(f"d_model {self.d_model} is not an even multiple of n_heads {self.n_heads}")
        for name, known in (("norm_place", NORM_PLACES), ("kernels", KERNELS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {known}")
        check_training_numbers(self.dropout, self.norm_epsilon)


def check_training_numbers(dropout: float, norm_epsilon: float) -> None:
    """Check two numbers that most configs have.

    Raises:
        ConfigError: if dropout is outside [0, 1) or the epsilon is not positive.
    """
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout is {dropout}, expected 0 <= dropout < 1")
    if not 0.0 < norm_epsilon < math.inf:
        raise ConfigError(f"norm_epsilon is {norm_epsilon}, expected a positive number")


class Transformer(nn.Module):
    """An encoder-decoder: a source and the beginning of a target in, scores of the next target token out.

    Args:
        config: the shape.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.

    Example:
        >>> config = TransformerConfig(vocab_size=5, max_seq_len=8, n_layers=1, n_heads=2, d_model=4)
        >>> model = Transformer(config, torch.Generator().manual_seed(0))
        >>> model(torch.tensor([[3, 1, 4]]), torch.tensor([[0, 2]])).shape
        torch.Size([1, 2, 5])
    """

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        std = config.d_model**-0.5
        parts = LayerConfig(
            d_model=config.d_model,
            n_heads=config.n_heads,
            d_ff=config.d_ff,
            norm_place=config.norm_place,
            norm_epsilon=config.norm_epsilon,
            dropout=config.dropout,
            std=std,
            kernels=config.kernels,
        )
        self.token_embedding = Embedding(config.vocab_size, config.d_model, std, generator)
        self.encoder = nn.ModuleList(EncoderLayer(parts, generator) for _ in range(config.n_layers))
        self.decoder = nn.ModuleList(DecoderLayer(parts, generator) for _ in range(config.n_decoder_layers))
        first = config.norm_place == "pre"
        self.encoder_norm = norm_of(parts) if first else nn.Identity()
        self.decoder_norm = norm_of(parts) if first else nn.Identity()
        tied = config.tie_embeddings
        self.head = None if tied else Linear(config.d_model, config.vocab_size, std=std, generator=generator)

    def forward(self, source_ids: Tensor, target_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Score every possible next token after each position of the target, given the true ones before (teacher
        forcing).

        Args:
            source_ids: (B, S) integers from 0 to V - 1.
            target_ids: (B, T) what the decoder reads: a start token and the target without its last token.
                Padding belongs on the right, where no real position sees it.
            source_mask: (B, S) bool, True where a token of the source is real; None if all are.

        Returns:
            (B, T, V) logits.

        Raises:
            ShapeError: if shapes disagree or a sequence is longer than max_seq_len.
            DataError: if an id is outside the vocabulary.
        """
        return self.decode(target_ids, self.encode(source_ids, source_mask), source_mask)

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Read a source; arguments as in `forward`.

        Returns:
            (B, S, C).
        """
        sizes = check_sequence("source_ids", source_ids, self.config.max_seq_len)
        mask = key_mask("source_mask", source_mask, {"B": sizes["B"], "S": sizes["T"]})
        x = self.embed(source_ids)                                 # (B, S, C)
        for layer in self.encoder:
            x = layer(x, mask)                                     # (B, S, C)
        return self.encoder_norm(x)

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor | None = None,
        source_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Score every possible next token after each position of the target.

        Args:
            target_ids: (B, T); with a cache only the new ones.
            memory: (B, S, C) what `encode` gave; not used with a cache.
            source_mask: (B, S) bool, as in `forward`; not used with a cache.
            cache: what is remembered of the source and of the ids before; the new ones are added.

        Returns:
            (B, T, V) logits.
        """
        n_past = 0 if cache is None else cache.written.length
        sizes = check_sequence("target_ids", target_ids, self.config.max_seq_len, n_past)
        if cache is None:
            check_shape("memory", memory, "B S C", known := {"B": sizes["B"], "C": self.config.d_model})
            sources, seen = self.sources(memory), key_mask("source_mask", source_mask, known)
        else:
            sources, seen = cache.sources, cache.source_mask
        mask, causal = what_each_may_see(sizes["T"], n_past + sizes["T"], None, target_ids.device)
        x, written = self.embed(target_ids, n_past), None if cache is None else cache.written
        for number, layer in enumerate(self.decoder):
            x = layer(x, sources[number], seen, mask, causal, written, number)  # (B, T, C)
        if written is not None:
            written.advance(sizes["T"])
        return self.logits(self.decoder_norm(x))

    def sources(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the source for each decoder layer; memory as `encode` gave it."""
        return [layer.source_attention.keys_values(memory) for layer in self.decoder]

    def make_cache(
        self, memory: Tensor, source_mask: Tensor | None = None, max_new_tokens: int = 0
    ) -> DecoderCache:
        """A cache for generation.

        Args:
            memory: (B, S, C) what `encode` gave.
            source_mask: (B, S) bool, as in `forward`.
            max_new_tokens: room for so many decoder inputs; 0 means max_seq_len.
        """
        mask = key_mask("source_mask", source_mask, {"B": memory.shape[0], "S": memory.shape[1]})
        return DecoderCache(self.sources(memory), mask, max_new_tokens or self.config.max_seq_len)

    def embed(self, token_ids: Tensor, n_past: int = 0) -> Tensor:
        """sqrt(C) times the token vectors, plus their places: (B, T) -> (B, T, C).

        Source:
            Vaswani et al. 2017, sections 3.4 and 3.5.
        """
        positions = torch.arange(n_past, n_past + token_ids.shape[1], device=token_ids.device)  # (T,)
        x = self.token_embedding(token_ids) * math.sqrt(self.config.d_model)  # (B, T, C)
        x = x + sinusoidal_positions(positions, self.config.d_model).to(x.dtype)  # (B, T, C)
        return F.dropout(x, self.config.dropout, self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token from the last vectors: (..., C) -> (..., V)."""
        return F.linear(hidden, self.token_embedding.weight if self.head is None else self.head.weight)

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def check_sequence(name: str, token_ids: Tensor, max_seq_len: int, n_past: int = 0) -> dict[str, int]:
    """Check ids (B, T) that follow `n_past` others.

    Returns:
        The sizes {"B": ..., "T": ...}.

    Raises:
        ShapeError: if they have another number of dimensions or are too many.
    """
    sizes: dict[str, int] = {}
    check_shape(name, token_ids, "B T", sizes)
    if n_past + sizes["T"] > max_seq_len:
        raise ShapeError(f"{name} has {n_past + sizes['T']} positions, more than max_seq_len {max_seq_len}; shorten it")
    return sizes


def key_mask(name: str, mask: Tensor | None, sizes: dict[str, int]) -> Tensor | None:
    """A mask (B, S) over keys in the shape that attention broadcasts: (B, 1, 1, S).

    Raises:
        ShapeError: if it is not bool or has other sizes.
    """
    if mask is None:
        return None
    check_shape(name, mask, "B S", dict(sizes))
    if mask.dtype != torch.bool:
        raise ShapeError(f"{name} has dtype {mask.dtype}, expected bool with True where a token is real")
    return mask[:, None, None, :]
