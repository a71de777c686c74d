"""Ranks as threads: errors as they are, no wait for ever, and what gloo would do (sums are in test_comm)."""

import threading
import time

import pytest
import torch

from minillm.errors import CommError, ConfigError, DataError
from minillm.parallel.threads import launch_threads


def test_the_same_objects_reach_all_ranks_and_results_come_in_order():
    shared = []
    results = launch_threads(lambda comm, box: box.append(comm.rank) or comm.rank, 4, shared)
    assert results == [0, 1, 2, 3] and sorted(shared) == results


def test_sums_are_the_same_bits_on_all_ranks_and_from_run_to_run():
    def run(comm):
        tensor = torch.randn(50, generator=torch.Generator().manual_seed(comm.rank))
        comm.all_reduce(tensor)
        return tensor

    first, again = launch_threads(run, 5), launch_threads(run, 5)
    assert all(torch.equal(tensor, first[0]) for tensor in (*first, *again))


def test_what_is_received_is_a_copy():
    def run(comm):
        tensor = torch.ones(2)
        if comm.rank == 0:
            pending = comm.send(tensor, 1, async_op=True)
            tensor.zero_()
            return pending.wait()
        comm.recv(tensor, 0)
        return tensor.tolist()

    assert launch_threads(run, 2)[1] == [1.0, 1.0]


def test_an_error_after_an_exchange_does_not_undo_it():
    """A rank that raises at once after it must not make the exchange fail on ranks that have not woken up yet."""
    for _ in range(100):
        told = []

        def share(comm, told=told):
            everything = comm.all_objects(comm.rank)
            if comm.rank == 1:
                raise ValueError("after the exchange")
            told.append(everything)

        with pytest.raises(ValueError, match="after the exchange"):
            launch_threads(share, 4)
        assert told == [[0, 1, 2, 3]] * 3


def test_an_error_of_one_rank_is_raised_and_wakes_the_others():
    def run(comm):
        if comm.rank == 2:
            raise DataError("no rows left")
        comm.barrier()

    began = time.monotonic()
    with pytest.raises(DataError, match="no rows left") as caught:
        launch_threads(run, 3)
    assert time.monotonic() - began < 2.0 and caught.value.__notes__ == ["raised on rank 2 of 3"]


@pytest.mark.parametrize("what", ["recv", "send", "new group"])
def test_an_error_wakes_who_waits_for_anything(what):
    def run(comm):
        if comm.rank == 1:
            time.sleep(0.1)
            raise DataError("gone")
        if what == "new group":
            comm.subgroup([[0, 1]], "pair").barrier()
        getattr(comm, what if what != "new group" else "recv")(torch.ones(1), 1)

    began = time.monotonic()
    with pytest.raises(DataError, match="gone"):
        launch_threads(run, 2)
    assert time.monotonic() - began < 2.0


def test_who_does_not_come_is_an_error_after_the_timeout():
    def run(comm):
        if comm.rank == 0:
            comm.all_reduce(torch.ones(3))

    with pytest.raises(CommError, match=r"rank 0 of 2 in world: all_reduce number 1 of \(3,\) float32 did not end"):
        launch_threads(run, 2, timeout_seconds=0.3)


@pytest.mark.parametrize("other", [torch.ones(4, dtype=torch.int32), torch.ones(5)])
def test_different_tensors_are_refused(other):
    def reduce(comm):
        comm.all_reduce(torch.ones(4) if comm.rank else other.clone())

    def pass_on(comm):
        comm.send(torch.ones(4), 0) if comm.rank else comm.recv(other.clone(), 1)

    with pytest.raises(CommError, match="the ranks came with"):
        launch_threads(reduce, 2)
    with pytest.raises(CommError, match="came, expected"):
        launch_threads(pass_on, 2)


def test_groups_do_not_hear_each_other():
    def run(comm):
        pair = comm.subgroup([[0, 1], [2, 3]], "pair")
        number = torch.tensor([float(comm.rank)])
        pair.all_reduce(number)
        if pair.rank == 0:
            sending = [group.send(torch.tensor([text]), 1, async_op=True) for group, text in ((comm, 7), (pair, 8))]
            if comm.rank == 2:
                sending = sending[1:]
            for pending in sending:
                pending.wait()
            return pair.ranks, number.item()
        received = torch.tensor([0])
        pair.recv(received, 0)
        heard = [received.item()]
        if comm.rank == 1:
            comm.recv(received, 0)
            heard.append(received.item())
            comm.recv(received, 2)  # what rank 2 sent to rank 1 of the world
        return pair.ranks, number.item(), heard

    results = launch_threads(run, 4)
    assert results[0] == ([0, 1], 1.0) and results[2] == ([2, 3], 5.0)
    assert results[1] == ([0, 1], 1.0, [8, 7]) and results[3] == ([2, 3], 5.0, [8])
    with pytest.raises(ConfigError, match="rank 1 is in 0 of the groups"):
        launch_threads(lambda comm: comm.subgroup([[0]], "some") and None, 2)


def test_gradients_can_be_taken_in_each():
    def run(comm):
        x = torch.tensor([2.0], requires_grad=True)
        (x**3).backward()
        comm.all_reduce(x.grad)
        return x.grad.item()

    assert launch_threads(run, 3) == [36.0] * 3


def test_no_thread_is_left():
    before = threading.active_count()
    launch_threads(lambda comm: comm.barrier(), 4)
    assert threading.active_count() == before
    with pytest.raises(ConfigError, match="world_size is 0"):
        launch_threads(lambda comm: None, 0)
