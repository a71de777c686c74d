"""T5: every task is text in, text out; an encoder-decoder that knows order as distance, added to the scores.

Dimensions: B batch, T positions, C width, H heads, D head width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.models.config_checks import check_choices, check_counts, check_training_numbers, fill_in, named_config
from minillm.models.encoder_decoder import EncoderDecoder
from minillm.models.gpt import check_count
from minillm.nn.embedding import Embedding
from minillm.nn.functional import KERNELS
from minillm.nn.linear import Linear
from minillm.nn.relative_position import RelativeBias
from minillm.nn.transformer_layers import DecoderLayer, EncoderLayer, LayerConfig, norm_of

FEED_FORWARDS = ("relu", "geglu")


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """Everything that decides the shape of a T5; checked when made.

    Args:
        vocab_size: number of token ids V.
        max_seq_len: the longest source, and the longest target, in tokens; nothing in the model grows with it.
        n_layers: number of encoder layers.
        n_decoder_layers: number of decoder layers; 0 means n_layers.
        n_heads: number of heads H.
        d_model: width C.
        d_head: head width D, which need not be C / H; 0 means C / H.
        d_ff: hidden width F of the feed-forward layers; 0 means 4 C.
        feed_forward: "relu", or "geglu" (version 1.1).
        tie_embeddings: whether the head uses the token embedding's weights, on vectors divided by sqrt(C); version 1.1
            has a head of its own.
        n_buckets: number of buckets of distances.
        max_distance: from here on all distances share one bucket.
        norm_epsilon: added to the mean square in the norms.
        dropout: chance of dropping a number of the embedding, of each part's output and of the last vectors while
            training.
        kernels: "torch" for the library's fused kernels, "naive" for our readable functions,
            "tiled" for attention block by block.

    Raises:
        ConfigError: naming the first setting that is out of range or contradicts another.
    """

    vocab_size: int
    max_seq_len: int
    n_layers: int
    n_heads: int
    d_model: int
    n_decoder_layers: int = 0
    d_head: int = 0
    d_ff: int = 0
    feed_forward: str = "relu"
    tie_embeddings: bool = True
    n_buckets: int = 32
    max_distance: int = 128
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    kernels: str = "torch"

    def __post_init__(self):
        positive = ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model", "max_distance")
        check_counts(self, positive, from_zero=("n_decoder_layers", "d_head", "d_ff"))
        if not self.d_head and self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; or give d_head")
        fill_in(
            self, n_decoder_layers=self.n_layers, d_head=self.d_model // self.n_heads, d_ff=4 * self.d_model
        )
        check_choices(self, {"feed_forward": FEED_FORWARDS, "kernels": KERNELS})
        check_count("n_buckets", self.n_buckets, at_least=4)
        if self.n_buckets % 2 or self.max_distance <= self.n_buckets // 2:
            raise ConfigError(
                f"n_buckets {self.n_buckets} and max_distance {self.max_distance}: expected an even number, and a "
                "distance above its half"
            )
        check_training_numbers(self.dropout, self.norm_epsilon)


VERSIONS = {"1.0": {}, "1.1": {"feed_forward": "geglu", "tie_embeddings": False}}


def t5_config(version: str = "1.1", **settings) -> T5Config:
    """The config of a version of T5.

    Args:
        version: "1.0" (ReLU, one matrix for embedding and head) or "1.1" (gated GELU, a head of its own).
        settings: any field of `T5Config`.

    Returns:
        The checked config.

    Raises:
        ConfigError: if the version is unknown, or a value out of range.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 2.1; version 1.1: the README of the authors' code, after
        Shazeer 2020, arXiv:2002.05202.

    Example:
        >>> t5_config("1.1", vocab_size=9, max_seq_len=8, n_layers=1, n_heads=1, d_model=4).feed_forward
        'geglu'
    """
    return named_config(T5Config, "version", version, VERSIONS, settings)


class T5(EncoderDecoder):
    """An encoder-decoder whose only sense of order is a learned number for each distance, the same in all layers.

    Norms come first and only scale; no map has a bias; scores are not divided by sqrt(D) (the queries' initial weights
    are that much smaller instead).

    Args:
        config: the shape.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 2.1; initial weights as in the authors' code: token vectors of
        standard deviation 1, maps of 1 / sqrt(inputs), queries of 1 / sqrt(C D).

    Example:
        >>> config = t5_config(vocab_size=5, max_seq_len=8, n_layers=1, n_heads=2, d_model=4)
        >>> model = T5(config, torch.Generator().manual_seed(0))
        >>> model(torch.tensor([[3, 1, 4]]), torch.tensor([[0, 2]])).shape
        torch.Size([1, 2, 5])
    """

    def __init__(self, config: T5Config, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        std = config.d_model**-0.5
        parts = LayerConfig(
            d_model=config.d_model,
            n_heads=config.n_heads,
            d_ff=config.d_ff,
            d_head=config.d_head,
            scale=1.0,
            feed_forward=config.feed_forward,
            norm="rms",
            norm_place="pre",
            norm_epsilon=config.norm_epsilon,
            bias=False,
            dropout=config.dropout,
            std=std,
            kernels=config.kernels,
        )
        self.token_embedding = Embedding(config.vocab_size, config.d_model, 1.0, generator)
        distances = (config.n_heads, config.n_buckets, config.max_distance)
        self.encoder_distances = RelativeBias(*distances, bidirectional=True, std=std, generator=generator)
        self.encoder = nn.ModuleList(EncoderLayer(parts, generator) for _ in range(config.n_layers))
        self.encoder_norm = norm_of(parts)
        self.decoder_distances = RelativeBias(*distances, bidirectional=False, std=std, generator=generator)
        self.decoder = nn.ModuleList(DecoderLayer(parts, generator) for _ in range(config.n_decoder_layers))
        self.decoder_norm = norm_of(parts)
        tied = config.tie_embeddings
        self.head = None if tied else Linear(config.d_model, config.vocab_size, std=std, generator=generator)
        self.shrink_queries()

    @torch.no_grad()
    def shrink_queries(self) -> None:
        """Divide the initial weights of all queries by sqrt(D), since scores will not be."""
        for layer in [*self.encoder, *self.decoder]:
            layer.attention.qkv.weight[: layer.attention.sections[0]] *= self.config.d_head**-0.5
        for layer in self.decoder:
            layer.source_attention.query.weight *= self.config.d_head**-0.5

    def embed(self, token_ids: Tensor, n_past: int = 0) -> Tensor:
        """The tokens' vectors, whatever their places: (B, T) -> (B, T, C)."""
        return self.drop(self.token_embedding(token_ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token from the last vectors: (..., C) -> (..., V)."""
        if self.head is not None:
            return self.head(hidden)
        return F.linear(hidden * self.config.d_model**-0.5, self.token_embedding.weight)

    def encoder_bias(self, n_positions: int) -> Tensor:
        """A number for each head and distance in both directions: (H, S, S)."""
        positions = torch.arange(n_positions, device=self.token_embedding.weight.device)  # (S,)
        return self.encoder_distances(positions, positions)

    def decoder_bias(self, n_past: int, n_new: int) -> Tensor:
        """A number for each head and distance back: (H, T, n_past + T)."""
        positions = torch.arange(n_past + n_new, device=self.token_embedding.weight.device)  # (S,)
        return self.decoder_distances(positions[n_past:], positions)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout while training, also of the last vectors."""
        return F.dropout(x, self.config.dropout, self.training)
