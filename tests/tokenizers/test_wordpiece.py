"""WordPiece: the rule by brute force, training by its definition, and Hugging Face's `tokenizers` beside it."""

import math
from collections import Counter
from itertools import pairwise, product
from random import Random

import numpy as np
import pytest

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers import END_OF_TEXT, WordPieceTokenizer, load_tokenizer
from minillm.tokenizers.wordpiece import SCORES, learn_tokens, longest_pieces, split_words

TEXT = "It's the end of the line;\n\n  the naïve café, 中文 and 😀 12 times.\tThe endless ending ended.\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["cased", "uncased"])
def tokenizer(request):
    return WordPieceTokenizer.train(TEXT * 3, 90, lowercase=request.param)


def every_split(word, vocabulary):
    """All ways to write a word in tokens."""
    def rest(start):
        if start == len(word):
            yield []
        for end in range(start + 1, len(word) + 1):
            if (piece := ("##" if start else "") + word[start:end]) in vocabulary:
                yield from ([piece, *others] for others in rest(end))

    return list(rest(0))


@pytest.mark.parametrize("seed", range(30))
def test_longest_first_among_all_splits(seed):
    """Greedy is the split whose lengths are lexicographically greatest, unless greed runs into a dead end."""
    random = Random(seed)
    pieces = ["".join(letters) for n in (1, 2, 3) for letters in product("ab", repeat=n)]
    vocabulary = set(random.sample(pieces + ["##" + piece for piece in pieces], 12))
    for n in range(1, 8):
        for word in map("".join, product("ab", repeat=n)):
            splits = sorted(every_split(word, vocabulary), key=lambda split: [-len(p.lstrip("#")) for p in split])
            found = longest_pieces(word, vocabulary)
            if found:
                assert found == splits[0]
            elif splits:                                       # greed had to fail: follow it by hand
                reach = 0
                while True:
                    prefix = "##" if reach else ""
                    longest = [k for k in range(1, n - reach + 1) if prefix + word[reach : reach + k] in vocabulary]
                    if not longest:
                        break
                    reach += max(longest)
                assert reach < n


def test_dead_ends_make_the_whole_word_unknown():
    tokenizer = WordPieceTokenizer(["a", "ab", "##b", "##c"])
    assert tokenizer.tokens_of("abc ab abd a") == ["ab", "##c", "ab", "[UNK]", "a"]
    assert tokenizer.decode(tokenizer.encode("abc  abd")) == "abc [UNK]"
    assert longest_pieces("", {"a"}) == []


def test_long_words_are_unknown():
    tokenizer = WordPieceTokenizer(["a", "##a"])
    assert tokenizer.tokens_of("a" * 100) == ["a"] + ["##a"] * 99
    assert tokenizer.tokens_of("a" * 101 + " a") == ["[UNK]", "a"]


@pytest.mark.parametrize(
    ("text", "lowercase", "words"),
    [
        ("Don't  say\n中文字!", False, ["Don", "'", "t", "say", "中", "文", "字", "!"]),
        ("a$b^c `d`", False, ["a", "$", "b", "^", "c", "`", "d", "`"]),
        ("a\0b\u200dc\ufffdd", False, ["abcd"]),
        ("ÀÉÎ naïve", True, ["aei", "naive"]),
        ("日本語カナ한국", False, ["日", "本", "語", "カナ한국"]),
        ("«x» … —", False, ["«", "x", "»", "…", "—"]),
        (" \t\u3000 ", False, []),
    ],
)
def test_words_and_marks(text, lowercase, words):
    assert split_words(text, lowercase) == words


def log_likelihood(words, counts):
    n_of = Counter()
    for word, tokens in words.items():
        for token in tokens:
            n_of[token] += counts[word]
    total = sum(n_of.values())
    return sum(n * math.log(n / total) for n in n_of.values())


def joined(tokens, pair):
    out, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            out.append(pair[0] + pair[1][2:])
            i += 2
        else:
            out.append(tokens[i])
            i += 1
    return out


def score_of(rule, pair, words, counts):
    """A pair's score from the corpus as it stands; likelihood: of the corpus written out, before and after."""
    n_of, n_pair = Counter(), Counter()
    for word, letters in words.items():
        for token in letters:
            n_of[token] += counts[word]
        for neighbours in pairwise(letters):
            n_pair[neighbours] += counts[word]
    if rule == "frequency":
        return n_pair[pair]
    if rule == "ratio":
        return n_pair[pair] / (n_of[pair[0]] * n_of[pair[1]])
    after = log_likelihood({word: joined(letters, pair) for word, letters in words.items()}, counts)
    return round(after - log_likelihood(words, counts), 9)


@pytest.mark.parametrize("rule", SCORES)
@pytest.mark.parametrize("seed", range(8))
def test_learning_is_its_definition(rule, seed):
    random = Random(seed)
    counts = {"".join(random.choices("abcd", k=random.randint(1, 7))): random.choice([1, 2, 5, 9]) for _ in range(9)}
    counts = {word: n for word, n in counts.items() if not any(letter * 3 in word for letter in "abcd")}
    words = {word: [word[0], *("##" + letter for letter in word[1:])] for word in counts}
    tokens = dict.fromkeys(sorted({token for letters in words.values() for token in letters}))
    n_tokens = len(tokens) + 8
    while len(tokens) < n_tokens:
        pairs = {pair for letters in words.values() for pair in pairwise(letters)}
        if not pairs:
            break
        best = max((score_of(rule, pair, words, counts), pair) for pair in pairs)[1]
        words = {word: joined(letters, best) for word, letters in words.items()}
        tokens[best[0] + best[1][2:]] = None
    digits = 9 if rule == "likelihood" else 15                 # sums in another order may differ in the last digits
    assert learn_tokens(counts, n_tokens, lambda *arguments: np.round(SCORES[rule](*arguments), digits)) == list(tokens)


def test_first_tokens_by_hand():
    counts = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    alphabet = ["##g", "##n", "##s", "##u", "b", "h", "p"]
    assert learn_tokens(counts, 8, SCORES["frequency"]) == [*alphabet, "##ug"]      # 20 times
    assert learn_tokens(counts, 8, SCORES["ratio"]) == [*alphabet, "##gs"]          # 5 / (20 * 5) is the largest


def test_too_many_characters_leave_the_rarest_out():
    tokenizer = WordPieceTokenizer.train("aaa aab aac " * 3 + "az", 4)
    assert tokenizer.tokens == ["##a", "a", "[UNK]"]
    assert tokenizer.tokens_of("aaa aab") == ["a", "##a", "##a", "[UNK]"]


def test_ids_in_order_and_specials_last():
    tokenizer = WordPieceTokenizer.train("low low lower", 9, [END_OF_TEXT, "[MASK]"])
    assert tokenizer.vocab_size == 9
    assert tokenizer.tokens[-1] == "[UNK]" and tokenizer.special_tokens == {END_OF_TEXT: 7, "[MASK]": 8}
    berts = WordPieceTokenizer(["[PAD]", "[UNK]", "[MASK]", "a"], ["[PAD]", "[MASK]", "[SEP]"])
    assert berts.special_tokens == {"[PAD]": 0, "[MASK]": 2, "[SEP]": 4} and berts.unknown_id == 1
    assert berts.encode("a [MASK]") == [3, 1, 1, 1]                              # marks and a word, all unknown
    assert berts.decode([3, 3, 2, 3, 1]) == "a a[MASK]a [UNK]"


def test_special_strings_are_ordinary_text(tokenizer):
    specials = WordPieceTokenizer(["sep", "s", "##ep", "##e", "##p"], ["sep"])
    assert specials.tokens_of("sep") == ["s", "##ep"]
    for string in tokenizer.special_tokens:
        assert not set(tokenizer.encode(f"end{string}end")) & set(tokenizer.special_tokens.values())


def test_parting_the_text_changes_nothing(tokenizer):
    random = Random(2)
    for _ in range(200):
        text = "".join(random.choices(TEXT + "\u0301\0", k=random.randint(0, 30)))
        cuts = sorted({0, len(text), *random.choices(range(len(text) + 1), k=5)})
        parts = [text[a:b] for a, b in pairwise(cuts)]
        assert list(tokenizer.encode_iterable(parts)) == list(tokenizer.encode_iterable(text)) == tokenizer.encode(text)


def test_decode_and_stream(tokenizer):
    text = "The ended line ; the naïve end , 中 文"
    text = "the ended line ; the naive end , 中 文" if tokenizer.lowercase else text
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == "".join(tokenizer.decode_stream(ids))
    end = tokenizer.special_tokens[END_OF_TEXT]
    assert tokenizer.decode([*ids, end, *ids]) == f"{text}{END_OF_TEXT}{text}"
    assert tokenizer.decode(np.array(ids)) == text and tokenizer.decode([]) == ""
    for wrong in (-1, tokenizer.vocab_size, "7", 1.0):
        with pytest.raises(TokenizerError, match="position 1"):
            tokenizer.decode([0, wrong])


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for loaded in (load_tokenizer(path), WordPieceTokenizer.load(path)):
        assert type(loaded) is WordPieceTokenizer
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT) and loaded.settings() == tokenizer.settings()
        assert loaded.fingerprint() == tokenizer.fingerprint() and loaded.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("tokens", [["a", "a"], [""], ["##"], ["a b"], ["\ud800"]], ids=repr)
def test_wrong_tokens(tokens):
    with pytest.raises(TokenizerError):
        WordPieceTokenizer(tokens)


@pytest.mark.parametrize(
    "arguments", [{"vocab_size": 2}, {"vocab_size": "9"}, {"vocab_size": 9, "score": "best"}], ids=str
)
def test_wrong_settings(arguments):
    with pytest.raises(TokenizerError, match="vocab_size|score"):
        WordPieceTokenizer.train("a b", **arguments)


@pytest.mark.parametrize("source", ["", [], " \n", [END_OF_TEXT]], ids=repr)
def test_empty_corpus(source):
    with pytest.raises(DataError, match="empty"):
        WordPieceTokenizer.train(source, 10)


def test_what_is_no_text(tokenizer):
    with pytest.raises(TokenizerError, match="bytes"):
        tokenizer.encode(b"abc")
    with pytest.raises(TokenizerError, match="U\\+DC80 at position 3"):
        tokenizer.encode("the\udc80n")
    with pytest.raises(TokenizerError, match="U\\+DC80 at position 3"):
        list(tokenizer.encode_iterable(["th", "e\udc80n"]))
    assert tokenizer.encode("the\udc80", errors="replace") == tokenizer.encode("the")


# ---- Hugging Face ----


def texts(n_texts):
    random = Random(3)
    odd = " \t\r\n\u3000\xa0\u2009\0\x7f\u200d\ufffd😀e\u0301I\u0307"
    alphabet = TEXT + odd + "abcdefghijklmnopqrstuvwxyzABCÀéßø ,.-_$^`«»…，。漢字かなカナ한국ไทย"
    return [TEXT, *("".join(random.choices(alphabet, k=random.randint(0, 40))) for _ in range(n_texts))]


@pytest.mark.oracle
@pytest.mark.parametrize("lowercase", [False, True])
def test_tokenizers_of_hugging_face(lowercase):
    pytest.importorskip("tokenizers.models")
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    ours = WordPieceTokenizer.train(texts(300), 400, lowercase=lowercase)
    vocab = {token: token_id for token_id, token in enumerate(ours.tokens)}
    theirs = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.decoder = decoders.WordPiece(cleanup=False)
    for text in [*texts(3_000), "a" * 100, "a" * 101]:
        encoding = theirs.encode(text)
        assert ours.tokens_of(text) == encoding.tokens, repr(text)
        assert ours.encode(text) == encoding.ids
        assert ours.decode(encoding.ids) == theirs.decode(encoding.ids)


@pytest.mark.oracle
def test_bert_tokenizer_of_transformers():
    pytest.importorskip("transformers")
    from transformers import BertTokenizer

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    learned = WordPieceTokenizer.train(texts(300), 400, [], lowercase=True).tokens
    tokens = [*specials, *(token for token in learned if token != "[UNK]")]
    ours = WordPieceTokenizer(tokens, [special for special in specials if special != "[UNK]"], lowercase=True)
    theirs = BertTokenizer(vocab={token: n for n, token in enumerate(tokens)}, do_lower_case=True)
    for text in texts(1_000):
        assert ours.tokens_of(text) == theirs.tokenize(text), repr(text)
        assert [2, *ours.encode(text), 3] == theirs(text)["input_ids"]
