"""`minillm quantize`: a run in fewer bits, as a run of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.config import setting
from minillm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minillm.compress.grid import QuantSpec
    from minillm.verbs.run_folder import Run, RunFolder

METHODS = ("rtn", "gptq", "awq", "nf4", "q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k")
TEXT, KEPT = "text", ("settings.json", "tokenizer.json", "metrics.jsonl")


@dataclass(frozen=True)
class Settings:
    """Store the linear layers of a run's model in few bits, and show what each layer loses and what the model takes.

    Norms and biases stay in fp32, and embeddings too unless --embedding says otherwise. The result is a run that
    evaluate, generate and chat read, but that cannot be trained on.
    """

    run: Path = setting(Path("runs/demo"), "folder of the run", positional=True)
    out: Path | None = setting(None, "folder of the new run, which must not exist; RUN-METHOD if not given")
    method: str = setting(
        "gptq",
        "rtn: to nearest; gptq: weights mend what others lose; awq: inputs that matter are stretched first; nf4: "
        "levels of a normal distribution; others: blocks of GGML",
        choices=METHODS,
    )
    bits: int = setting(4, "bits of a weight, 2 to 8, for rtn, gptq and awq; other methods have their own")
    group: int = setting(32, "weights of a row that share a scale, likewise; 0 is the whole row")
    symmetric: bool = setting(False, "grids with their zero in the middle, which need not be stored")
    convention: str = setting("textbook", "the scale of a symmetric grid", choices=("textbook", "full_range", "ggml"))
    embedding: int = setting(0, "bits of the token embedding, and of a head that is the same; 0 leaves it in fp32")
    head: bool = setting(False, "also the layer that makes scores, where it is not the embedding")
    windows: int = setting(64, "pieces of the training text, one context long, to measure errors on and to learn from")


def run(settings: Settings) -> None:
    """Quantize, write the new run, print both tables."""
    import torch

    from minillm.compress.grid import QuantSpec
    from minillm.compress.methods import quantize_by
    from minillm.compress.packed_ends import pack_embedding
    from minillm.compress.report import compression_report
    from minillm.verbs.run_folder import open_run

    spec = QuantSpec(settings.bits, settings.group, settings.symmetric, settings.convention)
    if settings.windows < 1:
        raise ConfigError(f"windows is {settings.windows}; at least 1 is needed to measure errors")
    out = settings.out or settings.run.with_name(f"{settings.run.name}-{short_name(settings.method, spec)}")
    if out.exists():
        raise ConfigError(f"{out} exists already; give another --out, or remove it")
    opened = open_run(settings.run, torch.device("cpu"))
    windows, exclude = windows_of(opened, settings.windows), () if settings.head else ("head",)
    report = quantize_by(settings.method, opened.model, windows, spec, exclude, progress=True)
    if settings.embedding:
        pack_embedding(opened.model, QuantSpec(settings.embedding, settings.group))
    report.operation = None                                        # gives the memory of the old layers back
    text = f"{report}\n\n{compression_report(opened.model)}\n"
    write_run(opened.folder, out, opened.model, text)
    print(f"{text}\n{out}: {settings.run} by {settings.method}; try minillm evaluate {out}")


def short_name(method: str, spec: "QuantSpec") -> str:
    """The method, with its bits if it has a choice: "gptq4", "nf4"."""
    return f"{method}{spec.bits}" if method in ("rtn", "gptq", "awq") else method


def windows_of(opened: "Run", n_windows: int) -> "list[Tensor]":
    """Windows of the training text as the model takes it, one context each, spread evenly, eight to a batch.

    Args:
        opened: the run.
        n_windows: how many at most; fewer if the text is too short for so many.

    Returns:
        token ids, each (B, T).

    Raises:
        DataError: if the text is shorter than one window.
    """
    import numpy as np
    import torch

    tokens, width = opened.folder.open_text("train", opened.tokenizer), opened.model.config.max_seq_len
    width = min(width, len(tokens))
    if width < 1:
        raise DataError(f"{opened.folder.path} has no training text left to measure errors on")
    n_windows = min(n_windows, len(tokens) // width)
    starts = np.linspace(0, len(tokens) - width, n_windows).astype(int)
    ids = np.stack([np.asarray(tokens[start : start + width]) for start in starts]).astype(np.int64)
    return list(torch.from_numpy(ids).split(8))


def write_run(folder: "RunFolder", out: Path, model: "nn.Module", report: str) -> None:
    """Write the new run beside the old one, under another name until it is whole.

    Args:
        folder: of the old run.
        out: of the new one.
        model: with packed layers.
        report: what to leave in quantize.txt.

    Raises:
        DataError: if it cannot be written.
    """
    import shutil

    from minillm.compress.saved import forms_of
    from minillm.train.checkpoint import CheckpointFolder, RunParts, newest_valid_checkpoint, read_state

    state = read_state(newest_valid_checkpoint(folder.checkpoints))
    temporary = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name in KEPT:
            if (folder.path / name).is_file():
                shutil.copy2(folder.path / name, temporary / name)
        shutil.copytree(folder.path / TEXT, temporary / TEXT)
        config = {**state["config"], "quantized": forms_of(model)}
        parts = RunParts(model, config=config, tokenizer_fingerprint=state["tokenizer_fingerprint"])
        CheckpointFolder(temporary / "checkpoints").save(state["step"], parts, state["extra"])
        (temporary / "quantize.txt").write_text(report, encoding="utf-8")
        temporary.rename(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
