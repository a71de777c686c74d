"""When does what happen in a pipeline? A schedule, the time that its work takes, and exact fractions.

Dimensions: P ranks, M micro-batches, v chunks on each rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from minillm.errors import ConfigError
from minillm.parallel.schedule_checks import must_come_before
from minillm.parallel.schedules import FORWARD, Action, Schedule

Number = int | Fraction


@dataclass(frozen=True)
class Event:
    """An action with its time: from `start` to `end` on one rank."""

    rank: int
    action: Action
    start: Number
    end: Number


@dataclass(frozen=True)
class Timeline:
    """What happened when.

    Args:
        n_ranks: P.
        events: all of them; those of one rank in their order.
    """

    n_ranks: int
    events: tuple[Event, ...]

    @property
    def makespan(self) -> Number:
        """When the last rank has finished."""
        return max(event.end for event in self.events)

    def busy(self, rank: int) -> Number:
        """How long a rank works."""
        return sum((event.end - event.start for event in self.events if event.rank == rank), start=Fraction(0))

    @property
    def bubble(self) -> Fraction:
        """Share of the time of all ranks in which they do not work."""
        work = sum(self.busy(rank) for rank in range(self.n_ranks))
        paid = self.n_ranks * Fraction(self.makespan)
        return 1 - Fraction(work) / paid if paid else Fraction(0)

    def peak_in_flight(self) -> list[int]:
        """For each rank the largest number of (micro-batch, chunk) between their forward and backward passes' ends."""
        peaks = []
        for rank in range(self.n_ranks):
            mine = sorted((event for event in self.events if event.rank == rank), key=lambda event: event.start)
            signs = [1 if event.action.kind == FORWARD else -1 for event in mine]
            peaks.append(max((sum(signs[: place + 1]) for place in range(len(signs))), default=0))
        return peaks


def simulate(
    schedule: Schedule,
    forward: Number | Sequence[Number] = 1,
    backward: Number | Sequence[Number] = 2,
    transfer: Number = 0,
) -> Timeline:
    """Let each rank begin its next action as soon as it is free and has what it needs.

    What an action makes is there for the other rank `transfer` later; the sender goes on at once. On the same rank it
    is there immediately.

    Args:
        schedule: what each rank does, in order.
        forward: time of a forward pass of one micro-batch through all chunks of a rank, a chunk takes a v-th; one
            number for all ranks or one for each.
        backward: the same for a backward pass.
        transfer: from one rank to another.

    Returns:
        The timeline, with exact numbers for integers and fractions.

    Raises:
        ConfigError: if the ranks cannot come to the end.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> timeline = simulate(make_schedule("1f1b", 4, 8), forward=1, backward=2)
        >>> timeline.makespan, timeline.bubble, timeline.peak_in_flight()
        (Fraction(33, 1), Fraction(3, 11), [4, 3, 2, 1])
    """
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends: dict[tuple[int, Action], Fraction] = {}
    free: list[Number] = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events: list[Event] = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


def per_rank(times: Number | Sequence[Number], n_ranks: int) -> list[Number]:
    """One number for each rank.

    Raises:
        ConfigError: if there are more or fewer, or one is negative.
    """
    listed = list(times) if isinstance(times, Sequence) else [times] * n_ranks
    if len(listed) != n_ranks or min(listed) < 0:
        raise ConfigError(f"times {listed} for {n_ranks} ranks: expected one number, or one for each, none below 0")
    return listed
