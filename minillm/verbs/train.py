"""`minillm train`: from a text to a trained model in a folder."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.config import config_from_dict, config_from_json, config_to_dict, config_to_json, setting
from minillm.errors import ConfigError

DEFAULT_OUT = Path("runs")
# Families and sizes as in the registry, which imports torch.
FAMILY_NAMES = ("gpt2", "bloom", "llama", "mistral", "mixtral", "falcon", "modern")
ENGINE_NAMES = ("ours", "fsdp2", "tp", "pp")
SIZE_NAMES = ("nano", "mini", "tiny", "small", "medium", "base", "large")
OF_MANY_PROCESSES = ("mesh", "backend", "engine", "timeout_seconds")  # do not change what is learned
PRESETS: dict[str, dict[str, object]] = {
    "": {},
    "gpu": {
        "model": "gpt2", "size": "base", "max_seq_len": 1024, "vocab_size": 16384, "batch_size": 32, "microbatches": 8,
        "steps": 2000, "learning_rate": 6e-4, "warmup_steps": 100, "precision": "bf16", "device": "cuda",
        "compile": True,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Train a model on a text. Without arguments: a small modern decoder on this project's stories, in a minute or two.

    Ctrl-C (or SIGTERM) saves and leaves; the same command with --resume goes on as if nothing had happened.
    """

    data: tuple[str, ...] = setting(("stories-en",), "names (see minillm data), files, folders or patterns of texts")
    model: str = setting("modern", "model family", choices=FAMILY_NAMES)
    size: str = setting("tiny", "layers and width", choices=SIZE_NAMES)
    preset: str = setting("", "settings for a purpose; gpu: GPT-2 small on one card", choices=tuple(PRESETS))
    steps: int = setting(300, "optimizer steps in all")
    batch_size: int = setting(32, "sequences per step")
    microbatches: int = setting(1, "parts of a batch that go through the model in turn, to save memory")
    max_seq_len: int = setting(128, "context in tokens")
    rows: str = setting(
        "windows", "windows cuts the running text; documents begins each row with one", choices=("windows", "documents")
    )
    tokenizer: str = setting("bpe", "bpe, chars, words or bytes, learned from the text; or a saved tokenizer's file")
    vocab_size: int = setting(1024, "token ids to learn, for bpe and words")
    optimizer: str = setting("auto", "auto is muon for modern, adamw for the others", choices=("auto", "adamw", "muon"))
    learning_rate: float = setting(0.0, "top learning rate; 0 takes the optimizer's usual one")
    warmup_steps: int = setting(10, "steps in which the learning rate rises")
    weight_decay: float = setting(0.1, "share of each matrix, times the learning rate, taken away per step")
    max_norm: float = setting(1.0, "gradients are clipped to this norm")
    dropout: float = setting(0.0, "chance of dropping a number while training")
    precision: str = setting("auto", "number format of the products", choices=("auto", "fp32", "bf16", "fp16"))
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")
    compile: bool = setting(False, "let torch.compile fuse the model's operations")
    seed: int = setting(0, "for weights, dropout, batches, the split of the text and samples")
    validation_fraction: float = setting(0.1, "share of the documents set aside")
    validate_every: int = setting(50, "steps between validations; 0 validates at the end only")
    sample_every: int = setting(100, "steps between samples; 0 samples at the end only")
    checkpoint_every: int = setting(100, "steps between checkpoints; 0 saves at the end only")
    keep_last: int = setting(2, "checkpoints to keep, at least 2")
    log_every: int = setting(5, "steps between lines of metrics")
    prompt: str = setting("", "beginning of the samples; empty begins a document")
    out: Path = setting(DEFAULT_OUT, "folder of the run; runs/ alone makes runs/DATA-MODEL-SIZE")
    resume: bool = setting(False, "go on with the run in --out; settings that are not given are the run's own")
    with_my: tuple[str, ...] = setting((), "chapters (08) whose functions in your homework replace the library's")
    homework: Path | None = setting(None, "folder of your homework; homework/ in the clone if not given")
    mesh: str = setting("", "train on many processes: dp=N copies, pp=N stages, tp=N parts of each layer; dp=2,tp=2")
    backend: str = setting("auto", "how they talk; auto: nccl on cuda, else gloo", choices=("auto", "gloo", "nccl"))
    engine: str = setting("ours", "who cuts the model for them: ours, or PyTorch's engine", choices=ENGINE_NAMES)
    timeout_seconds: float = setting(60.0, "a process that keeps the others waiting longer is given up")
    dry_run: bool = setting(False, "print the settings, parameters, memory and FLOPs; train nothing, write nothing")

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_seq_len", "vocab_size", "microbatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.microbatches > self.batch_size:
            raise ConfigError(f"microbatches is {self.microbatches}; a batch of {self.batch_size} has not so many rows")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0")
        if not self.timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds is {self.timeout_seconds}; it must be above 0")
        if not self.data:
            raise ConfigError("data is empty; name at least one text")


def run(settings: Settings) -> int:
    """Read the text, train; returns the program's exit code."""
    from minillm.train.signals import exit_code
    from minillm.verbs.training import Texts, learners_functions, read_texts, train_run, what_it_costs

    settings = replace(settings, out=out_of(settings))
    if (settings.out / "settings.json").exists() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        settings = replace(settings, resume=True)  # torchrun has started us again
    if (settings.out / "settings.json").exists() and not settings.resume and not settings.dry_run:
        raise ConfigError(f"{settings.out} holds a run already: --resume goes on with it; else choose another --out")
    if settings.dry_run:
        print(config_to_json(settings), end="")
        print(what_it_costs(settings, read_texts(settings)))
        return 0
    if wants_many_processes(settings):
        from minillm.verbs.many_processes import run_on_mesh

        return run_on_mesh(settings)
    texts = Texts([], []) if settings.resume else read_texts(settings)  # a run keeps its texts as packed ids
    with learners_functions(settings):
        result, folder = train_run(settings, texts)
    say_how_it_ended(result, folder)
    return exit_code(result.stopped_by)


def wants_many_processes(settings: Settings) -> bool:
    """Whether the settings or torchrun ask for more processes than this one.

    Raises:
        ConfigError: if they contradict each other.
    """
    n_started = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.mesh.replace(" ", "") in ("", "dp=1") and n_started == 1:
        if settings.engine != "ours" and not settings.mesh:
            raise ConfigError(f"engine {settings.engine!r} is for many processes; say which with --mesh, as dp=2")
        return False
    if not settings.mesh:
        raise ConfigError(f"torchrun started {n_started} processes and there is no --mesh; give --mesh dp={n_started}")
    return True


def say_how_it_ended(result: Any, folder: Any) -> None:
    """What to type next."""
    again = " ".join(["minillm train", "--out", str(folder.path), "--resume"])
    if result.stopped_by:
        print(f"stopped by {result.stopped_by} after step {result.step}; go on with: {again}", file=sys.stderr)
    else:
        print(f"done: {folder.path}; try: minillm generate {folder.path} --prompt ...")


def fill_in(given: dict[str, Any]) -> dict[str, Any]:
    """What the command line and the settings file said, with a preset's or, on a resume, the run's own settings added.

    Args:
        given: setting name -> value.

    Raises:
        ConfigError: if a resume contradicts the run.
    """
    given = PRESETS.get(given.get("preset", ""), {}) | given
    return resumed(given) if given.get("resume") else given


def resumed(given: dict[str, Any]) -> dict[str, Any]:
    """The saved settings; given ones must agree, except `steps`, which may grow, and what does not change the run."""
    settings = config_from_dict(Settings, given, where="minillm train")
    out = out_of(settings)
    file = out / "settings.json"
    if not file.is_file():
        raise ConfigError(f"there is no run in {out} to go on with; leave out --resume to begin one")
    if (out / "quantize.txt").exists():
        raise ConfigError(f"{out} is quantized and has no full weights to train; go on with the run it was made from")
    saved = config_from_json(Settings, file.read_text(encoding="utf-8"), where=str(file))
    free = {"out", "resume", "dry_run", "steps", "device", "keep_last", "homework", *OF_MANY_PROCESSES}
    wrong = [
        f"{name} {getattr(settings, name)!r}, the run has {getattr(saved, name)!r}"
        for name in given
        if name not in free and getattr(settings, name) != getattr(saved, name)
    ]
    if wrong:
        raise ConfigError(
            f"--resume of {out} with other settings: {'; '.join(wrong)}; leave them out or begin a new run"
        )
    return config_to_dict(saved) | {name: given[name] for name in given.keys() & free}


def out_of(settings: Settings) -> Path:
    """The run's folder: as given, or runs/DATA-MODEL-SIZE."""
    if settings.out != DEFAULT_OUT:
        return settings.out
    words = [Path(name).stem for name in settings.data] + [settings.model, settings.size]
    return DEFAULT_OUT / "-".join(words).replace("*", "all")


def saved_form(settings: Settings) -> str:
    """The settings as settings.json keeps them."""
    return config_to_json(replace(settings, resume=False, dry_run=False))


def identity(settings: Settings) -> dict[str, object]:
    """The settings that a checkpoint must agree with."""
    free = ("out", "resume", "dry_run", "steps", "device", "keep_last", "preset", "with_my", "homework")
    free += OF_MANY_PROCESSES
    return {name: value for name, value in config_to_dict(settings).items() if name not in free}
