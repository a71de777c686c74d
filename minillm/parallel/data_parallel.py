"""Data parallel: every rank has a copy of the whole model and a part of the batch; what they share is the gradient.

If all begin with the same weights and step with the same gradient, all have the same weights for ever. Three ways to
add the gradients up, with the same result: one message per parameter, one for all, and buckets sent during backward.

The sum over the ranks is scaled by whoever knows what the loss was: see `DataParallel.finish_gradient_synchronization`.

Dimensions: P ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minillm.errors import CommError
from minillm.parallel.buckets import GradientBuckets, Launch, used_by_any
from minillm.parallel.comm import Comm

DEFAULT_BUCKET_BYTES = 25 << 20  # as in torch's own


def global_token_count(n_tokens: int, comm: Comm) -> int:
    """How many targets count on all ranks together; to be asked before backward begins to send.

    Args:
        n_tokens: counted targets of this rank's part of the batch; may be 0.
        comm: the data-parallel group.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> launch_threads(lambda comm: global_token_count([7, 2, 0][comm.rank], comm), 3)
        [9, 9, 9]
    """
    return int(comm.all_numbers(n_tokens))


def broadcast_module(module: nn.Module, comm: Comm, source: int = 0) -> None:
    """Give all ranks the parameters and buffers of one of them, in place.

    Args:
        module: of the same structure on all ranks.
        comm: the group.
        source: rank of the group whose numbers are taken.

    Raises:
        CommError: if the ranks' modules differ in names, shapes, dtypes, or in what is frozen.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    described = [f"{name} {tuple(t.shape)} {t.dtype} trainable {t.requires_grad}" for name, t in named]
    check_same_module(comm.all_objects(described), comm)
    for _, tensor in named:
        flat = tensor.detach().contiguous().view(-1)
        comm.broadcast(flat.view(torch.uint8), source)  # bytes: there are dtypes that gloo does not know
        with torch.no_grad():
            tensor.copy_(flat.view(tensor.shape))


def check_same_module(descriptions: Sequence[list[str]], comm: Comm) -> None:
    """Refuse copies of different models: their gradients would be added up parameter by parameter all the same."""
    root = comm.ranks[0]
    for rank, theirs in zip(comm.ranks, descriptions, strict=True):
        for first, other in zip([*descriptions[0], "nothing"], [*theirs, "nothing"], strict=False):
            if first != other:
                raise CommError(f"the ranks have different modules: rank {root} has {first}, rank {rank} {other}")


def reduce_gradients(parameters: Sequence[nn.Parameter], comm: Comm, scale: float) -> None:
    """Replace each gradient by `scale` times its sum over the ranks, one message per parameter.

    A parameter that has a gradient on some ranks only counts as 0 on the others; one that has none on any keeps None.

    Args:
        parameters: in the same order on all ranks.
        comm: the group to sum over.
        scale: 1 / P makes means; 1 / (number of counted targets on all ranks) the gradient of the mean over them, if
            the loss of each rank was a sum.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> def gradient(comm):
        ...     weight = nn.Parameter(torch.zeros(1))
        ...     weight.grad = torch.tensor([comm.rank + 1.0])
        ...     reduce_gradients([weight], comm, scale=0.1)
        ...     return round(weight.grad.item(), 6)
        >>> launch_threads(gradient, 3)
        [0.6, 0.6, 0.6]
    """
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if not is_used:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = parameter.grad.contiguous()
        comm.all_reduce(parameter.grad)
        parameter.grad.mul_(scale)


class DataParallel(nn.Module):
    """A copy of a model that knows the other copies; what the three ways have in common.

    A training step is: forward and backward as on one device, `finish_gradient_synchronization`, clip, step. Gradients
    are then the same on all ranks, bit by bit, so clipping needs no message: each rank computes the same norm.

    Args:
        module: any module; its parameters and buffers are overwritten by those of rank 0.
        comm: the data-parallel group.

    Attributes:
        module: the model itself; save its `state_dict`, not the wrapper's.
        parameters_in_order: what is trained; frozen parameters need no messages, tied ones appear once.

    Raises:
        CommError: if the ranks have different models.
    """

    def __init__(self, module: nn.Module, comm: Comm):
        super().__init__()
        self.module, self.comm = module, comm
        broadcast_module(module, comm)
        self.parameters_in_order = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes."""
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here only accumulate on this rank; the next one outside sends all of it."""
        yield

    def finish_gradient_synchronization(self, scale: float | None = None) -> None:
        """After backward: leave in each `.grad` the sum over the ranks, times `scale`.

        Called by all ranks, also by one that had no rows and no backward. From the beginning of backward to here no
        rank may use the group for anything else: the buckets of one rank may be under way when another has not begun.
        So count tokens before backward.

        Args:
            scale: None is 1 / P: right if each rank's loss is a mean over equally many targets. Where parts differ (a
                short last batch, ignored targets, a rank without rows), let each rank's loss be a sum and give
                1 / `global_token_count(...)`; a mean of means would weigh the targets of short parts too much.
        """
        self.synchronize(1.0 / self.comm.size if scale is None else scale)

    def synchronize(self, scale: float) -> None:
        """Sum over the ranks and scale."""
        raise NotImplementedError


class NaiveDataParallel(DataParallel):
    """After backward, one message per parameter: right, and slow by the latency of every one of them."""

    def synchronize(self, scale: float) -> None:
        """Sum over the ranks and scale."""
        reduce_gradients(self.parameters_in_order, self.comm, scale)


class FlatDataParallel(DataParallel):
    """After backward, one message for all (one for each dtype): the fewest messages, and none during backward."""

    def __init__(self, module: nn.Module, comm: Comm):
        super().__init__(module, comm)
        total_bytes = sum(parameter.nbytes for parameter in self.parameters_in_order)
        self.buckets = GradientBuckets(self.parameters_in_order, comm, max(total_bytes, 1), overlap=False)

    def synchronize(self, scale: float) -> None:
        """Sum over the ranks and scale."""
        self.buckets.finish(scale)


class DistributedDataParallel(DataParallel):
    """Buckets that are sent off during backward, from the last layer to the first.

    Args:
        module: as in `DataParallel`.
        comm: as there.
        bucket_bytes: gradients are put together up to this size: large enough that latency does not count, small enough
            that the first message leaves early.
        overlap: False sends the same buckets, but after backward.
        find_unused: see `GradientBuckets.finish`.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Comm,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        overlap: bool = True,
        find_unused: bool = True,
    ):
        super().__init__(module, comm)
        self.buckets = GradientBuckets(self.parameters_in_order, comm, bucket_bytes, overlap, find_unused)
        self.is_sending = True
        for parameter in self.parameters_in_order:
            parameter.register_post_accumulate_grad_hook(self.gradient_is_there)

    @property
    def launches(self) -> list[Launch]:
        """The log of the last step: when each bucket was sent."""
        return self.buckets.launches

    def gradient_is_there(self, parameter: Tensor) -> None:
        """Called by autograd, during backward, with the parameter (not with its gradient)."""
        if self.is_sending:
            self.buckets.ready(parameter)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here only accumulate on this rank; the next one outside sends all of it."""
        before, self.is_sending = self.is_sending, False
        try:
            yield
        finally:
            self.is_sending = before

    def synchronize(self, scale: float) -> None:
        """Sum over the ranks and scale."""
        self.buckets.finish(scale)
