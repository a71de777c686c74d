"""Grids: scales and codes those of torch's and of plain arithmetic, by every convention; groups that are special."""

import itertools
import math

import pytest
import torch

from minillm.compress.grid import (
    CONVENTIONS,
    QuantSpec,
    absmax_scale,
    dequantize,
    find_grid,
    quantize,
    round_column,
    round_to_grid,
    stored,
)
from minillm.errors import ConfigError, DataError, ShapeError

SPECS = [
    QuantSpec(bits, group, symmetric, convention)
    for bits, group in itertools.product((2, 3, 4, 5, 8), (0, -1, 16, 7, 1, 99))
    for symmetric, convention in [(False, "textbook"), *((True, name) for name in CONVENTIONS)]
]


def matrix(n_rows=5, n_columns=37, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, n_columns, generator=generator, dtype=dtype) * 0.3 + 0.05


def by_hand(weight, spec):
    """Codes and values, weight by weight, in Python's own arithmetic."""
    rows = weight.tolist()
    codes, values = [[0] * len(row) for row in rows], [[0.0] * len(row) for row in rows]
    places = [[(i, j) for j in range(len(row))] for i, row in enumerate(rows)]
    if spec.group_size == -1:
        groups = [[place for row in places for place in row]]
    else:
        width = spec.group_size or len(rows[0])
        groups = [row[start : start + width] for row in places for start in range(0, len(row), width)]
    top = 2**spec.bits - 1
    for group in groups:
        weights = [rows[i][j] for i, j in group]
        largest = max(weights, key=abs)
        if not spec.symmetric:
            scale = (max(weights + [0]) - min(weights + [0])) / top
            zero = round(-min(weights + [0]) / scale)
        else:
            zero = 2 ** (spec.bits - 1)
            scale = {
                "textbook": abs(largest) / (zero - 1),
                "full_range": 2 * abs(largest) / top,
                "ggml": -largest / zero,
            }[spec.convention]
        for i, j in group:
            codes[i][j] = min(max(round(rows[i][j] / scale) + zero, 0), top)
            values[i][j] = scale * (codes[i][j] - zero)
    return codes, values


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_codes_and_values_are_those_counted_by_hand(spec):
    weight = matrix()
    grid = find_grid(weight, spec)
    codes, values = by_hand(weight, spec)
    assert quantize(weight, grid).tolist() == codes
    assert torch.allclose(round_to_grid(weight, grid), torch.tensor(values, dtype=torch.float64), atol=1e-12)
    assert grid.scale.shape == grid.zero.shape == (5, spec.n_groups(37))


@pytest.mark.parametrize("spec", [QuantSpec(8), QuantSpec(4), QuantSpec(3), QuantSpec(4, symmetric=True)], ids=str)
def test_torch_rounds_the_same_where_it_is_given_the_grid(spec):
    weight = matrix(6, 50, dtype=torch.float32)
    grid = find_grid(weight, spec)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, grid.scale[:, 0].contiguous(), grid.zero[:, 0].int(), 0, 0, spec.n_levels - 1
    )
    # torch multiplies by 1 / scale where we divide: a weight on the edge of two steps may go either way, none does here
    assert torch.equal(round_to_grid(weight, grid), theirs)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_scales_of_torchs_observer_are_ours(bits):
    weight = matrix(6, 50, dtype=torch.float32)
    from torch.ao.quantization.observer import PerChannelMinMaxObserver

    for symmetric, convention in [(False, "textbook"), (True, "full_range")]:
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        observer = PerChannelMinMaxObserver(dtype=torch.quint8, qscheme=scheme, quant_min=0, quant_max=2**bits - 1)
        observer(weight)
        scale, zero = observer.calculate_qparams()
        grid = find_grid(weight, QuantSpec(bits, symmetric=symmetric, convention=convention))
        assert torch.allclose(grid.scale[:, 0], scale, rtol=1e-6)
        if not symmetric:  # of an unsigned symmetric grid the observer's zero is always 128
            assert torch.equal(grid.zero[:, 0], zero.float())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_no_weight_is_further_off_than_half_a_step_unless_its_convention_cuts_it(spec):
    weight = matrix(seed=1)
    grid = find_grid(weight, spec)
    width = spec.width(37)
    steps = grid.scale.abs().repeat_interleave(width, 1)[:, :37]
    allowed = steps * (1.0 if spec.convention == "ggml" else 0.5)  # the end opposite to the largest lacks one step
    off = (round_to_grid(weight, grid) - weight).abs()
    if spec.symmetric is False:  # a rounded zero may push an end half a step outside
        allowed = steps
    assert bool((off <= allowed + 1e-12).all())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rounding_twice_is_rounding_once(spec):
    weight = matrix(seed=2)
    grid = find_grid(weight, spec)
    once = round_to_grid(weight, grid)
    assert torch.equal(round_to_grid(once, grid), once)
    assert bool((quantize(torch.zeros_like(weight), grid).double() == grid.zero[:, :1]).all()) or grid.zero.shape[1] > 1
    assert not round_to_grid(torch.zeros_like(weight), grid).any()  # zero is always met


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_columns_one_at_a_time_make_the_same_matrix(spec):
    weight = matrix(seed=3)
    grid, width = find_grid(weight, spec), spec.width(37)
    for j in (0, 6, 7, 36):
        column = round_column(weight[:, j], grid.scale[:, j // width], grid.zero[:, j // width], spec.n_levels)
        assert torch.equal(column, round_to_grid(weight, grid)[:, j])


def test_more_levels_and_smaller_groups_are_nearer():
    weight = matrix(40, 256, seed=4)

    def error(spec):
        return (round_to_grid(weight, find_grid(weight, spec)) - weight).square().sum()

    errors = [error(QuantSpec(bits)) for bits in range(2, 9)]
    assert all(fine < coarse / 2 for coarse, fine in itertools.pairwise(errors))
    errors = [error(QuantSpec(3, group)) for group in (-1, 0, 32, 8)]
    assert errors == sorted(errors, reverse=True)


def test_halves_go_to_the_even_step():
    column = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert round_column(column, torch.ones(5), torch.full((5,), 8.0), 16).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]


def test_the_three_conventions_differ_by_what_their_names_say():
    group = torch.tensor([3.0, -4.0])
    assert [absmax_scale(group, 3, name).item() for name in CONVENTIONS] == pytest.approx([4 / 3, 4 / 3.5, 1.0])
    assert absmax_scale(torch.tensor([4.0, -3.0]), 3, "ggml").item() == -1.0
    weight = torch.tensor([[4.0, -3.0]])
    assert quantize(weight, find_grid(weight, QuantSpec(3, symmetric=True, convention="ggml"))).tolist() == [[0, 7]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 3.0, -0.7, 1e-44, -1e-40, 3e38])
def test_groups_of_one_value_and_groups_of_one_weight_have_a_usable_scale(value, symmetric):
    for convention in CONVENTIONS if symmetric else ("textbook",):
        for group in (0, 1, -1):
            weight = torch.full((3, 4), value)
            weight[1] = 0.0
            spec = QuantSpec(4, group, symmetric, convention)
            grid = find_grid(weight, spec)
            assert bool((grid.scale.isfinite() & (grid.scale != 0) & grid.zero.isfinite()).all())
            back = round_to_grid(weight, grid)
            tolerance = 0.07 if convention == "full_range" else 1e-5
            assert torch.allclose(back, weight, rtol=tolerance, atol=1e-38)


def test_a_range_that_fp32_cannot_hold_is_no_problem():
    weight = torch.tensor([[3e38, -3e38, 1e38]])
    grid = find_grid(weight, QuantSpec(4))
    assert grid.scale.item() == pytest.approx(6e38 / 15, rel=1e-6)
    assert torch.isfinite(round_to_grid(weight, grid)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_sixteen_bits_are_taken_as_fp32(dtype):
    weight = matrix(dtype=torch.float32).to(dtype)
    grid = find_grid(weight, QuantSpec(4, 16))
    assert grid.scale.dtype == torch.float32
    assert torch.equal(quantize(weight, grid), quantize(weight.float(), find_grid(weight.float(), QuantSpec(4, 16))))


def test_stored_scales_are_numbers_of_sixteen_bits_and_none_is_lost():
    weight = matrix(dtype=torch.float32)
    weight[0], weight[1] = weight[0] * 1e-9, weight[1] * 1e4
    for convention in CONVENTIONS:
        grid = stored(find_grid(weight, QuantSpec(4, 8, True, convention)))
        assert torch.equal(grid.scale.half().float(), grid.scale)
        assert bool((grid.scale != 0).all())
        assert (dequantize(quantize(weight, grid), grid) - weight)[0].abs().max() < 1e-8
    with pytest.raises(DataError, match="65504"):
        stored(find_grid(torch.full((1, 2), 1e6), QuantSpec(2)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(bad):
    weight = matrix()
    weight[2, 5] = bad
    for call in (lambda: find_grid(weight, QuantSpec()), lambda: quantize(weight, find_grid(matrix(), QuantSpec()))):
        with pytest.raises(DataError, match="row 2, column 5"):
            call()


def test_what_is_no_matrix_is_refused():
    for shape in [(3,), (0, 4), (4, 0), (2, 3, 4)]:
        with pytest.raises(ShapeError):
            find_grid(torch.zeros(shape), QuantSpec())
    grid = find_grid(matrix(), QuantSpec(group_size=16))
    with pytest.raises(ShapeError, match="groups"):
        quantize(matrix(n_columns=50), grid)
    with pytest.raises(ShapeError, match="rows"):
        quantize(matrix(n_rows=4), grid)
    with pytest.raises(ShapeError, match="rows"):
        dequantize(torch.zeros(4, 37, dtype=torch.uint8), grid)


@pytest.mark.parametrize(
    "setting",
    [
        {"bits": 1},
        {"bits": 9},
        {"bits": 4.0},
        {"bits": True},
        {"group_size": -2},
        {"group_size": 1.5},
        {"symmetric": True, "convention": "gptq"},
        {"convention": "ggml"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError):
        QuantSpec(**setting)
