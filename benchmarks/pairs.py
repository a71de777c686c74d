"""Timing two ways of doing the same work so that the ratio can be trusted on a noisy machine.

The two run in turn (A B A B ...), each pair gives one ratio, and the median ratio is what is reported.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A sentence that a benchmark supports: `ratio` is the peer's time (memory, loss) over ours; larger is better."""

    what: str
    peer: str
    ratio: float
    at_least: float
    aim: float

    @property
    def holds(self) -> bool:
        return self.ratio >= self.at_least


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired_seconds(
    ours: Callable[[], object], peer: Callable[[], object], n_pairs: int, n_warmup: int = 1
) -> tuple[list[float], list[float]]:
    """Run both in turn, `n_warmup` uncounted pairs first; return the seconds of our runs and of the peer's."""
    for _ in range(n_warmup):
        ours(), peer()
    our_seconds, peer_seconds = [], []
    for _ in range(n_pairs):
        our_seconds.append(seconds_of(ours))
        peer_seconds.append(seconds_of(peer))
    return our_seconds, peer_seconds


def median_ratio(our_seconds: list[float], peer_seconds: list[float]) -> float:
    """Median over the pairs of peer / ours."""
    return statistics.median(peer / ours for ours, peer in zip(our_seconds, peer_seconds, strict=True))


def print_claims(claims: list[Claim]) -> None:
    """A line for people per claim, then the JSON line for machines, last."""
    for claim in claims:
        verdict = "holds" if claim.holds else "FALLS SHORT"
        print(f"{claim.what}: {claim.ratio:.2f}x {claim.peer} (at least {claim.at_least}, aim {claim.aim}) {verdict}")
    rows = [{**vars(claim), "ratio": round(claim.ratio, 3), "holds": claim.holds} for claim in claims]
    print(json.dumps({"claims": rows}))
