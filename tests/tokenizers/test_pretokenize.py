"""Splitting: the fast cuts must give exactly what the defining expression gives on the whole text."""

import re
import sys
import time
import unicodedata
from itertools import chain, pairwise, product
from random import Random

import pytest
import regex

from minillm.errors import TokenizerError
from minillm.tokenizers.pretokenize import (
    GPT2,
    GPT4,
    SPACE,
    SPACE_IN_LINE,
    cut_stream,
    split,
    split_pattern,
    split_specials,
    split_specials_stream,
    stretches,
)

# What the patterns treat differently: kinds of spaces and line ends, letters, digits, marks, contractions, separators
# that Python's own \s takes for spaces and the patterns do not, the long s that equals "s" without case, an accent.
ALPHABET = [*" \t\n\r\v\f\x1c\x1f\x85\xa0\u2003\u3000'", *"abSsTlLvVeErR019٣½.,;-_!", *"ßſK中é"]
ALPHABET += ["e\u0301", "\u200d", "😀", "\ufeff", "\0", "'s", "'LL", "  ", "\n\n", "\r\n", ";\n", "    "]


def random_texts(n_texts, max_length=24, seed=0):
    random = Random(seed)
    for _ in range(n_texts):
        yield "".join(random.choices(ALPHABET, k=random.randint(0, max_length)))


def pieces_by_chunks(pattern, texts):
    return list(chain.from_iterable(map(pattern.splitter(), chain.from_iterable(cut_stream(texts, pattern.cutter())))))


@pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)
def test_pieces_of_chunks_are_the_pieces_of_the_whole(pattern):
    for text in random_texts(30_000):
        expected = regex.findall(pattern.expression, text)
        assert "".join(expected) == text
        assert pieces_by_chunks(pattern, [text]) == expected, repr(text)


@pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)
def test_pieces_of_chunks_for_all_short_texts(pattern):
    for text in map("".join, product(" \n\ta1.'s", repeat=5)):
        assert pieces_by_chunks(pattern, [text]) == regex.findall(pattern.expression, text), repr(text)


@pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)
def test_parting_the_text_changes_nothing(pattern):
    random = Random(1)
    for text in random_texts(4_000, max_length=16, seed=2):
        cuts = sorted({0, len(text), *random.choices(range(len(text) + 1), k=random.randint(0, 6))})
        parts = [text[a:b] for a, b in pairwise(cuts)]
        assert pieces_by_chunks(pattern, parts) == regex.findall(pattern.expression, text), parts
        assert pieces_by_chunks(pattern, list(text)) == regex.findall(pattern.expression, text), repr(text)


@pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)
def test_ascii_expression_is_the_expression_on_ascii(pattern):
    ascii_only = [part for part in ALPHABET if part.isascii()]
    random = Random(3)
    for _ in range(20_000):
        text = "".join(random.choices(ascii_only, k=random.randint(0, 16)))
        assert re.findall(pattern.ascii_expression, text) == regex.findall(pattern.expression, text), repr(text)


def test_space_is_white_space_of_unicode():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    spaces = regex.findall(r"\s", everything)
    assert re.findall(f"[{SPACE}]", everything) == spaces
    assert re.findall(f"[{SPACE_IN_LINE}]", everything) == [space for space in spaces if space not in "\r\n"]


def test_letters_and_digits_are_unicode_categories():
    """The independent oracle for the classes: Python's own character database, where both know the character."""
    for code in range(0, sys.maxunicode + 1, 7):
        category = unicodedata.category(chr(code))
        if category not in ("Cn", "Cs", "Co"):
            assert bool(regex.match(r"\p{L}", chr(code))) == category.startswith("L"), hex(code)
            assert bool(regex.match(r"\p{N}", chr(code))) == category.startswith("N"), hex(code)


@pytest.mark.parametrize(
    ("pattern", "text", "pieces"),
    [
        (GPT2, "Hello world's  12345!", ["Hello", " world", "'s", " ", " 12345", "!"]),
        (GPT4, "Hello WORLD'S  12345!", ["Hello", " WORLD", "'S", " ", " ", "123", "45", "!"]),
        (GPT2, "x;\n\n    y", ["x", ";", "\n\n   ", " y"]),
        (GPT4, "x;\n\n    y", ["x", ";\n\n", "   ", " y"]),
        (GPT4, "x\n \n y", ["x", "\n \n", " y"]),
    ],
)
def test_known_splits(pattern, text, pieces):
    assert split(text, pattern.expression) == pieces
    assert pieces_by_chunks(pattern, [text]) == pieces


def test_split_loses_nothing_that_the_expression_leaves_out():
    assert split("a1b22", "[a-z]") == ["a", "1", "b", "22"]
    assert split("ab", "(a)|x*") == ["a", "b"]
    assert split("", "a") == []


def test_split_pattern_names_and_refusals():
    assert split_pattern("gpt4") is GPT4
    assert split_pattern(GPT2.expression) is GPT2
    assert split_pattern("[a-z]+").cutter() is None
    for wrong in ("(", 7):
        with pytest.raises(TokenizerError, match="gpt2"):
            split_pattern(wrong)


@pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("unit", [" ", "a", "\n", " \n", "'", ".\n", "1"], ids=repr)
def test_long_runs_take_linear_time(pattern, unit):
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    pieces = pieces_by_chunks(pattern, [text])
    assert time.perf_counter() - start < 10                # quadratic would be an hour
    assert "".join(pieces) == text


def test_tiny_parts_of_a_long_word_take_linear_time():
    start = time.perf_counter()
    chunks = list(chain.from_iterable(cut_stream(iter("a" * 200_000), GPT2.cutter())))
    assert chunks == ["a" * 200_000]
    assert time.perf_counter() - start < 5


def specials_by_hand(text, special_tokens):
    """Brute force: at each place the longest special token that stands there."""
    found, ordinary, i = [], "", 0
    while i < len(text):
        here = max((special for special in special_tokens if text.startswith(special, i)), key=len, default="")
        if here:
            found += [(ordinary, False)] * bool(ordinary) + [(here, True)]
            ordinary, i = "", i + len(here)
        else:
            ordinary, i = ordinary + text[i], i + 1
    return found + [(ordinary, False)] * bool(ordinary)


def test_specials_longest_first_however_the_text_is_parted():
    special_tokens = ["<a>", "<a>b", "b<", "<", "a b"]
    random = Random(4)
    for _ in range(5_000):
        text = "".join(random.choices("<>ab c", k=random.randint(0, 14)))
        parts = [text[i : i + 2] for i in range(0, len(text), 2)] if random.random() < 0.5 else list(text)
        assert split_specials(text, special_tokens) == specials_by_hand(text, special_tokens)
        joined = []
        for string, is_special in split_specials_stream(parts, special_tokens):
            if joined and not is_special and not joined[-1][1]:
                string = joined.pop()[0] + string
            joined.append((string, is_special))
        assert joined == specials_by_hand(text, special_tokens), parts


def test_stretches_join_parts_between_specials():
    parts = ["a", "b<", "|x|", ">", "<|x|>c", "", "d"]
    found = [stretch if isinstance(stretch, str) else ["".join(stretch)] for stretch in stretches(parts, ["<|x|>"])]
    assert found == [["ab"], "<|x|>", "<|x|>", ["cd"]]
