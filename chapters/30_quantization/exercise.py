"""Chapter 30, Quantization: fill in the holes (17 points).

`minillm course test 30` tests this file, `minillm course test 30 30.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from minillm.compress.activations import AffineRange
from minillm.compress.ggml_blocks import inverse
from minillm.compress.grid import Grid, QuantSpec, absmax_scale, check_weights, groups_of, range_scale, usable
from minillm.compress.llm_int8 import THRESHOLD, int8_product, outlier_columns
from minillm.compress.mixed import undominated
from minillm.errors import ConfigError


def affine_range(low: float, high: float, bits: int = 8) -> AffineRange:
    """The range from low to high as codes, widened so that zero is one of them.

    Padding, masks and what a ReLU cuts are exactly zero; were zero no code, each would bring the same small error, and
    a sum over thousands of them a large one. Widening comes first: then the zero that is rounded lies within the codes.

    Args:
        low, high: finite, low <= high.
        bits: 2 to 8.

    Returns:
        its scale and zero; scale 1 and zero 0 if both ends are zero.

    Raises:
        ConfigError: if the range or the bits are none.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 2.1 and equation 1.

    Example:
        >>> affine_range(-1.0, 6.5, bits=4), affine_range(3.0, 7.5, bits=4)
        (AffineRange(scale=0.5, zero=2, bits=4), AffineRange(scale=0.5, zero=0, bits=4))
    """
    # TASK 30.1 (2 points)
    # Refuse first: NaN fails every comparison, so ask for what must hold. Then widen the range to hold zero, and
    # only then divide: the zero that comes out lies between the first and the last code by itself. A range that
    # is nothing but zero has no step.
    raise NotImplementedError("task 30.1")


def codes_of(values: Tensor, scale: Tensor, zero: Tensor, n_levels: int) -> Tensor:
    """The nearest code to each value; halves go to the even step, and what lies outside to the end of the grid.

    Args:
        values: any size, float.
        scale, zero: of a size that fits.
        n_levels: codes that there are.

    Returns:
        whole numbers 0 to n_levels - 1, still in float.

    Example:
        >>> codes_of(torch.tensor([-9.0, 0.5, 1.5, 9.0]), torch.tensor(1.0), torch.tensor(2.0), 4).tolist()
        [0.0, 2.0, 3.0, 3.0]
    """
    # TASK 30.2 (2 points)
    # Round to whole steps first, add the zero, cut to 0 ... n_levels - 1 last. `Tensor.round` sends halves to the
    # even number.
    raise NotImplementedError("task 30.2")


def find_grid(weight: Tensor, spec: QuantSpec) -> Grid:
    """The grid of every group of a matrix.

    A group of zeros gets scale 1, so that it comes back as zeros; a scale too small for its number format is raised
    to the smallest. Weights in 16 bits are taken as fp32.

    Args:
        weight: (O, I) float, finite.
        spec: how to round.

    Returns:
        the grids, in fp64 for weights in fp64, else in fp32.

    Raises:
        ShapeError: if the weights are no matrix, or there are none.
        DataError: if a weight is not finite, saying which.

    Example:
        >>> grid = find_grid(torch.tensor([[-1.0, 0.5, 2.0], [0.0, 0.0, 0.0]]), QuantSpec(bits=2))
        >>> grid.scale.tolist(), grid.zero.tolist()
        ([[1.0], [1.0]], [[1.0], [0.0]])
    """
    # TASK 30.3 (2 points)
    # `check_weights` refuses, `groups_of` cuts rows into groups, `absmax_scale` and `range_scale` know the
    # formulas, `usable` mends a scale of 0. What is left: which zero belongs to which kind, and one row of scales
    # for each row of the matrix, also when all weights share one.
    raise NotImplementedError("task 30.3")


def pack_plane(codes: Tensor, width: int) -> Tensor:
    """One plane: the parts of a row laid over each other.

    Args:
        codes: (..., I) uint8 below 2^width.
        width: 1, 2, 4 or 8.

    Returns:
        (..., J) uint8, J = ceil(I width / 8).

    Example:
        >>> pack_plane(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
        [49, 2]
    """
    # TASK 30.4 (2 points)
    # A byte holds 8 / width codes. They are not neighbours: cut the row into so many equal parts (fill up with
    # zeros at its end) and lay the parts over each other, the first in the lowest bits.
    raise NotImplementedError("task 30.4")


def signed_codes(blocks: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight farthest from zero becomes the lowest level, code 0; zero is code n_levels / 2.

    The scale takes the *sign* of that weight, turned: it is used to the end, and the other side has one level less.
    Codes are found with the scale before it is rounded to fp16.

    Args:
        blocks: (n, 32) float32.
        n_levels: 16 or 32.

    Returns:
        scale (n,) float32, and codes (n, 32) uint8; a weight is about scale (code - n_levels / 2).

    Source:
        ggml, `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref`: half is added and the fraction cut.

    Example:
        >>> scale, codes = signed_codes(np.array([[-1.0, 0.5, 4.0, 0.24]], dtype=np.float32), 16)
        >>> scale.tolist(), codes.tolist()
        ([-0.5], [[10, 7, 0, 8]])
    """
    # TASK 30.5 (2 points)
    # The weight farthest from zero, *with its sign*, over minus half the number of levels. `inverse` divides
    # without a crash. Add half the levels and a half, cut the fraction, and see to the one code that is too high.
    raise NotImplementedError("task 30.5")


def mixed_product(x: Tensor, weight_codes: Tensor, weight_scale: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """x W^T, outlier columns in full precision and all others in integers.

    The rows' scales are found without the outliers: that is the point. Weights of the outlier columns are those that
    are stored, taken back from eight bits.

    Args:
        x: (..., I) float.
        weight_codes: (O, I) int8.
        weight_scale: (O, 1).
        threshold: see `outlier_columns`; infinite makes no column an outlier.

    Returns:
        (..., O) in the format of x.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339, section 3.2, equation 8.

    Example:
        >>> weight_codes, weight_scale = quantize_rows(torch.tensor([[127.0, -127.0]]))
        >>> x = torch.tensor([[0.01, 50.0]])
        >>> [round(mixed_product(x, weight_codes, weight_scale, t).item(), 2) for t in (6.0, torch.inf)]
        [-6348.73, -6350.0]
    """
    # TASK 30.6 (2 points)
    # Set the outlier columns of x to zero before anything is rounded: then `int8_product` finds the scales of the
    # rest. What was left out is an ordinary product of a few columns with the same columns of the weights, taken
    # back from their codes.
    raise NotImplementedError("task 30.6")


def scale_down(sums: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """sums mantissa 2^-(31 + shift), rounded to whole numbers, halves up: one product, one addition, one shift.

    Args:
        sums: (..., O) int32.
        mantissa, shift: (O,) int64, as `fixed_point` gives them; a shift of at least -30.

    Returns:
        (..., O) int64.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 2.2; theirs rounds twice (once per product and shift) and may
        therefore differ by one.

    Example:
        >>> scale_down(torch.tensor([6, 7, -6, -7]), torch.tensor(2**30), torch.tensor(1)).tolist()
        [2, 2, -1, -2]
    """
    # TASK 30.7 (2 points)
    # 32 bits times 31 bits need 64. A shift to the right rounds down; add half of what is shifted away first.
    raise NotImplementedError("task 30.7")


def allocate_bits(
    rises: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], bits_per_weight: float
) -> dict[str, int]:
    """The bits for each layer with which the sum of the rises is least, within a budget.

    Rises of layers rounded together are taken to add up, which they do not exactly. Given that, the choice is the best
    there is: layer by layer, of all ways to spend so far those are kept that no other beats in both cost and rise.

    Args:
        rises: layer -> bits -> rise of the loss, as `sensitivity` gives them.
        sizes: layer -> number of weights.
        bits_per_weight: on average over all weights, at most; scales not counted.

    Returns:
        layer -> bits. Of equally good choices, the one with fewer bits.

    Raises:
        ConfigError: if not even the fewest bits everywhere fit into the budget.

    Source:
        The multiple-choice knapsack problem, solved by its undominated partial solutions (Nemhauser and Ullmann 1969).

    Example:
        >>> rises = {"a": {2: 5.0, 4: 1.0}, "b": {2: 2.0, 4: 1.5}, "c": {2: 3.0, 4: 0.0}}
        >>> allocate_bits(rises, {"a": 100, "b": 100, "c": 200}, bits_per_weight=3.0)
        {'a': 4, 'b': 4, 'c': 2}
    """
    # TASK 30.8 (3 points)
    # Keep a list of ways to serve the layers so far: what each costs in bits, by how much the loss rises, what it
    # chose. A new layer makes each way into as many as it has options. Throw away what is over the budget and
    # what another beats (`undominated`).
    raise NotImplementedError("task 30.8")
