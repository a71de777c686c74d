"""The Transformer of 2017: an encoder reads a source, a decoder writes a text about it, token by token.

Dimensions: B batch, S positions of the source, T positions of the target, C width, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.models.config_checks import check_choices, check_counts, check_training_numbers, fill_in
from minillm.models.encoder_decoder import EncoderDecoder
from minillm.nn.embedding import Embedding
from minillm.nn.functional import KERNELS
from minillm.nn.linear import Linear
from minillm.nn.position import sinusoidal_positions
from minillm.nn.transformer_layers import NORM_PLACES, DecoderLayer, EncoderLayer, LayerConfig, norm_of


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
    d_ff: int = 0
    norm_place: str = "post"
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    kernels: str = "torch"

    def __post_init__(self):
        positive = ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model")
        check_counts(self, positive, from_zero=("n_decoder_layers", "d_ff"))
        fill_in(self, n_decoder_layers=self.n_layers, d_ff=4 * self.d_model)
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ConfigError(f"d_model {self.d_model} is not an even multiple of n_heads {self.n_heads}")
        check_choices(self, {"norm_place": NORM_PLACES, "kernels": KERNELS})
        check_training_numbers(self.dropout, self.norm_epsilon)


class Transformer(EncoderDecoder):
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
