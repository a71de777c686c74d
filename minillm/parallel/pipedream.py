"""PipeDream: 1F1B that never stops to wait. Each rank updates its weights after each backward pass, alone.

Nothing is idle after the first P - 1 micro-batches. The price: a micro-batch meets older weights on the early ranks
than on the late ones, and by the time its gradient comes back they have moved on. This module says by how much
(`weights_seen`, `staleness`) and trains that way in one process, so that the effect can be measured without a cluster.

Dimensions: P ranks, B batch.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from minillm.errors import ConfigError
from minillm.parallel.schedules import FORWARD, Action, make_schedule
from minillm.parallel.simulator import simulate

MODES = ("stashed", "unstashed", "vertical", "flushed")


def weights_seen(microbatch: int, rank: int, n_ranks: int, mode: str = "stashed") -> int:
    """How many updates the weights have had with which a micro-batch goes forward on a rank.

    With 1F1B rank r takes P - r micro-batches forward before the first backward pass, and then one for each. So
    micro-batch t meets the weights as they were P - 1 - r updates ago, and the first ones meet the initial weights.

    Args:
        microbatch: its number t, from 0 on, without end.
        rank: r, 0 to P - 1.
        n_ranks: P.
        mode: "stashed" or "unstashed": what the rank has at that moment. "vertical": on all ranks as on rank 0, the
            oldest of all, so that a micro-batch sees one model. "flushed": no micro-batch begins before the one before
            has ended; then it sees all t updates.

    Returns:
        Between 0 and t.

    Raises:
        ConfigError: if the mode is unknown.

    Source:
        Harlap et al. 2018, arXiv:1806.03377, section 3.3 (weight stashing, vertical sync).

    Example:
        >>> [[weights_seen(t, rank, n_ranks=3) for t in range(5)] for rank in range(3)]
        [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
        >>> weights_seen(4, rank=2, n_ranks=3, mode="vertical")
        2
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; known are {', '.join(MODES)}")
    delay = {"vertical": n_ranks - 1, "flushed": 0}.get(mode, n_ranks - 1 - rank)
    return max(0, microbatch - delay)


def staleness(rank: int, n_ranks: int, mode: str = "stashed") -> int:
    """How many updates behind the gradient of a micro-batch is when it is applied, once the pipeline is full.

    Example:
        >>> [staleness(rank, n_ranks=4) for rank in range(4)]
        [3, 2, 1, 0]
    """
    return n_ranks - weights_seen(n_ranks, rank, n_ranks, mode)


def stashed_versions(rank: int, n_ranks: int, mode: str = "stashed") -> int:
    """How many versions of its weights a rank has at one time, the newest included.

    Example:
        >>> [stashed_versions(rank, n_ranks=4) for rank in range(4)]
        [4, 3, 2, 1]
    """
    return 1 if mode == "unstashed" else staleness(rank, n_ranks, mode) + 1


def largest_stable_rate(curvature: float, delay: int) -> float:
    """Below which learning rate gradient descent on a parabola converges when its gradients are old.

    w(t + 1) = w(t) - rate * curvature * w(t - delay) has solutions z^t with z^(d+1) - z^d + rate * curvature = 0. They
    shrink until a pair of roots reaches the circle |z| = 1, at the angle pi / (2 d + 1).

    Args:
        curvature: second derivative, above 0.
        delay: updates d that the gradient is behind, at least 0.

    Returns:
        2 sin(pi / (2 (2 d + 1))) / curvature: 2 without delay, about pi / (2 d + 1) with much.

    Example:
        >>> [round(largest_stable_rate(1.0, delay), 3) for delay in (0, 1, 3, 7)]
        [2.0, 1.0, 0.445, 0.209]
    """
    if curvature <= 0 or delay < 0:
        raise ConfigError(f"curvature {curvature}, delay {delay}: expected one above 0, and one of 0 or more")
    return 2 * math.sin(math.pi / (2 * (2 * delay + 1))) / curvature


Weights = dict[str, Tensor]


@dataclass
class Passage:
    """What a rank keeps of a micro-batch between its ways forward and back."""

    x: Tensor
    output: Tensor
    weights: Weights
    n_updates: int


@dataclass
class AsynchronousStage:
    """One rank of PipeDream: a part of the model, its own optimizer, and the versions of its weights still in use.

    Args:
        module: the part; a call with the output of the part before gives the input of the next.
        optimizer: over this part's parameters alone.
        mode: see `weights_seen`.
        n_older: so many versions before the newest may still be asked for.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    mode: str
    n_older: int = 0
    n_updates: int = 0
    versions: dict[int, Weights] = field(default_factory=dict)
    passages: dict[int, Passage] = field(default_factory=dict)

    def forward(self, microbatch: int, x: Tensor, n_updates: int) -> Tensor:
        """Take a micro-batch forward with the weights after `n_updates` updates, and keep what the way back needs."""
        if self.n_updates not in self.versions:
            self.versions[self.n_updates] = copies(self.module)
        weights = {name: weight.requires_grad_() for name, weight in self.versions[n_updates].items()}
        if x.is_floating_point():
            x = x.detach().requires_grad_()
        with self.reading():
            output = functional_call(self.module, weights, (x,))
        self.passages[microbatch] = Passage(x, output, weights, n_updates)
        return output

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """Take a micro-batch back, update this rank's weights at once, and forget versions that nobody needs."""
        passage = self.passages.pop(microbatch)
        passage.output.backward(gradient)
        for name, parameter in self.module.named_parameters():
            parameter.grad, passage.weights[name].grad = passage.weights[name].grad, None
        self.optimizer.step()
        self.n_updates += 1
        oldest = min([self.n_updates - self.n_older, *(kept.n_updates for kept in self.passages.values())])
        self.versions = {number: kept for number, kept in self.versions.items() if number >= oldest}
        return passage.x.grad

    def reading(self) -> AbstractContextManager:
        """Without a stash the way back multiplies with whatever the weights are by then."""
        kept_as = {"unstashed": self.keep_name}.get(self.mode, lambda tensor: tensor)
        return saved_tensors_hooks(kept_as, lambda kept: kept() if callable(kept) else kept)

    def keep_name(self, tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        """In place of a weight, or a view of one, the way to its newest value."""
        for name, weight in self.versions[self.n_updates].items():
            if weight.data_ptr() == tensor.data_ptr() and weight.numel() == tensor.numel():
                size, stride = tensor.size(), tensor.stride()
                return lambda: self.module.get_parameter(name).detach().as_strided(size, stride)
        return tensor


def copies(module: nn.Module) -> Weights:
    """The parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def train_asynchronously(
    modules: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    mode: str = "stashed",
) -> list[float]:
    """Train as PipeDream does, all ranks in this process, in an order in which they could have worked.

    Args:
        modules: the P parts of a model, in order; changed in place.
        optimizers: one for each part, over its parameters.
        batches: (input, target), each goes through the pipeline as one micro-batch and makes one update on each rank.
        loss: (output of the last part, target) -> a scalar.
        mode: "stashed": each rank goes back with the weights with which it went forward. "unstashed": back with what
            it has by then, which gives no gradient of anything. "vertical": all ranks take the version that rank 0 had.
            "flushed": one after another, as one machine would.

    Returns:
        The loss of each batch with the weights that it met.

    Raises:
        ConfigError: if the mode is unknown or there is not one optimizer for each part.

    Source:
        Harlap et al. 2018, arXiv:1806.03377, sections 3.2 and 3.3; Narayanan et al. 2019, "PipeDream: Generalized
        pipeline parallelism for DNN training", SOSP.
    """
    if mode not in MODES or len(modules) != len(optimizers):
        raise ConfigError(
            f"mode {mode!r}, {len(modules)} parts, {len(optimizers)} optimizers: expected one of {', '.join(MODES)} "
            "and one optimizer for each part"
        )
    stages = [
        AsynchronousStage(module, optimizer, mode, n_older=rank if mode == "vertical" else 0)
        for rank, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True))
    ]
    losses: list[float] = []
    arriving: dict[tuple[int, Action], Tensor | None] = {}
    for rank, action in working_order(len(stages), len(batches), mode):
        stage, number = stages[rank], action.microbatch
        if action.kind == FORWARD:
            x = batches[number][0] if rank == 0 else arriving.pop((rank, action))
            output = stage.forward(number, x, weights_seen(number, rank, len(stages), mode))
            if rank == len(stages) - 1:
                stage.passages[number].output = loss(output, batches[number][1])
                losses.append(stage.passages[number].output.item())
                output = None
            arriving[rank + 1, action] = output
        else:
            arriving[rank - 1, action] = stage.backward(number, arriving.pop((rank, action), None))
    return losses


def working_order(n_ranks: int, n_microbatches: int, mode: str) -> list[tuple[int, Action]]:
    """(rank, action) of all, each after what it needs: 1F1B over the whole stream, or one micro-batch after another."""
    schedule = make_schedule("naive" if mode == "flushed" else "1f1b", n_ranks, n_microbatches)
    return [(event.rank, event.action) for event in simulate(schedule).events]
