"""BERT: an encoder that reads in both directions, taught by filling in hidden tokens; RoBERTa and ALBERT are settings.

Dimensions: B batch, T positions, C width, E width of the embeddings, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.models.config_checks import check_choices, check_counts, check_training_numbers, fill_in, named_config
from minillm.models.encoder_decoder import check_sequence, key_mask
from minillm.nn.embedding import Embedding
from minillm.nn.functional import KERNELS, gelu, gelu_tanh
from minillm.nn.linear import Linear
from minillm.nn.norm import LayerNorm
from minillm.nn.transformer_layers import EncoderLayer, LayerConfig
from minillm.shapes import check_shape


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Everything that decides the shape of an encoder; checked when made.

    Args:
        vocab_size: number of token ids V.
        max_seq_len: the longest text in tokens.
        n_layers: how often a layer is applied.
        n_heads: number of heads H, dividing d_model.
        d_model: width C.
        d_ff: hidden width F of the feed-forward layers; 0 means 4 C.
        d_embedding: width E of the token, position and segment vectors; 0 means C. Another one is mapped to C behind
            the embedding's norm, and back in the head (ALBERT).
        share_layers: whether all layers are one and the same, applied n_layers times (ALBERT).
        n_segments: how many kinds of segments there are; BERT has 2, RoBERTa 1.
        position_offset: number of the first position's vector; RoBERTa begins at 2, the two before it are not used.
        pair_head: whether there is a head that answers a question about two segments with yes or no.
        feed_forward: "gelu_exact" (BERT, RoBERTa) or "gelu" (ALBERT); also the nonlinearity in the head.
        norm_epsilon: added to the variance in the norms.
        dropout: chance of dropping a number of the embedding and of each part's output while training.
        std: standard deviation of the layers' initial weights; BERT's 0.02 is for widths of many hundreds.
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
    d_ff: int = 0
    d_embedding: int = 0
    share_layers: bool = False
    n_segments: int = 2
    position_offset: int = 0
    pair_head: bool = True
    feed_forward: str = "gelu_exact"
    norm_epsilon: float = 1e-12
    dropout: float = 0.0
    std: float = 0.02
    kernels: str = "torch"

    def __post_init__(self):
        positive = ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model", "n_segments")
        check_counts(self, positive, from_zero=("d_ff", "d_embedding", "position_offset"))
        fill_in(self, d_ff=4 * self.d_model, d_embedding=self.d_model)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        check_choices(self, {"kernels": KERNELS, "feed_forward": ACTIVATIONS})
        check_training_numbers(self.dropout, self.norm_epsilon)
        if not self.std > 0:
            raise ConfigError(f"std is {self.std}, expected a number above 0")


ACTIVATIONS = {"gelu_exact": gelu, "gelu": gelu_tanh}
# What the relatives of BERT changed; all else is size.
KINDS = {
    "bert": {},
    "roberta": {"n_segments": 1, "position_offset": 2, "pair_head": False, "norm_epsilon": 1e-5},
    "albert": {"share_layers": True, "feed_forward": "gelu"},
}


def bert_config(kind: str = "bert", **settings) -> BertConfig:
    """The config of BERT or a relative.

    Args:
        kind: "bert", "roberta" (one segment, positions from 2, no question about pairs) or "albert" (one layer again
            and again, narrow embeddings: `d_embedding` is for the caller to choose).
        settings: any field of `BertConfig`.

    Returns:
        The checked config.

    Raises:
        ConfigError: if the kind is unknown, or a value out of range.

    Source:
        Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692; Lan et al. 2019, arXiv:1909.11942.

    Example:
        >>> bert_config("roberta", vocab_size=9, max_seq_len=8, n_layers=1, n_heads=1, d_model=4).position_offset
        2
    """
    return named_config(BertConfig, "kind", kind, KINDS, settings)


def encoder_parameters_by_part(config: BertConfig) -> dict[str, int]:
    """How many learned numbers each part of an encoder has, without making it.

    Args:
        config: the shape; every setting that changes a count is taken into account.

    Returns:
        "embeddings": the vectors of tokens, positions and segments, their norm, and the map to width C where E is
        another; "layers": attention and feed-forward layers with their biases and norms, a shared layer once; "token
        head": the map from C to E, its norm, and a bias per token (the vocabulary's vectors are used again);
        "pair head": the map of the first vector and the two answers, or 0. The sum is `Bert(config).n_parameters()`.

    Source:
        Lan et al. 2019, arXiv:1909.11942, section 3.1: V E + E C numbers instead of V C.

    Example:
        >>> shape = {"vocab_size": 30_000, "max_seq_len": 512, "n_layers": 12, "n_heads": 12, "d_model": 768}
        >>> encoder_parameters_by_part(bert_config("bert", **shape))["layers"]
        85054464
        >>> encoder_parameters_by_part(bert_config("albert", **shape, d_embedding=128))["layers"]
        7087872
    """
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    attention = 4 * (width * width + width)
    feed_forward = width * hidden + hidden + hidden * width + width
    n_different = 1 if config.share_layers else config.n_layers
    return {
        "embeddings": n_vectors * narrow + 2 * narrow + widening,
        "layers": n_different * (attention + feed_forward + 2 * 2 * width),
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


class Bert(nn.Module):
    """An encoder with a head that fills in hidden tokens and, if asked for, one that judges pairs of segments.

    Args:
        config: the shape.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3; factorised embedding and shared layers: Lan et al. 2019,
        arXiv:1909.11942, section 3.1.

    Example:
        >>> config = bert_config(vocab_size=5, max_seq_len=8, n_layers=1, n_heads=2, d_model=4)
        >>> Bert(config, torch.Generator().manual_seed(0))(torch.tensor([[3, 1, 4]])).shape
        torch.Size([1, 3, 5])
    """

    def __init__(self, config: BertConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        width, narrow = config.d_model, config.d_embedding
        self.token_embedding = Embedding(config.vocab_size, narrow, generator=generator)
        self.position_embedding = Embedding(config.position_offset + config.max_seq_len, narrow, generator=generator)
        self.segment_embedding = Embedding(config.n_segments, narrow, generator=generator)
        self.embedding_norm = LayerNorm(narrow, True, True, config.norm_epsilon, config.kernels)
        widened = narrow != width
        self.embedding_map = Linear(narrow, width, bias=True, generator=generator) if widened else None
        parts = LayerConfig(
            d_model=width,
            n_heads=config.n_heads,
            d_ff=config.d_ff,
            feed_forward=config.feed_forward,
            norm_epsilon=config.norm_epsilon,
            dropout=config.dropout,
            std=config.std,
            kernels=config.kernels,
        )
        n_different = 1 if config.share_layers else config.n_layers
        self.layers = nn.ModuleList(EncoderLayer(parts, generator) for _ in range(n_different))
        self.head_map = Linear(width, narrow, bias=True, generator=generator)
        self.head_norm = LayerNorm(narrow, True, True, config.norm_epsilon, config.kernels)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = Linear(width, width, bias=True, generator=generator) if config.pair_head else None
        self.pair_head = Linear(width, 2, bias=True, generator=generator) if config.pair_head else None

    def forward(self, token_ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Score every possible token at each position.

        Args:
            token_ids: (B, T) integers from 0 to V - 1, some of them the mask. Padding belongs on the right.
            segments: (B, T) integers, which segment each token is of; None means the first.
            mask: (B, T) bool, True where a token is real; or (B, T, T), True where a position (second dimension) may
                see another (third): a causal or prefix mask makes a decoder of the same weights. None if all may.

        Returns:
            (B, T, V) logits of the token that belongs there.

        Raises:
            ShapeError: if shapes disagree or the text is longer than max_seq_len.
            DataError: if an id is outside the vocabulary, or a segment is unknown.
        """
        return self.logits(self.hidden(token_ids, segments, mask))

    def hidden(self, token_ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What the last layer makes of each position; arguments as in `forward`.

        Returns:
            (B, T, C).
        """
        x = self.embed(token_ids, segments)                        # (B, T, C)
        mask = who_sees_whom(mask, token_ids)
        for number in range(self.config.n_layers):
            layer = self.layers[0 if self.config.share_layers else number]
            x = layer(x, mask)                                     # (B, T, C)
        return x

    def embed(self, token_ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """The sum of what token, position and segment say, normalised: (B, T) -> (B, T, C).

        Source:
            Devlin et al. 2018, figure 2.
        """
        sizes = check_sequence("token_ids", token_ids, self.config.max_seq_len)
        if segments is None:
            segments = torch.zeros_like(token_ids)
        check_shape("segments", segments, "B T", sizes)
        first = self.config.position_offset
        x = self.token_embedding(token_ids) + self.segment_embedding(segments)  # (B, T, E)
        x = x + self.position_embedding.weight[first : first + sizes["T"]]  # (B, T, E)
        x = F.dropout(self.embedding_norm(x), self.config.dropout, self.training)  # (B, T, E)
        return x if self.embedding_map is None else self.embedding_map(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tokens from the last vectors: (..., C) -> (..., V); the vocabulary's vectors are used again."""
        x = self.head_norm(ACTIVATIONS[self.config.feed_forward](self.head_map(hidden)))  # (..., E)
        return F.linear(x, self.token_embedding.weight, self.head_bias)

    def pooled(self, hidden: Tensor) -> Tensor:
        """One vector for the whole text, from that of the first token: (B, T, C) -> (B, C).

        Raises:
            ConfigError: if the model has no head for pairs, and so nothing that taught it to.
        """
        if self.pooler is None:
            raise ConfigError("this model was made with pair_head=False: it has no vector for the whole text")
        return torch.tanh(self.pooler(hidden[:, 0]))               # (B, C)

    def pair_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the two answers to the question about a pair: (B, T, C) -> (B, 2), see `SentencePair.label`."""
        return self.pair_head(self.pooled(hidden))                 # (B, 2)

    def n_parameters(self) -> int:
        """Number of learned numbers; a shared layer counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def who_sees_whom(mask: Tensor | None, token_ids: Tensor) -> Tensor | None:
    """The mask of `Bert.forward` in the shape that attention broadcasts: (B, 1, 1, T) or (B, 1, T, T).

    Raises:
        ShapeError: if it is not bool or has other sizes.
    """
    sizes = {"B": token_ids.shape[0], "S": token_ids.shape[1]}
    if mask is None or mask.dim() != 3:
        return key_mask("mask", mask, sizes)
    check_shape("mask", mask, "B T S", sizes | {"T": sizes["S"]})
    if mask.dtype != torch.bool:
        raise ShapeError(f"mask has dtype {mask.dtype}, expected bool with True where a position may be seen")
    return mask[:, None]
