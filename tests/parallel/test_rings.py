"""Collectives by hand against torch's own, against sums worked out here, and against the formula for bytes."""

import pytest
import torch

from minillm.errors import ShapeError
from minillm.parallel.comm import CommCounter
from minillm.parallel.launch import launch
from minillm.parallel.rings import (
    exchange,
    naive_all_reduce,
    part_bounds,
    parts_of,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_broadcast,
)
from minillm.parallel.threads import launch_threads

LENGTHS = (1, 7, 24, 121)  # fewer than ranks, odd, a multiple of 2, 3, 4 and 8, and one more than a multiple


def numbers(rank, n, dtype):
    """Different on every rank, the same from run to run."""
    generator = torch.Generator().manual_seed(100 * rank + n)
    whole = torch.randint(-1000, 1000, (n,), generator=generator)
    return whole if dtype == torch.int64 else torch.randn(n, generator=generator, dtype=dtype)


def everything(comm, lengths):
    """For each length and dtype: what torch makes of it, and what we do, twice."""
    found = []
    for n in lengths:
        for dtype in (torch.int64, torch.float64):
            mine = numbers(comm.rank, n, dtype)
            torchs = mine.clone()
            comm.all_reduce(torchs)
            rings = [mine.clone(), mine.clone()]
            for ring in rings:
                ring_all_reduce(ring, comm)
            naive = mine.clone()
            naive_all_reduce(naive, comm)
            part = ring_reduce_scatter(mine.clone(), comm).clone()
            gathered = torch.zeros(n, dtype=dtype)
            parts_of(gathered, comm)[comm.rank].copy_(part)
            ring_all_gather(gathered, comm)
            told = {source: mine.clone() for source in (0, comm.size - 1)}
            for source, tensor in told.items():
                tree_broadcast(tensor, comm, source)
            found.append((torchs, rings, naive, part, gathered, told))
    return found


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_all_are_torchs_and_the_sum(size):
    lengths = LENGTHS if size < 8 else (7, 24)
    of_rank = launch(everything, size, lengths, timeout_seconds=20, show_output=False)
    cases = [(n, dtype) for n in lengths for dtype in (torch.int64, torch.float64)]
    for case, (n, dtype) in enumerate(cases):
        data = [numbers(rank, n, dtype) for rank in range(size)]
        total = torch.stack(data).sum(0)
        first = of_rank[0][case]
        for rank in range(size):
            torchs, rings, naive, part, gathered, told = of_rank[rank][case]
            begin, end = part_bounds(n, size)[rank]
            for result in (torchs, rings[0], naive, gathered):
                torch.testing.assert_close(result, total, rtol=0, atol=0 if dtype == torch.int64 else 1e-12)
            assert torch.equal(part, gathered[begin:end])
            assert all(torch.equal(tensor, data[source]) for source, tensor in told.items())
            assert torch.equal(rings[0], rings[1])  # from run to run
            assert torch.equal(torchs, first[0]) and torch.equal(rings[0], first[1][0])  # on all ranks, bit for bit


def counted(comm, n):
    tensor = numbers(comm.rank, n, torch.float32)
    ring_reduce_scatter(tensor.clone(), comm)
    half = comm.counter.sent_bytes()
    ring_all_gather(tensor, comm)
    whole = comm.counter.sent_bytes()
    comm.counter.clear()
    naive_all_reduce(tensor, comm)
    return half, whole, comm.counter.sent_bytes()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_bytes_are_those_of_the_formula(size):
    n = 24 * 5
    of_rank = launch_threads(counted, size, n, counters=[CommCounter() for _ in range(size)])
    n_bytes = 4 * n
    assert [half for half, _, _ in of_rank] == [(size - 1) * n_bytes // size] * size
    assert [whole for _, whole, _ in of_rank] == [2 * (size - 1) * n_bytes // size] * size
    assert [naive for _, _, naive in of_rank] == [(size - 1) * n_bytes] + [n_bytes] * (size - 1)


def test_uneven_parts_cost_at_most_one_number_a_round_more():
    for size in (2, 3, 4, 8):
        of_rank = launch_threads(counted, size, 121, counters=[CommCounter() for _ in range(size)])
        for half, _, _ in of_rank:
            assert abs(half - (size - 1) * 4 * 121 / size) <= 4 * (size - 1)


def test_parts_cover_everything_in_order():
    for n in range(20):
        for size in range(1, 9):
            bounds = part_bounds(n, size)
            assert [place for bound in bounds for place in range(*bound)] == list(range(n))
            lengths = [end - begin for begin, end in bounds]
            assert max(lengths) - min(lengths) <= 1


def test_other_shapes():
    def other(comm):
        tensor = torch.full((3, 5), comm.rank + 1.0)
        ring_all_reduce(tensor, comm)
        with pytest.raises(ShapeError, match="one contiguous dimension"):
            ring_reduce_scatter(tensor, comm)
        with pytest.raises(ShapeError, match="one contiguous dimension"):
            ring_all_gather(torch.zeros(10)[::2], comm)
        return tensor

    assert all(torch.equal(tensor, torch.full((3, 5), 6.0)) for tensor in launch_threads(other, 3))


def one_round_short(tensor, comm):
    parts, target, source = parts_of(tensor, comm), (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 2):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    ring_all_gather(tensor, comm)


def always_sends_its_own(tensor, comm):
    parts, target, source = parts_of(tensor, comm), (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    own = [part.clone() for part in parts]
    for step in range(comm.size - 1):
        added = parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, own[(comm.rank - 1 - step) % comm.size], received, target, source)
        added += received
    ring_all_gather(tensor, comm)


def no_gather(tensor, comm):
    ring_reduce_scatter(tensor, comm)


@pytest.mark.parametrize("wrong", [one_round_short, always_sends_its_own, no_gather])
def test_the_comparison_notices_wrong_rings(wrong):
    def run(comm):
        tensor = numbers(comm.rank, 24, torch.float64)
        wrong(tensor, comm)
        return tensor

    total = sum(numbers(rank, 24, torch.float64) for rank in range(3))
    assert all((tensor - total).abs().max() > 0.1 for tensor in launch_threads(run, 3))
