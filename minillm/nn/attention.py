"""Scaled dot-product attention: each query position averages the values it is allowed to see.

Dimensions: B batch, H query heads, G key/value heads, T queries, S keys, D head width, C model width,
E width of queries, keys and values together, W source width.
"""

import math

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError, ShapeError
from minillm.nn import functional
from minillm.nn.attention_kernels import fused_attention, product_attention, products_are_faster
from minillm.nn.cache import KVCache
from minillm.nn.linear import Linear
from minillm.nn.norm import RMSNorm
from minillm.nn.position import check_layout, rotate
from minillm.nn.relative_position import alibi_bias, alibi_slopes
from minillm.nn.row_kernels import Rotation, are_faster
from minillm.nn.sparse_patterns import distances_of_last, window_mask
from minillm.nn.tiled_attention import tiled_attention
from minillm.shapes import check_shape


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> Tensor:
    """Which keys each query may see when the queries are the last `n_queries` of `n_keys` positions.

    With a cache of past keys `n_keys` is larger than `n_queries`; the last query always sees every key.

    Args:
        n_queries: number of query positions T.
        n_keys: number of key positions S, at least T.
        device: where to put the mask.

    Returns:
        (T, S) bool, True where attention is allowed.

    Raises:
        ShapeError: if there are more queries than keys.

    Example:
        >>> causal_mask(2, 3).tolist()
        [[True, True, False], [True, True, True]]
    """
    if n_queries > n_keys:
        raise ShapeError(f"{n_queries} queries cannot be the last of only {n_keys} keys")
    key_position = torch.arange(n_keys, device=device)             # (S,)
    query_position = key_position[n_keys - n_queries :, None]      # (T, 1)
    return key_position <= query_position                          # (T, S)


def padding_mask(lengths: Tensor, n_keys: int) -> Tensor:
    """Which keys are real when every sequence of a batch is filled up on the right to the same length.

    `causal_mask(T, S) & padding_mask(lengths, S)` hides both the future and the padding.

    Args:
        lengths: (B,) integers from 0 to `n_keys`, how many keys of each sequence are real.
        n_keys: number of key positions S, padding included.

    Returns:
        (B, 1, 1, S) bool on the device of `lengths`, True for real keys: the same for every head and query.

    Raises:
        ShapeError: if `lengths` is not one-dimensional, or a length is negative or larger than `n_keys`.

    Example:
        >>> padding_mask(torch.tensor([2, 3]), 3).tolist()
        [[[[True, True, False]]], [[[True, True, True]]]]
    """
    check_shape("lengths", lengths, "B", {})
    if ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError(f"lengths are {lengths.tolist()}, each must lie between 0 and the {n_keys} keys there are")
    real = torch.arange(n_keys, device=lengths.device) < lengths[:, None]  # (B, S)
    return real[:, None, None, :]


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key^T / sqrt(D)): how much each query takes from each key.

    Args:
        query: (..., T, D).
        key: (..., S, D).
        mask: bool, broadcastable to (..., T, S); True where attention is allowed.

    Returns:
        (..., T, S); rows sum to 1, a row that may see nothing is all zeros.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, eq. (1).

    Example:
        >>> query, key = torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.zeros(3, 4)
        >>> attention_weights(query, key, torch.tensor([[True, True, False]])).tolist()
        [[0.5, 0.5, 0.0]]
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)              # (..., T, S)
    return functional.softmax(scores)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key^T / sqrt(D)) @ value, with H / G query heads sharing one key/value head.

    Args:
        query: (..., H, T, D); the leading dimensions may be missing, and so may H (then G as well).
        key: (..., G, S, D), where G divides H.
        value: (..., G, S, D).
        mask: bool, broadcastable to (..., H, T, S); True where attention is allowed.
            A query that may see no key at all gives zeros.

    Returns:
        (..., H, T, D), in the dtype of `query`.

    Raises:
        ShapeError: if the shapes disagree, G does not divide H, or the mask is not bool.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, eq. (1); shared heads: Ainslie et al. 2023, arXiv:2305.13245.

    Example:
        >>> key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> attention(torch.zeros(1, 2), key, torch.tensor([[2.0, 0.0], [4.0, 6.0]])).tolist()
        [[3.0, 3.0]]
    """
    check_attention_shapes(query, key, value, mask)
    if query.dim() > 2:
        n_heads = query.shape[-3]
        key, value = share_heads(key, n_heads), share_heads(value, n_heads)
    weights = attention_weights(query, key, mask)                  # (..., T, S)
    return weights @ value                                         # (..., T, D)


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None = None
) -> Tensor:
    """softmax(query @ key^T / sqrt(D) + bias) @ value: `attention` with a number added to every score.

    Args:
        query: (..., H, T, D), as `key`, `value` and `mask` an argument of `attention`.
        key: (..., G, S, D), where G divides H.
        value: (..., G, S, D).
        bias: broadcastable to (..., H, T, S), for example a function of the distance from query to key.
        mask: bool, broadcastable to (..., H, T, S); True where attention is allowed.

    Returns:
        (..., H, T, D), in the dtype of `query`.

    Raises:
        ShapeError: as `attention`.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 2.1 (one learned number per head and distance); Press et al. 2021,
        arXiv:2108.12409, section 3 (a number that falls with the distance).

    Example:
        >>> key, value = torch.zeros(2, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
        >>> biased_attention(torch.zeros(1, 4), key, value, torch.tensor([[-math.inf, 5.0]])).tolist()
        [[0.0, 1.0, 0.0, 0.0]]
    """
    check_attention_shapes(query, key, value, mask)
    if query.dim() > 2:
        n_heads = query.shape[-3]
        key, value = share_heads(key, n_heads), share_heads(value, n_heads)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + bias.to(query.dtype)  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)              # (..., T, S)
    return functional.softmax(scores) @ value                      # (..., T, D)


def check_attention_shapes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Check that queries, keys, values and mask fit together.

    Args:
        query: (..., H, T, D), or (T, D).
        key: (..., G, S, D), or (S, D).
        value: like key.
        mask: bool, broadcastable to (..., H, T, S), or None.

    Raises:
        ShapeError: if they do not fit.
    """
    heads = ("H", "G") if query.dim() > 2 else ("", "")
    sizes: dict[str, int] = {}
    check_shape("query", query, f"... {heads[0]} T D", sizes)
    check_shape("key", key, f"... {heads[1]} S D", sizes)
    check_shape("value", value, f"... {heads[1]} S D", sizes)
    if key.shape != value.shape or query.shape[:-3] != key.shape[:-3] or query.dim() != key.dim():
        raise ShapeError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} "
            "need equal leading sizes"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ShapeError(f"the mask has dtype {mask.dtype}, expected bool with True where attention is allowed")


def share_heads(x: Tensor, n_heads: int) -> Tensor:
    """Give each query head the key or value head that it shares: the first H / G query heads get the first, and so on.

    Args:
        x: (..., G, S, D) keys or values.
        n_heads: number of query heads H, a multiple of G.

    Returns:
        (..., H, S, D); entry h is head h // (H / G) of x.

    Raises:
        ShapeError: if G does not divide H.

    Source:
        Shazeer 2019, arXiv:1911.02150 (G = 1); Ainslie et al. 2023, arXiv:2305.13245, section 2.2.

    Example:
        >>> share_heads(torch.tensor([[[1.0]], [[2.0]]]), 4).flatten().tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    n_kv_heads = x.shape[-3]
    if n_kv_heads == 0 or n_heads % n_kv_heads:
        raise ShapeError(f"{n_heads} query heads cannot share {n_kv_heads} key/value heads evenly")
    return x.repeat_interleave(n_heads // n_kv_heads, dim=-3)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Cut each vector into heads and put the heads before the positions.

    Args:
        x: (..., T, C).
        n_heads: H, dividing C.

    Returns:
        (..., H, T, D) with D = C / H, a view: head h holds the numbers h * D to (h + 1) * D of every vector.

    Raises:
        ShapeError: if H does not divide C.

    Example:
        >>> split_heads(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), 2).tolist()
        [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    """
    if x.shape[-1] % n_heads:
        raise ShapeError(f"width {x.shape[-1]} cannot be cut into {n_heads} heads")
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`: at each position, write the heads side by side again.

    Args:
        x: (..., H, T, D).

    Returns:
        (..., T, C) with C = H * D.

    Example:
        >>> merge_heads(torch.tensor([[[1, 2], [5, 6]], [[3, 4], [7, 8]]])).tolist()
        [[1, 2, 3, 4], [5, 6, 7, 8]]
    """
    return x.transpose(-3, -2).flatten(-2)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself: one product makes queries, keys and values, one mixes the heads.

    `qkv.weight` holds the rows of all query heads, then all key heads, then all value heads (`sections` rows each).

    Args:
        d_model: width C.
        n_heads: number of query heads H, dividing C.
        n_kv_heads: number of key/value heads G, dividing H.
        bias: whether the two linear maps have biases.
        qk_norm: whether to normalise each query and key to a root mean square of 1; no score can pass sqrt(D) then.
        max_score: with qk_norm, stretch the queries so that no score can pass this instead; 0 does not.
        std: standard deviation of the initial weights.
        output_std: that of the output map, which writes into the residual stream.
        kernels: "torch", "naive" or "tiled", see `minillm.nn.functional`.
        generator: where the initial weights come from; None is torch's own default generator.
        d_head: head width D; 0 means C / H. Any other lets the heads together be wider or narrower than C.
        scale: what the scores are multiplied by; 0 means 1 / sqrt(D).
        alibi: whether scores fall with the distance from query to key, in each head with a slope of its own.
        window: how many keys up to itself a query may see; 0 does not limit them.
        rotary_layout: "halves" or "interleaved", see `minillm.nn.position.rotate`.

    Raises:
        ConfigError: if H does not divide C (and no `d_head` is given), G does not divide H, or a setting is unknown.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2; query/key norm: Dehghani et al. 2023, arXiv:2302.05442;
        alibi: Press et al. 2021, arXiv:2108.12409; window: Jiang et al. 2023, arXiv:2310.06825, section 2.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        bias: bool = False,
        qk_norm: bool = False,
        max_score: float = 0.0,
        std: float = 0.02,
        output_std: float = 0.02,
        kernels: str = "torch",
        generator: torch.Generator | None = None,
        d_head: int = 0,
        scale: float = 0.0,
        alibi: bool = False,
        window: int = 0,
        rotary_layout: str = "halves",
    ):
        super().__init__()
        functional.check_kernels(kernels)
        check_layout(rotary_layout)
        d_head = head_width(d_model, n_heads, n_kv_heads, d_head)
        self.n_heads, self.n_kv_heads, self.kernels = n_heads, n_kv_heads, kernels
        self.sections = (n_heads * d_head, n_kv_heads * d_head, n_kv_heads * d_head)
        self.qkv = Linear(d_model, sum(self.sections), bias, std, generator)
        self.output = Linear(n_heads * d_head, d_model, bias, output_std, generator)
        self.qk_norm = RMSNorm(d_head, kernels=kernels) if qk_norm else None
        self.stretch = max_score / math.sqrt(d_head) if qk_norm and max_score else scale_stretch(scale, d_head)
        self.window, self.rotary_layout = window, rotary_layout
        self.register_buffer("slopes", alibi_slopes(n_heads).float() if alibi else None, persistent=False)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Let every position look at the positions it may see.

        Args:
            x: (B, T, C).
            mask: bool, broadcastable to (B, H, T, S), True where attention is allowed; None allows all.
            causal: hide later positions; without a cache only, and instead of a mask (kernels are faster for it).
            rotation: cosine and sine of the rotary angles, each broadcastable to (B, H, T, D / 2), or None.
            cache: keys and values of earlier positions; the new ones are added to it.
            layer: which layer of the cache this is.
            bias: numbers added to the scores, broadcastable to (B, H, T, S), or None.

        Returns:
            (B, T, C).
        """
        query, key, value = self.queries_keys_values(x, rotation)
        if cache is not None:
            cache.check_window(self.window)
            key, value = cache.update(layer, key, value)
            if self.window:                                        # the cache may have dropped what is out of sight
                key, value, mask, bias = last_keys(key.shape[2], key, value, mask, bias)
        mixed = mix_heads(query, key, value, mask, causal, self.kernels, bias, self.window, self.slopes)  # (B, H, T, D)
        return self.output(merge_heads(mixed))

    def queries_keys_values(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What every position asks for, offers and gives; `attention_weights` of the first two is who looks where.

        Args:
            x: (B, T, C).
            rotation: as in `forward`.

        Returns:
            Queries (B, H, T, D), keys and values (B, G, T, D), normalised and rotated as `forward` uses them.
        """
        projected = self.qkv(x)                                    # (B, T, E)
        if rotation is not None and self.qk_norm is None and self.stretch == 1.0 and not projected.requires_grad:
            return self.rotated_together(projected, rotation)      # sooner done, and the same numbers
        query, key, value = projected.split(self.sections, dim=-1)
        query = split_heads(query, self.n_heads)                   # (B, H, T, D)
        key = split_heads(key, self.n_kv_heads)                    # (B, G, T, D)
        value = split_heads(value, self.n_kv_heads)                # (B, G, T, D)
        if self.qk_norm is not None:
            query, key = self.qk_norm(query), self.qk_norm(key)
        if self.stretch != 1.0:
            query = query * self.stretch
        if rotation is not None:
            query, key = self.rotated(query, *rotation), self.rotated(key, *rotation)
        return query, key, value

    def rotated_together(self, projected: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What `queries_keys_values` makes of its product (B, T, E), with one rotation for queries and keys."""
        heads = split_heads(projected, self.n_heads + 2 * self.n_kv_heads)  # (B, H + 2 G, T, D)
        turned = self.rotated(heads[:, : -self.n_kv_heads], *rotation)  # (B, H + G, T, D)
        return turned[:, : self.n_heads], turned[:, self.n_heads :], heads[:, -self.n_kv_heads :]

    def rotated(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """`rotate` queries or keys (B, H, T, D), by the fast path that equals it where there is one."""
        if self.rotary_layout == "halves" and self.kernels != "naive" and are_faster(x):
            return Rotation.apply(x, cosine, sine)
        return rotate(x, cosine, sine, self.rotary_layout)


class CrossAttention(nn.Module):
    """Attention of one sequence to another: `x` asks, `source` offers and gives.

    `key_value.weight` holds the rows of all key heads, then those of all value heads.

    Args:
        d_model: width C of x, and of the result.
        n_heads: number of query heads H, dividing C.
        n_kv_heads: number of key/value heads G, dividing H.
        d_source: width W of the source; 0 means C.
        bias: whether the three linear maps have biases.
        std: standard deviation of the initial weights.
        output_std: that of the output map, which writes into the residual stream.
        kernels: "torch", "naive" or "tiled", see `minillm.nn.functional`.
        generator: where the initial weights come from; None is torch's own default generator.
        d_head: head width D; 0 means C / H.
        scale: what the scores are multiplied by; 0 means 1 / sqrt(D).

    Raises:
        ConfigError: if H does not divide C (and no `d_head` is given) or G does not divide H.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3 ("encoder-decoder attention").
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_source: int = 0,
        bias: bool = False,
        std: float = 0.02,
        output_std: float = 0.02,
        kernels: str = "torch",
        generator: torch.Generator | None = None,
        d_head: int = 0,
        scale: float = 0.0,
    ):
        super().__init__()
        functional.check_kernels(kernels)
        d_head = head_width(d_model, n_heads, n_kv_heads, d_head)
        self.n_heads, self.n_kv_heads, self.kernels = n_heads, n_kv_heads, kernels
        stretch = scale_stretch(scale, d_head)
        self.query = StretchedLinear(d_model, n_heads * d_head, bias, std, generator, stretch=stretch)
        self.key_value = Linear(d_source or d_model, 2 * n_kv_heads * d_head, bias, std, generator)
        self.output = Linear(n_heads * d_head, d_model, bias, output_std, generator)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let every position of `x` look at the positions of `source` that it may see.

        Args:
            x: (B, T, C).
            source: (B, S, W).
            mask: bool, broadcastable to (B, H, T, S), True where attention is allowed; None allows all.
                A position that may see nothing gets zeros from every head (the output map's bias remains).

        Returns:
            (B, T, C).

        Raises:
            ShapeError: if x or source is not three-dimensional, or they differ in B.
        """
        sizes: dict[str, int] = {}
        check_shape("x", x, "B T C", sizes)
        check_shape("source", source, "B S W", sizes)
        key, value = self.key_value(source).chunk(2, dim=-1)
        query = split_heads(self.query(x), self.n_heads)           # (B, H, T, D)
        key = split_heads(key, self.n_kv_heads)                    # (B, G, S, D)
        value = split_heads(value, self.n_kv_heads)                # (B, G, S, D)
        mixed = mix_heads(query, key, value, mask, kernels=self.kernels)  # (B, H, T, D)
        return self.output(merge_heads(mixed))


class StretchedLinear(Linear):
    """A linear map whose result is multiplied by a fixed number, which is not learned.

    Args:
        settings: those of `Linear`.
        stretch: the number.
    """

    def __init__(self, *settings, stretch: float):
        super().__init__(*settings)
        self.stretch = stretch

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        result = super().forward(x)                                # (..., d_out)
        return result if self.stretch == 1.0 else result * self.stretch


def scale_stretch(scale: float, d_head: int) -> float:
    """What queries must be multiplied by so that scores divided by sqrt(D) are products times `scale`.

    Args:
        scale: wanted factor of the products; 0 means the usual 1 / sqrt(D).
        d_head: head width D.

    Example:
        >>> scale_stretch(0.0, 16), scale_stretch(1.0, 16)
        (1.0, 4.0)
    """
    return scale * math.sqrt(d_head) if scale else 1.0


def head_width(d_model: int, n_heads: int, n_kv_heads: int, d_head: int = 0) -> int:
    """The width of a head: the one asked for, or C / H.

    Raises:
        ConfigError: if none is given and H does not divide C, or if G does not divide H.

    Example:
        >>> head_width(512, 8, 8), head_width(512, 6, 6, d_head=64)
        (64, 64)
    """
    check_heads(d_model if not d_head else n_heads, n_heads, n_kv_heads)
    return d_head or d_model // n_heads


def check_heads(d_model: int, n_heads: int, n_kv_heads: int) -> None:
    """Check that the width can be cut into heads, and the query heads into groups.

    Raises:
        ConfigError: if H does not divide C or G does not divide H.
    """
    if d_model % n_heads or n_heads % n_kv_heads:
        raise ConfigError(f"{d_model=} must be a multiple of {n_heads=}, and that of {n_kv_heads=}")


def mix_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    kernels: str = "torch",
    bias: Tensor | None = None,
    window: int = 0,
    slopes: Tensor | None = None,
) -> Tensor:
    """`attention` by the chosen kernels; all give the same values and gradients.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D), where G divides H.
        value: (B, G, S, D).
        mask: bool, broadcastable to (B, H, T, S), True where attention is allowed; None allows all.
            A query that may see no key at all gives zeros.
        causal: hide later positions, instead of a mask.
        kernels: "torch" for the fused kernels, "naive" for `attention` itself, "tiled" for `tiled_attention`.
        bias: numbers added to the scores, broadcastable to (B, H, T, S), or None.
        window: how many keys up to itself a query may see, besides what the mask says; the queries are the last T of
            the S positions then. 0 does not limit them.
        slopes: (H,) ALiBi slopes; scores fall with the distance then, counted in places. None for none.

    Returns:
        (B, H, T, D).

    Raises:
        ShapeError: if the mask is not bool, the bias does not hold numbers, or one of them does not fit.
    """
    check_mask_and_bias(mask, bias, (*query.shape[:3], key.shape[2]))
    if window:
        key, value, mask, bias = last_keys(query.shape[2] + window - 1, key, value, mask, bias)
    if kernels == "tiled":
        return tiled_attention(query, key, value, mask, causal, bias, window, slopes)
    if window:
        mask, causal = within_window(query.shape[2], key.shape[2], window, mask, query.device)
    if slopes is not None:
        bias = add_alibi(bias, slopes, query.shape[2], key.shape[2])  # (..., H, T, S)
    if causal and (kernels == "naive" or bias is not None or query.shape[2] != key.shape[2]):
        mask, causal = causal_mask(query.shape[2], key.shape[2], query.device), False
    if kernels == "naive":
        return attention(query, key, value, mask) if bias is None else biased_attention(query, key, value, bias, mask)
    if causal and query.shape[1] == key.shape[1] and products_are_faster(query):
        return product_attention(query, key, value, causal_mask(query.shape[2], key.shape[2]))
    return fused_attention(query, key, value, mask, causal, bias)


def check_mask_and_bias(mask: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check that a mask says yes or no, that a bias holds numbers, and that both fit scores of this shape.

    Args:
        mask: bool, broadcastable to `shape`, or None.
        bias: floating point, broadcastable to `shape`, or None.
        shape: (B, H, T, S).

    Raises:
        ShapeError: if they do not.
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ShapeError(
            f"the mask has dtype {mask.dtype}, expected bool with True where attention is allowed; "
            "of ones and zeros with 1 for allowed make it by mask.bool(), numbers to add to the scores are a bias"
        )
    if bias is not None and not bias.is_floating_point():
        raise ShapeError(f"the bias has dtype {bias.dtype}, expected numbers to add to the scores; a bool is a mask")
    for name, given in (("mask", mask), ("bias", bias)):
        if given is not None and not fits(given.shape, shape):
            raise ShapeError(f"the {name} has shape {tuple(given.shape)}, expected (B, H, T, S) = {shape}, or ones")


def fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a tensor of `shape` can be broadcast to `target`.

    Example:
        >>> fits((2, 1, 1, 5), (2, 3, 4, 5)), fits((4, 5), (2, 3, 4, 5)), fits((2, 5), (2, 3, 4, 5))
        (True, True, False)
    """
    ends = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in ends)


def last_keys(n_keys: int, key: Tensor, value: Tensor, *over_keys: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cut everything to the last `n_keys` keys.

    Args:
        n_keys: how many to keep; all if there are fewer.
        key: (B, G, S, D).
        value: (B, G, S, D).
        over_keys: masks and biases with the keys as their last dimension, or 1 or None.

    Returns:
        The same, shorter; views.
    """
    kept = [x if x is None or x.shape[-1] == 1 else x[..., -n_keys:] for x in over_keys]
    return key[:, :, -n_keys:], value[:, :, -n_keys:], *kept


def within_window(
    n_queries: int, n_keys: int, window: int, mask: Tensor | None, device: torch.device
) -> tuple[Tensor | None, bool]:
    """The cheapest description for attention of "the mask, and only the last `window` keys up to itself".

    Args:
        n_queries: number of queries T, the last of the positions.
        n_keys: number of keys S that the window of some query reaches.
        window: number of keys each query sees.
        mask: bool, broadcastable to (..., T, S), or None.
        device: where to put a new mask.

    Returns:
        A mask or None, and whether attention is to be causal instead.

    Example:
        >>> within_window(3, 3, 4, None, torch.device("cpu")), within_window(1, 3, 4, None, torch.device("cpu"))
        ((None, True), (None, False))
    """
    if mask is None and (n_queries == 1 or n_queries == n_keys <= window):
        return None, n_queries > 1
    near = window_mask(n_queries, n_keys, window, device)          # (T, S)
    return (near if mask is None else near & mask), False


def add_alibi(bias: Tensor | None, slopes: Tensor, n_queries: int, n_keys: int) -> Tensor:
    """A bias with ALiBi's added, for queries that are the last of the positions.

    Distances are counted in float32 even when the model is in 16 bits, where large ones have no number of their own.

    Args:
        bias: broadcastable to (B, H, T, S), or None.
        slopes: (H,).
        n_queries: number of queries T.
        n_keys: number of keys S.

    Returns:
        Broadcastable to (B, H, T, S).
    """
    slopes = slopes.to(torch.promote_types(slopes.dtype, torch.float32))
    falling = alibi_bias(distances_of_last(n_queries, n_keys, slopes.device), slopes)  # (H, T, S)
    return falling if bias is None else falling + bias
