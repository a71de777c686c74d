"""A `Comm` over gloo and among threads: sums worked out here, bytes by formula, errors that name rank and cause."""

import os
import signal
import threading
import time

import pytest
import torch

from minillm.errors import CommError, ConfigError, ShapeError
from minillm.parallel.comm import Comm
from minillm.parallel.launch import launch
from minillm.parallel.processes import TorchBackend
from minillm.parallel.threads import launch_threads
from minillm.parallel.traffic import CommCounter, SlowLink

STARTS = {"processes": launch, "threads": launch_threads}


def start(name, function, size, *args, **settings):
    quiet = {"show_output": False} if name == "processes" else {}
    return STARTS[name](function, size, *args, timeout_seconds=settings.pop("timeout_seconds", 20), **quiet, **settings)


def part(rank, n, dtype=torch.float64):
    whole = torch.randn(n, generator=torch.Generator().manual_seed(rank + 1), dtype=torch.float64)
    return (10 * whole).to(dtype)


def all_operations(comm):
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64):
        for op in ("sum", "max", "min"):
            tensor = part(comm.rank, 5, dtype)
            comm.all_reduce(tensor, op)
            found[op, dtype] = tensor
    found["mean"] = part(comm.rank, 5)
    comm.all_reduce(found["mean"], "mean")
    found["scattered"] = torch.empty(2, 2, dtype=torch.float64)
    comm.reduce_scatter(found["scattered"], part(comm.rank, 4 * comm.size).view(2 * comm.size, 2), "mean")
    found["gathered"] = torch.empty(comm.size, 3, dtype=torch.float64)
    comm.all_gather(found["gathered"], part(comm.rank, 3))
    found["exchanged"] = torch.empty(2 * comm.size, dtype=torch.float64)
    comm.all_to_all(found["exchanged"], part(comm.rank, 2 * comm.size))
    found["told"] = part(comm.rank, 4)
    comm.broadcast(found["told"], source=1)
    comm.barrier()
    found["objects"] = comm.all_objects({"rank": comm.rank})
    found["number"] = comm.all_numbers(comm.rank + 0.5)
    if comm.rank == 0:
        sending = [comm.send(part(0, 3), 1, async_op=True), comm.send(part(0, 3) + 1, 1, tag=7, async_op=True)]
        for pending in sending:
            pending.wait()
    elif comm.rank == 1:
        later, first = torch.empty(3, dtype=torch.float64), torch.empty(3, dtype=torch.float64)
        comm.recv(later, 0, tag=7)  # what has another tag waits
        comm.recv(first, 0)
        found["received"] = first, later
    return found


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("size", [2, 3])
def test_every_operation(name, size):
    of_rank = start(name, all_operations, size)
    for rank, found in enumerate(of_rank):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64):
            data = torch.stack([part(other, 5, dtype) for other in range(size)])
            tolerance = {torch.bfloat16: 0.2, torch.float32: 1e-5}.get(dtype, 1e-12)
            torch.testing.assert_close(found["sum", dtype], data.sum(0), rtol=0, atol=tolerance)
            assert torch.equal(found["max", dtype], data.amax(0)) and torch.equal(found["min", dtype], data.amin(0))
            assert torch.equal(found["sum", dtype], of_rank[0]["sum", dtype])  # bit for bit the same everywhere
        mean = torch.stack([part(other, 5) for other in range(size)]).mean(0)
        torch.testing.assert_close(found["mean"], mean, rtol=0, atol=1e-12)
        whole = torch.stack([part(other, 4 * size) for other in range(size)]).mean(0)
        mine = whole[4 * rank : 4 * rank + 4].view(2, 2)
        torch.testing.assert_close(found["scattered"], mine, rtol=0, atol=1e-12)
        assert torch.equal(found["gathered"], torch.stack([part(other, 3) for other in range(size)]))
        sent = [part(other, 2 * size)[2 * rank : 2 * rank + 2] for other in range(size)]
        assert torch.equal(found["exchanged"], torch.cat(sent))
        assert torch.equal(found["told"], part(1, 4))
        assert found["objects"] == [{"rank": other} for other in range(size)]
        assert found["number"] == sum(other + 0.5 for other in range(size))
    first, later = of_rank[1]["received"]
    assert torch.equal(first, part(0, 3)) and torch.equal(later, part(0, 3) + 1)


def test_threads_and_processes_add_to_the_same_numbers():
    results = [start(name, all_operations, 2)[0] for name in STARTS]
    for key in results[0]:
        if isinstance(results[0][key], torch.Tensor):
            torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-12, atol=0)


def one_of_each(comm):
    n = 6 * comm.size
    tensor, small = torch.ones(n), torch.ones(6)
    comm.all_reduce(tensor)
    comm.reduce_scatter(small, tensor)
    comm.all_gather(tensor, small)
    comm.all_to_all(tensor.clone(), tensor)
    comm.broadcast(small)
    comm.barrier()
    if comm.rank == 0:
        comm.send(small, 1)
    elif comm.rank == 1:
        comm.recv(small, 0)
    return comm.counter


@pytest.mark.parametrize("name", STARTS)
def test_bytes_as_the_formulas_say(name):
    for size in (2, 4):
        whole = 4 * 6 * size
        share = (size - 1) * whole // size
        counters = start(name, one_of_each, size, counters=[CommCounter() for _ in range(size)])
        for rank, counter in enumerate(counters):
            assert counter.sent_bytes("all_reduce") == 2 * share
            for operation in ("reduce_scatter", "all_gather", "all_to_all"):
                assert counter.sent_bytes(operation) == share and counter.n_bytes(operation) == whole
            assert counter.count("barrier") == 1 and counter.sent_bytes("barrier") == 0
            assert counter.sent_bytes("send") == (24 if rank == 0 else 0)
            assert counter.sent_bytes("recv") == 0 and counter.count("recv") == (rank == 1)
            assert counter.count() == counter.count(group="world") and counter.count(group="other") == 0


@pytest.mark.parametrize("name", STARTS)
def test_a_send_ends_when_it_is_received(name):
    def all_send_first(comm):
        comm.send(torch.ones(1), 1 - comm.rank)
        comm.recv(torch.ones(1), 1 - comm.rank)

    with pytest.raises(CommError, match=r"send to rank \d of \(1,\) float32"):
        start(name, all_send_first, 2, timeout_seconds=0.4)


@pytest.mark.parametrize("name", STARTS)
def test_a_ring_may_exchange_all_at_once_and_anybody_may_come_first(name):
    def run(comm):
        received = torch.empty(3, dtype=torch.float64)
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        comm.exchange(part(comm.rank, 3), after, received, before)
        sent, heard = comm.counter.sent_bytes("send"), []
        if comm.rank:
            comm.send(torch.tensor([comm.rank]), 0)
        else:
            number = torch.tensor([0])
            heard = sorted((comm.recv_any(number), number.item()) for _ in range(comm.size - 1))
        return received, sent, heard

    for size in (2, 3):
        found = start(name, run, size, counters=[CommCounter() for _ in range(size)])
        for rank, (received, sent, _) in enumerate(found):
            assert torch.equal(received, part((rank - 1) % size, 3)) and sent == 24
        assert found[0][2] == [(rank, rank) for rank in range(1, size)]


def in_the_background(comm):
    tensor = torch.full((1000,), comm.rank + 1.0)
    pending = comm.all_reduce(tensor, "mean", async_op=True)
    pending.wait()
    pending.wait()  # does nothing more: the mean is not taken twice
    return pending.is_done(), tensor[0].item()


@pytest.mark.parametrize("name", STARTS)
def test_wait_may_be_called_again(name):
    assert start(name, in_the_background, 2) == [(True, 1.5)] * 2


def test_a_slow_link_takes_its_time_and_leaves_the_processor_free():
    def run(comm):
        tensor = torch.zeros(1000)  # 4000 bytes on the wire of each of 2 ranks: 0.1 s
        began = time.perf_counter()
        pending = comm.all_reduce(tensor, async_op=True)
        started, done = time.perf_counter() - began, pending.is_done()
        pending.wait()
        return started, done, time.perf_counter() - began, pending.is_done()

    links = [SlowLink(bytes_per_second=40_000) for _ in range(2)]
    for started, early, ended, late in launch_threads(run, 2, links=links):
        assert started < 0.09 and not early and ended >= 0.1 and late


def over_the_slow_link(comm):
    """Rank 0 sends twice and goes on; when does rank 1 have each, and when does rank 0 know?"""
    tensors = [torch.full((1000,), 1.0), torch.full((1000,), 2.0)]  # 4000 bytes each: 0.1 s
    comm.barrier()
    began = time.perf_counter()
    if comm.rank == 0:
        sends = [comm.send(tensor, 1, tag, async_op=True) for tag, tensor in enumerate(tensors)]
        times = [time.perf_counter() - began]
        for pending in sends:
            pending.wait()
        return [*times, time.perf_counter() - began]
    times, received = [], torch.zeros(1000)
    for tag, tensor in enumerate(tensors):
        comm.recv(received, 0, tag)
        assert torch.equal(received, tensor)
        times.append(time.perf_counter() - began)
    return times


@pytest.mark.parametrize("name", STARTS)
def test_who_receives_over_a_slow_link_waits_for_the_wire(name):
    links = [SlowLink(bytes_per_second=40_000) for _ in range(2)]
    sender, receiver = start(name, over_the_slow_link, 2, links=links)
    assert sender[0] < 0.09 and sender[1] >= 0.2
    assert 0.05 <= receiver[0] < receiver[1] and receiver[1] >= 0.19


def test_a_link_must_move():
    for settings in ({"bytes_per_second": 0}, {"bytes_per_second": 1.0, "latency_seconds": -1}):
        with pytest.raises(ConfigError, match="a rate above 0"):
            SlowLink(**settings)


def refused(comm):
    wrong = [
        (ShapeError, "2 times as many numbers", lambda: comm.all_gather(torch.ones(5), torch.ones(2))),
        (ShapeError, "2 times as many numbers", lambda: comm.reduce_scatter(torch.ones(2), torch.ones(5))),
        (ShapeError, "one dtype", lambda: comm.all_gather(torch.ones(4), torch.ones(2).double())),
        (ShapeError, "a multiple of 2", lambda: comm.all_to_all(torch.ones(3), torch.ones(3))),
        (ShapeError, "not contiguous", lambda: comm.all_reduce(torch.ones(4, 4).T)),
        (ConfigError, "reduction 'product' is unknown", lambda: comm.all_reduce(torch.ones(2), "product")),
        (ConfigError, "a mean of torch.int64", lambda: comm.all_reduce(torch.ones(2, dtype=torch.int64), "mean")),
        (ConfigError, "rank 2 is not in world", lambda: comm.broadcast(torch.ones(2), 2)),
        (ConfigError, "rank -1 is not in world", lambda: comm.send(torch.ones(2), -1)),
    ]
    for kind, text, do in wrong:
        with pytest.raises(kind, match=text):
            do()
    tensor = torch.ones(2, requires_grad=True)  # sums of leaves that want gradients are no part of a graph
    comm.all_reduce(tensor, "mean")
    return tensor.tolist()


def test_bad_input_is_refused_before_anything_is_sent():
    assert launch_threads(refused, 2) == [[1.0, 1.0]] * 2
    assert launch(refused, 2, timeout_seconds=20, show_output=False) == [[1.0, 1.0]] * 2


def mismatched(comm, kind):
    tensors = {
        "dtype": [torch.ones(4), torch.ones(4, dtype=torch.int32)],
        "shape": [torch.ones(2, 3), torch.ones(3, 2)],
        "length": [torch.ones(4), torch.ones(5)],
    }
    with pytest.raises(CommError) as caught:
        if kind == "operation":
            comm.all_reduce(torch.ones(4)) if comm.rank else comm.broadcast(torch.ones(4))
        else:
            comm.all_reduce(tensors[kind][comm.rank])
    tensor = torch.ones(1)
    comm.all_reduce(tensor)  # nothing was sent: the group is as good as before
    return str(caught.value), tensor.item()


def test_checked_ranks_notice_what_gloo_does_not():
    def run(comm):
        return [mismatched(comm, kind) for kind in ("dtype", "shape", "length", "operation")]

    expected = [
        ("rank 0 with all_reduce of float32 (4,)", "rank 1 with all_reduce of int32 (4,)"),
        ("rank 0 with all_reduce of float32 (2, 3)", "rank 1 with all_reduce of float32 (3, 2)"),
        ("rank 0 with all_reduce of float32 (4,)", "rank 1 with all_reduce of float32 (5,)"),
        ("rank 0 with broadcast of float32 (4,)", "rank 1 with all_reduce of float32 (4,)"),
    ]
    for found in launch(run, 2, checked=True, timeout_seconds=20, show_output=False):
        for (message, after), texts in zip(found, expected, strict=True):
            assert all(text in message for text in texts) and after == 2.0


def test_gloo_alone_says_nothing_of_another_dtype():
    """The reason for `checked`: if this fails, gloo has learnt it."""

    def run(comm):
        tensor = torch.ones(4, dtype=torch.float32 if comm.rank == 0 else torch.int32)
        comm.all_reduce(tensor)
        return tensor[0].item()

    found = launch(run, 2, timeout_seconds=20, show_output=False)
    assert found != [2, 2]


def hang(comm, how):
    comm.all_reduce(torch.ones(1))
    if comm.rank == 1:
        comm.send(torch.ones(1), 0, async_op=True)  # is no collective, and must not be counted as one
        if how == "hangs":
            os.kill(os.getpid(), signal.SIGSTOP)
        return "left"
    if how == "never sends":
        comm.recv(torch.ones(1), 1, tag=5)
    comm.all_reduce(torch.ones(3, 2))
    return "came"


@pytest.mark.parametrize(
    ("how", "texts"),
    [
        ("hangs", ("all_reduce number 2 of (3, 2) float32", "rank 1 is not there (last seen in send to 0")),
        ("leaves", ("all_reduce number 2 of (3, 2) float32", "rank 1 is not there (ended")),
        ("never sends", ("recv from rank 1 of (1,) float32", "rank 1 is not there (ended")),
    ],
)
def test_who_waits_in_vain_names_the_rank_and_the_collective_within_seconds(monkeypatch, how, texts):
    monkeypatch.setattr("minillm.parallel.launch.GRACE_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(CommError) as caught:
        launch(hang, 2, how, timeout_seconds=0.7, show_output=False)
    assert time.monotonic() - began < 6.0
    for text in ("rank 0 of 2 in world", "did not end within 0.7 s", *texts):
        assert text in str(caught.value)


def go_on(comm):
    if comm.rank == 1:
        time.sleep(1.0)
        return None
    messages = []
    pending = comm.all_reduce(torch.ones(1), async_op=True)
    for do in (pending.wait, pending.wait, lambda: comm.all_reduce(torch.ones(1)), lambda: comm.all_objects(1)):
        with pytest.raises(CommError) as caught:
            do()
        messages.append(str(caught.value))
    return messages


@pytest.mark.slow
def test_a_group_that_has_failed_says_so_and_does_not_wait_again():
    began = time.monotonic()
    first, again, third, fourth = launch(go_on, 2, timeout_seconds=0.5, show_output=False)[0]
    assert time.monotonic() - began < 5.0
    assert "did not end within 0.5 s" in first and "all_reduce number 1" in again
    for message in (third, fourth):
        assert "the group has failed before" in message and "all_reduce number 1" in message


def test_many_sums_in_the_background_leave_nothing_behind():
    def run(comm):
        def memory():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def many(n):
            for _ in range(n):
                tensor = torch.zeros(50_000)  # 200 kB each
                comm.all_reduce(tensor, async_op=True).wait()

        many(20)
        before = memory()
        many(150)
        return memory() - before

    assert max(launch(run, 2, timeout_seconds=20, show_output=False)) < 10_000_000  # of 30 MB sent


def test_a_group_of_torchs_own_can_be_wrapped():
    def run(comm):
        other = Comm(TorchBackend(comm.group), name="mine")
        tensor = torch.ones(1)
        other.all_reduce(tensor)
        return tensor.item(), other.ranks

    assert launch(run, 2, timeout_seconds=20, show_output=False) == [(2.0, [0, 1])] * 2


@pytest.mark.slow
def test_a_rank_that_is_halted_inside_the_collective_is_named(monkeypatch):
    monkeypatch.setattr("minillm.parallel.launch.GRACE_SECONDS", 0.5)

    def work(comm):
        comm.barrier()
        if comm.rank == 1:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()  # while it waits for rank 0
        if comm.rank == 0:
            time.sleep(0.6)
        comm.all_reduce(torch.ones(2))

    with pytest.raises(CommError, match=r"rank 1 is not there \(last seen in all_reduce .*now halted by a signal"):
        launch(work, 3, timeout_seconds=1.2, show_output=False)
