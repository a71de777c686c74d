"""How a model knows the order of its tokens: learned position vectors are an `Embedding`; rotation is here."""

import torch
from torch import Tensor

from minillm.errors import ConfigError


def rotary_angles(positions: Tensor, d_head: int, base: float = 10000.0) -> Tensor:
    """The angle by which each pair of numbers turns at each position: position / base^(2i / D) for pair i.

    Args:
        positions: (...) integer positions, counted from 0.
        d_head: head width D, even.
        base: the slowest pair turns about once per 2 * pi * base positions.

    Returns:
        (..., D / 2) float64 radians.

    Raises:
        ConfigError: if D is odd or the base is not positive.

    Source:
        Su et al. 2021, arXiv:2104.09864, eq. (15).

    Example:
        >>> rotary_angles(torch.tensor([0, 3]), d_head=4, base=100.0)
        tensor([[0.0000, 0.0000],
                [3.0000, 0.3000]], dtype=torch.float64)
    """
    if d_head % 2 or d_head <= 0 or base <= 0:
        raise ConfigError(f"rotary positions need an even d_head and a positive base, got d_head={d_head}, base={base}")
    exponent = torch.arange(0, d_head, 2, device=positions.device, dtype=torch.float64) / d_head
    frequency = base**-exponent                                    # (d_pair,)
    return positions[..., None] * frequency                        # (..., d_pair)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle; products then depend on the distance of two positions only.

    Args:
        x: (..., T, D) queries or keys.
        cosine: cosine of the angles, broadcastable to (..., T, D / 2).
        sine: sine of the angles, likewise.

    Returns:
        (..., T, D) in the dtype of x.

    Source:
        Su et al. 2021, arXiv:2104.09864, eq. (34); pairs are taken half a head apart instead of side by side,
        which is the same rotation with the numbers of a head in another order.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])).tolist()
        [[0.0, 1.0]]
    """
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)  # (..., T, D)
