"""Start several processes of one machine that talk to each other, and end all of them whatever happens.

Works from a script, a test and a notebook cell. Processes are forked where that is safe (0.1 s), else spawned (4 s).
They meet through a file, so no port can be in use; what they print comes out in rank order; the first error is raised
here; a rank that dies or hangs takes the others with it; and if this process dies, so do they.
"""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from minillm.errors import CommError, ConfigError
from minillm.parallel.board import Board
from minillm.parallel.rank_process import Start, be_rank
from minillm.parallel.traffic import CommCounter, SlowLink

GRACE_SECONDS = 2.0  # after an error of communication: for the rank whose fault it is to say so
SHORT_GRACE_SECONDS = 0.1  # after an error that explains itself
SPAWN_SECONDS = 60.0  # a new Python that imports torch on a busy machine
LOOK_SECONDS = 0.5  # a rank's own children may keep its end of the pipe open: look whether it lives


class RankDied(CommError):
    """A rank ended without a word.

    Attributes:
        rank: which.
        cause: the signal's name or "exit code N".
    """

    def __init__(self, rank: int, world_size: int, cause: str, output: str):
        self.rank, self.cause = rank, cause
        shown = f"; its last output:\n{output[-2000:]}" if output.strip() else ""
        self.settings = (rank, world_size, cause, output)
        super().__init__(f"rank {rank} of {world_size} died ({cause}); the others were stopped{shown}")

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), self.settings


@dataclass
class Running:
    """One started rank, seen from the parent."""

    process: Any
    channel: Connection
    result: Any = None
    error: tuple[float, BaseException | None, str] | None = None
    is_done: bool = False
    death: str = field(default="")


def launch(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    backend: str = "gloo",
    start_method: str = "auto",
    timeout_seconds: float = 60.0,
    limit_seconds: float = 0.0,
    checked: bool = False,
    links: Sequence[SlowLink] | None = None,
    counters: Sequence[CommCounter] | None = None,
    show_output: bool = True,
) -> list[Any]:
    """Run `function(comm, *args)` in `world_size` processes.

    Args:
        function: gets the world's `Comm` first; with "spawn" it must be importable, forked it may be a notebook's.
        world_size: number of processes P.
        args: handed on; each rank has copies.
        backend: "gloo" or "nccl".
        start_method: "fork", "spawn", or "auto": fork on Linux unless CUDA is in use.
        timeout_seconds: a collective that takes longer is an error on the ranks that wait.
        limit_seconds: the whole call may take so long; 0 means for ever (collectives end by themselves).
        checked: ranks compare what they come with before each collective.
        links: a slow wire for each rank, or None.
        counters: one for each rank, or None; the ranks have copies: return `comm.counter` to see it.
        show_output: print what the ranks printed, rank by rank, when all have ended.

    Returns:
        the results, picklable, in rank order; tensors come back as copies.

    Raises:
        RankDied: if a rank was killed or left without a result.
        CommError: if ranks waited in vain, or the limit is over, naming the ranks that were not done.
        Exception: the first error that a rank raised, with its traceback as a note.
        ConfigError: if the world is empty, the start method unknown, or this process a rank itself.
    """
    if world_size < 1:
        raise ConfigError(f"world_size is {world_size}, expected 1 or more")
    if start_method not in ("auto", "fork", "spawn"):
        raise ConfigError(f"start_method is {start_method!r}, expected auto, fork or spawn")
    if dist.is_initialized() or multiprocessing.current_process().daemon:
        raise ConfigError("launch was called inside a rank, which cannot start others; use its Comm, or launch_threads")
    if start_method == "auto":
        start_method = "fork" if sys.platform == "linux" and not torch.cuda.is_initialized() else "spawn"
    folder = tempfile.mkdtemp(prefix="minillm-ranks-")
    start = Start(world_size, backend, timeout_seconds, checked, folder, start_method, counters, links)
    ranks: list[Running] = []
    try:
        Board(start.board, world_size)
        begin(ranks, start, start_method, function, args)
        collect(ranks, start, limit_seconds)
        release(ranks)
        return [rank.result for rank in ranks]
    finally:
        stop(ranks)
        if show_output:
            print_outputs(start)
        shutil.rmtree(folder, ignore_errors=True)


def begin(
    ranks: list[Running], start: Start, start_method: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Start all processes, adding each to `ranks` at once, so that whoever fails can stop those that run."""
    context = multiprocessing.get_context(start_method)
    if start_method == "fork":
        importlib.import_module("torch._dynamo")  # torch's optimizers do at their first use: seconds, in every rank
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(start.world_size):
        mine, theirs = context.Pipe()
        inherited = [running.channel for running in ranks] + [mine] if start_method == "fork" else []
        process = context.Process(
            target=be_rank, args=(rank, start, theirs, inherited, os.getpid(), function, args), daemon=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of fork beside threads
            process.start()
        theirs.close()
        ranks.append(Running(process, mine))


def collect(ranks: list[Running], start: Start, limit_seconds: float) -> None:
    """Wait for all results, or raise the error that explains best why there are none."""
    begun = time.monotonic()
    end = begun + limit_seconds if limit_seconds else float("inf")
    while not all(rank.is_done for rank in ranks) and time.monotonic() < end:
        waiting = {rank.channel: rank for rank in ranks if not rank.is_done}
        left = max(0.0, end - time.monotonic())
        ready = wait(list(waiting), timeout=min(left, LOOK_SECONDS))
        for rank in [waiting[channel] for channel in ready] or waiting.values():
            if rank.channel in ready or rank.process.exitcode is not None:
                receive(rank)
        end = min(end, time.monotonic() + patience(ranks))
        if not ready and time.monotonic() > begun + start.timeout_seconds + start_seconds(start):
            check_started(ranks, start)
    raise_failure(ranks, start, limit_seconds)


def start_seconds(start: Start) -> float:
    """How long a rank may take to be there, before it begins to wait for the others."""
    return SPAWN_SECONDS if start.method == "spawn" else GRACE_SECONDS


def check_started(ranks: list[Running], start: Start) -> None:
    """Refuse ranks that have never come as far as to meet: a fork can inherit a lock that another thread held.

    Raises:
        CommError: naming them.
    """
    board = Board(start.board, start.world_size)
    stuck = [number for number, rank in enumerate(ranks) if not rank.is_done and not board.read(number).time]
    if stuck:
        raise CommError(
            f"ranks {stuck} of {start.world_size} did not start within {start.timeout_seconds:g} s; start them again, "
            "while no other thread of this process works"
        )


def patience(ranks: list[Running]) -> float:
    """How many seconds to wait for the other ranks: long while nothing has failed, or only for want of another."""
    if any(rank.death or is_own_error(rank) for rank in ranks):
        return SHORT_GRACE_SECONDS
    return GRACE_SECONDS if any(rank.error for rank in ranks) else float("inf")


def is_own_error(rank: Running) -> bool:
    """Whether a rank failed by itself, and not because another one did."""
    return rank.error is not None and not isinstance(rank.error[1], CommError)


def receive(rank: Running) -> None:
    """A rank's result, error or death."""
    rank.is_done = True
    try:
        if not rank.channel.poll():                                # its process has ended
            raise EOFError
        kind, content = rank.channel.recv()
    except (EOFError, OSError):
        rank.process.join(GRACE_SECONDS)
        code = rank.process.exitcode
        if code is None:  # it closed its end and lives on: as good as dead
            rank.process.kill()
            rank.process.join()
            code = rank.process.exitcode
        rank.death = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return
    if kind == "result":
        rank.result = pickle.loads(content)  # noqa: S301, our own child wrote it
        return
    when, pickled, text = content
    error = None
    with contextlib.suppress(Exception):
        error = pickle.loads(pickled)  # noqa: S301
    rank.error = (when, error, text)


def raise_failure(ranks: list[Running], start: Start, limit_seconds: float) -> None:
    """A death explains more than an error, an error of the program more than one of communication."""
    for number, rank in enumerate(ranks):
        if rank.death:
            raise RankDied(number, start.world_size, rank.death, read_output(start, number))
    errors = [(rank.error[0], number) for number, rank in enumerate(ranks) if rank.error is not None]
    if errors:
        own = [pair for pair in errors if is_own_error(ranks[pair[1]])]
        number = min(own or errors)[1]
        _, error, text = ranks[number].error
        note = f"raised on rank {number} of {start.world_size}:\n{text}"
        if error is None:
            raise CommError(note)
        error.add_note(note)
        raise error
    late = [number for number, rank in enumerate(ranks) if not rank.is_done]
    if late:
        board = Board(start.board, start.world_size)
        places = "; ".join(f"rank {number} ({board.read(number)})" for number in late)
        raise CommError(f"not done after {limit_seconds:g} s and stopped: {places}")


def release(ranks: list[Running]) -> None:
    """All results are here: the ranks may close their connections."""
    for rank in ranks:
        with contextlib.suppress(OSError):
            rank.channel.send("leave")
    for rank in ranks:
        rank.process.join(GRACE_SECONDS)


def stop(ranks: list[Running]) -> None:
    """End what still runs, and wait until it has ended."""
    for rank in ranks:
        if rank.process.is_alive():
            rank.process.kill()
    for rank in ranks:
        rank.process.join()
        rank.process.close()
        rank.channel.close()


def read_output(start: Start, rank: int) -> str:
    """What a rank printed so far."""
    path = start.output(rank)
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def print_outputs(start: Start) -> None:
    """What the ranks printed, one after another."""
    for rank in range(start.world_size):
        for line in read_output(start, rank).splitlines():
            print(f"[rank {rank}] {line}")
