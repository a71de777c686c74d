"""A row of numbers with holes and noise: six ways to deal with missing values, two ways to smooth.

A missing value is NaN. The order of the numbers means something to `interpolate_missing` and to the smoothers only.
"""

import math

import numpy as np

from minillm.errors import ConfigError, DataError


def known_numbers(values: np.ndarray, least_known: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A float64 copy of the values and where they are known; at least `least_known` must be."""
    try:
        copy = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected a list of numbers, but {error}; write what is missing as NaN") from error
    if copy.ndim != 1:
        raise DataError(f"expected numbers in one dimension, got an array of shape {copy.shape}")
    if np.isinf(copy).any():
        raise DataError(f"value {int(np.flatnonzero(np.isinf(copy))[0])} is infinite; write what is missing as NaN")
    known = ~np.isnan(copy)
    if known.sum() < least_known:
        raise DataError(f"only {int(known.sum())} of {len(copy)} values are known, at least {least_known} are needed")
    return copy, known


def drop_missing(values: np.ndarray) -> np.ndarray:
    """The known values, in their order. What is said about them is said about documents that have a value at all.

    Args:
        values: (n,) numbers or NaN.

    Returns:
        (number of known values,) float64.

    Example:
        >>> drop_missing([1.0, np.nan, 3.0]).tolist()
        [1.0, 3.0]
    """
    numbers, known = known_numbers(values, least_known=0)
    return numbers[known]


def fill_constant(values: np.ndarray, constant: float) -> np.ndarray:
    """The values with `constant` wherever one is missing.

    Example:
        >>> fill_constant([1.0, np.nan, 3.0], 0).tolist()
        [1.0, 0.0, 3.0]
    """
    numbers, known = known_numbers(values, least_known=0)
    numbers[~known] = constant
    return numbers


def fill_mean(values: np.ndarray) -> np.ndarray:
    """The values with the mean of the known ones wherever one is missing; the mean stays, the variance shrinks.

    With k of n values known, the population variance becomes k/n of what it was.

    Raises:
        DataError: if no value is known.

    Example:
        >>> fill_mean([1.0, np.nan, 2.0, 6.0]).tolist()
        [1.0, 3.0, 2.0, 6.0]
    """
    numbers, known = known_numbers(values)
    numbers[~known] = numbers[known].mean()
    return numbers


def fill_median(values: np.ndarray) -> np.ndarray:
    """The values with the median of the known ones wherever one is missing; a single huge value does not move it.

    Raises:
        DataError: if no value is known.

    Example:
        >>> fill_median([1.0, np.nan, 2.0, 6.0]).tolist()
        [1.0, 2.0, 2.0, 6.0]
    """
    numbers, known = known_numbers(values)
    numbers[~known] = np.median(numbers[known])
    return numbers


def interpolate_missing(values: np.ndarray) -> np.ndarray:
    """The values with each hole bridged by a straight line between its two known neighbours.

    Between known values at places a < b, place i gets x_a + (x_b - x_a) (i - a) / (b - a). Before the first known value
    and after the last there is no line: these places get the nearest known value.

    Args:
        values: (n,) numbers or NaN, in an order that means something (time, place in a file).

    Returns:
        (n,) float64; the input stays as it is.

    Raises:
        DataError: if no value is known.

    Example:
        >>> interpolate_missing([np.nan, 1.0, np.nan, np.nan, 4.0]).tolist()
        [1.0, 1.0, 2.0, 3.0, 4.0]
    """
    numbers, known = known_numbers(values)
    places = np.arange(len(numbers))
    numbers[~known] = np.interp(places[~known], places[known], numbers[known])
    return numbers


def fill_by_regression(values: np.ndarray, features: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """The values with what a linear model of the features predicts wherever one is missing.

    The weights and the constant minimise, over the documents with a known value,
    sum (x_i - w . f_i - c)^2 + ridge |w|^2. The constant is not held back.

    Args:
        values: (n,) numbers or NaN.
        features: (n, k) numbers, none missing.
        ridge: 0 or more; above 0, features that follow from one another do no harm.

    Returns:
        (n,) float64; the known values unchanged.

    Raises:
        DataError: if no value is known, or the features have another shape or holes.
        ConfigError: if ridge is negative.

    Example:
        >>> fill_by_regression([2.0, 4.0, np.nan], [[1.0], [2.0], [5.0]]).round(6).tolist()
        [2.0, 4.0, 10.0]
    """
    if not ridge >= 0:
        raise ConfigError(f"ridge must be 0 or more, not {ridge}")
    numbers, known = known_numbers(values)
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) != len(numbers) or not np.isfinite(features).all():
        raise DataError(f"expected finite features of shape ({len(numbers)}, k), got {features.shape} or holes in them")
    feature_means, mean = features[known].mean(axis=0), numbers[known].mean()
    centred = np.vstack([features[known] - feature_means, math.sqrt(ridge) * np.eye(features.shape[1])])
    targets = np.concatenate([numbers[known] - mean, np.zeros(features.shape[1])])
    weights = np.linalg.lstsq(centred, targets, rcond=None)[0]
    numbers[~known] = mean + (features[~known] - feature_means) @ weights
    return numbers


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Each value replaced by the mean of the `width` values around it; at the ends by the mean of those that exist.

    Place i looks at places i - width // 2 to i + width // 2, both included, that lie in the row.

    Args:
        values: (n,) finite numbers.
        width: odd, 1 or more (even windows have no middle); it may be longer than the row.

    Returns:
        (n,) float64.

    Raises:
        ConfigError: if the width is even or below 1.
        DataError: if a value is missing.

    Example:
        >>> moving_average([1.0, 2.0, 6.0, 2.0], 3).tolist()
        [1.5, 3.0, 3.3333333333333335, 4.0]
    """
    if width < 1 or width % 2 == 0:
        raise ConfigError(f"width must be odd and at least 1, not {width}; an even window has no middle")
    return _weighted_average(values, np.ones(width))


def gaussian_smooth(values: np.ndarray, deviation: float, reach: float = 4.0) -> np.ndarray:
    """Each value replaced by a mean of its surroundings whose weights fall off like a bell: near ones count more.

    The weight at distance d is exp(-d^2 / (2 deviation^2)) up to d = ceil(reach * deviation) and 0 beyond. The
    weights of the neighbours that exist are made to sum to 1, so that a constant row stays constant up to both ends.

    Args:
        values: (n,) finite numbers.
        deviation: of the bell, in places, above 0.
        reach: where the bell is cut, in deviations, above 0.

    Returns:
        (n,) float64.

    Raises:
        ConfigError: if deviation or reach is not above 0.
        DataError: if a value is missing.

    Example:
        >>> gaussian_smooth([0.0, 0.0, 1.0, 0.0, 0.0], 0.5, reach=2).round(3).tolist()
        [0.0, 0.107, 0.787, 0.107, 0.0]
    """
    if not (0 < deviation < math.inf and 0 < reach < math.inf):
        raise ConfigError(f"deviation and reach must be above 0, not {deviation} and {reach}")
    furthest = math.ceil(reach * deviation)
    distances = np.arange(-furthest, furthest + 1)
    return _weighted_average(values, np.exp(-(distances**2) / (2 * deviation**2)))


def _weighted_average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums with symmetric weights of odd length around each place, over the weights that fall on the row."""
    numbers, known = known_numbers(values, least_known=0)
    if not known.all():
        raise DataError(f"{int((~known).sum())} of {len(numbers)} values are missing; fill them before smoothing")
    if len(numbers) == 0:
        return numbers
    half = len(weights) // 2
    kept = min(half, len(numbers) - 1)  # further than this there is no neighbour
    weights = weights[half - kept : half + kept + 1]
    sums = np.convolve(numbers, weights)[kept : kept + len(numbers)]
    totals = np.convolve(np.ones_like(numbers), weights)[kept : kept + len(numbers)]
    return sums / totals
