"""Codes of 2 to 8 bits in as many bits: planes of 4, 2 and 1 bits, each with its parts side by side in a byte.

A row of codes is cut into bit planes: of 3 bits the lower two make one plane and the upper one another. A plane of 4
bits cuts its row into two halves, and byte j holds code j of the first half in its low four bits and code j of the
second in its high four (the order of GGML's blocks). Planes of 2 bits have four parts, of 1 bit eight. So unpacking is
a shift, a mask and a joining of parts, with no interleaving. What is missing at the end of a row is zero.

Dimensions: I codes in a row, K bytes of a packed row, J bytes of one plane.
"""

import torch
from torch import Tensor

from minillm.errors import ConfigError, DataError, ShapeError

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # bits -> low plane first


def planes_of(bits: int) -> tuple[int, ...]:
    """Widths in bits of the planes that codes of so many bits are cut into, the low bits first.

    Raises:
        ConfigError: if no code is so wide.

    Example:
        >>> planes_of(3), planes_of(4)
        ((2, 1), (4,))
    """
    if bits not in PLANES:
        raise ConfigError(f"codes of {bits!r} bits cannot be packed; expected 1 to 8")
    return PLANES[bits]


def packed_width(n_codes: int, bits: int) -> int:
    """Bytes K of a row of so many codes.

    Example:
        >>> packed_width(100, 4), packed_width(100, 3)
        (50, 38)
    """
    return sum(-(-n_codes * width // 8) for width in planes_of(bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes to rows of bytes.

    Args:
        codes: (..., I) integers from 0 to 2^bits - 1.
        bits: 1 to 8.

    Returns:
        (..., K) uint8.

    Raises:
        DataError: if a code needs more bits than that; packing it would change its neighbour.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 15]), 4).tolist(), pack(torch.tensor([0, 1, 2, 7]), 3).tolist()
        ([49, 242], [228, 8])
    """
    planes = planes_of(bits)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 2**bits:
        raise DataError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit {bits} bits")
    codes, done, rows = codes.to(torch.uint8), 0, []
    for width in planes:
        rows.append(pack_plane(codes >> done & (1 << width) - 1, width))
        done += width
    return torch.cat(rows, dim=-1)                                 # (..., K)


def pack_plane(codes: Tensor, width: int) -> Tensor:
    """One plane: the parts of a row laid over each other.

    Args:
        codes: (..., I) uint8 below 2^width.
        width: 1, 2, 4 or 8.

    Returns:
        (..., J) uint8, J = ceil(I width / 8).

    Example:
        >>> pack_plane(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
        [49, 2]
    """
    n_parts = 8 // width
    missing = -codes.shape[-1] % n_parts
    parts = torch.nn.functional.pad(codes, (0, missing)).chunk(n_parts, dim=-1)
    packed = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        packed = packed | part << index * width
    return packed                                                  # (..., J)


def unpack(packed: Tensor, bits: int, n_codes: int) -> Tensor:
    """The other way, exactly.

    Args:
        packed: (..., K) uint8.
        bits: 1 to 8.
        n_codes: codes I in a row.

    Returns:
        (..., I) uint8.

    Raises:
        ShapeError: if K is not the width of so many codes.

    Example:
        >>> unpack(pack(torch.tensor([5, 0, 7]), 3), 3, n_codes=3).tolist()
        [5, 0, 7]
    """
    if packed.shape[-1] != packed_width(n_codes, bits):
        expected = packed_width(n_codes, bits)
        raise ShapeError(f"rows of {packed.shape[-1]} bytes were given; {n_codes} codes of {bits} bits take {expected}")
    planes = planes_of(bits)
    sizes = [-(-n_codes * width // 8) for width in planes]
    codes, done = None, 0
    for width, row in zip(planes, packed.split(sizes, dim=-1), strict=True):
        plane = unpack_plane(row, width)[..., :n_codes] << done    # (..., I)
        codes = plane if codes is None else codes | plane
        done += width
    return codes


def unpack_plane(packed: Tensor, width: int) -> Tensor:
    """The codes of one plane, with those that fill up its last byte.

    Args:
        packed: (..., J) uint8.
        width: 1, 2, 4 or 8.

    Returns:
        (..., J 8 / width) uint8.

    Example:
        >>> unpack_plane(torch.tensor([49, 2], dtype=torch.uint8), 4).tolist()
        [1, 2, 3, 0]
    """
    mask = (1 << width) - 1
    return torch.cat([packed >> shift & mask for shift in range(0, 8, width)], dim=-1)
