"""Chapter 31, GPTQ: fill in the holes (17 points).

`minillm course test 31` tests this file, `minillm course test 31 31.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math

import torch
from torch import Tensor

from minillm.compress.awq import N_STEPS, input_scales, scaled_rounding
from minillm.compress.gptq import ColumnGrids, GPTQConfig, Rounded, blocks_of_columns
from minillm.compress.gptq_model import gptq_model
from minillm.compress.grid import QuantSpec, round_column
from minillm.compress.hessian import damped_factor, ratio_of
from minillm.compress.obq import check_hessian_shape, output_error
from minillm.errors import DataError
from minillm.models.gpt import GPT


def mend(row: Tensor, index: int, value: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Set one weight to a value, and move the others so that the outputs change as little as possible.

    Args:
        row: (..., I), weights.
        index: which one to set.
        value: (...), what to.
        inverse: (I, I), the inverse of the Hessian of the weights that may move; rows and columns of the others are 0.

    Returns:
        the new row (..., I), and by how much the outputs change (...).

    Source:
        Hassibi and Stork 1993, "Second order derivatives for network pruning: optimal brain surgeon", eq. (5), with
        `value` for their 0; in this form Frantar and Alistarh 2022, arXiv:2208.11580, eq. (7).

    Example:
        >>> inverse = torch.tensor([[2.0, 1.0], [1.0, 1.0]]).inverse()
        >>> new, error = mend(torch.tensor([0.5, 2.0]), 0, torch.tensor(0.0), inverse)
        >>> new.tolist(), error.item()
        ([0.0, 2.5], 0.25)
    """
    # TASK 31.1 (2 points)
    # The change is a multiple of one row of the inverse; which multiple is said by the weight that must get its
    # value. Set that weight exactly at the end. Rows may come one by one or many at a time, so index from the
    # right: row[..., index].
    raise NotImplementedError("task 31.1")


def eliminate(inverse: Tensor, index: int) -> Tensor:
    """The inverse Hessian of the weights that are left when one may no longer move.

    One step of Gauss: H without row and column `index`, inverted, without inverting anything.

    Args:
        inverse: (I, I).
        index: of the weight that is settled.

    Returns:
        (I, I), with zeros in that row and column.

    Source:
        Frantar and Alistarh 2022, arXiv:2208.11580, lemma 1.

    Example:
        >>> eliminate(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), 0).tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """
    # TASK 31.2 (2 points)
    # Subtract an outer product so that the row and the column of the settled weight vanish. Make them exactly 0,
    # not nearly.
    raise NotImplementedError("task 31.2")


def obq_row(
    row: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, n_levels: int, greedy: bool = True
) -> tuple[Tensor, Tensor]:
    """Round a row of weights one by one and mend the rest after each.

    Args:
        row: (I,), weights.
        hessian: (I, I), positive definite.
        scale, zero: (I,), the grid of each weight.
        n_levels: codes that there are.
        greedy: round next what costs least now; otherwise from left to right.

    Returns:
        the rounded row (I,), and by how much the outputs change.

    Source:
        Frantar and Alistarh 2022, arXiv:2208.11580, algorithm 3.

    Example:
        >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
        >>> for greedy in (True, False):
        ...     new, error = obq_row(torch.tensor([0.4, 2.3]), hessian, torch.ones(2), torch.zeros(2), 4, greedy)
        ...     print(new.tolist(), round(error.item(), 3))
        [1.0, 2.0] 0.45
        [0.0, 3.0] 0.25
    """
    # TASK 31.3 (2 points)
    # In each round: where would each weight go now, what would it cost (mend says how that is computed), which is
    # next? Only those that are left may be chosen. After mending, eliminate: otherwise the settled weights would
    # move again.
    raise NotImplementedError("task 31.3")


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with U^T U = H^-1. Row i of U is what elimination leaves when i columns are settled.

    Args:
        hessian: (I, I), symmetric and positive definite.

    Returns:
        (I, I); zeros below the diagonal.

    Raises:
        DataError: if the Hessian is not positive definite.

    Source:
        Frantar et al. 2023, arXiv:2210.17323, section 3.3, step 3.

    Example:
        >>> inverse_factor(torch.tensor([[2.0, 1.0], [1.0, 1.0]])).round(decimals=4).tolist()
        [[1.0, -1.0], [0.0, 1.0]]
    """
    # TASK 31.4 (2 points)
    # Of the four matrices that one gets from Cholesky by inverting and transposing, one is upper triangular and
    # has U^T U = H^-1. torch.linalg.cholesky takes upper=True, and raises torch.linalg.LinAlgError where it
    # fails.
    raise NotImplementedError("task 31.4")


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
    # TASK 31.5 (2 points)
    # Column i is block[i]. Row i of the factor holds what is to be subtracted from the columns that follow, for
    # an error of one times U_ii. Do not write into the block that was given.
    raise NotImplementedError("task 31.5")


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
    # TASK 31.6 (2 points)
    # blocks_of_columns says where blocks begin and end; ask the grids for each block when its turn comes, with
    # the weights as they are then. The errors of a block change what is behind it by a product with the rows of U
    # that belong to the block.
    raise NotImplementedError("task 31.6")


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
    # TASK 31.7 (3 points)
    # Weights, Hessian and grids must be in the same order. ColumnGrids is given the weights as they are and the
    # order. order.argsort() undoes an order. Neither weights nor Hessian of the caller may change.
    raise NotImplementedError("task 31.7")


def best_scales(
    weight: Tensor, size: Tensor, hessian: Tensor, spec: QuantSpec, n_steps: int = N_STEPS
) -> tuple[Tensor, float]:
    """The scales among those of alpha = 0, 1/n, ... 1 with which rounding changes the outputs least.

    Args:
        weight: (O, I); all matrices that read this input, one below the other.
        size: (I,), from which `input_scales` makes scales.
        hessian: (I, I), X^T X.
        spec: the grid.
        n_steps: n.

    Returns:
        the scales (I,), and alpha; 0 if no other is better.

    Source:
        Lin et al. 2023, arXiv:2306.00978, eq. (4) and (5). The authors' program compares outputs of the whole part of
        the block, for alpha below 1; here it is the outputs of the matrices themselves.
    """
    # TASK 31.8 (2 points)
    # n + 1 values of alpha, 0 and 1 among them. What counts is how much the outputs change, not the weights. When
    # two are equally good, keep the smaller alpha.
    raise NotImplementedError("task 31.8")
