"""Round one weight, mend the rest: the surgeon's step, and a row rounded by it weight after weight.

A linear layer is judged by its outputs on typical inputs. If a row w of its matrix becomes w + d, the outputs change by
X d in all, and the sum of squares of that is d H d^T with H = X^T X: the Hessian, up to the factor 2 which changes
nothing. Here every step is done by explicit elimination, slowly and in the open; `minillm.compress.gptq` gives the same
numbers fast.

Dimensions: O rows of a weight matrix, I columns, N positions of text, K levels that a weight may be rounded to.
"""

import torch
from torch import Tensor

from minillm.compress.grid import Grid, round_column, spread
from minillm.errors import ConfigError, ShapeError

MOST_ROUNDINGS = 1_000_000  # that `best_rounding` tries


def output_error(change: Tensor, hessian: Tensor) -> Tensor:
    """How much the outputs change: d H d^T of each row, the sum of squares over all positions.

    Args:
        change: (..., I), new weights minus old.
        hessian: (I, I), X^T X.

    Returns:
        (...).

    Example:
        >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
        >>> output_error(torch.tensor([[0.5, 0.0], [0.5, -0.5]]), hessian).tolist()
        [0.5, 0.25]
    """
    return ((change @ hessian) * change).sum(-1)


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
    gap = (row[..., index] - value) / inverse[index, index]        # (...)
    new = row - gap[..., None] * inverse[index]                    # (..., I)
    new[..., index] = value                                        # exactly, whatever rounding says
    return new, gap**2 * inverse[index, index]


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
    smaller = inverse - torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]  # (I, I)
    smaller[index] = 0.0
    smaller[:, index] = 0.0
    return smaller


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
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    left = list(range(len(row)))
    while left:
        rounded = round_column(row, scale, zero, n_levels)         # (I,)
        costs = (row - rounded)[left] ** 2 / inverse.diagonal()[left]
        index = left.pop(int(costs.argmin()) if greedy else 0)
        row, cost = mend(row, index, rounded[index], inverse)
        inverse, total = eliminate(inverse, index), total + cost
    return row, total


def obq(weight: Tensor, hessian: Tensor, grid: Grid, greedy: bool = True) -> Tensor:
    """Round each row of a matrix by `obq_row`; O I^3 operations, so for small ones.

    Args:
        weight: (O, I).
        hessian: (I, I), positive definite, in the number format of the weights.
        grid: of the weights.
        greedy: as in `obq_row`; every row then has an order of its own.

    Returns:
        (O, I).

    Raises:
        ShapeError: if Hessian and weights do not fit.
    """
    check_hessian_shape(weight, hessian)
    scales, zeros = spread(grid, weight.shape[1])                  # (O, I), (O, I)
    scales, zeros = scales.to(weight.dtype), zeros.to(weight.dtype)  # (O, I), (O, I)
    rows = [
        obq_row(row, hessian, scale, zero, grid.spec.n_levels, greedy)[0]
        for row, scale, zero in zip(weight, scales, zeros, strict=True)
    ]
    return torch.stack(rows)                                       # (O, I)


def best_rounding(row: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """The best of all roundings of a row, found by trying each.

    Args:
        row: (I,), weights; n_levels^I must not be above a million.
        hessian: (I, I).
        scale, zero: (I,), the grid of each weight.
        n_levels: codes that there are.

    Returns:
        the rounded row (I,), and by how much the outputs change.

    Raises:
        ConfigError: if there are too many.

    Example:
        >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
        >>> new, error = best_rounding(torch.tensor([0.4, 2.3]), hessian, torch.ones(2), torch.zeros(2), 4)
        >>> new.tolist(), round(error.item(), 3)
        ([0.0, 3.0], 0.25)
    """
    if n_levels ** len(row) > MOST_ROUNDINGS:
        raise ConfigError(
            f"{len(row)} weights with {n_levels} levels have {n_levels ** len(row):,} roundings; at most "
            f"{MOST_ROUNDINGS:,} are tried: take fewer weights or fewer bits"
        )
    codes = torch.cartesian_prod(*[torch.arange(n_levels)] * len(row)).view(-1, len(row))  # (K^I, I)
    roundings = scale * (codes - zero)                             # (K^I, I)
    errors = output_error(roundings - row, hessian)                # (K^I,)
    best = errors.argmin()
    return roundings[best], errors[best]


def check_hessian_shape(weight: Tensor, hessian: Tensor) -> None:
    """Check that a Hessian is that of a matrix.

    Raises:
        ShapeError: if it is not (I, I).
    """
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ShapeError(
            f"weights {tuple(weight.shape)} and a Hessian {tuple(hessian.shape)} were given; expected a matrix (O, I) "
            "and the products (I, I) of its inputs"
        )
