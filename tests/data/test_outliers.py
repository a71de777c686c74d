"""Outliers and series against scipy, numpy's least squares and closed forms."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from minillm.data.outliers import largest_z_score, outside, quartile_fences, robust_z_scores, z_scores
from minillm.data.series import (
    drop_missing,
    fill_by_regression,
    fill_constant,
    fill_mean,
    fill_median,
    gaussian_smooth,
    interpolate_missing,
    moving_average,
)
from minillm.errors import ConfigError, DataError

SIX = [10, 12, 12, 13, 12, 100]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("sample", [False, True])
def test_z_scores_are_scipys(rng, sample):
    values = rng.normal(5, 3, 40)
    np.testing.assert_allclose(z_scores(values, sample), stats.zscore(values, ddof=int(sample)), rtol=1e-12)
    assert z_scores([7.1] * 5, sample).tolist() == [0.0] * 5


@pytest.mark.parametrize("sample", [False, True])
def test_no_z_score_is_above_the_bound_and_one_value_far_away_reaches_it(rng, sample):
    for n_values in (2, 3, 6, 10, 11):
        bound = largest_z_score(n_values, sample)
        for _ in range(50):
            assert np.abs(z_scores(rng.standard_cauchy(n_values), sample)).max() <= bound * (1 + 1e-12)
        assert z_scores([0.0] * (n_values - 1) + [1.0], sample).max() == pytest.approx(bound, rel=1e-12)


def test_the_copied_example_removes_nothing_and_the_robust_score_removes_one():
    assert z_scores(SIX).max() == pytest.approx(2.235, abs=5e-4) and largest_z_score(6) == math.sqrt(5)
    assert z_scores(SIX, sample=True).max() == pytest.approx(2.040, abs=5e-4)
    assert largest_z_score(6, sample=True) == pytest.approx(2.041, abs=5e-4)
    assert outside(SIX, quartile_fences(SIX)).tolist() == [True, False, False, False, False, True]
    assert (np.abs(robust_z_scores(SIX)) > 3.5).tolist() == [False] * 5 + [True]


def test_robust_scores_and_fences_are_scipys(rng):
    values = rng.standard_cauchy(31)
    spread = stats.median_abs_deviation(values, scale="normal")
    np.testing.assert_allclose(robust_z_scores(values), (values - np.median(values)) / spread, rtol=1e-12)
    lower, upper = quartile_fences(values, 2.0)
    middle = stats.iqr(values)
    assert (lower, upper) == pytest.approx(
        (np.percentile(values, 25) - 2 * middle, np.percentile(values, 75) + 2 * middle), rel=1e-12
    )
    assert robust_z_scores([1, 1, 1, 0, 5]).tolist() == [0, 0, 0, -math.inf, math.inf]


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, math.nan], [math.inf], ["a"], [1.0, None]])
def test_bad_values(bad):
    for function in (z_scores, robust_z_scores, quartile_fences):
        with pytest.raises(DataError):
            function(bad)


def test_bad_settings():
    with pytest.raises(DataError):
        z_scores([1.0], sample=True)
    for call in (
        lambda: largest_z_score(0), lambda: largest_z_score(1, sample=True), lambda: quartile_fences([1.0], -1),
        lambda: moving_average([1.0], 2), lambda: moving_average([1.0], 0), lambda: gaussian_smooth([1.0], 0),
        lambda: gaussian_smooth([1.0], 1, reach=0), lambda: fill_by_regression([1.0], [[1.0]], ridge=-1),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            call()


def test_filling(rng):
    values = rng.normal(size=12)
    holes = values.copy()
    holes[[0, 3, 4, 11]] = np.nan
    before = holes.copy()
    known = ~np.isnan(holes)
    assert drop_missing(holes).tolist() == values[known].tolist()
    for filled, constant in (
        (fill_constant(holes, 2.5), 2.5), (fill_mean(holes), np.nanmean(holes)),
        (fill_median(holes), np.nanmedian(holes)),
    ):  # fmt: skip
        np.testing.assert_allclose(filled, np.where(known, values, constant), rtol=1e-12)
    assert np.var(fill_mean(holes)) == pytest.approx(np.nanvar(holes) * known.sum() / 12, rel=1e-12)
    np.testing.assert_array_equal(holes, before)


def test_interpolation_by_hand():
    nan = math.nan
    got = interpolate_missing([nan, nan, 2.0, nan, nan, 5.0, nan, 1.0, nan])
    np.testing.assert_allclose(got, [2, 2, 2, 3, 4, 5, 3, 1, 1], rtol=1e-12)
    for function in (fill_mean, fill_median, interpolate_missing):
        with pytest.raises(DataError):
            function([nan, nan])
        with pytest.raises(DataError):
            function([math.inf, 1.0])


def test_regression_is_least_squares_with_a_free_constant(rng):
    features = rng.normal(size=(30, 3))
    values = features @ [1.0, -2.0, 0.5] + 7 + rng.normal(size=30)
    holes = np.where(np.arange(30) % 4 == 0, np.nan, values)
    known = ~np.isnan(holes)
    design = np.column_stack([features, np.ones(30)])
    for ridge in (0.0, 2.0):
        penalty = np.diag([ridge] * 3 + [0.0])
        weights = np.linalg.solve(design[known].T @ design[known] + penalty, design[known].T @ values[known])
        expected = np.where(known, values, design @ weights)
        np.testing.assert_allclose(fill_by_regression(holes, features, ridge), expected, rtol=1e-9)
    for bad in (features[:5], features[:, 0], np.full((30, 3), np.nan)):
        with pytest.raises(DataError):
            fill_by_regression(holes, bad)


@pytest.mark.parametrize("width", [1, 3, 7, 99])
def test_moving_average_by_slices(rng, width):
    values = rng.normal(size=11)
    expected = [values[max(0, i - width // 2) : i + width // 2 + 1].mean() for i in range(11)]
    np.testing.assert_allclose(moving_average(values, width), expected, rtol=1e-10)


@pytest.mark.parametrize("deviation", [0.4, 1.5, 30.0])
def test_gaussian_is_scipys_with_the_edges_made_whole(rng, deviation):
    values = rng.normal(size=25)
    reach = math.ceil(4 * deviation)

    def smooth(row):
        return ndimage.gaussian_filter1d(row, deviation, mode="constant", radius=reach)

    np.testing.assert_allclose(gaussian_smooth(values, deviation), smooth(values) / smooth(np.ones(25)), rtol=1e-9)
    np.testing.assert_allclose(gaussian_smooth([3.0] * 9, deviation), [3.0] * 9, rtol=1e-12)


def test_smoothing_edges():
    assert len(moving_average([], 3)) == len(gaussian_smooth([], 1.0)) == 0
    for function in (lambda row: moving_average(row, 3), lambda row: gaussian_smooth(row, 1.0)):
        assert function([4.0]).tolist() == [4.0]
        with pytest.raises(DataError):
            function([1.0, math.nan])
