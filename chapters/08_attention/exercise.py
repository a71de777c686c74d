"""Chapter 08, Attention: fill in the holes (12 points).

`minillm course test 08` tests this file, `minillm course test 08 8.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math

import torch
from torch import Tensor, nn

from minillm.errors import ShapeError
from minillm.nn import functional
from minillm.nn.attention import StretchedLinear, head_width, mix_heads, scale_stretch
from minillm.nn.linear import Linear
from minillm.shapes import check_shape


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
    # TASK 8.1 (3 points)
    # Three steps: every query times every key, divided by the root of the head width; then hide what the mask
    # does not allow; only then the softmax. A hidden score must be so low that its share is exactly zero, however
    # large the others are, and `functional.softmax` already knows what to do with a row in which everything is
    # hidden.
    raise NotImplementedError("task 8.1")


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
    # TASK 8.2 (2 points)
    # Give every query its position among the keys: with more keys than queries the first query is not position 0.
    # Then compare a column of query positions with a row of key positions.
    raise NotImplementedError("task 8.2")


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
    # TASK 8.3 (1 point)
    # A row of key positions 0, 1, 2, ... compared with a column of lengths gives (B, S); the mask needs two more
    # dimensions of size 1 between them, for the heads and the queries. Check the lengths first.
    raise NotImplementedError("task 8.3")


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
    # TASK 8.4 (1 point)
    # Two steps that cannot be one: cut the last dimension into (H, D), then exchange the heads with the
    # positions. A reshape straight to (H, T, D) has the right shape and puts numbers of different words into one
    # head.
    raise NotImplementedError("task 8.4")


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
    # TASK 8.5 (1 point)
    # The two steps of `split_heads` backwards: first exchange, then join.
    raise NotImplementedError("task 8.5")


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
        # TASK 8.6 (3 points)
        # Queries come from x, keys and values from the source; `self.key_value` makes both side by side, the keys
        # first. There are `self.n_heads` heads of queries but only `self.n_kv_heads` heads of keys and values.
        # `mix_heads` does the rest up to the last map, which is `self.output`.
        raise NotImplementedError("task 8.6")


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
    # TASK 8.7 (1 point)
    # Neighbours share: with G = 2 and H = 4 the result holds heads 0, 0, 1, 1. Torch has one function that
    # repeats each entry in place and another that repeats the whole; try both on `torch.arange(2)`.
    raise NotImplementedError("task 8.7")
