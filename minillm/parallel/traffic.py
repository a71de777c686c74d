"""What ranks send: counted by operation and bytes, and slowed down as on a real wire.

Dimensions: P ranks of a group, S bytes of a whole tensor.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minillm.errors import ConfigError


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
    whole tensor, (P - 1) / P * S for reduce-scatter, all-gather and all-to-all, twice that for all-reduce, S for a
    send. (Gloo's own reduce-scatter sends as much as its all-reduce; rings by hand go through `send`, which is counted
    as it is.)

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
        factor = {"all_reduce": 2.0, "reduce_scatter": 1.0, "all_gather": 1.0, "all_to_all": 1.0}.get(operation)
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


class LateStart:
    """An operation that begins when a slow wire is through with it, while its rank goes on: who receives waits, too.

    Args:
        begin: begins it, and returns what `wait` and `is_completed` can be asked of, or None if it has ended.
        moment: when, as `time.perf_counter` counts.
    """

    def __init__(self, begin: Callable[[], Any], moment: float):
        self.begin, self.moment = begin, moment
        self.work: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Sleep, then begin."""
        time.sleep(max(0.0, self.moment - time.perf_counter()))
        try:
            self.work = self.begin()
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Wait for its end; raises what beginning it raised."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        if self.work is not None:
            self.work.wait()

    def is_completed(self) -> bool:
        """Whether it has begun and ended."""
        return not self.thread.is_alive() and (self.work is None or self.work.is_completed())
