"""GGML's small blocks, byte for byte: 32 weights of a row, a scale in 16 bits, and codes of 8, 5 or 4 bits.

Types whose name ends in 0 store a scale only, so that zero is a level and the levels lie nearly even on both sides of
it. Those that end in 1 store the smallest weight too. Codes of four bits lie in *planar halves*: byte j holds weight j
in its low half and weight j + 16 in its high half, so that one shift unpacks 16 neighbours at once.

All arithmetic is in float32 and in the order of ggml's C, which makes the bytes equal and not only the values near.

Dimensions: n blocks.
"""

import numpy as np

from minillm.errors import DataError

BLOCK = 32


def as_bytes(numbers: np.ndarray, dtype: type) -> np.ndarray:
    """(n,) or (n, k) numbers in a format, as (n, bytes) uint8 in little-endian order.

    Raises:
        DataError: if a number has no finite form in that format.

    Example:
        >>> as_bytes(np.array([1.0, -2.0]), np.float16).tolist()
        [[0, 60], [0, 192]]
    """
    with np.errstate(over="ignore"):
        stored = numbers.reshape(len(numbers), -1).astype(np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(stored).all():
        worst = float(np.abs(numbers).max())
        raise DataError(f"a block needs the scale {worst:g}, but fp16 ends at 65504: these weights are too large")
    return stored.view(np.uint8)


def as_numbers(data: np.ndarray, dtype: type) -> np.ndarray:
    """(n, bytes) uint8 back to (n, k) float32.

    Example:
        >>> as_numbers(np.array([[0, 60], [0, 192]], dtype=np.uint8), np.float16).tolist()
        [[1.0], [-2.0]]
    """
    return np.ascontiguousarray(data).view(np.dtype(dtype).newbyteorder("<")).astype(np.float32)


def inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 where the scale is 0 or so small that its inverse is infinite.

    Example:
        >>> inverse(np.array([4.0, 0.0, 1e-40], dtype=np.float32)).tolist()
        [0.25, 0.0, 0.0]
    """
    with np.errstate(divide="ignore", over="ignore"):
        inverted = np.float32(1) / scale
    return np.where(np.isfinite(inverted), inverted, np.float32(0))


def pack_halves(codes: np.ndarray) -> np.ndarray:
    """Codes of four bits, two to a byte: weight j low, weight j + half the row high; higher bits are dropped.

    Args:
        codes: (n, w) uint8, w even.

    Returns:
        (n, w / 2) uint8.

    Source:
        ggml, `quantize_row_q4_0_ref`.

    Example:
        >>> [f"{byte:02x}" for byte in pack_halves(np.array([[1, 2, 14, 15]], dtype=np.uint8))[0]]
        ['e1', 'f2']
    """
    low, high = np.split(codes, 2, axis=-1)
    return (low & 0xF) | (high & 0xF) << 4


def unpack_halves(data: np.ndarray) -> np.ndarray:
    """The other way: (n, w / 2) uint8 to (n, w) codes from 0 to 15.

    Example:
        >>> unpack_halves(np.array([[0xE1, 0xF2]], dtype=np.uint8)).tolist()
        [[1, 2, 14, 15]]
    """
    return np.concatenate([data & 0xF, data >> 4], axis=-1)


def signed_codes(blocks: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight farthest from zero becomes the lowest level, code 0; zero is code n_levels / 2.

    The scale takes the *sign* of that weight, turned: it is used to the end, and the other side has one level less.
    Codes are found with the scale before it is rounded to fp16.

    Args:
        blocks: (n, 32) float32.
        n_levels: 16 or 32.

    Returns:
        scale (n,) float32, and codes (n, 32) uint8; a weight is about scale (code - n_levels / 2).

    Source:
        ggml, `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref`: half is added and the fraction cut.

    Example:
        >>> scale, codes = signed_codes(np.array([[-1.0, 0.5, 4.0, 0.24]], dtype=np.float32), 16)
        >>> scale.tolist(), codes.tolist()
        ([-0.5], [[10, 7, 0, 8]])
    """
    half, farthest = n_levels // 2, np.abs(blocks).argmax(-1)
    scale = blocks[np.arange(len(blocks)), farthest] / -half       # (n,)
    shifted = blocks * inverse(scale)[:, None] + (half + 0.5)
    return scale, np.minimum(shifted, n_levels - 1).astype(np.uint8)


def affine_codes(blocks: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels from the smallest weight to the largest.

    Args:
        blocks: (n, 32) float32.
        n_levels: 16 or 32.

    Returns:
        scale (n,), smallest (n,), and codes (n, 32) uint8; a weight is about scale code + smallest.

    Source:
        ggml, `quantize_row_q4_1_ref` and `quantize_row_q5_1_ref`.

    Example:
        >>> [part.tolist() for part in affine_codes(np.array([[-1.0, 2.0, 14.0]], dtype=np.float32), 16)]
        [[1.0], [-1.0], [[0, 3, 15]]]
    """
    smallest, largest = blocks.min(-1), blocks.max(-1)             # (n,)
    scale = (largest - smallest) / np.float32(n_levels - 1)        # (n,)
    steps = (blocks - smallest[:, None]) * inverse(scale)[:, None]
    return scale, smallest, np.minimum(np.trunc(steps + np.float32(0.5)), n_levels - 1).astype(np.uint8)


def fifth_bits(codes: np.ndarray) -> np.ndarray:
    """Bit 4 of 32 codes as four bytes, that of the first weight lowest: (n, 32) -> (n, 4)."""
    return np.packbits(codes >> 4, axis=-1, bitorder="little")


def with_fifth_bits(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Codes of five bits from their low four (n, 32) and their highest (n, 4)."""
    return low | np.unpackbits(high, axis=-1, bitorder="little") << 4


def encode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """(n, 32) float32 to (n, 34) bytes: scale = largest / 127, codes rounded with halves away from zero."""
    scale = np.abs(blocks).max(-1) / np.float32(127)               # (n,)
    steps = blocks * inverse(scale)[:, None]                       # (n, 32)
    whole = np.trunc(steps)
    codes = whole + np.sign(steps) * (np.abs(steps - whole) >= 0.5)
    return np.concatenate([as_bytes(scale, np.float16), codes.astype(np.int8).view(np.uint8)], -1)


def decode_q8_0(data: np.ndarray) -> np.ndarray:
    """(n, 34) bytes to (n, 32) float32."""
    return as_numbers(data[:, :2], np.float16) * data[:, 2:].view(np.int8).astype(np.float32)


def encode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """(n, 32) float32 to (n, 18) bytes: the scale, then 16 bytes of planar halves."""
    scale, codes = signed_codes(blocks, 16)
    return np.concatenate([as_bytes(scale, np.float16), pack_halves(codes)], -1)


def decode_q4_0(data: np.ndarray) -> np.ndarray:
    """(n, 18) bytes to (n, 32) float32: scale (code - 8)."""
    return as_numbers(data[:, :2], np.float16) * (unpack_halves(data[:, 2:]).astype(np.float32) - 8)


def encode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """(n, 32) float32 to (n, 20) bytes: scale, smallest weight, codes."""
    scale, smallest, codes = affine_codes(blocks, 16)
    return np.concatenate([as_bytes(scale, np.float16), as_bytes(smallest, np.float16), pack_halves(codes)], -1)


def decode_q4_1(data: np.ndarray) -> np.ndarray:
    """(n, 20) bytes to (n, 32) float32: scale code + smallest."""
    scale, smallest = np.split(as_numbers(data[:, :4], np.float16), 2, axis=-1)  # (n, 1)
    return scale * unpack_halves(data[:, 4:]).astype(np.float32) + smallest


def encode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """(n, 32) float32 to (n, 22) bytes: scale, the codes' fifth bits, their low halves."""
    scale, codes = signed_codes(blocks, 32)
    return np.concatenate([as_bytes(scale, np.float16), fifth_bits(codes), pack_halves(codes)], -1)


def decode_q5_0(data: np.ndarray) -> np.ndarray:
    """(n, 22) bytes to (n, 32) float32: scale (code - 16)."""
    codes = with_fifth_bits(unpack_halves(data[:, 6:]), data[:, 2:6])  # (n, 32)
    return as_numbers(data[:, :2], np.float16) * (codes.astype(np.float32) - 16)


def encode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """(n, 32) float32 to (n, 24) bytes: scale, smallest weight, fifth bits, low halves."""
    scale, smallest, codes = affine_codes(blocks, 32)
    ends = np.stack([scale, smallest], -1)                         # (n, 2)
    return np.concatenate([as_bytes(ends, np.float16), fifth_bits(codes), pack_halves(codes)], -1)


def decode_q5_1(data: np.ndarray) -> np.ndarray:
    """(n, 24) bytes to (n, 32) float32: scale code + smallest."""
    scale, smallest = np.split(as_numbers(data[:, :4], np.float16), 2, axis=-1)  # (n, 1)
    return scale * with_fifth_bits(unpack_halves(data[:, 8:]), data[:, 4:8]).astype(np.float32) + smallest
