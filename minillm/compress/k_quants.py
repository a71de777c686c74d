"""GGML's K-quants Q4_K and Q6_K, byte for byte: 256 weights, whose small scales are themselves quantized.

A super-block of Q4_K has eight sub-blocks of 32 weights, each with a scale and a minimum of 6 bits; two numbers of 16
bits give these their size. Q6_K has sixteen sub-blocks of 16 with scales of 8 bits. Nothing here follows the simple
rule "largest weight over number of levels": several scales are tried, for each the best line through (code, weight) is
fitted by weighted least squares, and the one with the smallest weighted error is kept.

Sums run in float32 from left to right, as C runs them: numpy's own `sum` adds in pairs, and about one super-block in a
hundred came out with other bytes.

Dimensions: n blocks, S sub-blocks of all super-blocks together, W weights of a sub-block.
"""

import numpy as np

from minillm.compress.ggml_blocks import as_bytes, as_numbers, pack_halves, unpack_halves

SUPER = 256
NEARLY_ZERO = np.float32(1e-15)  # below it a sub-block of Q6_K is taken for zeros


def sums(values: np.ndarray) -> np.ndarray:
    """(S, W) float32 to (S,): the sum from left to right, every partial sum rounded to float32.

    Example:
        >>> sums(np.array([[1e8, 1.0, -1e8, 1.0]], dtype=np.float32)).tolist()
        [1.0]
    """
    return np.cumsum(values, axis=-1, dtype=np.float32)[..., -1]


def over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their ratio, and 0 where the denominator is 0."""
    good = denominator != 0
    return np.where(good, numerator / np.where(good, denominator, np.float32(1)), np.float32(0))


def nearest_codes(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Round to the nearest whole number, halves to the even one, and clip; stays float32."""
    return np.clip(np.rint(values), low, high)


def fit_line(x: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scale and the minimum, at most 0, with which x is nearest to scale code + minimum in weighted squares.

    Args:
        x, codes, weights: (S, W) float32.

    Returns:
        scale (S,), minimum (S,), and whether there is such a line (S,): not if all codes are equal.

    Source:
        Normal equations of weighted linear regression, in the order of ggml's `make_qkx2_quants`.

    Example:
        >>> x, codes = np.array([[-1.0, 1.0, 3.0]], dtype=np.float32), np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
        >>> [part.tolist() for part in fit_line(x, codes, np.ones_like(x))]
        [[2.0], [-1.0], [True]]
    """
    weighted = weights * codes                                     # (S, W)
    sum_w, sum_x, sum_l = sums(weights), sums(weights * x), sums(weighted)  # (S,)
    sum_ll, sum_xl = sums(weighted * codes), sums(weighted * x)    # (S,)
    determinant = sum_w * sum_ll - sum_l * sum_l                   # (S,)
    scale = over(sum_w * sum_xl - sum_x * sum_l, determinant)
    minimum = over(sum_ll * sum_x - sum_l * sum_xl, determinant)
    above = minimum > 0
    return np.where(above, over(sum_xl, sum_ll), scale), np.minimum(minimum, np.float32(0)), determinant > 0


def search_scale_and_minimum(
    x: np.ndarray, weights: np.ndarray, n_codes: int = 15, n_tries: int = 21
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes from 0 to n_codes, and the scale and minimum that fit them best.

    The first guess takes the levels from the smallest to the largest weight. Each try stretches them a little, rounds,
    and fits a line. A try that is kept moves the minimum from which, and the width with which, the *next* are rounded.

    Args:
        x, weights: (S, W) float32.
        n_codes: the highest code.
        n_tries: how many stretches, 0.1 apart, from one level less.

    Returns:
        scale (S,), minimum (S,) at most 0, codes (S, W) float32.

    Source:
        ggml, `make_qkx2_quants` with rmin -1, rdelta 0.1, nstep 20.
    """
    smallest, largest = np.minimum(x.min(-1), np.float32(0)), x.max(-1)  # (S,)
    width = largest - smallest                                     # (S,)
    scale = over(np.float32(1), over(np.float32(n_codes), width))
    minimum = smallest
    codes = nearest_codes(over(np.float32(n_codes), width)[:, None] * (x - minimum[:, None]), 0, n_codes)
    best = sums(weights * (scale[:, None] * codes + minimum[:, None] - x) ** 2)
    for step in range(n_tries):
        n_steps = np.float32(-1) + np.float32(0.1) * np.float32(step) + np.float32(n_codes)
        stretch = over(n_steps, largest - minimum)           # (S,)
        tried = nearest_codes(stretch[:, None] * (x - minimum[:, None]), 0, n_codes)
        slope, offset, exists = fit_line(x, tried, weights)
        error = sums(weights * (slope[:, None] * tried + offset[:, None] - x) ** 2)  # (S,)
        better = exists & (error < best) & (width > 0)
        best, scale = np.where(better, error, best), np.where(better, slope, scale)
        minimum, codes = np.where(better, offset, minimum), np.where(better[:, None], tried, codes)
    return scale, minimum, codes


def six_bits(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """(n, 8) numbers at least 0 to codes from 0 to 63, of which 63 means the largest."""
    return np.minimum(np.rint(over(np.float32(63), largest)[:, None] * values), 63).astype(np.uint8)


def pack_six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima of 6 bits in twelve bytes.

    The first four of each have a byte, whose two highest bits are lent to the last four; the low halves of those share
    the last four bytes.

    Args:
        scales, minima: (n, 8) uint8 from 0 to 63.

    Returns:
        (n, 12) uint8.

    Example:
        >>> pack_six_bits(np.arange(8, dtype=np.uint8)[None] * 9, np.arange(8, dtype=np.uint8)[None]).tolist()
        [[128, 137, 210, 219, 0, 1, 2, 3, 68, 93, 102, 127]]
    """
    low_scales, high_scales = np.split(scales, 2, axis=-1)         # (n, 4)
    low_minima, high_minima = np.split(minima, 2, axis=-1)         # (n, 4)
    lent = [low_scales | high_scales >> 4 << 6, low_minima | high_minima >> 4 << 6]
    return np.concatenate([*lent, (high_scales & 0xF) | (high_minima & 0xF) << 4], -1)


def unpack_six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The other way: (n, 12) uint8 to scales and minima, (n, 8) each."""
    first, second, shared = np.split(data, 3, axis=-1)             # (n, 4)
    scales = np.concatenate([first & 63, (shared & 0xF) | first >> 6 << 4], -1)
    return scales, np.concatenate([second & 63, shared >> 4 | second >> 6 << 4], -1)


def encode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """(n, 256) float32 to (n, 144) bytes: two sizes in fp16, 12 bytes of scales and minima, 128 of codes.

    Scale and minimum are searched per sub-block with weights rms + |x|, rounded to 6 bits, and the codes are found
    again with what was stored.

    Source:
        ggml, `quantize_row_q4_K_ref`.
    """
    n = len(blocks)
    x = blocks.reshape(-1, 32)                                     # (S, 32)
    weights = np.sqrt(sums(x * x) / np.float32(32))[:, None] + np.abs(x)  # (S, 32)
    scale, minimum, codes = search_scale_and_minimum(x, weights)
    scale, depth = scale.reshape(n, 8), -minimum.reshape(n, 8)     # (n, 8)
    largest = np.maximum(np.stack([scale.max(-1), depth.max(-1)], -1), np.float32(0))  # (n, 2)
    small_scales, small_depths = six_bits(scale, largest[:, 0]), six_bits(depth, largest[:, 1])
    sizes = as_bytes(largest / np.float32(63), np.float16)         # (n, 4)
    step, shift = q4_k_steps(sizes, small_scales, small_depths)
    again = nearest_codes(over((x + shift), step), 0, 15)
    codes = np.where(step != 0, again, codes).astype(np.uint8).reshape(n, 4, 64)
    packed = pack_halves(codes).reshape(n, 128)                    # (n, 128)
    return np.concatenate([sizes, pack_six_bits(small_scales, small_depths), packed], -1)


def q4_k_steps(sizes: np.ndarray, scales: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step and depth of every sub-block, (S, 1) each, from what is stored."""
    numbers = as_numbers(sizes, np.float16)                        # (n, 2)
    return (numbers[:, :1] * scales).reshape(-1, 1), (numbers[:, 1:] * depths).reshape(-1, 1)


def decode_q4_k(data: np.ndarray) -> np.ndarray:
    """(n, 144) bytes to (n, 256) float32: size scale code - size minimum."""
    step, depth = q4_k_steps(data[:, :4], *unpack_six_bits(data[:, 4:16]))
    codes = unpack_halves(data[:, 16:].reshape(-1, 4, 32)).reshape(-1, 32)
    return (step * codes - depth).reshape(-1, SUPER)


def search_scale(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes from -32 to 31, and the scale that fits them best, errors weighted with x squared.

    Args:
        x: (S, 16) float32.

    Returns:
        scale (S,) of either sign, and codes (S, 16) float32.

    Source:
        ggml, `make_qx_quants` with nmax 32 and rmse_type 1: 19 inverse scales around -32 / (weight farthest from zero).
    """
    farthest = np.take_along_axis(x, np.abs(x).argmax(-1)[:, None], -1)[:, 0]  # (S,)
    alive = np.abs(farthest) >= NEARLY_ZERO
    codes, scale, best = np.full_like(x, -32), np.zeros_like(farthest), np.zeros_like(farthest)
    for step in [0, *range(-9, 0), *range(1, 10)]:
        inverse_scale = over(-(np.float32(32) + np.float32(0.1) * np.float32(step)), farthest)
        tried = nearest_codes(inverse_scale[:, None] * x, -32, 31)
        sum_xl, sum_ll = sums(x * x * x * tried), sums(x * x * tried * tried)  # (S,)
        first = step == 0
        better = alive & (first | ((sum_ll > 0) & (sum_xl * sum_xl > best * sum_ll)))
        fitted = over(sum_xl, sum_ll)
        codes, scale = np.where(better[:, None], tried, codes), np.where(better, fitted, scale)
        best = np.where(better, fitted * sum_xl, best)
    return scale, codes


def encode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """(n, 256) float32 to (n, 210) bytes: 128 of low halves, 64 of high pairs, 16 scales in int8, a size in fp16.

    Source:
        ggml, `quantize_row_q6_K_ref`.
    """
    x = blocks.reshape(-1, 16)                                     # (S, 16)
    scale, codes = search_scale(x)
    scale = scale.reshape(-1, 16)                                  # (n, 16)
    farthest = np.take_along_axis(scale, np.abs(scale).argmax(-1)[:, None], -1)[:, 0]  # (n,)
    farthest = np.where(np.abs(farthest) < NEARLY_ZERO, np.float32(0), farthest)
    inverse_size = over(np.float32(-128), farthest)                # (n,)
    size = as_bytes(over(np.float32(1), inverse_size), np.float16)  # (n, 2)
    small = np.minimum(np.rint(inverse_size[:, None] * scale), 127).astype(np.int8)  # (n, 16)
    step = (as_numbers(size, np.float16) * small).reshape(-1, 1)   # (S, 1)
    codes = np.where(step != 0, nearest_codes(over(x, step), -32, 31), codes) + 32
    codes = np.where(np.repeat(farthest, 16)[:, None] != 0, codes, 0).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = pack_halves(codes.reshape(-1, 2, 128)).reshape(-1, 128)  # (n, 128)
    pairs = codes >> 4 << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    return np.concatenate([low, np.bitwise_or.reduce(pairs, axis=2).reshape(-1, 64), small.view(np.uint8), size], -1)


def decode_q6_k(data: np.ndarray) -> np.ndarray:
    """(n, 210) bytes to (n, 256) float32: size scale (code - 32)."""
    step = as_numbers(data[:, 208:], np.float16) * data[:, 192:208].view(np.int8)  # (n, 16)
    low = unpack_halves(data[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    pairs = data[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    codes = (low | pairs << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    return (step[..., None] * codes).reshape(-1, SUPER)
