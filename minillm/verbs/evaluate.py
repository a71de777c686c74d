"""`minillm evaluate`: how surprised a trained model is by the text set aside, beside simpler models."""

from dataclasses import dataclass
from pathlib import Path

from minillm.config import setting


@dataclass(frozen=True)
class Settings:
    """Score a run on all of its validation text: nats per token, perplexity, bits per byte, beside simpler models.

    With --ladder no run is scored: every kind of model, from counting to GPT, learns the same texts and predicts what
    was set aside of them. That takes minutes for each text.
    """

    run: Path = setting(Path("runs/demo"), "folder of the run", positional=True)
    simple: bool = setting(True, "also fit and score counting models and compressors on the same text")
    stride: int = setting(0, "tokens that a window moves on; 0 is half the context: each token has as much before it")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")
    ladder: bool = setting(False, "train and score every kind of model, from counting to GPT, on the texts of --data")
    data: tuple[str, ...] = setting(
        ("tinyworld-en", "stories-en"),
        "texts of the ladder: tinyworld-en, whose true entropy is known, as byte pairs; others by letters",
    )
    out: Path = setting(Path("runs/ladder"), "folder for the ladder's tables and pictures")
    quick: bool = setting(False, "a ladder of models that hardly learn: shows that everything works")


def run(settings: Settings) -> None:
    """Print the figures and the table."""
    if settings.ladder:
        print(show_ladder(settings))
        return
    from minillm.compress.report import compression_report
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
    n_weights = compression_report(opened.model).whole.n_weights    # those of layers in few bits too
    rows.append(Row("this run", likelihood.bits_per_byte, n_weights, seconds))
    print(markdown_table(rows))


def show_ladder(settings: Settings) -> str:
    """Let every model climb on every text; leaves report.md, tables and pictures in `out` and returns the report.

    Raises:
        DataError: if a text is missing or empty, before anything is trained.
    """
    from minillm.evaluate.ladder import MADE_WORLD, climb, letters_text, world_text, write_ladder
    from minillm.evaluate.rungs import all_rungs

    texts = [
        (world_text(*((300, 20) if settings.quick else ())) if name == MADE_WORLD else letters_text(name))
        for name in settings.data
    ]
    settings.out.mkdir(parents=True, exist_ok=True)
    parts = ["# The ladder: one text, every model\n\nFewer bits are better; seconds are those of learning."]
    for text in texts:
        print(f"== {text.name}", flush=True)
        rungs = all_rungs(text, settings.quick, progress=True)
        tables = write_ladder(settings.out, text, rungs, climb(text, rungs, show=print_row))
        parts.append(f"## {text.name}\n\n{len(text.train_ids):,} ids to learn from, {len(text.new_ids):,} to predict "
                     f"({text.n_bytes:,} bytes), vocabulary {text.vocab_size:,}.\n\n{tables}")  # fmt: skip
    report = "\n\n".join(parts) + "\n"
    (settings.out / "report.md").write_text(report, encoding="utf-8")
    return report + f"\nTables and pictures are in {settings.out}."


def print_row(row) -> None:
    """A line for a model of the ladder as soon as it is through."""
    from minillm.evaluate.comparison import bits_in_words

    print(f"{row.name:28} {bits_in_words(row.bits_per_byte):>7} bits per byte, {row.seconds:6.1f} s", flush=True)


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
