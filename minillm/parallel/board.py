"""A board in shared memory on which every rank of one machine writes where it is: who hangs, cannot say so itself.

A rank that waits too long reads there which of the others did not come to the same collective.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

SLOT = struct.Struct("<q d q 24s 24s")  # call number, wall clock, process id, operation, group
SLOT_BYTES = 128


@dataclass(frozen=True)
class Place:
    """Where a rank was last seen: call number `n_calls` of `operation` in the group `group`, begun at `time`."""

    n_calls: int
    time: float
    pid: int
    operation: str
    group: str

    def __str__(self) -> str:
        if not self.time:
            return "never seen in a collective"
        ago = time.time() - self.time
        return f"last seen in {self.operation} number {self.n_calls} of {self.group}, {ago:.1f} s ago"


class Board:
    """One slot per rank in a file that all ranks of this machine map into memory; writing is a few nanoseconds' copy.

    Args:
        path: the file; made and sized by whoever comes first.
        world_size: number of ranks P.
    """

    def __init__(self, path: str | Path, world_size: int):
        self.world_size = world_size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, world_size * SLOT_BYTES)
            self._memory = mmap.mmap(descriptor, world_size * SLOT_BYTES)
        finally:
            os.close(descriptor)

    def write(self, rank: int, n_calls: int, operation: str, group: str) -> None:
        """Say where `rank` is now."""
        slot = SLOT.pack(n_calls, time.time(), os.getpid(), operation.encode()[:24], group.encode()[:24])
        self._memory[rank * SLOT_BYTES : rank * SLOT_BYTES + SLOT.size] = slot

    def read(self, rank: int) -> Place:
        """Where `rank` was last seen; a rank of another machine never is."""
        n_calls, when, pid, operation, group = SLOT.unpack_from(self._memory, rank * SLOT_BYTES)
        return Place(n_calls, when, pid, operation.rstrip(b"\0").decode(), group.rstrip(b"\0").decode())
