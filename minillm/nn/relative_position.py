"""Order as distance: numbers added to the scores that depend on how far a key is from the query.

Dimensions: H heads, T queries, S keys.
"""

import math

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError, ShapeError
from minillm.nn.linear import normal_weight


def relative_distances(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """How far each key stands after each query; negative for keys that came before it.

    Args:
        query_positions: (..., T) integers.
        key_positions: (..., S) integers, with the same or broadcastable leading sizes.

    Returns:
        (..., T, S) integers: key position minus query position.

    Example:
        >>> relative_distances(torch.tensor([1, 2]), torch.tensor([0, 1, 2])).tolist()
        [[-1, 0, 1], [-2, -1, 0]]
    """
    return key_positions[..., None, :] - query_positions[..., :, None]  # (..., T, S)


def relative_buckets(
    distances: Tensor, n_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Tensor:
    """A bucket for every distance: each small one has its own, larger ones share buckets that grow with the distance.

    Of the N buckets for one direction the first N / 2 hold the distances 0, 1, 2, ...; the others divide the way from
    there to `max_distance` into equal factors, and the last holds everything from `max_distance` on.

    Args:
        distances: integers of any shape, key position minus query position.
        n_buckets: number of buckets; at least 2 for each direction, and even if there are two directions.
        max_distance: from here on all distances share one bucket; more than N / 2.
        bidirectional: whether later keys have buckets of their own, the second half of all. Otherwise all buckets are
            for earlier keys, and later ones (which a causal mask hides) fall into bucket 0.

    Returns:
        int64 of the same shape, from 0 to n_buckets - 1.

    Raises:
        ConfigError: if there are too few buckets or too short a maximum.
        ShapeError: if the distances are not integers.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 2.1; the formula is that of the released T5 code, computed in
        float32 like there, since learned numbers belong to exactly these buckets.

    Example:
        >>> relative_buckets(torch.tensor([0, -1, -7, -8, -11, -12, -128, -999]), bidirectional=True).tolist()
        [0, 1, 7, 8, 8, 9, 15, 15]
        >>> relative_buckets(torch.tensor([1, 999])).tolist()
        [17, 31]
    """
    n_directions = 2 if bidirectional else 1
    n_each = n_buckets // n_directions
    n_exact = n_each // 2
    if n_buckets % n_directions or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError(
            f"n_buckets={n_buckets} and max_distance={max_distance} do not fit: expected an even number of buckets, at "
            f"least 2 for each direction, and a max_distance above {max(n_exact, 1)}"
        )
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError(f"distances have dtype {distances.dtype}, expected integers")
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far.long(), shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


class RelativeBias(nn.Module):
    """One learned number per head and bucket of distances, to be added to the scores of attention.

    Args:
        n_heads: number of heads H.
        n_buckets: as `max_distance` and `bidirectional` an argument of `relative_buckets`.
        max_distance: from here on all distances share one number.
        bidirectional: whether later keys have numbers of their own.
        std: standard deviation of the numbers at the start.
        generator: where they come from; None is torch's own default generator.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 2.1.
    """

    def __init__(
        self,
        n_heads: int,
        n_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        std: float = 0.02,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.settings = (n_buckets, max_distance, bidirectional)
        self.weight = nn.Parameter(normal_weight(n_buckets, n_heads, std, generator))

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Map positions (..., T) and (..., S) to a bias (..., H, T, S)."""
        buckets = relative_buckets(relative_distances(query_positions, key_positions), *self.settings)  # (..., T, S)
        return self.weight[buckets].movedim(-1, -3)                # (..., H, T, S)


def alibi_slopes(n_heads: int) -> Tensor:
    """How fast the score of each head falls with the distance: 2^(-8/n), 2^(-16/n), ... down to 2^-8 for n heads.

    When n is no power of two, the slopes of the next smaller power come first, then every second one of the next larger
    power, beginning with its first.

    Args:
        n_heads: number of heads H, at least 1.

    Returns:
        (H,) float64, positive.

    Raises:
        ConfigError: if there is no head.

    Source:
        Press et al. 2021, arXiv:2108.12409, section 3; for other numbers of heads the rule of their released code.

    Example:
        >>> alibi_slopes(4).tolist(), alibi_slopes(3).tolist()
        ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    if n_heads < 1:
        raise ConfigError(f"n_heads is {n_heads}, expected at least 1")
    n_first = 2 ** int(math.log2(n_heads))
    first = slopes_of_power(n_first)                               # (N,)
    others = slopes_of_power(2 * n_first)[::2]                     # (N,)
    return torch.cat((first, others))[:n_heads]                    # (H,)


def slopes_of_power(n_heads: int) -> Tensor:
    """2^(-8 i / n) for i = 1 ... n, as (n,) float64."""
    return 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, dtype=torch.float64) / n_heads)


def alibi_bias(distances: Tensor, slopes: Tensor) -> Tensor:
    """Scores fall linearly with the distance between query and key: minus slope times distance.

    Args:
        distances: (..., T, S) integers, of either sign.
        slopes: (H,) from `alibi_slopes`.

    Returns:
        (..., H, T, S) numbers of at most 0, in the dtype of `slopes`, to be added to the scores.

    Source:
        Press et al. 2021, arXiv:2108.12409, figure 3.

    Example:
        >>> alibi_bias(torch.tensor([[-2, -1, 4]]), torch.tensor([0.5, 0.25])).tolist()
        [[[-1.0, -0.5, -2.0]], [[-0.5, -0.25, -1.0]]]
    """
    return -slopes[:, None, None] * distances.abs()[..., None, :, :]  # (..., H, T, S)
