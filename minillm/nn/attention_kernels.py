"""Faster ways to the values of `minillm.nn.attention.attention`: the library's fused kernel, and two matrix products.

Dimensions: B batch, H query heads, G key/value heads, T queries, S keys, D head width, N batch times heads.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 512  # positions up to which `product_attention` is the faster one in bf16, measured on two AVX-512 cores


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """`attention` by the library's fused kernel.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D), where G divides H.
        value: (B, G, S, D).
        mask: bool, broadcastable to (B, H, T, S), True where attention is allowed; None allows all.
        causal: hide later positions, instead of a mask and without a bias.
        bias: numbers added to the scores, broadcastable to (B, H, T, S), or None.

    Returns:
        (B, H, T, D).
    """
    dtype, shares = query.dtype, query.shape[1] != key.shape[1]
    if widening_is_faster(query):
        query, key, value = query.float(), key.float(), value.float()
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=shares)
    return mixed.to(dtype)


def product_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attention` as two batched matrix products around the library's softmax; keeps all B H T S weights for training.

    On a CPU the fused kernel's backward pass is slow in 16 bits: for up to `SHORT` positions these products take about
    0.6 of its time. In 32 bits the two are equal there, and for longer sequences the fused kernel wins.

    Args:
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        mask: (T, S) bool, True where attention is allowed; each query must be allowed some key. None allows all.

    Returns:
        (B, H, T, D).
    """
    shape, scale = query.shape, 1.0 / math.sqrt(query.shape[-1])
    query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # (N, T, D), twice (N, S, D)
    hidden_scores = torch.zeros(shape[2], key.shape[1], dtype=query.dtype, device=query.device)  # (T, S)
    if mask is not None:
        hidden_scores = hidden_scores.masked_fill(~mask, -math.inf)  # (T, S)
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.baddbmm(hidden_scores, query, key.transpose(1, 2), alpha=scale)  # (N, T, S)
        return (scores.softmax(dim=-1) @ value).view(shape)


def products_are_faster(query: Tensor) -> bool:
    """Whether `product_attention` beats the fused kernel for queries (B, H, T, D) that see at most T keys."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= SHORT


def widening_is_faster(query: Tensor) -> bool:
    """Whether one new bf16 query (B, H, 1, D) is sooner done in fp32: the CPU's 16-bit kernel takes twice the time."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] == 1
