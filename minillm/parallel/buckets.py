"""Gradients in buckets: a few large sums over the ranks instead of many small ones, begun while backward still runs.

Backward makes the gradient of the last layer first. So buckets are filled from the last parameter to the first, and
each is sent off as soon as its gradients are there: the wire is busy while the processor works on the layers before.

Dimensions: P ranks, N numbers.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from minillm.errors import CommError, ConfigError
from minillm.parallel.comm import Comm, Pending


def assign_buckets(sizes: Sequence[int], bucket_bytes: int) -> list[list[int]]:
    """Fill buckets with parameters, from the last one to the first.

    A bucket is closed when the next parameter would make it larger than `bucket_bytes`. A parameter that is larger than
    that alone has a bucket of its own.

    Args:
        sizes: bytes of each parameter's gradient, in the order in which the model uses them.
        bucket_bytes: the largest size of a bucket of several parameters.

    Returns:
        indices into `sizes`, bucket by bucket in the order in which backward completes them.

    Raises:
        ConfigError: if `bucket_bytes` is below 1.

    Example:
        >>> assign_buckets([4, 2, 3, 9, 1, 2], bucket_bytes=5)
        [[5, 4], [3], [2, 1], [0]]
    """
    if bucket_bytes < 1:
        raise ConfigError(f"bucket_bytes is {bucket_bytes}, expected 1 or more")
    buckets: list[list[int]] = []
    for index in reversed(range(len(sizes))):
        if not buckets or sum(sizes[other] for other in buckets[-1]) + sizes[index] > bucket_bytes:
            buckets.append([])
        buckets[-1].append(index)
    return buckets


def used_by_any(parameters: Sequence[nn.Parameter], comm: Comm) -> list[bool]:
    """For each parameter, whether it has a gradient on at least one rank; the same answer on all of them.

    Args:
        parameters: in the same order on all ranks.
        comm: the group.
    """
    if not parameters:
        return []
    has_gradient = [parameter.grad is not None for parameter in parameters]
    flags = torch.tensor(has_gradient, dtype=torch.uint8, device=comm.device)
    comm.all_reduce(flags, "max")
    return flags.bool().tolist()


@dataclass(frozen=True)
class Launch:
    """When a bucket was sent off: `n_ready` gradients of the model were there, `n_missing` were still to come.

    With `n_missing` above 0 backward was still at work.
    """

    bucket: int
    n_ready: int
    n_missing: int


class Bucket:
    """Some parameters and, one after another in one flat tensor, their gradients.

    Args:
        parameters: of one dtype and device.

    Attributes:
        flat: (N,) all the gradients.
        views: for each parameter, its part of `flat`, shaped like it.
        missing: places of the parameters whose gradient is not there yet.
        pending: the sum over the ranks while it is under way.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)
        n_numbers = sum(parameter.numel() for parameter in parameters)
        self.flat = parameters[0].detach().new_zeros(n_numbers)
        parts = self.flat.split([parameter.numel() for parameter in parameters])
        self.views = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
        self.missing = set(range(len(parameters)))
        self.pending: Pending | None = None

    @torch.no_grad()
    def collect(self, place: int) -> None:
        """Move a gradient into the flat tensor, of which `.grad` is a view from then on; a missing one counts as 0."""
        parameter, view = self.parameters[place], self.views[place]
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad is not view:
            view.copy_(parameter.grad)
            parameter.grad = view
        self.missing.discard(place)

    def give_back(self, place: int, is_used: bool) -> None:
        """Let the parameter's `.grad` be the sum over the ranks, or None where no rank has a gradient."""
        self.parameters[place].grad = self.views[place] if is_used else None


class GradientBuckets:
    """All buckets of a model, and which of them have been sent off.

    Ranks whose gradients become ready in different orders must still send the same bucket at the same time. So bucket k
    is never sent before bucket k - 1.

    Args:
        parameters: trainable ones, in the order in which the model uses them, the same on all ranks.
        comm: the ranks to sum over.
        bucket_bytes: see `assign_buckets`.
        overlap: send a bucket as soon as it is full; False waits for `finish`.
        find_unused: ask in `finish` which parameters no rank has used; see there.

    Attributes:
        launches: what was sent when, since the last `finish` but one: a log to look at.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        comm: Comm,
        bucket_bytes: int,
        overlap: bool = True,
        find_unused: bool = True,
    ):
        self.comm, self.overlap, self.find_unused = comm, overlap, find_unused
        self.parameters = list(parameters)
        kinds = defaultdict(list)
        for parameter in self.parameters:
            kinds[parameter.dtype, parameter.device].append(parameter)
        self.buckets = [
            Bucket([group[index] for index in indices])
            for group in kinds.values()
            for indices in assign_buckets([parameter.nbytes for parameter in group], bucket_bytes)
        ]
        self.places = {
            parameter: (bucket, place) for bucket in self.buckets for place, parameter in enumerate(bucket.parameters)
        }
        self.launches: list[Launch] = []
        self.n_launched = self.n_ready = 0

    def ready(self, parameter: nn.Parameter) -> None:
        """This parameter's gradient is complete: put it into its bucket, and send off what is full and in turn.

        Args:
            parameter: one of those given at the start, with a gradient.

        Raises:
            CommError: if its bucket is under way already: what is added to a gradient now would be lost.
        """
        bucket, place = self.places[parameter]
        if bucket.pending is not None:
            raise CommError(
                f"a gradient of shape {tuple(parameter.shape)} came after its bucket had been sent: two backward "
                "passes without finish_gradient_synchronization() between them; put all but the last into no_sync()"
            )
        self.n_ready += place in bucket.missing
        bucket.collect(place)
        if self.overlap:
            self.launch_full()

    def launch_full(self) -> None:
        """Send off the bucket whose turn it is, and those after it, as long as none of their gradients is missing.

        A later bucket that is full waits for the earlier ones: all ranks must send in one order, and another rank's
        gradients may become ready in another one.
        """
        while self.n_launched < len(self.buckets) and not self.buckets[self.n_launched].missing:
            self.launch(self.buckets[self.n_launched])

    def launch(self, bucket: Bucket) -> None:
        """Begin the sum of one bucket over the ranks."""
        if self.n_launched == 0:
            self.launches = []
        self.launches.append(Launch(self.n_launched, self.n_ready, len(self.parameters) - self.n_ready))
        bucket.pending = self.comm.all_reduce(bucket.flat, async_op=True)
        self.n_launched += 1

    def finish(self, scale: float) -> None:
        """Complete what is not complete, send what is not sent, wait for all of it, and scale the sums.

        A parameter that this rank has not used counts as 0 (the other ranks wait for the bucket that it is in). With
        `find_unused` the ranks tell each other which ones have a gradient anywhere; the rest keep None, as on one
        device, so that an optimizer leaves them alone. Without it this small message is saved and theirs are 0.

        Args:
            scale: factor on the sums over the ranks.
        """
        has_gradient = [parameter.grad is not None for parameter in self.parameters]
        while self.n_launched < len(self.buckets):
            bucket = self.buckets[self.n_launched]
            for place in range(len(bucket.parameters)):
                bucket.collect(place)
            self.launch(bucket)
        used = dict.fromkeys(self.parameters, True)
        if self.find_unused and has_gradient:
            used = dict(zip(self.parameters, used_by_any(self.parameters, self.comm), strict=True))
        for bucket in self.buckets:
            bucket.pending.wait()
            bucket.flat.mul_(scale)
            for place, parameter in enumerate(bucket.parameters):
                bucket.give_back(place, used[parameter])
            bucket.missing, bucket.pending = set(range(len(bucket.parameters))), None
        self.n_launched = self.n_ready = 0
