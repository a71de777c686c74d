"""The ladder: every model is asked the same question, and the tables say what the rows say."""

import csv
import math
from collections import Counter

import numpy as np
import pytest
import torch

from minillm.data.tinyworld import World, world_config
from minillm.errors import ConfigError, DataError
from minillm.evaluate.comparison import Row, markdown_table
from minillm.evaluate.ladder import (
    LadderText,
    best_counts,
    bits_of,
    climb,
    ladder_rows,
    letters_text,
    smoothing_table,
    text_of,
    world_text,
    write_ladder,
)
from minillm.evaluate.likelihood import document_log_probabilities
from minillm.evaluate.rungs import QUICK, counting_rungs, network_rungs
from minillm.statistical.smoothing import ALL_METHODS
from minillm.tokenizers.bytes import ByteTokenizer

LEARNED, NEW = ["abab abba", "baba", "aabb abab"], ["abbab a", "b"]


@pytest.fixture
def text():
    return text_of("letters", LEARNED, NEW, ByteTokenizer())


def test_documents_become_ids_with_their_ends(text):
    end = text.end_id
    assert text.new_ids.tolist() == [*b"abbab a", end, *b"b", end]
    assert len(text.train_ids) == sum(map(len, LEARNED)) + 3 and text.n_bytes == 8 and text.floor is None


def test_the_uniform_model_pays_log_v_for_each_id(text):
    rows = climb(text, counting_rungs(1, ["mle"]))
    assert rows[0].name == "uniform"
    assert rows[0].bits_per_byte == pytest.approx(math.log2(text.vocab_size) * len(text.new_ids) / 8, rel=1e-12)


def test_a_bigram_by_counting_pairs(text):
    """Maximum likelihood of order 2, the end of a document as context of the next one's first letter."""
    ids, new = text.train_ids.tolist(), [text.end_id, *text.new_ids.tolist()]
    pairs = Counter(zip(ids, ids[1:], strict=False))
    lefts = Counter(ids[:-1])
    bits = -sum(math.log2(pairs[pair] / lefts[pair[0]]) for pair in zip(new, new[1:], strict=False)) / text.n_bytes
    rungs = [rung for rung in counting_rungs(2, ["mle"]) if rung.order == 2]
    assert climb(text, rungs)[0].bits_per_byte == pytest.approx(bits, rel=1e-12)


class Bigrams(torch.nn.Module):
    """Scores of the next id from the last alone, plus a bonus for the place, which shows where a document begins."""

    def __init__(self, vocab_size):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64))

    def forward(self, token_ids):
        places = torch.arange(token_ids.shape[1], dtype=torch.float64)[:, None]
        return self.table[token_ids] * (1 + 0.1 * places)


def test_each_document_is_read_from_its_own_beginning():
    model, end = Bigrams(5), 4
    ids = np.array([4, 0, 1, 4, 2, 4, 3, 3])
    got = document_log_probabilities(model, ids, end, seq_len=8)
    expected = []
    for document in ([4], [0, 1, 4], [2, 4], [3, 3]):
        context = torch.tensor([[end, *document[:-1]]])
        scores = torch.log_softmax(model(context)[0], dim=-1)
        expected += [scores[place, token].item() for place, token in enumerate(document)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_document_longer_than_the_context_is_read_in_windows():
    model, end = Bigrams(5), 4
    ids = np.array([0, 1, 2, 3, 0, 1, 4])
    got = document_log_probabilities(model, ids, end, seq_len=4)
    inputs = [4, 0, 1, 2, 3, 0, 1]
    windows = [(0, 0, 4), (2, 2, 6), (3, 3, 7)]  # start, counted from, stop
    expected = []
    for start, skipped, stop in windows:
        scores = torch.log_softmax(model(torch.tensor([inputs[start:stop]]))[0], dim=-1)
        expected += [scores[i - start, ids[i]].item() for i in range(start + skipped, stop)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert len(document_log_probabilities(model, np.array([], np.int64), end, 4)) == 0


def test_every_network_climbs_and_is_reproducible(text):
    rungs = network_rungs(QUICK)
    assert [rung.name for rung in rungs] == [
        "HMM, 4 states", "feed-forward 3-gram", "RNN", "GRU", "LSTM", "GPT-2 style", "BLOOM style", "GPT, modern",
    ]  # fmt: skip
    first, second = climb(text, rungs), climb(text, rungs)
    for one, other in zip(first, second, strict=True):
        assert one.bits_per_byte == other.bits_per_byte > 0
        assert one.n_bytes >= 4 * one.n_entries > 0


def test_the_best_of_each_order_is_a_distribution():
    rungs = counting_rungs(2, ["mle", "add-k", "stupid-backoff"])
    bits = [8.0, 5.0, 4.0, 1.0, math.inf, 3.0, 0.5]
    rows = [Row(rung.name, value, 1, 0.0) for rung, value in zip(rungs, bits, strict=True)]
    assert [row.name for row in best_counts(rungs, rows)] == ["1-gram, add-k", "2-gram, add-k"]
    assert [row.bits_per_byte for row in ladder_rows(rungs, rows)] == [8.0, 4.0, 3.0]
    assert smoothing_table(rungs, rows) == (
        "| bits per byte | order 1 | order 2 |\n| --- | --: | --: |\n| mle | 5.000 | ∞ |\n| add-k | 4.000 | 3.000 |\n"
        "| stupid-backoff (scores that do not sum to 1) | 1.000 | 0.500 |"
    )


def test_what_is_written(text, tmp_path):
    rungs = counting_rungs(2, ["mle", "kneser-ney"])
    rows = climb(text, rungs)
    report = write_ladder(tmp_path, text, rungs, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "letters.csv", "letters_ladder.png", "letters_smoothing.png",
    ]  # fmt: skip
    with (tmp_path / "letters.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(line["bits_per_byte"]) for line in table] == [row.bits_per_byte for row in rows]
    assert "| 2-gram, " in report and "| kneser-ney | " in report


def test_infinite_bits_are_printed_as_such():
    table = markdown_table([Row("mle", math.inf, 3, 0.5, 24)], ("true entropy", 0.1))
    assert "| mle | ∞ | ∞ | 3 | 0.00 | 0.5 |" in table


def test_the_floor_is_the_worlds_own():
    config = world_config("tiny")
    text = world_text(n_train=40, n_new=10, world=config)
    stories = [story for story, _ in zip(World(config).stories(2), range(10), strict=False)]
    n_bytes = sum(len(story.english.text.encode()) for story in stories)
    expected = -sum(story.log_probability for story in stories) / math.log(2) / n_bytes
    assert text.floor == pytest.approx(expected, rel=1e-12) and text.n_bytes == n_bytes
    assert isinstance(text, LadderText)


def test_no_model_that_is_a_distribution_beats_the_floor_by_far():
    """Ten thousand ids of a tiny world, counted: every method stays above the entropy, up to the new stories' luck."""
    text = world_text(n_train=300, n_new=100, world=world_config("tiny"))
    rungs = counting_rungs(4)
    for rung, row in zip(rungs, climb(text, rungs), strict=True):
        if rung.method != "stupid-backoff":
            assert row.bits_per_byte > text.floor, row
    assert {rung.method for rung in rungs} == {"", *ALL_METHODS}


def test_letters_of_a_file(tmp_path):
    (tmp_path / "one.txt").write_text("a line\n" * 30, encoding="utf-8")
    text = letters_text(str(tmp_path / "one.txt"))
    assert text.n_bytes == 21 and bits_of(counting_rungs(1)[0].fit(text), text) > 0


def test_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="order of at least 1"):
        counting_rungs(0)
    with pytest.raises(ConfigError, match="unknown smoothing good-touring; known are mle"):
        counting_rungs(2, ["good-touring"])
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match="no text"):
        letters_text(str(tmp_path / "empty.txt"))
