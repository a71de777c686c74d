"""Graders of chapter 21: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles know places in lists by arithmetic, walk along the chain of stages, let a clock tick, and count.
"""

from fractions import Fraction

from minillm.course.grader import Wrong, expect, expect_equal, expect_error, task
from minillm.parallel.schedules import Action, Schedule


def words(actions):
    """The actions as text, for comparing and for messages."""
    if not isinstance(actions, list) or not all(isinstance(action, Action) for action in actions):
        raise Wrong(f"expected a list of Action, got {str(actions)[:100]}")
    return " ".join(f"{a.kind}{a.microbatch}.{a.chunk}" for a in actions)


def work_at(k, n_ranks, n_chunks, back):
    """Micro-batch and chunk of the k-th forward or backward pass of a rank."""
    chunk = k // n_ranks % n_chunks
    return k // (n_ranks * n_chunks) * n_ranks + k % n_ranks, n_chunks - 1 - chunk if back else chunk


def oracle_order(n_warmup, n_ranks, n_microbatches, n_chunks=1):
    """Each place of the list by itself: warm-up, then even places forward and odd ones back, then the rest back."""
    total = n_microbatches * n_chunks
    actions = []
    for place in range(2 * total):
        after = place - n_warmup
        if place < n_warmup:
            actions.append(("F", *work_at(place, n_ranks, n_chunks, False)))
        elif place >= 2 * total - n_warmup:
            actions.append(("B", *work_at(place - total, n_ranks, n_chunks, True)))
        elif after % 2 == 0:
            actions.append(("F", *work_at(n_warmup + after // 2, n_ranks, n_chunks, False)))
        else:
            actions.append(("B", *work_at(after // 2, n_ranks, n_chunks, True)))
    return [Action(*action) for action in actions]


def oracle_1f1b(rank, n_ranks, n_microbatches):
    return oracle_order(min(n_ranks - rank - 1, n_microbatches), n_ranks, n_microbatches)


def oracle_gpipe(rank, n_ranks, n_microbatches):
    places = range(2 * n_microbatches)
    return [
        Action("F", place) if place < n_microbatches else Action("B", 2 * n_microbatches - 1 - place)
        for place in places
    ]


def whole(rule, n_ranks, n_microbatches, n_chunks=1):
    actions = tuple(tuple(rule(rank)) for rank in range(n_ranks))
    return Schedule("by hand", n_microbatches, n_chunks, actions)


# 21.1 GPipe


@task("21.1")
def test_three_microbatches_by_hand(impl, rng):
    expect_equal(words(impl.gpipe(0, 2, 3)), "F0.0 F1.0 F2.0 B2.0 B1.0 B0.0", what="gpipe of 3 micro-batches")
    expect_equal(words(impl.gpipe(1, 2, 3)), "F0.0 F1.0 F2.0 B2.0 B1.0 B0.0", what="the same on the last rank")


@task("21.1", cases=2)
def test_any_number_of_microbatches(impl, rng):
    for n_microbatches in (1, 2, int(rng.integers(3, 20))):
        n_ranks = int(rng.integers(1, 9))
        rank = int(rng.integers(n_ranks))
        what = f"gpipe on rank {rank} of {n_ranks}, {n_microbatches} micro-batches"
        got = words(impl.gpipe(rank, n_ranks, n_microbatches))
        expect_equal(got, words(oracle_gpipe(rank, n_ranks, n_microbatches)), what=what)


@task("21.1")
def test_one_microbatch_is_the_bare_layer_split(impl, rng):
    for n_ranks in (1, 4):
        expect_equal(words(impl.gpipe(n_ranks - 1, n_ranks, 1)), "F0.0 B0.0", what="gpipe of one micro-batch")


# 21.2 1F1B


@task("21.2")
def test_three_ranks_by_hand(impl, rng):
    right = {
        0: "F0.0 F1.0 F2.0 B0.0 F3.0 B1.0 B2.0 B3.0",
        1: "F0.0 F1.0 B0.0 F2.0 B1.0 F3.0 B2.0 B3.0",
        2: "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0 F3.0 B3.0",
    }
    for rank, order in right.items():
        expect_equal(words(impl.one_f_one_b(rank, 3, 4)), order, what=f"1F1B on rank {rank} of 3, 4 micro-batches")


@task("21.2", cases=3)
def test_each_place_of_any_1f1b(impl, rng):
    n_ranks, n_microbatches = int(rng.integers(1, 9)), int(rng.integers(1, 20))
    for rank in range(n_ranks):
        got = words(impl.one_f_one_b(rank, n_ranks, n_microbatches))
        what = f"1F1B on rank {rank} of {n_ranks}, {n_microbatches} micro-batches"
        expect_equal(got, words(oracle_1f1b(rank, n_ranks, n_microbatches)), what=what)


@task("21.2")
def test_fewer_microbatches_than_ranks(impl, rng):
    for n_microbatches in (1, 2, 3):
        for rank in range(8):
            got = words(impl.one_f_one_b(rank, 8, n_microbatches))
            what = f"1F1B on rank {rank} of 8 with {n_microbatches} micro-batches only"
            expect_equal(got, words(oracle_1f1b(rank, 8, n_microbatches)), what=what)


@task("21.2")
def test_never_more_in_flight_than_ranks_that_follow(impl, rng):
    for rank in range(4):
        count, most = 0, 0
        for action in impl.one_f_one_b(rank, 4, 12):
            count += 1 if action.kind == "F" else -1
            most = max(most, count)
        expect_equal(most, 4 - rank, what=f"micro-batches in flight on rank {rank} of 4")


# 21.3 who must come before


def stages_in_order(n_ranks, n_chunks, microbatch):
    """(rank, action) of a micro-batch from the first forward to the last backward pass."""
    there = [(stage % n_ranks, Action("F", microbatch, stage // n_ranks)) for stage in range(n_ranks * n_chunks)]
    return there + [(rank, Action("B", microbatch, action.chunk)) for rank, action in reversed(there)]


def named(pairs):
    if not isinstance(pairs, list):
        raise Wrong(f"expected a list of (rank, action), got {str(pairs)[:100]}")
    return [(rank, f"{action.kind}{action.microbatch}.{action.chunk}") for rank, action in pairs]


@task("21.3")
def test_the_first_and_the_last_stage(impl, rng):
    schedule = whole(lambda rank: oracle_gpipe(rank, 3, 2), 3, 2)
    expected = [
        (0, Action("F", 1), []),
        (1, Action("F", 1), [(0, "F1.0")]),
        (2, Action("B", 1), [(2, "F1.0")]),
        (1, Action("B", 0), [(1, "F0.0"), (2, "B0.0")]),
        (0, Action("B", 0), [(0, "F0.0"), (1, "B0.0")]),
    ]
    for rank, action, right in expected:
        got = named(impl.must_come_before(schedule, rank, action))
        expect_equal(got, right, what=f"what must come before {action} on rank {rank} of 3")


@task("21.3", cases=3)
def test_along_the_whole_chain_of_stages(impl, rng):
    n_ranks, n_chunks, microbatch = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(4))
    schedule = whole(lambda rank: [], n_ranks, 4, n_chunks)
    chain = stages_in_order(n_ranks, n_chunks, microbatch)
    for place, (rank, action) in enumerate(chain):
        right = [] if action.kind == "F" else [(rank, Action("F", microbatch, action.chunk))]
        right += [pair for pair in chain[max(place - 1, 0) : place] if pair not in right]
        got = named(impl.must_come_before(schedule, rank, action))
        what = f"what must come before {action} on rank {rank} of {n_ranks} with {n_chunks} chunks"
        expect_equal(got, named(right), what=what)


@task("21.3")
def test_one_rank_with_all_stages(impl, rng):
    schedule = whole(lambda rank: oracle_gpipe(rank, 1, 1), 1, 1)
    expect_equal(named(impl.must_come_before(schedule, 0, Action("F", 0))), [], what="before F0 on the only rank")
    got = named(impl.must_come_before(schedule, 0, Action("B", 0)))
    expect_equal(got, [(0, "F0.0")], what="before B0 on the only rank")


# 21.4 the simulator


def ticking(schedule, forward, backward, transfer):
    """Ends of all actions, by letting a clock of whole numbers tick; times are lists, one for each rank, per chunk."""
    n_ranks = schedule.n_ranks
    n_stages = n_ranks * schedule.n_chunks
    ready = {("F", m, 0): 0 for m in range(schedule.n_microbatches)}
    queues, free, ends, clock = [list(actions) for actions in schedule.actions], [0] * n_ranks, {}, 0
    while any(queues) and clock < 5000:
        for rank in range(n_ranks):
            while queues[rank] and free[rank] <= clock:
                action = queues[rank][0]
                stage = action.chunk * n_ranks + rank
                if ready.get((action.kind, action.microbatch, stage), clock + 1) > clock:
                    break
                queues[rank].pop(0)
                end = free[rank] = clock + (forward if action.kind == "F" else backward)[rank]
                ends[rank, action] = end
                if action.kind == "F" and stage == n_stages - 1:
                    ready["B", action.microbatch, stage] = end
                    continue
                after = stage + 1 if action.kind == "F" else stage - 1
                ready[action.kind, action.microbatch, after] = end + (transfer if after % n_ranks != rank else 0)
        clock += 1
    return ends


def expect_ends(impl, schedule, forward, backward, transfer, what):
    """Compare starts and ends of all actions; `forward` and `backward` are per chunk, one for each rank."""
    scale = schedule.n_chunks
    given = [[scale * time for time in times] for times in (forward, backward)]
    timeline = impl.simulate(schedule, *given, transfer)
    right = ticking(schedule, forward, backward, transfer)
    expect_equal(timeline.n_ranks, schedule.n_ranks, what=f"n_ranks of the timeline, {what}")
    found = {(event.rank, event.action): event for event in timeline.events}
    expect_equal(len(timeline.events), len(right), what=f"number of events, {what}")
    for (rank, action), end in sorted(right.items(), key=lambda pair: pair[1]):
        if (rank, action) not in found:
            raise Wrong(f"{what}: there is no event for {action} on rank {rank}")
        event = found[rank, action]
        long = (forward if action.kind == "F" else backward)[rank]
        expect(event.end == end, f"{what}: {action} on rank {rank} ends at {event.end}, expected {end}")
        expect(event.start == end - long, f"{what}: {action} on rank {rank} starts at {event.start}, not {end - long}")
    for rank in range(schedule.n_ranks):
        order = [event.action for event in timeline.events if event.rank == rank]
        expect_equal(words(order), words(list(schedule.actions[rank])), what=f"events of rank {rank} in order, {what}")


@task("21.4")
def test_two_ranks_by_hand(impl, rng):
    schedule = whole(lambda rank: oracle_1f1b(rank, 2, 2), 2, 2)
    timeline = impl.simulate(schedule, 1, 2)
    ends = {(event.rank, str(event.action)): event.end for event in timeline.events}
    by_hand = {
        (0, "F0"): 1, (0, "F1"): 2, (1, "F0"): 2, (1, "B0"): 4, (0, "B0"): 6, (1, "F1"): 5, (1, "B1"): 7, (0, "B1"): 9,
    }
    for key, end in by_hand.items():
        expect(ends.get(key) == end, f"{key[1]} on rank {key[0]} of 2 ends at {ends.get(key)}, expected {end}")


@task("21.4", cases=2)
def test_every_start_and_end_agrees_with_a_clock(impl, rng):
    for transfer in (0, 2):
        n_ranks, n_microbatches = int(rng.integers(2, 5)), int(rng.integers(1, 7))
        for rule in (oracle_1f1b, oracle_gpipe):
            schedule = whole(lambda rank: rule(rank, n_ranks, n_microbatches), n_ranks, n_microbatches)  # noqa: B023
            what = f"{rule.__name__[7:]}, {n_ranks} ranks, {n_microbatches} micro-batches, transfer {transfer}"
            expect_ends(impl, schedule, [2] * n_ranks, [3] * n_ranks, transfer, what)


@task("21.4")
def test_ranks_of_different_speed(impl, rng):
    schedule = whole(lambda rank: oracle_1f1b(rank, 4, 6), 4, 6)
    expect_ends(impl, schedule, [1, 3, 2, 1], [2, 5, 4, 3], 1, "1F1B with a slow rank 1")


@task("21.4")
def test_chunks_and_their_transfers(impl, rng):
    for n_ranks, n_chunks in ((2, 2), (3, 2), (1, 2)):
        warmups = [(n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank) for rank in range(n_ranks)]
        warmups = [min(n_warmup, 2 * n_ranks * n_chunks) for n_warmup in warmups]
        schedule = whole(
            lambda rank: oracle_order(warmups[rank], n_ranks, 2 * n_ranks, n_chunks), n_ranks, 2 * n_ranks, n_chunks  # noqa: B023
        )
        for transfer in (0, 3):
            what = f"{n_chunks} chunks on each of {n_ranks} ranks, transfer {transfer}"
            expect_ends(impl, schedule, [1] * n_ranks, [2] * n_ranks, transfer, what)


@task("21.4", cases=2)
def test_bubbles_are_exact_fractions(impl, rng):
    forward, backward = Fraction(int(rng.integers(1, 9)), 7), Fraction(int(rng.integers(1, 9)), 3)
    for n_ranks, n_microbatches in ((1, 3), (2, 4), (4, 8)):
        schedule = whole(lambda rank: oracle_1f1b(rank, n_ranks, n_microbatches), n_ranks, n_microbatches)  # noqa: B023
        timeline = impl.simulate(schedule, forward, backward)
        last = max(event.end for event in timeline.events)
        right = (n_microbatches + n_ranks - 1) * (forward + backward)
        expect(isinstance(last, Fraction), f"times must stay exact fractions, the last end is {last!r}")
        expect(last == right, f"the last end is {last}, expected (M + P - 1)(F + B) = {right}")
    timeline = impl.simulate(whole(lambda rank: oracle_interleaved(rank, 2, 2, 3), 2, 2, 3), 1, 1)
    chunk = min(event.end for event in timeline.events)
    expect(chunk == Fraction(1, 3), f"one of three chunks of a rank that takes 1 must take 1/3, not {chunk}")


@task("21.4")
def test_ranks_that_wait_for_ever_are_refused(impl, rng):
    crossed = Schedule("crossed", 1, 1, ((Action("B", 0), Action("F", 0)),))
    late = Schedule("late", 2, 1, (
        (Action("F", 0), Action("B", 0), Action("F", 1), Action("B", 1)),
        (Action("F", 0), Action("F", 1), Action("B", 0), Action("B", 1)),
    ))
    for schedule in (crossed, late):
        with expect_error(ValueError):
            impl.simulate(schedule, 1, 2)
    with expect_error(ValueError):
        impl.simulate(whole(lambda rank: oracle_gpipe(rank, 2, 2), 2, 2), [1, 1, 1], 2)


@task("21.4")
def test_backward_takes_twice_as_long_unless_said(impl, rng):
    schedule = whole(lambda rank: oracle_gpipe(rank, 2, 3), 2, 3)
    timeline = impl.simulate(schedule)
    last = max(event.end for event in timeline.events)
    expect(last == 12, f"3 micro-batches on 2 ranks with the defaults end at {last}, expected 12")


# 21.5 interleaved


def oracle_interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return oracle_1f1b(rank, n_ranks, n_microbatches)
    n_warmup = min((n_ranks - rank - 1) * 2 + (n_chunks - 1) * n_ranks, n_microbatches * n_chunks)
    return oracle_order(n_warmup, n_ranks, n_microbatches, n_chunks)


@task("21.5")
def test_two_ranks_with_two_chunks_by_hand(impl, rng):
    right = {
        0: "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0",
        1: "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1 B2.0 B3.0",
    }
    for rank, order in right.items():
        got = words(impl.interleaved(rank, 2, 4, 2))
        expect_equal(got, order, what=f"interleaved on rank {rank} of 2, 4 micro-batches, 2 chunks")


@task("21.5", cases=3)
def test_each_place_of_any_interleaved(impl, rng):
    n_ranks, n_chunks, n_groups = (int(rng.integers(1, limit)) for limit in (6, 5, 4))
    for rank in range(n_ranks):
        got = words(impl.interleaved(rank, n_ranks, n_groups * n_ranks, n_chunks))
        what = f"interleaved on rank {rank} of {n_ranks}, {n_groups * n_ranks} micro-batches, {n_chunks} chunks"
        expect_equal(got, words(oracle_interleaved(rank, n_ranks, n_groups * n_ranks, n_chunks)), what=what)


@task("21.5")
def test_one_group_and_many_chunks(impl, rng):
    for n_ranks, n_chunks in ((4, 2), (4, 3), (8, 2), (3, 4), (1, 3)):
        for rank in range(n_ranks):
            got = words(impl.interleaved(rank, n_ranks, n_ranks, n_chunks))
            what = f"interleaved on rank {rank} of {n_ranks}, as many micro-batches, {n_chunks} chunks"
            expect_equal(got, words(oracle_interleaved(rank, n_ranks, n_ranks, n_chunks)), what=what)


@task("21.5")
def test_one_chunk_is_1f1b(impl, rng):
    for n_microbatches in (1, 3, 4, 5):
        for rank in range(4):
            got = words(impl.interleaved(rank, 4, n_microbatches, 1))
            what = f"one chunk, rank {rank} of 4, {n_microbatches} micro-batches"
            expect_equal(got, words(oracle_1f1b(rank, 4, n_microbatches)), what=what)


@task("21.5")
def test_other_numbers_of_microbatches_are_refused(impl, rng):
    for n_ranks, n_microbatches in ((4, 6), (2, 3), (4, 2), (3, 4)):
        with expect_error(ValueError):
            impl.interleaved(0, n_ranks, n_microbatches, 2)


# 21.6 the weights that a micro-batch meets


def counted(microbatch, rank, n_ranks):
    """Backward passes before the forward pass of a micro-batch, in the order of the stream."""
    n_updates = 0
    for action in oracle_1f1b(rank, n_ranks, microbatch + n_ranks + 1):
        if action == Action("F", microbatch):
            return n_updates
        n_updates += action.kind == "B"
    raise AssertionError("every micro-batch goes forward")


@task("21.6")
def test_three_ranks_from_the_beginning(impl, rng):
    right = [[0, 0, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    for rank, seen in enumerate(right):
        got = [impl.weights_seen(microbatch, rank, 3) for microbatch in range(6)]
        expect_equal(got, seen, what=f"updates that micro-batches 0 to 5 meet on rank {rank} of 3")


@task("21.6", cases=3)
def test_counted_in_the_stream(impl, rng):
    n_ranks = int(rng.integers(1, 9))
    for rank in range(n_ranks):
        for microbatch in (0, 1, n_ranks - 1, n_ranks, int(rng.integers(40))):
            for mode in ("stashed", "unstashed"):
                got = impl.weights_seen(microbatch, rank, n_ranks, mode)
                what = f"updates that micro-batch {microbatch} meets on rank {rank} of {n_ranks}, {mode}"
                expect_equal(got, counted(microbatch, rank, n_ranks), what=what)


@task("21.6", cases=2)
def test_vertical_is_rank_0_everywhere_and_flushed_is_up_to_date(impl, rng):
    n_ranks = int(rng.integers(2, 9))
    for rank in range(n_ranks):
        for microbatch in (0, 1, n_ranks, int(rng.integers(40))):
            got = impl.weights_seen(microbatch, rank, n_ranks, "vertical")
            what = f"updates that micro-batch {microbatch} meets on rank {rank} of {n_ranks}"
            expect_equal(got, counted(microbatch, 0, n_ranks), what=f"{what}, vertical")
            flushed = impl.weights_seen(microbatch, rank, n_ranks, "flushed")
            expect_equal(flushed, microbatch, what=f"{what}, flushed")


@task("21.6")
def test_an_unknown_mode_is_refused(impl, rng):
    for mode in ("", "Stashed", "latest"):
        with expect_error(ValueError):
            impl.weights_seen(3, 0, 2, mode)
