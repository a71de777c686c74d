"""The ladder: every kind of language model of this course on one text, in one unit, down to the true entropy.

Each rung learns from the same token ids and is asked for the probability of every id of the same new documents. The
documents do not know of one another: each is predicted from its beginning.

Dimensions: N ids of a text, V vocabulary.
"""

import csv
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from minillm.data.corpora import documents
from minillm.data.split import split_documents, split_text
from minillm.data.tinyworld import World, WorldConfig
from minillm.errors import DataError
from minillm.evaluate.comparison import Row, bits_in_words, markdown_table, packed_ids
from minillm.evaluate.likelihood import bits_per_byte
from minillm.plots import Line, Panel, plot_bars, plot_panels
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.chars import CharTokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT

MADE_WORLD = "tinyworld-en"
WORLD = WorldConfig(n_people=2, n_names=24, n_items=20, n_colours=8, n_places=12, n_events=1, n_questions=2)
WORLD_VOCAB_SIZE, STORIES_FOR_TOKENIZER = 512, 2000
TRAINING_SEED, NEW_SEED = 1, 2  # two series of stories that share none
NOT_A_DISTRIBUTION = "stupid-backoff"


class Scorer(Protocol):
    """What a rung leaves behind: a model that gives every id of a text a probability."""

    n_entries: int  # learned numbers
    n_bytes: int    # memory that holds them

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """(N,) float64 nats, of every id given those before it."""


@dataclass(frozen=True)
class LadderText:
    """One text for all rungs.

    Attributes:
        name: for headings.
        train_ids: (N,) ids to learn from, the end-of-text id behind each document.
        new_ids: (M,) ids to predict, likewise.
        vocab_size: V.
        end_id: the end-of-text id.
        n_bytes: UTF-8 bytes of the new documents.
        floor: bits per byte of the source itself, where it is known.
    """

    name: str
    train_ids: np.ndarray
    new_ids: np.ndarray
    vocab_size: int
    end_id: int
    n_bytes: int
    floor: float | None = None


@dataclass(frozen=True)
class Rung:
    """A model that has not learned yet.

    Attributes:
        name: as it stands in the table.
        fit: learns from a text.
        order: length of the n-grams, for models that smooth counts; 0 for others.
        method: their smoothing.
    """

    name: str
    fit: Callable[[LadderText], Scorer]
    order: int = 0
    method: str = ""


def world_text(n_train: int = 8000, n_new: int = 200, world: WorldConfig = WORLD) -> LadderText:
    """Stories of the made world in English, as byte pairs learned from them; the floor is that of the new stories.

    Args:
        n_train: stories to learn from, at least 1.
        n_new: stories to predict, at least 1.
        world: which world.
    """
    made = World(world)
    learned = [story.english.text for story in islice(made.stories(TRAINING_SEED), n_train)]
    new = list(islice(made.stories(NEW_SEED), n_new))
    tokenizer = BPETokenizer.train(learned[:STORIES_FOR_TOKENIZER], WORLD_VOCAB_SIZE)
    texts = [story.english.text for story in new]
    n_bytes = sum(len(text.encode()) for text in texts)
    floor = bits_per_byte(-sum(story.log_probability for story in new), n_bytes)
    return text_of("made world", learned, texts, tokenizer, floor)


def letters_text(name: str, validation_fraction: float = 0.1, seed: int = 0) -> LadderText:
    """A text by its name or path, as characters: whole documents set aside, or the end of a single one.

    Args:
        name: as `minillm.data.corpora.documents` takes it.
        validation_fraction: share set aside.
        seed: chooses the documents.

    Raises:
        DataError: if the text is missing or empty.
    """
    found = [text for text in documents(name) if text.strip()]
    if not found:
        raise DataError(f"{name}: there is no text in it; give one that is not empty")
    if len(found) == 1:
        parts = split_text(found[0], validation_fraction)
        learned, new = [parts[0]], [parts[1]]
    else:
        learned, new = split_documents(found, validation_fraction, seed)
    return text_of(name, learned, new, CharTokenizer.train(learned))


def text_of(name: str, learned: Sequence[str], new: Sequence[str], tokenizer, floor: float | None = None) -> LadderText:
    """Documents as ids.

    Args:
        name: for headings.
        learned: documents to learn from.
        new: documents to predict.
        tokenizer: cuts both.
        floor: bits per byte of the source, if known.
    """
    n_bytes = sum(len(text.encode()) for text in new)
    end = tokenizer.special_tokens[END_OF_TEXT]
    ids = (packed_ids(texts, tokenizer) for texts in (learned, new))
    return LadderText(name, *ids, tokenizer.vocab_size, end, n_bytes, floor)


def climb(text: LadderText, rungs: Sequence[Rung], show: Callable[[Row], None] | None = None) -> list[Row]:
    """Let every rung learn the text and predict the new documents.

    Args:
        text: for all of them.
        rungs: in the order of the table.
        show: called with each row as soon as it is there.

    Returns:
        A row per rung; `seconds` is the time to learn alone.
    """
    rows = []
    for rung in rungs:
        start = time.perf_counter()
        model = rung.fit(text)
        seconds = time.perf_counter() - start
        rows.append(Row(rung.name, bits_of(model, text), model.n_entries, seconds, model.n_bytes))
        if show is not None:
            show(rows[-1])
    return rows


def bits_of(model: Scorer, text: LadderText) -> float:
    """Bits per byte of the new documents, all ids and ends paid for; infinite if something was held impossible."""
    nats = model.log_probabilities(np.concatenate(([text.end_id], text.new_ids)))[1:]
    return bits_per_byte(-float(nats.sum()), text.n_bytes)


def best_counts(rungs: Sequence[Rung], rows: Sequence[Row]) -> list[Row]:
    """Of the n-grams of each order the row with the fewest bits; scores that are no distribution do not compete.

    Args:
        rungs: as given to `climb`.
        rows: what it returned.
    """
    best: dict[int, Row] = {}
    for rung, row in zip(rungs, rows, strict=True):
        competes = rung.order and rung.method != NOT_A_DISTRIBUTION
        if competes and (rung.order not in best or row.bits_per_byte < best[rung.order].bits_per_byte):
            best[rung.order] = row
    return [best[order] for order in sorted(best)]


def ladder_rows(rungs: Sequence[Rung], rows: Sequence[Row]) -> list[Row]:
    """The ladder itself, from the worst to the best: the best smoothing of each order, and every other model."""
    others = [row for rung, row in zip(rungs, rows, strict=True) if not rung.order]
    return sorted([*others, *best_counts(rungs, rows)], key=lambda row: -row.bits_per_byte)


def smoothing_table(rungs: Sequence[Rung], rows: Sequence[Row]) -> str:
    """Bits per byte of every smoothing method at every order, as a Markdown table."""
    bits = {(rung.method, rung.order): row.bits_per_byte for rung, row in zip(rungs, rows, strict=True) if rung.order}
    methods, orders = dict.fromkeys(method for method, _ in bits), sorted({order for _, order in bits})
    lines = [f"| bits per byte | {' | '.join(f'order {order}' for order in orders)} |"]
    lines.append(f"| --- |{' --: |' * len(orders)}")
    for method in methods:
        name = f"{method} (scores that do not sum to 1)" if method == NOT_A_DISTRIBUTION else method
        lines.append(f"| {name} | {' | '.join(bits_in_words(bits[method, order]) for order in orders)} |")
    return "\n".join(lines)


def write_ladder(folder: Path, text: LadderText, rungs: Sequence[Rung], rows: Sequence[Row]) -> str:
    """Write NAME.csv with every row, NAME_ladder.png and, if there are n-grams, NAME_smoothing.png.

    Args:
        folder: exists.
        text: of the rows.
        rungs: as given to `climb`.
        rows: what it returned.

    Returns:
        Both tables in Markdown.
    """
    stem = folder / re.sub(r"\W+", "_", Path(text.name).stem)
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("model", "order", "bits_per_byte", "entries", "bytes", "training_seconds"))
        for rung, row in zip(rungs, rows, strict=True):
            figures = (row.bits_per_byte, row.n_entries, row.n_bytes, round(row.seconds, 3))
            table.writerow((row.name, rung.order or "", *figures))
    floor = None if text.floor is None else ("true entropy", text.floor)
    ladder = ladder_rows(rungs, rows)
    bars = {row.name: row.bits_per_byte for row in ladder if np.isfinite(row.bits_per_byte)}
    plot_bars(f"The ladder: {text.name}", "bits per byte (log scale)", bars, Path(f"{stem}_ladder.png"), floor)
    tables = [markdown_table(ladder, floor)]
    if lines := smoothing_lines(rungs, rows):
        levels = {} if floor is None else dict([floor])
        panel = Panel(f"n-grams: {text.name}", "order", "bits per byte", lines, levels)
        plot_panels([panel], Path(f"{stem}_smoothing.png"))
        tables.append(smoothing_table(rungs, rows))
    return "\n\n".join(tables)


def smoothing_lines(rungs: Sequence[Rung], rows: Sequence[Row]) -> dict[str, Line]:
    """A curve over the orders from 2 for every smoothing method that is a distribution, where its bits are finite."""
    points: dict[str, list[tuple[int, float]]] = {}
    for rung, row in zip(rungs, rows, strict=True):
        if rung.order > 1 and rung.method != NOT_A_DISTRIBUTION and np.isfinite(row.bits_per_byte):
            points.setdefault(rung.method, []).append((rung.order, row.bits_per_byte))
    return {method: Line(*map(list, zip(*found, strict=True))) for method, found in points.items()}
