"""What GPTQ needs to know about a layer's inputs: their products, and the factor of the inverse.

Dimensions: I columns of a weight matrix, which is the width of the layer's input; N positions of text.
"""

import torch
from torch import Tensor

from minillm.errors import DataError
from minillm.surgery import InputStatistics

MORE = 10.0  # times as much damping after a factor that failed
MOST = 1.0  # damping above which the Hessian is all but forgotten


def products_of(statistics: InputStatistics, name: str = "the layer") -> Tensor:
    """The Hessian of a layer that was watched: the sum of x x^T over all positions.

    The Hessian of the squared error would be twice that, and the authors' program divides by N; neither changes what is
    rounded to what.

    Args:
        statistics: of an `ActivationRecorder`.
        name: of the layer, for the messages.

    Returns:
        (I, I).

    Raises:
        DataError: if the layer was given nothing, products were not recorded, or one is not finite.
    """
    if statistics.n_rows == 0 or statistics.products is None:
        raise DataError(
            f"{name} saw {statistics.n_rows} positions and has no products of its inputs; run some text through the "
            "model while an ActivationRecorder with products is open"
        )
    check_products(statistics.products, name)
    return statistics.products


def check_products(hessian: Tensor, name: str = "the layer") -> None:
    """Refuse products of inputs that are not finite.

    Raises:
        DataError: naming the first column.
    """
    if not bool((finite := torch.isfinite(hessian)).all()):
        column = int((~finite).any(0).nonzero()[0])
        raise DataError(
            f"the products of input {column} of {name} are not finite: the text that calibrates makes activations "
            "overflow or NaN; look at the layers before, or record in float32"
        )


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
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))  # (I, I)
        upper = torch.linalg.cholesky(inverse, upper=True)         # (I, I)
        if bool(torch.isfinite(upper).all()):
            return upper
    except torch.linalg.LinAlgError:
        pass                                                       # the same message as for what is not finite
    raise DataError(
        f"the Hessian {tuple(hessian.shape)} is not positive definite; give more text to calibrate with, or more "
        "damping"
    )


def damped_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """`inverse_factor` of H plus a share of its mean on the diagonal; ten times the share as often as it fails.

    Columns whose input was always 0 get a 1 on the diagonal: nothing is known about them, and nothing mends them.

    Args:
        hessian: (I, I), X^T X.
        damping: the share to begin with; after 0 comes 0.0001.

    Returns:
        U (I, I) and the share that was enough.

    Raises:
        DataError: if a share of 1 is not enough, or a number is not finite.

    Example:
        >>> damped_factor(torch.ones(2, 2), 0.0)[1]
        0.0001
    """
    check_products(hessian)
    dead = hessian.diagonal() == 0                                 # (I,)
    mean = torch.where(dead, 1.0, hessian.diagonal()).mean()
    while True:
        damped = hessian.clone()                                   # (I, I)
        damped.diagonal().add_(dead.to(hessian.dtype) + damping * mean)
        try:
            return inverse_factor(damped), damping
        except DataError:
            damping = max(MORE * damping, 1e-4)
            if damping > MOST:
                raise


def expected_ratio(hessian: Tensor) -> float:
    """By how much GPTQ changes the outputs, over how much rounding to nearest does: sum of U_ii^-2 over tr H.

    Both sums are over the columns. Rounding to nearest leaves in each an error of the same size, and the outputs change
    by H_ii times its square. With GPTQ they change by U_ii^-2 times it: the part of input i that the inputs right of it
    do not predict. Holds for scales that are the same, for errors that are spread evenly, and on average.

    Args:
        hessian: (I, I), symmetric and positive definite.

    Returns:
        above 0, at most 1.

    Source:
        Ours; the terms are those of Frantar et al. 2023, arXiv:2210.17323, eq. (2) in the order of their section 3.3.

    Example:
        >>> round(expected_ratio(torch.tensor([[2.0, 1.0], [1.0, 1.0]])), 3), expected_ratio(torch.eye(3))
        (0.667, 1.0)
    """
    return (inverse_factor(hessian).diagonal().pow(-2).sum() / hessian.trace()).item()


def ratio_of(factor: Tensor, diagonal: Tensor, damping: float) -> float:
    """`expected_ratio` of a damped Hessian whose factor is at hand; columns without any input do not count.

    Args:
        factor: (I, I), U.
        diagonal: (I,), of the Hessian without damping, in the same order.
        damping: the share that was added.

    Returns:
        above 0, at most 1; 1 if no column has input.
    """
    live = diagonal > 0                                            # (I,)
    if not bool(live.any()):
        return 1.0
    return (factor.diagonal()[live].pow(-2).sum() / ((1 + damping) * diagonal.sum())).item()
