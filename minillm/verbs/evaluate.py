"""`minillm evaluate`: how surprised a trained model is by the text set aside, beside simpler models."""

from dataclasses import dataclass
from pathlib import Path

from minillm.config import setting


@dataclass(frozen=True)
class Settings:
    """Score a run on all of its validation text: nats per token, perplexity, bits per byte, beside simpler models."""

    run: Path = setting(Path("runs/demo"), "folder of the run", positional=True)
    simple: bool = setting(True, "also fit and score counting models and compressors on the same text")
    stride: int = setting(0, "tokens that a window moves on; 0 is half the context: each token has as much before it")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")


def run(settings: Settings) -> None:
    """Print the figures and the table."""
    from minillm.evaluate.comparison import Row, markdown_table, simple_models
    from minillm.runtime import choose_device
    from minillm.verbs.run_folder import open_run

    opened = open_run(settings.run, choose_device(settings.device))
    likelihood, seconds = score_run(opened, settings.stride)
    print(f"{settings.run} after {opened.step} steps: {likelihood.nats_per_token:.4f} nats per token, "
          f"perplexity {likelihood.perplexity:.2f}, {likelihood.bits_per_byte:.4f} bits per byte, "
          f"on {likelihood.n_tokens:,} tokens\n")  # fmt: skip
    if not settings.simple:
        return
    rows = simple_models(texts_of(opened, "train"), texts_of(opened, "validation"), opened.tokenizer)
    rows.append(Row("this run", likelihood.bits_per_byte, opened.model.n_parameters(), seconds))
    print(markdown_table(rows))


def score_run(opened, stride: int = 0):
    """The likelihood of all validation text, every token predicted once, and the seconds it took.

    Args:
        opened: a `Run`.
        stride: as in `evaluate_likelihood`; 0 is half the context.
    """
    import time

    from minillm.evaluate.likelihood import evaluate_likelihood

    start = time.perf_counter()
    text = opened.folder.open_text("validation", opened.tokenizer)
    seq_len = min(opened.model.config.max_seq_len, len(text))
    likelihood = evaluate_likelihood(
        opened.model, text, seq_len, stride or max(1, seq_len // 2), start_id=text.end_of_text_id, progress=True
    )
    return likelihood, time.perf_counter() - start


def texts_of(opened, part: str) -> list[str]:
    """The documents of that part, decoded from the packed ids.

    Args:
        opened: a `Run`.
        part: "train" or "validation".
    """
    import numpy as np

    tokens = opened.folder.open_text(part, opened.tokenizer)
    ids, end = tokens[:], tokens.end_of_text_id
    pieces = np.split(ids, np.flatnonzero(ids == end) + 1)  # each with its end, and nothing behind the last end
    return [opened.tokenizer.decode(piece[:-1]) for piece in pieces[:-1]]
