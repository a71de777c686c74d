"""The table of simple models: figures worked out by hand, and the exact Markdown."""

import math

import numpy as np
import pytest

from minillm.errors import DataError
from minillm.evaluate.comparison import Row, count_and_score, markdown_table, packed_ids, simple_models
from minillm.statistical.ngram import NGramModel, choose_add_k
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.chars import CharTokenizer

TRAIN = np.array([0, 1, 0, 2, 0, 1, 0, 0, 1, 0] * 10)
VALIDATION = np.array([0, 0, 1, 2])


def test_a_uniform_model_pays_log_v_for_each_id():
    row = count_and_score("uniform", 0, 8, TRAIN, VALIDATION, n_bytes=3)
    assert row.bits_per_byte == pytest.approx(4 * 3 / 3, rel=1e-12)  # four ids, three bits each, three bytes
    assert (row.name, row.n_entries) == ("uniform", 0) and row.seconds > 0


def test_a_unigram_model_pays_the_surprisal_of_its_smoothed_counts():
    """k is chosen on the last tenth of the training text, where an id appears that the rest does not have."""
    train = np.array([0, 1] * 475 + [3] + [0] * 49)
    candidates = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)

    def nats(counts, k, ids):
        total = sum(counts) + 50 * k
        return -sum(math.log((counts[i] + k) / total) for i in ids)

    k = min(candidates, key=lambda k: nats([450, 450, 0, 0], k, train[-100:]))
    assert k > 0.001  # which would be best for counts of the whole text
    row = count_and_score("unigram", 1, 50, train, VALIDATION, n_bytes=5)
    assert row.bits_per_byte == pytest.approx(nats([524, 475, 0, 1], k, VALIDATION) / math.log(2) / 5, rel=1e-12)
    assert row.n_entries == 3


def test_k_is_chosen_on_training_text_only():
    """A validation text that would ask for a large k must not get it."""
    odd = np.array([3, 3, 3, 3])
    row = count_and_score("bigram", 2, 4, TRAIN, odd, n_bytes=4)
    fitted = NGramModel(2, 4).fit(TRAIN)
    best_for_odd = choose_add_k(fitted, odd, (1.0, 0.001))
    assert row.bits_per_byte > -best_for_odd.log_probabilities(odd).sum() / math.log(2) / 4
    assert row.n_entries == 3 + 5  # the ids 0, 1, 2 and the pairs 00, 01, 02, 10, 20


def test_packed_ids_have_an_end_behind_each_document():
    tokenizer = ByteTokenizer()
    end = tokenizer.special_tokens["<|endoftext|>"]
    assert packed_ids(["ab", "c"], tokenizer).tolist() == [97, 98, end, 99, end]


def test_simple_models_over_bytes_and_ids_and_compressors():
    train, validation = ["the cat sat on the mat. " * 40] * 3, ["the mat sat on the cat. é"]
    tokenizer = CharTokenizer.train([*train, *validation])
    seen = []
    rows = simple_models(train, validation, tokenizer, show=seen.append)
    assert rows == seen
    ids = f"{tokenizer.vocab_size:,} ids"
    named = {row.name: row.bits_per_byte for row in rows}
    assert list(named) == [
        "uniform, bytes", "unigram, bytes", "trigram, bytes", f"unigram, {ids}", f"trigram, {ids}", "zlib", "lzma",
    ]  # fmt: skip
    n_bytes = 26  # 25 characters, one of two bytes
    assert named["uniform, bytes"] == pytest.approx((n_bytes + 1) * math.log2(257) / n_bytes, rel=1e-12)
    assert named["trigram, bytes"] < named["unigram, bytes"] < named["uniform, bytes"]
    assert all(row.n_entries is None for row in rows if row.name in ("zlib", "lzma"))


def test_simple_models_need_a_byte_to_score():
    with pytest.raises(DataError, match="byte"):
        simple_models(["some text"], [""], ByteTokenizer())


ROWS = [Row("counts", 4.0, 12345, 0.04), Row("zlib", 2.5, None, 1.26)]


def test_markdown_table():
    assert markdown_table(ROWS) == (
        "| model | bits per byte | entries | seconds |\n"
        "| --- | --: | --: | --: |\n"
        "| counts | 4.000 | 12,345 | 0.0 |\n"
        "| zlib | 2.500 |  | 1.3 |"
    )


def test_markdown_table_with_a_floor():
    assert markdown_table(ROWS, ("true entropy", 2.0)) == (
        "| model | bits per byte | above the floor | entries | seconds |\n"
        "| --- | --: | --: | --: | --: |\n"
        "| counts | 4.000 | +100.0% | 12,345 | 0.0 |\n"
        "| zlib | 2.500 | +25.0% |  | 1.3 |\n"
        "| **true entropy** | **2.000** |  |  |  |"
    )


def test_markdown_table_without_times():
    assert markdown_table(ROWS[1:], ("true entropy", 2.0), seconds=False) == (
        "| model | bits per byte | above the floor | entries |\n"
        "| --- | --: | --: | --: |\n"
        "| zlib | 2.500 | +25.0% |  |\n"
        "| **true entropy** | **2.000** |  |  |"
    )
