"""Chapter 06, Neural n-grams: fill in the holes (16 points).

`minillm course test 06` tests this file, `minillm course test 06 6.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections.abc import Callable

import numpy as np

from minillm.data.contexts import check_sequence
from minillm.errors import ConfigError, ShapeError
from minillm.models.neural_ngram_by_hand import LossOfOne, Weights, forward
from minillm.nn.by_hand import check_targets, tanh_backward


def contexts_before(token_ids: np.ndarray, n_before: int, end_of_text_id: int) -> np.ndarray:
    """For each id of a packed text, the `n_before` ids before it, the nearest last.

    Documents follow one another, each with the end-of-text id behind it, and none looks into the one before: places
    before the beginning of the id's own document hold the end-of-text id. The end-of-text id itself is the last id of
    its document, with that document's ids before it.

    Args:
        token_ids: (N,) integers; N may be 0.
        n_before: T, at least 0.
        end_of_text_id: what stands behind each document; the last one may lack it.

    Returns:
        (N, T) int64.

    Raises:
        DataError: if the ids are not a single sequence of integers.
        ConfigError: if n_before is negative.

    Example:
        >>> contexts_before(np.array([5, 6, 7, 0, 8]), 2, end_of_text_id=0).tolist()
        [[0, 0], [0, 5], [5, 6], [6, 7], [0, 0]]
    """
    # TASK 6.1 (3 points)
    # First for each place the place where its document begins: write each beginning down where it is, 0
    # elsewhere, and let `np.maximum.accumulate` carry it on. Then all the places before, as one array of shape
    # (N, T): the column of places minus T, ..., 2, 1. Where such a place lies before the beginning, the end-of-
    # text id stands.
    raise NotImplementedError("task 6.1")


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
    # TASK 6.2 (3 points)
    # -log p[target] is the logarithm of the sum minus the target's own score, both after the subtraction. The
    # derivative is p with 1 taken away in one place of each row; do not forget that the loss is a mean.
    raise NotImplementedError("task 6.2")


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
    # TASK 6.3 (2 points)
    # Let the shapes lead you: of `gradient` (B, d_out), `x` (B, d_in) and `weight` (d_out, d_in) there is one
    # product that gives (B, d_in) and one that gives (d_out, d_in). Which index is summed over in each, and why?
    raise NotImplementedError("task 6.3")


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
    # TASK 6.4 (2 points)
    # `table[token_ids] += gradient` reads first and writes afterwards: where an id stands twice, one of the two
    # is lost. NumPy's `add.at` goes one by one.
    raise NotImplementedError("task 6.4")


def loss_and_gradients(weights: Weights, contexts: np.ndarray, targets: np.ndarray) -> tuple[float, Weights]:
    """The mean loss of the examples, and its derivative by every number of the model: back-propagation.

    `forward` gives the vectors x, the hidden units and the scores. From the loss backwards: `softmax_cross_entropy`
    gives the derivative by the scores; `affine_backward` of the output layer those by its weight, its bias and the
    hidden units; `tanh_backward` and `affine_backward` of the hidden layer the next, down to x. Where there are direct
    connections, x acts on the scores on two ways, and its derivatives are added. x is T vectors side by side;
    `embedding_backward` brings each back to the row it was copied from.

    Args:
        weights: see `initial_weights`; they are not changed.
        contexts: (B, T) integers 0 .. V-1, the nearest id last; B at least 1.
        targets: (B,) integers 0 .. V-1.

    Returns:
        nats per example, and a derivative for each weight under the same names, in the same shapes.

    Raises:
        ShapeError, DataError: as `softmax_cross_entropy`.

    Source:
        Bengio et al. 2003, section 3.1, "backward/update phase"; there for one example at a time.
    """
    # TASK 6.5 (4 points)
    # Write the forward pass down as a list of steps, and go through it from the end. Each backward function needs
    # what its step was given (x for the hidden layer, the hidden units for the output layer) and returns the
    # derivative for the step before. An embedding's derivative has the shape (B, T, C) again before it is brought
    # back.
    raise NotImplementedError("task 6.5")


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
    # TASK 6.6 (2 points)
    # `np.ndindex(values.shape)` goes through all places of an array of any shape. Change a copy, not the array:
    # the next number must find all others as they were.
    raise NotImplementedError("task 6.6")
