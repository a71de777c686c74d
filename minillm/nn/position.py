"""How a model knows the order of its tokens: vectors added to theirs, or a rotation of queries and keys.

Learned position vectors are an `Embedding`; distances as numbers added to the scores are in `relative_position`.
Dimensions: C model width, D head width, T positions, N pairs of a vector.
"""

import math

import torch
from torch import Tensor

from minillm.errors import ConfigError, ShapeError

ROTARY_LAYOUTS = ("halves", "interleaved")
ROTARY_SCALINGS = ("none", "linear", "ntk", "llama3")


def sinusoidal_positions(positions: Tensor, d_model: int, base: float = 10000.0) -> Tensor:
    """A vector for each position: sines and cosines of the position at C / 2 speeds, side by side.

    Number 2i is sin(position / base^(2i / C)), number 2i + 1 the cosine of the same angle.

    Args:
        positions: (...) integer positions, counted from 0.
        d_model: width C, even.
        base: the slowest pair turns about once per 2 * pi * base positions.

    Returns:
        (..., C) float64, every pair of length 1.

    Raises:
        ConfigError: if C is odd or the base is not positive.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

    Example:
        >>> sinusoidal_positions(torch.tensor([0, 3]), d_model=4, base=100.0)
        tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
                [ 0.1411, -0.9900,  0.2955,  0.9553]], dtype=torch.float64)
    """
    angles = positions[..., None] * pair_frequencies(d_model, base).to(positions.device)  # (..., N)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (..., 2*N)


def pair_frequencies(width: int, base: float = 10000.0) -> Tensor:
    """By how much each pair of a vector's numbers turns from one position to the next: base^(-2i / width) for pair i.

    Args:
        width: numbers per vector, even.
        base: the larger, the slower the slow pairs turn.

    Returns:
        (width / 2,) float64 radians per position, from 1 downwards.

    Raises:
        ConfigError: if the width is odd or the base is not positive.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Su et al. 2021, arXiv:2104.09864, eq. (15).

    Example:
        >>> pair_frequencies(4, base=100.0).tolist()
        [1.0, 0.1]
    """
    if width % 2 or width <= 0 or base <= 0:
        raise ConfigError(
            f"positions by sines or rotation need an even d_head or d_model and a positive base, "
            f"got width {width}, base={base}"
        )
    return base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)


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
    return positions[..., None] * pair_frequencies(d_head, base).to(positions.device)  # (..., N)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, layout: str = "halves") -> Tensor:
    """Turn each pair of numbers by its angle; products then depend on the distance of two positions only.

    Args:
        x: (..., T, D) queries or keys.
        cosine: cosine of the angles, broadcastable to (..., T, D / 2).
        sine: sine of the angles, likewise.
        layout: which numbers are pair i: "halves" takes x[i] and x[i + D/2], "interleaved" x[2i] and x[2i + 1].

    Returns:
        (..., T, D) in the dtype of x.

    Raises:
        ConfigError: if the layout is unknown.

    Source:
        Su et al. 2021, arXiv:2104.09864, eq. (34), which is "interleaved"; halves are the same rotation with the
        numbers of a head in another order, see `rotary_rows`.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])).tolist()
        [[0.0, 1.0]]
    """
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    if layout == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        turned = (first * cosine - second * sine, first * sine + second * cosine)
        return torch.stack(turned, dim=-1).flatten(-2)             # (..., T, D)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)  # (..., T, D)


def check_layout(layout: str) -> None:
    """Check the name of a rotary layout.

    Raises:
        ConfigError: if it is unknown.
    """
    if layout not in ROTARY_LAYOUTS:
        raise ConfigError(f"the rotary layout is {layout!r}, expected one of {ROTARY_LAYOUTS}")


def rotary_rows(weight: Tensor, d_head: int, layout: str) -> Tensor:
    """Reorder the rows that make queries or keys, so that a model of the other layout computes the same scores.

    Scores are sums over the numbers of a head, so the order of these numbers is free as long as queries and keys agree;
    values must stay as they are.

    Args:
        weight: (n * D, ...) weight or bias of the map to queries or keys, written for the layout that is not `layout`.
        d_head: head width D, even.
        layout: the layout wanted, "halves" or "interleaved".

    Returns:
        The same shape: within each head, rows 0, D/2, 1, D/2 + 1, ... for "interleaved"; 0, 2, 4, ..., 1, 3, 5, ... for
        "halves".

    Raises:
        ConfigError: if the layout is unknown or D is odd.
        ShapeError: if D does not divide the number of rows.

    Example:
        >>> rotary_rows(torch.arange(8), d_head=4, layout="interleaved").tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    check_layout(layout)
    if d_head % 2 or d_head <= 0:
        raise ConfigError(f"d_head is {d_head}, expected an even number")
    if weight.shape[0] % d_head:
        raise ShapeError(f"{weight.shape[0]} rows cannot be cut into heads of width {d_head}")
    pairs = (2, d_head // 2) if layout == "interleaved" else (d_head // 2, 2)
    return weight.unflatten(0, (-1, *pairs)).transpose(1, 2).flatten(0, 2)


def scaled_frequencies(
    d_head: int, base: float = 10000.0, scaling: str = "none", factor: float = 1.0, trained_len: int = 0
) -> Tensor:
    """The speeds of rotary pairs, changed so that a model can read texts `factor` times as long as it was trained on.

    "linear" slows every pair by the factor, so that no angle is larger than in training. "ntk" makes the base larger:
    the slowest pair is slowed by exactly the factor and the fastest not at all, so that near positions stay as distinct
    as they were. "llama3" leaves pairs alone that turn at least 4 times within the trained length, slows those by the
    factor that do not turn even once, and blends in between.

    Args:
        d_head: head width D, even.
        base: that of training.
        scaling: one of `ROTARY_SCALINGS`.
        factor: how many times longer, at least 1.
        trained_len: the length of training in tokens; needed for "llama3" only.

    Returns:
        (D / 2,) float64 radians per position.

    Raises:
        ConfigError: if a setting is unknown or out of range.

    Source:
        Chen et al. 2023, arXiv:2306.15595, eq. (4) (linear); Peng et al. 2023, arXiv:2309.00071, section 3.1 (ntk) and
        3.2 (blending by turns); Llama Team 2024, arXiv:2407.21783, whose released code blends as here.

    Example:
        >>> scaled_frequencies(4, 100.0, "linear", 2.0).tolist()
        [0.5, 0.05]
        >>> scaled_frequencies(4, 100.0, "ntk", 2.0).tolist()
        [1.0, 0.05]
    """
    check_scaling(scaling, factor, trained_len)
    if scaling == "ntk":
        return pair_frequencies(d_head, ntk_base(base, factor, d_head))
    frequency = pair_frequencies(d_head, base)                     # (N,)
    if scaling == "linear":
        return frequency / factor                                  # (N,)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len)                  # (N,)
        return kept * frequency + (1.0 - kept) * frequency / factor  # (N,)
    return frequency


def check_scaling(scaling: str, factor: float, trained_len: int) -> None:
    """Check the arguments of `scaled_frequencies`.

    Raises:
        ConfigError: if one is unknown or out of range.
    """
    if scaling not in ROTARY_SCALINGS:
        raise ConfigError(f"the rotary scaling is {scaling!r}, expected one of {ROTARY_SCALINGS}")
    if not 1.0 <= factor < math.inf or (scaling == "none" and factor != 1.0):
        raise ConfigError(f"the rotary factor is {factor} with scaling {scaling!r}, expected >= 1, and 1 for none")
    if scaling == "llama3" and trained_len < 1:
        raise ConfigError(f"the trained length is {trained_len}, scaling 'llama3' needs it in tokens")


def ntk_base(base: float, factor: float, d_head: int) -> float:
    """The base at which the slowest of D / 2 rotary pairs turns `factor` times slower: base * factor^(D / (D - 2)).

    Args:
        base: that of training.
        factor: how many times longer the texts are.
        d_head: head width D, at least 4.

    Raises:
        ConfigError: if there is only one pair, which cannot be slowest and fastest at once.

    Example:
        >>> ntk_base(100.0, 2.0, 4)
        400.0
    """
    if d_head <= 2:
        raise ConfigError(f"d_head is {d_head}, scaling 'ntk' needs at least 4")
    return base * factor ** (d_head / (d_head - 2))


def share_kept(frequency: Tensor, trained_len: int, slow_turns: float = 1.0, fast_turns: float = 4.0) -> Tensor:
    """How much of its own speed each pair keeps: nothing if it turns rarely within the trained length, all if often.

    Args:
        frequency: (N,) radians per position.
        trained_len: the length of training in tokens.
        slow_turns: pairs with fewer turns keep nothing.
        fast_turns: pairs with more turns keep all.

    Returns:
        (N,) shares from 0 to 1, linear in the number of turns.

    Example:
        >>> share_kept(torch.tensor([1.0, 0.25, 0.01]) * 2 * math.pi, trained_len=10).tolist()
        [1.0, 0.5, 0.0]
    """
    turns = trained_len * frequency / (2.0 * math.pi)              # (N,)
    return ((turns - slow_turns) / (fast_turns - slow_turns)).clamp(0.0, 1.0)  # (N,)
