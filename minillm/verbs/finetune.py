"""`minillm finetune`: adapt a trained model to a task, and keep only what changed."""

import sys
from dataclasses import dataclass
from pathlib import Path

from minillm.config import setting
from minillm.errors import ConfigError

DEFAULT_OUT = Path("runs")
METHOD_NAMES = (  # as in minillm.adapt.methods, which imports torch
    "full", "head", "last", "feed_forward", "bitfit", "lora", "qlora", "adapter", "pfeiffer", "prefix", "p_tuning_v2",
    "prompt", "p_tuning", "ia3", "intrinsic",
)  # fmt: skip
TASK_NAMES = ("sentiment", "domain", "records", "classes", "pairs")
NEED_DATA = ("classes", "pairs")
PEFT_HAS = ("lora", "prefix", "p_tuning_v2", "prompt", "p_tuning", "ia3")


@dataclass(frozen=True)
class Settings:
    """Adapt a trained model to a task by training a part of its numbers, or a few new ones; the base stays as it is.

    Three tasks are made by the project: sentiment (how somebody feels at the end of a story), records (sentences for a
    record of data) and domain (the project's prose). With --data the texts are your own: documents for domain, lines of
    label TAB text for classes, of source TAB target for pairs (or .jsonl with these keys).
    """

    method: str = setting("lora", "what is trained; minillm/adapt/methods.py says it in words", choices=METHOD_NAMES)
    base: Path = setting(Path("runs/demo"), "folder of the run that is adapted")
    hf: Path | None = setting(None, "instead of a run: a decoder's folder on this disk in the Hugging Face layout")
    task: str = setting("sentiment", "what is learned", choices=TASK_NAMES)
    data: Path | None = setting(None, "a file of your own, for domain, classes or pairs")
    steps: int = setting(100, "optimizer steps")
    batch_size: int = setting(16, "texts per step")
    learning_rate: float = setting(0.0, "highest learning rate of Adam; 0 takes the method's usual one, as measured")
    seed: int = setting(0, "for new numbers, the order of the texts and which of your own are set aside")
    rank: int = setting(4, "columns of LoRA's matrices")
    alpha: float = setting(0.0, "strength of LoRA's branches; 0 takes twice the rank")
    targets: tuple[str, ...] = setting((), "layers for lora, qlora and ia3, by name, ending or pattern; else its usual")
    width: int = setting(8, "waist of adapters")
    n_virtual: int = setting(8, "vectors in front, for prefixes and prompts")
    d_hidden: int = setting(64, "width of the network that makes them, where one does")
    n_layers: int = setting(1, "last layers that are trained, for last")
    dimension: int = setting(500, "numbers, for intrinsic")
    max_seq_len: int = setting(64, "rows of the domain's text, in tokens; texts of classes are cut to fit the model")
    validation_fraction: float = setting(0.1, "share of your own texts set aside for the score")
    out: Path = setting(DEFAULT_OUT, "folder of the adapter; runs/ alone makes runs/TASK-METHOD")
    save_peft: bool = setting(False, "also write OUT/peft, for the peft package; a classifier has no bias then")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")
    table: bool = setting(False, "instead: all methods on three tasks with five seeds, in OUT (runs/finetune-table)")
    quick: bool = setting(False, "with --table: a slice of it in a minute, to see that it works")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_seq_len", "rank", "width", "n_virtual", "n_layers", "dimension"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "learning_rate", "alpha"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        if self.task in NEED_DATA and self.data is None:
            raise ConfigError(f"the task {self.task} is for texts of your own; name their file with --data")
        if self.data is not None and self.task not in (*NEED_DATA, "domain"):
            raise ConfigError(f"--data goes with the tasks domain, classes and pairs; {self.task} makes its own texts")
        if self.save_peft and self.method not in PEFT_HAS:
            raise ConfigError(f"peft has no {self.method} that it could load; --save-peft is for {', '.join(PEFT_HAS)}")
        if self.quick and not self.table:
            raise ConfigError("--quick goes with --table")


def run(settings: Settings) -> int:
    """Adapt, or make the table; returns the program's exit code."""
    if settings.table:
        return run_table(settings)
    from minillm.train.signals import exit_code
    from minillm.verbs.fine_tuning import fine_tune_run

    stopped_by = fine_tune_run(settings, out_of(settings))
    if stopped_by:
        print(f"stopped by {stopped_by}; nothing is written", file=sys.stderr)
    return exit_code(stopped_by)


def run_table(settings: Settings) -> int:
    """The table of all methods; what OUT holds already is not made again."""
    from minillm.verbs.finetune_table import QUICK, TableConfig, make_table

    out = DEFAULT_OUT / "finetune-table" if settings.out == DEFAULT_OUT else settings.out
    make_table(out, QUICK if settings.quick else TableConfig())
    print((out / "finetune_table.md").read_text(encoding="utf-8"), end="")
    print(f"done: {out / 'finetune_table.csv'}, .md and .png")
    return 0


def out_of(settings: Settings) -> Path:
    """The adapter's folder: as given, or runs/TASK-METHOD."""
    return settings.out if settings.out != DEFAULT_OUT else DEFAULT_OUT / f"{settings.task}-{settings.method}"
