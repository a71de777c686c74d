"""Chapter 31. Oracles: least squares on the inputs, inverting anew, columns that gather their mending when read."""

import numpy as np
import torch

from minillm.compress.gptq import GPTQConfig
from minillm.compress.grid import QuantSpec
from minillm.course.grader import Seeded, Wrong, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.models.gpt import GPTConfig


def alike_inputs(rng, n_columns, n_positions=0):
    """Inputs (N, I) of which each is partly its neighbours, none as large as another."""
    drawn = normal(rng, n_positions or 4 * n_columns + 3, n_columns)
    sizes = torch.from_numpy(rng.uniform(0.5, 2.0, n_columns))
    return (drawn + 0.5 * drawn.roll(1, 1) + 0.2 * drawn.roll(3, 1)) * sizes


def rounded_to(values, scale, zero, n_levels):
    """Nearest on the grid, by numpy."""
    codes = np.clip(np.rint(values.numpy() / scale.numpy()) + zero.numpy(), 0, n_levels - 1)
    return torch.from_numpy(scale.numpy() * (codes - zero.numpy()))


def grids(rng, *shape, n_levels=8):
    """Scales and zeros of all kinds."""
    scale = torch.from_numpy(rng.uniform(0.2, 0.7, shape))
    return scale, torch.from_numpy(rng.integers(1, n_levels - 1, shape).astype(float))


# --- 31.1 the surgeon's step


def least_squares_step(inputs, row, index, value, movable):
    """The row after setting one weight, the others that may move having done their best; and the squared error."""
    others = [i for i in movable if i != index]
    new = row.clone()
    new[index] = value
    missing = inputs[:, [index]] @ (row[[index]] - value)
    if others:
        found = np.linalg.lstsq(inputs[:, others].numpy(), missing.numpy(), rcond=None)[0]
        new[others] = new[others] + torch.from_numpy(found)
    return new, (inputs @ (new - row)).square().sum()


@task("31.1", cases=3)
def test_mend_is_least_squares(impl, rng):
    inputs, row = alike_inputs(rng, 5), normal(rng, 5)
    index, value = int(rng.integers(5)), normal(rng)
    inverse = torch.from_numpy(np.linalg.inv((inputs.T @ inputs).numpy()))
    new, error = impl.mend(row, index, value, inverse)
    expected, changed = least_squares_step(inputs, row, index, value, range(5))
    expect_close(new, expected, what=f"the row after weight {index} was set and the others mended")
    expect_equal(new[index], value, what="the weight that was set (exactly)")
    expect_close(error, changed, what="by how much the outputs change")


@task("31.1")
def test_mend_moves_only_what_is_left(impl, rng):
    inputs, row = alike_inputs(rng, 6), normal(rng, 6)
    left = [0, 2, 3, 5]
    inverse = torch.zeros(6, 6, dtype=torch.float64)
    hessian = (inputs.T @ inputs)[left][:, left].numpy()
    inverse[torch.tensor(left)[:, None], torch.tensor(left)] = torch.from_numpy(np.linalg.inv(hessian))
    found, (after, *_) = impl.mend.after(row, 3, torch.tensor(0.3, dtype=torch.float64), inverse)
    expected, changed = least_squares_step(inputs, row, 3, 0.3, left)
    expect_close(found[0], expected, what="the row where weights 1 and 4 are settled")
    expect_equal(found[0][[1, 4]], row[[1, 4]], what="the weights that are settled")
    expect_close(found[1], changed, what="by how much the outputs change")
    expect_equal(after, row, what="the row passed in (it must not be changed)")


@task("31.1")
def test_mend_many_rows(impl, rng):
    inputs, rows, values = alike_inputs(rng, 4), normal(rng, 3, 2, 4), normal(rng, 3, 2)
    inverse = torch.from_numpy(np.linalg.inv((inputs.T @ inputs).numpy()))
    new, error = impl.mend(rows, 2, values, inverse)
    for i in range(3):
        for j in range(2):
            expected, changed = least_squares_step(inputs, rows[i, j], 2, values[i, j], range(4))
            expect_close(new[i, j], expected, what=f"row ({i}, {j}) of rows (3, 2, 4)")
            expect_close(error[i, j], changed, what=f"the error of row ({i}, {j})")


# --- 31.2 elimination


@task("31.2", cases=3)
def test_eliminate_is_inverting_what_is_left(impl, rng):
    n_columns = int(rng.integers(5, 9))
    hessian = alike_inputs(rng, n_columns)
    hessian = (hessian.T @ hessian).numpy()
    inverse, left = torch.from_numpy(np.linalg.inv(hessian)), list(range(n_columns))
    for index in rng.permutation(n_columns)[:-1].tolist():
        before = inverse.clone()
        inverse, (after, *_) = impl.eliminate.after(inverse, index)
        expect_equal(after, before, what="the inverse passed in (it must not be changed)")
        left.remove(index)
        expected = torch.zeros(n_columns, n_columns, dtype=torch.float64)
        part = np.linalg.inv(hessian[np.ix_(left, left)])
        expected[torch.tensor(left)[:, None], torch.tensor(left)] = torch.from_numpy(part)
        expect_close(inverse, expected, what=f"the inverse Hessian of the weights {left} of {n_columns}")
        zeros = torch.zeros(n_columns, dtype=torch.float64)
        expect_equal(inverse[index], zeros, what=f"row {index}, which must be exactly 0")
        expect_equal(inverse[:, index], zeros, what=f"column {index}, which must be exactly 0")


# --- 31.3 OBQ


def obq_by_least_squares(inputs, row, scale, zero, n_levels, greedy):
    """Each step by least squares on the inputs, nothing eliminated, costs of all candidates computed one by one."""
    row, left, total = row.clone(), list(range(len(row))), 0.0
    while left:
        aims = rounded_to(row, scale, zero, n_levels)
        steps = {index: least_squares_step(inputs, row, index, aims[index], left) for index in left}
        index = min(left, key=lambda i: float(steps[i][1])) if greedy else left[0]
        row, total = steps[index][0], total + steps[index][1]
        left.remove(index)
    return row, total


@task("31.3", cases=3)
def test_obq_row(impl, rng):
    """Several rows, for the order of the work often does not show in the result."""
    inputs = alike_inputs(rng, 6) * torch.from_numpy(rng.permutation([0.2, 0.4, 0.8, 1.2, 2.5, 4.0]))
    scale, zero = grids(rng, 6)
    scale = 2.0 * scale
    for _ in range(6):
        row = normal(rng, 6)
        for greedy in (True, False):
            found, error = impl.obq_row(row, inputs.T @ inputs, scale, zero, 8, greedy)
            expected, changed = obq_by_least_squares(inputs, row, scale, zero, 8, greedy)
            order = "cheapest first" if greedy else "from left to right"
            expect_close(found, expected, what=f"the row, rounded {order}")
            expect_close(error, changed, what=f"by how much the outputs change, rounded {order}")


@task("31.3", cases=2)
def test_obq_row_stays_on_a_coarse_grid(impl, rng):
    inputs, row = alike_inputs(rng, 7), 2.0 * normal(rng, 7)
    scale, zero = grids(rng, 7, n_levels=4)
    for greedy in (True, False):
        expected, _ = obq_by_least_squares(inputs, row, scale, zero, 4, greedy)
        what = "a row with weights far outside the grid, which are cut at its ends"
        expect_close(impl.obq_row(row, inputs.T @ inputs, scale, zero, 4, greedy)[0], expected, what=what)
    default, _ = obq_by_least_squares(inputs, row, scale, zero, 4, True)
    found, (after, *_) = impl.obq_row.after(row, inputs.T @ inputs, scale, zero, 4)
    expect_close(found[0], default, what="the row by the default order (greedy)")
    expect_equal(after, row, what="the row passed in (it must not be changed)")


# --- 31.4 the factor


def factor_by_flipping(hessian):
    """U from one Cholesky factorisation of the flipped Hessian, and an inverse of that triangle."""
    lower = np.linalg.cholesky(hessian.double().numpy()[::-1, ::-1])
    return torch.from_numpy(np.linalg.inv(lower[::-1, ::-1]).copy())


@task("31.4", cases=3)
def test_factor(impl, rng):
    n_columns = int(rng.integers(3, 12))
    inputs = alike_inputs(rng, n_columns)
    hessian = inputs.T @ inputs
    found, (after,) = impl.inverse_factor.after(hessian)
    expect_close(found.triu(), found, what="U, which must have zeros below its diagonal")
    expect_close(found, factor_by_flipping(hessian), what="U with U^T U = H^-1")
    expect_equal(after, hessian, what="the Hessian passed in (it must not be changed)")
    single = impl.inverse_factor(hessian.float())
    expect(single.dtype == torch.float32, "the factor of a float32 Hessian must be float32")


@task("31.4")
def test_factor_refuses(impl, rng):
    inputs = alike_inputs(rng, 6, n_positions=3)
    indefinite = torch.eye(4, dtype=torch.float64)
    indefinite[0, 2] = indefinite[2, 0] = 1.5
    for hessian, what in ((torch.zeros(3, 3), "zeros"), (indefinite, "a negative direction")):
        with expect_error(ValueError, match="positive definite"):
            impl.inverse_factor(hessian)
            raise Wrong(f"a Hessian with {what} must be refused")
    with expect_error(ValueError, match="positive definite"):
        impl.inverse_factor(torch.full((2, 2), float("nan")))
    few = inputs.T @ inputs + 0.1 * torch.eye(6, dtype=torch.float64)
    expect_close(impl.inverse_factor(few), factor_by_flipping(few), what="U with fewer positions than inputs")


@task("31.4")
def test_factor_refuses_an_inverse_that_overflows(impl):
    for tiny in (torch.tensor([[1e-40]]), torch.diag(torch.tensor([1e-40, 1.0]))):
        with expect_error(ValueError, match="positive definite"):
            found = impl.inverse_factor(tiny)
            raise Wrong(f"a Hessian whose inverse overflows must be refused; it gave {found}")


# --- 31.5 a block


def columns_by_gathering(columns, factor, scales, zeros, n_levels):
    """Each column gathers what earlier errors did to it when its turn comes; nothing is written ahead."""
    n_columns = len(columns)
    errors, rounded = torch.zeros_like(columns), torch.zeros_like(columns)
    for i in range(n_columns):
        mended = columns[i] - factor[:i, i] @ errors[:i]
        rounded[i] = rounded_to(mended, scales[i], zeros[i], n_levels)
        errors[i] = (mended - rounded[i]) / factor[i, i]
    return rounded, errors


@task("31.5", cases=3)
def test_block(impl, rng):
    n_columns, n_rows, n_levels = int(rng.integers(5, 9)), int(rng.integers(2, 5)), int(rng.choice([4, 8, 16]))
    columns, factor = normal(rng, n_columns, n_rows), normal(rng, n_columns, n_columns).triu()
    factor.diagonal().copy_(torch.from_numpy(rng.uniform(0.5, 2.0, n_columns)))
    scales, zeros = grids(rng, n_columns, n_rows, n_levels=n_levels)
    found, (after, *_) = impl.round_block.after(columns, factor, scales, zeros, n_levels)
    rounded, errors = columns_by_gathering(columns, factor, scales, zeros, n_levels)
    expect_close(found[0], rounded, what=f"{n_columns} rounded columns of {n_rows} rows, {n_levels} levels")
    expect_close(found[1], errors, what="errors over U_ii")
    expect_equal(after, columns, what="the block passed in (it must not be changed)")


@task("31.5")
def test_block_in_single_precision(impl, rng):
    columns = normal(rng, 4, 3, dtype=torch.float32)
    scales = torch.full((4, 3), 0.25)
    found, errors = impl.round_block(columns, torch.eye(4), scales, torch.full((4, 3), 2.0), 4)
    expect_equal(found, (columns / 0.25).round().clamp(-2, 1) * 0.25, what="columns that have nothing to mend")
    expect_close(errors, columns - found, what="their errors")


# --- 31.6 all columns


def found_grid(columns, bits):
    """Scale and zero (1, O) of an asymmetric grid over some columns (g, O), zero included."""
    low, high = columns.amin(0).clamp(max=0.0), columns.amax(0).clamp(min=0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / scale).round()


def all_columns(columns, factor, bits, width, config):
    """Gathering column by column, with grids found when and from what the config says."""
    errors, rounded = torch.zeros_like(columns), torch.zeros_like(columns)
    scales, zeros = torch.zeros_like(columns), torch.zeros_like(columns)
    for i in range(len(columns)):
        if i % width == 0:
            known = {"static": 0, "fresh": i, "reference": i - i % config.block_size}[config.groups]
            seen = (columns - factor[:known].T @ errors[:known])[i : i + width]
            scales[i : i + width], zeros[i : i + width] = found_grid(seen, bits)
        mended = columns[i] - factor[:i, i] @ errors[:i]
        rounded[i] = rounded_to(mended, scales[i], zeros[i], 2**bits)
        errors[i] = (mended - rounded[i]) / factor[i, i]
    return rounded, errors.square().sum(), scales, zeros


def matrix_and_factor(rng, n_rows=3, n_columns=23):
    inputs = alike_inputs(rng, n_columns)
    return normal(rng, n_rows, n_columns), factor_by_flipping(inputs.T @ inputs), inputs.T @ inputs


@task("31.6", cases=3)
def test_columns_of_whole_rows(impl, rng):
    weight, factor, _ = matrix_and_factor(rng)
    for bits, block_size in ((3, 1), (2, 7), (4, 100)):
        config, spec = GPTQConfig(block_size), QuantSpec(bits)
        columns = impl.ColumnGrids(weight, spec, config, torch.arange(23))
        found, (after, *_) = impl.round_columns.after(weight.T.contiguous(), factor, columns)
        rounded, error, _, _ = all_columns(weight.T, factor, bits, 23, config)
        what = f"23 columns in blocks of {block_size}, {bits} bits"
        expect_close(found[0], rounded, what=what)
        expect_close(found[1], float(error), what=f"by how much the outputs change (a float), {what}")
        expect_equal(after, weight.T.contiguous(), what="the columns passed in (they must not be changed)")


@task("31.6", cases=2)
def test_columns_of_groups(impl, rng):
    weight, factor, _ = matrix_and_factor(rng)
    kinds = (("fresh", 100), ("fresh", 5), ("reference", 100), ("reference", 12), ("static", 9))
    for groups, block_size in kinds:
        config, spec = GPTQConfig(block_size, groups=groups), QuantSpec(3, 6)
        columns = impl.ColumnGrids(weight, spec, config, torch.arange(23))
        found, error = impl.round_columns(weight.T.contiguous(), factor, columns)
        rounded, changed, _, _ = all_columns(weight.T, factor, 3, 6, config)
        what = f"groups of 6 columns ({groups}) in blocks of {block_size}"
        expect_close(found, rounded, what=what)
        expect_close(float(error), float(changed), what=f"by how much the outputs change, {what}")


# --- 31.7 GPTQ


def gptq_by_gathering(weight, hessian, bits, width, config, damping):
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = torch.from_numpy(np.argsort(-hessian.diagonal().numpy(), kind="stable").copy())
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    factor = factor_by_flipping(damped[order][:, order])
    if config.groups != "static":
        rounded, error, _, _ = all_columns(weight.T[order], factor, bits, width, config)
    else:
        parts = [found_grid(weight.T[i : i + width], bits) for i in range(0, len(order), width)]
        both = (torch.stack(each).repeat_interleave(width, 0) for each in zip(*parts, strict=True))
        scales, zeros = (each[: len(order)] for each in both)
        rounded, errors = columns_by_gathering(weight.T[order], factor, scales[order], zeros[order], 2**bits)
        error = errors.square().sum()
    undone = torch.zeros_like(rounded)
    undone[order] = rounded
    return undone.T, error, factor.diagonal().pow(-2).sum() / damped.trace()


@task("31.7", cases=2)
def test_gptq_whole_rows(impl, rng):
    weight, _, hessian = matrix_and_factor(rng)
    largest_first = GPTQConfig(damping=0.02, activation_order=True)
    for bits, config in ((3, GPTQConfig()), (2, GPTQConfig(7, 0.3)), (4, largest_first)):
        found, (after, products, *_) = impl.gptq.after(weight, hessian, QuantSpec(bits), config)
        rounded, error, expected = gptq_by_gathering(weight, hessian, bits, 23, config, config.damping)
        what = f"{bits} bits with {config}"
        expect_close(found.weight, rounded, what=what)
        expect_close(found.error, float(error), what=f"the error added up, {what}")
        expect_close(found.damping, config.damping, what="the damping that was enough")
        expect_close(found.expected, float(expected), what=f"the ratio expected, {what}")
        expect_close(found.grid.scale.T, found_grid(weight.T, bits)[0][None], what="the scales")
        expect_equal(after, weight, what="the weights passed in (they must not be changed)")
        expect_equal(products, hessian, what="the Hessian passed in (it must not be changed)")


@task("31.7", cases=2)
def test_gptq_groups(impl, rng):
    weight, _, hessian = matrix_and_factor(rng)
    kinds = (GPTQConfig(5), GPTQConfig(8, groups="reference"), GPTQConfig(groups="static", activation_order=True))
    for config in kinds:
        found = impl.gptq(weight, hessian, QuantSpec(3, 6), config)
        rounded, _, _ = gptq_by_gathering(weight, hessian, 3, 6, config, config.damping)
        expect_close(found.weight, rounded, what=f"groups of 6 columns with {config}")
        expect_equal(list(found.grid.scale.shape), [3, 4], what="the size of the scales")
    default = impl.gptq(weight, hessian, QuantSpec(2))
    rounded, _, _ = gptq_by_gathering(weight, hessian, 2, 23, GPTQConfig(), 0.01)
    expect_close(default.weight, rounded, what="the default config")


@task("31.7")
def test_gptq_of_equal_inputs_and_other_formats(impl, rng):
    weight, _, hessian = matrix_and_factor(rng)
    sizes = hessian.diagonal().sqrt()
    equal = hessian / torch.outer(sizes, sizes)
    equal.diagonal().fill_(1.0)
    config = GPTQConfig(activation_order=True)
    rounded, _, _ = gptq_by_gathering(weight, equal, 3, 23, config, config.damping)
    found = impl.gptq(weight, equal, QuantSpec(3), config)
    expect_close(found.weight, rounded, what="inputs that are equally large, which keep their order")
    half = weight.bfloat16()
    rounded, _, _ = gptq_by_gathering(half.double(), hessian, 4, 23, GPTQConfig(), 0.01)
    for given in (half, half.float()):
        found = impl.gptq(given, hessian, QuantSpec(4))
        expect(found.weight.dtype == torch.float32, f"weights in {given.dtype} must come back in float32")
        expect_close(found.weight, rounded.float(), tolerance=1e-4, what=f"weights in {given.dtype}")


@task("31.7")
def test_gptq_of_ill_hessians(impl, rng):
    weight, _, hessian = matrix_and_factor(rng)
    few = alike_inputs(rng, 23, n_positions=9)
    found = impl.gptq(weight, few.T @ few, QuantSpec(3), GPTQConfig(damping=0.0))
    expect(found.damping > 0, "a singular Hessian needs damping, and the result must say how much")
    dead = hessian.clone()
    dead[[2, 11]] = 0.0
    dead[:, [2, 11]] = 0.0
    scale, zero = found_grid(weight.T, 3)
    for order in (False, True):
        found = impl.gptq(weight, dead, QuantSpec(3), GPTQConfig(activation_order=order))
        nearest = rounded_to(weight.T[[2, 11]], scale, zero, 8)
        expect_close(found.weight.T[[2, 11]], nearest, what="columns whose input is always 0 (rounded to nearest)")


@task("31.7")
def test_gptq_refuses(impl, rng):
    weight, _, hessian = matrix_and_factor(rng)
    with expect_error(ValueError, match="Hessian"):
        impl.gptq(weight, hessian[:5, :5], QuantSpec(3))
    with expect_error(ValueError, match="static"):
        impl.gptq(weight, hessian, QuantSpec(3, 6), GPTQConfig(activation_order=True))
    poisoned = hessian.clone()
    poisoned[3, 4] = float("nan")
    with expect_error(ValueError, match="finite"):
        impl.gptq(weight, poisoned, QuantSpec(3))


@task("31.7")
def test_gptq_in_a_model(impl, rng):
    sizes = {"vocab_size": 20, "max_seq_len": 12, "n_layers": 1, "n_heads": 2, "d_model": 16}
    config = GPTConfig(**sizes, feed_forward="swiglu", norm="rms")
    model = impl.GPT(config, Seeded(int(rng.integers(1000))))
    text = [torch.from_numpy(rng.integers(0, 20, (8, 12))) for _ in range(3)]
    report = impl.gptq_model(model, text, QuantSpec(3), packed=False)
    layers = report.get("layers")
    expect_equal(len(layers), 5, what="the number of layers of one block")
    error, nearest = (sum(getattr(each, name) for each in layers) for name in ("error", "nearest"))
    expect(error < nearest, f"GPTQ must beat nearest in a model; its errors {error:.3g}, nearest {nearest:.3g}")


# --- 31.8 AWQ


def awq_by_hand(weight, size, hessian, bits, n_steps):
    """Errors and scales of every alpha."""
    errors, tried = [], []
    for step in range(n_steps + 1):
        scales = size.pow(step / n_steps).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        stretched = (weight * scales).T
        scale, _ = found_grid(stretched, bits)
        scale = scale.half().to(scale.dtype)
        zero = (-stretched.amin(0).clamp(max=0.0) / found_grid(stretched, bits)[0]).round()
        change = rounded_to(stretched, scale, zero, 2**bits).T / scales - weight
        errors.append(float(torch.einsum("oi,ij,oj->", change, hessian, change)))
        tried.append(scales)
    best = int(np.argmin(errors))
    return tried[best], best / n_steps


@task("31.8", cases=3)
def test_scales_are_the_best(impl, rng):
    inputs = alike_inputs(rng, 18)
    inputs[:, rng.permutation(18)[:3]] *= float(rng.uniform(8, 30))
    weight, hessian, size = normal(rng, 5, 18), inputs.T @ inputs, inputs.abs().mean(0)
    for bits, n_steps in ((3, 20), (2, 7), (4, 3)):
        scales, alpha = impl.best_scales(weight, size, hessian, QuantSpec(bits), n_steps)
        expected = awq_by_hand(weight, size, hessian, bits, n_steps)
        what = f"with {bits} bits and {n_steps} steps"
        expect_close(alpha, expected[1], what=f"alpha {what}")
        expect_close(scales, expected[0], what=f"the scales {what}")
    found = impl.best_scales(weight, size, hessian, QuantSpec(3))
    expect_close(found[1], awq_by_hand(weight, size, hessian, 3, 20)[1], what="alpha with the default of 20 steps")


@task("31.8")
def test_scales_where_none_help(impl, rng):
    inputs, weight = alike_inputs(rng, 9), normal(rng, 4, 9)
    same = torch.full((9,), 2.5, dtype=torch.float64)
    scales, alpha = impl.best_scales(weight, same, inputs.T @ inputs, QuantSpec(3))
    expect_close(alpha, 0.0, what="alpha where all inputs are alike, so that every alpha does the same")
    expect_close(scales, torch.ones(9, dtype=torch.float64), what="the scales where all inputs are alike")
    harmful = torch.from_numpy(10.0 ** rng.uniform(-2, 2, 9))
    plain = torch.eye(9, dtype=torch.float64)
    found = impl.best_scales(weight, harmful, plain, QuantSpec(3))
    expected = awq_by_hand(weight, harmful, plain, 3, 20)
    expect_close(found[1], expected[1], what="alpha where the sizes say nothing about what matters")


@task("31.8", cases=2)
def test_scales_of_an_edge(impl, rng):
    """Where weights are small just where inputs are large, the best alpha is 1, or near it."""
    size = torch.from_numpy(10.0 ** rng.uniform(-1.5, 1.5, 12))
    weight, inputs = normal(rng, 6, 12) / size, normal(rng, 50, 12) * size
    hessian = inputs.T @ inputs
    for n_steps in (1, 4):
        found = impl.best_scales(weight, size, hessian, QuantSpec(4), n_steps)
        expected = awq_by_hand(weight, size, hessian, 4, n_steps)
        expect_close(found[1], expected[1], what=f"alpha of {n_steps} steps where it is near 1")
        expect_close(found[0], expected[0], what="its scales")
