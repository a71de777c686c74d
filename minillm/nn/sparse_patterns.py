"""Which keys a query may see when it need not see them all: windows, strides, and whole blocks.

Every pattern is a bool mask (T, S), True where attention is allowed, to be combined by & and |. A kernel that works
tile by tile (`minillm.nn.tiled_attention`) skips the tiles in which everything is hidden.

Dimensions: T queries, S keys; the queries are the last T of S positions, as in `causal_mask`.
"""

import torch
from torch import Tensor

from minillm.errors import ConfigError, ShapeError
from minillm.nn.relative_position import relative_distances


def distances_of_last(n_queries: int, n_keys: int, device: torch.device | None = None) -> Tensor:
    """How far each key stands after each query when the queries are the last of the positions.

    Args:
        n_queries: number of query positions T.
        n_keys: number of key positions S, at least T.
        device: where to put the result.

    Returns:
        (T, S) int64, negative for earlier keys.

    Raises:
        ShapeError: if there are more queries than keys.

    Example:
        >>> distances_of_last(2, 3).tolist()
        [[-1, 0, 1], [-2, -1, 0]]
    """
    if n_queries > n_keys:
        raise ShapeError(f"{n_queries} queries cannot be the last of only {n_keys} keys")
    positions = torch.arange(n_keys, device=device)                # (S,)
    return relative_distances(positions[n_keys - n_queries :], positions)  # (T, S)


def window_mask(n_queries: int, n_keys: int, window: int, device: torch.device | None = None) -> Tensor:
    """Each query sees itself and the `window` - 1 keys before it, and nothing later.

    Stacked layers see further: after L of them a position has heard of L * (window - 1) positions before it.

    Args:
        n_queries: number of query positions T.
        n_keys: number of key positions S, at least T.
        window: number of keys seen, at least 1.
        device: where to put the mask.

    Returns:
        (T, S) bool.

    Raises:
        ConfigError: if the window is empty.
        ShapeError: if there are more queries than keys.

    Source:
        Beltagy et al. 2020, arXiv:2004.05150, section 3.1; Jiang et al. 2023, arXiv:2310.06825, section 2.

    Example:
        >>> window_mask(3, 3, window=2).int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    check_at_least_one("window", window)
    distances = distances_of_last(n_queries, n_keys, device)       # (T, S)
    return (distances <= 0) & (distances > -window)


def check_at_least_one(name: str, value: int) -> None:
    """Check a count of a pattern.

    Raises:
        ConfigError: if it is below 1.
    """
    if value < 1:
        raise ConfigError(f"{name} is {value}, expected at least 1")


def neighbour_mask(n_positions: int, radius: int, device: torch.device | None = None) -> Tensor:
    """Each position sees itself and `radius` neighbours on both sides, as encoders use it.

    Args:
        n_positions: number of positions T, which are queries and keys.
        radius: how far it sees, at least 0.
        device: where to put the mask.

    Returns:
        (T, T) bool, symmetric.

    Raises:
        ConfigError: if the radius is negative.

    Source:
        Beltagy et al. 2020, arXiv:2004.05150, section 3.1 (sliding window).

    Example:
        >>> neighbour_mask(3, radius=1).int().tolist()
        [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """
    if radius < 0:
        raise ConfigError(f"radius is {radius}, expected at least 0")
    return distances_of_last(n_positions, n_positions, device).abs() <= radius


def global_mask(n_positions: int, global_positions: Tensor) -> Tensor:
    """Some positions see everything and are seen by everything; to be added to another pattern by |.

    Args:
        n_positions: number of positions T, which are queries and keys.
        global_positions: (N,) which positions these are.

    Returns:
        (T, T) bool on the device of `global_positions`, symmetric.

    Raises:
        ShapeError: if one of them is outside 0 .. T - 1.

    Source:
        Beltagy et al. 2020, arXiv:2004.05150, section 3.1 (global attention); Zaheer et al. 2020, arXiv:2007.14062.

    Example:
        >>> global_mask(3, torch.tensor([0])).int().tolist()
        [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    """
    if ((global_positions < 0) | (global_positions >= n_positions)).any():
        raise ShapeError(f"global positions are {global_positions.tolist()}, there are 0 to {n_positions - 1}")
    chosen = torch.zeros(n_positions, dtype=torch.bool, device=global_positions.device)  # (T,)
    chosen[global_positions] = True
    return chosen[:, None] | chosen                                # (T, T)


def strided_mask(n_queries: int, n_keys: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Each query sees itself and every `stride`-th key before it: with a window of `stride`, everything in two steps.

    Args:
        n_queries: number of query positions T.
        n_keys: number of key positions S, at least T.
        stride: distance between keys seen, at least 1.
        device: where to put the mask.

    Returns:
        (T, S) bool.

    Raises:
        ConfigError: if the stride is below 1.
        ShapeError: if there are more queries than keys.

    Source:
        Child et al. 2019, arXiv:1904.10509, section 4.3 (strided attention).

    Example:
        >>> strided_mask(4, 4, stride=2).int().tolist()
        [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    """
    check_at_least_one("stride", stride)
    distances = distances_of_last(n_queries, n_keys, device)       # (T, S)
    return (distances <= 0) & (distances % stride == 0)


def summary_mask(
    n_queries: int, n_keys: int, stride: int, n_summaries: int, device: torch.device | None = None
) -> Tensor:
    """Each query sees the keys of its own stretch of `stride` positions, and the last few of every stretch before.

    These last positions can learn to sum up their stretch for all that come later.

    Args:
        n_queries: number of query positions T.
        n_keys: number of key positions S, at least T.
        stride: length of a stretch; the first begins at position 0.
        n_summaries: how many of its last positions are seen from later stretches, from 1 to `stride`.
        device: where to put the mask.

    Returns:
        (T, S) bool.

    Raises:
        ConfigError: if a number is out of range.
        ShapeError: if there are more queries than keys.

    Source:
        Child et al. 2019, arXiv:1904.10509, section 4.3 (fixed attention).

    Example:
        >>> summary_mask(4, 4, stride=2, n_summaries=1).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    """
    check_at_least_one("n_summaries", n_summaries)
    if n_summaries > stride:
        raise ConfigError(f"n_summaries is {n_summaries}, a stretch has only {stride} positions")
    past = distances_of_last(n_queries, n_keys, device) <= 0       # (T, S)
    keys = torch.arange(n_keys, device=device)                     # (S,)
    queries = keys[n_keys - n_queries :, None]                     # (T, 1)
    same_stretch = keys // stride == queries // stride             # (T, S)
    return past & (same_stretch | (keys % stride >= stride - n_summaries))


def block_mask(layout: Tensor, block_size: int, n_queries: int, n_keys: int) -> Tensor:
    """Whole blocks of queries see whole blocks of keys.

    Args:
        layout: (P, Q) bool, for each block of queries and of keys whether they see each other.
        block_size: positions of a block, at least 1; the last blocks may be shorter.
        n_queries: number of query positions T, which need P blocks.
        n_keys: number of key positions S, which need Q blocks.

    Returns:
        (T, S) bool on the device of `layout`.

    Raises:
        ConfigError: if the block size is below 1.
        ShapeError: if the layout is not bool or has not as many blocks as the positions need.

    Source:
        Child et al. 2019, arXiv:1904.10509, section 5.5; Zaheer et al. 2020, arXiv:2007.14062, section 2.

    Example:
        >>> block_mask(torch.tensor([[True, False], [True, True]]), 2, 3, 4).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    """
    check_at_least_one("block_size", block_size)
    needed = tuple(-(-n // block_size) for n in (n_queries, n_keys))
    if layout.dtype != torch.bool or tuple(layout.shape) != needed:
        raise ShapeError(
            f"the layout has shape {tuple(layout.shape)} and dtype {layout.dtype}, {n_queries} queries and {n_keys} "
            f"keys in blocks of {block_size} need bool of shape {needed}"
        )
    of_query = torch.arange(n_queries, device=layout.device) // block_size  # (T,)
    of_key = torch.arange(n_keys, device=layout.device) // block_size  # (S,)
    return layout[of_query][:, of_key]                             # (T, S)


def random_layout(
    n_blocks: int, n_near: int, n_global: int, n_random: int, generator: torch.Generator | None = None
) -> Tensor:
    """A layout of blocks for long encoders: neighbours, some first blocks that everybody sees, and some by chance.

    Args:
        n_blocks: blocks of queries and of keys P.
        n_near: how many blocks to each side a block sees.
        n_global: how many first blocks see everything and are seen by everything.
        n_random: how many of the other blocks each block sees besides; all of them if there are fewer.
        generator: chooses them; None is torch's own default generator.

    Returns:
        (P, P) bool, for `block_mask`.

    Raises:
        ConfigError: if a number is negative.

    Source:
        Zaheer et al. 2020, arXiv:2007.14062, section 2 (random, window and global attention).

    Example:
        >>> random_layout(4, n_near=0, n_global=1, n_random=0).int().tolist()
        [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    """
    if min(n_blocks, n_near, n_global, n_random) < 0:
        raise ConfigError(f"{n_blocks=}, {n_near=}, {n_global=} and {n_random=}: none may be negative")
    fixed = neighbour_mask(n_blocks, n_near) | global_mask(n_blocks, torch.arange(min(n_global, n_blocks)))  # (P, P)
    chances = torch.rand(n_blocks, n_blocks, generator=generator).masked_fill(fixed, -1.0)  # (P, P)
    order = chances.argsort(dim=-1, descending=True).argsort(dim=-1)  # (P, P)
    return fixed | (order < n_random)
