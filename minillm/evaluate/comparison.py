"""How a model's bits per byte compare with those of simpler models and of compressors, on the same text."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minillm.evaluate.likelihood import bits_per_byte
from minillm.statistical.compressors import lzma_bits_per_byte, zlib_bits_per_byte
from minillm.statistical.ngram import NGramModel, choose_add_k
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

BYTES_TO_CHOOSE_K = 50_000
COMPRESSOR_BYTES = 1_500_000  # of training text; lzma takes seconds for each million
CANDIDATE_K = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a model, how surprised it was, how large it is, how long it took to learn.

    Attributes:
        name: what it is.
        bits_per_byte: on the validation text; ends of documents are paid for but are no bytes.
        n_entries: learned numbers (weights, counts), or None for a compressor.
        seconds: to learn and to score.
        n_bytes: memory of the learned numbers, where it is known.
    """

    name: str
    bits_per_byte: float
    n_entries: int | None
    seconds: float
    n_bytes: int | None = None


def simple_models(
    train: Sequence[str], validation: Sequence[str], tokenizer: Tokenizer, show: Callable[[Row], None] | None = None
) -> list[Row]:
    """Score models that count, over bytes and over the tokenizer's ids, and two compressors.

    Args:
        train: documents to learn from.
        validation: documents to score, at least one byte in all.
        tokenizer: whose ids the second family counts.
        show: called with each row as soon as it is there.

    Returns:
        Uniform, unigram and add-k trigram over bytes; unigram and add-k trigram over ids; zlib; lzma. The last two
        have seen the training text (zlib its last 32 KiB, its window).
    """
    n_bytes = sum(len(document.encode()) for document in validation)
    rows: list[Row] = []
    for unit, cutter in (("bytes", ByteTokenizer()), (f"{tokenizer.vocab_size:,} ids", tokenizer)):
        learned, scored = (packed_ids(texts, cutter) for texts in (train, validation))
        orders = {"uniform": 0, "unigram": 1, "trigram": 3} if unit == "bytes" else {"unigram": 1, "trigram": 3}
        for name, order in orders.items():
            rows.append(count_and_score(f"{name}, {unit}", order, cutter.vocab_size, learned, scored, n_bytes))
            if show is not None:
                show(rows[-1])
    whole = ["\n".join(texts).encode() for texts in (train, validation)]
    for name, compress in (("zlib", zlib_bits_per_byte), ("lzma", lzma_bits_per_byte)):
        start = time.perf_counter()
        rows.append(Row(name, compress(whole[1], whole[0][-COMPRESSOR_BYTES:]), None, time.perf_counter() - start))
        if show is not None:
            show(rows[-1])
    return rows


def packed_ids(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """(N,) int64: the ids of all documents, the end-of-text id behind each."""
    end = tokenizer.special_tokens[END_OF_TEXT]
    return np.array([token_id for document in documents for token_id in (*tokenizer.encode(document), end)], np.int64)


def count_and_score(
    name: str, order: int, vocab_size: int, train: np.ndarray, validation: np.ndarray, n_bytes: int
) -> Row:
    """Fit an n-gram model, its k chosen on the end of the training ids, and score the validation ids."""
    start = time.perf_counter()
    model = NGramModel(order, vocab_size).fit(train)
    if order > 0:
        held_out = train[-min(BYTES_TO_CHOOSE_K, max(1, len(train) // 10)) :]
        chosen = choose_add_k(NGramModel(order, vocab_size).fit(train[: -len(held_out)]), held_out, CANDIDATE_K)
        model = model.with_add_k(chosen.add_k)
    nats = -float(model.log_probabilities(validation).sum())
    n_entries = sum(len(level.keys) for level in model.levels or [])
    return Row(name, bits_per_byte(nats, n_bytes), n_entries, time.perf_counter() - start)


def markdown_table(rows: Sequence[Row], floor: tuple[str, float] | None = None, seconds: bool = True) -> str:
    """The rows as a Markdown table, in the order given; with a floor, each row's distance to it.

    Args:
        rows: of one text; where their memory is known there is a column for it.
        floor: (name, bits per byte) of what no model can beat, if known; it becomes the last row.
        seconds: False leaves out the times, which differ from run to run.
    """
    memory = any(row.n_bytes is not None for row in rows)
    head = ["model", "bits per byte", *["above the floor"] * bool(floor), "entries", *["MB"] * memory]
    head += ["seconds"] * seconds
    lines = [f"| {' | '.join(head)} |", f"| --- |{' --: |' * (len(head) - 1)}"]
    for row in rows:
        cells = [row.name, bits_in_words(row.bits_per_byte)]
        if floor:
            cells.append(f"{row.bits_per_byte / floor[1] - 1:+.1%}" if np.isfinite(row.bits_per_byte) else "∞")
        cells.append("" if row.n_entries is None else f"{row.n_entries:,}")
        if memory:
            cells.append("" if row.n_bytes is None else f"{row.n_bytes / 1e6:.2f}")
        if seconds:
            cells.append(f"{row.seconds:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    if floor:
        cells = [f"**{floor[0]}**", f"**{floor[1]:.3f}**", *[""] * (len(head) - 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bits_in_words(bits: float) -> str:
    """A figure with three digits behind the point; ∞ for a model that held something impossible."""
    return f"{bits:.3f}" if np.isfinite(bits) else "∞"
