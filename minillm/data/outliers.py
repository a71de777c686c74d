"""Numbers that lie far from the others: by mean and deviation, by median and deviation, by quartiles.

Every function takes one number per document (its length, its share of digits, ...) and says something about each.
"""

import math

import numpy as np

from minillm.errors import ConfigError, DataError

MAD_OF_A_NORMAL = 0.6744897501960817  # the median of |x| when x is normal with deviation 1


def check_values(values: np.ndarray, least: int = 1) -> np.ndarray:
    """The values as a one-dimensional float64 array of finite numbers, at least `least` of them.

    Raises:
        DataError: if they are something else; missing values (NaN) have their own module, `minillm.data.series`.
    """
    try:
        checked = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected a list of numbers, but {error}") from error
    if checked.ndim != 1 or len(checked) < least:
        raise DataError(f"expected at least {least} number(s) in one dimension, got an array of shape {checked.shape}")
    if not np.isfinite(checked).all():
        place = int(np.flatnonzero(~np.isfinite(checked))[0])
        raise DataError(f"value {place} is {checked[place]}: fill or drop what is missing first (minillm.data.series)")
    return checked


def z_scores(values: np.ndarray, sample: bool = False) -> np.ndarray:
    """How many standard deviations each value lies above the mean.

    z_i = (x_i - mean) / s. Where all values are equal, every score is 0.

    Args:
        values: (n,) finite numbers, n >= 1.
        sample: divide the squares by n - 1 (deviation of a sample) instead of n (of a population); needs n >= 2.

    Returns:
        (n,) float64.

    Raises:
        DataError: if there are too few values, or one is not finite.

    Example:
        >>> z_scores([1.0, 2.0, 3.0]).round(3).tolist()
        [-1.225, 0.0, 1.225]
    """
    values = check_values(values, least=2 if sample else 1)
    return _divided(values - values.mean(), values.std(ddof=1 if sample else 0))


def largest_z_score(n_values: int, sample: bool = False) -> float:
    """The largest z-score that any value among `n_values` can have, whatever the values are.

    If one value stands d above the mean, the others together stand d below it, and their squares sum to at least
    d^2 / (n - 1), when all are equal. So the variance is at least d^2 / (n - 1), and z at most sqrt(n - 1); with the
    deviation of a sample, which is sqrt(n / (n - 1)) larger, at most (n - 1) / sqrt(n).

    Args:
        n_values: at least 1 (at least 2 for a sample).
        sample: which deviation, as in `z_scores`.

    Raises:
        ConfigError: if there are too few values.

    Source:
        Shiffler 1988, "Maximum Z Scores and Outliers", The American Statistician 42(1).

    Example:
        >>> largest_z_score(10)
        3.0
    """
    if n_values < (2 if sample else 1):
        raise ConfigError(f"n_values must be at least {2 if sample else 1}, not {n_values}")
    return (n_values - 1) / math.sqrt(n_values) if sample else math.sqrt(n_values - 1)


def robust_z_scores(values: np.ndarray) -> np.ndarray:
    """Scores by the median and the median distance from it, which half of the values could not move.

    r_i = 0.6745 (x_i - median) / MAD, where MAD is the median of |x_i - median|. The factor makes the scores of normal
    numbers agree with z-scores. If more than half of the values are equal, MAD is 0: then the values at the median
    score 0 and all others plus or minus infinity.

    Args:
        values: (n,) finite numbers, n >= 1.

    Returns:
        (n,) float64.

    Raises:
        DataError: if there is no value, or one is not finite.

    Source:
        Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers"; they call a value with |r| > 3.5 an outlier.

    Example:
        >>> robust_z_scores([1.0, 2.0, 3.0, 4.0, 100.0]).round(3).tolist()
        [-1.349, -0.674, 0.0, 0.674, 65.426]
    """
    values = check_values(values)
    distances = values - np.median(values)
    spread = np.median(np.abs(distances))
    if spread == 0:
        return np.where(distances == 0, 0.0, np.copysign(np.inf, distances))
    return MAD_OF_A_NORMAL * distances / spread


def quartile_fences(values: np.ndarray, width: float = 1.5) -> tuple[float, float]:
    """The interval outside which a value is an outlier: the middle half, widened by `width` of its length on each side.

    (q1 - width (q3 - q1), q3 + width (q3 - q1)), where a quartile between two values is interpolated linearly.

    Args:
        values: (n,) finite numbers, n >= 1.
        width: 0 or more.

    Returns:
        (lower, upper).

    Raises:
        DataError: if there is no value, or one is not finite.
        ConfigError: if the width is negative.

    Source:
        Tukey 1977, "Exploratory Data Analysis".

    Example:
        >>> quartile_fences([10, 12, 12, 13, 12, 100])
        (10.875, 13.875)
    """
    if not width >= 0:
        raise ConfigError(f"width must be 0 or more, not {width}")
    lower, upper = np.quantile(check_values(values), [0.25, 0.75])
    return float(lower - width * (upper - lower)), float(upper + width * (upper - lower))


def outside(values: np.ndarray, fences: tuple[float, float]) -> np.ndarray:
    """True where a value lies below the first or above the second number.

    Args:
        values: (n,) numbers.
        fences: (lower, upper); a value on a fence is inside.

    Returns:
        (n,) bool.

    Example:
        >>> outside([10, 12, 12, 13, 12, 100], (10.875, 13.875)).tolist()
        [True, False, False, False, False, True]
    """
    values = np.asarray(values, dtype=np.float64)
    return (values < fences[0]) | (values > fences[1])


def _divided(distances: np.ndarray, deviation: float) -> np.ndarray:
    if np.all(distances == distances[0]):
        return np.zeros_like(distances)
    return distances / deviation
