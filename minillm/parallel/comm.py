"""A group of ranks and what they say to each other: the collectives of PyTorch under one name each, counted and timed.

A `Comm` is handed to everything in this package; there is no group in a global variable. What is sent through it can be
counted (`CommCounter`), slowed down as on a real wire (`SlowLink`), and checked: do all ranks come with the same thing?

Dimensions: P ranks of the group, N numbers in a tensor.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minillm.errors import CommError, ConfigError, ShapeError
from minillm.parallel.board import Board
from minillm.parallel.traffic import CommCounter, LateStart, SlowLink

REDUCTIONS = ("sum", "mean", "max", "min")
SIGNATURE_BYTES = 256
ANY = -1  # the peer of who receives from whichever rank sends first


class Step(NamedTuple):
    """What a rank is doing, for messages: the `number`-th collective of its group, or a transfer from or to a `peer`.

    Example:
        >>> str(Step("all_reduce", 3, kinds=((torch.Size([2, 4]), torch.float32),)))
        'all_reduce number 3 of (2, 4) float32'
        >>> str(Step("recv", 3, peer=1))
        'recv from rank 1'
    """

    operation: str
    number: int
    peer: int | None = None
    kinds: tuple[tuple[torch.Size, torch.dtype], ...] = ()

    def __str__(self) -> str:
        about = ", ".join(f"{tuple(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in self.kinds)
        peer = "any rank" if self.peer == ANY else f"rank {self.peer}"
        where = f"number {self.number}" if self.peer is None else f"{self.direction} {peer}"
        return f"{self.operation} {where}" + (f" of {about}" if about else "")

    @property
    def direction(self) -> str:
        """Where the peer is."""
        return "to" if self.operation == "send" else "from"


class Pending:
    """A transfer that goes on while this rank computes; `wait` returns when it has ended (and may be called again).

    Args:
        comm: whose transfer it is.
        step: which one, for messages.
        work: what torch returned; None if it has ended.
        ready_at: on a slow link, the moment before which it has not.
        finish: called once after it.
    """

    def __init__(
        self,
        comm: "Comm",
        step: Step,
        work: Any = None,
        ready_at: float = 0.0,
        finish: Callable[[], object] | None = None,
    ):
        self.comm, self.step, self.work, self.ready_at, self.finish = comm, step, work, ready_at, finish

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            CommError: naming this rank, the collective and, where it can be known, the ranks that are not there.
        """
        if self.work is not None:
            with NamedErrors(self.comm, self.step):
                self.work.wait()
            self.work = None                                       # not before: who waits again gets the error again
        if (rest := self.ready_at - time.perf_counter()) > 0:
            time.sleep(rest)
        finish, self.finish = self.finish, None
        if finish is not None:
            with torch.no_grad():
                finish()

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return (self.work is None or self.work.is_completed()) and time.perf_counter() >= self.ready_at


class Backend(Protocol):
    """Who carries out what a `Comm` asks for: `processes.TorchBackend` or, in one process, `threads.ThreadBackend`.

    Each method begins an operation on whole tensors and returns something with `wait` and `is_completed`, or None if it
    has ended already. Ranks are those of the world.
    """

    rank: int
    ranks: list[int]
    device: torch.device

    def all_reduce(self, tensor: Tensor, op: str) -> Any: ...
    def reduce_scatter(self, output: Tensor, tensor: Tensor, op: str) -> Any: ...
    def all_gather(self, output: Tensor, tensor: Tensor) -> Any: ...
    def all_to_all(self, output: Tensor, tensor: Tensor) -> Any: ...
    def broadcast(self, tensor: Tensor, source: int) -> Any: ...
    def send(self, tensor: Tensor, target: int, tag: int) -> Any: ...
    def recv(self, tensor: Tensor, source: int, tag: int) -> Any: ...
    def recv_any(self, tensor: Tensor, tag: int) -> int: ...
    def exchange(self, outgoing: Tensor, target: int, incoming: Tensor, source: int, tag: int) -> Any: ...
    def all_objects(self, value: object) -> list: ...
    def subgroups(self, groups: Sequence[Sequence[int]]) -> "Backend": ...


class Comm:
    """Ranks that talk to each other, seen from one of them.

    All ranks of the group must call collectives in the same order. With `async_op=True` they return a `Pending`.

    Args:
        backend: who carries it out.
        name: for messages and the counter, for example "dp".
        counter: counts what is sent, or None.
        link: slows it down, or None.
        board: where ranks of one machine write where they are, or None.
        checked: compare operation, dtype and shape over all ranks before each collective: gloo itself adds float32 to
            int32 without a word. One small all-gather more each time.
        timeout_seconds: as given to torch, for messages.

    Attributes:
        rank: number of this process in the group.
        size: number of ranks P.
        ranks: their numbers in the world.
        n_collectives: how many this rank has begun; the same number on all ranks that keep in step.
        failure: what went wrong in this group; nothing more can be sent in it then.
    """

    def __init__(
        self,
        backend: Backend,
        name: str = "world",
        counter: CommCounter | None = None,
        link: SlowLink | None = None,
        board: Board | None = None,
        checked: bool = False,
        timeout_seconds: float = 60.0,
    ):
        self.backend, self.name, self.counter, self.link, self.board = backend, name, counter, link, board
        self.checked, self.timeout_seconds = checked, timeout_seconds
        self.rank, self.size, self.ranks = backend.ranks.index(backend.rank), len(backend.ranks), backend.ranks
        self.n_collectives, self.failure = 0, ""

    @property
    def group(self) -> Any:
        """Torch's process group, for its own engines; only processes have one."""
        return self.backend.group

    @property
    def device(self) -> torch.device:
        """Where tensors must be for this backend."""
        return self.backend.device

    def subgroup(self, groups: Sequence[Sequence[int]], name: str) -> "Comm":
        """The one of several groups that this rank is in, with the same counter, link, board and checks.

        Called by all ranks of the world with the same groups.

        Args:
            groups: ranks of the world; each rank is in exactly one of them.
            name: of all of them, in messages and counter.
        """
        with NamedErrors(self, self.begin(f"making {name}"[:24])):
            backend = self.backend.subgroups(groups)
        return Comm(backend, name, self.counter, self.link, self.board, self.checked, self.timeout_seconds)

    def all_reduce(self, tensor: Tensor, op: str = "sum", async_op: bool = False) -> Pending | None:
        """Put the sum ("sum", "mean", "max" or "min") over all ranks into `tensor` on each of them, in place.

        Args:
            tensor: contiguous, of the same shape and dtype on all ranks.
            op: how numbers are put together; "mean" is the sum divided by P.
            async_op: return at once with a `Pending`.

        Raises:
            ConfigError: if the reduction is unknown, or the mean of integers is wanted.
        """
        finish = (lambda: tensor.div_(self.size)) if check_reduction(op, tensor) == "mean" else None
        begin = lambda: self.backend.all_reduce(tensor, op)  # noqa: E731
        return self.run("all_reduce", [tensor], tensor.nbytes, async_op, begin, finish)

    def reduce_scatter(
        self, output: Tensor, tensor: Tensor, op: str = "sum", async_op: bool = False
    ) -> Pending | None:
        """Add up over the ranks, and leave rank r with the r-th of P equal parts of the sum.

        Args:
            output: (N / P, ...) is written.
            tensor: (N, ...) to be added, contiguous; unchanged.
            op: as in `all_reduce`.
            async_op: return at once with a `Pending`.

        Raises:
            ShapeError: unless `tensor` has P times the numbers of `output`.
        """
        self.check_parts(output, tensor)
        finish = (lambda: output.div_(self.size)) if check_reduction(op, tensor) == "mean" else None
        begin = lambda: self.backend.reduce_scatter(output, tensor, op)  # noqa: E731
        return self.run("reduce_scatter", [tensor, output], tensor.nbytes, async_op, begin, finish)

    def all_gather(self, output: Tensor, tensor: Tensor, async_op: bool = False) -> Pending | None:
        """Put the parts of all ranks one after another, on each of them.

        Args:
            output: (N, ...) is written.
            tensor: (N / P, ...), this rank's part, contiguous; unchanged.
            async_op: return at once with a `Pending`.

        Raises:
            ShapeError: unless `output` has P times the numbers of `tensor`.
        """
        self.check_parts(tensor, output)
        begin = lambda: self.backend.all_gather(output, tensor)  # noqa: E731
        return self.run("all_gather", [tensor, output], output.nbytes, async_op, begin)

    def all_to_all(self, output: Tensor, tensor: Tensor, async_op: bool = False) -> Pending | None:
        """Send the r-th of P equal parts of `tensor` (N, ...) to rank r, and receive one from each into `output`."""
        if tensor.numel() != output.numel() or tensor.numel() % self.size or tensor.dtype != output.dtype:
            raise ShapeError(
                f"all_to_all of {tuple(tensor.shape)} {tensor.dtype} into {tuple(output.shape)} {output.dtype} among "
                f"{self.size} ranks: expected one dtype and one number of elements, a multiple of {self.size}; pad it"
            )
        begin = lambda: self.backend.all_to_all(output, tensor)  # noqa: E731
        return self.run("all_to_all", [tensor, output], tensor.nbytes, async_op, begin)

    def broadcast(self, tensor: Tensor, source: int = 0, async_op: bool = False) -> Pending | None:
        """Give all ranks what rank `source` (counted in this group) has in `tensor`, in place."""
        peer = self.world_rank(source)
        begin = lambda: self.backend.broadcast(tensor, peer)  # noqa: E731
        return self.run("broadcast", [tensor], tensor.nbytes, async_op, begin)

    def send(self, tensor: Tensor, target: int, tag: int = 0, async_op: bool = False) -> Pending | None:
        """Send a contiguous tensor to rank `target` of this group, which must receive it with the same tag."""
        peer = self.world_rank(target)
        begin = lambda: self.backend.send(tensor, peer, tag)  # noqa: E731
        return self.run("send", [tensor], tensor.nbytes, async_op, begin, peer=peer)

    def recv(self, tensor: Tensor, source: int, tag: int = 0, async_op: bool = False) -> Pending | None:
        """Receive into a contiguous tensor what rank `source` of this group sends with the same tag."""
        peer = self.world_rank(source)
        begin = lambda: self.backend.recv(tensor, peer, tag)  # noqa: E731
        return self.run("recv", [tensor], tensor.nbytes, async_op, begin, peer=peer)

    def exchange(
        self, outgoing: Tensor, target: int, incoming: Tensor, source: int, tag: int = 0, async_op: bool = False
    ) -> Pending | None:
        """Send to one rank and receive as much from another at the same time; all ranks of a ring may do so at once.

        Counted as a send and a receive. (As two transfers, those of NCCL may queue up behind each other for ever.)
        """
        to, of = self.world_rank(target), self.world_rank(source)
        begin = lambda: self.backend.exchange(outgoing, to, incoming, of, tag)  # noqa: E731
        return self.run("exchange", [outgoing, incoming], outgoing.nbytes, async_op, begin, peer=of)

    def recv_any(self, tensor: Tensor, tag: int = 0) -> int:
        """Receive from whichever rank sends first; returns its number in this group. Gloo and threads only."""
        sources: list[int] = []
        begin = lambda: sources.append(self.backend.recv_any(tensor, tag))  # noqa: E731
        self.run("recv", [tensor], tensor.nbytes, False, begin, peer=ANY)
        return self.ranks.index(sources[0])

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        number = torch.zeros(1, device=self.device)
        self.run("barrier", [number], 0, False, lambda: self.backend.all_reduce(number, "sum"))

    def all_objects(self, value: object) -> list:
        """A small picklable value of each rank, in rank order, on each of them; trusted peers only."""
        with NamedErrors(self, self.begin("all_objects")):
            return self.backend.all_objects(value)

    def all_numbers(self, value: float, op: str = "sum") -> float:
        """The sum (or "mean", "max", "min") of one number per rank, in double precision."""
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        self.all_reduce(number, op)
        return number.item()

    def world_rank(self, rank: int) -> int:
        """The number in the world of a rank of this group.

        Raises:
            ConfigError: if there is none.
        """
        if not 0 <= rank < self.size:
            raise ConfigError(f"rank {rank} is not in {self.name}, whose ranks are 0 to {self.size - 1}")
        return self.ranks[rank]

    def check_parts(self, part: Tensor, whole: Tensor) -> None:
        """Refuse a whole that is not P parts."""
        if whole.numel() != self.size * part.numel() or whole.dtype != part.dtype:
            raise ShapeError(
                f"a part {tuple(part.shape)} of {part.dtype} and a whole {tuple(whole.shape)} of {whole.dtype} among "
                f"{self.size} ranks: expected one dtype and {self.size} times as many numbers in the whole; pad it"
            )

    def run(
        self,
        operation: str,
        tensors: Sequence[Tensor],
        n_bytes: int,
        async_op: bool,
        begin: Callable[[], Any],
        finish: Callable[[], object] | None = None,
        peer: int | None = None,
    ) -> Pending | None:
        """Begin an operation with everything that belongs around it; the one place where this class talks to torch."""
        step = self.begin(operation, tensors, peer)
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise ShapeError(f"{step}: the tensor is not contiguous; hand over tensor.contiguous()")
        if self.checked and peer is None:
            self.check_agreement(step)
        ready_at = self.account(operation, n_bytes)
        with NamedErrors(self, step), torch.no_grad():
            is_late = operation in ("send", "exchange") and ready_at > 0  # on a slow link the other rank waits, too
            work = LateStart(begin, ready_at) if is_late else begin()
        pending = Pending(self, step, work, ready_at, finish)
        if async_op:
            return pending
        pending.wait()
        return None

    def begin(self, operation: str, tensors: Sequence[Tensor] = (), peer: int | None = None) -> Step:
        """Count a collective (sends and receives are not: ranks of one group differ in them), and tell the board.

        Raises:
            CommError: if something has gone wrong in this group before.
        """
        if self.failure:
            raise CommError(
                f"rank {self.rank} of {self.size} in {self.name} cannot begin {operation}: the group has failed before "
                f"({self.failure}); start all ranks again"
            )
        self.n_collectives += peer is None
        kinds = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        step = Step(operation, self.n_collectives, peer, kinds)
        if self.board is not None:
            told = operation if peer is None else f"{operation} {step.direction} {peer}"
            self.board.write(self.ranks[self.rank], self.n_collectives, told, self.name)
        return step

    def account(self, operation: str, n_bytes: int) -> float:
        """Count what is sent and occupy the slow link with it; returns the moment at which it has arrived, or 0."""
        if self.counter is None and self.link is None:
            return 0.0
        counter = self.counter if self.counter is not None else CommCounter()
        if operation == "exchange":                                # both at once
            counter.add("recv", self.name, n_bytes, self.size)
            operation = "send"
        counter.add(operation, self.name, n_bytes, self.size)
        if self.link is None or operation == "recv":               # the wire is the sender's
            return 0.0
        return self.link.occupy(counter.transfers[-1].sent_bytes, time.perf_counter())

    def missing(self, step: Step) -> list[str]:
        """Who of this machine keeps this rank waiting, as the board says: the peer, or who has not come so far."""
        if self.board is None:
            return []
        if step.peer not in (None, ANY):
            return [f"rank {step.peer} is not there ({self.board.read(step.peer)})"]
        places = {rank: self.board.read(rank) for rank in self.ranks if rank != self.ranks[self.rank]}
        return [
            f"rank {rank} is not there ({place})"
            for rank, place in places.items()
            if step.peer == ANY or place.group != self.name or place.n_collectives < step.number or place.is_stopped
        ]

    def check_agreement(self, step: Step) -> None:
        """Compare with all ranks what is about to be done.

        Raises:
            CommError: listing what each rank came with.
        """
        kinds = " and ".join(f"{str(dtype).removeprefix('torch.')} {tuple(shape)}" for shape, dtype in step.kinds)
        text = f"{step.operation} of {kinds}".encode()[:SIGNATURE_BYTES]
        mine = torch.zeros(SIGNATURE_BYTES, dtype=torch.uint8)
        mine[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        everyones = torch.zeros(self.size * SIGNATURE_BYTES, dtype=torch.uint8, device=self.device)
        with NamedErrors(self, step):
            work = self.backend.all_gather(everyones, mine.to(self.device))
            if work is not None:
                work.wait()
        texts = [bytes(row.tolist()).rstrip(b"\0").decode() for row in everyones.view(self.size, -1).cpu()]
        if len(set(texts)) > 1:
            came = "; ".join(f"rank {rank} with {text}" for rank, text in zip(self.ranks, texts, strict=True))
            raise CommError(f"the ranks of {self.name} came to one collective with different things: {came}")


def check_reduction(op: str, tensor: Tensor) -> str:
    """The name of a reduction, if there is one of that name for such numbers."""
    if op not in REDUCTIONS:
        raise ConfigError(f"reduction {op!r} is unknown; known are {', '.join(REDUCTIONS)}")
    if op == "mean" and not (tensor.is_floating_point() or tensor.is_complex()):
        raise ConfigError(f"a mean of {tensor.dtype} may not be a whole number; take the sum, or another dtype")
    return op


class NamedErrors:
    """A context in which torch's RuntimeErrors become CommErrors that say who could not do what, and who was missing.

    Args:
        comm: the group; its `failure` is noted.
        step: what is being done.
    """

    def __init__(self, comm: Comm, step: Step):
        self.comm, self.step = comm, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, RuntimeError):
            return
        comm = self.comm
        text = str(error).strip().splitlines()[-1] if str(error).strip() else kind.__name__
        late = "imed out" in str(error) or "imeout" in str(error)
        reason = f"did not end within {comm.timeout_seconds:g} s" if late else f"failed ({text})"
        who = "; ".join(comm.missing(self.step)) if late else ""
        advice = f": {who}" if who else ". A rank may have died, left early, or come with another shape or dtype"
        comm.failure = f"{self.step} {reason}"
        raise CommError(f"rank {comm.rank} of {comm.size} in {comm.name}: {self.step} {reason}{advice}") from error
