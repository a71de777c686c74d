"""Layers with their gradients written out, in NumPy: what automatic differentiation does for us everywhere else.

Each backward function is given the derivative of the loss by what its layer put out and returns those by what it took
in. Together they are back-propagation; `finite_differences` tells whether they are right, knowing nothing about them.

Dimensions: B examples, V vocabulary, C width of a vector, d_in and d_out widths of an affine map.

Source: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", Nature 323.
"""

from collections.abc import Callable

import numpy as np

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.shapes import check_shape


def affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x @ weight^T + bias, row by row.

    Args:
        x: (B, d_in).
        weight: (d_out, d_in).
        bias: (d_out,) or None.

    Returns:
        (B, d_out).

    Example:
        >>> affine(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [3.0, 1.0]]), np.array([0.0, 10.0])).tolist()
        [[1.0, 15.0]]
    """
    product = x @ weight.T                                         # (B, d_out)
    return product if bias is None else product + bias             # (B, d_out)


def affine_backward(
    gradient: np.ndarray, x: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the derivatives by the output of `affine` to those by its three inputs.

    Output o of example b is sum_i weight[o, i] x[b, i] + bias[o]. So a weight acts through one output of every example,
    an input through every output of one example, and a bias like a weight whose input is always 1.

    Args:
        gradient: (B, d_out), derivative of the loss by each output.
        x: (B, d_in), what the forward pass was given.
        weight: (d_out, d_in).

    Returns:
        derivatives by x (B, d_in), by weight (d_out, d_in) and by bias (d_out,), summed over the examples where they
        share a number. Nothing is divided by B: a loss that is a mean has done that already.

    Example:
        >>> for one in affine_backward(np.array([[1.0, 2.0]]), np.array([[5.0]]), np.array([[3.0], [4.0]])):
        ...     print(one.tolist())
        [[11.0]]
        [[5.0], [10.0]]
        [1.0, 2.0]
    """
    return gradient @ weight, gradient.T @ x, gradient.sum(axis=0)


def tanh_backward(gradient: np.ndarray, activated: np.ndarray) -> np.ndarray:
    """From the derivative by tanh(a) to that by a; the derivative of tanh is 1 - tanh^2.

    Args:
        gradient: any shape, derivative of the loss by tanh(a).
        activated: the same shape, tanh(a) itself, which the forward pass has computed.

    Returns:
        the same shape.

    Example:
        >>> tanh_backward(np.array([2.0, 2.0]), np.array([0.0, 0.5])).tolist()
        [2.0, 1.5]
    """
    return gradient * (1.0 - activated**2)


def embedding_backward(gradient: np.ndarray, token_ids: np.ndarray, n_rows: int) -> np.ndarray:
    """From the derivative by the looked-up rows of a table to that by the table.

    Looking up copies a row to every place where its id stands. What the copies do to the loss adds up; a row that
    nobody looked up does nothing.

    Args:
        gradient: (..., C), derivative of the loss by the vector at each place.
        token_ids: (...) integers 0 .. n_rows - 1, the id at each place; the same id may stand at many.
        n_rows: rows V of the table.

    Returns:
        (V, C), of the gradient's dtype.

    Example:
        >>> embedding_backward(np.array([[1.0], [10.0], [100.0]]), np.array([2, 0, 2]), 3).tolist()
        [[10.0], [0.0], [101.0]]
    """
    table = np.zeros((n_rows, gradient.shape[-1]), gradient.dtype)  # (V, C)
    np.add.at(table, token_ids, gradient)
    return table


def softmax_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean surprise of the targets in nats, and its derivative by every score.

        p = exp(logits) / sum(exp(logits)),   loss = mean of -log p[target],   derivative = (p - 1[target]) / B

    where 1[target] is 1 at the target and 0 elsewhere. The largest score of each row is subtracted first, which changes
    nothing but keeps the exponentials within range.

    Args:
        logits: (B, V) scores, B at least 1, sizes of 1e4 and more are fine.
        targets: (B,) integers 0 .. V-1.

    Returns:
        the loss, and the derivative (B, V), of the logits' dtype; each of its rows sums to 0.

    Raises:
        ShapeError: if the two do not belong together.
        DataError: if there is no example, or a target is outside the vocabulary.

    Source:
        Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".

    Example:
        >>> loss, gradient = softmax_cross_entropy(np.log([[0.25, 0.75], [0.5, 0.5]]), np.array([1, 0]))
        >>> round(loss, 4), gradient.round(12).tolist()
        (0.4904, [[0.125, -0.125], [-0.25, 0.25]])
    """
    check_targets(logits, targets)
    rows = np.arange(len(targets))
    shifted = logits - logits.max(axis=1, keepdims=True)           # (B, V)
    exponentials = np.exp(shifted)                                 # (B, V)
    totals = exponentials.sum(axis=1)                              # (B,)
    losses = np.log(totals) - shifted[rows, targets]               # (B,)
    gradient = exponentials / totals[:, None]                      # (B, V)
    gradient[rows, targets] -= 1.0
    return float(losses.mean()), gradient / len(targets)


def check_targets(logits: np.ndarray, targets: np.ndarray) -> None:
    """Check that each row of scores has one target, and that it is in the vocabulary.

    Raises:
        ShapeError: if the shapes disagree.
        DataError: if there is no row, or a target is outside.
    """
    sizes: dict[str, int] = {}
    check_shape("logits", logits, "B V", sizes)
    check_shape("targets", targets, "B", sizes)
    if len(targets) == 0:
        raise DataError("a mean loss needs at least one example; the batch is empty")
    if targets.min() < 0 or targets.max() >= sizes["V"]:
        raise DataError(
            f"targets run from {targets.min()} to {targets.max()}, the vocabulary has ids 0 to {sizes['V'] - 1}; "
            "encode the text with the tokenizer that the model was made for"
        )


def finite_differences(
    function: Callable[[np.ndarray], float], values: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """The derivative of a function by each of its numbers, by trying: twice as many calls as there are numbers.

        derivative by x = (function(x + step) - function(x - step)) / (2 step), all other numbers as they are

    Args:
        function: takes an array like `values` and returns a number.
        values: any shape, float64; where to take the derivative. It is the same after the call.
        step: how far to go, above 0. The formula is wrong by about step^2 times the third derivative, and rounding adds
            about 1e-16 / step times the function's size: near 1e-5 the two are equally small.

    Returns:
        the shape of `values`, float64.

    Raises:
        ConfigError: if the step is not above 0.
        ShapeError: if the values are not float64, in which rounding would drown the differences.

    Example:
        >>> finite_differences(lambda x: x[0] ** 2 * x[1], np.array([3.0, 5.0]), step=0.5).tolist()
        [30.0, 9.0]
    """
    if not step > 0:
        raise ConfigError(f"step is {step}, expected a number above 0, such as 1e-5")
    if values.dtype != np.float64:
        raise ShapeError(f"values are {values.dtype}, expected float64; convert them with .astype(np.float64)")
    gradient = np.zeros(values.shape)
    for place in np.ndindex(values.shape):
        above, below = values.copy(), values.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (function(above) - function(below)) / (2 * step)
    return gradient
