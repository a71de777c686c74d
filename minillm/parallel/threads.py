"""Ranks as threads of one process: the same `Comm`, through shared memory, for debuggers and for graded exercises.

Nothing is faster for it; but a breakpoint works, and nothing must be picklable.
"""

import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.errors import CommError, ConfigError
from minillm.parallel.comm import Comm, CommCounter, SlowLink
from minillm.parallel.processes import Together


class World:
    """What the threads share: a meeting point for each group and a letter box for each pair of ranks and tag.

    Args:
        world_size: number of threads P.
        timeout_seconds: after which who waits gives up.
    """

    def __init__(self, world_size: int, timeout_seconds: float):
        self.ranks, self.timeout_seconds = list(range(world_size)), timeout_seconds
        self.lock = threading.Lock()
        self.meetings: dict[tuple[int, ...], Meeting] = {}
        self.boxes: dict[tuple, queue.Queue] = defaultdict(queue.Queue)
        self.failed = threading.Event()

    def meeting(self, ranks: Sequence[int]) -> "Meeting":
        """The meeting point of a group."""
        with self.lock:
            meeting = self.meetings.setdefault(tuple(ranks), Meeting(len(ranks), self.timeout_seconds))
            if self.failed.is_set():
                meeting.barrier.abort()
            return meeting

    def box(self, ranks: Sequence[int], source: int, target: int, tag: int) -> queue.Queue:
        """The letter box of a group from one rank to another."""
        with self.lock:
            return self.boxes[tuple(ranks), source, target, tag]

    def wait_for(self, look: Callable[[float], Any]) -> Any:
        """Call `look` with a few hundredths of a second at a time until it returns something.

        Raises:
            RuntimeError: if that takes too long, or a rank has failed.
        """
        end = time.monotonic() + self.timeout_seconds
        while (found := look(0.05)) is None:
            if self.failed.is_set() or time.monotonic() > end:
                raise RuntimeError("timed out, or another rank failed")
        return found

    def fail(self) -> None:
        """Wake all who wait: a rank has failed."""
        self.failed.set()
        with self.lock:
            for meeting in self.meetings.values():
                meeting.barrier.abort()


class Meeting:
    """Where the threads of a group show each other what they have."""

    def __init__(self, size: int, timeout_seconds: float):
        self.barrier = threading.Barrier(size, timeout=timeout_seconds)
        self.shown: list[Any] = [None] * size

    def exchange(self, place: int, value: Any) -> list:
        """What everybody shows, in rank order.

        Raises:
            RuntimeError: if somebody does not come in time.
        """
        self.shown[place] = value
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RuntimeError("timed out, or another rank failed") from error
        everything = list(self.shown)
        with contextlib.suppress(threading.BrokenBarrierError):  # who fails after this exchange does not undo it
            self.barrier.wait()
        return everything


class Letter:
    """A tensor on its way: as with gloo, a send has ended when the other rank has received.

    Args:
        world: whose ranks they are.
        content: the tensor; a copy, so that the sender may go on with its own.
    """

    def __init__(self, world: World, content: Tensor):
        self.world, self.content, self.taken = world, content, threading.Event()

    def is_completed(self) -> bool:
        return self.taken.is_set()

    def wait(self) -> None:
        self.world.wait_for(lambda seconds: self.taken.wait(seconds) or None)


class Receipt:
    """A receive that has begun: of the next letter in a box, into a tensor."""

    def __init__(self, world: World, box: queue.Queue, tensor: Tensor):
        self.world, self.box, self.tensor, self.is_here = world, box, tensor, False

    def is_completed(self) -> bool:
        return self.is_here or not self.box.empty()

    @torch.no_grad()
    def wait(self) -> None:
        letter = self.world.wait_for(self.next_letter)
        self.is_here = True
        letter.taken.set()
        content, tensor = letter.content, self.tensor
        if content.shape != tensor.shape or content.dtype != tensor.dtype:
            raise RuntimeError(
                f"{content.dtype} {tuple(content.shape)} came, expected {tensor.dtype} {tuple(tensor.shape)}"
            )
        tensor.copy_(content)

    def next_letter(self, seconds: float) -> Letter | None:
        """The next letter, if it comes in time."""
        try:
            return self.box.get(timeout=seconds)
        except queue.Empty:
            return None


class ThreadBackend:
    """Collectives among threads; see `comm.Backend`. Sums are in rank order, the same bits on every rank."""

    device = torch.device("cpu")
    group = None

    def __init__(self, world: World, rank: int, ranks: Sequence[int]):
        self.world, self.rank, self.ranks = world, rank, list(ranks)
        self.place = self.ranks.index(rank)
        self.meeting = world.meeting(ranks)

    @torch.no_grad()
    def all_reduce(self, tensor: Tensor, op: str) -> None:
        tensor.copy_(combined(self.everybodys(tensor), op))

    @torch.no_grad()
    def reduce_scatter(self, output: Tensor, tensor: Tensor, op: str) -> None:
        whole = combined(self.everybodys(tensor), op)
        output.copy_(whole.reshape(len(self.ranks), -1)[self.place].view_as(output))

    @torch.no_grad()
    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        output.copy_(torch.cat([part.flatten() for part in self.everybodys(tensor)]).view_as(output))

    @torch.no_grad()
    def all_to_all(self, output: Tensor, tensor: Tensor) -> None:
        parts = [other.reshape(len(self.ranks), -1)[self.place] for other in self.everybodys(tensor)]
        output.copy_(torch.cat(parts).view_as(output))

    @torch.no_grad()
    def broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self.everybodys(tensor)[self.ranks.index(source)])

    def send(self, tensor: Tensor, target: int, tag: int) -> Letter:
        letter = Letter(self.world, tensor.detach().clone())
        self.world.box(self.ranks, self.rank, target, tag).put(letter)
        return letter

    def recv(self, tensor: Tensor, source: int, tag: int) -> Receipt:
        return Receipt(self.world, self.world.box(self.ranks, source, self.rank, tag), tensor)

    def exchange(self, outgoing: Tensor, target: int, incoming: Tensor, source: int, tag: int) -> Together:
        sending = self.send(outgoing, target, tag)
        return Together([self.recv(incoming, source, tag), sending])  # who waits for the sending first, waits for ever

    def recv_any(self, tensor: Tensor, tag: int) -> int:
        boxes = {source: self.world.box(self.ranks, source, self.rank, tag) for source in self.ranks}

        def look(seconds: float) -> int | None:
            filled = [source for source, box in boxes.items() if not box.empty()]
            return filled[0] if filled else time.sleep(min(seconds, 0.001))

        source = self.world.wait_for(look)
        self.recv(tensor, source, tag).wait()
        return source

    def all_objects(self, value: object) -> list:
        return self.meeting.exchange(self.place, value)

    def subgroups(self, groups: Sequence[Sequence[int]]) -> "ThreadBackend":
        mine = [ranks for ranks in groups if self.rank in ranks]
        if len(mine) != 1:
            raise ConfigError(f"rank {self.rank} is in {len(mine)} of the groups {groups}, expected one")
        return ThreadBackend(self.world, self.rank, mine[0])

    def everybodys(self, tensor: Tensor) -> list[Tensor]:
        """Copies of everybody's tensor; refuses different shapes and dtypes, which gloo would not."""
        tensors = self.meeting.exchange(self.place, tensor.detach().clone())
        kinds = [(other.dtype, tuple(other.shape)) for other in tensors]
        if len(set(kinds)) > 1:
            raise RuntimeError(f"the ranks came with {', '.join(f'{dtype} {shape}' for dtype, shape in kinds)}")
        return tensors


def combined(tensors: list[Tensor], op: str) -> Tensor:
    """Sum, maximum or minimum over a list, in its order."""
    stacked = torch.stack(tensors)
    if op in ("max", "min"):
        return stacked.amax(0) if op == "max" else stacked.amin(0)
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def launch_threads(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    counters: Sequence[CommCounter] | None = None,
    links: Sequence[SlowLink] | None = None,
    timeout_seconds: float = 20.0,
) -> list[Any]:
    """`function(comm, *args)` in `world_size` threads; the same contract as `launch.launch`.

    Args:
        function: any callable; it gets the world's `Comm` first.
        world_size: number of threads P.
        args: handed on, the same objects to all.
        counters: one per rank, or None.
        links: one per rank, or None.
        timeout_seconds: after which a rank that waits gives up.

    Returns:
        the results in rank order.

    Raises:
        CommError: if ranks did not come to a collective; any other error of a rank is raised as it was.

    Example:
        >>> def share(comm):
        ...     number = torch.tensor([comm.rank + 1.0])
        ...     comm.all_reduce(number)
        ...     return number.item()
        >>> launch_threads(share, 3)
        [6.0, 6.0, 6.0]
    """
    if world_size < 1:
        raise ConfigError(f"world_size is {world_size}, expected 1 or more")
    world = World(world_size, timeout_seconds)
    results: list[Any] = [None] * world_size
    errors: list[tuple[int, BaseException]] = []

    def run(rank: int) -> None:
        counter = None if counters is None else counters[rank]
        link = None if links is None else links[rank]
        backend = ThreadBackend(world, rank, world.ranks)
        try:
            results[rank] = function(Comm(backend, "world", counter, link, timeout_seconds=timeout_seconds), *args)
        except BaseException as error:
            errors.append((rank, error))
            world.fail()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in world.ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for_exit([thread.native_id for thread in threads])
    if errors:
        own = [pair for pair in errors if not isinstance(pair[1], CommError)]
        rank, error = min(own or errors[:1], key=lambda pair: pair[0])  # not the first: that differs from run to run
        error.add_note(f"raised on rank {rank} of {world_size}")
        raise error
    return results


def wait_for_exit(native_ids: Sequence[int], seconds: float = 1.0) -> None:
    """Wait until the system, too, is rid of threads that have been joined.

    They still free what libraries keep for each thread, under locks that a process forked now would inherit locked.
    """
    tasks = [Path(f"/proc/self/task/{number}") for number in native_ids]
    end = time.monotonic() + seconds
    while any(task.exists() for task in tasks) and time.monotonic() < end:
        time.sleep(0.0005)
