"""Chapter 30. Oracles: fractions of whole numbers, loops over single weights in numpy, and every choice there is."""

import itertools
import math
from fractions import Fraction

import numpy as np
import torch

from minillm.compress.activations import AffineRange
from minillm.compress.grid import Grid, QuantSpec
from minillm.course.grader import expect, expect_close, expect_equal, expect_error, normal, task
from minillm.errors import ConfigError, DataError, ShapeError

# --- 30.1 a range with a zero


def check_range(impl, low, high, bits, what):
    found = impl.affine_range(low, high, bits)
    n_steps, bottom, top = 2**bits - 1, min(low, 0.0), max(high, 0.0)
    expected = (top - bottom) / n_steps
    expect(isinstance(found, AffineRange), f"{what}: an AffineRange is expected, got {type(found).__name__}")
    expect_close(found.scale, expected, 1e-12, what=f"scale of {what}")
    nearest = min(range(-2, 2**bits + 2), key=lambda code: abs(bottom + code * expected))
    expect_equal(found.zero, nearest, what=f"zero of {what}")
    expect_equal(found.bits, bits, what=f"bits of {what}")


@task("30.1", cases=3)
def test_range_on_both_sides_of_zero(impl, rng):
    for bits in (2, 3, 5, 8):
        low, high = -float(rng.uniform(0.1, 7)), float(rng.uniform(0.1, 7))
        check_range(impl, low, high, bits, f"the range {low:.3f} to {high:.3f} in {bits} bits")
        check_range(impl, 1e5 * low, 1e5 * high, bits, "a range of large numbers")
        check_range(impl, -2e4, -1e4, bits, "a range of large numbers below zero")


@task("30.1", cases=2)
def test_range_that_does_not_hold_zero(impl, rng):
    low = float(rng.uniform(1, 3))
    for begin, end in ((low, low + 2.3), (-low - 1.7, -low), (low, low), (-low, -low), (0.0, low), (-low, 0.0)):
        found = impl.affine_range(begin, end, 6)
        expect(0 <= found.zero <= 63, f"the zero of {begin:.2f} to {end:.2f} is {found.zero}, no code of 6 bits")
        check_range(impl, begin, end, 6, f"the range {begin:.3f} to {end:.3f} in 6 bits")


@task("30.1")
def test_range_of_nothing_but_zero(impl, rng):
    for bits in (2, 8):
        expect_equal(impl.affine_range(0.0, 0.0, bits), AffineRange(1.0, 0, bits), what="the range from 0 to 0")
    expect_equal(impl.affine_range(-1.0, 254.0).zero, 1, what="the zero of -1 to 254 in 8 bits")


@task("30.1")
def test_range_refuses(impl, rng):
    nan, inf = math.nan, math.inf
    for low, high, bits in (
        (1.0, 0.5, 8),
        (nan, 1.0, 8),
        (0.0, nan, 8),
        (-inf, 1.0, 8),
        (0.0, inf, 8),
        (-inf, -inf, 8),
        (inf, inf, 8),
        (-1.0, 1.0, 1),
        (-1.0, 1.0, 9),
    ):
        with expect_error(ConfigError):
            impl.affine_range(low, high, bits)


# --- 30.2 codes


def codes_by_hand(values, scale, zero, n_levels):
    """With fractions; Python rounds a half to the even number."""
    values, scale, zero = (np.asarray(each, dtype=np.float64) for each in np.broadcast_arrays(values, scale, zero))
    pairs = zip(values.flat, scale.flat, zero.flat, strict=True)
    found = [min(max(round(Fraction(v) / Fraction(s)) + int(z), 0), n_levels - 1) for v, s, z in pairs]
    return torch.tensor(found, dtype=torch.float64).reshape(values.shape)


@task("30.2", cases=3)
def test_codes_of_matrices(impl, rng):
    for n_levels in (4, 8, 16, 256):
        values = normal(rng, 5, 7) * n_levels * 0.2
        scale, zero = normal(rng, 5, 1).abs() * 0.3 + 0.2, torch.from_numpy(rng.integers(0, n_levels, (5, 1))).double()
        expected = codes_by_hand(values, scale, zero, n_levels)
        expect_equal(impl.codes_of(values, scale, zero, n_levels), expected, what=f"codes of {n_levels} levels")


@task("30.2", cases=2)
def test_codes_of_halves(impl, rng):
    steps = torch.arange(-9.0, 9.0).double() + 0.5
    scale, zero = torch.tensor(0.75).double(), torch.tensor(int(rng.integers(4, 9))).double()
    expected = codes_by_hand(steps * 0.75, scale, zero, 16)
    expect_equal(impl.codes_of(steps * 0.75, scale, zero, 16), expected, what="codes of values halfway between two")


@task("30.2")
def test_codes_with_odd_zero_and_halves(impl, rng):
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    expected = codes_by_hand(values, 1.0, 3.0, 8)
    found = impl.codes_of(values, torch.tensor(1.0), torch.tensor(3.0), 8)
    expect_equal(found.double(), expected, what="halves are rounded before an odd zero is added")


@task("30.2")
def test_codes_of_far_values_negative_scales_and_single_numbers(impl, rng):
    values = torch.tensor([-1e6, -3.0, 0.0, 3.0, 1e6]).double()
    for n_levels, scale, zero in ((4, 1.0, 2.0), (16, -0.5, 8.0), (256, 0.01, 0.0), (8, 2.0, 7.0)):
        expected = codes_by_hand(values, scale, zero, n_levels)
        found = impl.codes_of(values, torch.tensor(scale).double(), torch.tensor(zero).double(), n_levels)
        expect_equal(found, expected, what=f"codes with scale {scale}, zero {zero:g}, {n_levels} levels")
    found = impl.codes_of(torch.tensor(1.4), torch.tensor(1.0), torch.tensor(1.0), 4)
    expect_equal(found.item(), 2.0, what="the code of a single number")


# --- 30.3 grids


def grid_by_hand(weight, spec):
    """Scale and zero of each group, weight by weight."""
    weight = weight.numpy()
    n_rows, n_columns = weight.shape
    width = {0: n_columns, -1: n_columns}.get(spec.group_size, spec.group_size)
    scales, zeros = [], []
    for row in range(n_rows):
        scales.append([])
        zeros.append([])
        for start in range(0, n_columns, width):
            group = weight.flatten() if spec.group_size == -1 else weight[row, start : start + width]
            numbers, top = [float(number) for number in group], 2**spec.bits - 1
            if spec.symmetric:
                farthest = max(numbers, key=abs)
                scale = {
                    "textbook": abs(farthest) / (2 ** (spec.bits - 1) - 1),
                    "full_range": 2 * abs(farthest) / top,
                    "ggml": -farthest / 2 ** (spec.bits - 1),
                }[spec.convention]
                zero = 2 ** (spec.bits - 1)
            else:
                low, high = min([*numbers, 0.0]), max([*numbers, 0.0])
                scale = (high - low) / top
                zero = round(Fraction(-low) / Fraction(scale)) if scale else 0
            scales[-1].append(scale or 1.0)
            zeros[-1].append(float(zero))
    return torch.tensor(scales, dtype=torch.float64), torch.tensor(zeros, dtype=torch.float64)


def check_grid(impl, weight, spec):
    found = impl.find_grid(weight, spec)
    scale, zero = grid_by_hand(weight, spec)
    expect(isinstance(found, Grid), f"a Grid is expected, got {type(found).__name__}")
    expect_equal(found.spec, spec, what="the spec of the grid")
    expect_close(found.scale, scale, 1e-9, what=f"scales of {tuple(weight.shape)} with {spec}")
    expect_equal(found.zero, zero, what=f"zeros of {tuple(weight.shape)} with {spec}")


@task("30.3", cases=2)
def test_grids_of_every_kind(impl, rng):
    for bits, group_size in itertools.product((2, 4, 8), (0, -1, 4)):
        weight = normal(rng, 5, 12) + 0.3
        check_grid(impl, weight, QuantSpec(bits, group_size))
        for convention in ("textbook", "full_range", "ggml"):
            check_grid(impl, weight, QuantSpec(bits, group_size, True, convention))


@task("30.3", cases=2)
def test_grids_of_groups_that_do_not_divide(impl, rng):
    weight = normal(rng, 4, 11)
    for symmetric in (False, True):
        check_grid(impl, weight, QuantSpec(3, 4, symmetric))
        check_grid(impl, weight, QuantSpec(3, 20, symmetric))
    check_grid(impl, weight.abs() + 1, QuantSpec(4, 4))
    check_grid(impl, -weight.abs() - 1, QuantSpec(4, 4))


@task("30.3")
def test_grids_of_zeros_and_single_weights(impl, rng):
    weight = normal(rng, 3, 8)
    weight[1] = 0.0
    weight[2, 4:] = 0.0
    symmetric = QuantSpec(4, 4, True), QuantSpec(4, 0, True, "ggml")
    for spec in (*symmetric, QuantSpec(4, 4), QuantSpec(2, 1), QuantSpec(2, -1)):
        check_grid(impl, weight, spec)
    for spec in (QuantSpec(4, -1), QuantSpec(4, -1, True)):
        check_grid(impl, torch.zeros(2, 3).double(), spec)


@task("30.3")
def test_grids_keep_to_single_precision_for_half(impl, rng):
    single, double = torch.float32, torch.float64
    for dtype, expected in ((torch.float16, single), (single, single), (double, double)):
        found = impl.find_grid(normal(rng, 3, 6).to(dtype), QuantSpec(4, 3))
        expect_equal(found.scale.dtype, expected, what=f"the format of scales for weights in {dtype}")


@task("30.3")
def test_grids_refuse(impl, rng):
    bad = normal(rng, 3, 4)
    bad[2, 1] = math.nan
    with expect_error(DataError):
        impl.find_grid(bad, QuantSpec())
    with expect_error(ShapeError):
        impl.find_grid(normal(rng, 5), QuantSpec())


# --- 30.4 packing


def bytes_by_hand(codes, width):
    """Bit by bit: code number i of a row of J bytes goes to byte i mod J, above i // J others."""
    rows = np.asarray(codes).reshape(-1, codes.shape[-1])
    n_bytes = math.ceil(rows.shape[1] * width / 8)
    packed = np.zeros((len(rows), n_bytes), dtype=np.int64)
    for row, column in np.ndindex(rows.shape):
        packed[row, column % n_bytes] += int(rows[row, column]) * 2 ** (column // n_bytes * width)
    return torch.from_numpy(packed).reshape(*codes.shape[:-1], n_bytes).to(torch.uint8)


@task("30.4", cases=3)
def test_planes_of_every_width(impl, rng):
    for width, n in itertools.product((1, 2, 4, 8), (1, 2, 5, 8, 9, 16, 19)):
        codes = torch.from_numpy(rng.integers(0, 2**width, (3, n))).to(torch.uint8)
        found = impl.pack_plane(codes, width)
        expect_equal(found, bytes_by_hand(codes, width), what=f"bytes of {n} codes of {width} bits")


@task("30.4")
def test_planes_of_other_shapes(impl, rng):
    for shape in ((6,), (2, 3, 10), (1, 1, 7)):
        codes = torch.from_numpy(rng.integers(0, 16, shape)).to(torch.uint8)
        expect_equal(impl.pack_plane(codes, 4), bytes_by_hand(codes, 4), what=f"bytes of codes of shape {shape}")


# --- 30.5 blocks as in Q4_0


def block_by_hand(block, n_levels):
    """One weight after the other, every step rounded to float32."""
    farthest = np.float32(0)
    for number in block:
        if abs(number) > abs(farthest):
            farthest = number
    scale = np.float32(farthest / np.float32(-(n_levels // 2)))
    inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
    shifted = [np.float32(np.float32(number * inverse) + np.float32(n_levels / 2 + 0.5)) for number in block]
    return scale, [min(int(number), n_levels - 1) for number in shifted]


def check_blocks(impl, blocks, n_levels, what):
    scale, codes = impl.signed_codes(blocks, n_levels)
    expected = [block_by_hand(block, n_levels) for block in blocks]
    scales = np.array([each for each, _ in expected], dtype=np.float32)
    expect_equal(np.asarray(scale), scales, what=f"scales of {what}")
    expect_equal(np.asarray(codes), np.array([each for _, each in expected], dtype=np.uint8), what=f"codes of {what}")


@task("30.5", cases=3)
def test_blocks_of_normal_weights(impl, rng):
    for n_levels, strength in itertools.product((16, 32), (0.02, 1.0, 300.0)):
        blocks = (rng.standard_normal((7, 32)) * strength).astype(np.float32)
        check_blocks(impl, blocks, n_levels, f"normal weights, {n_levels} levels")


@task("30.5", cases=2)
def test_blocks_whose_weights_lie_on_halves_and_ends(impl, rng):
    for n_levels in (16, 32):
        half = n_levels // 2
        blocks = rng.integers(-2 * half, 2 * half, (5, 32)).astype(np.float32) / 2
        blocks[:, 3] = [-half, half, -half, half, half]
        check_blocks(impl, blocks, n_levels, "weights on whole and half steps")
        both = np.zeros((2, 32), dtype=np.float32)
        both[0, [4, 9]], both[1, [4, 9]] = [2.5, -2.5], [-2.5, 2.5]
        check_blocks(impl, both, n_levels, "two weights equally far from zero (the first sets the sign)")


@task("30.5")
def test_blocks_of_zeros(impl, rng):
    blocks = rng.standard_normal((4, 32)).astype(np.float32)
    blocks[[0, 2]] = 0.0
    scale, codes = impl.signed_codes(blocks, 16)
    expect_equal(np.abs(np.asarray(scale)[[0, 2]]), np.zeros(2, dtype=np.float32), what="scales of zero blocks")
    expect_equal(np.asarray(codes)[[0, 2]], np.full((2, 32), 8, dtype=np.uint8), what="codes of zero blocks")


# --- 30.6 products of integers with outliers


def product_by_hand(x, codes, scale, threshold):
    """Columns and rows one by one, in float64."""
    rows = x.reshape(-1, x.shape[-1]).numpy()
    outliers = [column for column in range(rows.shape[1]) if any(abs(v) >= threshold for v in rows[:, column])]
    others = [column for column in range(rows.shape[1]) if column not in outliers]
    weights = codes.numpy().astype(np.float64)
    found = np.zeros((len(rows), len(weights)))
    for n, row in enumerate(rows):
        largest = max((abs(v) for v in row[others]), default=0.0)
        step = largest / 127 if largest > 0 else 1.0
        whole = np.array([round(v / step) for v in row[others]])
        for o, weight in enumerate(weights):
            found[n, o] = (whole @ weight[others] * step if others else 0.0) * scale[o, 0].item()
            found[n, o] += row[outliers] @ weight[outliers] * scale[o, 0].item()
    return torch.from_numpy(found).reshape(*x.shape[:-1], len(weights))


def inputs_of(rng, shape, n_out, columns=(), factor=9.0):
    x = normal(rng, *shape).clamp(-4, 4)
    for column in columns:
        row = tuple(int(rng.integers(0, n)) for n in shape[:-1])
        x[(*row, column)] = factor * (-1) ** column
    codes = torch.from_numpy(rng.integers(-127, 128, (n_out, shape[-1]))).to(torch.int8)
    return x, codes, normal(rng, n_out, 1).abs() * 0.01 + 0.001


@task("30.6", cases=3)
def test_products_with_outliers(impl, rng):
    for shape in ((6, 11), (2, 3, 9)):
        x, codes, scale = inputs_of(rng, shape, 5, columns=(2, 7))
        expected = product_by_hand(x, codes, scale, 6.0)
        expect_close(impl.mixed_product(x, codes, scale), expected, 1e-9, what=f"x of shape {shape} with two outliers")


@task("30.6", cases=2)
def test_products_at_and_without_the_threshold(impl, rng):
    x, codes, scale = inputs_of(rng, (5, 8), 7, columns=(3,), factor=6.0)
    expected = product_by_hand(x, codes, scale, 6.0)
    expect_close(impl.mixed_product(x, codes, scale), expected, 1e-9, what="a number of exactly 6")
    for threshold in (1.5, 0.5, math.inf):
        expected = product_by_hand(x, codes, scale, threshold)
        expect_close(impl.mixed_product(x, codes, scale, threshold), expected, 1e-9, what=f"threshold {threshold}")


@task("30.6")
def test_products_of_nothing_but_outliers_and_of_zeros(impl, rng):
    x, codes, scale = inputs_of(rng, (3, 4), 6)
    for inputs in (x.abs() + 6, torch.zeros(3, 4).double()):
        expected = product_by_hand(inputs, codes, scale, 6.0)
        expect_close(impl.mixed_product(inputs, codes, scale), expected, 1e-9, what="only outliers, or only zeros")


@task("30.6")
def test_products_in_single_precision(impl, rng):
    x, codes, scale = inputs_of(rng, (4, 10), 3, columns=(5,))
    x, scale = x.float(), scale.float()
    found = impl.mixed_product(x, codes, scale)
    expect_equal(found.dtype, torch.float32, what="the format of the result")
    expect_close(found.double(), product_by_hand(x.double(), codes, scale.double(), 6.0), 1e-3, what="x in float32")
    short = x.bfloat16()
    found = impl.mixed_product(short, codes, scale)
    expect_equal(found.dtype, torch.bfloat16, what="the format of the result for x in bfloat16")
    expected = product_by_hand(short.double(), codes, scale.double(), 6.0)
    expect_close(found.double(), expected, 0.02 * expected.abs().max().item(), what="x in bfloat16")


# --- 30.7 fixed-point numbers


def scaled_by_hand(sums, mantissa, shift):
    values = [
        (Fraction(total) * m / Fraction(2) ** (31 + s) + Fraction(1, 2)).__floor__()
        for total, m, s in zip(sums.tolist(), mantissa.tolist(), shift.tolist(), strict=True)
    ]
    return torch.tensor(values)


@task("30.7", cases=3)
def test_scaling_of_many_sums(impl, rng):
    n = 60
    for low, high in ((-(2**31), 2**31), (-5000, 5000)):
        sums = torch.from_numpy(rng.integers(low, high, n)).int()
        mantissa = torch.from_numpy(rng.integers(2**30, 2**31, n))
        shift = torch.from_numpy(rng.integers(-4, 12, n))
        expected = scaled_by_hand(sums, mantissa, shift)
        expect_equal(impl.scale_down(sums, mantissa, shift), expected, what=f"sums from {low} to {high}, scaled")


@task("30.7")
def test_scaling_of_halves_on_both_sides(impl, rng):
    sums = torch.arange(-9, 10).int()
    for shift in (0, 1, 2, 5):
        mantissa, places = torch.full((19,), 2**30), torch.full((19,), shift)
        expected = scaled_by_hand(sums, mantissa, places)
        expect_equal(impl.scale_down(sums, mantissa, places), expected, what=f"halves, shift {shift}")


@task("30.7")
def test_scaling_of_rows(impl, rng):
    sums = torch.from_numpy(rng.integers(-(2**28), 2**28, (4, 3))).int()
    mantissa, shift = torch.from_numpy(rng.integers(2**30, 2**31, 3)), torch.tensor([0, 7, 20])
    expected = torch.stack([scaled_by_hand(row, mantissa, shift) for row in sums])
    found = impl.scale_down(sums, mantissa, shift)
    expect_equal(found, expected, what="rows of sums, each column with its own number")
    expect_equal(found.dtype, torch.int64, what="the format of the result")
    one = impl.scale_down(sums, mantissa[1], shift[1])
    expected = torch.stack([scaled_by_hand(row, mantissa[[1, 1, 1]], shift[[1, 1, 1]]) for row in sums])
    expect_equal(one, expected, what="rows of sums, one number for all")


# --- 30.8 bits by a budget


def best_by_hand(rises, sizes, budget):
    """All choices there are: the least rise within the budget, and the least cost at which it can be had."""
    total, names = sum(sizes[name] for name in rises), list(rises)
    allowed = []
    for choice in itertools.product(*(rises[name] for name in names)):
        cost = sum(bits * sizes[name] for name, bits in zip(names, choice, strict=True))
        if cost <= budget * total + 1e-6:
            allowed.append((sum(rises[name][bits] for name, bits in zip(names, choice, strict=True)), cost))
    return min(allowed)


def check_bits(impl, rises, sizes, budget):
    chosen = impl.allocate_bits(rises, sizes, budget)
    expect_equal(sorted(chosen), sorted(rises), what=f"the layers that were given bits, budget {budget}")
    for name, bits in chosen.items():
        expect(bits in rises[name], f"layer {name} was given {bits} bits, its options are {sorted(rises[name])}")
    rise, cost = best_by_hand(rises, sizes, budget)
    spent = sum(bits * sizes[name] for name, bits in chosen.items())
    total = sum(sizes[name] for name in rises)
    expect(spent <= budget * total + 1e-6, f"{spent / total:.3f} bits a weight were spent, the budget was {budget}")
    found = sum(rises[name][bits] for name, bits in chosen.items())
    expect_close(found, rise, 1e-9, what=f"the rise with budget {budget}")
    return spent, cost


@task("30.8", cases=3)
def test_bits_for_many_layers(impl, rng):
    rises = {}
    for number in range(6):
        values = sorted((float(v) for v in rng.uniform(0, 1, 4)), reverse=True)
        rises[f"layer{number}"] = dict(zip((2, 3, 4, 8), values, strict=True))
    sizes = {name: int(n) for name, n in zip(rises, rng.integers(1, 30, 6), strict=True)}
    for budget in (2.0, 2.35, 3.0, 3.7, 5.1, 8.0):
        check_bits(impl, rises, sizes, budget)


@task("30.8", cases=2)
def test_bits_where_greed_goes_wrong(impl, rng):
    more = float(rng.uniform(0.01, 0.1))
    rises = {"small": {2: 1.0, 4: 0.0}, "large": {2: 5.0 + more, 4: 0.0}}
    check_bits(impl, rises, {"small": 10, "large": 90}, 3.8)
    check_bits(impl, rises, {"small": 60, "large": 40}, 3.2)
    rises = {"a": {2: 9.0, 3: 5.0, 8: 0.0}, "b": {2: 4.0, 3: 3.0}, "c": {2: 4.0, 4: 1.0}}
    check_bits(impl, rises, dict.fromkeys(rises, 1), 3.0)


@task("30.8")
def test_bits_that_do_not_help_are_not_spent(impl, rng):
    rises = {"a": {4: 0.5, 2: 0.5}, "b": {3: 0.25, 8: 0.5, 2: 1.0}}
    spent, cost = check_bits(impl, rises, {"a": 3, "b": 5}, 8.0)
    expect_equal(spent, cost, what="bits spent where several choices are equally good")
    check_bits(impl, {"a": {2: -0.01, 4: 0.02}, "b": {2: 0.3, 4: -0.02}}, {"a": 3, "b": 5}, 4.0)


@task("30.8")
def test_bits_are_counted_by_weights_and_exactly(impl, rng):
    rises = {"a": {2: 1.0, 3: 0.0}, "b": {2: 1.1, 3: 0.0}}
    check_bits(impl, rises, {"a": 1, "b": 9}, 2.1)
    check_bits(impl, rises, {"a": 9, "b": 1}, 2.9)
    check_bits(impl, rises, {"a": 3, "b": 7}, 2.3)
    check_bits(impl, rises, {"a": 70, "b": 30, "other": 1000}, 2.3)


@task("30.8")
def test_bits_refuse_a_budget_below_the_fewest(impl, rng):
    rises, sizes = {"a": {3: 1.0, 4: 0.0}, "b": {2: 1.0, 8: 0.0}}, {"a": 2, "b": 2}
    check_bits(impl, rises, sizes, 2.5)
    with expect_error(ConfigError):
        impl.allocate_bits(rises, sizes, 2.4)
