"""F1: schedules as data. Oracles: orders written down by hand, PyTorch's own tables, a validator, brute force."""

import itertools
from dataclasses import replace

import pytest
from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B

from minillm.errors import ConfigError
from minillm.parallel.bubble import bubble_fraction, in_flight
from minillm.parallel.schedule_checks import (
    check_schedule,
    must_come_before,
    n_transfers,
    peak_in_flight,
    program,
    stuck_ranks,
)
from minillm.parallel.schedules import Action, Schedule, in_turns, make_schedule
from minillm.parallel.simulator import simulate

GRID = [
    (name, n_ranks, n_microbatches, n_chunks)
    for name in ("naive", "gpipe", "1f1b", "interleaved")
    for n_ranks in (1, 2, 3, 4, 8)
    for n_microbatches in (1, 2, 3, 4, 6, 8, 16)
    for n_chunks in ((1, 2, 3) if name == "interleaved" else (1,))
    if n_chunks == 1 or n_microbatches % n_ranks == 0
]


def words(actions):
    return " ".join(map(str, actions))


def test_every_schedule_of_the_grid_is_complete_and_ends():
    assert len(GRID) > 120
    for name, n_ranks, n_microbatches, n_chunks in GRID:
        schedule = make_schedule(name, n_ranks, n_microbatches, n_chunks)
        assert (schedule.n_ranks, schedule.n_stages) == (n_ranks, n_ranks * n_chunks)
        check_schedule(schedule)
        assert peak_in_flight(schedule) == [
            in_flight(name, rank, n_ranks, n_microbatches, n_chunks) for rank in range(n_ranks)
        ]


LETTERS = {"FORWARD": "F", "FULL_BACKWARD": "B"}


def torch_order(rank, n_ranks, n_microbatches, n_chunks):
    """PyTorch's own rule for one rank, read out of its table without any process; None are its idle places."""
    schedule = object.__new__(ScheduleInterleaved1F1B)
    schedule._n_microbatches, schedule.pp_group_size, schedule.n_local_stages = n_microbatches, n_ranks, n_chunks
    schedule.rank, schedule.number_of_rounds = rank, max(1, n_microbatches // n_ranks)
    schedule.microbatches_per_round = n_microbatches // schedule.number_of_rounds
    table = schedule._calculate_single_rank_operations(rank)
    return [
        (LETTERS[entry.computation_type.name], entry.microbatch_index, entry.stage_index // n_ranks)
        for entry in table
        if entry is not None
    ]


@pytest.mark.parametrize(("n_ranks", "n_microbatches", "n_chunks"), [(2, 4, 2), (4, 8, 2), (4, 4, 3), (3, 6, 2)])
def test_interleaved_is_the_order_of_pytorch(n_ranks, n_microbatches, n_chunks):
    ours = make_schedule("interleaved", n_ranks, n_microbatches, n_chunks)
    for rank in range(n_ranks):
        theirs = torch_order(rank, n_ranks, n_microbatches, n_chunks)
        assert [(a.kind, a.microbatch, a.chunk) for a in ours.actions[rank]] == theirs


def test_interleaved_by_hand():
    schedule = make_schedule("interleaved", 2, 4, n_chunks=2)
    assert words(schedule.actions[0]) == (
        "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3"
    )
    assert words(schedule.actions[1]) == (
        "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3"
    )


def test_one_chunk_interleaved_is_1f1b_and_one_microbatch_gpipe_is_naive():
    for n_ranks, n_microbatches in itertools.product((1, 2, 4), (1, 3, 4)):
        one = make_schedule("interleaved", n_ranks, n_microbatches)
        assert one.actions == make_schedule("1f1b", n_ranks, n_microbatches).actions
    assert make_schedule("gpipe", 4, 1).actions == make_schedule("naive", 4, 1).actions


def test_1f1b_with_plain_blocking_sends_waits_for_ever_and_gpipe_does_not():
    for n_ranks, n_microbatches in itertools.product((2, 3, 4, 8), (1, 2, 4, 8)):
        assert not stuck_ranks(make_schedule("gpipe", n_ranks, n_microbatches), blocking_sends=True)
        stuck = stuck_ranks(make_schedule("1f1b", n_ranks, n_microbatches), blocking_sends=True)
        assert bool(stuck) == (n_microbatches > 1)
    with pytest.raises(ConfigError, match="wait for ever: rank 0 at F1 from rank 0 to rank 1; rank 1 at B0 from"):
        check_schedule(make_schedule("1f1b", 2, 4), blocking_sends=True)


def test_every_transfer_has_one_sender_and_one_receiver():
    for name, n_ranks, n_microbatches, n_chunks in GRID:
        schedule = make_schedule(name, n_ranks, n_microbatches, n_chunks)
        programs = [program(schedule, rank) for rank in range(n_ranks)]
        steps = [(rank, step.transfer) for rank, steps in enumerate(programs) for step in steps if step.transfer]
        sent = sorted((str(t), t.source, t.target) for rank, t in steps if rank == t.source)
        received = sorted((str(t), t.source, t.target) for rank, t in steps if rank == t.target)
        assert sent == received and len(set(sent)) == len(sent)
        boundaries = n_ranks * n_chunks - 1 if n_ranks > 1 else 0
        assert n_transfers(schedule) == len(sent) == 2 * n_microbatches * boundaries


def test_who_must_come_before_is_the_chain_of_stages():
    schedule = make_schedule("interleaved", 3, 3, n_chunks=2)
    chain = [(stage % 3, Action("F", 2, stage // 3)) for stage in range(6)]
    chain += [(rank, replace(action, kind="B")) for rank, action in reversed(chain)]
    for place, (rank, action) in enumerate(chain):
        before = must_come_before(schedule, rank, action)
        own = [(rank, replace(action, kind="F"))] if action.kind == "B" else []
        assert before == list(dict.fromkeys(own + chain[max(place - 1, 0) : place]))


def spoiled(schedule, rank, change):
    actions = list(schedule.actions)
    actions[rank] = tuple(change(list(actions[rank])))
    return replace(schedule, actions=tuple(actions))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda actions: actions[:-1], "missing B7, not expected nothing"),
        (lambda actions: actions[1:], "missing F0"),
        (lambda actions: actions + [Action("F", 0)], "missing nothing, not expected F0"),
        (lambda actions: actions[:3] + [Action("F", 9)] + actions[4:], "not expected F9"),
        (lambda actions: actions[::-1], "wait for ever"),
        (lambda actions: [Action("B", 0)] + [a for a in actions if a != Action("B", 0)], "wait for ever: rank 0 at"),
    ],
)
def test_broken_schedules_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        check_schedule(spoiled(make_schedule("1f1b", 4, 8), 1, change))


def with_warmup(n_ranks, n_microbatches, n_chunks, warmup):
    """A schedule of forward and backward in turns whose ranks warm up as `warmup(rank)` says."""
    order = [
        (first + number, chunk)
        for first in range(0, n_microbatches, n_ranks)
        for chunk in range(n_chunks)
        for number in range(n_ranks)
    ]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in order]
    actions = [in_turns(order, back, max(0, min(warmup(rank), len(order)))) for rank in range(n_ranks)]
    return Schedule("mutant", n_microbatches, n_chunks, tuple(map(tuple, actions)))


WARMUPS = {
    1: lambda rank: 4 - 1 - rank,
    2: lambda rank: 4 + 2 * (4 - 1 - rank),
    3: lambda rank: 8 + 2 * (4 - 1 - rank),
}


@pytest.mark.parametrize("n_chunks", [1, 2, 3])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda right, rank: right - 1,
        lambda right, rank: right + 1,
        lambda right, rank: right - 3 + rank,
        lambda right, rank: right // 2,
        lambda right, rank: 0,
        lambda right, rank: right + 1 if rank == 2 else right,
        lambda right, rank: right - 1 if rank == 1 else right,
    ],
    ids=["shorter", "longer", "one way only", "half", "none", "one rank longer", "one rank shorter"],
)
def test_a_wrong_warm_up_is_noticed(n_chunks, wrong):
    """By the validator, by the number in flight, or by the bubble."""
    right = with_warmup(4, 8, n_chunks, WARMUPS[n_chunks])
    name = "interleaved" if n_chunks > 1 else "1f1b"
    assert right.actions == make_schedule(name, 4, 8, n_chunks).actions
    mutant = with_warmup(4, 8, n_chunks, lambda rank: wrong(WARMUPS[n_chunks](rank), rank))
    limits = [in_flight(name, rank, 4, 8, n_chunks) for rank in range(4)]
    noticed = bool(stuck_ranks(mutant)) or peak_in_flight(mutant) != limits
    noticed = noticed or simulate(mutant).bubble != bubble_fraction(4, 8, n_chunks)
    assert noticed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zero bubble", 2, 2), "known are naive, gpipe, 1f1b, interleaved"),
        (("gpipe", 0, 2), "0 ranks"),
        (("gpipe", 2, 0), "0 micro-batches"),
        (("1f1b", 2, 2, 2), "take 'interleaved'"),
        (("interleaved", 4, 6, 2), "6 micro-batches on 4 ranks"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(*arguments)
