"""Chapter 22. Oracles: index arithmetic in numpy, a search written another way, sums over failures, what ranks say."""

import math
import signal
from dataclasses import replace

import numpy as np
import torch

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, normal, task
from minillm.errors import CheckpointError, ConfigError, ShapeError
from minillm.parallel.pieces import Piece
from minillm.parallel.sharded_checkpoint import Claim

# --- 22.1 a part to its place in the whole


def places_of(piece):
    """Numbers of the flattened whole that the piece holds, in its order."""
    numbers = np.arange(math.prod(piece.shape)).reshape(piece.shape)
    if piece.ranges is not None:
        chosen = [index for begin, end in piece.ranges for index in range(begin, end)]
        numbers = np.take(numbers, chosen, axis=piece.dim)
    numbers = numbers.reshape(-1)
    return numbers if piece.flat is None else numbers[piece.flat[0] : piece.flat[1]]


def check_put(impl, rng, piece, what):
    whole, part = normal(rng, *piece.shape), normal(rng, *piece.part_shape) + 0.0  # numpy's empty arrays have no stride
    expected = whole.clone().reshape(-1)
    expected[torch.from_numpy(places_of(piece))] = part.reshape(-1)
    _, (after, _, _) = impl.put_piece.after(whole, part, piece)
    expect_equal(tuple(after.shape), piece.shape, what=f"the shape of the whole afterwards, {what}")
    expect_equal(after.reshape(-1), expected, what=f"the whole afterwards, flattened, {what}")


@task("22.1", cases=2)
def test_put_of_ranges(impl, rng):
    check_put(impl, rng, Piece((6, 4), 0, ((1, 3), (4, 6))), "two ranges of rows")
    check_put(impl, rng, Piece((4, 7), 1, ((0, 2), (3, 4), (5, 7))), "three ranges of columns")
    check_put(impl, rng, Piece((3, 5, 2), 1, ((2, 5),)), "one range in the middle dimension")
    check_put(impl, rng, Piece((5, 3), 0, ((3, 5), (0, 1))), "ranges that are not in order")


@task("22.1", cases=2)
def test_put_of_flat_ranges(impl, rng):
    check_put(impl, rng, Piece((4, 5), flat=(3, 11)), "a range of the flattened whole")
    check_put(impl, rng, Piece((6, 4), 0, ((0, 1), (3, 6)), flat=(2, 13)), "a range of flattened rows")
    check_put(impl, rng, Piece((4, 6), 1, ((1, 2), (4, 6)), flat=(1, 7)), "a range of flattened columns")
    check_put(impl, rng, Piece((4, 6), 1, ((2, 5),), flat=(4, 9)), "a range of one flattened block of columns")


@task("22.1")
def test_put_of_everything_nothing_and_one_number(impl, rng):
    check_put(impl, rng, Piece((3, 4)), "a part that is the whole")
    check_put(impl, rng, Piece((3, 4), flat=(5, 5)), "a part without numbers")
    check_put(impl, rng, Piece((3, 4), 0, ((2, 2), (0, 1))), "an empty range")
    check_put(impl, rng, Piece((3, 4), 0, ((1, 3),), flat=(0, 0)), "a flat range without numbers at the beginning")
    check_put(impl, rng, Piece(()), "a single number of no dimension")


@task("22.1")
def test_put_back_together_from_all_ranks(impl, rng):
    whole = torch.arange(48).reshape(8, 6)
    found = torch.full_like(whole, -1)
    for index in range(2):
        ranges = ((index * 2, index * 2 + 2), (4 + index, 5 + index), (6 + index, 7 + index))
        for flat in ((0, 9), (9, 18), (18, 24)):
            piece = Piece((8, 6), 0, ranges, flat)
            part = whole.reshape(-1)[torch.from_numpy(places_of(piece))]
            _, (found, _, _) = impl.put_piece.after(found, part, piece)
    expect_equal(found, whole, what="a fused matrix from six flat shares of two slices")


@task("22.1")
def test_put_refuses(impl, rng):
    with expect_error(ShapeError):
        impl.put_piece(normal(rng, 3, 2), normal(rng, 2, 2), Piece((4, 2), 0, ((0, 2),)))
    with expect_error(ShapeError):
        impl.put_piece(normal(rng, 4, 2), normal(rng, 4), Piece((4, 2), 0, ((0, 2),)))


# --- 22.2 who writes what


def claim(n_numbers, shape=None, begin=0, n_bytes=None):
    shape = (n_numbers,) if shape is None else shape
    ranges = None if shape == (n_numbers,) else ((begin, begin + n_numbers),)
    return Claim(Piece(shape, 0, ranges), "F32", 4 * n_numbers if n_bytes is None else n_bytes)


def search(claims):
    """The rule by looking at all ranks for every part, in the order of first mention."""
    order = []
    for claimed in claims:
        for name, each in claimed.items():
            if (name, each.piece) not in order:
                order.append((name, each.piece))
    totals, answer = np.zeros(len(claims)), [[] for _ in claims]
    for name, piece in order:
        holds = np.array([name in claimed and claimed[name].piece == piece for claimed in claims])
        rank = int(np.where(holds, totals, np.inf).argmin())
        totals[rank] += claims[rank][name].n_bytes
        answer[rank].append(name)
    return answer


@task("22.2", cases=3)
def test_writers_of_copies(impl, rng):
    everything = {f"layer.{i}": claim(int(rng.integers(1, 40))) for i in range(12)}
    claims = [dict(everything) for _ in range(int(rng.integers(2, 5)))]
    expect_equal(impl.assign_writers(claims), search(claims), what="who writes what all ranks hold")


@task("22.2", cases=3)
def test_writers_of_copies_and_parts(impl, rng):
    claims = []
    for rank in range(4):
        mine = {"split": claim(6, (12,), 6 * (rank % 2)), "all": claim(50), f"own.{rank}": claim(7 * rank + 1)}
        names = [list(mine)[i] for i in rng.permutation(len(mine))]
        claims.append({name: mine[name] for name in names})
    for claimed in claims:
        claimed |= {f"more.{i}": claim(9 + 5 * i) for i in range(3)}
    found = impl.assign_writers(claims)
    expect_equal(found, search(claims), what="who writes what, with parts that only some ranks hold")
    expect(sum(names.count("split") for names in found) == 2, "both halves of a tensor must be written, once each")


@task("22.2")
def test_writers_by_bytes_and_ties(impl, rng):
    tie = [{name: claim(3) for name in "abcd"} for _ in range(3)]
    expect_equal(impl.assign_writers(tie), [["a", "d"], ["b"], ["c"]], what="four equal tensors that three ranks hold")
    heavy = {"a": claim(100), "b": claim(1), "c": claim(1), "d": claim(1)}
    expect_equal(impl.assign_writers([heavy, heavy]), [["a"], ["b", "c", "d"]], what="one large tensor and three small")
    wide = {"a": claim(4, n_bytes=80), "b": claim(9, n_bytes=9), "c": claim(1, n_bytes=1)}
    expect_equal(impl.assign_writers([wide, wide]), [["a"], ["b", "c"]], what="few numbers of many bytes each")
    expect_equal(impl.assign_writers([{"a": claim(1)}, {}]), [["a"], []], what="a rank that holds nothing")


@task("22.2")
def test_writers_refuse(impl, rng):
    with expect_error(CheckpointError):
        impl.assign_writers([{"a": claim(2, (4,), 0)}, {"a": claim(2, (4,), 0)}])
    with expect_error(CheckpointError):
        impl.assign_writers([{"a": claim(4)}, {"a": replace(claim(4), dtype="F64")}])


# --- 22.3 all or none


@task("22.3")
def test_all_succeed(impl, rng):
    for size in (1, 2, 4):
        files = [f"file {rank}" for rank in range(size)]
        outcomes, called = impl.drill_all_or_none([None] * size)
        expect_equal(outcomes, [("returned", files)] * size, what=f"what {size} ranks get when all succeed")
        expect_equal(called, list(range(size)), what="the ranks whose action was called")


def check_failures(impl, failures):
    outcomes, called = impl.drill_all_or_none(failures)
    expect_equal(called, list(range(len(failures))), what="the ranks whose action was called")
    for rank, (kind, texts) in enumerate(outcomes):
        expect(kind != "CommError", f"rank {rank} waits for a rank that has left: {texts}")
        if failures[rank] is not None:
            expect_equal((kind, texts), ("OSError", [failures[rank]]), what=f"what the failing rank {rank} gets")
            continue
        expect_equal(kind, "CheckpointError", what=f"the error on rank {rank}, whose action did not fail")
        for other, failure in enumerate(failures):
            if failure is not None:
                told = f"rank {other}" in texts[0] and failure in texts[0] and "OSError" in texts[0]
                expect(told, f"the error on rank {rank} should name rank {other}, OSError, {failure!r}: {texts[0]!r}")
            else:
                expect(f"rank {other}" not in texts[0], f"rank {other} did not fail, but is named: {texts[0]!r}")


@task("22.3", cases=2)
def test_one_fails(impl, rng):
    failures = [None, None, None]
    failures[int(rng.integers(3))] = "no space left"
    check_failures(impl, failures)


@task("22.3")
def test_each_of_two_fails(impl, rng):
    check_failures(impl, ["first disk", None])
    check_failures(impl, [None, "second disk"])


@task("22.3")
def test_several_fail(impl, rng):
    check_failures(impl, [None, "disk 1 full", None, "folder 3 gone"])
    check_failures(impl, ["all", "of them"])


# --- 22.4 rows


@task("22.4", cases=3)
def test_rows_are_the_steps_rows(impl, rng):
    size, n_rows, step = int(rng.integers(1, 6)), int(rng.integers(6, 30)), int(rng.integers(0, 9))
    bounds = [impl.rows_of_rank(step, n_rows, rank, size) for rank in range(size)]
    parts = np.array_split(np.arange(step * n_rows, (step + 1) * n_rows), size)  # numpy's: the first ones are longer
    expected = [(int(part[0]), int(part[-1]) + 1) for part in parts]
    expect_equal(bounds, expected, what=f"the rows of step {step}, {n_rows} over {size} ranks")


@task("22.4")
def test_same_rows_for_any_number_of_ranks(impl, rng):
    for step in (0, 3):
        for size in (1, 2, 3, 4):
            found = [row for rank in range(size) for row in range(*impl.rows_of_rank(step, 10, rank, size))]
            expect_equal(found, list(range(10 * step, 10 * step + 10)), what=f"rows of step {step} with {size} ranks")
    expect_equal(impl.rows_of_rank(0, 4, 3, 4), (3, 4), what="as many rows as ranks")


@task("22.4")
def test_rows_refuse(impl, rng):
    for wrong in ((-1, 8, 0, 2), (0, 8, 2, 2), (0, 8, -1, 2)):
        with expect_error(ConfigError):
            impl.rows_of_rank(*wrong)
    with expect_error(ConfigError):
        impl.rows_of_rank(0, 3, 0, 4)


# --- 22.5 one signal for all


@task("22.5", cases=3)
def test_all_leave_at_the_step_at_which_one_was_told(impl, rng):
    n_ranks, n_steps = int(rng.integers(2, 5)), 5
    when = [int(each) for each in rng.integers(1, 8, n_ranks)]  # from n_steps on: never
    name = ["SIGTERM", "SIGINT"][int(rng.integers(2))]
    received = [[name if step >= first else None for first in when] for step in range(n_steps)]
    first = min(when)
    expected = (first, name) if first < n_steps else (n_steps, None)
    expect_equal(impl.drill_stop(received), [expected] * n_ranks, what=f"step and signal per rank, told at {when}")


@task("22.5")
def test_each_rank_alone(impl, rng):
    for rank in range(3):
        received = [[None] * 3, ["SIGTERM" if each == rank else None for each in range(3)]]
        expect_equal(impl.drill_stop(received), [(1, "SIGTERM")] * 3, what=f"SIGTERM to rank {rank} only")
    expect_equal(impl.drill_stop([[None, None]] * 3), [(3, None)] * 2, what="no signal at all")


@task("22.5")
def test_two_signals(impl, rng):
    expect_equal(impl.drill_stop([["SIGTERM", "SIGTERM"]]), [(0, "SIGTERM")] * 2, what="the same signal to both")
    for names in (["SIGTERM", "SIGINT"], ["SIGINT", "SIGTERM"], ["SIGINT", "SIGUSR1", None]):
        highest = max(filter(None, names), key=lambda each: signal.Signals[each].value)
        expect_equal(impl.drill_stop([names]), [(0, highest)] * len(names), what=f"signals {names}")


@task("22.5")
def test_names_that_are_no_signals(impl, rng):
    with expect_error(ConfigError):
        impl.drill_stop([["STOP"]])


# --- 22.6 expected time


def mean_of_segment(seconds, mean_uptime, restart):
    """Sum over the number of failures; the mean uptime of a failed try by a fine sum over its density."""
    success = math.exp(-seconds / mean_uptime)
    times = (np.arange(200_000) + 0.5) * seconds / 200_000
    density = np.exp(-times / mean_uptime) / mean_uptime
    failed_try = float((times * density).sum() / density.sum())
    failures = sum(n * (1 - success) ** n * success for n in range(1, 2000))
    return seconds + failures * (failed_try + restart)


@task("22.6", cases=3)
def test_expected_seconds(impl, rng):
    interval, save, restart = (float(rng.uniform(*each)) for each in ((20, 60), (1, 10), (5, 40)))
    mean_uptime = float(rng.uniform(80, 300))
    work = interval * (int(rng.integers(2, 6)) + float(rng.uniform(0.2, 0.8)))
    n_full = int(work // interval)
    expected = n_full * mean_of_segment(interval + save, mean_uptime, restart)
    expected += mean_of_segment(work - n_full * interval + save, mean_uptime, restart)
    found = impl.expected_run_seconds(work, interval, save, mean_uptime, restart)
    expect_close(found, expected, tolerance=1e-7, what="the mean seconds, with a shorter last segment")


@task("22.6")
def test_expected_seconds_of_whole_segments(impl, rng):
    expected = 4 * mean_of_segment(30.0, 100.0, 20.0)
    found = impl.expected_run_seconds(100.0, 25.0, 5.0, 100.0, 20.0)
    expect_close(found, expected, tolerance=1e-7, what="the mean seconds of four whole segments")
    found = impl.expected_run_seconds(10.0, 25.0, 5.0, 100.0, 20.0)
    expect_close(found, mean_of_segment(15.0, 100.0, 20.0), tolerance=1e-7, what="work shorter than one interval")
    found = impl.expected_run_seconds(1000.0, 100.0, 7.0, 1e13, 50.0)
    expect_close(found, 1070.0, tolerance=1e-9, what="the seconds when failures hardly ever come")
    found = impl.expected_run_seconds(60.0, 30.0, 0.0, 50.0, 0.0)
    expect_close(found, 2 * mean_of_segment(30.0, 50.0, 0.0), tolerance=1e-7, what="free saves and restarts")


@task("22.6")
def test_expected_seconds_refuses(impl, rng):
    good = [100.0, 25.0, 5.0, 100.0, 20.0]
    for place, wrong in ((0, 0.0), (1, 0.0), (1, -5.0), (2, -1.0), (3, 0.0), (4, -1.0)):
        values = list(good)
        values[place] = wrong
        with expect_error(ConfigError):
            impl.expected_run_seconds(*values)
