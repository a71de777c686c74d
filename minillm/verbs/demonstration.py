"""The work of `minillm demo`: two runs, two tables, two pictures, one report."""

import shutil
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from minillm.data.tinyworld import World, world_config
from minillm.errors import ConfigError
from minillm.evaluate.comparison import Row, markdown_table, simple_models
from minillm.evaluate.recall import FAR_WORDS, RECALL_KINDS, WorldScore, score_world
from minillm.plots import plot_bars, plot_panels
from minillm.runtime import choose_device
from minillm.train.metrics import read_metrics
from minillm.train.signals import exit_code
from minillm.verbs import demo
from minillm.verbs.evaluate import score_run
from minillm.verbs.run_folder import RunFolder, open_run
from minillm.verbs.train import Settings
from minillm.verbs.training import Texts, loss_panel, read_texts, train_run

TEXT = Settings(
    data=("stories-en", "python-docs"), steps=140, vocab_size=1024, max_seq_len=128, batch_size=32,
    validate_every=20, sample_every=70, checkpoint_every=70,
)  # fmt: skip
WORLD = Settings(
    data=("tinyworld-en",), size="mini", rows="documents", steps=1200, vocab_size=512, max_seq_len=192, batch_size=8,
    weight_decay=0.0, validate_every=200, sample_every=400, checkpoint_every=400, log_every=10,
)  # fmt: skip
QUICK = {"steps": 20, "size": "nano", "validate_every": 10, "sample_every": 20, "checkpoint_every": 10}
TRAINING_STORIES, VALIDATION_STORIES = 14_000, 300
QUICK_STORIES = 400
TRAINING_SEED, VALIDATION_SEED = 1, 2  # two series of stories that share none


def demonstrate(settings: "demo.Settings") -> int:
    """Make both runs and write the report; returns the program's exit code."""
    start = time.perf_counter()
    if settings.out.exists():
        clear(settings.out)
    shared = {
        "seed": settings.seed,
        "device": settings.device,
        "precision": settings.precision,
        **(QUICK if settings.quick else {}),
    }
    text_settings = replace(TEXT, out=settings.out, **shared)
    world_settings = replace(WORLD, out=settings.out / "world", **shared)

    heading("1/4  a tokenizer and a model for real text: our stories and this Python's documentation")
    texts = read_texts(text_settings)
    result, text_folder = train_run(text_settings, texts)
    if result.stopped_by:
        return exit_code(result.stopped_by)
    heading("2/4  the same text for simpler models and compressors")
    text_rows = table_of(text_folder, texts)

    heading("3/4  a made world whose true entropy is known")
    world = World(world_config("demo"))
    n_stories = QUICK_STORIES if settings.quick else TRAINING_STORIES
    stories = list(islice(world.stories(VALIDATION_SEED), VALIDATION_STORIES))
    texts = Texts([story.english.text for story in islice(world.stories(TRAINING_SEED), n_stories)],
                  [story.english.text for story in stories])  # fmt: skip
    result, world_folder = train_run(world_settings, texts)
    if result.stopped_by:
        return exit_code(result.stopped_by)
    heading("4/4  how close to the floor?")
    opened = open_run(world_folder.path, choose_device(settings.device))
    score = score_world(opened.model, opened.tokenizer, stories, device=choose_device(settings.device))
    world_rows = table_of(world_folder, texts, score.bits_per_byte)
    write_report(settings.out, text_folder, text_rows, world_folder, world_rows, score, time.perf_counter() - start)
    print((settings.out / "report.md").read_text(encoding="utf-8"))
    print(f"everything is in {settings.out}; try: minillm generate {settings.out} --prompt 'The lighthouse'")
    return 0


def clear(folder: Path) -> None:
    """Remove an earlier demo; refuse a folder that holds anything else."""
    ours = {"settings.json", "tokenizer.json", "text", "checkpoints", "metrics.jsonl", "loss.png", "bars.png",
            "samples.txt", "report.md", "demo.json", "world"}  # fmt: skip
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in ours):
        raise ConfigError(f"{folder} holds {', '.join(foreign)}, which no demo made; choose another --out")
    shutil.rmtree(folder)


def heading(text: str) -> None:
    """A line that says what comes next."""
    print(f"\n== {text}", flush=True)


def table_of(folder: RunFolder, texts: Texts, model_bits_per_byte: float | None = None) -> list[Row]:
    """Simple models and the run itself on the same validation text, from the worst to the best.

    Args:
        folder: the run.
        texts: what it learned from, and what was set aside.
        model_bits_per_byte: the run's own figure, if it is known already.
    """
    opened = open_run(folder.path, choose_device("cpu"))
    rows = simple_models(texts.train, texts.validation, opened.tokenizer)
    if model_bits_per_byte is None:
        model_bits_per_byte = score_run(opened)[0].bits_per_byte
    seconds = read_metrics(folder.metrics, "train")[-1]["seconds"]
    n_weights = opened.model.n_parameters()
    rows.append(Row("minillm, this demo's model", model_bits_per_byte, n_weights, seconds))
    return sorted(rows, key=lambda row: -row.bits_per_byte)


def write_report(
    out: Path,
    text: RunFolder,
    text_rows: list[Row],
    world: RunFolder,
    world_rows: list[Row],
    score: WorldScore,
    seconds: float,
) -> None:
    """report.md with both tables, loss.png with both curves, bars.png, samples.txt with both runs' samples."""
    floor = ("true entropy", score.floor_bits_per_byte)
    runs = {"real text": text, "made world": world}
    panels = [loss_panel(title, read_metrics(folder.metrics)) for title, folder in runs.items()]
    panels[1] = replace(panels[1], levels={"true entropy": floor_per_token(world, score)}, log_y=True)
    plot_panels(panels, out / "loss.png")
    bars = {row.name: row.bits_per_byte for row in world_rows}
    plot_bars("Made world: models against what is possible", "bits per byte (log scale)", bars, out / "bars.png", floor)
    samples = [f"== {title}\n\n{run.samples.read_text(encoding='utf-8')}" for title, run in runs.items()]
    text.samples.write_text("\n".join(samples), encoding="utf-8")
    people_and_things = ("name", "object")
    kinds = ", ".join(f"{kind} {score.accuracy((kind,)):.1%}" for kind in RECALL_KINDS)
    (out / "report.md").write_text(
        f"""# What the demo measured

Real text: English stories and Python's documentation, whole documents set aside. Fewer bits are better.

{markdown_table(text_rows)}

Made world: {score.n_stories} new stories; no model can go below the true entropy on average.

{markdown_table(world_rows, floor)}

Names and objects recalled right at the first guess: {score.accuracy(people_and_things):.1%}; of those stated more than
{FAR_WORDS} words before: {score.accuracy(people_and_things, far_only=True):.1%}. All {sum(score.n_words.values()):,} \
recalled words: {score.accuracy():.1%} ({kinds}).
All other tokens: {score.rest_excess:+.1%} above their floor. Recalled tokens cost \
{score.recall_nats / score.n_stories:.2f} nats a story, a perfect \
reader {score.recall_floor_nats / score.n_stories:.2f}.

Trained and measured in {seconds:.0f} seconds. Loss curves: loss.png; the second table: bars.png; samples: samples.txt.
""",
        encoding="utf-8",
    )


def floor_per_token(world: RunFolder, score: WorldScore) -> float:
    """The floor in nats per token of the run's own tokenizer, for the loss curve."""
    opened = open_run(world.path, choose_device("cpu"))
    n_tokens = len(world.open_text("validation", opened.tokenizer))
    return (score.recall_floor_nats + score.rest_floor_nats) / n_tokens
