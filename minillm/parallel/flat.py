"""Parameters one after another in one flat buffer that is cut evenly: every number belongs to exactly one rank.

A cut may go through the middle of a matrix. That is no harm to optimizers that treat every number alike (SGD, AdamW),
and it makes all shares equal, whatever the shapes.

Dimensions: P ranks, N numbers of all parameters of a buffer together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from minillm.errors import CommError, ConfigError
from minillm.parallel.comm import Comm, Pending


@dataclass(frozen=True)
class FlatPiece:
    """Numbers `begin` to `end` of flattened tensor `index`; in their owner's shard they begin at `offset`."""

    index: int
    begin: int
    end: int
    offset: int

    @property
    def within(self) -> slice:
        """Where the piece is in its owner's shard."""
        return slice(self.offset, self.offset + self.end - self.begin)


class FlatLayout:
    """Where each of several tensors lies in a flat buffer, and which part of the buffer each rank owns.

    Args:
        shapes: of the tensors, in order.
        size: number of ranks P.

    Attributes:
        offsets: where each tensor begins.
        n_numbers: of all tensors together.
        shard_numbers: of each rank, ceil(N / P).
        padded_numbers: of the buffer, P times that; the last few belong to no tensor.

    Raises:
        ConfigError: if there are no ranks.

    Example:
        >>> layout = FlatLayout([(2, 3), (3,)], size=2)
        >>> layout.shard_numbers, layout.padded_numbers
        (5, 10)
        >>> layout.pieces(0), layout.pieces(1)
        ([FlatPiece(index=0, begin=0, end=5, offset=0)], [FlatPiece(index=0, begin=5, end=6, offset=0), \
FlatPiece(index=1, begin=0, end=3, offset=1)])
    """

    def __init__(self, shapes: Sequence[Sequence[int]], size: int):
        if size < 1:
            raise ConfigError(f"a buffer cut for {size} ranks: expected 1 or more")
        self.shapes, self.size = [tuple(shape) for shape in shapes], size
        self.numbers = [prod(shape) for shape in self.shapes]
        self.offsets = [sum(self.numbers[:index]) for index in range(len(self.numbers))]
        self.n_numbers = sum(self.numbers)
        self.shard_numbers = -(-self.n_numbers // size)
        self.padded_numbers = self.shard_numbers * size

    def owned(self, rank: int) -> slice:
        """The part of the buffer that a rank owns."""
        return slice(rank * self.shard_numbers, (rank + 1) * self.shard_numbers)

    def pieces(self, rank: int) -> list[FlatPiece]:
        """What a rank owns of each tensor, in order; tensors of which it owns nothing are left out."""
        start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
        owned = []
        for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
            begin, end = max(start, offset), min(stop, offset + number)
            if begin < end:
                owned.append(FlatPiece(index, begin - offset, end - offset, begin - start))
        return owned

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors as views of a buffer of `padded_numbers`."""
        places = zip(self.offsets, self.numbers, self.shapes, strict=True)
        return [flat[offset : offset + number].view(shape) for offset, number, shape in places]


class GradientScatter:
    """The gradients of some parameters on their way to the ranks that own them.

    Each is copied into a flat buffer as it comes out of backward. When all are there, one reduce-scatter leaves this
    rank with its part of the sum over the ranks, and the buffer is freed, or kept (ZeRO stage 1).

    Args:
        parameters: of one dtype and device.
        layout: of these parameters.
        comm: the ranks that own them together.
        dtype: of the buffer, that is, of what is sent; None takes the parameters'.
        is_kept: keep the buffer as the parameters' `.grad`; the sum then overwrites this rank's part of it.

    Attributes:
        missing: places of the parameters whose gradient is not there yet.
        flat: the buffer, or None.
        pending: the reduce-scatter while it is under way.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        comm: Comm,
        dtype: torch.dtype | None = None,
        is_kept: bool = False,
    ):
        self.parameters, self.layout, self.comm, self.is_kept = list(parameters), layout, comm, is_kept
        self.dtype = dtype or parameters[0].dtype
        self.missing = set(range(len(self.parameters)))
        self.flat: Tensor | None = None
        self.views: list[Tensor] = []
        self.part: Tensor | None = None
        self.pending: Pending | None = None

    def make_buffer(self) -> None:
        """Take memory for the buffer, unless it is there; what belongs to no parameter is 0."""
        if self.flat is None:
            self.flat = torch.empty(self.layout.padded_numbers, dtype=self.dtype, device=self.parameters[0].device)
            self.flat[self.layout.n_numbers :] = 0
            self.views = self.layout.views(self.flat)

    @torch.no_grad()
    def collect(self, place: int) -> None:
        """Move a gradient into the buffer; one that comes in several parts (a module used twice) adds up.

        Raises:
            CommError: if the buffer is under way: what is added now would be lost.
        """
        if self.pending is not None:
            raise CommError(
                f"a gradient of shape {self.layout.shapes[place]} came after its buffer had been sent: two backward "
                "passes without finish_gradient_synchronization() between them"
            )
        self.make_buffer()
        parameter, view = self.parameters[place], self.views[place]
        if parameter.grad is not view:
            if place in self.missing:
                view.copy_(parameter.grad)
            else:
                view.add_(parameter.grad)
            parameter.grad = view if self.is_kept else None
        self.missing.discard(place)

    def launch(self) -> None:
        """Send the buffer off; gradients that are missing count as 0."""
        self.make_buffer()
        for place in self.missing:
            self.views[place].zero_()
        if self.is_kept:
            self.part = self.flat[self.layout.owned(self.comm.rank)]
        else:
            self.part = self.flat.new_empty(self.layout.shard_numbers)
        self.pending = self.comm.reduce_scatter(self.part, self.flat, async_op=True)

    def free(self) -> None:
        """Give the buffer's memory back as soon as it has arrived, unless it is kept."""
        if not self.is_kept and self.pending is not None and self.flat is not None:
            self.pending.wait()
            self.flat, self.views = None, []

    def finish(self, scale: float) -> Tensor:
        """Wait for the sum, and be ready for the next backward pass.

        Args:
            scale: factor on the sum.

        Returns:
            (shard_numbers,) this rank's part, times `scale`.
        """
        self.pending.wait()
        self.free()
        part, self.part, self.pending = self.part, None, None
        self.missing = set(range(len(self.parameters)))
        return part.mul_(scale)


def any_rank(flags: Sequence[bool], comm: Comm) -> list[bool]:
    """For each flag whether it is up on at least one rank; the same answer on all of them."""
    if not flags:
        return []
    raised = torch.tensor(flags, dtype=torch.uint8, device=comm.device)
    comm.all_reduce(raised, "max")
    return raised.bool().tolist()
