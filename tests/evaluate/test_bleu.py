"""BLEU against figures worked by hand, and against nltk's where both mean the same."""

import math
import random

import pytest
from nltk.translate.bleu_score import corpus_bleu as nltk_bleu

from minillm.errors import ConfigError, DataError
from minillm.evaluate.bleu import brevity_penalty, corpus_bleu, cut_13a, nearest_length

WORDS = "the a cat dog sat ran on mat".split()


def random_corpus(seed, n_sentences=30):
    """Translations of 4 to 12 words of a small vocabulary, and one to three references near each."""
    generator = random.Random(seed)
    hypotheses, references = [], []
    for _ in range(n_sentences):
        words = generator.choices(WORDS, k=generator.randint(4, 12))
        changed = [
            [generator.choice(WORDS) if generator.random() < 0.3 else word for word in words]
            + generator.choices(WORDS, k=generator.randint(0, 3))
            for _ in range(generator.randint(1, 3))
        ]
        hypotheses.append(" ".join(words))
        references.append([" ".join(sentence) for sentence in changed])
    return hypotheses, references


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_nltk_where_every_order_matches(seed):
    hypotheses, references = random_corpus(seed)
    ours = corpus_bleu(hypotheses, references, tokenize="none", smoothing="none")
    cut = [[reference.split() for reference in alternatives] for alternatives in references]
    theirs = nltk_bleu(cut, [hypothesis.split() for hypothesis in hypotheses])
    assert ours.score == pytest.approx(100 * theirs, rel=1e-12) and ours.matches[3] > 0
    assert corpus_bleu(hypotheses, references, tokenize="none", smoothing="exp").score == ours.score


def test_worked_by_hand():
    bleu = corpus_bleu(["the cat the cat"], [["the cat sat here now"]], tokenize="none")
    assert bleu.matches == (2, 1, 0, 0) and bleu.totals == (4, 3, 2, 1)
    assert bleu.precisions == (50.0, 100 / 3, 25.0, 25.0)          # 1/2 of a match of 2, then 1/4 of a match of 1
    assert bleu.brevity_penalty == math.exp(1 - 5 / 4)
    assert bleu.score == pytest.approx(math.exp(-0.25) * (50 * 100 / 3 * 25 * 25) ** 0.25, rel=1e-12)
    assert corpus_bleu(["the cat the cat"], [["the cat sat here now"]], smoothing="none").score == 0.0


def test_counts_add_up_over_the_corpus_before_they_are_divided():
    """Two sentences: 4 of 4 words and none of 4 words are right."""
    bleu = corpus_bleu(["a b c d", "x x x x"], [["a b c d"], ["e f g h"]])
    assert bleu.matches == (4, 3, 2, 1) and bleu.totals == (8, 6, 4, 2) and bleu.score == pytest.approx(50.0)


def test_perfect_wrong_and_empty():
    assert corpus_bleu(["the cat sat on it"], [["the cat sat on it"]]).score == pytest.approx(100.0)
    assert corpus_bleu(["a b c d"], [["e f g h"]]).score == 0.0
    empty = corpus_bleu(["", ""], [["e f g h"], ["a"]])
    assert (empty.score, empty.n_system_words, empty.n_reference_words) == (0.0, 0, 5)
    assert corpus_bleu(["a b"], [["a b"]]).score == 0.0             # shorter than four words: no run of four to judge


def test_each_run_of_a_reference_counts_once_and_the_best_reference_applies():
    assert corpus_bleu(["the the the the"], [["the cat", "the the dog"]], tokenize="none").matches[0] == 2
    bleu = corpus_bleu(["a b c"], [["a x x x", "b x"]], tokenize="none")
    assert bleu.matches[0] == 2 and bleu.n_reference_words == 2     # 4 and 2 are equally near: the shorter


def test_lengths():
    assert nearest_length(7, [9, 6]) == 6 and nearest_length(7, [9]) == 9
    assert brevity_penalty(10, 10) == 1.0 and brevity_penalty(0, 3) == 0.0 and brevity_penalty(0, 0) == 1.0


@pytest.mark.parametrize("text, words", [
    ("Hello, world!", "Hello , world !"),
    ("1,000.5 costs $3.", "1,000.5 costs $ 3 ."),
    ("a 5-year plan", "a 5 - year plan"),
    ("well-known &amp; &quot;old&quot;", 'well-known & " old "'),
    ("x/y (z)", "x / y ( z )"),
    ("(a,b).c", "( a , b ) . c"),
    ("", ""),
])  # fmt: skip
def test_13a(text, words):
    assert cut_13a(text) == words.split()


def test_characters():
    bleu = corpus_bleu(["猫坐在 垫子上"], [["猫坐在垫子上"]], tokenize="char")
    assert bleu.totals == (6, 5, 4, 3) and bleu.score == pytest.approx(100.0)


def test_bad_input():
    for hypotheses, references in [([], []), (["a"], []), (["a"], ["a"]), (["a"], [[]])]:
        with pytest.raises(DataError, match="expected"):
            corpus_bleu(hypotheses, references)
    with pytest.raises(ConfigError, match="smoothing"):
        corpus_bleu(["a"], [["a"]], smoothing="floor")
    with pytest.raises(ConfigError, match="tokenize"):
        corpus_bleu(["a"], [["a"]], tokenize="zh")
