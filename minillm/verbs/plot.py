"""`minillm plot`: the loss curves of one or several runs in one picture."""

from dataclasses import dataclass
from pathlib import Path

from minillm.config import setting
from minillm.errors import ConfigError

Y_AXES = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class Settings:
    """Draw the validation curves of runs side by side: against steps and against tokens seen."""

    runs: tuple[Path, ...] = setting((), "folders of runs", positional=True)
    y: str = setting("loss", "loss compares runs with one tokenizer; bits_per_byte compares any", choices=tuple(Y_AXES))
    out: Path = setting(Path("runs/plot.png"), "the picture")

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run is named; give at least one folder, for example: minillm plot runs/demo")


def run(settings: Settings) -> None:
    """Read every run's metrics.jsonl and draw."""
    from minillm.plots import Line, Panel, plot_panels
    from minillm.train.metrics import read_metrics
    from minillm.verbs.run_folder import RunFolder

    by_step, by_tokens = {}, {}
    for path in settings.runs:
        entries = read_metrics(RunFolder(path).metrics, "validation")
        entries = [entry for entry in entries if entry[settings.y] is not None]  # null: it was not a finite number
        figures = [entry[settings.y] for entry in entries]
        by_step[str(path)] = Line([entry["step"] for entry in entries], figures)
        by_tokens[str(path)] = Line([entry["tokens"] for entry in entries], figures)
    label = Y_AXES[settings.y]
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    panels = [Panel("validation", "step", label, by_step), Panel("validation", "tokens seen", label, by_tokens)]
    plot_panels(panels, settings.out)
    for name, line in by_step.items():
        if line.y:
            print(f"{name}: {label} {line.y[-1]:.4f} after {line.x[-1]} steps, best {min(line.y):.4f}")
        else:
            print(f"{name}: no validation yet")
    print(f"wrote {settings.out}")
