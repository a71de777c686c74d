"""A parameter server: one rank keeps the weights and steps, the others send it gradients and are sent weights.

Synchronous, it waits for all workers and is data parallel with another route. Asynchronous, it steps with each
gradient as it comes: nobody waits, but a gradient was computed with weights that others have changed since. Bounded, a
worker may be only so many steps ahead of the slowest one.

Dimensions: P ranks, of which rank 0 is the server and W = P - 1 are workers; N numbers in the model.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import ConfigError
from minillm.parallel.comm import Comm

MODES = ("sync", "async", "bounded")


@dataclass(frozen=True)
class Update:
    """One step of the server.

    Attributes:
        worker: rank whose gradient it was; 0 for the mean over all workers.
        step: which step of that worker, from 0.
        lead: how many steps the worker was ahead of the slowest one when it computed the gradient.
        staleness: how many updates had been made to the weights since the worker got them.
    """

    worker: int
    step: int
    lead: int
    staleness: int


class Clocks:
    """How many steps each worker has made, and who must wait.

    Args:
        workers: their ranks.
        max_lead: how many steps a worker may be ahead of the slowest when it begins the next one; infinity: no limit.

    Example:
        >>> clocks = Clocks([1, 2], max_lead=1)
        >>> clocks.finish_step(1), clocks.finish_step(1), clocks.finish_step(2)
        ([1], [], [1, 2])
    """

    def __init__(self, workers: Sequence[int], max_lead: float):
        self.n_steps = dict.fromkeys(workers, 0)
        self.max_lead = max_lead
        self.waiting: list[int] = []

    def lead(self, worker: int) -> int:
        """Steps that this worker is ahead of the slowest."""
        return self.n_steps[worker] - min(self.n_steps.values())

    def finish_step(self, worker: int) -> list[int]:
        """A worker has made a step: who may begin the next one now?

        Returns:
            ranks of workers that wait and whose lead is at most `max_lead`, in the order in which they came; they wait
            no longer. It may be this worker, others that it has kept waiting, or nobody.
        """
        self.n_steps[worker] += 1
        self.waiting.append(worker)
        released = [waiting for waiting in self.waiting if self.lead(waiting) <= self.max_lead]
        self.waiting = [waiting for waiting in self.waiting if waiting not in released]
        return released


def arrival_order(seconds: Sequence[float], n_steps: int, max_lead: float = math.inf) -> list[int]:
    """In which order gradients reach the server if a step takes each worker a fixed time and messages none.

    Args:
        seconds: of one step of each worker.
        n_steps: steps of each worker.
        max_lead: as in `Clocks`.

    Returns:
        W * n_steps ranks; worker i has rank i + 1. Of two that come at the same time the lower rank is first.

    Example:
        >>> arrival_order([1.0, 2.5], n_steps=3)
        [1, 1, 2, 1, 2, 2]
        >>> arrival_order([1.0, 2.5], n_steps=3, max_lead=0)
        [1, 2, 1, 2, 1, 2]
    """
    clocks = Clocks(range(1, len(seconds) + 1), max_lead)
    arrivals = [(duration, worker) for worker, duration in enumerate(seconds, start=1)]
    heapq.heapify(arrivals)
    order = []
    while arrivals:
        now, worker = heapq.heappop(arrivals)
        order.append(worker)
        for released in clocks.finish_step(worker):
            if clocks.n_steps[released] < n_steps:
                heapq.heappush(arrivals, (now + seconds[released - 1], released))
    return order


class ParameterServer:
    """Rank 0: the weights and the optimizer.

    Args:
        module: its parameters are the weights; one dtype.
        optimizer: over them.
        comm: rank 0 serves, all others `work`.
        mode: "sync": one step with the mean of all workers' gradients; "async": one step with each gradient as it
            comes; "bounded": the same, but who is too far ahead must wait for new weights.
        max_lead: for "bounded", see `Clocks`; 0 is closest to "sync".

    Raises:
        ConfigError: if the mode is unknown, this is not rank 0, or there is no worker.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, comm: Comm, mode: str = "sync", max_lead: int = 0):
        if mode not in MODES:
            raise ConfigError(f"mode {mode!r} is unknown; known are {', '.join(MODES)}")
        if comm.rank != 0 or comm.size < 2:
            raise ConfigError(f"rank {comm.rank} of {comm.size} cannot serve: expected rank 0 of 2 or more")
        if max_lead < 0:
            raise ConfigError(f"max_lead is {max_lead}, expected 0 or more")
        self.optimizer, self.comm, self.mode = optimizer, comm, mode
        self.parameters = list(module.parameters())
        self.max_lead = max_lead if mode == "bounded" else math.inf
        self.workers = list(range(1, comm.size))

    def serve(self, n_steps: int, order: Sequence[int] | None = None) -> list[Update]:
        """Serve every worker for `n_steps` of its steps.

        Args:
            n_steps: the same for all workers.
            order: ranks in the order in which gradients are to be taken, for runs that can be repeated; as
                `arrival_order` makes it. None takes them as they come.

        Returns:
            the updates made, in order.

        Raises:
            ConfigError: if a worker is to be next that has not been sent new weights, or if the order is too short.
        """
        self.comm.broadcast(flat_weights(self.parameters))
        updates = self.serve_together(n_steps) if self.mode == "sync" else self.serve_each(n_steps, order)
        self.comm.broadcast(flat_weights(self.parameters))
        return updates

    def serve_together(self, n_steps: int) -> list[Update]:
        """Wait for all gradients, step with their mean, send new weights to all."""
        total = torch.zeros_like(flat_weights(self.parameters))
        received = torch.empty_like(total)
        for _ in range(n_steps):
            total.zero_()
            for worker in self.workers:
                self.comm.recv(received, worker)
                total += received
            self.step(total / len(self.workers))
            for worker in self.workers:
                self.comm.send(flat_weights(self.parameters), worker)
        return [Update(0, step, 0, 0) for step in range(n_steps)]

    def serve_each(self, n_steps: int, order: Sequence[int] | None) -> list[Update]:
        """Step with each gradient, and send new weights to whoever may go on."""
        clocks, seen_version = Clocks(self.workers, self.max_lead), dict.fromkeys(self.workers, 0)
        received, updates = torch.empty_like(flat_weights(self.parameters)), []
        if order is not None and len(order) != n_steps * len(self.workers):
            raise ConfigError(f"an order of {len(order)}, expected {len(self.workers)} workers times {n_steps} steps")
        for version in range(n_steps * len(self.workers)):
            worker = self.next_gradient(received, None if order is None else order[version], clocks, n_steps)
            staleness = version - seen_version[worker]
            updates.append(Update(worker, clocks.n_steps[worker], clocks.lead(worker), staleness))
            self.step(received)
            for released in clocks.finish_step(worker):
                self.comm.send(flat_weights(self.parameters), released)
                seen_version[released] = version + 1
        return updates

    def next_gradient(self, received: Tensor, worker: int | None, clocks: Clocks, n_steps: int) -> int:
        """Receive from one worker, or from any."""
        if worker is None:
            return self.comm.recv_any(received)
        if worker in clocks.waiting or clocks.n_steps.get(worker, n_steps) >= n_steps:
            raise ConfigError(f"rank {worker} cannot be next: it waits for weights, is done, or is no worker")
        self.comm.recv(received, worker)
        return worker

    @torch.no_grad()
    def step(self, flat_gradient: Tensor) -> None:
        """Let the optimizer step with this gradient."""
        parts = flat_gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view(parameter.shape)
        self.optimizer.step()


def work(module: nn.Module, comm: Comm, backward: Callable[[nn.Module, int], object], n_steps: int) -> None:
    """The life of a worker: get weights, compute a gradient, send it, get weights; at the end, the last ones of all.

    Args:
        module: of the same structure as the server's; its weights are overwritten.
        comm: the server is rank 0.
        backward: (module, step) -> leaves gradients in the parameters; a parameter without one counts as 0.
        n_steps: as many as the server serves.
    """
    parameters = list(module.parameters())
    weights = flat_weights(parameters)
    comm.broadcast(weights)
    for step in range(n_steps):
        set_weights(parameters, weights)
        module.zero_grad()
        backward(module, step)
        comm.send(flat_gradients(parameters), 0)
        comm.recv(weights, 0)
    comm.broadcast(weights)
    set_weights(parameters, weights)


def flat_weights(parameters: Sequence[nn.Parameter]) -> Tensor:
    """(N,) a copy of all numbers."""
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def flat_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """(N,) a copy of all gradients; a missing one is 0."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.detach().flatten() for gradient in gradients])


@torch.no_grad()
def set_weights(parameters: Sequence[nn.Parameter], weights: Tensor) -> None:
    """Write (N,) numbers back into the parameters."""
    parts = weights.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view(parameter.shape))
