"""Encoding: the fast path against the definition, and the promises about chunks, special tokens and caches."""

import time
from itertools import islice, pairwise
from random import Random

import pytest
from regex import findall

from minillm.errors import TokenizerError
from minillm.tokenizers import END_OF_TEXT, BPETokenizer, bpe_indexed
from minillm.tokenizers.bpe import Memory
from minillm.tokenizers.bpe_naive import encode_by_rank, encode_piece
from minillm.tokenizers.pretokenize import SPLIT_PATTERNS

CORPUS = (
    "It's a truth universally acknowledged, that we'll test 12345 things;\n\n    and then\t2 more... "
    "über naïve café 中文 中文字 日本語 😀😀 don't DON'T x=1; y+=22\r\nfor i in range(10):\n        print(i)\n"
) * 4
BYTES = {byte: bytes([byte]) for byte in range(256)}


@pytest.fixture(scope="module", params=["gpt2", "gpt4", r"\w+|\s"])
def tokenizer(request):
    return BPETokenizer.train(CORPUS, 420, [END_OF_TEXT, "<|user|>", "<|user|>x"], request.param)


def random_text(random, length):
    kinds = [lambda: random.choice(CORPUS), lambda: random.choice(" \n\t'a1;é中"), lambda: any_character(random)]
    kinds.append(lambda: random.choice([END_OF_TEXT, "<|user|>", "<|user|>x", "<|", "  ", "\n\n"]))
    return "".join(random.choices(kinds, [6, 3, 1, 1])[0]() for _ in range(length))


def any_character(random):
    code = random.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def naive_ids(tokenizer, text):
    """The definition, from start to end: the split of the whole text, then the merges one after the other."""
    pattern = SPLIT_PATTERNS.get(tokenizer.pattern)
    if pattern is None:
        return None
    id_of = {token: token_id for token_id, token in tokenizer.vocab.items()}
    pieces = findall(pattern.expression, text)
    return [id_of[token] for piece in pieces for token in encode_piece(piece.encode(), tokenizer.merges)]


def test_encode_is_the_definition(tokenizer):
    random = Random(0)
    for _ in range(60):
        text = random_text(random, random.randint(0, 40))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        if (expected := naive_ids(tokenizer, text)) is not None:
            assert ids == expected, repr(text)


@pytest.mark.parametrize("seed", range(40))
def test_short_and_long_merging_are_the_definition(seed):
    random = Random(seed)
    counts = {"".join(random.choices("aab", k=random.randint(1, 20))).encode(): random.randint(1, 3) for _ in range(9)}
    merges = bpe_indexed.train_merges(counts, random.choice([3, 20, 200]))
    products = [256 + rank for rank in range(len(merges))]
    token_of = {**BYTES, **{256 + rank: left + right for rank, (left, right) in enumerate(merges)}}
    id_of = {token: token_id for token_id, token in token_of.items()}
    ranks = {(id_of[left], id_of[right]): rank for rank, (left, right) in enumerate(merges)}
    for length in (0, 1, 2, 7, 33, 200):
        piece = "".join(random.choices("aab", k=length)).encode()
        expected = [id_of[token] for token in encode_piece(piece, merges)]
        assert encode_by_rank(list(piece), ranks, products) == expected
        assert bpe_indexed.merge_long(list(piece), ranks, products) == expected
        assert bpe_indexed.merge_ids(list(piece), ranks, products) == expected


def test_every_token_is_encoded_as_itself(tokenizer):
    ordinary = set(range(256 + len(tokenizer.merges)))
    assert all(tokenizer.encode_bytes(tokenizer.vocab[token_id]) == [token_id] for token_id in ordinary)


@pytest.mark.parametrize("allowed", [frozenset(), "all", {END_OF_TEXT}], ids=str)
def test_any_parting_gives_the_ids_of_the_whole(tokenizer, allowed):
    random = Random(5)
    for _ in range(150):
        text = random_text(random, random.randint(0, 30))
        cuts = sorted({0, len(text), *random.choices(range(len(text) + 1), k=random.randint(0, 9))})
        expected = tokenizer.encode(text, allowed)
        for parts in ([text[a:b] for a, b in pairwise(cuts)], list(text), ["", text, ""]):
            assert list(tokenizer.encode_iterable(parts, allowed)) == expected, parts


def test_encode_iterable_is_lazy():
    tokenizer = BPETokenizer.train(CORPUS, 400)
    n_taken = 0

    def endless():
        nonlocal n_taken
        while True:
            n_taken += 1
            yield "one more line of text\n"

    assert len(list(islice(tokenizer.encode_iterable(endless()), 50))) == 50
    assert n_taken < 30
    n_taken = 0
    assert len(list(islice(tokenizer.encode_iterable(endless(), "all"), 50))) == 50
    assert n_taken < 30


def test_long_texts_are_cut_in_blocks(tokenizer, monkeypatch):
    expected = tokenizer.encode(CORPUS)
    for size in (1, 5, 64):
        monkeypatch.setattr("minillm.tokenizers.pretokenize.blocks.__defaults__", (size,))
        assert tokenizer.encode(CORPUS) == expected


def test_special_tokens_only_when_allowed(tokenizer):
    end, user, longer = (tokenizer.special_tokens[string] for string in (END_OF_TEXT, "<|user|>", "<|user|>x"))
    for string in tokenizer.special_tokens:
        ids = tokenizer.encode(f"a{string}b")
        assert max(ids) < min(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == f"a{string}b"
    assert tokenizer.encode(f"a{END_OF_TEXT}", "all") == [97, end]
    assert tokenizer.encode("<|user|>x<|user|>y", "all") == [longer, user, 121]
    assert tokenizer.encode("<|user|>x", {"<|user|>"}) == [user, 120]
    assert tokenizer.encode(END_OF_TEXT * 2, [END_OF_TEXT]) == [end, end]
    assert tokenizer.decode([end, 97, user]) == f"{END_OF_TEXT}a<|user|>"
    for wrong in ({"<|nobody|>"}, END_OF_TEXT):
        with pytest.raises(TokenizerError, match="allowed_special"):
            tokenizer.encode("a", wrong)


def test_special_token_that_is_an_ordinary_token_too():
    tokenizer = BPETokenizer(BYTES | {256: b"ab"}, [(b"a", b"b")], ["ab", "x"])
    assert tokenizer.special_tokens == {"ab": 257, "x": 258}
    again = BPETokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
    for each in (tokenizer, again):
        assert each.encode("abx") == [256, 120]
        assert each.encode("abx", "all") == [257, 258]


def test_special_tokens_in_the_given_vocabulary():
    vocab = {0: b"<|endoftext|>", **{1 + byte: bytes([byte]) for byte in range(256)}, 257: b"th"}
    for special_tokens in ([END_OF_TEXT], {END_OF_TEXT: 0}):
        tokenizer = BPETokenizer(vocab, [(b"t", b"h")], special_tokens)
        assert tokenizer.special_tokens == {END_OF_TEXT: 0} and tokenizer.vocab_size == 258
        assert tokenizer.encode("the<|endoftext|>", "all") == [257, 102, 0]


@pytest.mark.parametrize(
    ("vocab", "merges", "special_tokens", "message"),
    [
        ({}, [], (), "lacks 256"),
        ({byte: bytes([byte]) for byte in range(255)}, [], (), "lacks 1 of"),
        (BYTES, [(b"a", b"b")], (), "not in the vocabulary"),
        (BYTES | {256: b"ab"}, [(b"a", b"b"), (b"a", b"b")], (), "twice"),
        (BYTES | {256: b"abc"}, [(b"ab", b"c")], (), "no earlier merge"),
        (BYTES | {256: b"a"}, [], (), "more than one id"),
        (BYTES | {-1: b"ab"}, [], (), "negative"),
        (BYTES | {"x": b"ab"}, [], (), "int ids"),
        (BYTES | {256: "ab"}, [], (), "bytes"),
        (BYTES, [], {"<|x|>": 97}, "own"),
        (BYTES | {256: b"<|y|>"}, [], {"<|x|>": 256}, "256"),
        (BYTES, [], {"<|x|>": 256, "<|y|>": 256}, "share"),
        (BYTES, [], {"<|x|>": "256"}, "own"),
    ],
)
def test_parts_that_do_not_fit(vocab, merges, special_tokens, message):
    with pytest.raises(TokenizerError, match=message):
        BPETokenizer(vocab, merges, special_tokens)


def test_construction_is_cheap():
    merges = [(bytes([a]), bytes([b])) for a in range(256) for b in range(200)]
    vocab = BYTES | {256 + n: left + right for n, (left, right) in enumerate(merges)}
    start = time.perf_counter()
    BPETokenizer(vocab, merges, [END_OF_TEXT])
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("text", ["a", " ", "中", "\n"], ids=repr)
def test_long_runs_take_near_linear_time(text):
    tokenizer = BPETokenizer.train((text * 64 + "b") * 3, 262)
    seconds = []
    for n in (20_000, 100_000):
        start = time.perf_counter()
        ids = tokenizer.encode(text * n)
        seconds.append(time.perf_counter() - start)
        assert tokenizer.decode(ids) == text * n
    assert seconds[1] < 5 * 5 * max(seconds[0], 0.01)


def test_million_spaces():
    tokenizer = BPETokenizer.train(" " * 64 + "a", 262)
    text = " " * 1_000_000 + "a"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < 1_000_000 / 8


def test_memory_forgets_and_stays_right():
    memory = Memory(lambda text: tuple(text.encode()), max_entries=3)
    for text in ["a", "b", "a", "c", "d", "a", "x" * 1000]:
        assert memory[text] == tuple(text.encode())
        assert len(memory) <= 3
    assert "x" * 1000 not in memory
