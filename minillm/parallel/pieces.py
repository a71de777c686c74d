"""Which numbers of a whole tensor a rank holds: what a checkpoint must know to be read by other ranks than wrote it.

A rank holds ranges along one dimension (tensor parallel), or a range of the flattened tensor (ZeRO), or both, one after
the other. That says everything: how many ranks there were, and in which mesh, need not be known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.errors import CheckpointError, ShapeError
from minillm.parallel.layout import Split, check_sections

Range = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A part of a tensor of shape `shape`: first cut along `dim`, what remains flattened, and of that a range.

    Args:
        shape: of the whole tensor.
        dim: along which it is cut.
        ranges: (begin, end) of what is held along `dim`, in this order; None: everything.
        flat: (begin, end) of what is held of the cut tensor after flattening; None: everything, in its own shape.

    Raises:
        ShapeError: if a range does not lie in the tensor.

    Example:
        >>> Piece((4, 6), dim=0, ranges=((0, 1), (2, 3))).part_shape
        (2, 6)
        >>> Piece((4, 6), flat=(0, 10)).part_shape
        (10,)
    """

    shape: tuple[int, ...]
    dim: int = 0
    ranges: tuple[Range, ...] | None = None
    flat: Range | None = None

    def __post_init__(self):
        if self.ranges is not None:
            sound = 0 <= self.dim < len(self.shape) and fit(self.ranges, self.shape[self.dim])
            if not sound:
                raise ShapeError(f"ranges {self.ranges} along dimension {self.dim} do not lie in a tensor {self.shape}")
        if self.flat is not None and not fit([self.flat], math.prod(self.cut_shape)):
            raise ShapeError(f"numbers {self.flat} do not lie in a flattened tensor {self.cut_shape}")

    @property
    def cut_shape(self) -> tuple[int, ...]:
        """Shape after the cut along `dim`, before flattening."""
        if self.ranges is None:
            return self.shape
        kept = sum(end - begin for begin, end in self.ranges)
        return (*self.shape[: self.dim], kept, *self.shape[self.dim + 1 :])

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of what the rank holds."""
        return self.cut_shape if self.flat is None else (self.flat[1] - self.flat[0],)

    @property
    def n_numbers(self) -> int:
        """How many numbers that are."""
        return math.prod(self.part_shape)

    def to_json(self) -> list:
        """As lists and numbers; `piece_from_json` is the way back."""
        return [self.shape, self.dim, self.ranges, self.flat]


def fit(ranges: Sequence[Range], size: int) -> bool:
    """Whether all ranges lie between 0 and `size`."""
    return all(0 <= begin <= end <= size for begin, end in ranges)


def piece_from_json(content: object) -> Piece:
    """A piece from what `Piece.to_json` gave.

    Raises:
        CheckpointError: if it is something else.
    """
    try:
        shape, dim, ranges, flat = content
        ranges = None if ranges is None else tuple((int(begin), int(end)) for begin, end in ranges)
        flat = None if flat is None else (int(flat[0]), int(flat[1]))
        return Piece(tuple(int(size) for size in shape), int(dim), ranges, flat)
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{content!r} does not describe a part of a tensor ({error})") from error


def cut_along(whole: Tensor, piece: Piece) -> Tensor:
    """The ranges along the piece's dimension, one after another; a view if it is one range."""
    if piece.ranges is None:
        return whole
    parts = [whole.narrow(piece.dim, begin, end - begin) for begin, end in piece.ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, piece.dim)


def cut_piece(whole: Tensor, piece: Piece) -> Tensor:
    """What a rank holds of a tensor.

    Args:
        whole: of shape `piece.shape`.
        piece: which part.

    Returns:
        the part, of shape `piece.part_shape`; a view where the memory allows it.

    Raises:
        ShapeError: if the whole has another shape.

    Example:
        >>> whole = torch.arange(12).view(4, 3)
        >>> cut_piece(whole, Piece((4, 3), 0, ((0, 1), (2, 3)))).tolist()
        [[0, 1, 2], [6, 7, 8]]
        >>> cut_piece(whole, Piece((4, 3), 0, ((0, 1), (2, 3)), flat=(2, 5))).tolist()
        [2, 6, 7]
    """
    check_shape_of(whole, piece.shape, "whole tensor")
    cut = cut_along(whole, piece)
    return cut if piece.flat is None else cut.reshape(-1)[piece.flat[0] : piece.flat[1]]


def put_piece(whole: Tensor, part: Tensor, piece: Piece) -> None:
    """Write what a rank holds to its place in the whole tensor; `cut_piece` backwards.

    Args:
        whole: of shape `piece.shape`; changed in place, and only where the piece lies.
        part: of shape `piece.part_shape`.
        piece: where it belongs.

    Raises:
        ShapeError: if one of the two has another shape.

    Example:
        >>> whole = torch.zeros(4, 2, dtype=torch.int64)
        >>> put_piece(whole, torch.tensor([7, 8, 9]), Piece((4, 2), 0, ((1, 2), (3, 4)), flat=(1, 4)))
        >>> whole.tolist()
        [[0, 0], [0, 7], [0, 0], [8, 9]]
    """
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    cut = cut_along(whole, piece).clone(memory_format=torch.contiguous_format)
    begin, end = piece.flat or (0, cut.numel())
    cut.view(-1)[begin:end] = part.reshape(-1)
    if piece.ranges is None:
        whole.copy_(cut)
        return
    lengths = [end - begin for begin, end in piece.ranges]
    for (begin, end), rows in zip(piece.ranges, cut.split(lengths, piece.dim), strict=True):
        whole.narrow(piece.dim, begin, end - begin).copy_(rows)


def check_shape_of(tensor: Tensor, expected: tuple[int, ...], what: str) -> None:
    """Refuse a tensor of another shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise ShapeError(f"the {what} has shape {tuple(tensor.shape)}, the piece describes {tuple(expected)}")


def piece_of_slice(shape: Sequence[int], split: Split | None, index: int, size: int) -> Piece:
    """The piece that `layout.slice_of` cuts out.

    Args:
        shape: of the whole tensor.
        split: how it is cut over the ranks; None: every rank holds the whole.
        index: rank in its tensor-parallel group.
        size: ranks in that group.

    Raises:
        ShapeError: if the sections are not the tensor's, or cannot be divided by the ranks.

    Example:
        >>> piece_of_slice((8, 3), Split(0, (4, 2, 2)), index=1, size=2).ranges
        ((2, 4), (5, 6), (7, 8))
    """
    shape = tuple(shape)
    if split is None:
        return Piece(shape)
    sections = split.sections or (shape[split.dim],)
    check_sections(torch.empty(shape, device="meta"), split, sections, size)
    ranges, first = [], 0
    for section in sections:
        share = section // size
        ranges.append((first + index * share, first + (index + 1) * share))
        first += section
    return Piece(shape, split.dim, tuple(ranges))


def may_overlap(first: Piece, second: Piece) -> bool:
    """False only if two pieces of one tensor surely have no number in common."""
    if first.ranges is not None and second.ranges is not None and first.dim == second.dim:
        return any(a < d and c < b for a, b in first.ranges for c, d in second.ranges)
    if first.flat is not None and second.flat is not None and first.ranges is None and second.ranges is None:
        return first.flat[0] < second.flat[1] and second.flat[0] < first.flat[1]
    return True
