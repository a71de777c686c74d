"""The indexed trainer must learn what the definition learns; the definition is checked by hand."""

import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers import END_OF_TEXT, BPETokenizer, bpe_indexed, bpe_naive
from minillm.tokenizers import bpe as bpe_module
from minillm.tokenizers.bpe import count_pieces
from minillm.tokenizers.pretokenize import split, split_pattern


def test_count_pairs_by_hand():
    words = {(b"a", b"a", b"a"): 2, (b"a", b"b"): 5}
    assert bpe_naive.count_pairs(words) == {(b"a", b"a"): 4, (b"a", b"b"): 5}


@pytest.mark.parametrize(
    ("word", "pair", "expected"),
    [
        ("aaaa", "a a", ["aa", "aa"]),
        ("aaaaa", "a a", ["aa", "aa", "a"]),
        ("abab", "a b", ["ab", "ab"]),
        ("abc", "c a", ["a", "b", "c"]),
        ("", "a b", []),
    ],
)
def test_merge_by_hand(word, pair, expected):
    left, right = pair.encode().split()
    assert bpe_naive.merge(bpe_naive.word_of(word.encode()), (left, right)) == tuple(part.encode() for part in expected)


def test_ties_take_the_greatest_pair_of_byte_strings():
    assert bpe_naive.train_merges({b"ab": 1, b"cd": 1, b"ce": 1}, 1) == [(b"c", b"e")]
    assert bpe_naive.train_merges({"aé".encode(): 1, b"az": 1}, 1) == [(b"\xc3", b"\xa9")]
    # "ab" is greater than "a": the longer left side wins against a greater right side
    assert bpe_naive.train_merges({b"ab": 9, b"abc": 1, b"az": 1}, 2) == [(b"a", b"b"), (b"ab", b"c")]


def test_sennrichs_example():
    counts = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    merges = [b"s t", b"e st", b"o w", b"l ow", b"w est", b"n e", b"ne west"]
    assert bpe_naive.train_merges(counts, 7) == [tuple(line.split(b" ")) for line in merges]


@pytest.mark.parametrize("seed", range(60))
def test_indexed_merges_are_the_naive_ones(seed):
    """Few letters and equal counts make overlaps (aaa) and ties the rule, not the exception."""
    random = Random(seed)
    letters = "ab" if seed % 3 == 0 else "abc\xe9" if seed % 3 == 1 else "abcdefgh\u4e2d"
    pieces = ["".join(random.choices(letters, k=random.randint(0, 12))).encode() for _ in range(random.randint(1, 40))]
    counts = {piece: random.choice([1, 1, 2, 7]) for piece in pieces}
    n_merges = random.choice([0, 1, 5, 30, 10_000])
    assert bpe_indexed.train_merges(counts, n_merges) == bpe_naive.train_merges(counts, n_merges)


def test_indexed_merges_on_real_text():
    text = (bpe_module.__doc__ + BPETokenizer.__doc__ + BPETokenizer.train.__doc__ + BPETokenizer.__init__.__doc__) * 2
    counts = Counter(piece.encode() for piece in split(text, split_pattern("gpt4").expression))
    merges = bpe_naive.train_merges(counts, 400)
    assert len(merges) == 400
    assert bpe_indexed.train_merges(counts, 400) == merges


def test_a_merge_never_makes_a_token_twice():
    for seed in range(200):
        random = Random(seed)
        pieces = ["".join(random.choices("ab", k=random.randint(1, 14))).encode() for _ in range(12)]
        counts = {piece: random.randint(1, 4) for piece in pieces}
        products = [left + right for left, right in bpe_indexed.train_merges(counts, 1000)]
        assert len(set(products)) == len(products)


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "[a-z]+| "])
def test_counts_are_those_of_the_plain_split(pattern, monkeypatch):
    monkeypatch.setattr(bpe_module, "MAX_COUNTED_CHUNKS", 5)
    texts = ["It's a  test;\n\n of 12345 things,", "it's a test\u3000中文 é"]
    expected = Counter()
    for text in texts:
        expected.update(piece.encode() for piece in split(text, split_pattern(pattern).expression))
    assert count_pieces([iter([text]) for text in texts], [], split_pattern(pattern)) == expected


def test_ids_are_bytes_then_merges_then_specials():
    tokenizer = BPETokenizer.train("ab ab ab cd", vocab_size=260, special_tokens=["<|x|>", END_OF_TEXT])
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert tokenizer.merges == [(b"a", b"b"), (b" ", b"ab")]
    assert [tokenizer.token_bytes(i) for i in range(256, 260)] == [b"ab", b" ab", b"<|x|>", b"<|endoftext|>"]
    assert tokenizer.special_tokens == {"<|x|>": 258, END_OF_TEXT: 259}
    assert tokenizer.vocab_size == 260 and not tokenizer.merges_ran_out


def test_text_path_and_documents_are_the_same_corpus(tmp_path):
    text = "the cat sat on the mat;\n\nthe dog's 12 cats 中文中文\n" * 30
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())      # a byte order mark is not text
    expected = BPETokenizer.train(text, 300).merges
    assert expected[0] == (b"a", b"t")
    assert BPETokenizer.train(path, 300).merges == expected
    assert BPETokenizer.train(text.splitlines(keepends=True), 300).merges == expected
    assert BPETokenizer.train((line for line in [text]), 300).merges == expected


def test_a_file_is_read_in_parts_that_change_nothing(tmp_path, monkeypatch):
    text = "zwei Wörter und <|endoftext|> noch zwei;\n\n  Ende 中文" * 5
    path = tmp_path / "corpus.txt"
    path.write_text(text, encoding="utf-8", newline="")
    for n_bytes in (1, 2, 7):
        monkeypatch.setattr("minillm.tokenizers.reading.READ_BYTES", n_bytes)
        assert BPETokenizer.train(path, 300).merges == BPETokenizer.train(text, 300).merges


def test_no_merge_crosses_documents_or_special_tokens():
    assert BPETokenizer.train(["a", "b"] * 5, 300).merges == []
    for text in ("a<|endoftext|>b<|endoftext|>" * 5, "<|endoftext|>".join("ab" * 5)):
        tokenizer = BPETokenizer.train(text, 300)
        assert tokenizer.merges == []
        assert tokenizer.merges_ran_out and tokenizer.vocab_size == 257
    without = BPETokenizer.train("a<|endoftext|>b" * 5, 300, special_tokens=[])
    assert any(b"end" in left + right for left, right in without.merges)
    overlapping = BPETokenizer.train("<|x|>yab<|x|>y<|x|>ab", 300, special_tokens=["<|x|>", "<|x|>y"])
    assert overlapping.merges == [(b"a", b"b")]


def test_merges_that_run_out_stop_early():
    tokenizer = BPETokenizer.train("aaaa", 10_000)
    assert tokenizer.merges == [(b"a", b"a"), (b"aa", b"aa")]
    assert tokenizer.vocab_size == 259 and tokenizer.merges_ran_out
    assert not BPETokenizer.train("aaaa", 259).merges_ran_out
    assert BPETokenizer.train("aaaa", 258).merges == [(b"a", b"a")]
    assert BPETokenizer.train("aaaa", 257).merges == []


@pytest.mark.parametrize("vocab_size", [0, -1, 255, 256, 300.0, True, "300", None])
def test_vocabulary_too_small_or_no_number(vocab_size):
    with pytest.raises(TokenizerError, match="at least 257"):
        BPETokenizer.train("abc", vocab_size)


@pytest.mark.parametrize("source", ["", [], ["", ""], iter([]), [END_OF_TEXT]], ids=repr)
def test_empty_corpus(source):
    with pytest.raises(DataError, match="empty"):
        BPETokenizer.train(source, 300)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="missing.txt"):
        BPETokenizer.train(tmp_path / "missing.txt", 300)
    with pytest.raises(DataError, match="directory"):
        BPETokenizer.train(tmp_path, 300)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="empty"):
        BPETokenizer.train(tmp_path / "empty.txt", 300)


@pytest.mark.parametrize("n_bytes", [1, 3, 4, 1000])
@pytest.mark.parametrize(("content", "offset"), [(b"ab\xff", 2), (b"\xe4\xb8\xadab\xe4\xb8", 5), (b"a\xe4\xb8b", 1)])
def test_wrong_encoding_names_the_byte(tmp_path, monkeypatch, n_bytes, content, offset):
    monkeypatch.setattr("minillm.tokenizers.reading.READ_BYTES", n_bytes)
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"offset {offset}$"):
        BPETokenizer.train(path, 300)


@pytest.mark.parametrize("source", [b"abc", 7, None, [b"abc"], ["a", 7], ["a", None]], ids=repr)
def test_corpus_that_is_no_text(source):
    with pytest.raises(TokenizerError, match="str"):
        BPETokenizer.train(source, 300)


def test_surrogates_in_the_corpus():
    with pytest.raises(TokenizerError, match="U\\+D800 at position 1"):
        BPETokenizer.train("a\ud800", 300)


@pytest.mark.parametrize("special_tokens", [[""], ["a", "a"], "<|x|>", [7], ["\ud800"]], ids=repr)
def test_wrong_special_tokens(special_tokens):
    with pytest.raises(TokenizerError):
        BPETokenizer.train("abc", 300, special_tokens=special_tokens)


def test_the_same_on_every_hash_seed():
    program = (
        "from minillm.tokenizers import BPETokenizer, WordTokenizer, CharTokenizer;"
        "t = 'the cat and the dog and the bird ate 12 fish; ' * 3 + 'é中文 xyz zyx';"
        "print([k.train(t, **a).fingerprint() for k, a in"
        " ((BPETokenizer, {'vocab_size': 320}), (WordTokenizer, {'vocab_size': 12}), (CharTokenizer, {}))])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_million_spaces_and_a_long_word_train():
    tokenizer = BPETokenizer.train(" " * 300_000 + "a" * 300_000, 280)
    assert (b" " * 1024, b" " * 1024) in tokenizer.merges


@pytest.mark.slow
def test_one_line_of_50_megabytes(tmp_path):
    import resource

    path = tmp_path / "line.txt"
    with path.open("w") as file:
        for n in range(500):
            file.write(f"the {n} quick brown foxes jump over lazy dogs, don't they? " * 1725)
    assert path.stat().st_size > 50e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer = BPETokenizer.train(path, 1000)
    assert b" quick" in tokenizer.vocab.values()
    n_ids = 0
    with path.open() as file:
        for _ in tokenizer.encode_iterable(file):
            n_ids += 1
    assert 500 * 1725 * 12 < n_ids < 500 * 1725 * 20
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes < 600e6                             # the counts of chunks and one block at a time, not the line
