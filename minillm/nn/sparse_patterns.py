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
        Child et al. 2019, arXiv:1904.10509, section 4.2 (local part); Jiang et al. 2023, arXiv:2310.06825, section 2.

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
