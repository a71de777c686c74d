"""Grammars: probabilities against nltk's chart parser and against enumeration; sampling against both."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from nltk import PCFG
from nltk.parse.pchart import InsideChartParser

from minillm.errors import ConfigError, DataError
from minillm.statistical.grammar import Grammar, Production
from minillm.statistical.parsing import NormalForm, drawn, inside

PEOPLE = """
# A prepositional phrase can hang on the noun or on the verb.
S -> NP VP [1.0]
NP -> Name [0.4] | the N [0.4] | NP PP [0.2]
VP -> V NP [0.6] | VP PP [0.2] | sleeps [0.2]
PP -> with NP [0.6] | near the old N [0.4]
Name -> Ana [0.5] | Tom [0.5]
N -> dog [0.5] | lamp [0.3] | hat [0.2]
V -> sees [0.7] | finds [0.3]
"""
SENTENCES = (
    "Ana sees the dog",
    "Tom sleeps",
    "Ana sees the dog with the lamp",
    "the dog with the hat finds Tom near the old lamp",
    "Ana sees the dog with Tom near the old hat with the lamp",
)


def nltk_of(grammar):
    lines = {}
    for symbol, right, probability in grammar.productions:
        parts = " ".join(part if part in grammar.symbols else f"'{part}'" for part in right)
        lines.setdefault(symbol, []).append(f"{parts} [{probability}]")
    return PCFG.fromstring("\n".join(f"{symbol} -> {' | '.join(right)}" for symbol, right in lines.items()))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_probabilities_and_best_trees_agree_with_nltk(sentence):
    grammar, words = Grammar.from_text(PEOPLE), sentence.split()
    normal = NormalForm.of(grammar)
    trees = list(InsideChartParser(nltk_of(grammar), beam_size=0).parse(words))
    assert normal.log_probability(words) == pytest.approx(math.log(sum(tree.prob() for tree in trees)), rel=1e-12)
    tree, score = normal.best_tree(words)
    assert score == pytest.approx(math.log(max(tree.prob() for tree in trees)), rel=1e-12)
    assert leaves(tree) == words and tree[0] == "S"


def leaves(tree):
    return [tree] if isinstance(tree, str) else [word for child in tree[1:] for word in leaves(child)]


def test_the_best_tree_hangs_the_lamp_on_the_more_probable_place():
    grammar = Grammar.from_text(PEOPLE)
    tree, _ = NormalForm.of(grammar).best_tree("Ana sees the dog with the lamp".split())
    assert tree == ("S", ("NP", "Ana"), ("VP", ("VP", ("V", "sees"), ("NP", "the", ("N", "dog"))),
                                         ("PP", "with", ("NP", "the", ("N", "lamp")))))  # fmt: skip
    swapped = PEOPLE.replace("NP PP [0.2]", "NP PP [0.3]").replace("the N [0.4] |", "the N [0.3] |")
    tree, _ = NormalForm.of(Grammar.from_text(swapped)).best_tree("Ana sees the dog with the lamp".split())
    assert tree[2][2][0] == "NP" and tree[2][2][2][0] == "PP"
    assert drawn(tree).splitlines()[:3] == ["S", "  NP Ana", "  VP"]


def test_inside_sums_to_the_share_of_short_sentences():
    """S -> S S [0.3] | a [0.3] | b [0.4]: sentences of n words have Catalan(n-1) trees."""
    normal = NormalForm.of(Grammar.from_text("S -> S S [0.3] | a [0.3] | b [0.4]"))
    for n in range(1, 6):
        total = sum(math.exp(normal.log_probability(words)) for words in itertools.product("ab", repeat=n))
        catalan = math.comb(2 * (n - 1), n - 1) // n
        assert total == pytest.approx(catalan * 0.3 ** (n - 1) * 0.7**n, rel=1e-12)


def test_all_sentences_of_a_finite_grammar_sum_to_one():
    grammar = Grammar.from_text(
        """
        S -> A B C [0.5] | A [0.3] | x [0.2]
        A -> B [0.25] | x y [0.75]
        B -> y [0.5] | C [0.5]
        C -> z [0.6] | x z [0.4]
        """
    )
    normal, nltk_grammar = NormalForm.of(grammar), nltk_of(grammar)
    parser, total = InsideChartParser(nltk_grammar, beam_size=0), 0.0
    for n in range(1, 7):
        for words in itertools.product("xyz", repeat=n):
            value = math.exp(normal.log_probability(words))
            total += value
            if n <= 4:
                assert value == pytest.approx(sum(tree.prob() for tree in parser.parse(list(words))), abs=1e-14)
    assert total == pytest.approx(1, abs=1e-12)


def test_chains_of_single_symbols_that_come_back():
    """A -> B, B -> A: the sum over chains of every length is a geometric series."""
    normal = NormalForm.of(Grammar.from_text("A -> B [0.5] | a [0.5]\nB -> A [0.5] | b [0.5]"))
    assert math.exp(normal.log_probability(["a"])) == pytest.approx(0.5 / (1 - 0.25), rel=1e-12)
    assert math.exp(normal.log_probability(["b"])) == pytest.approx(0.5 * 0.5 / (1 - 0.25), rel=1e-12)
    with pytest.raises(ConfigError, match="for ever"):
        NormalForm.of(Grammar.from_text("S -> A [1]\nA -> B [1]\nB -> A [1]"))


def test_rests_of_rules_are_shared_and_keep_their_probability():
    normal = NormalForm.of(Grammar.from_text("S -> a b c d [0.5] | x b c d [0.25] | b c d [0.25]"))
    for sentence, expected in (("a b c d", 0.5), ("x b c d", 0.25), ("b c d", 0.25)):
        assert math.exp(normal.log_probability(sentence.split())) == pytest.approx(expected, rel=1e-12)
    assert normal.best_tree("a b c d".split())[0] == ("S", "a", "b", "c", "d")


def test_samples_have_the_probabilities_of_their_sentences():
    grammar = Grammar.from_text("S -> a S b [0.4] | a b [0.5] | a [0.1]")
    normal, rng, counts = NormalForm.of(grammar), np.random.default_rng(0), Counter()
    for _ in range(4000):
        words, log_probability = grammar.sample(rng)
        counts[" ".join(words)] += 1
        assert log_probability == pytest.approx(normal.log_probability(words), rel=1e-9)  # one derivation each
    for sentence, count in counts.most_common(4):
        assert count / 4000 == pytest.approx(math.exp(normal.log_probability(sentence.split())), abs=0.03)


def test_what_no_finite_number_of_states_can_do():
    normal = NormalForm.of(Grammar.from_text("S -> ( S ) [0.3] | ( ) [0.3] | S S [0.4]"))
    assert normal.recognises("( ( ) ( ( ) ) ) ( )".split())
    for broken in ("( ( ) ( ( ) )", ") (", "( ) )", "", "( x )"):
        assert not normal.recognises(broken.split())


def test_bad_input():
    for text, message in (
        ("S -> a", "looks like"),
        ("S a [1.0]", "looks like"),
        ("S -> a [x]", "looks like"),
        ("S T -> a [1.0]", "looks like"),
        ("S -> a [0.5] | b [0.4]", "S: 0.9"),
        ("S -> [1.0]", "expected symbols"),
        ("S -> a [1.5] | b [-0.5]", "0 to 1"),
        ("", "must have rules"),
    ):
        with pytest.raises(ConfigError, match=message):
            Grammar.from_text(text)
    with pytest.raises(ConfigError, match="T must have rules"):
        Grammar("T", (Production("S", ("a",), 1.0),))
    with pytest.raises(DataError, match="grown beyond 50"):
        Grammar.from_text("S -> S S [0.9] | a [0.1]").sample(np.random.default_rng(0), max_words=50)
    normal = NormalForm.of(Grammar.from_text(PEOPLE))
    for sentence in ("Ana the dog", ""):
        with pytest.raises(DataError, match="cannot write"):
            normal.best_tree(sentence.split())
    one = np.array([0])
    assert inside(np.ones((2, 1)), one, one, one, np.array([0.25]))[0, 2, 0] == 0.25
