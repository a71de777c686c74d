"""J1: each solution is valid and takes no more time and memory than the reference; what is wrong is refused."""

from fractions import Fraction

import pytest

from minillm.errors import ConfigError
from minillm.parallel import puzzles
from minillm.parallel.puzzle_solutions import SOLUTIONS, pipeline
from minillm.parallel.puzzles import PARTS, PUZZLES, Operation, play
from minillm.parallel.schedules import make_schedule
from minillm.parallel.simulator import simulate

# what each takes, counted on paper: forward and backward 1 each per layer and part, update .5, collectives .3, send and
# receive .2 each; memory in blocks of one part's activation, of which weights, states and gradients of a layer are two
ON_PAPER = {
    "one machine": (16 + 2 * 0.5, 8 + 12),
    "gradient accumulation": (16 + 2 * 0.5, 8 + 4 + 3),
    "data parallel": (4 + 2 * (0.3 + 0.5), 8 + 2 + 2),
    "weight-sharded data parallel": (12 + 11 * 0.3 + 6 * 0.3 + 6 * 0.5, 6 + 7 + 1.5 + 1),
    "fully sharded data parallel": (12 + 11 * 0.3 + 6 * 0.3 + 6 * 0.5, 6 + 7 + 1.5 + 1),
    "pipeline": (64 + 6 * 0.4 + 2 * 0.5, 8 + 12),
}


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: puzzle.name)
def test_solutions_are_valid_and_at_or_below_the_reference(puzzle):
    outcome = play(puzzle, SOLUTIONS[puzzle.name](puzzle))
    assert outcome.time <= puzzle.time and outcome.memory <= puzzle.memory
    if puzzle.name in ON_PAPER:
        time, blocks = ON_PAPER[puzzle.name]
        assert float(outcome.time) == pytest.approx(time, abs=1e-12)
        assert outcome.memory <= blocks * 131_072 + 65_536
    for rank in range(puzzle.n_ranks):
        mine = [done for done in outcome.log if done.rank == rank]
        assert all(one.end <= other.start for one, other in zip(mine, mine[1:], strict=False))


def test_better_than_the_reference_where_it_can_be():
    outcomes = {puzzle.name: play(puzzle, SOLUTIONS[puzzle.name](puzzle)) for puzzle in PUZZLES}
    assert outcomes["pipeline and fully sharded"].time == Fraction(148, 10)
    assert outcomes["fully sharded data parallel"].time == Fraction(201, 10)
    one_f_one_b = play(PUZZLES[6], pipeline(PUZZLES[6], "1f1b", size=1))
    assert one_f_one_b.time < outcomes["GPipe"].time <= PUZZLES[6].time
    assert one_f_one_b.memory < outcomes["GPipe"].memory


def test_without_costs_of_sending_the_pipelines_are_those_of_the_simulator(monkeypatch):
    for kind in ("update", "send", "receive"):
        monkeypatch.setitem(puzzles.TIMES, kind, Fraction(0))
    for name in ("gpipe", "1f1b", "naive"):
        for size in (1, 2, 4):
            played = play(PUZZLES[6], pipeline(PUZZLES[6], name, size))
            schedule = make_schedule(name, 4, 4 // size)
            assert played.time == simulate(schedule, forward=2 * size, backward=2 * size).makespan


def basic():
    kinds = [("load", 0), ("forward", 0), ("forward", 1), ("loss", 2), ("backward", 1), ("update", 1)]
    return [Operation(kind, layer, PARTS) for kind, layer in [*kinds, ("backward", 0), ("update", 0)]]


def without(place):
    return basic()[:place] + basic()[place + 1 :]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (without(0), "its input for parts"),
        (without(2), "loss of layer 2: parts .* are not there"),
        (without(3), "backward of layer 1: parts .* at layer 2"),
        (without(4), "update of layer 1: its gradient has the parts"),
        (without(7), "layer 0: updated 0 times"),
        (basic() + [Operation("update", 0)], "its gradient has the parts"),
        (basic()[:4] + [Operation("backward", 1, frozenset([0, 1])), Operation("update", 1)], r"the parts \[0, 1\]"),
        (basic()[:5] + basic()[4:5], "parts .* are not there"),
        (basic()[:6] + [Operation("forward", 1, PARTS)], "updated before the batch was through"),
        ([Operation("dance")], "operation 'dance' is unknown"),
        ([Operation("receive", 0, PARTS, 0)], "wait for ever: rank 0 in receive"),
        ([Operation("forward", 0)], "its input for parts"),
    ],
)
def test_programs_that_cannot_be_are_refused(program, message):
    with pytest.raises(ConfigError, match=message):
        play(PUZZLES[0], [program])


def test_what_goes_wrong_between_ranks_is_refused():
    puzzle = PUZZLES[2]
    right = SOLUTIONS[puzzle.name](puzzle)
    with pytest.raises(ConfigError, match="3 programs, the puzzle has 4"):
        play(puzzle, right[:3])
    with pytest.raises(ConfigError, match="would count twice"):
        play(puzzle, [right[0], right[0], right[2], right[3]])
    with pytest.raises(ConfigError, match="ranks wait for ever: rank 0 in all_reduce"):
        play(puzzle, [*right[:3], right[3][:5]])
    unreduced = [[operation for operation in program if operation.kind != "all_reduce"] for program in right]
    with pytest.raises(ConfigError, match=r"the parts \[0\] of the batch"):
        play(puzzle, unreduced)


def test_shards_must_be_gathered_and_fit():
    puzzle = PUZZLES[4]
    right = SOLUTIONS[puzzle.name](puzzle)
    ungathered = [[operation for operation in program if operation.kind != "all_gather"] for program in right]
    with pytest.raises(ConfigError, match=r"its weights are not whole here \(shards \[0\]\)"):
        play(puzzle, ungathered)
    kept = [[operation for operation in program if operation.kind != "drop"] for program in right]
    with pytest.raises(ConfigError, match="not of the same shards"):
        play(puzzle, kept)
