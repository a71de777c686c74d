"""Chapter 19, Data parallel: fill in the holes (17 points).

`minillm course test 19` tests this file, `minillm course test 19 19.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from minillm.errors import CommError, ConfigError
from minillm.parallel.buckets import Bucket, Launch, used_by_any
from minillm.parallel.comm import Comm
from minillm.parallel.flat import FlatPiece
from minillm.parallel.memory import StateBytes
from minillm.parallel.parameter_server import arrival_order
from minillm.parallel.rehearsal import rehearse_buckets, rehearse_collective, rehearse_reduction
from minillm.parallel.rings import exchange, parts_of


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
    # TASK 19.1 (3 points)
    # `parts_of` cuts the tensor, `exchange` sends to the next rank while it receives from the one before. In
    # every round write down which part you send and which one you receive: what you receive now, you send on in
    # the next round, and the last one that you add to must be your own.
    raise NotImplementedError("task 19.1")


def ring_all_gather(tensor: Tensor, comm: Comm) -> None:
    """Complete a tensor of which each rank has its own part, in place.

    In round k rank r sends on part r - k, which it got in the round before, and receives part r - 1 - k.

    Args:
        tensor: (N,), of which the part `part_bounds(N, P)[rank]` is right.
        comm: the group.

    Raises:
        ShapeError: unless the tensor has one dimension.
    """
    # TASK 19.2 (2 points)
    # The same walk without adding: in the first round you send your own part, then always what you have just
    # received. Receive straight into the view.
    raise NotImplementedError("task 19.2")


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
    # TASK 19.3 (2 points)
    # From the last index to the first; a new bucket begins when there is none yet, or when this size would not
    # fit into the open one.
    raise NotImplementedError("task 19.3")


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
        # TASK 19.4 (2 points)
        # Look only at the bucket whose turn it is, number `n_launched`. Is anything missing in it? Then stop,
        # whatever the later ones say. Else `launch` it, which counts it, and look at the next.
        raise NotImplementedError("task 19.4")

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
    # TASK 19.5 (3 points)
    # First ask `used_by_any`, once, for all parameters. Then one sum per parameter, in the same order on every
    # rank: who has no gradient takes part with zeros. `all_reduce` works in place and wants a contiguous tensor.
    raise NotImplementedError("task 19.5")


class Clocks:
    """How many steps each worker has made, and who must wait.

    Args:
        workers: their ranks.
        max_lead: how many steps a worker may be ahead of the slowest when it begins the next one; infinity: no limit.

    Example:
        >>> clocks = Clocks([1, 2], max_lead=1)
        >>> clocks.finish_step(1), clocks.finish_step(1), clocks.finish_step(2)
        ([1], [], [1, 2])
    """

    def __init__(self, workers: Sequence[int], max_lead: float):
        self.n_steps = dict.fromkeys(workers, 0)
        self.max_lead = max_lead
        self.waiting: list[int] = []

    def lead(self, worker: int) -> int:
        """Steps that this worker is ahead of the slowest."""
        return self.n_steps[worker] - min(self.n_steps.values())

    def finish_step(self, worker: int) -> list[int]:
        """A worker has made a step: who may begin the next one now?

        Returns:
            ranks of workers that wait and whose lead is at most `max_lead`, in the order in which they came; they wait
            no longer. It may be this worker, others that it has kept waiting, or nobody.
        """
        # TASK 19.6 (2 points)
        # A step of the slowest worker may set others free, so look at everyone who waits, in the order in which they
        # came, and only after this worker's step has been counted. Who goes on no longer waits.
        raise NotImplementedError("task 19.6")


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
        # TASK 19.7 (2 points)
        # Two intervals: what the rank owns of the buffer, and where a tensor lies in it. Their overlap is the piece.
        # `begin` and `end` count from the tensor's start, `offset` from the start of the rank's share.
        raise NotImplementedError("task 19.7")

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors as views of a buffer of `padded_numbers`."""
        places = zip(self.offsets, self.numbers, self.shapes, strict=True)
        return [flat[offset : offset + number].view(shape) for offset, number, shape in places]


def model_state_bytes(
    n_parameters: int,
    world_size: int,
    stage: int,
    parameter_bytes: int = 2,
    gradient_bytes: int = 2,
    optimizer_bytes: int = 12,
) -> StateBytes:
    """Bytes on each rank at the four stages of ZeRO.

    Stage 0 (data parallel) keeps everything everywhere: 16 Psi with the bytes below. Stage 1 divides the optimizer's
    state among the ranks: 4 Psi + 12 Psi / P. Stage 2 the gradients as well: 2 Psi + 14 Psi / P. Stage 3 all: 16 Psi /
    P.

    Args:
        n_parameters: Psi.
        world_size: P; where it does not divide Psi, each rank's share is rounded up.
        stage: 0 to 3.
        parameter_bytes: per parameter; 2 for bfloat16.
        gradient_bytes: per parameter.
        optimizer_bytes: per parameter; 12 for AdamW in float32 with a float32 copy of the parameters.

    Raises:
        ConfigError: if the stage is unknown or a number too small.

    Source:
        Rajbhandari et al. 2020, arXiv:1910.02054, figure 1: K = 12.

    Example:
        >>> [model_state_bytes(7_500_000_000, 64, stage).total / 1e9 for stage in range(4)]
        [120.0, 31.40625, 16.640625, 1.875]
    """
    # TASK 19.8 (1 point)
    # Three lines of one table: what each of the three parts costs when it is whole, and from which stage on a
    # rank has only its share. The share is rounded up once, in parameters, before it is turned into bytes.
    raise NotImplementedError("task 19.8")
