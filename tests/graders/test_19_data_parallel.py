"""Graders of chapter 19: each test names the task it belongs to; `impl` is the library or a learner's file.

Ranks are threads of the graded program. The oracles see all ranks at once: a sum over a list of tensors, counting by
hand, and a clock that ticks.
"""

import itertools
import math

import torch

from minillm.course.grader import Wrong, expect, expect_close, expect_equal, expect_error, normal, task


def cuts(n, size):
    """Where each rank's part begins and ends, the first ones longer by one."""
    lengths = [n // size + (rank < n % size) for rank in range(size)]
    return [(sum(lengths[:rank]), sum(lengths[: rank + 1])) for rank in range(size)]


# 19.1 and 19.2 rings


@task("19.1", cases=3)
def test_each_rank_gets_its_part_of_the_sum(impl, rng):
    for size in (2, 3, 4, 5):
        n = int(rng.integers(1, 17))
        tensors = [normal(rng, n) for _ in range(size)]
        results = impl.rehearse_collective("ring_reduce_scatter", tensors)
        for rank, (begin, end) in enumerate(cuts(n, size)):
            what = f"the part of rank {rank} of {size}, numbers {begin} to {end} of {n}"
            expect_close(results[rank][0], sum(tensors)[begin:end], what=what)


@task("19.1")
def test_a_ring_sends_one_part_per_round(impl, rng):
    for size, n in ((2, 6), (4, 8), (3, 7)):
        results = impl.rehearse_collective("ring_reduce_scatter", [normal(rng, n) for _ in range(size)])
        for rank, (_, sent) in enumerate(results):
            lengths = [8 * (end - begin) for begin, end in cuts(n, size)]
            expected = [lengths[(rank - 1 - step) % size] for step in range(size - 1)]
            expect_equal(sent, expected, what=f"bytes of each message of rank {rank} of {size} for {n} numbers")


@task("19.1")
def test_whole_numbers_and_a_rank_alone(impl, rng):
    tensors = [torch.from_numpy(rng.integers(-9, 9, 6)) for _ in range(3)]
    for rank, (part, _) in enumerate(impl.rehearse_collective("ring_reduce_scatter", tensors)):
        expect_equal(part, sum(tensors)[2 * rank : 2 * rank + 2], what=f"the part of rank {rank}, in whole numbers")
    alone = normal(rng, 5)
    [(part, sent)] = impl.rehearse_collective("ring_reduce_scatter", [alone])
    expect_equal(part, alone, what="the part of a rank without others")
    expect_equal(sent, [], what="what a rank without others sends")


@task("19.1")
def test_rows_and_columns_cannot_be_cut(impl, rng):
    with expect_error(ValueError):
        impl.rehearse_collective("ring_reduce_scatter", [normal(rng, 2, 2) for _ in range(2)])
        raise Wrong("tensors (2, 2) must be refused")


@task("19.2", cases=3)
def test_everyone_gets_all_parts(impl, rng):
    for size in (2, 3, 4, 5):
        n = int(rng.integers(1, 17))
        whole, tensors = normal(rng, n), []
        for begin, end in cuts(n, size):
            tensors.append(torch.full_like(whole, math.nan))
            tensors[-1][begin:end] = whole[begin:end]
        for rank, (found, _) in enumerate(impl.rehearse_collective("ring_all_gather", tensors)):
            expect_equal(found, whole, what=f"the whole of {n} numbers at rank {rank} of {size}")


@task("19.2")
def test_gathering_sends_one_part_per_round(impl, rng):
    for size, n in ((2, 6), (4, 8), (3, 7)):
        results = impl.rehearse_collective("ring_all_gather", [normal(rng, n) for _ in range(size)])
        for rank, (_, sent) in enumerate(results):
            lengths = [8 * (end - begin) for begin, end in cuts(n, size)]
            expected = [lengths[(rank - step) % size] for step in range(size - 1)]
            expect_equal(sent, expected, what=f"bytes of each message of rank {rank} of {size} for {n} numbers")


@task("19.2")
def test_gathering_alone_whole_numbers_and_columns(impl, rng):
    alone = normal(rng, 4)
    [(found, sent)] = impl.rehearse_collective("ring_all_gather", [alone])
    expect_equal(found, alone, what="the whole of a rank without others")
    expect_equal(sent, [], what="what a rank without others sends")
    tensors = [torch.tensor([rank + 1 if place == rank else -1 for place in range(3)]) for rank in range(3)]
    for rank, (found, _) in enumerate(impl.rehearse_collective("ring_all_gather", tensors)):
        expect_equal(found, torch.tensor([1, 2, 3]), what=f"the whole at rank {rank}, in whole numbers")
    with expect_error(ValueError):
        impl.rehearse_collective("ring_all_gather", [normal(rng, 2, 2) for _ in range(2)])
        raise Wrong("tensors (2, 2) must be refused")


# 19.3 buckets


@task("19.3")
def test_buckets_by_hand(impl):
    cases = (
        ([4, 2, 3, 9, 1, 2], 5, [[5, 4], [3], [2, 1], [0]]),
        ([], 10, []),
        ([7], 3, [[0]]),
        ([5, 5, 5], 10, [[2, 1], [0]]),
        ([5, 5, 5], 15, [[2, 1, 0]]),
        ([5, 5, 5], 1, [[2], [1], [0]]),
        ([1, 100, 1], 10, [[2], [1], [0]]),
        ([100, 1, 1], 10, [[2, 1], [0]]),
        ([0, 3, 0], 3, [[2, 1, 0]]),
    )
    for sizes, bucket_bytes, expected in cases:
        what = f"buckets of at most {bucket_bytes} bytes for gradients of {sizes}"
        expect_equal(impl.assign_buckets(sizes, bucket_bytes), expected, what=what)


@task("19.3", cases=3)
def test_buckets_are_filled_from_the_end(impl, rng):
    sizes = rng.integers(1, 30, int(rng.integers(1, 20))).tolist()
    bucket_bytes = int(rng.integers(1, 60))
    found = impl.assign_buckets(sizes, bucket_bytes)
    asked = f"buckets of at most {bucket_bytes} bytes for {sizes}"
    order = [index for bucket in found for index in bucket]
    expect_equal(order, list(range(len(sizes) - 1, -1, -1)), what=f"all indices of {asked}, in order")
    for number, bucket in enumerate(found):
        total = sum(sizes[index] for index in bucket)
        expect(total <= bucket_bytes or len(bucket) == 1, f"{asked}: bucket {number} has {total}")
        if number + 1 < len(found):
            more = total + sizes[found[number + 1][0]]
            expect(more > bucket_bytes, f"{asked}: bucket {number} was closed at {total}, the next gradient fits")


@task("19.3")
def test_buckets_that_hold_nothing(impl):
    for bucket_bytes in (0, -5):
        with expect_error(ValueError):
            impl.assign_buckets([1, 2], bucket_bytes)
            raise Wrong(f"bucket_bytes of {bucket_bytes} must be refused")
    expect_equal(impl.assign_buckets([2, 1], 1), [[1], [0]], what="buckets of at most 1 byte for [2, 1]")


# 19.4 in turn


def departures(order, buckets, overlap):
    """Which buckets leave after each gradient of `order`, and which at the end, by replaying it."""
    left, ready = [], set()
    for index in order:
        ready.add(index)
        gone = sum(map(len, left))
        full = [overlap and set(bucket) <= ready for bucket in buckets] + [False]
        left.append(list(range(gone, max(gone, full.index(False)))))
    return [*left, list(range(sum(map(len, left)), len(buckets)))]


def expect_log(impl, rng, orders, buckets, n, bucket_bytes, overlap=True):
    """Gradients of 8 bytes each become ready in these orders."""
    gradients = [[normal(rng, 1) if index in order else None for index in range(n)] for order in orders]
    results = impl.rehearse_buckets(gradients, [list(order) for order in orders], bucket_bytes, 1.0, overlap)
    for rank, (order, (left, found)) in enumerate(zip(orders, results, strict=True)):
        what = f"buckets that leave rank {rank} after each of {list(order)}, and at the end; the buckets are {buckets}"
        expect_equal(left, departures(order, buckets, overlap), what=what)
        for index in range(n):
            parts = [other[index] for other in gradients if other[index] is not None]
            expect_close(found[index], sum(parts), what=f"the sum of gradient {index} at rank {rank}")


@task("19.4", cases=3)
def test_buckets_leave_as_soon_as_they_are_full(impl, rng):
    backward = [list(range(5, -1, -1))] * 2
    expect_log(impl, rng, backward, [[5, 4], [3, 2], [1, 0]], 6, 16)
    expect_log(impl, rng, backward, [[index] for index in range(5, -1, -1)], 6, 8)
    orders = [rng.permutation(6).tolist() for _ in range(2)]
    expect_log(impl, rng, orders, [[5, 4], [3, 2], [1, 0]], 6, 16)


@task("19.4")
def test_full_buckets_wait_for_their_turn(impl, rng):
    buckets = [[3], [2], [1], [0]]
    for orders in (([0, 1, 2, 3], [3, 2, 1, 0]), ([2, 3, 0, 1], [1, 3, 2, 0])):
        expect_log(impl, rng, orders, buckets, 4, 8)


@task("19.4")
def test_one_missing_gradient_keeps_a_bucket_and_all_after_it(impl, rng):
    expect_log(impl, rng, ([5, 4, 2, 1, 0], [5, 4, 3, 2, 1, 0]), [[5, 4], [3, 2], [1, 0]], 6, 16)
    expect_log(impl, rng, ([4, 3, 2], [5, 1, 0]), [[5, 4], [3, 2], [1, 0]], 6, 16)


@task("19.4")
def test_nothing_leaves_early_without_overlap(impl, rng):
    expect_log(impl, rng, [[3, 2, 1, 0]] * 2, [[3, 2], [1, 0]], 4, 16, overlap=False)
    expect_log(impl, rng, [[3, 2, 1, 0]] * 2, [[3, 2], [1, 0]], 4, 16)


# 19.5 sums of gradients


SHAPES = ((2, 3), (4,), (), (1, 2, 2))


def some_gradients(rng, size, dropped=0.3):
    """For each rank, gradients of four parameters; some missing, at least one rank has each."""
    gradients = [[normal(rng, *shape) for shape in SHAPES] for _ in range(size)]
    for index in range(len(SHAPES)):
        for rank in range(1, size):
            if rng.random() < dropped:
                gradients[(rank + index) % size][index] = None
    return gradients


def expect_sums(found, gradients, scale):
    for rank, mine in enumerate(found):
        expect_equal(len(mine), len(gradients[0]), what="the number of gradients")
        for index, got in enumerate(mine):
            parts = [theirs[index] for theirs in gradients if theirs[index] is not None]
            missing = [other for other, theirs in enumerate(gradients) if theirs[index] is None]
            what = f"gradient {index} of rank {rank} of {len(found)} (scale {scale:g}, none on ranks {missing})"
            if parts:
                expect(got is not None, f"{what} is None, expected {scale:g} times the sum")
                expect_close(got, scale * sum(parts), what=what)
            else:
                expect(got is None, f"{what} must stay None: no rank has one")


@task("19.5", cases=3)
def test_sums_times_scale(impl, rng):
    for size in (1, 2, 3):
        gradients = some_gradients(rng, size, dropped=0.0)
        for scale in (1.0, 1 / size, float(rng.uniform(0.01, 0.1))):
            expect_sums(impl.rehearse_reduction(gradients, scale), gradients, scale)


@task("19.5", cases=3)
def test_gradients_that_some_ranks_do_not_have(impl, rng):
    for size in (2, 3):
        gradients = some_gradients(rng, size)
        gradients[0][1] = None
        gradients[1][3] = None
        expect_sums(impl.rehearse_reduction(gradients, 0.25), gradients, 0.25)


@task("19.5")
def test_gradients_that_nobody_has(impl, rng):
    gradients = some_gradients(rng, 2, dropped=0.0)
    for mine in gradients:
        mine[0] = mine[2] = None
    gradients[1][1] = None
    expect_sums(impl.rehearse_reduction(gradients, 0.5), gradients, 0.5)
    nothing = [[None, None], [None, None]]
    expect_sums(impl.rehearse_reduction(nothing, 0.5), nothing, 0.5)
    expect_equal(impl.rehearse_reduction([[], []], 1.0), [[], []], what="the gradients of a model without parameters")


# 19.6 who may go on


def replayed(finished, workers, max_lead):
    """Who may go on after each step, counted anew from the list of all steps so far."""
    gone_on, waiting = [], []
    for moment, worker in enumerate(finished, start=1):
        done = {other: finished[:moment].count(other) for other in workers}
        waiting.append(worker)
        free = [other for other in waiting if done[other] - min(done.values()) <= max_lead]
        for other in free:
            waiting.remove(other)
        gone_on.append(free)
    return gone_on


def possible_steps(rng, workers, max_lead, n):
    """A random sequence in which nobody steps who waits."""
    finished, waiting, done = [], set(), dict.fromkeys(workers, 0)
    for _ in range(n):
        able = [worker for worker in workers if worker not in waiting]
        weights = [6.0 if worker == workers[0] else 1.0 for worker in able]
        worker = int(rng.choice(able, p=[weight / sum(weights) for weight in weights]))
        finished.append(worker)
        done[worker] += 1
        waiting.add(worker)
        waiting = {other for other in waiting if done[other] - min(done.values()) > max_lead}
    return finished


@task("19.6", cases=3)
def test_who_may_go_on(impl, rng):
    for workers, max_lead in (([1, 2], 1), ([1, 2, 3], 0), ([1, 2, 3, 4], 2), ([3, 1, 2], 1), ([1, 2], math.inf)):
        finished = possible_steps(rng, workers, max_lead, 20)
        clocks = impl.Clocks(workers, max_lead)
        for moment, (worker, free) in enumerate(zip(finished, replayed(finished, workers, max_lead), strict=True)):
            what = f"who goes on (lead of at most {max_lead}) after steps of {finished[: moment + 1]}"
            expect_equal(clocks.finish_step(worker), free, what=what)


@task("19.6")
def test_those_who_waited_go_first_in_the_order_they_came(impl):
    clocks = impl.Clocks([1, 2, 3], 0)
    for worker, free in ((3, []), (1, []), (2, [3, 1, 2]), (2, []), (3, []), (1, [2, 3, 1])):
        expect_equal(clocks.finish_step(worker), free, what=f"who goes on when worker {worker} is done")
    expect_equal(clocks.get("waiting"), [], what="who waits at the end")
    expect_equal(clocks.get("n_steps"), {1: 2, 2: 2, 3: 2}, what="the steps counted")


@task("19.6")
def test_the_slowest_frees_others_at_the_bound(impl):
    clocks = impl.Clocks([1, 2], 2)
    for worker, free, waiting in ((1, [1], []), (1, [1], []), (1, [], [1]), (2, [2, 1], []), (1, [], [1])):
        if worker == 2:
            free = [1, 2]
        expect_equal(clocks.finish_step(worker), free, what=f"who goes on when worker {worker} is done, lead 2 allowed")
        expect_equal(clocks.get("waiting"), waiting, what="who waits then")


@task("19.6", cases=2)
def test_order_of_arrival(impl, rng):
    """A clock that ticks in quarters: who is done at each tick, lower ranks first."""
    for max_lead in (0, 1, math.inf):
        seconds = [int(rng.integers(1, 9)) / 4 for _ in range(3)]
        left, done, waiting, order = [s * 4 for s in seconds], [0, 0, 0], [], []
        while len(order) < 3 * 5:
            left = [ticks - 1 for ticks in left]
            for worker in range(3):
                if left[worker] == 0:
                    order.append(worker + 1)
                    done[worker] += 1
                    waiting.append(worker)
                    for other in [w for w in waiting if done[w] - min(done) <= max_lead]:
                        waiting.remove(other)
                        left[other] = seconds[other] * 4 if done[other] < 5 else math.inf
        found = impl.arrival_order(seconds, 5, max_lead)
        expect_equal(found, order, what=f"arrivals of workers with {seconds} s a step, lead of at most {max_lead}")


# 19.7 what a rank owns


def piece_tuple(piece):
    return (piece.index, piece.begin, piece.end, piece.offset)


@task("19.7")
def test_pieces_by_hand(impl):
    layout = impl.FlatLayout([(2, 3), (3,)], 2)
    for rank, expected in enumerate(([(0, 0, 5, 0)], [(0, 5, 6, 0), (1, 0, 3, 1)])):
        found = [piece_tuple(piece) for piece in layout.pieces(rank)]
        expect_equal(found, expected, what=f"(tensor, begin, end, offset) of rank {rank} of 2, shapes (2, 3) and (3,)")
    layout = impl.FlatLayout([(2,), (2,), (2,)], 3)
    for rank in range(3):
        found = [piece_tuple(piece) for piece in layout.pieces(rank)]
        expect_equal(found, [(rank, 0, 2, 0)], what=f"the pieces of rank {rank} of 3 where cuts and borders meet")


@task("19.7", cases=3)
def test_every_number_has_one_owner(impl, rng):
    shapes = [tuple(rng.integers(1, 4, int(rng.integers(0, 3))).tolist()) for _ in range(int(rng.integers(1, 7)))]
    numbers = [math.prod(shape) for shape in shapes]
    flat = list(itertools.chain.from_iterable([(t, n) for n in range(count)] for t, count in enumerate(numbers)))
    for size in (1, 2, 3, 5, 8):
        layout, share = impl.FlatLayout(shapes, size), -(-len(flat) // size)
        for rank in range(size):
            mine = flat[rank * share : (rank + 1) * share]
            found = layout.pieces(rank)
            told = f"rank {rank} of {size}, shapes {shapes}"
            expect(isinstance(found, list), f"{told}: expected a list of pieces")
            owned = [(piece.index, number) for piece in found for number in range(piece.begin, piece.end)]
            expect_equal(owned, mine, what=f"(tensor, number) owned by {told}")
            expect_equal(len(found), len({t for t, _ in mine}), what=f"the number of pieces of {told}")
            for piece in found:
                place = mine.index((piece.index, piece.begin))
                expect_equal(piece.offset, place, what=f"where the piece of tensor {piece.index} begins in {told}")


@task("19.7")
def test_ranks_that_own_nothing(impl):
    layout = impl.FlatLayout([(2,), ()], 5)
    found = [[piece_tuple(piece) for piece in layout.pieces(rank)] for rank in range(5)]
    expected = [[(0, 0, 1, 0)], [(0, 1, 2, 0)], [(1, 0, 1, 0)], [], []]
    expect_equal(found, expected, what="the pieces of five ranks, shapes (2,) and ()")
    layout = impl.FlatLayout([(0,), (3,), (0,)], 1)
    found = [piece_tuple(piece) for piece in layout.pieces(0)]
    expect_equal(found, [(1, 0, 3, 0)], what="the pieces of shapes (0,), (3,), (0,)")


# 19.8 memory


def state_bytes(found):
    return (found.parameters, found.gradients, found.optimizer)


@task("19.8")
def test_bytes_of_the_published_example(impl):
    psi = 7_500_000_000
    whole, share = (2 * psi, 2 * psi, 12 * psi), (234_375_000, 234_375_000, 1_406_250_000)
    for stage in range(4):
        right = whole[: 3 - stage] + share[3 - stage :]
        found = state_bytes(impl.model_state_bytes(psi, 64, stage))
        expect_equal(found, right, what=f"bytes of 7.5 billion parameters on each of 64 ranks in stage {stage}")


@task("19.8", cases=2)
def test_bytes_by_counting_parameters(impl, rng):
    """Deal the parameters out one by one; the longest hand is what every rank makes room for."""
    for world_size in (1, 2, 3, 7):
        n = int(rng.integers(0, 60))
        hands = [0] * world_size
        for number in range(n):
            hands[number % world_size] += 1
        sizes = [int(rng.integers(1, 17)) for _ in range(3)]
        for stage in range(4):
            counts = [max(hands) if stage >= first else n for first in (3, 2, 1)]
            expected = tuple(count * size for count, size in zip(counts, sizes, strict=True))
            found = state_bytes(impl.model_state_bytes(n, world_size, stage, *sizes))
            told = f"{n} parameters on {world_size} ranks in stage {stage} with {sizes} bytes each"
            expect_equal(found, expected, what=f"bytes of parameters, gradients, optimizer: {told}")


@task("19.8")
def test_bytes_of_what_cannot_be(impl):
    for arguments in ((10, 2, 4), (10, 2, -1), (10, 0, 1), (-1, 2, 1)):
        with expect_error(ValueError):
            impl.model_state_bytes(*arguments)
            raise Wrong(f"model_state_bytes{arguments} must be refused")
    found = state_bytes(impl.model_state_bytes(10, 1, 3, 4, 4, 8))
    expect_equal(found, (40, 40, 80), what="bytes of 10 parameters on a rank alone in stage 3 with 4, 4 and 8 bytes")
    found = state_bytes(impl.model_state_bytes(0, 2, 1))
    expect_equal(found, (0, 0, 0), what="bytes of a model without parameters")
