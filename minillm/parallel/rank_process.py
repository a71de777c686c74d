"""A rank's side of `launch`: what a started process does from its first line to its last.

It joins the others, works, hands over its result or error, and leaves when all have ended; if its parent dies, it dies.
"""

import ctypes
import io
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minillm.parallel.board import Board
from minillm.parallel.processes import join, leave
from minillm.parallel.traffic import CommCounter, SlowLink

KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass(frozen=True)
class Start:
    """How ranks are started; see `launch`."""

    world_size: int
    backend: str
    timeout_seconds: float
    checked: bool
    folder: str
    method: str
    counters: Sequence[CommCounter] | None = None
    links: Sequence[SlowLink] | None = None

    @property
    def board(self) -> Path:
        """Where ranks write where they are."""
        return Path(self.folder) / "board"

    def output(self, rank: int) -> Path:
        """Where a rank's prints go."""
        return Path(self.folder) / f"output-{rank}"


def be_rank(
    rank: int,
    start: Start,
    channel: Connection,
    inherited: list[Connection],
    parent: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """The life of a process: join, work, hand over the result, leave when the parent says so."""
    torch.set_num_threads(1)  # first of all: a forked child hangs in the parent's OpenMP threads
    die_with_parent(parent)
    for other in inherited:
        other.close()
    redirect_output(start.output(rank))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    try:
        store = dist.FileStore(str(Path(start.folder) / "store"), start.world_size)
        board = Board(start.board, start.world_size)
        counter = None if start.counters is None else start.counters[rank]
        link = None if start.links is None else start.links[rank]
        world = join(
            store, rank, start.world_size, start.backend, start.timeout_seconds, board, counter, link, start.checked
        )
        board.write(rank, 0, "started", "")
        message = ("result", pickle.dumps(function(world, *args)))
        board.write(rank, 0, "ended", "")
    except BaseException as error:
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        message = ("error", (time.time(), pickled, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        channel.send(message)
        channel.recv()  # nobody leaves while another may still wait for a message
    except (OSError, EOFError):
        return
    leave()


def redirect_output(path: Path) -> None:
    """Send both streams, Python's and those of libraries, to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8", line_buffering=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), encoding="utf-8", line_buffering=True)


def die_with_parent(parent: int) -> None:
    """End this process when the one that started it ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
