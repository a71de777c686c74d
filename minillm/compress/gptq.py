"""GPTQ: all rows of a matrix are rounded column by column, and what is right of a column mends what it broke.

`minillm.compress.obq` says what is computed. Three observations make it fast enough for large models. If all rows are
rounded in the same order, they share one inverse Hessian. What elimination leaves of it at each step is a row of one
Cholesky factor, so that there is nothing to eliminate. And a column needs the mending of earlier ones only when its
turn comes, so that far columns are mended a block at a time, by one matrix product.

Matrices lie here transposed, (I, O), so that column i is `left[i]`: on a CPU that is three times as fast.

Dimensions: O rows of a weight matrix, I columns, b columns of a block, n groups in a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.compress.grid import Grid, QuantSpec, find_grid, round_column, spread, stored
from minillm.compress.hessian import MOST, damped_factor, ratio_of
from minillm.compress.obq import check_hessian_shape
from minillm.errors import ConfigError

GROUPS = ("fresh", "reference", "static")


@dataclass(frozen=True)
class GPTQConfig:
    """How the columns are worked through.

    Attributes:
        block_size: columns that are rounded before those right of them are mended.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        activation_order: round first the columns whose inputs are largest, instead of from left to right.
        groups: from which weights the grid of a group is found. "fresh": as all mending so far has made them when the
            first of the group is reached. "reference": as they were at the begin of the block in which that happens,
            which is what the authors' program does, and with it most others; the same where blocks are no wider than
            groups. "static": as they were before everything; activation order needs this where a row has several
            groups.
        half_scales: whether scales are rounded to 16 bits, as a file keeps them, before they are used.

    Raises:
        ConfigError: on a setting out of range.
    """

    block_size: int = 128
    damping: float = 0.01
    activation_order: bool = False
    groups: str = "fresh"
    half_scales: bool = False

    def __post_init__(self):
        if isinstance(self.block_size, bool) or not isinstance(self.block_size, int) or self.block_size < 1:
            raise ConfigError(f"block_size={self.block_size!r}: give a number of columns, at least 1")
        if not 0.0 <= self.damping <= MOST:
            raise ConfigError(f"damping={self.damping!r}: give a share of the diagonal's mean from 0 to {MOST:g}")
        if self.groups not in GROUPS:
            raise ConfigError(f"groups={self.groups!r} is unknown; there are {', '.join(GROUPS)}")

    def check_order(self, spec: QuantSpec, n_columns: int) -> None:
        """Refuse an activation order through groups whose grids are found on the way.

        Raises:
            ConfigError: saying which groups would do.
        """
        if self.activation_order and self.groups != "static" and spec.n_groups(n_columns) > 1:
            raise ConfigError(
                f"groups={self.groups!r} with activation_order: the columns of a group are not reached one after the "
                "other; set groups='static', or a group size of 0"
            )


@dataclass(frozen=True)
class Rounded:
    """A matrix on a grid.

    Attributes:
        weight: (O, I), each number on its grid; `grid.quantize` gives its codes.
        grid: the grids that were used.
        error: by how much the outputs change, as the work itself added it up (with the damped Hessian).
        damping: what was needed in the end.
        expected: by how much less the outputs should change than by rounding to nearest, see `expected_ratio`.
    """

    weight: Tensor
    grid: Grid
    error: float
    damping: float
    expected: float


def round_block(block: Tensor, factor: Tensor, scales: Tensor, zeros: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """Round the columns of a block one after the other; after each, mend those of the block that are left.

    Args:
        block: (b, O), the columns; not changed.
        factor: (b, b), these rows and columns of U.
        scales, zeros: (b, O), the grid of each weight.
        n_levels: codes that there are.

    Returns:
        the rounded columns (b, O), and their errors over U_ii (b, O), with which the columns behind the block are
        mended. The sum of squares of these is by how much the outputs change.

    Source:
        Frantar et al. 2023, arXiv:2210.17323, algorithm 1, inner loop.

    Example:
        >>> columns, factor = torch.tensor([[0.4], [2.3]]), torch.tensor([[1.0, -1.0], [0.0, 1.0]])
        >>> rounded, errors = round_block(columns, factor, torch.ones(2, 1), torch.zeros(2, 1), 4)
        >>> rounded.tolist(), round(errors.square().sum().item(), 3)
        ([[0.0], [3.0]], 0.25)
    """
    block, rounded, errors = block.clone(), torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = round_column(block[i], scales[i], zeros[i], n_levels)
        errors[i] = (block[i] - rounded[i]) / factor[i, i]
        block[i + 1 :] -= torch.outer(factor[i, i + 1 :], errors[i])
    return rounded, errors


def blocks_of_columns(n_columns: int, config: GPTQConfig, group: int) -> list[tuple[int, int]]:
    """Begin and end of each block; with fresh groups none reaches past the begin of a group.

    Args:
        n_columns: I.
        config: block size, and when grids are found.
        group: columns that share a grid.

    Example:
        >>> blocks_of_columns(10, GPTQConfig(block_size=4), 6)
        [(0, 4), (4, 6), (6, 10)]
        >>> blocks_of_columns(10, GPTQConfig(block_size=4, groups="reference"), 6)
        [(0, 4), (4, 8), (8, 10)]
    """
    edges, begin = [], 0
    while begin < n_columns:
        end = min(begin + config.block_size, n_columns)
        if config.groups == "fresh":
            end = min(end, begin - begin % group + group)
        edges.append((begin, end))
        begin = end
    return edges


def grid_of(weight: Tensor, spec: QuantSpec, config: GPTQConfig) -> Grid:
    """`find_grid`, with scales in 16 bits if the config wants them."""
    grid = find_grid(weight, spec)
    return stored(grid) if config.half_scales else grid


class ColumnGrids:
    """The grid of each weight, column by column in the order of the work; found at first, or on the way.

    Args:
        weight: (O, I).
        spec: of the grid.
        config: when grids are found.
        order: (I,), which column comes when.

    Attributes:
        scales, zeros: (I, O).
    """

    def __init__(self, weight: Tensor, spec: QuantSpec, config: GPTQConfig, order: Tensor):
        self.spec, self.config, self.width = spec, config, spec.width(weight.shape[1])
        self.grid = grid_of(weight, spec, config)
        self.late = spec.n_groups(weight.shape[1]) > 1 and config.groups != "static"
        self.scales, self.zeros = (each.T[order] for each in spread(self.grid, weight.shape[1]))  # (I, O), (I, O)

    def of_block(self, left: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros of some columns, (end - begin, O) each; groups that begin there get their grids now."""
        spec = QuantSpec(self.spec.bits, 0, self.spec.symmetric, self.spec.convention)
        for start in range(begin + -begin % self.width, end, self.width) if self.late else ():
            group = slice(start, start + self.width)
            grid = grid_of(left[group].T, spec, self.config)
            self.scales[group], self.zeros[group] = grid.scale.T, grid.zero.T
        return self.scales[begin:end], self.zeros[begin:end]

    def result(self) -> Grid:
        """The grids that were used."""
        if not self.late:
            return self.grid
        return Grid(self.scales[:: self.width].T.contiguous(), self.zeros[:: self.width].T.contiguous(), self.spec)


def round_columns(left: Tensor, factor: Tensor, grids: ColumnGrids) -> tuple[Tensor, float]:
    """Round all columns, a block at a time; after each block, mend what is behind it by one matrix product.

    Args:
        left: (I, O), weights in the order of the work; not changed.
        factor: (I, I), U.
        grids: of these columns.

    Returns:
        the rounded columns (I, O), and by how much the outputs change.

    Source:
        Frantar et al. 2023, arXiv:2210.17323, algorithm 1, outer loop ("lazy batch updates", section 3.3, step 2).
    """
    left, rounded, error = left.clone(), torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        now, behind = slice(begin, end), slice(end, None)
        scales, zeros = grids.of_block(left, begin, end)           # (b, O), (b, O)
        rounded[now], errors = round_block(left[now], factor[now, now], scales, zeros, grids.spec.n_levels)
        left[behind] -= factor[now, behind].T @ errors
        error += errors.square().sum().item()
    return rounded, error


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, spec: QuantSpec, config: GPTQConfig | None = None) -> Rounded:
    """Round a matrix so that the layer's outputs change little.

    Args:
        weight: (O, I) float, finite; not changed.
        hessian: (I, I), X^T X over the positions of some typical text; not changed.
        spec: the grid.
        config: how to work; None is `GPTQConfig()`.

    Returns:
        the rounded matrix and its grid.

    Raises:
        ShapeError: if the Hessian is that of another matrix.
        ConfigError: if groups and activation order do not go together.
        DataError: if a number is not finite, or no damping makes the Hessian positive definite.

    Source:
        Frantar et al. 2023, arXiv:2210.17323, algorithm 1; activation order and static groups are options of the
        authors' program. It sets columns whose input was always 0 to 0; here they are rounded to nearest.

    Example:
        >>> weight, hessian = torch.tensor([[0.4, 2.3, 3.0]]), torch.tensor([[2.0, 1, 0], [1, 1, 0], [0, 0, 1]])
        >>> gptq(weight, hessian, QuantSpec(bits=2), GPTQConfig(damping=0.0)).weight.tolist()
        [[0.0, 3.0, 3.0]]
    """
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = torch.arange(len(hessian), device=hessian.device)      # (I,)
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)  # (I,)
        hessian = hessian[order][:, order]                         # (I, I)
    grids = ColumnGrids(weight, spec, config, order)
    factor, damping = damped_factor(hessian, config.damping)       # (I, I)
    left = weight.T[order].to(grids.scales.dtype)                  # (I, O)
    rounded, error = round_columns(left, factor.to(left.dtype), grids)
    undone = rounded[order.argsort()]                              # (I, O)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(undone.T.contiguous(), grids.result(), error, damping, expected)
