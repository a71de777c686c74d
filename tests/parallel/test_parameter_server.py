"""A server and its workers against one process, against a simulation by the book, and by counting."""

import itertools
import math
import time

import pytest
import torch
from torch import nn

from minillm.errors import ConfigError
from minillm.parallel.comm import CommCounter
from minillm.parallel.launch import launch
from minillm.parallel.parameter_server import Clocks, ParameterServer, arrival_order, work
from minillm.parallel.threads import launch_threads

N_STEPS = 6


def model(seed):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(seed)  # torch's own is shared by all threads
    for parameter in module.parameters():
        parameter.data.uniform_(-0.5, 0.5, generator=generator)
    return module


def loss_of(module, worker, step):
    """Each worker has rows of its own."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + worker), dtype=torch.float64)
    return (module(x) - x[:, :2]).square().mean()


def flat(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def run(comm, mode="sync", max_lead=0, order=None, optimizer=torch.optim.AdamW, pauses=None):
    """What the server logs, the weights at the end, what was counted."""
    module, log = model(comm.rank), None
    if comm.rank == 0:
        server = ParameterServer(module, optimizer(module.parameters(), lr=0.05), comm, mode, max_lead)
        log = server.serve(N_STEPS, order)
    else:

        def backward(module, step):
            if pauses is not None:
                time.sleep(pauses[comm.rank - 1])
            loss_of(module, comm.rank, step).backward()

        work(module, comm, backward, N_STEPS)
    return log, flat(module), comm.counter


def alone(optimizer=torch.optim.AdamW, n_workers=3):
    module = model(0)
    stepper = optimizer(module.parameters(), lr=0.05)
    for step in range(N_STEPS):
        stepper.zero_grad()
        torch.stack([loss_of(module, worker, step) for worker in range(1, n_workers + 1)]).mean().backward()
        stepper.step()
    return flat(module)


def by_the_book(order, max_lead, optimizer=torch.optim.AdamW):
    """One process: every worker remembers the weights that it was sent."""
    module = model(0)
    stepper = optimizer(module.parameters(), lr=0.05)
    workers = sorted(set(order))
    copies = {worker: (0, [p.detach().clone() for p in module.parameters()]) for worker in workers}
    done, held, staleness = dict.fromkeys(workers, 0), [], []
    for version, worker in enumerate(order):
        seen, weights = copies[worker]
        staleness.append(version - seen)
        other = model(0)
        for parameter, weight in zip(other.parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        loss_of(other, worker, done[worker]).backward()
        for parameter, source in zip(module.parameters(), other.parameters(), strict=True):
            parameter.grad = source.grad
        stepper.step()
        done[worker] += 1
        held.append(worker)
        for waiting in list(held):
            if done[waiting] - min(done.values()) <= max_lead:
                held.remove(waiting)
                copies[waiting] = (version + 1, [p.detach().clone() for p in module.parameters()])
    return flat(module), staleness


def on_ranks(world_size, *args, **settings):
    return launch(run, world_size, *args, show_output=False, timeout_seconds=20, limit_seconds=60, **settings)


def test_synchronous_equals_one_process():
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        expected = alone(optimizer)  # first: what torch imports at the first step is then there before the fork
        results = on_ranks(4, "sync", 0, None, optimizer)
        for _, weights, _ in results:
            assert (weights - expected).abs().max() < 1e-12
        assert [update.staleness for update in results[0][0]] == [0] * N_STEPS


@pytest.mark.parametrize("max_lead", [0, 1, 2, math.inf])
def test_each_gradient_as_it_comes(max_lead):
    order = arrival_order([1.0, 1.3, 3.1], N_STEPS, max_lead)
    mode = "async" if math.isinf(max_lead) else "bounded"
    results = launch_threads(run, 4, mode, 0 if math.isinf(max_lead) else max_lead, order)
    expected, staleness = by_the_book(order, max_lead)
    for _, weights, _ in results:
        assert (weights - expected).abs().max() < 1e-12
    log = results[0][0]
    assert [update.staleness for update in log] == staleness
    assert [update.worker for update in log] == order
    assert max(update.lead for update in log) == min(max_lead, max(update.lead for update in log))
    assert (expected - alone()).abs().max() > 1e-3, "one gradient at a time is another algorithm"


def test_processes_as_they_come():
    """No order given: two fast workers and a slow one; the bound holds whatever the clock says."""
    results = on_ranks(4, "bounded", 1, None, torch.optim.SGD, [0.0, 0.0, 0.02])
    log = results[0][0]
    assert sorted(update.worker for update in log) == sorted([1, 2, 3] * N_STEPS)
    assert max(update.lead for update in log) <= 1
    order = [update.worker for update in log]
    expected, staleness = by_the_book(order, 1, torch.optim.SGD)
    assert [update.staleness for update in log] == staleness
    assert all((weights - expected).abs().max() < 1e-12 for _, weights, _ in results)


def test_staleness_is_bounded_by_the_lead():
    """While one worker is at work, each other one can make at most 2 s + 1 steps, whatever the speeds."""
    for max_lead in (0, 1, 2):
        worst = 0
        for seconds in itertools.product((1.0, 1.7, 8.0), repeat=3):
            order = arrival_order(seconds, 12, max_lead)
            _, staleness = staleness_of(order, max_lead)
            worst = max(worst, *staleness)
        assert worst <= 2 * (2 * max_lead + 1)
        assert max_lead == 0 or worst > max_lead  # updates of others are not steps of one's own


def staleness_of(order, max_lead):
    workers = sorted(set(order))
    clocks, seen, staleness = Clocks(workers, max_lead), dict.fromkeys(workers, 0), []
    for version, worker in enumerate(order):
        staleness.append(version - seen[worker])
        for released in clocks.finish_step(worker):
            seen[released] = version + 1
    return clocks, staleness


def test_bytes_through_the_server():
    """Each worker sends its gradient and is sent the weights: 2 N numbers for each of its steps."""
    n_bytes = flat(model(0)).nbytes
    for mode in ("sync", "async"):
        results = launch_threads(run, 4, mode, counters=[CommCounter() for _ in range(4)])
        for _, _, counter in results[1:]:
            assert counter.n_bytes("send") == counter.n_bytes("recv") == N_STEPS * n_bytes
        server = results[0][2]
        assert server.n_bytes("send") + server.n_bytes("recv") == 3 * 2 * N_STEPS * n_bytes
        assert server.count("broadcast") == 2


def test_orders_of_arrival():
    assert arrival_order([1.0], 3) == [1, 1, 1]
    assert arrival_order([1.0, 1.0], 2) == [1, 2, 1, 2]
    assert arrival_order([1.0, 10.0], 3) == [1, 1, 1, 2, 2, 2]
    assert arrival_order([1.0, 10.0], 3, max_lead=1) == [1, 1, 2, 1, 2, 2]
    assert arrival_order([], 3) == []


def test_what_cannot_be_served():
    def serve(comm, mode, max_lead, order):
        module = model(0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        ParameterServer(module, optimizer, comm, mode, max_lead).serve(1, order)

    refused = ((2, "late", 0, "mode"), (1, "sync", 0, "serve"), (2, "bounded", -1, "max_lead"))
    for world_size, mode, max_lead, says in refused:
        with pytest.raises(ConfigError, match=says):
            launch_threads(serve, world_size, mode, max_lead, None)
    for order, says in (([1], "times"), ([1, 2] * 7, "times"), ([1] * 12, "cannot be next")):
        with pytest.raises(ConfigError, match=says):
            launch_threads(run, 3, "bounded", 0, order)
