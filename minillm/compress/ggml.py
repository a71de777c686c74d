"""GGML's block types: a table of formats, and matrices to bytes and back, row by row.

GGML is a tensor library; its formats round to nearest, each weight for itself, and mix no precisions. A block is cut
from a row, never across rows, so the width of a matrix must be a multiple of the block; where it is not, `fitting_type`
names the format that llama.cpp takes instead.

Dimensions: O rows, I width, n blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minillm.compress import ggml_blocks, k_quants
from minillm.errors import ConfigError, DataError, ShapeError

AT_ONCE = 2**18  # weights encoded together: K-quants need about twenty times their memory


@dataclass(frozen=True)
class BlockType:
    """A format.

    Attributes:
        name: as in "q4_k".
        number: that ggml and GGUF files give it.
        n_weights, n_bytes: of one block.
        fallback: the format for rows that are no whole number of blocks.
        encode: (n, n_weights) float32 -> (n, n_bytes) uint8.
        decode: the other way.
    """

    name: str
    number: int
    n_weights: int
    n_bytes: int
    fallback: str
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]

    @property
    def bits_per_weight(self) -> float:
        """Everything counted: codes, scales, minima."""
        return 8 * self.n_bytes / self.n_weights


def plain(name: str, number: int, n_bytes: int, dtype: type) -> BlockType:
    """A format of ordinary numbers, as a block of one weight."""
    return BlockType(
        name,
        number,
        1,
        n_bytes,
        "f32",
        lambda blocks: ggml_blocks.as_bytes(blocks, dtype),
        lambda data: ggml_blocks.as_numbers(data, dtype),
    )


TYPES = {
    kind.name: kind
    for kind in (
        plain("f32", 0, 4, np.float32),
        plain("f16", 1, 2, np.float16),
        BlockType("q4_0", 2, 32, 18, "f16", ggml_blocks.encode_q4_0, ggml_blocks.decode_q4_0),
        BlockType("q4_1", 3, 32, 20, "f16", ggml_blocks.encode_q4_1, ggml_blocks.decode_q4_1),
        BlockType("q5_0", 6, 32, 22, "f16", ggml_blocks.encode_q5_0, ggml_blocks.decode_q5_0),
        BlockType("q5_1", 7, 32, 24, "f16", ggml_blocks.encode_q5_1, ggml_blocks.decode_q5_1),
        BlockType("q8_0", 8, 32, 34, "f16", ggml_blocks.encode_q8_0, ggml_blocks.decode_q8_0),
        BlockType("q4_k", 12, 256, 144, "q5_0", k_quants.encode_q4_k, k_quants.decode_q4_k),
        BlockType("q6_k", 14, 256, 210, "q8_0", k_quants.encode_q6_k, k_quants.decode_q6_k),
    )
}


def block_type(name: str) -> BlockType:
    """A format by its name.

    Raises:
        ConfigError: naming the known ones.

    Example:
        >>> block_type("q4_k").bits_per_weight, block_type("q8_0").bits_per_weight
        (4.5, 8.5)
    """
    if name not in TYPES:
        raise ConfigError(f"there is no block type {name!r} here; known: {', '.join(TYPES)}")
    return TYPES[name]


def fitting_type(name: str, width: int) -> str:
    """The format itself if rows of this width are whole blocks; otherwise the nearest larger one for which they are.

    Args:
        name: a format.
        width: weights of a row.

    Source:
        llama.cpp, `tensor_type_fallback`: Q4_K becomes Q5_0, Q6_K becomes Q8_0, and those become F16. For a block of 32
        asked for directly it stops; here that becomes F16 too.

    Example:
        >>> fitting_type("q4_k", 512), fitting_type("q4_k", 96), fitting_type("q4_k", 100)
        ('q4_k', 'q5_0', 'f16')
    """
    kind = block_type(name)
    return name if width % kind.n_weights == 0 else fitting_type(kind.fallback, width)


def encode(weight: np.ndarray, name: str) -> np.ndarray:
    """A matrix as the bytes of a format.

    Args:
        weight: (O, I) of any float format, finite.
        name: a format whose block divides I.

    Returns:
        (O, I / n_weights n_bytes) uint8.

    Raises:
        ShapeError: if a row is no whole number of blocks; says which format fits.
        DataError: if a weight is not finite, or a scale does not fit into fp16.

    Example:
        >>> encode(np.linspace(-1, 1, 64)[None], "q8_0").shape
        (1, 68)
    """
    kind = block_type(name)
    if weight.ndim != 2 or 0 in weight.shape or weight.shape[1] % kind.n_weights:
        advice = "expected a matrix that is not empty"
        if weight.ndim == 2 and 0 not in weight.shape:
            advice = f"rows must be multiples of {kind.n_weights}; {fitting_type(name, weight.shape[1])} fits"
        raise ShapeError(f"weights of shape {tuple(weight.shape)} cannot be stored as {name}: {advice}")
    if not np.isfinite(weight).all():
        where = tuple(int(index) for index in np.argwhere(~np.isfinite(weight))[0])
        raise DataError(f"the weight at {where} is {weight[where]}, which has no form in {name}; did training break?")
    blocks = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, kind.n_weights)  # (n, n_weights)
    n_at_once = max(1, AT_ONCE // kind.n_weights)
    with np.errstate(over="ignore", invalid="ignore"):  # a scale that overflows is found when it is stored
        parts = [kind.encode(blocks[start : start + n_at_once]) for start in range(0, len(blocks), n_at_once)]
    return np.concatenate(parts).reshape(len(weight), -1)


def decode(data: np.ndarray, name: str) -> np.ndarray:
    """The numbers that the bytes mean.

    Args:
        data: (O, row bytes) uint8.
        name: their format.

    Returns:
        (O, I) float32.

    Raises:
        ShapeError: if a row is no whole number of blocks.

    Example:
        >>> decode(encode(np.full((2, 32), 0.5), "q4_0"), "q4_0")[0, :3]
        array([0.5, 0.5, 0.5], dtype=float32)
    """
    kind = block_type(name)
    if data.ndim != 2 or data.shape[1] % kind.n_bytes:
        raise ShapeError(f"bytes of shape {tuple(data.shape)} are no rows of {name}, whose blocks have {kind.n_bytes}")
    blocks = np.ascontiguousarray(data).reshape(-1, kind.n_bytes)  # (n, n_bytes)
    return kind.decode(blocks).reshape(len(data), -1)
