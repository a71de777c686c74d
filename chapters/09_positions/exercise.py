"""Chapter 09, Positions: fill in the holes (14 points).

`minillm course test 09` tests this file, `minillm course test 09 9.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math

import torch
from torch import Tensor

from minillm.errors import ConfigError, ShapeError
from minillm.nn.position import check_layout, check_scaling, ntk_base, pair_frequencies, share_kept
from minillm.nn.relative_position import slopes_of_power


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
    # TASK 9.1 (2 points)
    # `pair_frequencies` gives the C / 2 speeds. A column of positions times a row of speeds is all angles at
    # once; give the positions one more dimension first. Sine and cosine of the same angle stand side by side:
    # stack them in a new last dimension, then flatten it. Putting all sines before all cosines is another table.
    raise NotImplementedError("task 9.1")


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
    # TASK 9.2 (3 points)
    # A pair (a, b) turned by an angle is (a cos - b sin, a sin + b cos). The two layouts differ only in which
    # numbers are a and b, and in how the turned pairs are put back where they came from. Cosine and sine may come
    # in another dtype than x, and `check_layout` knows the names.
    raise NotImplementedError("task 9.2")


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
    # TASK 9.3 (2 points)
    # Look at the D rows of one head as a table. In halves, pair i is rows i and i + D/2: a table of 2 by D/2,
    # read column by column, gives the interleaved order. The way back is the same with a table of D/2 by 2.
    # Heads, and whatever comes after the rows, stay where they are.
    raise NotImplementedError("task 9.3")


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
    # TASK 9.4 (3 points)
    # How far is a key, whatever the direction? Small distances are their own bucket. For the others, the
    # logarithm of distance over N/2, divided by the logarithm of max_distance over N/2, runs from 0 to 1, and the
    # buckets that are left share that way evenly. Keep the logarithm away from 0, never pass the last bucket, and
    # add the direction at the end.
    raise NotImplementedError("task 9.4")


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
    # TASK 9.5 (2 points)
    # `slopes_of_power` gives the slopes for a power of two. Find the largest power that is not above H; where H
    # is larger, the next power's slopes number 1, 3, 5, ... fill up the rest.
    raise NotImplementedError("task 9.5")


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
    # TASK 9.6 (2 points)
    # Check the settings first (`check_scaling`). Only "ntk" changes the base (`ntk_base`), the others change the
    # frequencies that `pair_frequencies` gives; for "llama3", `share_kept` says how much of its own speed each
    # pair keeps, and the rest of it is slowed.
    raise NotImplementedError("task 9.6")
