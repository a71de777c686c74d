"""Ids on disk: the same numbers come back, and nothing damaged or half-written is ever taken for whole."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from minillm.data.packing import open_packed, pack
from minillm.errors import ConfigError, DataError, MinillmError
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer

DOCUMENTS = ["Once upon a time", "", "鹅 and é", "a\0b" * 20]


class Numbers:
    """A tokenizer whose ids are the numbers in the text."""

    special_tokens = {"<|endoftext|>": 0}

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def encode_iterable(self, texts):
        for text in texts:
            yield from map(int, text.split())

    def fingerprint(self):
        return f"numbers below {self.vocab_size}"


def expected_ids(documents, tokenizer):
    return [i for text in documents for i in [*tokenizer.encode(text), tokenizer.special_tokens["<|endoftext|>"]]]


@pytest.mark.parametrize("shard_tokens", [1, 7, 10**6])
def test_the_ids_come_back(tmp_path, shard_tokens):
    tokenizer = ByteTokenizer()
    ids = expected_ids(DOCUMENTS, tokenizer)
    tokens = pack(iter(DOCUMENTS), tokenizer, tmp_path / "deep" / "packed", shard_tokens)
    assert len(tokens) == len(ids) and tokens[:].tolist() == ids and tokens[:].dtype == np.int64
    assert len(list((tmp_path / "deep" / "packed").glob("*.bin"))) == -(-len(ids) // shard_tokens)
    for start, stop in [(0, 0), (3, 9), (6, 7), (0, 10**9), (-5, None), (5, 2), (len(ids), None), (6, 29)]:
        assert tokens[start:stop].tolist() == ids[start:stop]
    assert [tokens[0], tokens[-1], tokens[len(ids) - 1]] == [ids[0], ids[-1], ids[-1]]
    assert list(tokens) == ids


def test_what_the_index_says(tmp_path):
    tokenizer = ByteTokenizer()
    pack(DOCUMENTS, tokenizer, tmp_path / "packed")
    tokens = open_packed(tmp_path / "packed", tokenizer)
    assert tokens.n_documents == 4
    assert tokens.n_text_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert (tokens.vocab_size, tokens.end_of_text_id) == (257, 256)
    assert tokens.tokenizer_fingerprint == tokenizer.fingerprint()


def test_reading_past_the_end(tmp_path):
    tokens = pack(["ab"], ByteTokenizer(), tmp_path / "packed")
    for place in (3, -4):
        with pytest.raises(IndexError, match=f"token {place} of a sequence of 3"):
            tokens[place]
    with pytest.raises(DataError, match="steps of 1"):
        tokens[::2]


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (65_537, 4), (2**32, 4)])
def test_the_width_follows_the_vocabulary(tmp_path, vocab_size, width):
    tokens = pack([f"{vocab_size - 1} 1"], Numbers(vocab_size), tmp_path / "packed")
    assert tokens[:].tolist() == [vocab_size - 1, 1, 0]
    content = (tmp_path / "packed" / "shard-00000.bin").read_bytes()
    assert content == b"".join(i.to_bytes(width, "little") for i in (vocab_size - 1, 1, 0))


def test_bpe(tmp_path):
    texts = ["the cat sat on the mat. " * 20, "the hat"]
    tokenizer = BPETokenizer.train(texts, 280)
    assert pack(texts, tokenizer, tmp_path / "packed")[:].tolist() == expected_ids(texts, tokenizer)


def test_packing_is_lazy(tmp_path):
    """Ids are asked for one shard at a time, documents one at a time."""
    asked = []

    def documents():
        for number in range(100):
            asked.append(number)
            if number == 50:
                n_shards = [len(list(folder.glob("*.bin"))) for folder in tmp_path.iterdir()]
                assert n_shards == [10]
            yield "abcd"

    assert len(pack(documents(), ByteTokenizer(), tmp_path / "packed", shard_tokens=25)) == 500
    assert len(asked) == 100


@pytest.mark.parametrize("numbers", ["5 10", "5 70000", "-1"])
def test_a_tokenizer_outside_its_vocabulary(tmp_path, numbers):
    with pytest.raises(DataError, match="vocabulary"):
        pack([numbers], Numbers(10), tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no document to pack"):
        pack([], ByteTokenizer(), tmp_path / "packed")
    with pytest.raises(DataError, match="document 1 has a lone surrogate at character 2"):
        pack(["fine", "ab\ud83d"], ByteTokenizer(), tmp_path / "packed")
    with pytest.raises(ConfigError, match="special token <|endoftext|>"):
        pack(["a"], ByteTokenizer(special_tokens=[]), tmp_path / "packed")
    with pytest.raises(ConfigError, match="shard_tokens must be at least 1, not 0"):
        pack(["a"], ByteTokenizer(), tmp_path / "packed", shard_tokens=0)
    assert list(tmp_path.iterdir()) == []


def test_an_older_packing_is_replaced_only_by_a_whole_one(tmp_path):
    folder = tmp_path / "packed"
    pack(["old"], ByteTokenizer(), folder, shard_tokens=1)

    def documents():
        yield "new"
        raise MinillmError("the text broke off")

    with pytest.raises(MinillmError, match="broke off"):
        pack(documents(), ByteTokenizer(), folder)
    assert open_packed(folder)[:3].tolist() == list(b"old")
    pack(["new!"], ByteTokenizer(), folder)
    assert open_packed(folder)[:].tolist() == [*b"new!", 256]
    assert list(tmp_path.iterdir()) == [folder] and len(list(folder.iterdir())) == 2


def test_killed_while_packing(tmp_path):
    """What a killed packing leaves is no packing, and the next one clears it away."""
    folder = tmp_path / "packed"
    pack(["old"], ByteTokenizer(), folder)
    child = os.fork()
    if child == 0:
        try:
            pack(iter(lambda: "endless text", ""), ByteTokenizer(), folder, shard_tokens=100)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.rglob("*.bin"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    assert open_packed(folder)[:].tolist() == [*b"old", 256]
    pack(["new"], ByteTokenizer(), folder)
    assert open_packed(folder)[:].tolist() == [*b"new", 256] and list(tmp_path.iterdir()) == [folder]


def test_another_folder_is_never_replaced(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("work", "file"):
        with pytest.raises(DataError, match="exists and is not a packing"):
            pack(["a"], ByteTokenizer(), tmp_path / name)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert len(pack(["a"], ByteTokenizer(), tmp_path / "empty")) == 2


@pytest.fixture
def packed(tmp_path) -> Path:
    pack(DOCUMENTS, ByteTokenizer(), tmp_path / "packed", shard_tokens=20)
    return tmp_path / "packed"


def test_a_flipped_bit_is_seen(packed):
    shard = packed / "shard-00001.bin"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"SHA-256 of .*shard-00001\.bin differs"):
        open_packed(packed)
    assert len(open_packed(packed, verify=False)) > 20


@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_or_missing_shard_is_seen(packed, verify):
    shard = packed / "shard-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"shard-00002\.bin has 38 bytes, expected 40"):
        open_packed(packed, verify=verify)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00002\.bin is missing, expected 40 bytes"):
        open_packed(packed, verify=verify)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": "other"}', b"\xff"])
def test_a_damaged_index(packed, content):
    (packed / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        open_packed(packed)


def test_an_index_whose_counts_disagree(packed):
    index = json.loads((packed / "index.json").read_text())
    index["n_tokens"] += 1
    (packed / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="is damaged"):
        open_packed(packed)


def test_no_packing_at_all(tmp_path):
    with pytest.raises(DataError, match=r"is not a packing: it has no index\.json"):
        open_packed(tmp_path)


def test_another_tokenizer(packed):
    with pytest.raises(DataError, match="was packed with the tokenizer"):
        open_packed(packed, ByteTokenizer(special_tokens=["<|endoftext|>", "<|user|>"]))
