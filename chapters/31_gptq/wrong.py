"""Wrong answers to chapter 31: the mistakes that are really made, each of which must cost exactly its task."""

import math

import torch

from minillm.compress.awq import input_scales, scaled_rounding
from minillm.compress.gptq import ColumnGrids, GPTQConfig, Rounded, blocks_of_columns, round_block, round_columns
from minillm.compress.grid import round_column
from minillm.compress.hessian import damped_factor, inverse_factor, ratio_of
from minillm.compress.obq import check_hessian_shape, eliminate, mend, output_error
from minillm.course.wrong_answers import wrong
from minillm.errors import DataError

# --- 31.1 the surgeon's step


@wrong("31.1", "sets the weight and mends nothing")
def mend(row, index, value, inverse):
    gap = (row[..., index] - value) / inverse[index, index]
    new = row.clone()
    new[..., index] = value
    return new, gap**2 * inverse[index, index]


@wrong("31.1", "moves the others the wrong way")
def mend(row, index, value, inverse):
    gap = (row[..., index] - value) / inverse[index, index]
    new = row + gap[..., None] * inverse[index]
    new[..., index] = value
    return new, gap**2 * inverse[index, index]


@wrong("31.1", "forgets to divide by the diagonal of the inverse")
def mend(row, index, value, inverse):
    gap = row[..., index] - value
    new = row - gap[..., None] * inverse[index]
    new[..., index] = value
    return new, gap**2 / inverse[index, index]


@wrong("31.1", "the error of the weight instead of that of the outputs")
def mend(row, index, value, inverse):
    gap = (row[..., index] - value) / inverse[index, index]
    new = row - gap[..., None] * inverse[index]
    new[..., index] = value
    return new, (row[..., index] - value) ** 2


@wrong("31.1", "the right numbers, written into the caller's row")
def mend(row, index, value, inverse):
    gap = (row[..., index] - value) / inverse[index, index]
    row -= gap[..., None] * inverse[index]
    row[..., index] = value
    return row, gap**2 * inverse[index, index]


@wrong("31.1", "takes rows for columns when there are many")
def mend(row, index, value, inverse):
    gap = (row[index] - value) / inverse[index, index]
    new = row - gap * inverse[index]
    new[index] = value
    return new, gap**2 * inverse[index, index]


# --- 31.2 elimination


@wrong("31.2", "zeros in row and column, but the rest is that of the larger Hessian")
def eliminate(inverse, index):
    smaller = inverse.clone()
    smaller[index] = 0.0
    smaller[:, index] = 0.0
    return smaller


@wrong("31.2", "adds the outer product")
def eliminate(inverse, index):
    smaller = inverse + torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]
    smaller[index] = 0.0
    smaller[:, index] = 0.0
    return smaller


@wrong("31.2", "forgets to divide by the diagonal")
def eliminate(inverse, index):
    smaller = inverse - torch.outer(inverse[:, index], inverse[index])
    smaller[index] = 0.0
    smaller[:, index] = 0.0
    return smaller


@wrong("31.2", "takes the row and column out, so that all later ones have other numbers")
def eliminate(inverse, index):
    smaller = inverse - torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]
    left = [i for i in range(len(inverse)) if i != index]
    return smaller[left][:, left]


@wrong("31.2", "writes into the inverse that was given")
def eliminate(inverse, index):
    inverse -= torch.outer(inverse[:, index], inverse[index].clone()) / inverse[index, index].clone()
    inverse[index] = 0.0
    inverse[:, index] = 0.0
    return inverse


# --- 31.3 OBQ


@wrong("31.3", "never eliminates: settled weights go on helping, and move again")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    left = list(range(len(row)))
    while left:
        rounded = round_column(row, scale, zero, n_levels)
        costs = (row - rounded)[left] ** 2 / inverse.diagonal()[left]
        index = left.pop(int(costs.argmin()) if greedy else 0)
        row, cost = mend(row, index, rounded[index], inverse)
        total = total + cost
    return row, total


@wrong("31.3", "rounds all at the beginning: what is mended later is never rounded anew")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    rounded, left = round_column(row, scale, zero, n_levels), list(range(len(row)))
    while left:
        costs = (row - rounded)[left] ** 2 / inverse.diagonal()[left]
        index = left.pop(int(costs.argmin()) if greedy else 0)
        row, cost = mend(row, index, rounded[index], inverse)
        inverse, total = eliminate(inverse, index), total + cost
    return row, total


@wrong("31.3", "no propagation: each weight to its nearest")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    rounded = round_column(row, scale, zero, n_levels)
    return rounded, output_error(rounded - row, hessian)


@wrong("31.3", "takes the weight nearest to the grid, not the one that costs least")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    left = list(range(len(row)))
    while left:
        rounded = round_column(row, scale, zero, n_levels)
        costs = (row - rounded)[left] ** 2
        index = left.pop(int(costs.argmin()) if greedy else 0)
        row, cost = mend(row, index, rounded[index], inverse)
        inverse, total = eliminate(inverse, index), total + cost
    return row, total


@wrong("31.3", "always greedy")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    left = list(range(len(row)))
    while left:
        rounded = round_column(row, scale, zero, n_levels)
        costs = (row - rounded)[left] ** 2 / inverse.diagonal()[left]
        index = left.pop(int(costs.argmin()))
        row, cost = mend(row, index, rounded[index], inverse)
        inverse, total = eliminate(inverse, index), total + cost
    return row, total


@wrong("31.3", "the clip is missing: weights leave the grid")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    left = list(range(len(row)))
    while left:
        rounded = scale * (row / scale).round()
        costs = (row - rounded)[left] ** 2 / inverse.diagonal()[left]
        index = left.pop(int(costs.argmin()) if greedy else 0)
        row, cost = mend(row, index, rounded[index], inverse)
        inverse, total = eliminate(inverse, index), total + cost
    return row, total


@wrong("31.3", "the index among those that are left, taken for the index in the row")
def obq_row(row, hessian, scale, zero, n_levels, greedy=True):
    inverse, total = torch.linalg.inv(hessian), row.new_zeros(())
    left = list(range(len(row)))
    while left:
        rounded = round_column(row, scale, zero, n_levels)
        costs = (row - rounded)[left] ** 2 / inverse.diagonal()[left]
        index = int(costs.argmin()) if greedy else 0
        left.pop(index)
        row, cost = mend(row, index, rounded[index], inverse)
        inverse, total = eliminate(inverse, index), total + cost
    return row, total


# --- 31.4 the factor


@wrong("31.4", "the lower factor of the inverse")
def inverse_factor(hessian):
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if bool(failed == 0):
        found, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower))
        if bool(failed == 0) and bool(torch.isfinite(found).all()):
            return found
    raise DataError("the Hessian is not positive definite")


@wrong("31.4", "the factor of the Hessian, not of its inverse")
def inverse_factor(hessian):
    upper, failed = torch.linalg.cholesky_ex(hessian, upper=True)
    if bool(failed == 0) and bool(torch.isfinite(upper.inverse()).all()):
        return upper
    raise DataError("the Hessian is not positive definite")


@wrong("31.4", "upper triangular, but U U^T = H^-1: transposed")
def inverse_factor(hessian):
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if bool(failed == 0):
        upper = torch.linalg.inv(lower).T.contiguous()
        if bool(torch.isfinite(upper).all()) and bool(torch.isfinite(upper @ upper.T).all()):
            return upper
    raise DataError("the Hessian is not positive definite")


@wrong("31.4", "the inverse of the Cholesky factor: L^T L = H^-1, but lower triangular")
def inverse_factor(hessian):
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if bool(failed == 0):
        found = torch.linalg.inv(lower)
        if bool(torch.isfinite(found).all()) and bool(torch.isfinite(found.T @ found).all()):
            return found
    raise DataError("the Hessian is not positive definite")


@wrong("31.4", "does not look whether it failed")
def inverse_factor(hessian):
    lower, _ = torch.linalg.cholesky_ex(hessian)
    upper, _ = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return upper


# --- 31.5 a block


@wrong("31.5", "no error is passed on: every column to its nearest")
def round_block(block, factor, scales, zeros, n_levels):
    rounded = round_column(block, scales, zeros, n_levels)
    return rounded, (block - rounded) / factor.diagonal()[:, None]


@wrong("31.5", "a stale row: always the first one of the factor")
def round_block(block, factor, scales, zeros, n_levels):
    block, rounded, errors = block.clone(), torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = round_column(block[i], scales[i], zeros[i], n_levels)
        errors[i] = (block[i] - rounded[i]) / factor[i, i]
        block[i + 1 :] -= torch.outer(factor[0, i + 1 :], errors[i])
    return rounded, errors


@wrong("31.5", "a column of the factor instead of a row: all zeros below the diagonal")
def round_block(block, factor, scales, zeros, n_levels):
    block, rounded, errors = block.clone(), torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = round_column(block[i], scales[i], zeros[i], n_levels)
        errors[i] = (block[i] - rounded[i]) / factor[i, i]
        block[i + 1 :] -= torch.outer(factor[i + 1 :, i], errors[i])
    return rounded, errors


@wrong("31.5", "the error is not divided by the diagonal")
def round_block(block, factor, scales, zeros, n_levels):
    block, rounded, errors = block.clone(), torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = round_column(block[i], scales[i], zeros[i], n_levels)
        errors[i] = block[i] - rounded[i]
        block[i + 1 :] -= torch.outer(factor[i, i + 1 :], errors[i])
    return rounded, errors


@wrong("31.5", "the clip is missing: codes below 0 and above the last")
def round_block(block, factor, scales, zeros, n_levels):
    block, rounded, errors = block.clone(), torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = scales[i] * (block[i] / scales[i]).round()
        errors[i] = (block[i] - rounded[i]) / factor[i, i]
        block[i + 1 :] -= torch.outer(factor[i, i + 1 :], errors[i])
    return rounded, errors


@wrong("31.5", "works in the block that was given")
def round_block(block, factor, scales, zeros, n_levels):
    rounded, errors = torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = round_column(block[i], scales[i], zeros[i], n_levels)
        errors[i] = (block[i] - rounded[i]) / factor[i, i]
        block[i + 1 :] -= torch.outer(factor[i, i + 1 :], errors[i])
    return rounded, errors


@wrong("31.5", "mends only the next column")
def round_block(block, factor, scales, zeros, n_levels):
    block, rounded, errors = block.clone(), torch.empty_like(block), torch.empty_like(block)
    for i in range(len(block)):
        rounded[i] = round_column(block[i], scales[i], zeros[i], n_levels)
        errors[i] = (block[i] - rounded[i]) / factor[i, i]
        block[i + 1 : i + 2] -= torch.outer(factor[i, i + 1 : i + 2], errors[i])
    return rounded, errors


# --- 31.6 all columns


@wrong("31.6", "never mends behind a block")
def round_columns(left, factor, grids):
    rounded, error = torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        scales, zeros = grids.of_block(left, begin, end)
        own = factor[begin:end, begin:end]
        rounded[begin:end], errors = round_block(left[begin:end], own, scales, zeros, grids.spec.n_levels)
        error += errors.square().sum().item()
    return rounded, error


@wrong("31.6", "mends only the next block behind a block")
def round_columns(left, factor, grids):
    left, rounded, error = left.clone(), torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        scales, zeros = grids.of_block(left, begin, end)
        own = factor[begin:end, begin:end]
        rounded[begin:end], errors = round_block(left[begin:end], own, scales, zeros, grids.spec.n_levels)
        reach = 2 * end - begin
        left[end:reach] -= factor[begin:end, end:reach].T @ errors
        error += errors.square().sum().item()
    return rounded, error


@wrong("31.6", "finds the grids of late groups from weights that were not mended")
def round_columns(left, factor, grids):
    first, left, rounded, error = left, left.clone(), torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        scales, zeros = grids.of_block(first, begin, end)
        own = factor[begin:end, begin:end]
        rounded[begin:end], errors = round_block(left[begin:end], own, scales, zeros, grids.spec.n_levels)
        left[end:] -= factor[begin:end, end:].T @ errors
        error += errors.square().sum().item()
    return rounded, error


@wrong("31.6", "mends with rounding errors instead of errors over U_ii")
def round_columns(left, factor, grids):
    left, rounded, error = left.clone(), torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        scales, zeros = grids.of_block(left, begin, end)
        own = factor[begin:end, begin:end]
        rounded[begin:end], errors = round_block(left[begin:end], own, scales, zeros, grids.spec.n_levels)
        left[end:] -= factor[begin:end, end:].T @ (left[begin:end] - rounded[begin:end])
        error += errors.square().sum().item()
    return rounded, error


@wrong("31.6", "the error of the last block only")
def round_columns(left, factor, grids):
    left, rounded, error = left.clone(), torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        scales, zeros = grids.of_block(left, begin, end)
        own = factor[begin:end, begin:end]
        rounded[begin:end], errors = round_block(left[begin:end], own, scales, zeros, grids.spec.n_levels)
        left[end:] -= factor[begin:end, end:].T @ errors
        error = errors.square().sum().item()
    return rounded, error


@wrong("31.6", "the right numbers, but the caller's columns are mended too")
def round_columns(left, factor, grids):
    rounded, error = torch.empty_like(left), 0.0
    for begin, end in blocks_of_columns(len(left), grids.config, grids.width):
        scales, zeros = grids.of_block(left, begin, end)
        own = factor[begin:end, begin:end]
        rounded[begin:end], errors = round_block(left[begin:end], own, scales, zeros, grids.spec.n_levels)
        left[end:] -= factor[begin:end, end:].T @ errors
        error += errors.square().sum().item()
    return rounded, error


# --- 31.7 GPTQ


@wrong("31.7", "the order is not undone: columns come back in the order of the work")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian = hessian[order][:, order]
    grids = ColumnGrids(weight, spec, config, order)
    factor, damping = damped_factor(hessian, config.damping)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(rounded.T.contiguous(), grids.result(), error, damping, expected)


@wrong("31.7", "the order is applied a second time instead of being undone")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian = hessian[order][:, order]
    grids = ColumnGrids(weight, spec, config, order)
    factor, damping = damped_factor(hessian, config.damping)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(rounded[order].T.contiguous(), grids.result(), error, damping, expected)


@wrong("31.7", "damping is forgotten")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian = hessian[order][:, order]
    grids = ColumnGrids(weight, spec, config, order)
    factor = inverse_factor(hessian)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), config.damping)
    return Rounded(rounded[order.argsort()].T.contiguous(), grids.result(), error, config.damping, expected)


@wrong("31.7", "the weights are put in order, the Hessian is not")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    grids = ColumnGrids(weight, spec, config, order)
    factor, damping = damped_factor(hessian, config.damping)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(rounded[order.argsort()].T.contiguous(), grids.result(), error, damping, expected)


@wrong("31.7", "the smallest inputs first")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = hessian.diagonal().argsort(stable=True) if config.activation_order else torch.arange(len(hessian))
    hessian = hessian[order][:, order]
    grids = ColumnGrids(weight, spec, config, order)
    factor, damping = damped_factor(hessian, config.damping)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(rounded[order.argsort()].T.contiguous(), grids.result(), error, damping, expected)


@wrong("31.7", "grids of static groups are those of other columns")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian = hessian[order][:, order]
    grids = ColumnGrids(weight, spec, config, torch.arange(len(hessian)))
    factor, damping = damped_factor(hessian, config.damping)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(rounded[order.argsort()].T.contiguous(), grids.result(), error, damping, expected)


@wrong("31.7", "the damping is added to the caller's Hessian")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    config.check_order(spec, len(hessian))
    before = hessian.diagonal().clone()
    factor, damping = damped_factor(hessian, config.damping)
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian.diagonal().add_(damping * before.mean())
    if config.activation_order:
        factor, _ = damped_factor(hessian[order][:, order], 0.0)
    grids = ColumnGrids(weight, spec, config, order)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, before[order], damping)
    return Rounded(rounded[order.argsort()].T.contiguous(), grids.result(), error, damping, expected)


@wrong("31.7", "takes whatever order and groups it is given")
def gptq(weight, hessian, spec, config=None):
    config = config or GPTQConfig()
    check_hessian_shape(weight, hessian)
    order = torch.arange(len(hessian))
    if config.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian = hessian[order][:, order]
    grids = ColumnGrids(weight, spec, config, order)
    factor, damping = damped_factor(hessian, config.damping)
    rounded, error = round_columns(weight.T[order].to(grids.scales.dtype), factor.to(grids.scales.dtype), grids)
    expected = ratio_of(factor, hessian.diagonal(), damping)
    return Rounded(rounded[order.argsort()].T.contiguous(), grids.result(), error, damping, expected)


# --- 31.8 AWQ


@wrong("31.8", "judges by the weights, not by the outputs")
def best_scales(weight, size, hessian, spec, n_steps=20):
    best = (math.inf, torch.ones_like(size), 0.0)
    for step in range(n_steps + 1):
        scales = input_scales(size, step / n_steps)
        error = (scaled_rounding(weight, scales, spec) - weight).square().sum().item()
        if error < best[0]:
            best = (error, scales, step / n_steps)
    return best[1], best[2]


@wrong("31.8", "alpha = 1 is never tried")
def best_scales(weight, size, hessian, spec, n_steps=20):
    best = (math.inf, torch.ones_like(size), 0.0)
    for step in range(n_steps):
        scales = input_scales(size, step / n_steps)
        error = output_error(scaled_rounding(weight, scales, spec) - weight, hessian).sum().item()
        if error < best[0]:
            best = (error, scales, step / n_steps)
    return best[1], best[2]


@wrong("31.8", "of equally good ones takes the last")
def best_scales(weight, size, hessian, spec, n_steps=20):
    best = (math.inf, torch.ones_like(size), 0.0)
    for step in range(n_steps + 1):
        scales = input_scales(size, step / n_steps)
        error = output_error(scaled_rounding(weight, scales, spec) - weight, hessian).sum().item()
        if error <= best[0]:
            best = (error, scales, step / n_steps)
    return best[1], best[2]


@wrong("31.8", "twenty steps, whatever was asked for")
def best_scales(weight, size, hessian, spec, n_steps=20):
    best = (math.inf, torch.ones_like(size), 0.0)
    for step in range(21):
        scales = input_scales(size, step / 20)
        error = output_error(scaled_rounding(weight, scales, spec) - weight, hessian).sum().item()
        if error < best[0]:
            best = (error, scales, step / 20)
    return best[1], best[2]


@wrong("31.8", "the root of mean size, always: alpha is not searched")
def best_scales(weight, size, hessian, spec, n_steps=20):
    return input_scales(size, 0.5), 0.5


@wrong("31.8", "judges as if all inputs were independent of each other")
def best_scales(weight, size, hessian, spec, n_steps=20):
    best = (math.inf, torch.ones_like(size), 0.0)
    for step in range(n_steps + 1):
        scales = input_scales(size, step / n_steps)
        change = scaled_rounding(weight, scales, spec) - weight
        error = (change.square() * size.square()).sum().item()
        if error < best[0]:
            best = (error, scales, step / n_steps)
    return best[1], best[2]
