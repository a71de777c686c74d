"""Collectives by hand, out of sends and receives between neighbours.

In a ring every rank sends to the next one and receives from the one before, in each of P - 1 rounds one part of the
tensor: all wires are busy all the time, and nobody ever sends the whole.

Dimensions: P ranks, N numbers.
"""

import torch
from torch import Tensor

from minillm.errors import ShapeError
from minillm.parallel.comm import Comm


def exchange(comm: Comm, outgoing: Tensor, incoming: Tensor, target: int, source: int) -> None:
    """Send to one rank while receiving from another; sending first on all ranks of a ring would wait for ever.

    Args:
        comm: the group.
        outgoing: sent to `target`.
        incoming: overwritten with what `source` sends.
        target: rank of the group.
        source: rank of the group.
    """
    comm.exchange(outgoing.contiguous(), target, incoming, source)


def part_bounds(n: int, size: int) -> list[tuple[int, int]]:
    """Cut N numbers into P parts that differ by at most one; the first ones are longer.

    Args:
        n: number of numbers N.
        size: number of parts P.

    Returns:
        [(begin, end), ...] of P parts, in order, all of N together.

    Example:
        >>> part_bounds(10, 4)
        [(0, 3), (3, 6), (6, 8), (8, 10)]
    """
    longer, short = n % size, n // size
    cuts = [part * short + min(part, longer) for part in range(size + 1)]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def ring_reduce_scatter(tensor: Tensor, comm: Comm) -> Tensor:
    """Add up over the ranks so that rank r ends with the r-th part of the sum.

    In round k rank r sends on the partial sum of part r - 1 - k and adds what it receives to its own part r - 2 - k;
    after P - 1 rounds part r has been at every rank and arrives at rank r.

    Args:
        tensor: (N,), any N, the same on all ranks; is used as scratch space.
        comm: the group.

    Returns:
        this rank's part, a view of `tensor`; parts as `part_bounds` cuts them.

    Raises:
        ShapeError: unless the tensor has one dimension.
    """
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[comm.rank]


def ring_all_gather(tensor: Tensor, comm: Comm) -> None:
    """Complete a tensor of which each rank has its own part, in place.

    In round k rank r sends on part r - k, which it got in the round before, and receives part r - 1 - k.

    Args:
        tensor: (N,), of which the part `part_bounds(N, P)[rank]` is right.
        comm: the group.

    Raises:
        ShapeError: unless the tensor has one dimension.
    """
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, received = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size]
        exchange(comm, sent, received, target, source)


def ring_all_reduce(tensor: Tensor, comm: Comm) -> None:
    """The sum over all ranks on each of them, in place: a reduce-scatter, then an all-gather.

    Each rank sends 2 (P - 1) / P of the tensor, however many there are.

    Args:
        tensor: of any shape, contiguous, the same shape on all ranks.
        comm: the group.

    Source:
        Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel
        and Distributed Computing 69, section 3.
    """
    flat = tensor.view(-1)
    ring_reduce_scatter(flat, comm)
    ring_all_gather(flat, comm)


def naive_all_reduce(tensor: Tensor, comm: Comm) -> None:
    """The same by way of rank 0, which receives P - 1 whole tensors and sends P - 1: its wire is the bottleneck.

    Args:
        tensor: of any shape, contiguous.
        comm: the group.
    """
    if comm.rank:
        comm.send(tensor, 0)
        comm.recv(tensor, 0)
        return
    received = torch.empty_like(tensor)
    for rank in range(1, comm.size):
        comm.recv(received, rank)
        tensor += received
    for rank in range(1, comm.size):
        comm.send(tensor, rank)


def tree_broadcast(tensor: Tensor, comm: Comm, source: int = 0) -> None:
    """Give all ranks what one of them has, in ceil(log2 P) rounds: in each, everyone who has it tells one who has not.

    Args:
        tensor: of any shape, contiguous; overwritten on all ranks but `source`.
        comm: the group.
        source: rank of the group that has it.
    """
    place = (comm.rank - source) % comm.size  # the source is at place 0; who has it is at 0 .. distance - 1
    distance = 1
    while distance < comm.size:
        if place < distance and place + distance < comm.size:
            comm.send(tensor, (comm.rank + distance) % comm.size)
        elif distance <= place < 2 * distance:
            comm.recv(tensor, (comm.rank - distance) % comm.size)
        distance *= 2


def parts_of(tensor: Tensor, comm: Comm) -> list[Tensor]:
    """A flat tensor's parts as views.

    Raises:
        ShapeError: unless the tensor has one dimension and is contiguous.
    """
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ShapeError(f"a tensor {tuple(tensor.shape)}, expected one contiguous dimension: give tensor.view(-1)")
    return [tensor[begin:end] for begin, end in part_bounds(tensor.numel(), comm.size)]
