"""Ranks on a small stage: collectives by hand and buckets of gradients, played through among threads.

For looking at what each rank has and sends; nothing here is needed for training.

Dimensions: P ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError
from minillm.parallel import data_parallel, rings
from minillm.parallel.buckets import GradientBuckets
from minillm.parallel.comm import Comm
from minillm.parallel.threads import launch_threads
from minillm.parallel.traffic import CommCounter

RINGS = ("ring_reduce_scatter", "ring_all_gather", "ring_all_reduce", "naive_all_reduce", "tree_broadcast")
PATIENCE_SECONDS = 3.0  # of a rank that waits for another one


def rehearse_collective(name: str, tensors: Sequence[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Let each of P ranks call a collective of `rings` with its own tensor.

    Args:
        name: one of `RINGS`.
        tensors: one per rank, of one shape; they are not changed.

    Returns:
        for each rank: what the function returns, or the tensor afterwards where it returns nothing; and the bytes of
        each message that this rank has sent, in order.

    Raises:
        ConfigError: if the name is unknown.
        CommError: if the ranks waited for each other for ever.

    Example:
        >>> tensors = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
        >>> rehearse_collective("ring_reduce_scatter", tensors)
        [(tensor([11.]), [4]), (tensor([22.]), [4])]
    """
    if name not in RINGS:
        raise ConfigError(f"collective {name!r} is unknown; known are {', '.join(RINGS)}")
    collective = getattr(rings, name)

    def act(comm: Comm) -> tuple[Tensor, list[int]]:
        tensor = tensors[comm.rank].clone()
        returned = collective(tensor, comm)
        sent = [transfer.n_bytes for transfer in comm.counter.transfers if transfer.operation in ("send", "exchange")]
        return tensor if returned is None else returned, sent

    counters = [CommCounter() for _ in tensors]
    return launch_threads(act, len(tensors), counters=counters, timeout_seconds=PATIENCE_SECONDS)


def rehearse_reduction(gradients: Sequence[Sequence[Tensor | None]], scale: float) -> list[list[Tensor | None]]:
    """Let each rank call `data_parallel.reduce_gradients`.

    Args:
        gradients: for each rank those of its parameters, None where it has none; the shapes follow from any rank's.
            Matrices are handed over lying across in memory, as the gradients of transposed parameters do.
        scale: handed on.

    Returns:
        for each rank, its gradients afterwards.
    """

    def act(comm: Comm) -> list[Tensor | None]:
        parameters = parameters_of(gradients, comm.rank)
        for parameter in parameters:
            if parameter.grad is not None and parameter.dim() > 1:
                parameter.grad = parameter.grad.mT.contiguous().mT
        data_parallel.reduce_gradients(parameters, comm, scale)
        return [parameter.grad for parameter in parameters]

    return launch_threads(act, len(gradients), timeout_seconds=PATIENCE_SECONDS)


def rehearse_buckets(
    gradients: Sequence[Sequence[Tensor | None]],
    orders: Sequence[Sequence[int]],
    bucket_bytes: int,
    scale: float,
    overlap: bool = True,
) -> list[tuple[list[list[int]], list[Tensor | None]]]:
    """Let gradients become ready one after another, and look when buckets leave.

    Args:
        gradients: as in `rehearse_reduction`.
        orders: for each rank the indices of its parameters in the order in which their gradients become ready.
        bucket_bytes: see `buckets.assign_buckets`.
        scale: of the sums.
        overlap: see `buckets.GradientBuckets`.

    Returns:
        for each rank: which buckets left when the first gradient had become ready, the second, ..., and at the end of
        all; and the gradients after that.

    Example:
        >>> ones = [torch.ones(1) for _ in range(3)]
        >>> left, found = rehearse_buckets([ones, ones], [[2, 1, 0], [1, 2, 0]], bucket_bytes=4, scale=0.5)[1]
        >>> left, [gradient.item() for gradient in found]
        ([[], [0, 1], [2], []], [1.0, 1.0, 1.0])
    """

    def act(comm: Comm) -> tuple[list[list[int]], list[Tensor | None]]:
        parameters, ready = parameters_of(gradients, comm.rank), parameters_of(gradients, comm.rank)
        for parameter in parameters:
            parameter.grad = None
        buckets = GradientBuckets(parameters, comm, bucket_bytes, overlap)
        n_left = [0]
        for index in orders[comm.rank]:
            parameters[index].grad = ready[index].grad
            buckets.ready(parameters[index])
            n_left.append(len(buckets.launches))
        buckets.finish(scale)
        n_left.append(len(buckets.launches))
        numbers = [launch.bucket for launch in buckets.launches]
        left = [numbers[before:after] for before, after in zip(n_left[:-1], n_left[1:], strict=True)]
        return left, [parameter.grad for parameter in parameters]

    return launch_threads(act, len(gradients), timeout_seconds=PATIENCE_SECONDS)


def parameters_of(gradients: Sequence[Sequence[Tensor | None]], rank: int) -> list[nn.Parameter]:
    """Parameters with copies of these gradients."""
    parameters = []
    for everyones in zip(*gradients, strict=True):
        like = next((gradient for gradient in everyones if gradient is not None), torch.zeros(1))
        parameters.append(nn.Parameter(torch.zeros_like(like)))
        parameters[-1].grad = None if everyones[rank] is None else everyones[rank].clone()
    return parameters
