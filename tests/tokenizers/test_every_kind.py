"""What our tokenizers promise alike, and what is special to characters and words (WordPiece: test_wordpiece)."""

import json
import os
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    load_tokenizer,
)

TEXT = "It's the end of the line;\n\n  the naïve café, 中文 and 😀 12 times.\tThe end.\r\n"
MAKERS = {
    "bytes": ByteTokenizer,
    "chars": lambda: CharTokenizer.train(TEXT),
    "words": lambda: WordTokenizer.train(TEXT),
    "bpe": lambda: BPETokenizer.train(TEXT, 290),
    "bpe, gpt4": lambda: BPETokenizer.train(TEXT, 290, pattern="gpt4"),
}
LOSSLESS = ["bytes", "bpe", "bpe, gpt4"]


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param]()


def any_text(random, n_characters):
    codes = [random.choice([random.randrange(0x80), random.randrange(0xD800), random.randrange(0xE000, 0x110000)])
             for _ in range(n_characters)]
    return "".join(map(chr, codes))


def test_known_text_comes_back(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert all(type(token_id) is int and 0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert list(tokenizer.special_tokens) == [END_OF_TEXT]
    assert tokenizer.vocab_size == max(tokenizer.special_tokens.values()) + 1
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert list(tokenizer.encode_iterable([])) == [] and list(tokenizer.decode_stream([])) == []


@pytest.mark.parametrize("name", LOSSLESS)
def test_fuzz_every_plane_comes_back(name):
    tokenizer, random = MAKERS[name](), Random(0)
    for _ in range(1_500):
        text = any_text(random, random.randint(0, 20))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert "".join(tokenizer.decode_stream(ids)) == text
    every_plane = "".join(chr(code) for code in range(0, 0x110000, 13) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(every_plane)) == every_plane


def test_fuzz_characters_that_were_seen_come_back():
    random = Random(1)
    for _ in range(200):
        text = any_text(random, random.randint(1, 20))
        for tokenizer in (CharTokenizer.train(text, []), WordTokenizer.train(text, special_tokens=[])):
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufeffabc", " " * 1000, "\r\n\r", "\x1c\x1d", "e\u0301", "\U0010ffff"])
@pytest.mark.parametrize("name", MAKERS)
def test_odd_characters_come_back(name, text):
    if name in LOSSLESS:
        tokenizer = MAKERS[name]()
    else:
        tokenizer = type(MAKERS[name]()).train(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_parting_the_text_changes_nothing(tokenizer):
    random = Random(2)
    for _ in range(100):
        text = "".join(random.choices(TEXT, k=random.randint(0, 30)))
        cuts = sorted({0, len(text), *random.choices(range(len(text) + 1), k=5)})
        parts = [text[a:b] for a, b in pairwise(cuts)]
        assert list(tokenizer.encode_iterable(parts)) == list(tokenizer.encode_iterable(text)) == tokenizer.encode(text)


def test_special_strings_in_user_text(tokenizer):
    if tokenizer.kind == "chars":
        tokenizer = CharTokenizer.train(TEXT + "<|>x")
    ids = tokenizer.encode(f"x{END_OF_TEXT}")
    assert tokenizer.special_tokens[END_OF_TEXT] not in ids
    if tokenizer.kind != "words":
        assert tokenizer.decode(ids) == f"x{END_OF_TEXT}"
    assert tokenizer.decode([tokenizer.special_tokens[END_OF_TEXT]]) == END_OF_TEXT


def test_decode_stream_holds_incomplete_characters_back(tokenizer):
    parts = list(tokenizer.decode_stream(tokenizer.encode(TEXT)))
    assert "".join(parts) == TEXT and len(parts) > 5
    assert all(parts) and "\ufffd" not in "".join(parts)


def test_streams_of_any_bytes_agree_with_decode():
    tokenizer, random = MAKERS["bpe"](), Random(3)
    for _ in range(3_000):
        ids = random.choices([*b"A\x80\xbf\xc3\xa9\xe4\xb8\xad\xed\xa0\xf0\x9f\x98\xff", 270], k=8)
        expected = b"".join(tokenizer.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")
        assert tokenizer.decode(ids) == expected
        assert "".join(tokenizer.decode_stream(ids)) == expected


def test_partial_characters_by_hand():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([0xE4, 0xB8]) == "\ufffd"
    assert list(tokenizer.decode_stream([97, 0xE4, 0xB8, 0xAD, 98, 0xE4])) == ["a", "中", "b", "\ufffd"]
    arrived = []

    def ids():
        for token_id in [97, 98]:
            arrived.append(token_id)
            yield token_id

    assert next(tokenizer.decode_stream(ids())) == "a" and arrived == [97]


@pytest.mark.parametrize("wrong", [-1, 10**9, 10**30, 1.0, np.float32(2), "7", None], ids=repr)
def test_wrong_ids_are_named(tokenizer, wrong):
    for decode in (tokenizer.decode, lambda ids: list(tokenizer.decode_stream(ids))):
        with pytest.raises(TokenizerError, match="at position 1") as raised:
            decode([0, wrong])
        assert repr(wrong) in str(raised.value)
    with pytest.raises(TokenizerError, match=str(tokenizer.vocab_size)):
        tokenizer.decode([tokenizer.vocab_size])


def test_ids_in_a_gap_of_the_vocabulary():
    tokenizer = BPETokenizer({byte: bytes([byte]) for byte in range(256)}, [], {"<|x|>": 300})
    assert tokenizer.vocab_size == 301 and tokenizer.decode([300]) == "<|x|>"
    with pytest.raises(TokenizerError, match="token id 299"):
        tokenizer.decode([299])


def test_numpy_ids_decode(tokenizer):
    for dtype in (np.uint16, np.int64):
        ids = np.array(tokenizer.encode(TEXT), dtype=dtype)
        assert tokenizer.decode(ids) == TEXT
        assert "".join(tokenizer.decode_stream(ids)) == TEXT


def test_lone_surrogates(tokenizer):
    for encode in (tokenizer.encode, lambda text: list(tokenizer.encode_iterable([text[:2], text[2:]]))):
        with pytest.raises(TokenizerError, match="U\\+DC80 at position 3"):
            encode("the\udc80n")
    if tokenizer.kind in ("bytes", "bpe"):
        assert tokenizer.decode(tokenizer.encode("a\ud83db", errors="replace")) == "a\ufffdb"
        assert tokenizer.decode(tokenizer.encode_iterable(["a\ud83d", "b"], errors="replace")) == "a\ufffdb"
    with pytest.raises(TokenizerError, match="strict"):
        tokenizer.encode("a", errors="ignore")


@pytest.mark.parametrize("wrong", [b"abc", None, 7, ["a"]], ids=repr)
def test_what_is_no_text(tokenizer, wrong):
    with pytest.raises(TokenizerError, match=type(wrong).__name__):
        tokenizer.encode(wrong)
    with pytest.raises(TokenizerError):
        list(tokenizer.encode_iterable([wrong]))
    with pytest.raises(TokenizerError, match="bytes"):
        list(tokenizer.encode_iterable(b"abc"))


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for loaded in (load_tokenizer(path), type(tokenizer).load(str(path))):
        assert type(loaded) is type(tokenizer)
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.settings() == tokenizer.settings()
        assert loaded.fingerprint() == tokenizer.fingerprint()
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_fingerprints_tell_tokenizers_apart():
    others = [CharTokenizer.train("abc"), CharTokenizer.train("abd"), ByteTokenizer([]), WordTokenizer.train("abc")]
    for pattern in ("gpt2", "gpt4"):
        others += [BPETokenizer.train("abc", 258, special, pattern) for special in (["x"], ["y"])]
    fingerprints = {tokenizer.fingerprint() for tokenizer in others + [make() for make in MAKERS.values()]}
    assert len(fingerprints) == len(others) + len(MAKERS)
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TokenizerError, match="No space left"):
        ByteTokenizer([]).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["tokenizer.json"]


def test_folders_that_cannot_be_written(tmp_path):
    for path in (tmp_path / "none" / "tokenizer.json", tmp_path):
        with pytest.raises(TokenizerError, match="cannot write"):
            ByteTokenizer().save(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_files(tokenizer, tmp_path, share):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        load_tokenizer(path)


def test_one_changed_character_anywhere(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = path.read_bytes()
    random = Random(4)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_tokenizer(path)
        except TokenizerError as error:
            assert "tokenizer.json" in str(error)
        else:
            assert loaded.settings() == tokenizer.settings()  # only white space had changed


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign.json"
    foreign = ["", "[]", "7", "{}", "text", '{"format": "x"}', '{"format": "minillm-tokenizer"}']
    for content in [*foreign, "[" * 10_000 + "]" * 10_000]:
        path.write_text(content)
        with pytest.raises(TokenizerError, match="foreign.json"):
            load_tokenizer(path)
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(TokenizerError, match="foreign.json"):
        load_tokenizer(path)
    path.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
    with pytest.raises(TokenizerError, match="read_hugging_face"):
        load_tokenizer(path)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(TokenizerError, match="cannot read"):
            load_tokenizer(missing)


def test_other_kinds_and_versions(tmp_path):
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(path)
    with pytest.raises(TokenizerError, match="'bytes'"):
        BPETokenizer.load(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(TokenizerError, match="version 99"):
        load_tokenizer(path)


@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe", "morse", None, 7, []], ids=repr)
def test_files_with_settings_missing_or_wrong(kind, tmp_path):
    from minillm.tokenizers.tokenizer import FORMAT, VERSION, _fingerprint

    path = tmp_path / "tokenizer.json"
    for settings in ({}, {"special_tokens": 7, "vocab": 7, "merges": 7, "words": 7, "characters": 7, "unknown": 7}):
        content = {"kind": kind, **settings}
        head = {"format": FORMAT, "version": VERSION, "fingerprint": _fingerprint(content)}
        path.write_text(json.dumps(head | content))
        with pytest.raises(TokenizerError):
            load_tokenizer(path)


# ---- characters ----


def test_characters_are_sorted_and_specials_last():
    tokenizer = CharTokenizer.train(["ba", f"c{END_OF_TEXT}a"])
    assert tokenizer.characters == ["a", "b", "c"]
    assert tokenizer.encode("cab") == [2, 0, 1] and tokenizer.special_tokens == {END_OF_TEXT: 3}


def test_unknown_characters_are_named_with_their_place():
    tokenizer = CharTokenizer.train("abc")
    with pytest.raises(TokenizerError, match="'é' \\(U\\+00E9\\) at position 3"):
        tokenizer.encode("abcéa")
    with pytest.raises(TokenizerError, match="at position 3"):
        list(tokenizer.encode_iterable(["ab", "cé"]))


def test_unknown_characters_by_option(tmp_path):
    tokenizer = CharTokenizer.train("abc", unknown="<unk>")
    ids = tokenizer.encode("aéb")
    assert ids == [0, tokenizer.special_tokens["<unk>"], 1] and tokenizer.decode(ids) == "a<unk>b"
    assert tokenizer.encode("a\ud800", errors="replace") == ids[:2]
    tokenizer.save(tmp_path / "chars.json")
    assert load_tokenizer(tmp_path / "chars.json").encode("aéb") == ids


@pytest.mark.parametrize("characters", [["ab"], ["a", "a"], [""], [7], ["\ud800"]], ids=repr)
def test_wrong_characters(characters):
    with pytest.raises(TokenizerError):
        CharTokenizer(characters)


# ---- words ----


def test_words_keep_their_space():
    tokenizer = WordTokenizer.train("the cat, the dog")
    assert tokenizer.words == [" cat", " dog", " the", ",", "the"]
    assert tokenizer.encode("the cow, cat") == [4, tokenizer.space_unknown_id, 3, 0]
    assert tokenizer.decode(tokenizer.encode("cow the cow")) == "<unk> the <unk>"


def test_most_frequent_words_first():
    assert WordTokenizer.train("b b b a a c").words == [" a", " b", " c", "b"]
    assert WordTokenizer.train("a\na\na\nb\nb\nc", min_count=2).words == ["\n", "a", "b"]
    tokenizer = WordTokenizer.train("a\na\na\nb\nb\nc", vocab_size=5)
    assert tokenizer.words == ["\n", "a"] and tokenizer.vocab_size == 5
    assert tokenizer.decode(tokenizer.encode("a\nc")) == "a\n<unk>"


def test_words_do_not_cross_special_tokens_or_documents():
    assert WordTokenizer.train([f"ab{END_OF_TEXT}cd", "ef"]).words == ["ab", "cd", "ef"]


@pytest.mark.parametrize("options", [{"vocab_size": 3}, {"vocab_size": 0}, {"min_count": 0}], ids=str)
def test_word_limits_out_of_range(options):
    with pytest.raises(TokenizerError):
        WordTokenizer.train("a b", **options)


@pytest.mark.parametrize("words", [["a b"], ["a", "a"], [""], ["\ud800"], [7]], ids=repr)
def test_wrong_words(words):
    with pytest.raises(TokenizerError):
        WordTokenizer(words)


@pytest.mark.parametrize("source", ["", [], [""], [END_OF_TEXT]], ids=repr)
@pytest.mark.parametrize("kind", [CharTokenizer, WordTokenizer])
def test_empty_corpus(kind, source):
    with pytest.raises(DataError, match="empty"):
        kind.train(source)


def test_import_needs_no_torch():
    import subprocess
    import sys

    program = "import sys, minillm.tokenizers; sys.exit('torch' in sys.modules or 'tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
