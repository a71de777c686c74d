"""Scores for predicted classes: accuracy, and precision, recall and F1 per class, averaged either way.

Dimensions: N examples, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minillm.errors import ConfigError, DataError

AVERAGES = ("micro", "macro", "none")


class Scores(NamedTuple):
    """Three numbers, or three (K,) arrays for average "none"."""

    precision: float | np.ndarray
    recall: float | np.ndarray
    f1: float | np.ndarray


def accuracy(predicted: Sequence[int] | np.ndarray, target: Sequence[int] | np.ndarray) -> float:
    """Share of the examples whose predicted class is the right one.

    Args:
        predicted: (N,) class ids.
        target: (N,) class ids, N at least 1.

    Returns:
        0 .. 1.

    Raises:
        DataError: if the lengths differ or there is no example.

    Example:
        >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
        0.75
    """
    predicted, target = _checked(predicted, target)
    return float((predicted == target).mean())


def confusion_matrix(
    predicted: Sequence[int] | np.ndarray, target: Sequence[int] | np.ndarray, n_classes: int
) -> np.ndarray:
    """How often class i was taken for class j.

    Args:
        predicted: (N,) class ids 0 .. K-1.
        target: (N,) class ids 0 .. K-1, N at least 1.
        n_classes: K.

    Returns:
        (K, K) int64; rows are the true classes, columns the predicted ones.

    Raises:
        DataError: if the lengths differ, there is no example, or an id is outside 0 .. K-1.

    Example:
        >>> confusion_matrix([0, 1, 1], [0, 0, 1], n_classes=2)
        array([[1, 1],
               [0, 1]])
    """
    predicted, target = _checked(predicted, target)
    for name, ids in (("predicted", predicted), ("target", target)):
        if ids.min() < 0 or ids.max() >= n_classes:
            raise DataError(f"{name} has classes from {ids.min()} to {ids.max()}, expected 0 to {n_classes - 1}")
    return np.bincount(target * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def precision_recall_f1(
    predicted: Sequence[int] | np.ndarray,
    target: Sequence[int] | np.ndarray,
    n_classes: int,
    average: str = "macro",
) -> Scores:
    """Precision: right among those called c. Recall: found among those that are c. F1: 2 P R / (P + R).

    A quotient without denominator (a class never predicted, or never there) is 0 and counts in the macro average.

    Args:
        predicted: (N,) class ids 0 .. K-1.
        target: (N,) class ids 0 .. K-1, N at least 1.
        n_classes: K; for two classes and only one of interest take average "none" and its entry.
        average: "none" gives (K,) arrays; "macro" their plain means (the F1 too is the mean of the classes' F1);
            "micro" counts all classes together, which with one class per example makes all three the accuracy.

    Returns:
        precision, recall, f1.

    Raises:
        ConfigError: if the average is unknown.
        DataError: as `confusion_matrix`.

    Source:
        van Rijsbergen 1979, Information Retrieval, chapter 7.

    Example:
        >>> precision_recall_f1([0, 1, 1], [0, 0, 1], n_classes=2)
        Scores(precision=0.75, recall=0.75, f1=0.6666666666666666)
    """
    if average not in AVERAGES:
        raise ConfigError(f"average must be one of {', '.join(AVERAGES)}, not {average!r}")
    confusion = confusion_matrix(predicted, target, n_classes)       # (K, K)
    n_right = np.diag(confusion)                                     # (K,)
    n_called, n_there = confusion.sum(axis=0), confusion.sum(axis=1)
    if average == "micro":
        n_right, n_called, n_there = n_right.sum(), n_called.sum(), n_there.sum()
    scores = _quotient(n_right, n_called), _quotient(n_right, n_there), _quotient(2 * n_right, n_called + n_there)
    if average == "none":
        return Scores(*scores)
    return Scores(*(float(np.mean(score)) for score in scores))


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where there is nothing below."""
    return np.where(below > 0, above / np.maximum(below, 1), 0.0)


def _checked(
    predicted: Sequence[int] | np.ndarray, target: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    predicted, target = np.asarray(predicted), np.asarray(target)
    if predicted.shape != target.shape or predicted.ndim != 1 or predicted.size == 0:
        raise DataError(
            f"predicted has shape {predicted.shape} and target {target.shape}; expected two equal lengths of at least 1"
        )
    return predicted, target
