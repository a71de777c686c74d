"""Wrong answers to chapter 30: the mistakes that are really made, each of which must cost exactly its task."""

import math

import numpy as np
import torch

from minillm.compress.activations import AffineRange
from minillm.compress.ggml_blocks import inverse
from minillm.compress.grid import Grid, absmax_scale, check_weights, groups_of, range_scale, usable
from minillm.compress.llm_int8 import THRESHOLD, int8_product, outlier_columns
from minillm.compress.mixed import undominated
from minillm.course.wrong_answers import wrong
from minillm.errors import ConfigError

# --- 30.1 a range with a zero


@wrong("30.1", "the range is not widened: its zero is no code, and cutting it moves every value")
def affine_range(low, high, bits=8):
    if not (-torch.inf < low <= high < torch.inf) or not 2 <= bits <= 8:
        raise ConfigError("a range")
    scale = (high - low) / (2**bits - 1)
    return AffineRange(scale, round(-low / scale), bits) if scale > 0 else AffineRange(1.0, 0, bits)


@wrong("30.1", "the zero is cut to the codes instead of the range being widened: the step is too fine")
def affine_range(low, high, bits=8):
    if not (-torch.inf < low <= high < torch.inf) or not 2 <= bits <= 8:
        raise ConfigError("a range")
    if low == high == 0:
        return AffineRange(1.0, 0, bits)
    scale = (high - low) / (2**bits - 1) or abs(low) / (2**bits - 1)
    return AffineRange(scale, min(max(round(-low / scale), 0), 2**bits - 1), bits)


@wrong("30.1", "divided by the number of codes, not by the number of steps between them")
def affine_range(low, high, bits=8):
    if not (-torch.inf < low <= high < torch.inf) or not 2 <= bits <= 8:
        raise ConfigError("a range")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 2**bits
    return AffineRange(scale, round(-low / scale), bits) if scale > 0 else AffineRange(1.0, 0, bits)


@wrong("30.1", "the zero is cut to a whole number, not rounded")
def affine_range(low, high, bits=8):
    if not (-torch.inf < low <= high < torch.inf) or not 2 <= bits <= 8:
        raise ConfigError("a range")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return AffineRange(scale, int(-low / scale), bits) if scale > 0 else AffineRange(1.0, 0, bits)


@wrong("30.1", "a range of zeros is divided by")
def affine_range(low, high, bits=8):
    if not (-torch.inf < low <= high < torch.inf) or not 2 <= bits <= 8:
        raise ConfigError("a range")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return AffineRange(scale, round(-low / scale), bits)


@wrong("30.1", "NaN passes, since no comparison with it is true")
def affine_range(low, high, bits=8):
    if low > high or abs(low) == torch.inf or abs(high) == torch.inf or not 2 <= bits <= 8:
        raise ConfigError("a range")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return AffineRange(scale, round(-low / scale), bits) if scale > 0 else AffineRange(1.0, 0, bits)


# --- 30.2 codes


@wrong("30.2", "no cut to the ends of the grid: what lies outside becomes a code that there is not")
def codes_of(values, scale, zero, n_levels):
    return (values / scale).round() + zero


@wrong("30.2", "halves are rounded up")
def codes_of(values, scale, zero, n_levels):
    return ((values / scale + 0.5).floor() + zero).clamp(0, n_levels - 1)


@wrong("30.2", "fractions are cut, not rounded")
def codes_of(values, scale, zero, n_levels):
    return ((values / scale).trunc() + zero).clamp(0, n_levels - 1)


@wrong("30.2", "the zero is added before rounding, so that halves go to the even code and not to the even step")
def codes_of(values, scale, zero, n_levels):
    return (values / scale + zero).round().clamp(0, n_levels - 1)


@wrong("30.2", "cut to one code too many: 2^b does not fit into b bits")
def codes_of(values, scale, zero, n_levels):
    return ((values / scale).round() + zero).clamp(0, n_levels)


@wrong("30.2", "cut before the zero is added")
def codes_of(values, scale, zero, n_levels):
    return (values / scale).round().clamp(0, n_levels - 1) + zero


# --- 30.3 grids


@wrong("30.3", "scales are transposed: groups are cut from columns")
def find_grid(weight, spec):
    check_weights(weight)
    groups = groups_of(weight.T.reshape(weight.shape), spec)
    if spec.symmetric:
        scale = usable(absmax_scale(groups, spec.bits, spec.convention))
        zero = torch.full_like(scale, 2 ** (spec.bits - 1))
    else:
        scale = usable(range_scale(groups, spec.bits))
        zero = (groups.amin(-1).clamp(max=0.0).abs() / scale).round()
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


@wrong("30.3", "the zero comes from the smallest weight although the range was widened")
def find_grid(weight, spec):
    check_weights(weight)
    groups = groups_of(weight, spec)
    if spec.symmetric:
        scale = usable(absmax_scale(groups, spec.bits, spec.convention))
        zero = torch.full_like(scale, 2 ** (spec.bits - 1))
    else:
        scale = usable(range_scale(groups, spec.bits))
        zero = (-groups.amin(-1) / scale).round()
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


@wrong("30.3", "symmetric grids have their zero at code 0, as if codes were signed")
def find_grid(weight, spec):
    check_weights(weight)
    groups = groups_of(weight, spec)
    if spec.symmetric:
        scale = usable(absmax_scale(groups, spec.bits, spec.convention))
        zero = torch.zeros_like(scale)
    else:
        scale = usable(range_scale(groups, spec.bits))
        zero = (groups.amin(-1).clamp(max=0.0).abs() / scale).round()
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


@wrong("30.3", "a group of zeros has scale 0, and dividing by it makes NaN")
def find_grid(weight, spec):
    check_weights(weight)
    groups = groups_of(weight, spec)
    if spec.symmetric:
        scale = absmax_scale(groups, spec.bits, spec.convention)
        zero = torch.full_like(scale, 2 ** (spec.bits - 1))
    else:
        scale = range_scale(groups, spec.bits)
        zero = (groups.amin(-1).clamp(max=0.0).abs() / usable(scale)).round()
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


@wrong("30.3", "the convention is forgotten: every symmetric grid is the textbook's")
def find_grid(weight, spec):
    check_weights(weight)
    groups = groups_of(weight, spec)
    if spec.symmetric:
        scale = usable(absmax_scale(groups, spec.bits))
        zero = torch.full_like(scale, 2 ** (spec.bits - 1))
    else:
        scale = usable(range_scale(groups, spec.bits))
        zero = (groups.amin(-1).clamp(max=0.0).abs() / scale).round()
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


@wrong("30.3", "the zero is left between two codes")
def find_grid(weight, spec):
    check_weights(weight)
    groups = groups_of(weight, spec)
    if spec.symmetric:
        scale = usable(absmax_scale(groups, spec.bits, spec.convention))
        zero = torch.full_like(scale, 2 ** (spec.bits - 1))
    else:
        scale = usable(range_scale(groups, spec.bits))
        zero = groups.amin(-1).clamp(max=0.0).abs() / scale
    return Grid(scale.expand(len(weight), -1), zero.expand(len(weight), -1), spec)


# --- 30.4 packing


@wrong("30.4", "nibbles are swapped: the first part lies in the high bits")
def pack_plane(codes, width):
    n_parts = 8 // width
    missing = -codes.shape[-1] % n_parts
    parts = torch.nn.functional.pad(codes, (0, missing)).chunk(n_parts, dim=-1)[::-1]
    packed = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        packed = packed | part << index * width
    return packed


@wrong("30.4", "neighbours share a byte")
def pack_plane(codes, width):
    n_parts = 8 // width
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % n_parts))
    parts = padded.unflatten(-1, (-1, n_parts)).unbind(-1)
    packed = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        packed = packed | part << index * width
    return packed


@wrong("30.4", "rows that are no whole number of bytes lose their end")
def pack_plane(codes, width):
    n_parts = 8 // width
    n_bytes = codes.shape[-1] // n_parts
    packed = torch.zeros(*codes.shape[:-1], n_bytes, dtype=torch.uint8)
    for index in range(n_parts):
        packed = packed | codes[..., index * n_bytes : (index + 1) * n_bytes] << index * width
    return packed


@wrong("30.4", "every part is moved by its number, not by its number of widths")
def pack_plane(codes, width):
    n_parts = 8 // width
    missing = -codes.shape[-1] % n_parts
    parts = torch.nn.functional.pad(codes, (0, missing)).chunk(n_parts, dim=-1)
    packed = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        packed = packed | part << index
    return packed


@wrong("30.4", "the zeros that fill up stand before the row")
def pack_plane(codes, width):
    n_parts = 8 // width
    missing = -codes.shape[-1] % n_parts
    parts = torch.nn.functional.pad(codes, (missing, 0)).chunk(n_parts, dim=-1)
    packed = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        packed = packed | part << index * width
    return packed


# --- 30.5 blocks as in Q4_0


@wrong("30.5", "the sign of the farthest weight is lost: a positive one has no code and is cut")
def signed_codes(blocks, n_levels):
    scale = np.abs(blocks).max(-1) / np.float32(n_levels // 2)
    shifted = blocks * inverse(scale)[:, None] + np.float32(n_levels // 2 + 0.5)
    return scale, np.minimum(np.trunc(shifted), n_levels - 1).astype(np.uint8)


@wrong("30.5", "the one code that is too high is not cut, and spills into the neighbour's bits")
def signed_codes(blocks, n_levels):
    farthest = np.abs(blocks).argmax(-1)
    scale = blocks[np.arange(len(blocks)), farthest] / np.float32(-n_levels // 2)
    shifted = blocks * inverse(scale)[:, None] + np.float32(n_levels // 2 + 0.5)
    return scale, np.trunc(shifted).astype(np.uint8)


@wrong("30.5", "halves go to the even code, as elsewhere but not in ggml")
def signed_codes(blocks, n_levels):
    farthest = np.abs(blocks).argmax(-1)
    scale = blocks[np.arange(len(blocks)), farthest] / np.float32(-n_levels // 2)
    steps = blocks * inverse(scale)[:, None] + np.float32(n_levels // 2)
    return scale, np.minimum(np.rint(steps), n_levels - 1).astype(np.uint8)


@wrong("30.5", "divided by one level less, as if both ends had to be met")
def signed_codes(blocks, n_levels):
    farthest = np.abs(blocks).argmax(-1)
    scale = blocks[np.arange(len(blocks)), farthest] / np.float32(1 - n_levels // 2)
    shifted = blocks * inverse(scale)[:, None] + np.float32(n_levels // 2 + 0.5)
    return scale, np.clip(np.trunc(shifted), 0, n_levels - 1).astype(np.uint8)


@wrong("30.5", "codes are found with the scale after it was rounded to fp16")
def signed_codes(blocks, n_levels):
    farthest = np.abs(blocks).argmax(-1)
    scale = blocks[np.arange(len(blocks)), farthest] / np.float32(-n_levels // 2)
    rounded = scale.astype(np.float16).astype(np.float32)
    shifted = blocks * inverse(rounded)[:, None] + np.float32(n_levels // 2 + 0.5)
    return rounded, np.clip(np.trunc(shifted), 0, n_levels - 1).astype(np.uint8)


@wrong("30.5", "one scale for all blocks")
def signed_codes(blocks, n_levels):
    flat = blocks.reshape(-1)
    scale = np.full(len(blocks), flat[np.abs(flat).argmax()] / np.float32(-n_levels // 2), dtype=np.float32)
    shifted = blocks * inverse(scale)[:, None] + np.float32(n_levels // 2 + 0.5)
    return scale, np.minimum(np.trunc(shifted), n_levels - 1).astype(np.uint8)


# --- 30.6 products of integers with outliers


@wrong("30.6", "outliers stay in the integer product: they set the scale, and are counted twice")
def mixed_product(x, weight_codes, weight_scale, threshold=THRESHOLD):
    outliers = outlier_columns(x, threshold)
    whole = int8_product(x, weight_codes, weight_scale)
    kept = weight_codes[:, outliers] * weight_scale
    return whole.to(x.dtype) + x[..., outliers] @ kept.T.to(x.dtype)


@wrong("30.6", "scales are found with the outliers, which are taken out of the codes only")
def mixed_product(x, weight_codes, weight_scale, threshold=THRESHOLD):
    outliers = outlier_columns(x, threshold)
    codes = weight_codes.masked_fill(outliers, 0)
    kept = weight_codes[:, outliers] * weight_scale
    whole = int8_product(x, codes, weight_scale)
    return whole.to(x.dtype) + x[..., outliers] @ kept.T.to(x.dtype)


@wrong("30.6", "single numbers are taken out, not whole columns")
def mixed_product(x, weight_codes, weight_scale, threshold=THRESHOLD):
    large = x.abs() >= threshold
    kept = weight_codes * weight_scale
    whole = int8_product(x.masked_fill(large, 0.0), weight_codes, weight_scale)
    return whole.to(x.dtype) + x.masked_fill(~large, 0.0) @ kept.T.to(x.dtype)


@wrong("30.6", "the weights of the outlier columns are used as codes, without their scale")
def mixed_product(x, weight_codes, weight_scale, threshold=THRESHOLD):
    outliers = outlier_columns(x, threshold)
    whole = int8_product(x.masked_fill(outliers, 0.0), weight_codes, weight_scale)
    return whole.to(x.dtype) + x[..., outliers] @ weight_codes[:, outliers].T.to(x.dtype)


@wrong("30.6", "only numbers above the threshold are outliers, those on it are not")
def mixed_product(x, weight_codes, weight_scale, threshold=THRESHOLD):
    outliers = (x.abs() > threshold).flatten(0, -2).any(0)
    whole = int8_product(x.masked_fill(outliers, 0.0), weight_codes, weight_scale)
    kept = weight_codes[:, outliers] * weight_scale
    return whole.to(x.dtype) + x[..., outliers] @ kept.T.to(x.dtype)


@wrong("30.6", "outliers are thrown away")
def mixed_product(x, weight_codes, weight_scale, threshold=THRESHOLD):
    whole = int8_product(x.masked_fill(outlier_columns(x, threshold), 0.0), weight_codes, weight_scale)
    return whole.to(x.dtype)


# --- 30.7 fixed-point numbers


@wrong("30.7", "no half is added: everything is rounded down, and the error has one sign")
def scale_down(sums, mantissa, shift):
    return (sums.long() * mantissa) >> (31 + shift)


@wrong("30.7", "halves go away from zero")
def scale_down(sums, mantissa, shift):
    places = 31 + shift
    half = torch.ones_like(places) << (places - 1)
    product = sums.long() * mantissa
    return torch.sign(product) * ((product.abs() + half) >> places)


@wrong("30.7", "the product is kept in 32 bits, where it overflows")
def scale_down(sums, mantissa, shift):
    places = 31 + shift
    half = torch.ones_like(places) << (places - 1)
    return ((sums.int() * mantissa.int()).long() + half) >> places


@wrong("30.7", "the mantissa is taken for a fraction of 2^32")
def scale_down(sums, mantissa, shift):
    places = 32 + shift
    half = torch.ones_like(places) << (places - 1)
    return (sums.long() * mantissa + half) >> places


@wrong("30.7", "rounded twice: once after the product, once after the shift")
def scale_down(sums, mantissa, shift):
    high = (sums.long() * mantissa + 2**30) >> 31
    places = shift.clamp(min=0)
    half = torch.where(places > 0, torch.ones_like(places) << (places - 1).clamp(min=0), 0)
    return ((high + half) >> places) << (-shift).clamp(min=0)


@wrong("30.7", "a float is used, in single precision")
def scale_down(sums, mantissa, shift):
    return (sums.float() * mantissa.float() / 2.0 ** (31 + shift) + 0.5).floor().long()


# --- 30.8 bits by a budget


@wrong("30.8", "greed: always the step that helps most for its bits")
def allocate_bits(rises, sizes, bits_per_weight):
    total = sum(sizes[name] for name in rises)
    chosen = {name: min(options) for name, options in rises.items()}
    if sum(chosen[name] * sizes[name] for name in rises) > bits_per_weight * total + 1e-6:
        raise ConfigError("the budget is too small")
    while True:
        spent = sum(chosen[name] * sizes[name] for name in rises)
        steps = [
            ((options[chosen[name]] - options[bits]) / ((bits - chosen[name]) * sizes[name]), name, bits)
            for name, options in rises.items()
            for bits in options
            if bits > chosen[name]
            and spent + (bits - chosen[name]) * sizes[name] <= bits_per_weight * total + 1e-6
            and options[bits] < options[chosen[name]]
        ]
        if not steps:
            return chosen
        _, name, bits = max(steps)
        chosen[name] = bits


@wrong("30.8", "layers are counted, not their weights")
def allocate_bits(rises, sizes, bits_per_weight):
    budget = math.floor(bits_per_weight * len(rises) + 1e-6)
    ways = [(0, 0.0, {})]
    for name, options in rises.items():
        longer = [(c + bits, r + options[bits], chosen | {name: bits}) for c, r, chosen in ways for bits in options]
        ways = undominated([way for way in longer if way[0] <= budget])
    if not ways:
        raise ConfigError("the budget is too small")
    return ways[-1][2]


@wrong("30.8", "the cheapest way is returned, not the best")
def allocate_bits(rises, sizes, bits_per_weight):
    total = sum(sizes[name] for name in rises)
    budget = math.floor(bits_per_weight * total + 1e-6)
    ways = [(0, 0.0, {})]
    for name, options in rises.items():
        longer = [
            (c + bits * sizes[name], r + options[bits], chosen | {name: bits})
            for c, r, chosen in ways
            for bits in options
        ]
        ways = undominated([way for way in longer if way[0] <= budget])
    if not ways:
        raise ConfigError("the budget is too small")
    return ways[0][2]


@wrong("30.8", "sizes of layers that have no choice enter the budget")
def allocate_bits(rises, sizes, bits_per_weight):
    budget = math.floor(bits_per_weight * sum(sizes.values()) + 1e-6)
    ways = [(0, 0.0, {})]
    for name, options in rises.items():
        longer = [
            (c + bits * sizes[name], r + options[bits], chosen | {name: bits})
            for c, r, chosen in ways
            for bits in options
        ]
        ways = undominated([way for way in longer if way[0] <= budget])
    if not ways:
        raise ConfigError("the budget is too small")
    return ways[-1][2]


@wrong("30.8", "the largest rise of a layer is made small, not their sum")
def allocate_bits(rises, sizes, bits_per_weight):
    total = sum(sizes[name] for name in rises)
    budget = math.floor(bits_per_weight * total + 1e-6)
    ways = [(0, -math.inf, {})]
    for name, options in rises.items():
        longer = [
            (c + bits * sizes[name], max(r, options[bits]), chosen | {name: bits})
            for c, r, chosen in ways
            for bits in options
        ]
        ways = undominated([way for way in longer if way[0] <= budget])
    if not ways:
        raise ConfigError("the budget is too small")
    return ways[-1][2]


@wrong("30.8", "a budget that is too small is answered with the fewest bits, which do not fit either")
def allocate_bits(rises, sizes, bits_per_weight):
    total = sum(sizes[name] for name in rises)
    budget = math.floor(bits_per_weight * total + 1e-6)
    ways = [(0, 0.0, {})]
    for name, options in rises.items():
        longer = [
            (c + bits * sizes[name], r + options[bits], chosen | {name: bits})
            for c, r, chosen in ways
            for bits in options
        ]
        ways = undominated([way for way in longer if way[0] <= budget])
    return ways[-1][2] if ways else {name: min(options) for name, options in rises.items()}
