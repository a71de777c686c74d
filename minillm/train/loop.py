"""The training loop: a function with hooks. Any step of it can be its last; what was saved goes on bit by bit.

Dimensions: B rows of a step's batch, T sequence length.
"""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError, ConfigError, ShapeError, TrainingError
from minillm.runtime import AnyGenerator, default_generators, generator_states, restore_generators
from minillm.train.accumulation import LossSum, accumulate_gradients
from minillm.train.checkpoint import CheckpointFolder, RunParts
from minillm.train.clip import clip_gradients
from minillm.train.guards import reason_to_skip, spike_threshold
from minillm.train.hooks import Hook, StepReport
from minillm.train.loss import IGNORED, next_token_loss
from minillm.train.precision import Precision
from minillm.train.signals import StopSignals

Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]
Schedule = Callable[[int], float | Sequence[float]]
Validate = Callable[[Callable[[], bool]], Mapping[str, float] | None]
Sample = Callable[[Callable[[], bool]], str | None]
Gradients = Callable[["Session", np.ndarray, np.ndarray], tuple[float, float, int]]


@dataclass(frozen=True)
class LoopConfig:
    """How long, how careful and how talkative a run is.

    Args:
        n_steps: steps in all, those before a resume included.
        precision: "fp32", "bf16" or "fp16".
        n_microbatches: parts of the batch that go through the model one after another; the result is that of the whole.
        max_norm: gradients are clipped to this norm; infinity only measures.
        log_every: steps per line of training metrics.
        validate_every: steps from validation to validation; 0: at the end only.
        sample_every: steps from sample to sample; 0: at the end only.
        checkpoint_every: steps from checkpoint to checkpoint; 0: at the end (or at a signal) only.
        max_bad_steps: so many steps in a row whose loss or gradient is not finite end the run.
        spike_sigmas: a loss this many standard deviations above the recent mean skips the step; 0: never.
        spike_window: how many losses are recent; half of them must be there before the rule applies.

    Raises:
        ConfigError: if a count is out of range.
    """

    n_steps: int
    precision: str = "fp32"
    n_microbatches: int = 1
    max_norm: float = 1.0
    log_every: int = 10
    validate_every: int = 0
    sample_every: int = 0
    checkpoint_every: int = 0
    max_bad_steps: int = 3
    spike_sigmas: float = 6.0
    spike_window: int = 128

    def __post_init__(self):
        for name in ("n_microbatches", "log_every", "max_bad_steps", "spike_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("n_steps", "validate_every", "sample_every", "checkpoint_every", "spike_sigmas"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")


@dataclass
class Progress:
    """What a run knows beside model, optimizer and generators; all of it is in each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    n_skipped: int = 0
    n_bad_in_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    unlogged_losses: list[float] = field(default_factory=list)
    unlogged_tokens: int = 0
    unlogged_seconds: float = 0.0
    pending: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult:
    """How a session ended.

    Attributes:
        step: steps made in all.
        tokens: counted targets in all.
        loss: nats per token of the last step made; NaN if none was.
        n_skipped: steps that left the weights alone.
        validation: what the last validation gave, or an empty dictionary.
        stopped_by: "SIGTERM", "SIGINT" or None; `signals.exit_code` turns it into the program's exit code.
        checkpoint: the newest checkpoint, or None.
    """

    step: int
    tokens: int
    loss: float
    n_skipped: int
    validation: dict[str, float]
    stopped_by: str | None
    checkpoint: Path | None


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    config: LoopConfig,
    *,
    schedule: Schedule | None = None,
    loss_sum: LossSum = next_token_loss,
    validate: Validate | None = None,
    sample: Sample | None = None,
    hooks: Iterable[Hook] = (),
    checkpoints: CheckpointFolder | None = None,
    resume: bool = False,
    run_config: Mapping[str, object] | None = None,
    tokenizer_fingerprint: str | None = None,
    generators: Mapping[str, AnyGenerator] | None = None,
    stop: StopSignals | None = None,
    gradients: Gradients | None = None,
) -> TrainResult:
    """Train a model, or go on with training it, until `n_steps` or until a signal asks to stop.

    One step: learning rate, batch, forward and backward, clipping, guards, update. Then come the lines of metrics,
    validation, sample and checkpoint that are due. A signal lets the step, or the saving, end; then the state is saved
    (an interrupted validation is made again after the resume).

    Args:
        model: on the device where it is to be trained; the loop puts it into training mode.
        optimizer: over the model's parameters. The rates that it has now are the base rates of `schedule`; on a resume
            those of the checkpoint are.
        batches: step (0 is the first) -> inputs and targets, both (B, T) int64; a pure function of the step.
        config: counts and limits.
        schedule: step -> a factor on each group's base rate, or one rate per group; None keeps the base rates.
        loss_sum: (model, inputs, targets) -> summed loss; targets of -100 are not counted.
        validate: called with a function that says whether to stop; gives named figures, or None if it stopped.
        sample: called likewise; gives a text or None. Let it draw from a generator of its own.
        hooks: listeners, called in this order.
        checkpoints: where to save; None saves nothing.
        resume: go on from the newest valid checkpoint, if there is one.
        run_config: what made model and data (JSON); a checkpoint with another one is refused.
        tokenizer_fingerprint: likewise.
        generators: whatever else draws random numbers, by name; PyTorch's own are always saved.
        stop: signals that are being watched already; None watches SIGTERM and SIGINT during the call.
        gradients: what stands in the place of `gradients_of_batch` where one process has not the whole batch or model;
            it returns the same numbers on every rank. `minillm.parallel.training` has one.

    Returns:
        how it ended.

    Raises:
        TrainingError: after `max_bad_steps` steps in a row that are not finite; the last good checkpoint is named.
        CheckpointError: if a resume is impossible or the last save fails.
        ConfigError: if there are checkpoints already and `resume` is False.
    """
    precision = Precision(config.precision)
    generators = {**default_generators(), **(generators or {})}
    parts = RunParts(model, optimizer, run_config or {}, tokenizer_fingerprint, generators, precision.scaler)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    progress = first_progress(checkpoints, parts, resume)
    session = Session(parts, batches, config, schedule, loss_sum, precision, list(hooks), checkpoints, progress)
    session.gradients = gradients or gradients_of_batch
    session.duties = {kind: work for kind, work in (("validation", validate), ("sample", sample)) if work is not None}
    if stop is not None:
        return run_session(session, stop)
    with StopSignals() as stop:
        return run_session(session, stop)


@dataclass
class Session:
    """Everything one call of `train` works with."""

    parts: RunParts
    batches: Batches
    config: LoopConfig
    schedule: Schedule | None
    loss_sum: LossSum
    precision: Precision
    hooks: list[Hook]
    checkpoints: CheckpointFolder | None
    progress: Progress
    duties: dict[str, Callable] = field(default_factory=dict)
    gradients: Gradients | None = None
    saved_step: int = -1
    loss: float = math.nan
    validation: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.parameters = [p for group in self.parts.optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.saved_step = self.progress.step if self.progress.step else -1

    def tell(self, event: str, *arguments: object) -> None:
        """Call that method of each hook."""
        for hook in self.hooks:
            getattr(hook, event)(*arguments)

    def newest_checkpoint(self) -> Path | None:
        """Path of the last checkpoint saved or resumed from."""
        return self.checkpoints.path(self.saved_step) if self.checkpoints is not None and self.saved_step >= 0 else None


def first_progress(checkpoints: CheckpointFolder | None, parts: RunParts, resume: bool) -> Progress:
    """Where to begin: at a checkpoint if asked for and there, at 0 otherwise."""
    if checkpoints is None:
        return Progress()
    if not resume:
        if steps := checkpoints.steps():
            raise ConfigError(
                f"{checkpoints.folder} has checkpoints up to step {steps[-1]}; resume, or choose another folder"
            )
        return Progress()
    state = checkpoints.resume(parts)
    if state is None:
        return Progress()
    try:
        return Progress(**state["extra"]["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoints.folder}: not saved by this training loop ({error})") from error


def run_session(session: Session, stop: StopSignals) -> TrainResult:
    """Steps and what is due after them, until the end or a signal; then save."""
    progress, config = session.progress, session.config
    try:
        session.tell("on_start", progress.step, config.n_steps, tuple(progress.pending))
        session.parts.model.train()
        do_duties(session, stop)
        while progress.step < config.n_steps and not stop.requested():
            make_step(session)
            after_step(session, stop)
        save(session)
    finally:
        session.tell("on_end")
    return TrainResult(
        progress.step, progress.tokens, session.loss, progress.n_skipped, session.validation, stop.received,
        session.newest_checkpoint(),
    )  # fmt: skip


def make_step(session: Session) -> None:
    """One step of training, or one skipped, and its report."""
    progress, config, optimizer = session.progress, session.config, session.parts.optimizer
    start = time.perf_counter()
    set_learning_rates(optimizer, session.schedule, progress.step)
    inputs, targets = session.batches(progress.step)
    loss, norm, n_tokens = session.gradients(session, inputs, targets)
    threshold = spike_threshold(progress.recent_losses, config.spike_sigmas, (config.spike_window + 1) // 2)
    reason = reason_to_skip(loss, norm, threshold)
    if reason is None:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    session.loss = loss
    seconds = time.perf_counter() - start
    progress.step += 1
    progress.tokens += n_tokens
    progress.seconds += seconds
    progress.unlogged_tokens += n_tokens
    progress.unlogged_seconds += seconds
    if math.isfinite(loss):
        progress.unlogged_losses.append(loss)
        progress.recent_losses.append(min(loss, threshold))  # a spike must not hide the next one
        del progress.recent_losses[: -config.spike_window]
    rate = optimizer.param_groups[0]["lr"]
    session.tell("on_step", StepReport(progress.step, loss, norm, rate, progress.tokens, progress.seconds, reason))
    log_if_due(session, norm, rate)
    judge(session, reason, loss, norm)


def set_learning_rates(optimizer: Optimizer, schedule: Schedule | None, step: int) -> None:
    """Give each group its rate for this step."""
    if schedule is None:
        return
    rates = schedule(step)
    groups = optimizer.param_groups
    if isinstance(rates, int | float):
        rates = [rates * group["initial_lr"] for group in groups]
    if len(rates) != len(groups):
        raise ConfigError(f"the schedule gives {len(rates)} learning rates for {len(groups)} groups of parameters")
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def gradients_of_batch(session: Session, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, int]:
    """Gradients of the mean loss over the whole batch, clipped, in the parameters' `.grad`.

    Returns:
        loss in nats per token, gradient norm before clipping, number of counted targets.
    """
    n_parts, scaler = session.config.n_microbatches, session.precision.scaler
    n_tokens = check_batch(inputs, targets, n_parts)

    def loss_sum(model: nn.Module, part_inputs: Tensor, part_targets: Tensor) -> Tensor:
        with session.precision.autocast(session.device.type):
            return session.loss_sum(model, part_inputs, part_targets)

    loss = accumulate_gradients(
        session.parts.model,
        to_device(inputs, session.device),
        to_device(targets, session.device),
        n_parts,
        loss_sum,
        scale=1.0 if scaler is None else scaler.scale,
    )
    if scaler is not None:
        scaler.unscale(session.parameters)
    norm = clip_gradients(session.parameters, session.config.max_norm)
    loss, norm = torch.stack([loss, norm.to(loss)]).tolist()  # the step's one wait for the device
    return loss, norm, n_tokens


def check_batch(inputs: np.ndarray, targets: np.ndarray, n_parts: int) -> int:
    """The number of counted targets; refuse batches that cannot be split or count nothing."""
    if inputs.shape != targets.shape or len(inputs) < n_parts:
        raise ShapeError(
            f"inputs {inputs.shape} and targets {targets.shape}: expected one shape (B, T) with B >= {n_parts} "
            "(n_microbatches)"
        )
    n_tokens = int(np.count_nonzero(targets != IGNORED))
    if n_tokens == 0:
        raise ShapeError(f"a batch of shape {targets.shape} has no target that counts (all are {IGNORED})")
    return n_tokens


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An int64 tensor there; a copy, so that a memory map may be read-only."""
    return torch.tensor(np.asarray(array), dtype=torch.int64).to(device, non_blocking=True)


def judge(session: Session, reason: str | None, loss: float, norm: float) -> None:
    """Book-keeping of a step made or skipped; too many bad ones in a row end the run."""
    progress, scaler = session.progress, session.precision.scaler
    overflow = scaler is not None and reason is not None and "gradient norm" in reason
    if scaler is not None and (reason is None or overflow):
        scaler.update(overflow)
    if reason is None:
        progress.n_bad_in_row = 0
        return
    progress.n_skipped += 1
    batch = progress.step - 1
    entry = {"kind": "skip", "step": progress.step, "reason": reason, "batch": batch, "loss": loss, "grad_norm": norm}
    session.tell("on_log", entry)
    if reason == "loss spike" or (overflow and scaler.scale >= 1):
        return
    progress.n_bad_in_row += 1
    if progress.n_bad_in_row >= session.config.max_bad_steps:
        raise TrainingError(
            f"stopped at step {progress.step}: {reason}, {progress.n_bad_in_row} bad steps in a row, batch {batch} the "
            f"last. Last good checkpoint: {session.newest_checkpoint() or 'none'}. Lower the learning rate, or look at "
            "the batch"
        )


def log_if_due(session: Session, norm: float, rate: float) -> None:
    """A line of training metrics: the mean loss since the last line."""
    progress, config = session.progress, session.config
    if progress.step % config.log_every and progress.step != config.n_steps:
        return
    losses = progress.unlogged_losses
    entry = {
        "kind": "train",
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": sum(losses) / len(losses) if losses else math.nan,
        "lr": rate,
        "grad_norm": norm,
        "tokens_per_second": progress.unlogged_tokens / max(progress.unlogged_seconds, 1e-9),
        "seconds": progress.seconds,
    }
    progress.unlogged_losses, progress.unlogged_tokens, progress.unlogged_seconds = [], 0, 0.0
    session.tell("on_log", entry)


def after_step(session: Session, stop: StopSignals) -> None:
    """Validation, sample and checkpoint, where due."""
    progress, config = session.progress, session.config
    every = {"validation": config.validate_every, "sample": config.sample_every}
    progress.pending = [kind for kind in session.duties if is_due(progress.step, every[kind], config.n_steps)]
    do_duties(session, stop)
    if is_due(progress.step, config.checkpoint_every, math.inf) and not stop.requested():
        save_or_warn(session)


def is_due(step: int, every: int, last_step: float) -> bool:
    """At each multiple of `every` and at the last step."""
    return step == last_step or (every > 0 and step % every == 0)


def do_duties(session: Session, stop: StopSignals) -> None:
    """What is pending, in order; one that a signal interrupted stays pending and leaves no trace in the generators."""
    progress, generators = session.progress, session.parts.generators
    while progress.pending and not stop.requested():
        kind = progress.pending[0]
        if kind in session.duties:
            before = generator_states(generators)
            result = session.duties[kind](stop.requested)
            session.parts.model.train()
            if result is None and stop.requested():
                restore_generators(generators, before)
                return
            log_duty(session, kind, result)
        progress.pending = progress.pending[1:]


def log_duty(session: Session, kind: str, result: Mapping[str, float] | str | None) -> None:
    """A line of metrics with the figures of a validation or the text of a sample."""
    if result is None:
        return
    figures = {"text": result} if isinstance(result, str) else dict(result)
    if kind == "validation":
        session.validation = figures
    session.tell("on_log", {"kind": kind, "step": session.progress.step, "tokens": session.progress.tokens, **figures})


def save(session: Session) -> None:
    """A checkpoint of the present step, unless there is one."""
    progress = session.progress
    if session.checkpoints is None or session.saved_step == progress.step or progress.step == 0:
        return
    path = session.checkpoints.save(progress.step, session.parts, {"progress": asdict(progress)})
    session.saved_step = progress.step
    session.tell("on_checkpoint", progress.step, path)


def save_or_warn(session: Session) -> None:
    """In the middle of a run a full disk is a warning: room may be made before the next checkpoint is due."""
    try:
        save(session)
    except CheckpointError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        warnings.warn(f"training goes on without this checkpoint: {error}", stacklevel=2)


def validation_loss(
    model: nn.Module,
    batches: Batches,
    n_batches: int,
    should_stop: Callable[[], bool],
    loss_sum: LossSum = next_token_loss,
    precision: Precision | None = None,
) -> dict[str, float] | None:
    """Mean loss over the first `n_batches` of `batches`, without gradients and with dropout off.

    Args:
        model: left in the mode it was in.
        batches: as in `train`.
        n_batches: 1 or more.
        should_stop: asked before each batch.
        loss_sum: as in `train`.
        precision: number format; fp32 if None.

    Returns:
        {"loss": nats per token}, or None if it was asked to stop.
    """
    if n_batches < 1:
        raise ConfigError(f"n_batches is {n_batches}, expected 1 or more")
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    was_training, total, n_tokens = model.training, 0.0, 0
    model.eval()
    try:
        with torch.inference_mode(), (precision or Precision()).autocast(device.type):
            for number in range(n_batches):
                if should_stop():
                    return None
                inputs, targets = batches(number)
                n_tokens += check_batch(inputs, targets, 1)
                total += loss_sum(model, to_device(inputs, device), to_device(targets, device)).item()
    finally:
        model.train(was_training)
    return {"loss": total / n_tokens}
