"""F2: the simulator against the formulas, exactly; and against a second simulator that advances a clock."""

from fractions import Fraction

import pytest

from minillm.errors import ConfigError
from minillm.parallel.bubble import bubble_fraction, in_flight, microbatches_for
from minillm.parallel.schedules import Action, Schedule, make_schedule
from minillm.parallel.simulator import simulate

TIMES = [(1, 1), (1, 2), (Fraction(2, 3), Fraction(7, 5))]


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_bubble_makespan_and_memory_are_the_formulas(n_ranks, factor):
    n_microbatches = n_ranks * factor
    for forward, backward in TIMES:
        work = n_microbatches * (forward + backward)
        for name, n_chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 4)):
            timeline = simulate(make_schedule(name, n_ranks, n_microbatches, n_chunks), forward, backward)
            assert timeline.bubble == Fraction(n_ranks - 1, n_chunks * n_microbatches + n_ranks - 1)
            assert timeline.bubble == bubble_fraction(n_ranks, n_microbatches, n_chunks)
            assert timeline.makespan == work + (n_ranks - 1) * Fraction(forward + backward) / n_chunks
            assert all(timeline.busy(rank) == work for rank in range(n_ranks))
            assert timeline.peak_in_flight() == [
                in_flight(name, rank, n_ranks, n_microbatches, n_chunks) for rank in range(n_ranks)
            ]
        naive = simulate(make_schedule("naive", n_ranks, n_microbatches), forward, backward)
        assert naive.makespan == n_ranks * work and naive.bubble == Fraction(n_ranks - 1, n_ranks)


def test_the_figures_of_the_notes():
    def bubble(*arguments):
        return simulate(make_schedule(*arguments)).bubble

    assert bubble("1f1b", 4, 8) == bubble("gpipe", 4, 8) == Fraction(3, 11)
    assert bubble("1f1b", 8, 32) == Fraction(7, 39)
    assert (bubble("interleaved", 4, 8, 2), bubble("interleaved", 4, 8, 4)) == (Fraction(3, 19), Fraction(3, 35))
    assert in_flight("interleaved", 0, 4, 8, 2) == 11 and in_flight("interleaved", 0, 4, 8, 4) == 19


def clocked(schedule, forward, backward, transfer):
    """Ends of all actions by letting an integer clock tick; a second way to the same thing, knowing no `needs`."""
    n_ranks, n_stages = schedule.n_ranks, schedule.n_ranks * schedule.n_chunks
    ready = {("F", m, 0): 0 for m in range(schedule.n_microbatches)}
    queue, busy, ends, clock = [list(actions) for actions in schedule.actions], [0] * n_ranks, {}, 0
    while any(queue):
        for rank in range(n_ranks):
            while queue[rank] and busy[rank] <= clock:
                action = queue[rank][0]
                stage = action.chunk * n_ranks + rank
                if ready.get((action.kind, action.microbatch, stage), clock + 1) > clock:
                    break
                queue[rank].pop(0)
                end = busy[rank] = clock + (forward if action.kind == "F" else backward)
                ends[rank, action] = end
                if action.kind == "F" and stage == n_stages - 1:
                    ready["B", action.microbatch, stage] = end
                else:
                    after = stage + (1 if action.kind == "F" else -1)
                    late = transfer if after % n_ranks != rank else 0
                    ready[action.kind, action.microbatch, after] = end + late
        clock += 1
        assert clock < 10_000
    return ends


@pytest.mark.parametrize("transfer", [0, 1, 3])
@pytest.mark.parametrize(
    "arguments", [("naive", 3, 2), ("gpipe", 4, 5), ("1f1b", 4, 6), ("1f1b", 3, 2), ("interleaved", 3, 6, 2)]
)
def test_every_end_agrees_with_a_ticking_clock(arguments, transfer):
    schedule = make_schedule(*arguments)
    scale = schedule.n_chunks
    timeline = simulate(schedule, 2 * scale, 5 * scale, transfer)
    assert {(e.rank, e.action): e.end for e in timeline.events} == clocked(schedule, 2, 5, transfer)


def test_a_slow_rank_sets_the_pace():
    schedule = make_schedule("1f1b", 4, 32)
    timeline = simulate(schedule, forward=[1, 1, 2, 1], backward=[2, 2, 4, 2])
    before, first_answer, after = 1 + 1, 1, 2 + 2  # two ranks on the way in; B0 of rank 3; two on the way out
    assert timeline.busy(2) == 32 * 6 and timeline.makespan == before + first_answer + 32 * 6 + after
    assert timeline.bubble > Fraction(1, 3)


def test_nobody_waits_for_work_that_takes_no_time():
    assert simulate(make_schedule("gpipe", 2, 2), 0, 0).bubble == 0


def test_transfers_cost_1f1b_more_than_gpipe():
    """In the steady phase a rank waits for each answer; GPipe's forward transfers hide behind the next micro-batch."""
    ends = [simulate(make_schedule(name, 4, 8), 1, 2, Fraction(1, 2)).makespan for name in ("gpipe", "1f1b")]
    assert ends[0] == 33 + 6 * Fraction(1, 2) and ends[1] > ends[0]


def test_the_number_of_microbatches_for_a_bubble_is_the_smallest():
    for n_ranks in (1, 2, 4, 8):
        for n_chunks in (1, 2, 3):
            for largest in (Fraction(1, 3), Fraction(1, 10), Fraction(3, 7), Fraction(1)):
                found = microbatches_for(n_ranks, largest, n_chunks)
                assert bubble_fraction(n_ranks, found, n_chunks) <= largest
                assert found == 1 or bubble_fraction(n_ranks, found - 1, n_chunks) > largest


def test_bad_input_is_refused():
    schedule = make_schedule("gpipe", 2, 2)
    with pytest.raises(ConfigError, match="expected one number, or one for each"):
        simulate(schedule, forward=[1, 1, 1])
    with pytest.raises(ConfigError, match="none below 0"):
        simulate(schedule, backward=-1)
    backwards = Schedule("backwards", 1, 1, ((Action("B", 0), Action("F", 0)),))
    with pytest.raises(ConfigError, match="wait for ever: rank 0 before B0"):
        simulate(backwards)
    with pytest.raises(ConfigError, match="0 micro-batches"):
        bubble_fraction(2, 0)
    with pytest.raises(ConfigError, match="above 0"):
        microbatches_for(2, Fraction(0))
    with pytest.raises(ConfigError, match="known are naive"):
        in_flight("zero", 0, 2, 2)
