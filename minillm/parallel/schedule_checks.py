"""Is a schedule one that ranks can work through? Who waits for whom, what is sent, and where they would wait for ever.

Dimensions: P ranks, M micro-batches, v chunks on each rank.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from minillm.errors import ConfigError
from minillm.parallel.schedules import BACKWARD, FORWARD, Action, Schedule


def must_come_before(schedule: Schedule, rank: int, action: Action) -> list[tuple[int, Action]]:
    """What has to be finished before an action can begin, whatever the order of the schedule.

    A forward pass needs the output of the stage before (the first stage reads the batch). A backward pass needs the
    activations that this rank's own forward pass left, and the gradient that the backward pass of the stage after has
    made (the last stage has the loss). Each for the same micro-batch.

    Args:
        schedule: says which stage is where (`stage`, `place`).
        rank: who wants to begin.
        action: with what.

    Returns:
        (rank, action) of one or two others, the own forward pass first; none for the first stage's forward passes.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> schedule = make_schedule("interleaved", n_ranks=2, n_microbatches=2, n_chunks=2)
        >>> [(rank, str(action)) for rank, action in must_come_before(schedule, 0, Action("F", 1, chunk=1))]
        [(1, 'F1')]
        >>> [(rank, str(action)) for rank, action in must_come_before(schedule, 1, Action("B", 1, chunk=0))]
        [(1, 'F1'), (0, 'B1.1')]
    """
    stage = schedule.stage(rank, action.chunk)
    before: list[tuple[int, Action]] = []
    if action.kind == BACKWARD:
        before.append((rank, Action(FORWARD, action.microbatch, action.chunk)))
    neighbour = stage - 1 if action.kind == FORWARD else stage + 1
    if 0 <= neighbour < schedule.n_stages:
        other, chunk = schedule.place(neighbour)
        before.append((other, Action(action.kind, action.microbatch, chunk)))
    return before


@dataclass(frozen=True)
class Transfer:
    """One rank hands what an action has made to another rank."""

    source: int
    target: int
    action: Action


@dataclass(frozen=True)
class Step:
    """One line of a rank's program: it does an action, or takes part in a transfer as sender or receiver."""

    action: Action | None = None
    transfer: Transfer | None = None

    def __str__(self) -> str:
        if self.transfer is None:
            return str(self.action)
        return f"{self.transfer.action} from rank {self.transfer.source} to rank {self.transfer.target}"


def program(schedule: Schedule, rank: int) -> list[Step]:
    """A rank's actions with what it must receive before each and send after each.

    Args:
        schedule: any.
        rank: whose.

    Returns:
        Steps in the order in which this rank comes to them.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> [str(step) for step in program(make_schedule("naive", n_ranks=2, n_microbatches=1), 0)]
        ['F0', 'F0 from rank 0 to rank 1', 'B0 from rank 1 to rank 0', 'B0']
    """
    steps: list[Step] = []
    for action in schedule.actions[rank]:
        for source, needed in must_come_before(schedule, rank, action):
            if source != rank:
                steps.append(Step(transfer=Transfer(source, rank, needed)))
        steps.append(Step(action))
        stage = schedule.stage(rank, action.chunk) + (1 if action.kind == FORWARD else -1)
        if 0 <= stage < schedule.n_stages and schedule.place(stage)[0] != rank:
            steps.append(Step(transfer=Transfer(rank, schedule.place(stage)[0], action)))
    return steps


def n_transfers(schedule: Schedule) -> int:
    """How many tensors of one micro-batch's activations, or of their gradient, change the rank in one step.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> n_transfers(make_schedule("1f1b", 4, 8)), n_transfers(make_schedule("interleaved", 4, 8, n_chunks=2))
        (48, 112)
    """
    return sum(
        step.transfer is not None and step.transfer.source == rank
        for rank in range(schedule.n_ranks)
        for step in program(schedule, rank)
    )


def peak_in_flight(schedule: Schedule) -> list[int]:
    """For each rank the largest number of (micro-batch, chunk) whose activations it keeps at one time.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> peak_in_flight(make_schedule("gpipe", 4, 8)), peak_in_flight(make_schedule("1f1b", 4, 8))
        ([8, 8, 8, 8], [4, 3, 2, 1])
    """
    return [max(running_count(actions)) for actions in schedule.actions]


def running_count(actions: tuple[Action, ...]) -> Iterator[int]:
    """Forward passes less backward passes after each action."""
    count = 0
    for action in actions:
        count += 1 if action.kind == FORWARD else -1
        yield count


def stuck_ranks(schedule: Schedule, blocking_sends: bool = False) -> dict[int, str]:
    """Let all ranks work as far as they can, and say which of them do not come to the end.

    Args:
        schedule: any.
        blocking_sends: whether a sender waits until the receiver comes to take it (a rendezvous, as with large
            tensors and a plain send); else what was sent lies ready and the sender goes on.

    Returns:
        For each rank that does not come to its end, the step before which it waits; empty if there is none.
    """
    left = {rank: program(schedule, rank)[::-1] for rank in range(schedule.n_ranks)}  # the next step is the last item
    done: set[tuple[int, Action]] = set()
    sent: set[Transfer] = set()
    moved = True
    while moved:
        moved = False
        for rank, steps in left.items():
            while steps and can_go_on(schedule, rank, steps[-1], left, done, sent, blocking_sends):
                step, moved = steps.pop(), True
                if step.transfer is None:
                    done.add((rank, step.action))
                elif step.transfer.source == rank:
                    sent.add(step.transfer)
    return {rank: str(steps[-1]) for rank, steps in left.items() if steps}


def can_go_on(
    schedule: Schedule,
    rank: int,
    step: Step,
    left: dict[int, list[Step]],
    done: set[tuple[int, Action]],
    sent: set[Transfer],
    blocking_sends: bool,
) -> bool:
    """Whether a rank can take its next step now."""
    if step.transfer is None:
        own = [(other, action) for other, action in must_come_before(schedule, rank, step.action) if other == rank]
        return all(needed in done for needed in own)
    if step.transfer.source != rank:
        return step.transfer in sent
    waiting = left[step.transfer.target]
    return not blocking_sends or bool(waiting and waiting[-1] == step)


def check_schedule(schedule: Schedule, blocking_sends: bool = False) -> None:
    """Refuse a schedule that is incomplete or that ranks cannot work through.

    Args:
        schedule: any.
        blocking_sends: see `stuck_ranks`.

    Raises:
        ConfigError: naming what is missing, twice, or unknown, or which ranks would wait for ever and for what.

    Example:
        >>> from minillm.parallel.schedules import make_schedule
        >>> check_schedule(make_schedule("1f1b", 4, 8))
        >>> try:
        ...     check_schedule(make_schedule("1f1b", 2, 2), blocking_sends=True)
        ... except ConfigError as error:
        ...     print(error)
        schedule 1f1b would wait for ever: rank 0 at F1 from rank 0 to rank 1; rank 1 at B0 from rank 1 to rank 0
    """
    wanted = Counter(
        Action(kind, microbatch, chunk)
        for kind in (FORWARD, BACKWARD)
        for microbatch in range(schedule.n_microbatches)
        for chunk in range(schedule.n_chunks)
    )
    for rank, actions in enumerate(schedule.actions):
        found = Counter(actions)
        if found != wanted:
            missing, extra = sorted((wanted - found).elements()), sorted((found - wanted).elements())
            raise ConfigError(
                f"schedule {schedule.name}, rank {rank}: missing {' '.join(map(str, missing)) or 'nothing'}, "
                f"not expected {' '.join(map(str, extra)) or 'nothing'}; expected each micro-batch forward and "
                "backward through each chunk, once"
            )
    if stuck := stuck_ranks(schedule, blocking_sends):
        places = "; ".join(f"rank {rank} at {step}" for rank, step in stuck.items())
        raise ConfigError(f"schedule {schedule.name} would wait for ever: {places}")
