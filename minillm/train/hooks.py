"""What may listen to a training run: the file of metrics, the line in the terminal, or whatever a caller adds."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from minillm.train.metrics import MetricsWriter


@dataclass(frozen=True)
class StepReport:
    """One step as hooks see it.

    Attributes:
        step: number of steps made, this one included.
        loss: nats per token of this step.
        gradient_norm: before clipping.
        learning_rate: of the optimizer's first group.
        tokens: counted targets since the start of the run.
        seconds: spent in steps since the start of the run, earlier sessions included.
        skipped: why the weights were left alone, or None.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    skipped: str | None


class Hook:
    """Does nothing at each point of a run; a subclass fills in what it needs."""

    def on_start(self, step: int, n_steps: int, pending: Collection[str]) -> None:
        """Before the first step of this session; `step` were made before, `pending` kinds of lines come again."""

    def on_step(self, report: StepReport) -> None:
        """After each step."""

    def on_log(self, entry: dict) -> None:
        """For each line of the metrics: kind "train", "validation", "sample" or "skip", step and figures."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint is on the disk."""

    def on_end(self) -> None:
        """Once, however the session ends."""


class MetricsLog(Hook):
    """Writes the run's metrics as JSON lines; after a resume the file is that of an uninterrupted run.

    Args:
        path: the file, such as RUN/metrics.jsonl.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.writer: MetricsWriter | None = None

    def on_start(self, step: int, n_steps: int, pending: Collection[str]) -> None:
        self.writer = MetricsWriter(self.path, after_step=step if step else None, pending=pending)

    def on_log(self, entry: dict) -> None:
        self.writer.write(**entry)

    def on_end(self) -> None:
        if self.writer is not None:
            self.writer.close()


class ProgressLine(Hook):
    """One line in the terminal: steps, loss, tokens per second, time left; validation results and samples above it.

    Args:
        file: where to; standard error if None.
    """

    def __init__(self, file: TextIO | None = None):
        self.file = file
        self.line: tqdm | None = None
        self.first: StepReport | None = None

    def on_start(self, step: int, n_steps: int, pending: Collection[str]) -> None:
        out = sys.stderr if self.file is None else self.file
        self.line = tqdm(total=n_steps, initial=step, unit="step", file=out, dynamic_ncols=True, mininterval=0.2)

    def on_step(self, report: StepReport) -> None:
        self.first = self.first or report
        seconds = report.seconds - self.first.seconds
        rate = f"{(report.tokens - self.first.tokens) / seconds:,.0f} tokens/s" if seconds > 0 else ""
        self.line.set_postfix_str(f"loss {report.loss:.3f} {rate}", refresh=False)
        self.line.update()

    def on_log(self, entry: dict) -> None:
        if entry["kind"] == "train":
            return
        figures = [f"{key} {value:.4f}" for key, value in entry.items() if isinstance(value, float)]
        texts = [value for key, value in entry.items() if isinstance(value, str) and key != "kind"]
        self.line.write(f"step {entry['step']}: {entry['kind']} " + " ".join(figures + texts), file=self.line.fp)

    def on_end(self) -> None:
        if self.line is not None:
            self.line.close()
