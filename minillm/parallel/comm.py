"""A group of ranks and what they say to each other: the collectives of PyTorch under one name each, counted and timed.

A `Comm` is handed to everything in this package; there is no group in a global variable. What is sent through it can be
counted (`CommCounter`), slowed down as on a real wire (`SlowLink`), and checked: do all ranks come with the same thing?

Dimensions: P ranks of the group, N numbers in a tensor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from minillm.errors import CommError, ConfigError, ShapeError
from minillm.parallel.board import Board

REDUCTIONS = ("sum", "mean", "max", "min")
SIGNATURE_BYTES = 256


@dataclass(frozen=True)
class Transfer:
    """One operation of one rank: `n_bytes` is the whole tensor, `sent_bytes` what a ring makes this rank send."""

    operation: str
    group: str
    n_bytes: int
    sent_bytes: float


@dataclass
class CommCounter:
    """What this rank has asked for, in order.

    `sent_bytes` of a collective is the volume of a ring, whatever the backend does: with P ranks and S bytes in the
    whole tensor, (P - 1) / P * S for reduce-scatter and all-gather, twice that for all-reduce, S for a send. (Gloo's
    own reduce-scatter sends as much as its all-reduce; rings by hand go through `send`, which is counted as it is.)

    Example:
        >>> counter = CommCounter()
        >>> counter.add("all_reduce", "dp", n_bytes=800, world_size=4)
        >>> counter.add("send", "pp", n_bytes=100, world_size=2)
        >>> counter.count("all_reduce"), counter.n_bytes("all_reduce"), counter.sent_bytes()
        (1, 800, 1300.0)
    """

    transfers: list[Transfer] = field(default_factory=list)

    def add(self, operation: str, group: str, n_bytes: int, world_size: int) -> None:
        """Note one operation on a tensor of `n_bytes` (the whole one, not a rank's share) among `world_size` ranks."""
        factor = {"all_reduce": 2.0, "reduce_scatter": 1.0, "all_gather": 1.0}.get(operation)
        share = {"send": 1.0, "recv": 0.0, "barrier": 0.0}.get(operation, 1.0)
        sent = n_bytes * (factor * (world_size - 1) / world_size if factor else share)
        self.transfers.append(Transfer(operation, group, n_bytes, sent))

    def chosen(self, operation: str = "", group: str = "") -> list[Transfer]:
        """The transfers of one kind and one group; empty names mean all."""
        return [t for t in self.transfers if operation in ("", t.operation) and group in ("", t.group)]

    def count(self, operation: str = "", group: str = "") -> int:
        """How many."""
        return len(self.chosen(operation, group))

    def n_bytes(self, operation: str = "", group: str = "") -> int:
        """Bytes of the whole tensors."""
        return sum(t.n_bytes for t in self.chosen(operation, group))

    def sent_bytes(self, operation: str = "", group: str = "") -> float:
        """Bytes that this rank sends if every collective is a ring."""
        return sum(t.sent_bytes for t in self.chosen(operation, group))

    def clear(self) -> None:
        """Begin anew."""
        self.transfers.clear()


@dataclass
class SlowLink:
    """A wire that takes its time: each transfer begins when the one before has ended and holds up nobody's processor.

    Args:
        bytes_per_second: of this rank's outgoing wire.
        latency_seconds: before the first byte of each transfer.
    """

    bytes_per_second: float
    latency_seconds: float = 0.0
    free_at: float = 0.0

    def __post_init__(self):
        if not self.bytes_per_second > 0 or not self.latency_seconds >= 0:
            raise ConfigError(
                f"a link of {self.bytes_per_second} bytes/s and {self.latency_seconds} s: expected a rate above 0 and "
                "a latency of 0 or more"
            )

    def occupy(self, sent_bytes: float, now: float) -> float:
        """Take the wire for so many bytes; returns the moment at which they have arrived.

        Example:
            >>> link = SlowLink(bytes_per_second=100.0, latency_seconds=0.5)
            >>> link.occupy(100, now=10.0), link.occupy(100, now=10.1)
            (11.5, 13.0)
        """
        self.free_at = max(now, self.free_at) + self.latency_seconds + sent_bytes / self.bytes_per_second
        return self.free_at


class Pending:
    """A transfer that goes on while this rank computes; `wait` returns when it has ended (and may be called again).

    Args:
        comm: whose transfer it is.
        what: name and tensor, for messages.
        work: what torch returned; None if it has ended.
        ready_at: on a slow link, the moment before which it has not.
        finish: called once after it.
    """

    def __init__(
        self,
        comm: "Comm",
        what: str,
        work: Any = None,
        ready_at: float = 0.0,
        finish: Callable[[], object] | None = None,
    ):
        self.comm, self.what, self.work, self.ready_at, self.finish = comm, what, work, ready_at, finish

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            CommError: naming this rank, the collective and, where it can be known, the ranks that are not there.
        """
        work, self.work = self.work, None
        if work is not None:
            with self.comm.named_errors(self.what):
                work.wait()
        if (rest := self.ready_at - time.perf_counter()) > 0:
            time.sleep(rest)
        finish, self.finish = self.finish, None
        if finish is not None:
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
        self.n_calls = 0

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
        backend = self.backend.subgroups(groups)
        return Comm(backend, name, self.counter, self.link, self.board, self.checked, self.timeout_seconds)

    def all_reduce(self, tensor: Tensor, op: str = "sum", async_op: bool = False) -> Pending | None:
        """Put the sum ("sum", "mean", "max" or "min") over all ranks into `tensor` on each of them, in place.

        Args:
            tensor: contiguous, of the same shape and dtype on all ranks.
            op: how numbers are put together; "mean" is the sum divided by P.
            async_op: return at once with a `Pending`.
        """
        finish = (lambda: tensor.div_(self.size)) if check_reduction(op) == "mean" else None
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
        finish = (lambda: output.div_(self.size)) if check_reduction(op) == "mean" else None
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
        begin = lambda: self.backend.all_to_all(output, tensor)  # noqa: E731
        return self.run("all_to_all", [tensor, output], tensor.nbytes, async_op, begin)

    def broadcast(self, tensor: Tensor, source: int = 0, async_op: bool = False) -> Pending | None:
        """Give all ranks what rank `source` (counted in this group) has in `tensor`, in place."""
        begin = lambda: self.backend.broadcast(tensor, self.ranks[source])  # noqa: E731
        return self.run("broadcast", [tensor], tensor.nbytes, async_op, begin)

    def send(self, tensor: Tensor, target: int, tag: int = 0, async_op: bool = False) -> Pending | None:
        """Send a contiguous tensor to rank `target` of this group, which must receive it with the same tag."""
        begin = lambda: self.backend.send(tensor, self.ranks[target], tag)  # noqa: E731
        return self.run("send", [tensor], tensor.nbytes, async_op, begin, peer=self.ranks[target])

    def recv(self, tensor: Tensor, source: int, tag: int = 0, async_op: bool = False) -> Pending | None:
        """Receive into a contiguous tensor what rank `source` of this group sends with the same tag."""
        begin = lambda: self.backend.recv(tensor, self.ranks[source], tag)  # noqa: E731
        return self.run("recv", [tensor], tensor.nbytes, async_op, begin, peer=self.ranks[source])

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.all_reduce(torch.zeros(1, device=self.device))

    def all_objects(self, value: object) -> list:
        """A small picklable value of each rank, in rank order, on each of them; trusted peers only."""
        with self.named_errors(f"all_objects of {type(value).__name__}"):
            return self.backend.all_objects(value)

    def all_numbers(self, value: float, op: str = "sum") -> float:
        """The sum (or "mean", "max", "min") of one number per rank, in double precision."""
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        self.all_reduce(number, op)
        return number.item()

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
        self.n_calls += 1
        about = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
        what = f"{operation} number {self.n_calls} of {about or 'an object'}"
        if self.board is not None:
            self.board.write(self.ranks[self.rank], self.n_calls, operation, self.name)
        if self.checked and peer is None:
            self.check_agreement(operation, tensors, what)
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise ShapeError(f"{what}: the tensor is not contiguous; hand over tensor.contiguous()")
        ready_at = 0.0
        if self.counter is not None or self.link is not None:
            counter = self.counter if self.counter is not None else CommCounter()
            counter.add(operation, self.name, n_bytes, self.size)
            if self.link is not None:
                ready_at = self.link.occupy(counter.transfers[-1].sent_bytes, time.perf_counter())
        with self.named_errors(what):
            work = begin()
        pending = Pending(self, what, work, ready_at, finish)
        if async_op:
            return pending
        pending.wait()
        return None

    def named_errors(self, what: str) -> "NamedErrors":
        """A context in which torch's errors say who could not do what, and who was missing."""
        return NamedErrors(self, what)

    def missing(self) -> list[str]:
        """Which ranks of this machine are not in the operation that this rank began last, as far as the board says."""
        if self.board is None:
            return []
        mine = self.board.read(self.ranks[self.rank])
        places = {rank: self.board.read(rank) for rank in self.ranks if rank != self.ranks[self.rank]}
        return [
            f"rank {rank} is not there ({place})"
            for rank, place in places.items()
            if (place.group, place.n_calls) < (mine.group, mine.n_calls) or place.group != mine.group
        ]

    def check_agreement(self, operation: str, tensors: Sequence[Tensor], what: str) -> None:
        """Compare with all ranks what is about to be done.

        Raises:
            CommError: listing what each rank came with.
        """
        shapes = " and ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors)
        text = f"{operation} of {shapes}".encode()[:SIGNATURE_BYTES]
        mine = torch.zeros(SIGNATURE_BYTES, dtype=torch.uint8)
        mine[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        everyones = torch.zeros(self.size * SIGNATURE_BYTES, dtype=torch.uint8, device=self.device)
        with self.named_errors(f"the check before {what}"):
            work = self.backend.all_gather(everyones, mine.to(self.device))
            if work is not None:
                work.wait()
        texts = [bytes(row.tolist()).rstrip(b"\0").decode() for row in everyones.view(self.size, -1).cpu()]
        if len(set(texts)) > 1:
            came = "; ".join(f"rank {rank} with {text}" for rank, text in zip(self.ranks, texts, strict=True))
            raise CommError(f"the ranks of {self.name} came to one collective with different things: {came}")


def check_reduction(op: str) -> str:
    """The name of a reduction, if there is one of that name."""
    if op not in REDUCTIONS:
        raise ConfigError(f"reduction {op!r} is unknown; known are {', '.join(REDUCTIONS)}")
    return op


class NamedErrors:
    """Turns torch's RuntimeErrors inside it into CommErrors; see `Comm.named_errors`."""

    def __init__(self, comm: Comm, what: str):
        self.comm, self.what = comm, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, RuntimeError):
            return
        comm = self.comm
        text = str(error).strip().splitlines()[-1] if str(error).strip() else kind.__name__
        late = "imed out" in str(error) or "imeout" in str(error)
        reason = f"did not end within {comm.timeout_seconds:g} s" if late else f"failed ({text})"
        who = "; ".join(comm.missing()) if late else ""
        advice = f": {who}" if who else ". A rank may have died, left early, or come with another shape or dtype"
        raise CommError(f"rank {comm.rank} of {comm.size} in {comm.name}: {self.what} {reason}{advice}") from error

