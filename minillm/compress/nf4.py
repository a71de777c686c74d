"""NF4: four bits a weight. Sixteen levels where a normal distribution has its quantiles, and a scale for every block.

Weights are taken row by row and cut into blocks of 64. Of each block the largest absolute value is kept (`absmax`), the
weights divided by it go to the nearest of the sixteen levels, and two indices are packed into a byte: the first in the
high half, as `bitsandbytes` does. Double quantization then stores the absmax in eight bits too, in blocks of 256.

Dimensions: N weights, n blocks of them, m blocks of blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.errors import ConfigError, ShapeError

BLOCK, SCALE_BLOCK = 64, 256
TAIL = 0.9677083  # 1 - (1/32 + 1/30) / 2, between the outermost quantiles that 16 and 15 levels would have
ZERO = 7  # index of the level zero
SMALLEST = 1e-38  # below it 1 / absmax would be infinite in fp32


def normal_quantiles(n_levels: int) -> Tensor:
    """Levels of one side: quantiles of the normal distribution from TAIL towards 1/2, which itself is left out.

    Args:
        n_levels: how many.

    Returns:
        (n_levels,) float, falling, all positive.
    """
    chances = torch.linspace(TAIL, 0.5, n_levels + 1)[:-1]         # (n_levels,)
    return torch.special.ndtri(chances.double()).float()


def nf4_code() -> Tensor:
    """The sixteen levels: eight above zero, zero, and seven below, divided by the largest.

    Returns:
        (16,) float, rising from -1 to 1; index 7 is exactly zero.

    Source:
        Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.

    Example:
        >>> [round(level, 3) for level in nf4_code().tolist()[5:10]]
        [-0.185, -0.091, 0.0, 0.08, 0.161]
    """
    levels = torch.cat([normal_quantiles(8), torch.zeros(1), -normal_quantiles(7)]).sort().values
    return levels / levels.abs().max()                             # (16,)


def dynamic_code() -> Tensor:
    """The 256 levels for scales: seven decades, each with twice as many levels as the one below, both signs.

    Returns:
        (256,) float, rising from -0.993 to 1; index 127 is exactly zero.

    Source:
        Dettmers 2015, arXiv:1511.04561, section 2.2 (dynamic tree quantization), as `bitsandbytes` builds it.
    """
    levels = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        levels += [means, -means]
    return torch.cat(levels).sort().values                         # (256,)


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """Index of the nearest level; the lower of two that are equally near.

    Args:
        values: any size.
        code: (levels,) rising, at most 256.

    Returns:
        uint8 of the same size.

    Example:
        >>> nearest(torch.tensor([-5.0, 0.4, 0.5, 0.6]), torch.tensor([-1.0, 0.0, 1.0])).tolist()
        [0, 1, 1, 2]
    """
    middles = (code[:-1] + code[1:]) / 2
    return torch.bucketize(values, middles, out_int32=True).to(torch.uint8)


def blocks_of(values: Tensor, block_size: int) -> Tensor:
    """(N,) values as (n, block_size); what is missing in the last block is zero.

    Example:
        >>> blocks_of(torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    missing = -values.numel() % block_size
    return torch.nn.functional.pad(values.reshape(-1), (0, missing)).view(-1, block_size)


def quantize_blocks(values: Tensor, code: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Divide each block by its largest absolute value and take the nearest level.

    A block of zeros has scale 0 and comes back as zeros.

    Args:
        values: any size, N numbers; finite.
        code: (levels,) rising, from about -1 to 1.
        block_size: numbers that share a scale.

    Returns:
        indices (N,) uint8 and the blocks' largest absolute values (n,) float.

    Raises:
        ConfigError: if a number is infinite or NaN, saying which; a scale made of it would spoil its whole block.

    Example:
        >>> indices, absmax = quantize_blocks(torch.tensor([0.5, -2.0, 3.0]), torch.tensor([-1.0, 0.0, 1.0]), 2)
        >>> indices.tolist(), absmax.tolist()
        ([1, 0, 2], [2.0, 3.0])
    """
    check_finite(values)
    blocks = blocks_of(values.float(), block_size)                 # (n, block_size)
    absmax = blocks.abs().amax(-1)                                 # (n,)
    scaled = blocks * (1.0 / absmax.clamp(min=SMALLEST))[:, None]  # (n, block_size)
    return nearest(scaled.view(-1)[: values.numel()], code.to(values.device)), absmax


def dequantize_blocks(indices: Tensor, absmax: Tensor, code: Tensor, block_size: int) -> Tensor:
    """Each index's level times the scale of its block.

    Args:
        indices: (N,) integers.
        absmax: (n,).
        code: (levels,).
        block_size: as in `quantize_blocks`.

    Returns:
        (N,) float.

    Example:
        >>> dequantize_blocks(torch.tensor([1, 0, 2]), torch.tensor([2.0, 3.0]), torch.tensor([-1.0, 0.0, 1.0]), 2)
        tensor([ 0., -2.,  3.])
    """
    levels = code.to(absmax.device)[indices.int()]                 # (N,)
    scaled = blocks_of(levels, block_size) * absmax[:, None]       # (n, block_size)
    return scaled.view(-1)[: indices.numel()]


def check_finite(values: Tensor) -> None:
    """Refuse infinite numbers and NaN.

    Raises:
        ConfigError: naming the first.
    """
    if bool((finite := torch.isfinite(values)).all()):
        return
    first = tuple((~finite).nonzero()[0].tolist())
    raise ConfigError(
        f"{int((~finite).sum())} of {values.numel()} weights are not finite, the first {values[first].item()} at "
        f"{list(first)}; they have no four-bit form: look for the step at which training broke"
    )


def pack_nibbles(indices: Tensor) -> Tensor:
    """Two four-bit indices to a byte, the first in the high half; beside an odd last one stands 7, the level zero.

    Args:
        indices: (N,) integers from 0 to 15.

    Returns:
        (ceil(N / 2),) uint8.

    Example:
        >>> pack_nibbles(torch.tensor([1, 2, 15])).tolist()
        [18, 247]
    """
    even = torch.nn.functional.pad(indices.to(torch.uint8), (0, indices.numel() % 2), value=ZERO)
    return even[::2] << 4 | even[1::2]


def unpack_nibbles(packed: Tensor, n_weights: int) -> Tensor:
    """The other way: (ceil(N / 2),) bytes to (N,) uint8 indices.

    Raises:
        ShapeError: if the bytes are not those of so many weights.

    Example:
        >>> unpack_nibbles(torch.tensor([18, 247], dtype=torch.uint8), 3).tolist()
        [1, 2, 15]
    """
    if packed.numel() != (n_weights + 1) // 2:
        raise ShapeError(f"{packed.numel()} bytes were given, {n_weights} four-bit weights are {(n_weights + 1) // 2}")
    return torch.stack([packed >> 4, packed & 15], dim=-1).view(-1)[:n_weights]


@dataclass(frozen=True)
class SmallScales:
    """Scales in eight bits: what double quantization makes of the absmax.

    Attributes:
        codes: (n,) uint8, index of each scale's distance from the mean in `dynamic_code`.
        largest: (m,) float, the largest distance of each block of 256.
        mean: () float.
    """

    codes: Tensor
    largest: Tensor
    mean: Tensor


def quantize_scales(absmax: Tensor) -> SmallScales:
    """Double quantization: what is left of the scales without their mean goes to eight bits, in blocks of 256.

    Args:
        absmax: (n,).

    Returns:
        the scales in 8 + 32/256 bits each, and 32 bits for the mean.

    Source:
        Dettmers et al. 2023, arXiv:2305.14314, section 3.

    Example:
        >>> scales = quantize_scales(torch.tensor([1.0, 3.0]))
        >>> scales.mean.item(), scales.largest.tolist(), scales.codes.tolist()
        (2.0, [1.0], [0, 255])
    """
    mean = absmax.mean()
    codes, largest = quantize_blocks(absmax - mean, dynamic_code(), SCALE_BLOCK)
    return SmallScales(codes, largest, mean)


def dequantize_scales(scales: SmallScales) -> Tensor:
    """The absmax again; one that rounding has made negative is taken as zero, which is nearer.

    Returns:
        (n,) float.

    Example:
        >>> dequantize_scales(quantize_scales(torch.tensor([1.0, 3.0])))
        tensor([1.0070, 3.0000])
    """
    distance = dequantize_blocks(scales.codes, scales.largest, dynamic_code(), SCALE_BLOCK)
    return (distance + scales.mean).clamp(min=0.0)


def quantize_nf4(weights: Tensor, block_size: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Weights to packed NF4.

    Args:
        weights: any size, N numbers in any format, finite.
        block_size: weights that share a scale.

    Returns:
        packed indices (ceil(N / 2),) uint8, and absmax (n,) float.

    Raises:
        ConfigError: if there is no weight, one is not finite, or the block is empty.

    Source:
        Dettmers et al. 2023, arXiv:2305.14314, equation 3.

    Example:
        >>> packed, absmax = quantize_nf4(torch.tensor([0.0, 2.0, -1.0, 0.2]))
        >>> [f"{byte:02x}" for byte in packed.tolist()], absmax.tolist()
        (['7f', '28'], [2.0])
    """
    if weights.numel() == 0 or block_size < 1:
        raise ConfigError(f"{weights.numel()} weights in blocks of {block_size}: expected at least one of both")
    indices, absmax = quantize_blocks(weights, nf4_code(), block_size)
    return pack_nibbles(indices), absmax


def dequantize_nf4(packed: Tensor, absmax: Tensor, shape: tuple[int, ...], block_size: int = BLOCK) -> Tensor:
    """Packed NF4 to weights.

    Args:
        packed: (ceil(N / 2),) uint8.
        absmax: (n,) float.
        shape: of the weights.
        block_size: as in `quantize_nf4`.

    Returns:
        float, of that shape.

    Raises:
        ShapeError: if bytes or scales are not those of this shape.

    Example:
        >>> dequantize_nf4(*quantize_nf4(torch.tensor([0.0, 2.0, -1.0, 0.2])), (4,))
        tensor([ 0.0000,  2.0000, -1.0501,  0.1592])
    """
    n_weights = torch.Size(shape).numel()
    if absmax.numel() != -(-n_weights // block_size):
        raise ShapeError(
            f"{absmax.numel()} scales were given; {n_weights} weights have {-(-n_weights // block_size)} blocks of "
            f"{block_size}"
        )
    return dequantize_blocks(unpack_nibbles(packed, n_weights), absmax, nf4_code(), block_size).view(shape)


def stored_bits(n_weights: int, double: bool = True, block_size: int = BLOCK) -> int:
    """Bits that N weights take in NF4: indices in whole bytes, scales, and with double quantization the mean.

    Example:
        >>> stored_bits(4096 * 4096, double=False) / 4096**2, round(stored_bits(4096 * 4096) / 4096**2, 4)
        (4.5, 4.127)
    """
    n_blocks = -(-n_weights // block_size)
    scales = 8 * n_blocks + 32 * -(-n_blocks // SCALE_BLOCK) + 32 if double else 32 * n_blocks
    return 8 * ((n_weights + 1) // 2) + scales
