"""Graders of chapter 02: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are written out here by brute force, or are tiktoken and Python's own UTF-8 decoder.
"""

import os
from itertools import count, product, takewhile

import tiktoken

from minillm.course.grader import Endless, RaisedThere, Wrong, expect, expect_equal, task


def same(got, expected, what):
    """Equal, and if not: both in full, as long as they are short. With a few tokens that says more than one place."""
    if type(got) is type(expected) is not dict and got != expected and len(repr(expected)) <= 200:
        agree = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(got, expected, strict=False)))
        where = f"; the first {agree} agree" if agree > 1 else "; the first agrees" if agree else ""
        raise Wrong(f"{what} should be {expected}, got {repr(got)[:300]}{where}")
    expect_equal(got, expected, what)


def word(text):
    """ "ab c" as a word of the tokens b"ab" and b"c"."""
    return tuple(token.encode() for token in text.split())


def random_words(rng, letters, n_words, longest):
    """Words of single bytes with counts; few letters make runs and ties the rule."""
    words = {}
    for _ in range(n_words):
        symbols = rng.choice(list(letters), size=int(rng.integers(0, longest + 1)))
        words[tuple(symbol.encode() for symbol in symbols)] = int(rng.choice([1, 1, 2, 3, 12]))
    return words


def pairs_by_hand(word_counts):
    """Write the corpus out, word by word and place by place, and count."""
    found = {}
    for tokens, times in word_counts.items():
        for _ in range(times):
            for place in range(len(tokens) - 1):
                pair = (tokens[place], tokens[place + 1])
                found[pair] = found.get(pair, 0) + 1
    return found


def merged_by_hand(tokens, pair):
    """The first two tokens are joined or the first stays; then the rest in the same way."""
    if len(tokens) < 2:
        return tuple(tokens)
    if (tokens[0], tokens[1]) == pair:
        return (pair[0] + pair[1], *merged_by_hand(tokens[2:], pair))
    return (tokens[0], *merged_by_hand(tokens[1:], pair))


def merges_by_hand(piece_counts, n_merges):
    """Byte-pair encoding from its definition, everything counted afresh in each round."""
    words = [(tuple(bytes([byte]) for byte in piece), times) for piece, times in piece_counts.items()]
    merges = []
    while len(merges) < n_merges:
        found = pairs_by_hand({})
        for tokens, times in words:
            for pair, n in pairs_by_hand({tokens: 1}).items():
                found[pair] = found.get(pair, 0) + n * times
        if not found:
            break
        best = sorted(found, key=lambda pair: (found[pair], pair))[-1]
        merges.append(best)
        words = [(merged_by_hand(tokens, best), times) for tokens, times in words]
    return merges


# 2.1 counting pairs


@task("2.1")
def test_pairs_of_a_few_words(impl, rng):
    expect_equal(impl.count_pairs({word("l o w"): 1}), {word("l o"): 1, word("o w"): 1}, "the pairs of one word")
    counts = {word("l o w"): 5, word("l o w e r"): 2}
    expected = {word("l o"): 7, word("o w"): 7, word("w e"): 2, word("e r"): 2}
    expect_equal(impl.count_pairs(counts), expected, "the pairs of l o w (5 times) and l o w e r (2 times)")


@task("2.1")
def test_runs_and_repeated_pairs(impl, rng):
    expect_equal(impl.count_pairs({word("a a a"): 1}), {word("a a"): 2}, "the pairs of a a a")
    expect_equal(impl.count_pairs({word("a b a b"): 3}), {word("a b"): 6, word("b a"): 3}, "the pairs of 3 a b a b")
    longer = {word("th e"): 4, word("t he"): 3}
    expect_equal(impl.count_pairs(longer), longer, "the pairs of th e (4 times) and t he (3 times)")


@task("2.1")
def test_nothing_to_pair(impl, rng):
    expect_equal(impl.count_pairs({}), {}, "the pairs of an empty corpus")
    expect_equal(impl.count_pairs({(): 3, word("a"): 5}), {}, "the pairs of words without two neighbours")


@task("2.1", cases=4)
def test_pairs_are_those_of_the_corpus_written_out(impl, rng):
    words = random_words(rng, "abc", 20, 7)
    got, (given,) = impl.count_pairs.after(words)
    expect_equal(got, pairs_by_hand(words), f"the pairs of {words}")
    expect_equal(given, words, "the argument after the call")


# 2.2 joining a pair


@task("2.2")
def test_merges_by_hand(impl, rng):
    for tokens, pair, expected in [
        ("l o w e r", "l o", "lo w e r"),
        ("b a n a n a", "a n", "b an an a"),
        ("a b", "a b", "ab"),
        ("x a b", "a b", "x ab"),
        ("lo w lo w", "lo w", "low low"),
        ("a b c", "c a", "a b c"),
        ("b a", "a b", "b a"),
        ("", "a b", ""),
        ("a", "a a", "a"),
    ]:
        same(impl.merge(word(tokens), word(pair)), word(expected), f"merge of {pair!r} in {tokens!r}")


@task("2.2")
def test_runs_are_joined_from_the_left(impl, rng):
    runs = [("a a a", "aa a"), ("a a a a", "aa aa"), ("a a a a a", "aa aa a"), ("b a a a b", "b aa a b")]
    for tokens, expected in runs:
        same(impl.merge(word(tokens), word("a a")), word(expected), f"merge of 'a a' in {tokens!r}")


@task("2.2")
def test_only_this_pair_is_joined(impl, rng):
    same(impl.merge(word("ab c a bc"), word("a bc")), word("ab c abc"), "merge of 'a bc' in 'ab c a bc'")
    bytes_that_are_no_text = (b"\xe4", b"\xb8", b"\xe4\xb8", b"\xad")
    same(
        impl.merge(bytes_that_are_no_text, (b"\xe4", b"\xb8")),
        (b"\xe4\xb8", b"\xe4\xb8", b"\xad"),
        "merge of two bytes of a Chinese character",
    )


@task("2.2", cases=4)
def test_merges_of_random_words(impl, rng):
    tokens = [b"a", b"b", b"ab", b"aa"]
    for _ in range(12):
        given = tuple(tokens[i] for i in rng.integers(4, size=int(rng.integers(0, 12))))
        pair = (tokens[rng.integers(4)], tokens[rng.integers(4)])
        same(impl.merge(given, pair), merged_by_hand(given, pair), f"merge of {pair} in {given}")


# 2.3 learning merges


@task("2.3")
def test_a_small_corpus(impl, rng):
    counts = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    expected = [word(pair) for pair in ("s t", "e st", "o w", "l ow", "w est", "n e", "ne west")]
    for n_merges in (1, 3, 7, 0):
        got = impl.train_merges(counts, n_merges)
        same(got, expected[:n_merges], f"train_merges({counts}, {n_merges})")


@task("2.3")
def test_ties_take_the_greatest_pair(impl, rng):
    for counts, n_merges, expected in [
        ({b"ab": 1, b"cd": 1, b"ce": 1}, 1, ["c e"]),
        ({b"ce": 1, b"cd": 1, b"ab": 1}, 3, ["c e", "c d", "a b"]),
        ({b"ab": 9, b"abc": 1, b"az": 1}, 2, ["a b", "ab c"]),
        ({b"xy": 2, b"zz": 1}, 2, ["x y", "z z"]),
    ]:
        got = impl.train_merges(counts, n_merges)
        same(got, [word(pair) for pair in expected], f"train_merges({counts}, {n_merges})")
    # "ba" + "c" and "b" + "ax" are tied: (b"ba", b"c") is the greater pair although b"bax" is the greater string
    counts = {b"ba": 20, b"ax": 10, b"bac": 3}
    merges = impl.train_merges(counts, 3)
    same(merges, merges_by_hand(counts, 3), f"train_merges({counts}, 3)")


@task("2.3")
def test_training_ends_when_no_pair_is_left(impl, rng):
    corpora = [({b"aaaa": 1}, ["a a", "aa aa"]), ({b"a": 7, b"": 2}, []), ({}, []), ({b"ab": 1}, ["a b"])]
    for counts, expected in corpora:
        for n_merges in (50, 10**9):
            got = impl.train_merges(counts, n_merges)
            same(got, [word(pair) for pair in expected], f"train_merges({counts}, {n_merges})")


@task("2.3")
def test_any_bytes_can_be_learned_from(impl, rng):
    counts = {"中文".encode(): 3, "中".encode(): 1, b"\xff\x00\xff\x00": 2}
    same(impl.train_merges(counts, 6), merges_by_hand(counts, 6), f"train_merges({counts}, 6)")


@task("2.3", cases=5)
def test_merges_are_those_of_the_definition(impl, rng):
    letters = ["ab", "abc", "abcdefgh"][rng.integers(3)]
    counts = {b"".join(tokens): times for tokens, times in random_words(rng, letters, 15, 9).items()}
    n_merges = int(rng.choice([2, 9, 400]))
    got, (given, _) = impl.train_merges.after(counts, n_merges)
    same(got, merges_by_hand(counts, n_merges), f"train_merges({counts}, {n_merges})")
    same(given, counts, "the counts after the call")
    turned = dict(reversed(counts.items()))
    same(impl.train_merges(turned, n_merges), got, "the merges of the same counts in another order")


# 2.4 encoding


def numbered(merges, first_byte=0, first_merge=256):
    """Ids for bytes and merges, and what encoding needs: ids of bytes, ranks and products."""
    byte_ids = [first_byte + byte for byte in range(256)]
    id_of = {bytes([byte]): byte_ids[byte] for byte in range(256)}
    fresh = (number for number in count(first_merge) if number not in set(byte_ids))
    products = [id_of.setdefault(left + right, next(fresh)) for left, right in merges]
    ranks = {(id_of[left], id_of[right]): rank for rank, (left, right) in enumerate(merges)}
    return id_of, ranks, products


def encode(impl, text, merges, first_byte=0, first_merge=256):
    id_of, ranks, products = numbered(merges, first_byte, first_merge)
    token_of = {token_id: token for token, token_id in id_of.items()}
    got = impl.encode_by_rank([id_of[bytes([byte])] for byte in text], ranks, products)
    if not isinstance(got, list) or not all(type(token_id) is int and token_id in token_of for token_id in got):
        raise Wrong(f"{text!r} gives {got!r}, expected a list of ids")
    return tuple(token_of[token_id] for token_id in got)


@task("2.4")
def test_by_hand(impl, rng):
    got = impl.encode_by_rank([1, 2, 3, 1, 2], {(2, 3): 0, (1, 2): 1, (7, 1): 2}, [7, 8, 9])
    same(got, [1, 7, 8], "ids of [1, 2, 3, 1, 2]; (2, 3) makes 7 first, then (1, 2) makes 8, then (7, 1) 9")
    merges = [word(pair) for pair in ("s t", "e st", "o w", "l ow")]
    for text, expected in [(b"lowest", "low est"), (b"slow", "s low"), (b"tse", "t s e"), (b"stst", "st st")]:
        same(encode(impl, text, merges), word(expected), f"tokens of {text!r} after the merges {merges}")


@task("2.4")
def test_nothing_to_join(impl, rng):
    same(impl.encode_by_rank([], {}, []), [], "ids of an empty piece")
    same(impl.encode_by_rank([5], {(5, 5): 0}, [9]), [5], "ids of one byte")
    same(impl.encode_by_rank([3, 1, 2], {}, []), [3, 1, 2], "ids without any merges")
    same(impl.encode_by_rank([3, 1, 2], {(1, 3): 0}, [9]), [3, 1, 2], "ids where no pair has a rank")


@task("2.4")
def test_the_order_of_learning_counts_not_the_length(impl, rng):
    merges = [word(pair) for pair in ("b c", "a b", "ab c", "bc d")]
    same(encode(impl, b"abcd", merges), word("a bcd"), f"tokens of b'abcd' after the merges {merges}")
    merges = [word(pair) for pair in ("a b", "c d", "b c", "x ab", "d e")]
    same(encode(impl, b"xabcde", merges), word("xab cd e"), f"tokens of b'xabcde' after the merges {merges}")


@task("2.4")
def test_runs(impl, rng):
    merges = [word(pair) for pair in ("a a", "aa a", "aa aa")]
    for n, expected in [(2, "aa"), (3, "aaa"), (4, "aaaa"), (5, "aa aaa"), (6, "aaaa aa"), (7, "aa aa aaa")]:
        expected = tuple(by_passes(b"a" * n, merges)) if n > 3 else word(expected)
        same(encode(impl, b"a" * n, merges), expected, f"tokens of {n} times a")


def by_passes(piece, merges):
    """The definition: one pass over the piece for each merge, in the order of learning."""
    tokens = tuple(bytes([byte]) for byte in piece)
    for pair in merges:
        tokens = merged_by_hand(tokens, pair)
    return tokens


@task("2.4", cases=4)
def test_ids_are_those_of_the_definition(impl, rng):
    letters = ["ab", "abc", "abcdefgh"][rng.integers(3)]
    counts = {b"".join(tokens): times for tokens, times in random_words(rng, letters, 12, 9).items()}
    merges = merges_by_hand(counts, 25)
    first_byte, first_merge = int(rng.choice([0, 1000])), int(rng.choice([256, 17, 5000]))
    for _ in range(8):
        text = "".join(rng.choice(list(letters), size=int(rng.integers(0, 25)))).encode()
        got = encode(impl, text, merges, first_byte, first_merge)
        same(got, by_passes(text, merges), f"tokens of {text!r} after the merges {merges}")


@task("2.4", cases=2)
def test_ids_are_those_of_tiktoken(impl, rng):
    counts = {b"".join(tokens): times for tokens, times in random_words(rng, "abcé中", 12, 8).items()}
    merges = merges_by_hand(counts, 40)
    id_of, ranks, products = numbered(merges)
    oracle = tiktoken.Encoding("course", pat_str=r"[\s\S]+", mergeable_ranks=id_of, special_tokens={})
    for _ in range(8):
        text = "".join(rng.choice(list("abcé中"), size=int(rng.integers(1, 30))))
        got = impl.encode_by_rank(list(text.encode()), ranks, products)
        same(got, oracle.encode_ordinary(text), f"ids of {text!r} after the merges {merges}")


# 2.5 special tokens


def specials_by_hand(text, special_tokens):
    """At each place the longest special token that stands there; what lies between is ordinary."""
    found, ordinary, place = [], "", 0
    while place < len(text):
        here = max((special for special in special_tokens if text.startswith(special, place)), key=len, default="")
        if here:
            found += [(ordinary, False)] * bool(ordinary) + [(here, True)]
            ordinary, place = "", place + len(here)
        else:
            ordinary, place = ordinary + text[place], place + 1
    return found + [(ordinary, False)] * bool(ordinary)


def check_parts(impl, text, special_tokens):
    got = impl.split_specials(text, special_tokens)
    same(got, specials_by_hand(text, special_tokens), f"the parts of {text!r} with specials {special_tokens}")


@task("2.5")
def test_parts_of_a_chat(impl, rng):
    specials = ["<|user|>", "<|end|>"]
    expected = [("<|user|>", True), ("Hi", False), ("<|end|>", True), ("<|end|>", True), ("\n", False)]
    same(impl.split_specials("<|user|>Hi<|end|><|end|>\n", specials), expected, "the parts of a chat")
    for text in ("Hi <|user|>", "no specials", "<|user", "<|USER|>", "|", "<|user|>", " <|end|> <|user|> "):
        check_parts(impl, text, specials)


@task("2.5")
def test_no_empty_strings(impl, rng):
    same(impl.split_specials("", ["<|end|>"]), [], "the parts of an empty text")
    same(impl.split_specials("", []), [], "the parts of an empty text without specials")
    same(impl.split_specials("a b", []), [("a b", False)], "the parts of 'a b' without specials")


@task("2.5")
def test_the_longer_of_two_at_one_place(impl, rng):
    for specials in (["<|a|>", "<|a|>b"], ["<|a|>b", "<|a|>"], ["<|a|>b", "<|a|>", "<|a|>bc", "b"]):
        check_parts(impl, "x<|a|>b<|a|>c<|a|>bcb", specials)


@task("2.5")
def test_the_leftmost_of_two_that_overlap(impl, rng):
    for specials in (["ab", "bcd"], ["bcd", "ab"], ["cde", "bcd", "abc"]):
        check_parts(impl, "xabcdexbcdabc", specials)


@task("2.5")
def test_every_character_stands_for_itself(impl, rng):
    check_parts(impl, "a|b [x] (y) .* a.c abc \\d 5 $", ["a|b", "[x]", "(y)", ".*", "a.c", "\\d", "$"])
    check_parts(impl, "begin ^ begin\nend中文\x00<s>", ["^", "中文", "\n", "<s>", "\x00"])


@task("2.5", cases=4)
def test_parts_of_random_texts(impl, rng):
    specials = [["<a>", "<a>b", "b<", "<", "a b"], ["(", "((", "()"], ["ab", "ba", "aba"]][rng.integers(3)]
    specials = [specials[i] for i in rng.permutation(len(specials))]
    for _ in range(15):
        text = "".join(rng.choice(list("<>ab ()"), size=int(rng.integers(0, 14))))
        check_parts(impl, text, specials)


# 2.6 decoding a stream

TAILS = [b"", *map(bytes, product(range(0x41, 0x100, 3))), *map(bytes, product(b"A\x80\x90\xa0\xbf\xf0", repeat=2))]
TAILS += map(bytes, product(b"\x80\x90\xbf", repeat=3))


def certain(data):
    """The text that these bytes begin with whatever follows: what all continuations have in common."""
    texts = [(data + tail).decode("utf-8", "replace") for tail in TAILS]
    return os.path.commonprefix(texts)


def shown(parts):
    """What a stream must yield for these parts."""
    whole, n_shown, expected = b"", 0, []
    for part in parts:
        whole += part
        text = certain(whole)
        expected += [text[n_shown:]] * (len(text) > n_shown)
        n_shown = max(n_shown, len(text))
    rest = whole.decode("utf-8", "replace")[n_shown:]
    return expected + [rest] * bool(rest)


def check_stream(impl, parts):
    same(list(impl.stream_text(parts)), shown(parts), f"the text of the parts {parts}")


def cut(rng, data):
    """Bytes cut at random places, some parts empty."""
    places = sorted({0, len(data), *map(int, rng.integers(0, len(data) + 1, size=len(data)))})
    parts = [data[start:end] for start, end in zip(places, places[1:], strict=False)]
    return [part for part in parts for part in ([b"", part] if rng.random() < 0.1 else [part])]


@task("2.6")
def test_characters_in_several_parts(impl, rng):
    same(list(impl.stream_text([b"a", b"\xe4\xb8", b"\xadb"])), ["a", "中b"], "a, half of 中, its rest and b")
    for text in ("plain", "é", "中文", "😀!", "aé中😀"):
        check_stream(impl, [bytes([byte]) for byte in text.encode()])
        check_stream(impl, [text.encode()])
    check_stream(impl, [])
    check_stream(impl, [b"", b"a", b""])


@task("2.6")
def test_what_stays_incomplete(impl, rng):
    for parts in ([b"a\xe4"], [b"\xf0", b"\x9f", b"\x98"], [b"\xe4\xb8", b""], [b"caf", b"\xc3"]):
        check_stream(impl, parts)


@task("2.6")
def test_bytes_that_are_no_utf8(impl, rng):
    for parts in ([b"a\xffb"], [b"\xe4", b"b"], [b"\x80", b"\x80"], [b"\xe4\xb8", b"\xe4\xb8\xad"], [b"\xff", b"ok"]):
        check_stream(impl, parts)


@task("2.6", cases=4)
def test_any_cut_gives_the_same_text(impl, rng):
    letters = ["a", "é", "中", "😀", " ", "\n"]
    data = b"".join(letters[i].encode() for i in rng.integers(6, size=10))
    check_stream(impl, cut(rng, data))
    noise = bytes(rng.choice(list(b"A\x80\xbf\xc3\xa9\xe4\xb8\xad\xa0\xf0\x9f\x98\xff"), size=10).tolist())
    check_stream(impl, cut(rng, noise))
    surrogates = bytes(rng.choice(list(b"A\xed\xa0\xbf\xed"), size=8).tolist())  # when these show is left open
    got = "".join(impl.stream_text(cut(rng, surrogates)))
    same(got, surrogates.decode("utf-8", "replace"), f"the joined text of the bytes {surrogates}")


@task("2.6")
def test_the_text_comes_while_the_parts_do(impl, rng):
    broken = impl.stream_text([b"a", b"b", None])
    expect(hasattr(broken, "take"), "the text should come part by part: expected an iterator, got a finished value")
    try:
        got = broken.take(2)
    except RaisedThere as error:
        raise Wrong(f"the first two texts should come before the third part (None) is asked for; got {error}") from None
    same(got, ["a", "b"], "what can be shown before the third part is asked for")
    stream = impl.stream_text(Endless([b"a", b"\xe4", b"\xb8\xad"]))
    same(stream.take(5), ["a", "中", "a", "中", "a"], "the first five texts of a stream without end")


# 2.7 WordPiece


def tokens_by_hand(text, vocabulary):
    """The longest token at each place, or nothing."""
    found, place = [], 0
    while place < len(text):
        candidates = [token for token in vocabulary if not place and text.startswith(token)]
        if place:
            candidates = [t for t in vocabulary if len(t) > 2 and t[:2] == "##" and text.startswith(t[2:], place)]
        if not candidates:
            return []
        found.append(max(candidates, key=len))
        place += len(found[-1]) - (2 if place else 0)
    return found


def check_pieces(impl, text, vocabulary):
    expected = tokens_by_hand(text, vocabulary)
    got = impl.longest_pieces(text, vocabulary)
    same(got, expected, f"the pieces of {text!r}, known are {sorted(vocabulary)}")


@task("2.7")
def test_pieces_by_hand(impl, rng):
    vocabulary = {"l", "low", "lower", "new", "##e", "##est", "##st", "##er", "##s"}
    for text, expected in [
        ("low", ["low"]),
        ("lowest", ["low", "##est"]),
        ("lower", ["lower"]),
        ("newer", ["new", "##er"]),
        ("newers", ["new", "##er", "##s"]),
        ("lowerest", ["lower", "##est"]),
        ("", []),
    ]:
        got = impl.longest_pieces(text, vocabulary)
        same(got, expected, f"the pieces of {text!r}, known are {sorted(vocabulary)}")


@task("2.7")
def test_one_gap_makes_the_whole_word_unknown(impl, rng):
    for text in ("lowly", "xlow", "lowx", "lowxest", "x"):
        check_pieces(impl, text, {"low", "l", "##o", "##w", "##l", "##est"})


@task("2.7")
def test_greed_does_not_go_back(impl, rng):
    # "ab" + "##cd" would do, but the longest beginning is "abc", and "##d" is not known
    check_pieces(impl, "abcd", {"ab", "abc", "##cd"})
    check_pieces(impl, "xabcd", {"x", "##ab", "##abc", "##cd"})


@task("2.7")
def test_beginning_and_inside_are_different_tokens(impl, rng):
    check_pieces(impl, "aa", {"a"})
    check_pieces(impl, "aa", {"##a"})
    check_pieces(impl, "aaa", {"a", "##a"})
    check_pieces(impl, "able", {"a", "##able", "ble", "##bl", "##e"})
    check_pieces(impl, "ab", {"a", "##"})  # the bare marks are no piece of anything


@task("2.7", cases=4)
def test_pieces_of_random_words(impl, rng):
    pieces = ["".join(letters) for n in (1, 2, 3) for letters in product("ab", repeat=n)]
    both = pieces + ["##" + piece for piece in pieces]
    vocabulary = {both[i] for i in rng.permutation(len(both))[:14]} | {"a", "##b"}
    for _ in range(15):
        text = "".join(rng.choice(list("ab"), size=int(rng.integers(1, 9))))
        check_pieces(impl, text, vocabulary)
    numbered_tokens = {token: number for number, token in enumerate(sorted(vocabulary))}
    got, (_, given) = impl.longest_pieces.after("abab", numbered_tokens)
    same(got, tokens_by_hand("abab", vocabulary), "the pieces of 'abab' with the vocabulary as a dict")
    same(given, numbered_tokens, "the vocabulary after the call")


@task("2.7")
def test_long_words_and_other_scripts(impl, rng):
    check_pieces(impl, "a" * 60, {"a", "##a", "##" + "a" * 7})
    check_pieces(impl, "不可思议", {"不", "##可", "##思议", "##议", "不可思"})
