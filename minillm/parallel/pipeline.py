"""The engine of a pipeline: each rank works through its list of actions, and sends on what the next stage needs.

Sends never wait: each has a tag of its own, so no order of sends and receives can lock two ranks. A receive is begun
one action ahead, so that it travels while this rank computes. Of what was sent on, only the node of autograd's graph is
kept, from which the way back will start; the numbers are freed.

Dimensions: B rows of the batch, T positions, C width, P ranks, M micro-batches, v chunks on each rank.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from minillm.errors import CommError, ConfigError, ShapeError
from minillm.parallel.comm import Comm, Pending
from minillm.parallel.rings import exchange
from minillm.parallel.schedule_checks import check_schedule
from minillm.parallel.schedules import BACKWARD, FORWARD, Action, Schedule
from minillm.parallel.stages import PipelineStage
from minillm.train.accumulation import LossSum
from minillm.train.loss import IGNORED, next_token_loss


class Stage(Protocol):
    """What the engine needs of a part of a model; `PipelineStage` is one."""

    dtype: torch.dtype

    def __call__(self, x: Tensor, chunk: int = 0) -> Tensor: ...
    def boundary_shape(self, n_rows: int, n_positions: int) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class PipelineReport:
    """What a step of the pipeline did, seen from one rank.

    Attributes:
        loss_sum: nats summed over the counted targets of this pipeline's batch, a scalar; the same on all ranks.
        n_tokens: number of those targets.
        peak_in_flight: most (micro-batch, chunk) pairs whose activations this rank kept at one time.
        seconds: from the first action to the end of the last send.
        idle_seconds: of these, waiting for other ranks.
    """

    loss_sum: Tensor
    n_tokens: int
    peak_in_flight: int
    seconds: float
    idle_seconds: float


@dataclass(frozen=True)
class Kept:
    """What stays of a forward pass beside what autograd keeps: the input, where backward begins (None if nothing
    before is to be learned), and room for the gradient that will come."""

    x: Tensor
    edge: GradientEdge | None
    letter: list[Tensor]


@dataclass
class Run:
    """Everything of one step.

    Attributes:
        kept: for each (micro-batch, chunk) on its way what the way back needs.
        arriving: receives that have begun, and their tensors.
        postman: a thread that waits for the ends of sends and lets go of what was sent: gloo knows of an end only when
            it is waited for.
        leaving: its sends.
    """

    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    loss_sum: LossSum
    factor: float
    kept: dict[tuple[int, int], Kept] = field(default_factory=dict)
    arriving: dict[Action, tuple[Pending, Tensor]] = field(default_factory=dict)
    postman: ThreadPoolExecutor | None = None
    leaving: list[Future] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    peak_in_flight: int = 0
    idle_seconds: float = 0.0


class Crossing(torch.autograd.Function):
    """The place where autograd's graph goes on in another process: backward begins with the gradient that came back.

    Forward (x, letter) gives a scalar that says nothing; by the time of the way back, `letter` holds one tensor like x.
    (`torch.autograd.backward` with a gradient would do, but the first call imports for half a second, on every rank.)
    """

    @staticmethod
    def forward(ctx, x: Tensor, letter: list[Tensor]) -> Tensor:
        ctx.letter = letter
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor, None]:
        return ctx.letter.pop(), None


class PipelineEngine:
    """Runs a schedule on this rank's part of a model.

    Args:
        stage: this rank's part.
        comm: the ranks of the pipeline, P of them, in the order of the stages.
        schedule: for P ranks; what the others do is in it too, so that it can be checked.
        autocast: makes the context for forward passes, for example `Precision.autocast`.

    Raises:
        ConfigError: if the schedule is for another number of ranks, or ranks could not work through it.

    Example:
        >>> from minillm.models.gpt import GPT, GPTConfig
        >>> from minillm.parallel.schedules import make_schedule
        >>> from minillm.parallel.threads import launch_threads
        >>> config = GPTConfig(vocab_size=8, max_seq_len=4, n_layers=2, n_heads=2, d_model=4)
        >>> token_ids = torch.zeros(6, 4, dtype=torch.int64)
        >>> def train(comm, name):
        ...     stage = PipelineStage(GPT(config), comm.rank, comm.size)
        ...     report = PipelineEngine(stage, comm, make_schedule(name, comm.size, 6)).step(token_ids, token_ids)
        ...     return report.n_tokens, report.peak_in_flight
        >>> launch_threads(train, 2, "gpipe"), launch_threads(train, 2, "1f1b")
        ([(24, 6), (24, 6)], [(24, 2), (24, 1)])
    """

    def __init__(
        self,
        stage: Stage,
        comm: Comm,
        schedule: Schedule,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        if schedule.n_ranks != comm.size:
            raise ConfigError(f"a schedule for {schedule.n_ranks} ranks in a pipeline of {comm.size}; make one for it")
        check_schedule(schedule)
        self.stage, self.comm, self.schedule, self.autocast = stage, comm, schedule, autocast
        self.actions = schedule.actions[comm.rank]

    def step(
        self,
        inputs: Tensor,
        targets: Tensor,
        loss_sum: LossSum = next_token_loss,
        n_tokens: int = 0,
        scale: float = 1.0,
    ) -> PipelineReport:
        """Add the gradient of the batch's mean loss to the parameters' `.grad`; all ranks call it with the same batch.

        Args:
            inputs: (B, T) token ids; the first stage reads them, the others their shape.
            targets: (B, T) token ids, -100 is not counted; the last stage reads them.
            loss_sum: (model, inputs, targets) of one micro-batch -> loss summed over its counted targets.
            n_tokens: by what sums are divided: the counted targets of the *global* batch where other pipelines have
                other rows of it; 0 means those of this one.
            scale: factor on the gradients (loss scaling), not on the loss returned.

        Returns:
            what was done; the loss is known on all ranks.

        Raises:
            ShapeError: if there are fewer rows than micro-batches.
            CommError: if the ranks come with different batches, or one does not send what another waits for.
        """
        own_tokens = self.check_batch(inputs, targets)
        n_parts = self.schedule.n_microbatches
        factor = scale / (n_tokens or max(own_tokens, 1))
        run = Run(inputs.tensor_split(n_parts), targets.tensor_split(n_parts), loss_sum, factor)
        seconds = self.work(run, self.actions)
        loss = self.share_loss(run, inputs.device)
        return PipelineReport(loss, own_tokens, run.peak_in_flight, seconds, run.idle_seconds)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor, loss_sum: LossSum = next_token_loss) -> PipelineReport:
        """The loss alone: all micro-batches forward, nothing kept, no gradient; arguments as those of `step`."""
        own_tokens = self.check_batch(inputs, targets)
        n_parts = self.schedule.n_microbatches
        run = Run(inputs.tensor_split(n_parts), targets.tensor_split(n_parts), loss_sum, 1.0)
        seconds = self.work(run, [action for action in self.actions if action.kind == FORWARD])
        loss = self.share_loss(run, inputs.device)
        return PipelineReport(loss, own_tokens, run.peak_in_flight, seconds, run.idle_seconds)

    def work(self, run: Run, actions: Sequence[Action]) -> float:
        """Do one action after another, each with the receive of the next one begun; returns the seconds it took."""
        start = time.perf_counter()
        run.postman = ThreadPoolExecutor(1, "pipeline-sends")
        try:
            for action, following in zip(actions, [*actions[1:], None], strict=True):
                self.begin_receive(run, action)
                self.begin_receive(run, following)
                self.forward(run, action) if action.kind == FORWARD else self.backward(run, action)
            self.wait_for(run, [sent.result for sent in run.leaving])
        finally:
            run.postman.shutdown(cancel_futures=True)
        return time.perf_counter() - start

    def check_batch(self, inputs: Tensor, targets: Tensor) -> int:
        """The number of counted targets, after asking all ranks whether they have the same batch.

        Raises:
            ShapeError, CommError: as `step`.
        """
        n_parts = self.schedule.n_microbatches
        if inputs.shape != targets.shape or inputs.dim() != 2 or len(inputs) < n_parts:
            raise ShapeError(
                f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} in {n_parts} micro-batches: expected "
                f"one shape (B, T) with {n_parts} rows or more"
            )
        n_tokens = int((targets != IGNORED).sum())
        if self.comm.size == 1:
            return n_tokens
        mine = torch.tensor([*inputs.shape, n_tokens, n_parts], device=self.comm.device)
        everyones = torch.empty(self.comm.size, len(mine), dtype=mine.dtype, device=self.comm.device)
        self.comm.all_gather(everyones, mine[None])
        if (everyones != mine).any():
            raise CommError(
                "the stages of a pipeline came with different batches: (rows, positions, counted targets, "
                f"micro-batches) are {everyones.tolist()} on ranks {self.comm.ranks}; give all stages the same rows"
            )
        return n_tokens

    def forward(self, run: Run, action: Action) -> None:
        """One micro-batch forward through one chunk; on to the next stage, or to the loss."""
        stage = self.schedule.stage(self.comm.rank, action.chunk)
        is_kept = torch.is_grad_enabled()
        x = run.inputs[action.microbatch] if stage == 0 else self.received(run, action).requires_grad_(is_kept)
        letter: list[Tensor] = []
        with self.autocast():
            if stage == self.schedule.n_stages - 1:
                end = run.factor * self.loss(run, action, x)
            else:
                output = self.stage(x, action.chunk).to(self.stage.dtype)
                end = Crossing.apply(output, letter)
                self.send(run, output.detach(), action, stage + 1)
        if is_kept:
            edge = get_gradient_edge(end) if end.requires_grad else None
            run.kept[action.microbatch, action.chunk] = Kept(x, edge, letter)
            run.peak_in_flight = max(run.peak_in_flight, len(run.kept))

    def loss(self, run: Run, action: Action, x: Tensor) -> Tensor:
        """The last stage and the summed loss of its micro-batch, which is noted."""
        rest = (lambda x: self.stage(x, action.chunk)) if self.schedule.n_stages > 1 else self.stage
        loss = run.loss_sum(rest, x, run.targets[action.microbatch])
        run.losses.append(loss.detach())
        return loss

    def backward(self, run: Run, action: Action) -> None:
        """One micro-batch backward through one chunk; the gradient of its input goes to the stage before."""
        stage = self.schedule.stage(self.comm.rank, action.chunk)
        kept = run.kept.pop((action.microbatch, action.chunk))
        if stage < self.schedule.n_stages - 1:
            kept.letter.append(self.received(run, action))
        if kept.edge is not None:
            torch.autograd.backward(kept.edge)
        if stage > 0:
            self.send(run, kept.x.grad, action, stage - 1)

    def begin_receive(self, run: Run, action: Action | None) -> None:
        """Be ready for what an action needs from another rank, if it needs anything and that has not been done."""
        if action is None or action in run.arriving:
            return
        stage = self.schedule.stage(self.comm.rank, action.chunk)
        other = stage - 1 if action.kind == FORWARD else stage + 1
        if not 0 <= other < self.schedule.n_stages:
            return
        shape = self.stage.boundary_shape(*run.inputs[action.microbatch].shape)
        tensor = torch.empty(shape, dtype=self.stage.dtype, device=run.inputs[0].device)
        source, _ = self.schedule.place(other)
        pending = self.comm.recv(tensor, source, self.tag(action.kind, action.microbatch, stage), async_op=True)
        run.arriving[action] = pending, tensor

    def received(self, run: Run, action: Action) -> Tensor:
        """What the action needs, as soon as it is here."""
        pending, tensor = run.arriving.pop(action)
        self.wait_for(run, [pending.wait])
        return tensor

    def send(self, run: Run, tensor: Tensor, action: Action, target_stage: int) -> None:
        """Send the result of an action to a neighbouring stage, and go on."""
        tensor = tensor.contiguous()
        target, _ = self.schedule.place(target_stage)
        tag = self.tag(action.kind, action.microbatch, target_stage)
        pending = self.comm.send(tensor, target, tag, async_op=True)
        run.leaving.append(run.postman.submit(wait_for_send, pending, tensor))

    def tag(self, kind: str, microbatch: int, stage: int) -> int:
        """A number of its own for what `stage` is to receive."""
        return 2 * (stage * self.schedule.n_microbatches + microbatch) + (kind == BACKWARD)

    def wait_for(self, run: Run, ends: Sequence[Callable[[], object]]) -> None:
        """Wait, and note how long."""
        start = time.perf_counter()
        for wait in ends:
            wait()
        run.idle_seconds += time.perf_counter() - start

    def share_loss(self, run: Run, device: torch.device) -> Tensor:
        """The sum of all micro-batches' losses, which the last stage knows, on all ranks; float64."""
        loss = torch.zeros((), dtype=torch.float64, device=device)
        if run.losses:
            loss += torch.stack(run.losses).sum()
        if self.comm.size > 1:
            self.comm.broadcast(loss, source=self.comm.size - 1)
        return loss


def wait_for_send(pending: Pending, tensor: Tensor) -> None:
    """Wait for the end of a send; until then the tensor must live."""
    pending.wait()


def sync_tied_gradients(stage: PipelineStage, comm: Comm) -> None:
    """Add up the gradients of the two copies of a tied table, so that both ranks make the same update.

    Called by all ranks of the pipeline after `PipelineEngine.step`; does something on the first and the last one, if
    the model ties embedding and head. In the global norm the table counts once: `counts_once`.

    Args:
        stage: this rank's part.
        comm: the ranks of the pipeline.
    """
    if not stage.config.tie_embeddings or comm.size == 1 or comm.rank not in (0, comm.size - 1):
        return
    table = stage.token_embedding.weight
    if table.grad is None:
        table.grad = torch.zeros_like(table)
    other, incoming = comm.size - 1 - comm.rank, torch.empty_like(table.grad)
    exchange(comm, table.grad, incoming, other, other)
    table.grad += incoming


def counts_once(stage: PipelineStage, name: str) -> bool:
    """Whether this rank counts a parameter in a sum over the pipeline: all but the copy of a tied table."""
    return not (stage.holds_tied_copy and name == "token_embedding.weight")
