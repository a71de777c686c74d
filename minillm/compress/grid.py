"""Grids: the evenly spaced numbers that weights are rounded to, and how a group of weights gets its own.

A grid of b bits has 2^b codes q = 0, 1, ...; code q means scale (q - zero). The weights of a group, some neighbours in
a row of the matrix, share one scale and one zero. Where rows do not divide into groups, the last group of each is
shorter. Several conventions for the scale are in use; here each has a name (see `QuantSpec`).

Dimensions: O rows of a weight matrix, I columns, n groups in a row, g weights in a group.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.errors import ConfigError, DataError, ShapeError

CONVENTIONS = ("textbook", "full_range", "ggml")
HALF_MIN, HALF_MAX = 2.0**-24, 65504.0  # smallest and largest positive number in 16 bits


@dataclass(frozen=True)
class QuantSpec:
    """How weights are rounded.

    Attributes:
        bits: of a code, 2 to 8.
        group_size: neighbours in a row that share a scale; 0 means the whole row, -1 the whole matrix.
        symmetric: whether the grid has its zero in the middle, always code 2^(b-1). Otherwise it spans the group's
            smallest and largest weight, and zero.
        convention: the scale of a symmetric grid, where a is the largest absolute weight of the group. "textbook":
            a / (2^(b-1) - 1), so that both ends are reached and code 0 is not used. "full_range": a / ((2^b - 1) / 2),
            finer, but the largest positive weight is cut by half a step (torchao, and GPTQ's `sym`). "ggml": the
            weight of largest absolute value, with its sign, divided by -2^(b-1); it is met exactly, and the scale may
            be negative (Q4_0). An asymmetric grid has one convention only: (max - min) / (2^b - 1).

    Raises:
        ConfigError: on a setting out of range, or a convention that would have no effect.
    """

    bits: int = 4
    group_size: int = 0
    symmetric: bool = False
    convention: str = "textbook"

    def __post_init__(self):
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ConfigError(f"bits={self.bits!r}: a grid has 2 to 8 bits; for one bit see binary weights")
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < -1:
            raise ConfigError(f"group_size={self.group_size!r}: give a number of weights, 0 (row) or -1 (matrix)")
        if self.convention not in CONVENTIONS:
            raise ConfigError(f"convention={self.convention!r} is unknown; there are {', '.join(CONVENTIONS)}")
        if not self.symmetric and self.convention != "textbook":
            raise ConfigError(f"convention={self.convention!r} is about symmetric grids; set symmetric=True as well")

    @property
    def n_levels(self) -> int:
        """Codes that there are: 2^bits."""
        return 2**self.bits

    def width(self, n_columns: int) -> int:
        """Weights in a full group of a matrix with so many columns."""
        return n_columns if self.group_size < 1 else min(self.group_size, n_columns)

    def n_groups(self, n_columns: int) -> int:
        """Groups in a row, the last of which may be shorter.

        Example:
            >>> QuantSpec(group_size=32).n_groups(100), QuantSpec().n_groups(100)
            (4, 1)
        """
        return -(-n_columns // self.width(n_columns))


@dataclass(frozen=True)
class Grid:
    """The grids of a matrix.

    Attributes:
        scale: (O, n) float, finite and never 0; negative only with the convention "ggml".
        zero: (O, n) float, whole numbers: the code that means 0.
        spec: how they were found.
    """

    scale: Tensor
    zero: Tensor
    spec: QuantSpec


def absmax_scale(groups: Tensor, bits: int, convention: str = "textbook") -> Tensor:
    """Scales of symmetric grids, by one of three conventions; 0 for a group of zeros.

    Args:
        groups: (..., g) float.
        bits: 2 to 8.
        convention: see `QuantSpec`.

    Returns:
        (...) float.

    Source:
        "textbook": Dettmers et al. 2022, arXiv:2208.07339, section 2 (absmax quantization).

    Example:
        >>> group = torch.tensor([1.0, -2.0, 6.0])
        >>> [round(absmax_scale(group, 4, convention).item(), 4) for convention in CONVENTIONS]
        [0.8571, 0.8, -0.75]
    """
    if convention == "ggml":
        where = groups.abs().argmax(-1, keepdim=True)              # (..., 1)
        return groups.gather(-1, where).squeeze(-1) / -(2 ** (bits - 1))
    steps = 2 ** (bits - 1) - 1 if convention == "textbook" else (2**bits - 1) / 2
    return groups.abs().amax(-1) / steps


def range_scale(groups: Tensor, bits: int) -> Tensor:
    """Scales of asymmetric grids, from the smallest to the largest weight or zero; 0 for a group of zeros.

    Args:
        groups: (..., g) float.
        bits: 2 to 8.

    Returns:
        (...) float, not negative.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 3 (zero must be met exactly).

    Example:
        >>> range_scale(torch.tensor([-1.0, 0.5, 2.0]), 2).item(), range_scale(torch.tensor([3.0, 6.0]), 2).item()
        (1.0, 2.0)
    """
    low = groups.amin(-1).clamp(max=0.0)                           # (...)
    high = groups.amax(-1).clamp(min=0.0)                          # (...)
    n_steps = 2**bits - 1
    scale = (high - low) / n_steps
    return torch.where(scale.isinf(), high / n_steps - low / n_steps, scale)


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
    check_weights(weight)
    groups = groups_of(weight, spec)                               # (O, n, g)
    if spec.symmetric:
        scale = usable(absmax_scale(groups, spec.bits, spec.convention))  # (O, n)
        zero = torch.full_like(scale, 2 ** (spec.bits - 1))        # (O, n)
    else:
        scale = usable(range_scale(groups, spec.bits))             # (O, n)
        zero = (groups.amin(-1).clamp(max=0.0).abs() / scale).round()  # (O, n)
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


def check_weights(weight: Tensor) -> None:
    """Refuse what is no matrix of finite numbers.

    Raises:
        ShapeError: if it has not two dimensions, or no element.
        DataError: naming the first number that is not finite.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ShapeError(f"weights of shape {list(weight.shape)} were given; expected a matrix (O, I), not empty")
    if bool((finite := torch.isfinite(weight)).all()):
        return
    row, column = (~finite).nonzero()[0].tolist()
    raise DataError(
        f"{int((~finite).sum())} of {weight.numel()} weights are not finite, the first {weight[row, column].item()} in "
        f"row {row}, column {column}; it would spoil its group's scale: look for the step at which training broke"
    )


def groups_of(weight: Tensor, spec: QuantSpec) -> Tensor:
    """(O, I) as (O, n, g), what is missing in the last group being zero; as (1, 1, O I) if all share one grid."""
    weight = weight if weight.dtype == torch.float64 else weight.float()
    if spec.group_size == -1:
        return weight.reshape(1, 1, -1)
    n_rows, n_columns = weight.shape
    width = spec.width(n_columns)
    return F.pad(weight, (0, -n_columns % width)).view(n_rows, -1, width)


def usable(scale: Tensor) -> Tensor:
    """Scales without 0: 1 in its place, and the smallest normal number in place of what is smaller.

    Example:
        >>> usable(torch.tensor([0.0, -2.0, 1e-44])).tolist()
        [1.0, -2.0, 1.1754943508222875e-38]
    """
    smallest = torch.full_like(scale, torch.finfo(scale.dtype).tiny)
    return torch.where(scale == 0, 1.0, torch.copysign(torch.maximum(scale.abs(), smallest), scale))


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
    return ((values / scale).round() + zero).clamp(0, n_levels - 1)


def quantize(weight: Tensor, grid: Grid) -> Tensor:
    """Weights to codes.

    Args:
        weight: (O, I) float.
        grid: of this matrix, or of one with its shape.

    Returns:
        (O, I) uint8, 0 to 2^bits - 1.

    Raises:
        ShapeError: if the grid is that of another shape.
        DataError: if a weight is not finite.

    Example:
        >>> weight = torch.tensor([[-1.0, 0.4, 2.0]])
        >>> quantize(weight, find_grid(weight, QuantSpec(bits=2))).tolist()
        [[0, 1, 3]]
    """
    check_weights(weight)
    scale, zero = spread(grid, weight.shape[1])                    # (O, I), (O, I)
    if scale.shape != weight.shape:
        raise ShapeError(f"the grid has {len(scale)} rows, the weights have {len(weight)}")
    return codes_of(weight.to(scale.dtype), scale, zero, grid.spec.n_levels).to(torch.uint8)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """Codes to weights: scale (q - zero).

    Args:
        codes: (O, I) integers.
        grid: as in `quantize`.

    Returns:
        (O, I) in the number format of the grid.

    Raises:
        ShapeError: if the grid is that of another shape.

    Example:
        >>> grid = find_grid(torch.tensor([[-1.0, 0.4, 2.0]]), QuantSpec(bits=2))
        >>> dequantize(torch.tensor([[0, 1, 3]]), grid).tolist()
        [[-1.0, 0.0, 2.0]]
    """
    n_rows, n_columns = codes.shape
    check_groups(grid, n_columns)
    if len(grid.scale) != n_rows:
        raise ShapeError(f"the grid has {len(grid.scale)} rows, the codes have {n_rows}")
    width = grid.spec.width(n_columns)
    groups = F.pad(codes, (0, -n_columns % width)).view(n_rows, -1, width).to(grid.scale.dtype)  # (O, n, g)
    weight = groups.sub_(grid.zero[:, :, None]).mul_(grid.scale[:, :, None])  # in place: half the time
    return weight.view(n_rows, -1)[:, :n_columns]                  # (O, I)


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """Round to nearest (RTN): the weights as they come back from their codes.

    Args:
        weight: (O, I) float.
        grid: of this matrix.

    Returns:
        (O, I) in the number format of the grid.

    Example:
        >>> weight = torch.tensor([[-1.0, 0.4, 2.0]])
        >>> round_to_grid(weight, find_grid(weight, QuantSpec(bits=2))).tolist()
        [[-1.0, 0.0, 2.0]]
    """
    return dequantize(quantize(weight, grid), grid)


def round_column(column: Tensor, scale: Tensor, zero: Tensor, n_levels: int) -> Tensor:
    """One column on the grids of its rows: what GPTQ does between two updates.

    Args:
        column: (O,) float.
        scale, zero: (O,).
        n_levels: codes that there are.

    Returns:
        (O,).

    Example:
        >>> round_column(torch.tensor([0.4, 9.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), 4).tolist()
        [0.0, 4.0]
    """
    return scale * (codes_of(column, scale, zero, n_levels) - zero)


def spread(grid: Grid, n_columns: int) -> tuple[Tensor, Tensor]:
    """Scale and zero of every weight.

    Returns:
        (O, n_columns) and (O, n_columns).

    Raises:
        ShapeError: if the grid has another number of groups than so many columns have.
    """
    check_groups(grid, n_columns)
    if grid.scale.shape[1] == 1:
        return grid.scale.expand(-1, n_columns), grid.zero.expand(-1, n_columns)
    width = grid.spec.width(n_columns)
    each = [values.repeat_interleave(width, 1)[:, :n_columns] for values in (grid.scale, grid.zero)]
    return each[0], each[1]


def check_groups(grid: Grid, n_columns: int) -> None:
    """Refuse a grid with another number of groups than so many columns have."""
    if (given := grid.scale.shape[1]) != (expected := grid.spec.n_groups(n_columns)):
        raise ShapeError(f"the grid has {given} groups in a row; {n_columns} columns of {grid.spec} have {expected}")


def stored(grid: Grid) -> Grid:
    """The grid with its scales rounded to 16 bits, as a file keeps them. Find the codes with this one.

    A scale below 2^-24 becomes 2^-24, so that none is 0; its weights, all below 1e-5, lose what the raise costs.

    Raises:
        DataError: if a scale is above 65504, which would be infinite.

    Example:
        >>> stored(Grid(torch.tensor([[0.1], [1e-9]]), torch.zeros(2, 1), QuantSpec())).scale.tolist()
        [[0.0999755859375], [5.960464477539063e-08]]
    """
    size = grid.scale.abs()                                        # (O, n)
    if bool((size > HALF_MAX).any()):
        raise DataError(
            f"a scale is {size.max().item():g}, above {HALF_MAX:g} the largest in 16 bits; such weights are no "
            "result of training: look where they come from, or divide them first"
        )
    rounded = size.clamp(min=HALF_MIN).half().to(size.dtype)       # (O, n)
    return dataclasses.replace(grid, scale=torch.copysign(rounded, grid.scale))
