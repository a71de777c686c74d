"""Against the tokenizers of others: tiktoken with GPT-2's files, and Hugging Face's `tokenizers`. No network."""

import json
import unicodedata
from itertools import product
from pathlib import Path
from random import Random

import pytest
import tiktoken

from minillm.errors import TokenizerError
from minillm.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    byte_strings,
    read_gpt2,
    read_hugging_face,
    write_hugging_face,
)
from minillm.tokenizers.exchange import to_hugging_face

DATA = Path(__file__).resolve().parents[2].parent / "shared/data"
VOCAB, MERGES, SHAKESPEARE = DATA / "gpt2_vocab.json", DATA / "gpt2_merges.txt", DATA / "tinyshakespeare.txt"
needs_gpt2 = pytest.mark.skipif(not VOCAB.exists(), reason="GPT-2's files are not here")

TEXTS = [
    "", " ", "  ", "a", "Hello, world!", "It's we'll I'M DON'T they'Re 'tis ''s 'ſ",
    "x = 1;\n\n    if y:\n\treturn  2\r\n\r\n", "1234567890 12 ٣٤ ½ Ⅷ", "naïve café e\u0301 über Straße ſs",
    "中文字符，日本語。한국어", "😀👩‍👩‍👧 🇩🇪",
    "\0\x01\x1c\x1f\x7f\x85\xa0", "\ufeffBOM", "\u2028\u2029\u3000x",
    "<|endoftext|>", " " * 50 + "x", "\n" * 20, "a" * 300, "trailing   ", "trailing \n ",
    "def f(x):\n    return x**2  # comment\n", "العربية עברית हिन्दी ไทย",
]  # fmt: skip


def hugging_face():
    """The package; not this folder of tests, which has the same name and counts as a package when that is missing."""
    pytest.importorskip("tokenizers.models")
    import tokenizers

    return tokenizers


def random_texts(n_texts, seed=0):
    """Characters of every plane that Unicode had some years ago; newer ones, each library reads by its own tables."""
    random = Random(seed)
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")]
    known = [character for character in known if not 0x10D00 <= ord(character) < 0x10F70]
    common = " \n\t'.,;abcsteré1290_中\u3000ß"
    for _ in range(n_texts):
        yield "".join(random.choice(common if random.random() < 0.8 else known) for _ in range(random.randint(1, 30)))


def gpt2_of_tiktoken():
    """GPT-2 in tiktoken, made of the files by hand; the byte characters here are derived apart from the library's."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    byte_of = {chr(byte): byte for byte in visible}
    byte_of |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in visible)}
    vocab = json.loads(VOCAB.read_text(encoding="utf-8"))
    end = vocab.pop(END_OF_TEXT)
    ranks = {bytes(byte_of[character] for character in token): token_id for token, token_id in vocab.items()}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end})


@pytest.fixture(scope="module")
def gpt2():
    return read_gpt2(VOCAB, MERGES)


@needs_gpt2
def test_gpt2_ids_are_tiktokens(gpt2):
    oracle = gpt2_of_tiktoken()
    assert gpt2.vocab_size == oracle.n_vocab == 50257
    for text in [*TEXTS, *random_texts(3_000)]:
        ids = gpt2.encode(text)
        assert ids == oracle.encode_ordinary(text), repr(text)
        assert gpt2.decode(ids) == text
        assert list(gpt2.encode_iterable(text)) == ids


@needs_gpt2
def test_gpt2_known_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("a<|endoftext|>", "all") == [64, 50256]


@needs_gpt2
@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="TinyShakespeare is not here")
def test_gpt2_on_a_whole_book(gpt2):
    text = SHAKESPEARE.read_text(encoding="utf-8")
    ids = gpt2.encode(text)
    assert ids == gpt2_of_tiktoken().encode_ordinary(text)
    with SHAKESPEARE.open(encoding="utf-8", newline="") as lines:
        assert list(gpt2.encode_iterable(lines)) == ids


@needs_gpt2
def test_gpt2_to_tiktoken_and_back_to_file(gpt2, tmp_path):
    encoding = gpt2.to_tiktoken("gpt2")
    for text in TEXTS:
        assert encoding.encode_ordinary(text) == gpt2.encode(text)
        assert encoding.encode(text, allowed_special="all") == gpt2.encode(text, "all")
    gpt2.save(tmp_path / "gpt2.json")
    loaded = BPETokenizer.load(tmp_path / "gpt2.json")
    assert loaded.encode(" ".join(TEXTS)) == gpt2.encode(" ".join(TEXTS))
    assert loaded.fingerprint() == gpt2.fingerprint()


CORPUS = " ".join(TEXTS) * 3 + "the quick brown fox jumps over the lazy dog; don't you think so? " * 20


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def trained(request):
    return BPETokenizer.train(CORPUS, 600, [END_OF_TEXT, "<|user|>"], request.param)


def test_trained_to_tiktoken(trained):
    encoding = trained.to_tiktoken()
    assert encoding.n_vocab == trained.vocab_size
    for text in [*TEXTS, *random_texts(3_000, seed=1)]:
        assert encoding.encode_ordinary(text) == trained.encode(text), repr(text)
        assert encoding.encode(text, allowed_special="all") == trained.encode(text, "all")


def test_trained_on_repetitions_to_tiktoken():
    """Overlapping pairs are where joining by token and joining by pair could differ."""
    for seed in range(15):
        random = Random(seed)
        corpus = " ".join("".join(random.choices("ab", k=random.randint(1, 12))) for _ in range(40))
        tokenizer = BPETokenizer.train(corpus, 500)
        encoding = tokenizer.to_tiktoken()
        for letters in product("ab", repeat=9):
            assert encoding.encode_ordinary("".join(letters)) == tokenizer.encode("".join(letters))


def test_tiktoken_needs_ascending_ids():
    vocab = {byte: bytes([byte]) for byte in range(256)} | {257: b"ab", 256: b"abc"}
    tokenizer = BPETokenizer(vocab, [(b"a", b"b"), (b"ab", b"c")])
    assert tokenizer.encode("abc") == [256]
    with pytest.raises(TokenizerError, match="ascend"):
        tokenizer.to_tiktoken()


def test_hugging_face_file_comes_back(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    write_hugging_face(trained, path)
    read = read_hugging_face(path)
    assert read.settings() == trained.settings()


@pytest.mark.parametrize("special_tokens", [["ab", "x"], ["ü", "Ġ", "Ġthe"], ["a b", "\n"]], ids=repr)
def test_hugging_face_specials_spelled_like_tokens(special_tokens, tmp_path):
    tokenizer = BPETokenizer.train(" the ab ab" * 3, 260, special_tokens[:1])
    write_hugging_face(tokenizer, tmp_path / "tokenizer.json")
    assert read_hugging_face(tmp_path / "tokenizer.json").settings() == tokenizer.settings()


@pytest.mark.oracle
def test_hugging_face_gives_the_same_ids(trained):
    tokenizers = hugging_face()
    theirs = tokenizers.Tokenizer.from_str(to_hugging_face(trained))
    assert theirs.get_vocab_size() == trained.vocab_size
    for text in [*TEXTS, *random_texts(3_000, seed=2)]:
        ids = theirs.encode(text).ids
        assert ids == trained.encode(text, "all"), repr(text)
        assert theirs.decode(ids, skip_special_tokens=False) == text
    theirs.encode_special_tokens = True
    for text in TEXTS:
        assert theirs.encode(text).ids == trained.encode(text)


@pytest.mark.oracle
def test_hugging_faces_own_file(tmp_path):
    tokenizers = hugging_face()
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=[END_OF_TEXT, "<|user|>"], initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([CORPUS], trainer)
    path = tmp_path / "theirs.json"
    theirs.save(str(path))
    ours = read_hugging_face(path)
    assert ours.vocab_size == theirs.get_vocab_size() and ours.special_tokens == {END_OF_TEXT: 0, "<|user|>": 1}
    for text in [*TEXTS, *random_texts(1_000, seed=3)]:
        assert ours.encode(text, "all") == theirs.encode(text).ids, repr(text)
    write_hugging_face(ours, tmp_path / "ours.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json"))
    assert all(again.encode(text).ids == theirs.encode(text).ids for text in TEXTS)


@pytest.mark.oracle
@needs_gpt2
def test_gpt2_to_hugging_face(gpt2):
    tokenizers = hugging_face()
    theirs = tokenizers.Tokenizer.from_str(to_hugging_face(gpt2))
    for text in [*TEXTS, *random_texts(500, seed=4)]:
        assert theirs.encode(text).ids == gpt2.encode(text, "all"), repr(text)


def changed(content, path, value):
    *parents, last = path.split(".")
    here = content
    for name in parents:
        here = here[int(name) if name.isdigit() else name]
    here[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("normalizer", {"type": "NFC"}),
        ("model.dropout", 0.1),
        ("model.byte_fallback", True),
        ("model.unk_token", "<unk>"),
        ("model.end_of_word_suffix", "</w>"),
        ("model", {"type": "Unigram", "vocab": []}),
        ("model", None),
        ("model.merges", [["a", "b", "c"]]),
        ("model.merges", ["ab"]),
        ("model.merges", [7]),
        ("model.merges", [["a", "\u4e2d"]]),
        ("model.vocab", {"a": "0"}),
        ("model.vocab", {"a": 0, "b": 0}),
        ("model.vocab", []),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer.add_prefix_space", True),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}),
        ("added_tokens.0.lstrip", True),
        ("added_tokens.0.id", 97),
        ("added_tokens", [{"content": 7, "id": 400}]),
        ("added_tokens", [{"id": 400}]),
        ("added_tokens", 7),
    ],
)
def test_hugging_face_files_that_would_give_other_ids(path, value, tmp_path):
    content = json.loads(to_hugging_face(BPETokenizer.train(CORPUS, 300)))
    file = tmp_path / "other.json"
    file.write_text(json.dumps(changed(content, path, value)))
    with pytest.raises(TokenizerError):
        read_hugging_face(file)


def test_ignore_merges_is_read_where_it_changes_nothing(tmp_path):
    tokenizer = BPETokenizer.train(CORPUS, 300)
    file = tmp_path / "llama.json"
    file.write_text(json.dumps(changed(json.loads(to_hugging_face(tokenizer)), "model.ignore_merges", True)))
    assert read_hugging_face(file).encode(CORPUS) == tokenizer.encode(CORPUS)
    content = json.loads(file.read_text())
    content["model"]["vocab"]["qqqq"] = 1000
    file.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="qqqq"):
        read_hugging_face(file)


def test_truncated_and_foreign_files(tmp_path):
    file = tmp_path / "broken.json"
    content = to_hugging_face(BPETokenizer.train(CORPUS, 300))
    for text in (content[:-5], content[: len(content) // 2], "", "[]", "null", "{}"):
        file.write_text(text)
        with pytest.raises(TokenizerError, match="broken.json"):
            read_hugging_face(file)
    file.write_bytes(b"\xff\xfe")
    for missing in (file, tmp_path, tmp_path / "none.json"):
        with pytest.raises(TokenizerError):
            read_hugging_face(missing)


def test_gpt2_files_that_are_broken(tmp_path):
    tokenizer = BPETokenizer.train("ab ab ab", 258, special_tokens=[])
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokens = {byte_strings.printable(token): token_id for token_id, token in tokenizer.vocab.items()}
    vocab.write_text(json.dumps(tokens))
    merges.write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    assert read_gpt2(vocab, merges, []).settings() == tokenizer.settings()
    for broken in ("a b\nĠ", "a b c", "a c", "中 b", "a b\na b"):
        merges.write_text(broken, encoding="utf-8")
        with pytest.raises(TokenizerError):
            read_gpt2(vocab, merges)
    for broken in (json.dumps(tokens)[:-9], "[]", "", '{"a": 0}', '{"a": [0]}'):
        vocab.write_text(broken)
        with pytest.raises(TokenizerError):
            read_gpt2(vocab, merges)


def test_byte_characters():
    characters = byte_strings.byte_characters()
    assert len(set(characters)) == 256 and all(character.isprintable() and character != " " for character in characters)
    assert byte_strings.bytes_of(byte_strings.printable(bytes(range(256)))) == bytes(range(256))
    with pytest.raises(TokenizerError, match="no byte"):
        byte_strings.bytes_of("a b")
