"""One call that adapts a model to a task: prepare, change from outside, train, score."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from minillm.adapt.adapted import Adapted, MethodConfig, adapt
from minillm.adapt.tasks import Task
from minillm.models.gpt import GPT
from minillm.runtime import generator
from minillm.train.hooks import Hook, ProgressLine, StepReport
from minillm.train.loop import LoopConfig, train
from minillm.train.optim import AdamW
from minillm.train.schedule import warmup_linear_to_zero

WARMUP_SHARE = 0.1  # of the steps


@dataclass(frozen=True)
class FineTuned:
    """What came of it.

    Attributes:
        adapted: the handle; `adapted.model` is the prepared model with the method on it.
        losses: of each step, in the loss's own unit per target.
        score: of the task, after training.
        seconds_per_step: mean without the first step, scoring not counted.
        n_trained: numbers trained.
        n_all: numbers in base and method together.
        stopped_by: the signal that ended the training early, or None.
    """

    adapted: Adapted
    losses: tuple[float, ...]
    score: float
    seconds_per_step: float
    n_trained: int
    n_all: int
    stopped_by: str | None = None


class Losses(Hook):
    """Keeps each step's loss and the time that steps took."""

    def __init__(self):
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def on_step(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.seconds.append(report.seconds)

    def seconds_per_step(self) -> float:
        """Mean over all steps but the first, which prepares things; that one if it is the only one."""
        if len(self.seconds) < 2:
            return sum(self.seconds)
        return (self.seconds[-1] - self.seconds[0]) / (len(self.seconds) - 1)


def fine_tune(
    model: GPT,
    task: Task,
    config: MethodConfig,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    weight_decay: float = 0.0,
    max_norm: float = 1.0,
    progress: bool = True,
    scored: bool = True,
    hooks: Iterable[Hook] = (),
) -> FineTuned:
    """Adapt a language model to a task with AdamW and a learning rate that rises for a tenth of the steps, then falls.

    Args:
        model: is changed in place; `result.adapted.remove()` gives it back, whatever the method.
        task: gives the batches; its own heads are added to those of `config`.
        config: of the method.
        steps: how many.
        learning_rate: the highest.
        seed: of new heads, of the method's initial numbers and of the order of the batches.
        weight_decay: of what is trained.
        max_norm: gradients are clipped to this norm.
        progress: whether a line with loss and tokens per second is drawn on standard error.
        scored: whether the task's score is wanted; without it is NaN.
        hooks: more listeners of the loop.

    Returns:
        what came of it.

    Raises:
        ConfigError: if the method does not fit the model.

    Example:
        >>> from minillm.adapt.lora import LoraConfig
        >>> from minillm.adapt.tasks import Domain
        >>> from minillm.models.gpt import GPTConfig
        >>> from minillm.tokenizers.bytes import ByteTokenizer
        >>> base = GPT(GPTConfig(vocab_size=257, max_seq_len=16, n_layers=1, n_heads=2, d_model=8), generator(0))
        >>> task = Domain(["so so so so"], ["so so"], ByteTokenizer(), seq_len=16)
        >>> result = fine_tune(base, task, LoraConfig(rank=1), steps=2, learning_rate=1e-3, progress=False)
        >>> result.n_trained, len(result.losses)
        (32, 2)
    """
    draw = generator(seed)
    prepared = task.prepare(model, draw)
    adapted = adapt(prepared, with_heads(config, task.heads), generator=draw)
    count = adapted.count()
    optimizer = AdamW(
        list(adapted.trainable_parameters().values()), learning_rate, (0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    seen = Losses()
    warmup = max(1, round(WARMUP_SHARE * steps))
    ended = train(
        prepared,
        optimizer,
        lambda step: task.batches(step, seed),
        LoopConfig(steps, max_norm=max_norm),
        schedule=lambda step: warmup_linear_to_zero(step, 1.0, min(warmup, steps - 1), steps),
        loss_sum=task.loss_sum,
        hooks=[seen, *([ProgressLine()] if progress else []), *hooks],
    )
    prepared.eval()
    score = task.score(prepared) if scored and not ended.stopped_by else math.nan
    return FineTuned(
        adapted, tuple(seen.losses), score, seen.seconds_per_step(), count.trainable, count.total, ended.stopped_by
    )


def with_heads(config: MethodConfig, heads: tuple[str, ...]) -> Any:
    """The config with these heads added, each once."""
    return replace(config, heads=tuple(dict.fromkeys((*config.heads, *heads))))
