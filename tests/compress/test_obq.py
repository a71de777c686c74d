"""OBS and OBQ: each step against least squares, elimination against inverting anew, rows against every rounding."""

import pytest
import torch

from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, spread
from minillm.compress.obq import best_rounding, eliminate, mend, obq, obq_row, output_error
from minillm.errors import ConfigError, ShapeError


def layer(seed, n_rows=3, n_columns=6, n_positions=40):
    """A matrix and the products of inputs that are alike, in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_positions, n_columns, generator=generator, dtype=torch.float64)
    inputs = inputs + 0.7 * inputs.roll(1, 1) + 0.5 * inputs.mean(1, keepdim=True)
    weight = torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64)
    return weight, inputs, inputs.T @ inputs


@pytest.mark.parametrize("seed", range(4))
def test_mending_is_least_squares_with_one_weight_held_fast(seed):
    weight, inputs, hessian = layer(seed)
    index, value = seed + 1, torch.tensor(0.25, dtype=torch.float64)
    new, error = mend(weight[0], index, value, hessian.inverse())
    others = [i for i in range(6) if i != index]
    wanted = inputs @ weight[0] - inputs[:, index] * value         # what the others have to make
    best = torch.linalg.lstsq(inputs[:, others], wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(new[others], best)
    assert new[index] == value
    torch.testing.assert_close(error, (inputs @ (new - weight[0])).square().sum())


def test_elimination_is_inverting_what_is_left():
    _, _, hessian = layer(0)
    inverse, left = hessian.inverse(), list(range(6))
    for index in (3, 0, 5, 1):
        inverse = eliminate(inverse, index)
        left.remove(index)
        expected = torch.zeros_like(hessian)
        expected[torch.tensor(left)[:, None], torch.tensor(left)] = hessian[left][:, left].inverse()
        torch.testing.assert_close(inverse, expected)


def test_a_mended_row_is_rounded_and_its_error_is_the_sum_of_the_steps():
    weight, _, hessian = layer(1)
    grid = find_grid(weight, QuantSpec(bits=3))
    scales, zeros = spread(grid, 6)
    for greedy in (True, False):
        for row, scale, zero in zip(weight, scales, zeros, strict=True):
            new, error = obq_row(row, hessian, scale, zero, 8, greedy)
            codes = new / scale + zero
            torch.testing.assert_close(codes, codes.round())
            assert codes.round().min() >= 0 and codes.round().max() <= 7
            torch.testing.assert_close(error, output_error(new - row, hessian))


def test_nothing_beats_the_best_of_all_roundings_and_mending_comes_nearer_to_it():
    totals = {"nearest": 0.0, "greedy": 0.0, "left to right": 0.0, "best": 0.0}
    for seed in range(40):
        weight, _, hessian = layer(seed)
        grid = find_grid(weight, QuantSpec(bits=2))
        scales, zeros = spread(grid, 6)
        errors = {
            "nearest": output_error(round_to_grid(weight, grid) - weight, hessian),
            "greedy": output_error(obq(weight, hessian, grid) - weight, hessian),
            "left to right": output_error(obq(weight, hessian, grid, greedy=False) - weight, hessian),
        }
        rows = zip(weight, scales, zeros, strict=True)
        errors["best"] = torch.stack([best_rounding(row, hessian, scale, zero, 4)[1] for row, scale, zero in rows])
        for name, error in errors.items():
            assert bool((error >= errors["best"] - 1e-9).all()), name
            totals[name] += error.sum().item()
    assert totals["nearest"] > 1.2 * totals["left to right"] > 1.2 * totals["best"]
    assert totals["nearest"] > 1.1 * totals["greedy"]


def test_independent_inputs_leave_nothing_to_mend():
    weight, _, hessian = layer(2)
    grid = find_grid(weight, QuantSpec(bits=3))
    assert torch.equal(obq(weight, hessian.diagonal().diag(), grid), round_to_grid(weight, grid))


def test_what_cannot_be_done_is_refused():
    weight, _, hessian = layer(3)
    with pytest.raises(ShapeError, match=r"\(3, 6\).*\(5, 5\)"):
        obq(weight, hessian[:5, :5], find_grid(weight, QuantSpec()))
    long = torch.zeros(11)
    with pytest.raises(ConfigError, match="4,194,304 roundings"):
        best_rounding(long, torch.eye(11), torch.ones(11), torch.zeros(11), 4)
