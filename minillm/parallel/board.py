"""A board in shared memory on which every rank of one machine writes where it is: who hangs, cannot say so itself.

A rank that waits too long reads there which of the others did not come to the same collective.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

SLOT = struct.Struct("<q d q 24s 24s")  # number of collectives, wall clock, process id, operation, group
SLOT_BYTES = 128


@dataclass(frozen=True)
class Place:
    """Where a rank was last seen: in `operation` of `group`, its collective number `n_collectives`, begun at `time`."""

    n_collectives: int
    time: float
    pid: int
    operation: str
    group: str

    @property
    def is_stopped(self) -> bool:
        """Whether its process is alive but halted (SIGSTOP, a debugger), as far as the operating system tells."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):  # no such process, or not Linux
            return False
        return self.pid > 0 and state in ("T", "t")

    def __str__(self) -> str:
        if not self.time:
            return "never seen in a collective"
        ago = f"{time.time() - self.time:.1f} s ago{', now halted by a signal' if self.is_stopped else ''}"
        if not self.group:
            return f"{self.operation} {ago}"
        return f"last seen in {self.operation} of {self.group}, after {self.n_collectives} collectives there, {ago}"


class Board:
    """One slot per rank in a file that all ranks of this machine map into memory; writing is a few nanoseconds' copy.

    Args:
        path: the file; made and sized by whoever comes first.
        world_size: number of ranks P.
    """

    def __init__(self, path: str | Path, world_size: int):
        self.path, self.world_size = Path(path), world_size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, world_size * SLOT_BYTES)
            self._memory = mmap.mmap(descriptor, world_size * SLOT_BYTES)
        finally:
            os.close(descriptor)

    def write(self, rank: int, n_collectives: int, operation: str, group: str) -> None:
        """Say where `rank` is now; no group and "ended" when it is done."""
        slot = SLOT.pack(n_collectives, time.time(), os.getpid(), operation.encode()[:24], group.encode()[:24])
        self._memory[rank * SLOT_BYTES : rank * SLOT_BYTES + SLOT.size] = slot

    def read(self, rank: int) -> Place:
        """Where `rank` was last seen; a rank of another machine never is."""
        n_collectives, when, pid, operation, group = SLOT.unpack_from(self._memory, rank * SLOT_BYTES)
        return Place(n_collectives, when, pid, operation.rstrip(b"\0").decode(), group.rstrip(b"\0").decode())
