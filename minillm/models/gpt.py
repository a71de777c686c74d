"""The decoder: GPT-2 style and modern language models out of the same parts.

Tokens become vectors; each block lets every position look back (attention) and think (feed-forward), adding what it
found to the vector; a final norm and one matrix product turn each vector into a score for every possible next token.

Dimensions: B batch, T new positions, S all positions including cached ones, C width, V vocabulary, D head width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.nn.attention import SelfAttention, causal_mask, check_mask_and_bias
from minillm.nn.cache import KVCache, RingCache
from minillm.nn.embedding import Embedding
from minillm.nn.feedforward import FEED_FORWARDS, GATED, FeedForward
from minillm.nn.functional import KERNELS, cap_logits
from minillm.nn.linear import Linear
from minillm.nn.moe import MixtureOfExperts, check_experts
from minillm.nn.norm import LayerNorm, RMSNorm
from minillm.nn.position import ROTARY_LAYOUTS, check_scaling, scaled_frequencies, sinusoidal_positions
from minillm.shapes import check_shape


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Everything that decides the shape of a decoder; checked when made.

    Args:
        vocab_size: number of token ids V.
        max_seq_len: the longest sequence the model can look at, in tokens.
        n_layers: number of blocks L.
        n_heads: number of query heads H, dividing d_model.
        d_model: width C.
        n_kv_heads: number of key/value heads G, dividing n_heads; 0 means n_heads.
        d_ff: hidden width F of the feed-forward layers; 0 means what `default_d_ff` says.
        norm: "layer" or "rms".
        norm_weight: whether norms learn a scale.
        norm_epsilon: added to the variance, or the mean square, by which a norm divides.
        position: "learned" or "sinusoidal" vectors added to those of the tokens, "rotary" queries and keys, "alibi"
            scores that fall with the distance, or "none" (the past-only mask is then the only trace of order).
        rotary_base: how slowly the slowest rotary pair turns.
        rotary_layout: which numbers of a head turn together: "halves" (i and i + D/2) or "interleaved" (2i and 2i + 1).
        rotary_scaling: how rotary angles change for texts longer than in training: "none", "linear", "ntk" or "llama3",
            see `minillm.nn.position.scaled_frequencies`.
        rotary_factor: how many times longer they are.
        rotary_trained_len: the length of training in tokens; 0 means max_seq_len / rotary_factor.
        window: how many tokens up to itself a position may see in each layer; 0 does not limit them.
        feed_forward: "gelu" (tanh form), "gelu_exact", "relu", "relu2", or with a gate "swiglu" or "geglu".
        n_experts: number of feed-forward layers E side by side in each block; 0 means one alone, without a router.
        n_active_experts: how many of them K each token visits.
        capacity_factor: while training, an expert takes this times its even share of tokens; 0 has no limit.
        bias: whether linear maps and layer norms have biases.
        norm_bias: whether layer norms have them although linear maps have none.
        parallel_block: whether the two parts of a block read the same normalised vectors, side by side, as in Falcon.
        qk_norm: whether queries and keys are normalised.
        max_score: with qk_norm, the largest score a query can give a key: the smaller, the softer attention must stay.
            0 keeps what normalising leaves, sqrt(D), which is too soft to pick one of many positions in narrow heads.
        token_shift: whether each token's vector gets a learned share of the vector of the token before it, so that
            already the first layer can look for "what followed this token".
        embedding_norm: whether the embedding has a norm of its own, before the first block.
        tie_embeddings: whether the head uses the token embedding's weights.
        logit_cap: bound of the logits by tanh; 0 means none.
        dropout: chance of dropping a number of the embedding and of each layer's output while training.
        embedding_std: standard deviation of the token vectors at the start.
        zero_outputs: start the maps that write into the residual stream, and an untied head, at zero.
        kernels: "torch" for the library's fused kernels, "naive" for our readable functions.

    Raises:
        ConfigError: naming the first setting that is out of range or contradicts another.
    """

    vocab_size: int
    max_seq_len: int
    n_layers: int
    n_heads: int
    d_model: int
    n_kv_heads: int = 0
    d_ff: int = 0
    norm: str = "layer"
    norm_weight: bool = True
    norm_epsilon: float = 1e-5
    position: str = "learned"
    rotary_base: float = 10000.0
    rotary_layout: str = "halves"
    rotary_scaling: str = "none"
    rotary_factor: float = 1.0
    rotary_trained_len: int = 0
    window: int = 0
    feed_forward: str = "gelu"
    n_experts: int = 0
    n_active_experts: int = 0
    capacity_factor: float = 0.0
    bias: bool = False
    norm_bias: bool = False
    parallel_block: bool = False
    qk_norm: bool = False
    max_score: float = 0.0
    token_shift: bool = False
    embedding_norm: bool = False
    tie_embeddings: bool = True
    logit_cap: float = 0.0
    dropout: float = 0.0
    embedding_std: float = 0.02
    zero_outputs: bool = False
    kernels: str = "torch"

    def __post_init__(self):
        for name in ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model"):
            check_count(name, getattr(self, name), at_least=1)
        for name in ("n_kv_heads", "d_ff", "rotary_trained_len", "window", "n_experts", "n_active_experts"):
            check_count(name, getattr(self, name), at_least=0)
        if self.n_experts or self.n_active_experts or self.capacity_factor:
            check_experts(self.n_experts, self.n_active_experts, self.capacity_factor)
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        d_ff = default_d_ff(self.feed_forward, self.d_model, max(1, self.n_active_experts))
        object.__setattr__(self, "d_ff", self.d_ff or d_ff)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}")
        self.check_heads()
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        if not 0.0 <= self.logit_cap < math.inf:
            raise ConfigError(f"logit_cap is {self.logit_cap}, expected a positive number, or 0 for none")
        if not 0.0 <= self.embedding_std < math.inf:
            raise ConfigError(f"embedding_std is {self.embedding_std}, expected a number of at least 0")
        if not 0.0 <= self.max_score < math.inf or (self.max_score and not self.qk_norm):
            raise ConfigError(f"max_score is {self.max_score}, expected 0, or with qk_norm a positive number")
        for name in ("rotary_base", "norm_epsilon"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number")
        check_scaling(self.rotary_scaling, self.rotary_factor, self.trained_len)
        if self.rotary_scaling != "none" and self.position != "rotary":
            raise ConfigError(f"rotary_scaling is {self.rotary_scaling!r} with {self.position!r} positions")

    def check_heads(self) -> None:
        """Check that heads divide the width, key/value heads the heads, and rotary pairs a head.

        Raises:
            ConfigError: if they do not.
        """
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.position == "rotary" and self.d_head % 2:
            raise ConfigError(f"rotary positions need an even head width, got d_model / n_heads = {self.d_head}")
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ConfigError(f"sinusoidal positions need an even width, got d_model {self.d_model}")

    @property
    def d_head(self) -> int:
        """Head width D = C / H."""
        return self.d_model // self.n_heads

    @property
    def trained_len(self) -> int:
        """The length in tokens from which rotary angles are scaled."""
        return self.rotary_trained_len or math.ceil(self.max_seq_len / max(self.rotary_factor, 1.0))


CHOICES = {
    "norm": ("layer", "rms"),
    "position": ("learned", "sinusoidal", "rotary", "alibi", "none"),
    "rotary_layout": ROTARY_LAYOUTS,
    "feed_forward": FEED_FORWARDS,
    "kernels": KERNELS,
}


def check_count(name: str, value: object, at_least: int) -> None:
    """Check one whole number of a config.

    Args:
        name: how the error message calls it.
        value: what was given.
        at_least: the smallest allowed.

    Raises:
        ConfigError: if it is not an int (bool is none) or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least {at_least}")


def default_d_ff(feed_forward: str, d_model: int, n_active: int = 1) -> int:
    """The hidden width at which each kind of feed-forward layer has about 8 C^2 weights.

    Args:
        feed_forward: one of `FEED_FORWARDS`.
        d_model: width C.
        n_active: among how many layers, experts that work on the same token, the weights are divided.

    Returns:
        4 C, or for those with a gate, which have three matrices, 8/3 C, divided by n_active; rounded up to a multiple
        of min(C, 256).

    Example:
        >>> default_d_ff("gelu", 128), default_d_ff("swiglu", 128), default_d_ff("swiglu", 768)
        (512, 384, 2048)
        >>> default_d_ff("swiglu", 768, n_active=2)
        1024
    """
    step, n_matrices = min(d_model, 256), 3 if feed_forward in GATED else 2
    return math.ceil(8 * d_model / (n_matrices * n_active * step)) * step


class Block(nn.Module):
    """One layer of the decoder: x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        config: the decoder's settings.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3 (norm before each part,
        output weights scaled by 1/sqrt(2 L) at the start).
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        output_std = 0.0 if config.zero_outputs else 0.02 / math.sqrt(2 * config.n_layers)
        self.attention_norm = make_norm(config)
        self.attention = SelfAttention(
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            bias=config.bias,
            qk_norm=config.qk_norm,
            max_score=config.max_score,
            output_std=output_std,
            kernels=config.kernels,
            generator=generator,
            alibi=config.position == "alibi",
            window=config.window,
            rotary_layout=config.rotary_layout,
        )
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config, output_std, generator)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Add to each vector what attention finds in the sequence, then what the feed-forward layer makes of the sum.

        Each part reads a normalised copy (its own norm) and its output passes through `drop` before it is added; the
        vectors themselves are passed on unchanged otherwise.

        Args:
            x: (B, T, C).
            mask: as all that follow, an argument of `SelfAttention.forward`; they are handed on in this order.
            causal: hide later positions.
            rotation: cosine and sine of the rotary angles, or None.
            cache: keys and values of earlier positions, or None.
            layer: which layer of the cache this is.

        Returns:
            (B, T, C).
        """
        attended = self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer)  # (B, T, C)
        x = x + self.drop(attended)                                # (B, T, C)
        return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout while training, nothing otherwise."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class ParallelBlock(Block):
    """A layer whose two parts do not wait for each other: n = norm(x), then x + attention(n) + feed_forward(n).

    One norm is left of two, and the matrix products of both parts may run at the same time.

    Args:
        config: the decoder's settings.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Almazrouei et al. 2023, arXiv:2311.16867 (Falcon); before it Chowdhery et al. 2022, arXiv:2204.02311, section 2.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__(config, generator)
        self.feed_forward_norm = None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Add to each vector what both parts make of the same normalised copy; arguments as in `Block.forward`.

        Returns:
            (B, T, C).
        """
        normed = self.attention_norm(x)                            # (B, T, C)
        attended = self.attention(normed, mask, causal, rotation, cache, layer)  # (B, T, C)
        return x + self.drop(attended) + self.drop(self.feed_forward(normed))


FIRST_SHARE = 0.3  # of the previous token's vector, before anything is learned


def previous_vectors(vectors: Tensor, before: Tensor | None = None) -> Tensor:
    """The vector of the token before each token; zeros before the first one.

    Args:
        vectors: (B, T, C), zeros where there is padding.
        before: (B, 1, C), the vector of the token before these, or None.

    Returns:
        (B, T, C).

    Source:
        Peng et al. 2023, arXiv:2305.13048 (token shift), here once, at the embedding.

    Example:
        >>> previous_vectors(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
        [0.0, 1.0, 2.0]
    """
    first = torch.zeros_like(vectors[:, :1]) if before is None else before  # (B, N, C), N is 1, or 0 if T is
    return torch.cat((first, vectors[:, :-1]), dim=1)


def make_feed_forward(config: GPTConfig, output_std: float, generator: torch.Generator | None) -> nn.Module:
    """The feed-forward layer the config asks for, or several with a router; its output map starts at `output_std`."""
    shared = {"bias": config.bias, "output_std": output_std, "kernels": config.kernels, "generator": generator}
    if not config.n_experts:
        return FeedForward(config.d_model, config.d_ff, config.feed_forward, **shared)
    experts = (config.n_experts, config.n_active_experts, config.capacity_factor)
    return MixtureOfExperts(config.d_model, config.d_ff, *experts, config.feed_forward, **shared)


def make_norm(config: GPTConfig) -> nn.Module:
    """The kind of norm the config asks for, of width C."""
    shared = {"weight": config.norm_weight, "epsilon": config.norm_epsilon, "kernels": config.kernels}
    if config.norm == "rms":
        return RMSNorm(config.d_model, **shared)
    return LayerNorm(config.d_model, bias=config.bias or config.norm_bias, **shared)


def position_tables(config: GPTConfig) -> dict[str, Tensor]:
    """What a model knows about positions without learning it.

    Args:
        config: the decoder's settings.

    Returns:
        For "rotary" the cosines and sines of all angles, each (N, D / 2), for "sinusoidal" the vectors (N, C), float32
        and for each of the N = max_seq_len positions; nothing for other kinds.
    """
    positions = torch.arange(config.max_seq_len)                   # (N,)
    if config.position == "sinusoidal":
        return {"position_table": sinusoidal_positions(positions, config.d_model).float()}
    if config.position != "rotary":
        return {}
    scaling = (config.rotary_scaling, config.rotary_factor, config.trained_len)
    angles = positions[:, None] * scaled_frequencies(config.d_head, config.rotary_base, *scaling)  # (N, P)
    return {"rotary_cosine": angles.cos().float(), "rotary_sine": angles.sin().float()}


class GPT(nn.Module):
    """A decoder-only language model: token ids in, scores of the next token out.

    Args:
        config: the shape.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Radford et al. 2019, "Language models are unsupervised multitask learners"; the modern parts cite their own.

    Example:
        >>> config = GPTConfig(vocab_size=5, max_seq_len=8, n_layers=1, n_heads=2, d_model=4)
        >>> GPT(config, torch.Generator().manual_seed(0))(torch.tensor([[3, 1, 4]])).shape
        torch.Size([1, 3, 5])
    """

    product = staticmethod(F.linear)  # of the head, as in `Linear`

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model, config.embedding_std, generator)
        learned = config.position == "learned"
        self.position_embedding = (
            Embedding(config.max_seq_len, config.d_model, generator=generator) if learned else None
        )
        share = torch.full((config.d_model,), FIRST_SHARE) if config.token_shift else None
        self.share_of_previous = None if share is None else nn.Parameter(share)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        block = ParallelBlock if config.parallel_block else Block
        self.blocks = nn.ModuleList(block(config, generator) for _ in range(config.n_layers))
        self.final_norm = make_norm(config)
        head_std = 0.0 if config.zero_outputs else 0.02
        tied = config.tie_embeddings
        self.head = None if tied else Linear(config.d_model, config.vocab_size, std=head_std, generator=generator)
        for name, table in position_tables(config).items():
            self.register_buffer(name, table, persistent=False)

    def forward(
        self,
        token_ids: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Score every possible next token after each position.

        Args:
            token_ids: (B, T) integers from 0 to V - 1; with a cache only the new tokens.
            cache: keys and values of the S - T tokens before; the new ones are added.
            mask: (B, S) bool, True where a token is real and False where it is padding; None if all are real.
                Positions never see later ones, whatever the mask says.
            positions: (B, T) integers, the place of each token in its own sequence; None counts on from the cache.
                Needed beside a mask when the padding is on the left (padding itself may have any position in range).
                "alibi" and windows count places of the row instead: the same, when the real tokens stand side by side.

        Returns:
            (B, T, V) logits, ready for a cross-entropy loss; those at padding mean nothing.

        Raises:
            ShapeError: if shapes disagree or there are more positions than the model or the cache has room for.
            DataError: if an id is outside the vocabulary.
        """
        return self.logits(self.hidden(token_ids, cache, mask, positions))

    def hidden(
        self,
        token_ids: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The last vectors before the head, normalised; arguments as in `forward`.

        Returns:
            (B, T, C).
        """
        n_past = 0 if cache is None else cache.length
        self.check_input(token_ids, n_past, mask, positions)
        if cache is not None:
            cache.check_rows(token_ids.shape[0])
        n_new = token_ids.shape[1]
        x, rotation = self.embed(token_ids, n_past, positions, mask, cache)
        mask, causal = what_each_may_see(n_new, n_past + n_new, mask, x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, causal, rotation, cache, layer)     # (B, T, C)
        if cache is not None:
            cache.advance(n_new)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token from the last vectors: (..., C) -> (..., V)."""
        weight = self.token_embedding.weight if self.head is None else self.head.weight
        return cap_logits(self.product(hidden, weight), self.config.logit_cap)

    def embed(
        self,
        token_ids: Tensor,
        n_past: int,
        positions: Tensor | None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Token vectors with their places added, or the rotation that will tell attention the places.

        Args:
            token_ids: (B, T).
            n_past: number of cached positions before them.
            positions: (B, T), or None to count from n_past.
            mask: (B, S), False where a token is padding.
            cache: remembers the last vector for the token that comes next.

        Returns:
            (B, T, C) vectors, and None or cosine and sine for `rotate`, each (T, D / 2) or (B, 1, T, D / 2).
        """
        x = self.token_embedding(token_ids)                        # (B, T, C)
        if self.share_of_previous is not None:
            real = None if mask is None else mask[:, n_past:, None]
            vectors = x if real is None else x * real              # (B, T, C)
            x = x + self.share_of_previous * previous_vectors(vectors, None if cache is None else cache.last_vector)
            if cache is not None:
                cache.last_vector = vectors[:, -1:]
        here = slice(n_past, n_past + token_ids.shape[1]) if positions is None else positions
        x, rotation = self.place(x, here), self.rotation(here)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)                             # (B, T, C)
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x, rotation

    def place(self, x: Tensor, here: slice | Tensor) -> Tensor:
        """Add the vectors of their positions to token vectors (B, T, C), if this kind of position has any.

        Source:
            Vaswani et al. 2017, arXiv:1706.03762, section 3.4: token vectors are multiplied by sqrt(C) before sines of
            size 1 are added.
        """
        if self.config.position == "learned":
            return x + self.position_embedding.weight[here]        # (B, T, C)
        if self.config.position == "sinusoidal":
            return x * math.sqrt(self.config.d_model) + self.position_table[here].to(x.dtype)  # (B, T, C)
        return x

    def rotation(self, here: slice | Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine for `rotate`, each (T, D / 2) or (B, 1, T, D / 2); None if nothing turns."""
        if self.config.position != "rotary":
            return None
        cosine, sine = self.rotary_cosine[here], self.rotary_sine[here]
        return (cosine, sine) if isinstance(here, slice) else (cosine[:, None], sine[:, None])

    def check_input(self, token_ids: Tensor, n_past: int, mask: Tensor | None, positions: Tensor | None) -> None:
        """Check the shapes of the arguments of `forward`.

        Raises:
            ShapeError: if they disagree with each other or with the model.
        """
        sizes: dict[str, int] = {}
        check_shape("token_ids", token_ids, "B T", sizes)
        sizes["S"] = n_past + sizes["T"]
        if sizes["S"] > self.config.max_seq_len:
            raise ShapeError(
                f"{sizes['S']} positions do not fit into max_seq_len {self.config.max_seq_len}; "
                "shorten the text or keep its last part"
            )
        if mask is not None:
            check_shape("mask", mask, "B S", sizes)
            check_mask_and_bias(mask, None, mask.shape)
        if positions is not None:
            check_shape("positions", positions, "B T", sizes)
            self.check_positions(positions)

    def check_positions(self, positions: Tensor) -> None:
        """Check that positions are places of the model's context (not on a GPU, which every step would wait for).

        Raises:
            ShapeError: if they are not integers, or one is outside 0 .. max_seq_len - 1.
        """
        if positions.is_floating_point() or positions.dtype == torch.bool:
            raise ShapeError(f"positions have dtype {positions.dtype}, expected integers counted from 0")
        if positions.is_cuda or not positions.numel():
            return
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= self.config.max_seq_len:
            raise ShapeError(
                f"positions run from {low} to {high}, the model has 0 to {self.config.max_seq_len - 1}; "
                "padding may have any of these"
            )

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def make_cache(self, batch_size: int, max_seq_len: int = 0) -> KVCache:
        """An empty cache that fits this model's layers, dtype and device; with a window it keeps no more than that.

        Args:
            batch_size: number of rows B.
            max_seq_len: room in tokens; 0 means the model's own max_seq_len.
        """
        config, weight = self.config, self.token_embedding.weight
        room = max_seq_len or config.max_seq_len
        sizes = (config.n_layers, batch_size, config.n_kv_heads, room, config.d_head)
        if config.window:
            return RingCache(*sizes, window=config.window, dtype=weight.dtype, device=weight.device)
        return KVCache(*sizes, dtype=weight.dtype, device=weight.device)


def what_each_may_see(
    n_queries: int, n_keys: int, mask: Tensor | None, device: torch.device
) -> tuple[Tensor | None, bool]:
    """The cheapest description for attention of "the past only, and no padding".

    Args:
        n_queries: number of new positions T.
        n_keys: number of all positions S.
        mask: (B, S) bool, True for real tokens, or None.
        device: where to put a new mask.

    Returns:
        (None, True) for plain causal attention, (None, False) when everything may be seen (one new token),
        or a mask (B, 1, T, S) or (T, S) and False.

    Example:
        >>> what_each_may_see(3, 3, None, torch.device("cpu")), what_each_may_see(1, 9, None, torch.device("cpu"))
        ((None, True), (None, False))
    """
    if mask is None and n_queries == n_keys:
        return None, True
    if mask is None and n_queries == 1:
        return None, False
    past = causal_mask(n_queries, n_keys, device)                  # (T, S)
    return (past if mask is None else past & mask[:, None, None, :]), False
