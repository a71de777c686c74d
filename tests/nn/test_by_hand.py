"""Layers by hand against torch's automatic differentiation, and finite differences where the derivative is known."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.nn.by_hand import (
    affine,
    affine_backward,
    embedding_backward,
    finite_differences,
    softmax_cross_entropy,
    tanh_backward,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def leaf(array):
    return torch.from_numpy(array).requires_grad_()


@pytest.mark.parametrize("with_bias", [True, False])
def test_affine_is_torchs_linear(rng, with_bias):
    x, weight, bias = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)), rng.standard_normal(5)
    expected = F.linear(*map(torch.from_numpy, (x, weight, bias) if with_bias else (x, weight)))
    np.testing.assert_allclose(affine(x, weight, bias if with_bias else None), expected.numpy(), rtol=1e-12)


def test_a_chain_of_all_layers_against_autograd(rng):
    ids, targets = rng.integers(6, size=(7, 2)), rng.integers(4, size=7)
    table, weight, bias = rng.standard_normal((6, 3)), rng.standard_normal((4, 6)), rng.standard_normal(4)
    leaves = [leaf(array) for array in (table, weight, bias)]
    rows = F.embedding(torch.from_numpy(ids), leaves[0]).flatten(1)
    expected = F.cross_entropy(torch.tanh(F.linear(rows, *leaves[1:])), torch.from_numpy(targets))
    expected.backward()
    x = table[ids].reshape(7, 6)
    activated = np.tanh(affine(x, weight, bias))
    loss, gradient = softmax_cross_entropy(activated, targets)
    by_x, by_weight, by_bias = affine_backward(tanh_backward(gradient, activated), x, weight)
    by_table = embedding_backward(by_x.reshape(7, 2, 3), ids, 6)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip((by_table, by_weight, by_bias), leaves, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_number_formats_are_kept(rng, dtype):
    x, weight = rng.standard_normal((4, 3)).astype(dtype), rng.standard_normal((5, 3)).astype(dtype)
    gradient = rng.standard_normal((4, 5)).astype(dtype)
    made = [affine(x, weight), *affine_backward(gradient, x, weight), tanh_backward(x, x)]
    made += [embedding_backward(x, np.arange(4), 6), softmax_cross_entropy(x, np.zeros(4, int))[1]]
    assert {one.dtype for one in made} == {np.dtype(dtype)}


def test_targets_that_do_not_fit():
    with pytest.raises(ShapeError, match="targets"):
        softmax_cross_entropy(np.zeros((2, 3)), np.array([0]))
    with pytest.raises(DataError, match="empty"):
        softmax_cross_entropy(np.zeros((0, 3)), np.array([], int))
    with pytest.raises(DataError, match="0 to 2"):
        softmax_cross_entropy(np.zeros((2, 3)), np.array([0, 3]))


def test_differences_of_a_function_whose_derivative_is_known(rng):
    values = rng.standard_normal((2, 3))
    found = finite_differences(lambda x: float(np.sin(x).sum() + x[0, 0] * x[1, 2]), values)
    expected = np.cos(values)
    expected[0, 0] += values[1, 2]
    expected[1, 2] += values[0, 0]
    np.testing.assert_allclose(found, expected, atol=2e-10)


def test_differences_are_exact_for_a_parabola_and_wrong_by_the_square_of_the_step_for_a_cube():
    for step in (0.5, 0.25):
        assert finite_differences(lambda x: float(x[0] ** 2), np.array([3.0]), step)[0] == 6.0
        assert finite_differences(lambda x: float(x[0] ** 3), np.array([1.0]), step)[0] == 3 + step**2


def test_differences_of_one_number_and_of_none():
    assert finite_differences(lambda x: float(x**2), np.array(2.0), 0.5).shape == ()
    assert finite_differences(lambda x: 1.0, np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("step", [0.0, -1e-5, math.nan])
def test_a_step_that_leads_nowhere(step):
    with pytest.raises(ConfigError, match="above 0"):
        finite_differences(lambda x: float(x.sum()), np.zeros(2), step)


def test_single_precision_is_refused():
    with pytest.raises(ShapeError, match="float64"):
        finite_differences(lambda x: float(x.sum()), np.zeros(2, np.float32))
