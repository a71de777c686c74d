"""BLEU: how many short runs of words a translation shares with the reference, over a whole test set."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minillm.errors import ConfigError, DataError

MAX_ORDER = 4
SMOOTHINGS = ("exp", "none")


@dataclass(frozen=True)
class Bleu:
    """The score of a corpus and what it is made of.

    Attributes:
        score: from 0 to 100.
        matches: for runs of 1, 2, 3, 4 words, how many of the system's are in the reference (each of the reference's
            counts once).
        totals: how many the system wrote.
        precisions: their share in percent, smoothed.
        brevity_penalty: at most 1; below that where the system wrote less than the reference.
        n_system_words: words that the system wrote.
        n_reference_words: words of the references whose lengths were nearest.
    """

    score: float
    matches: tuple[int, ...]
    totals: tuple[int, ...]
    precisions: tuple[float, ...]
    brevity_penalty: float
    n_system_words: int
    n_reference_words: int


def corpus_bleu(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: str = "13a",
    smoothing: str = "exp",
) -> Bleu:
    """The BLEU score of a test set: brevity penalty * geometric mean of the precisions of runs of one to four words.

    Matches and totals are added up over all sentences first; a mean of the sentences' scores is another figure.

    Args:
        hypotheses: N translations.
        references: for each of them one or more correct translations; the best count of each run among them applies.
        tokenize: "13a" cuts off punctuation, "none" cuts at white space only, "char" makes each character a word
            (Chinese).
        smoothing: "exp": the k-th precision without a match counts as 1 / 2^k of one match; "none": the score is 0
            then.

    Returns:
        The score and its parts.

    Raises:
        DataError: if there is no sentence, or one without a reference.
        ConfigError: if a name is unknown.

    Source:
        Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation", ACL; in the form of
        Post 2018, arXiv:1804.08771 (sacreBLEU), with equal numbers.

    Example:
        >>> bleu = corpus_bleu(["the cat sat on the mat"], [["the cat is on the mat"]])
        >>> bleu.matches, bleu.totals, round(bleu.score, 2)  # no run of four is right: half a match is assumed
        ((5, 3, 1, 0), (6, 5, 4, 3), 37.99)
    """
    if smoothing not in SMOOTHINGS:
        raise ConfigError(f"smoothing is {smoothing!r}, expected one of {SMOOTHINGS}")
    check_sentences(hypotheses, references)
    cut = tokenizer_named(tokenize)
    matches, totals = [0] * MAX_ORDER, [0] * MAX_ORDER
    n_system_words = n_reference_words = 0
    for hypothesis, alternatives in zip(hypotheses, references, strict=True):
        words, correct = cut(hypothesis), [cut(reference) for reference in alternatives]
        n_system_words += len(words)
        n_reference_words += nearest_length(len(words), [len(reference) for reference in correct])
        for order in range(MAX_ORDER):
            matches[order] += matching_runs(words, correct, order + 1)
            totals[order] += max(0, len(words) - order)
    precisions = smoothed_precisions(matches, totals, smoothing)
    penalty = brevity_penalty(n_system_words, n_reference_words)
    score = penalty * geometric_mean(precisions)
    return Bleu(score, tuple(matches), tuple(totals), precisions, penalty, n_system_words, n_reference_words)


def check_sentences(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse sentences without references; a single str where a list of them is expected is the usual slip."""
    if not hypotheses or len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} translations with {len(references)} entries of references; expected as many, at least 1"
        )
    for number, alternatives in enumerate(references):
        if isinstance(alternatives, str) or not len(alternatives):
            raise DataError(f"references[{number}] is {alternatives!r}, expected a list of at least one str")


def matching_runs(words: Sequence[str], references: Sequence[Sequence[str]], order: int) -> int:
    """How many runs of `order` words are in a reference; each counts at most as often as in the reference with most.

    Args:
        words: the translation.
        references: correct translations.
        order: length of the runs, at least 1.

    Returns:
        The sum of the clipped counts.

    Source:
        Papineni et al. 2002, section 2.1.1 (modified precision).

    Example:
        >>> matching_runs("the the the".split(), ["the cat and the dog".split()], 1)
        2
    """
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= runs_of(reference, order)
    return (runs_of(words, order) & most).total()


def runs_of(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs.

    Example:
        >>> runs_of(["a", "b", "a", "b"], 2)
        Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def nearest_length(n_words: int, reference_lengths: Sequence[int]) -> int:
    """The reference length that is nearest to the translation's; of two equally near the shorter.

    Example:
        >>> nearest_length(5, [3, 7, 10])
        3
    """
    return min(reference_lengths, key=lambda length: (abs(length - n_words), length))


def smoothed_precisions(matches: Sequence[int], totals: Sequence[int], smoothing: str) -> tuple[float, ...]:
    """Percent of the runs of each order that match; nothing written or nothing right at all gives zeros.

    Args:
        matches: per order.
        totals: per order.
        smoothing: "exp" or "none", as in `corpus_bleu`.

    Returns:
        One percentage per order.

    Source:
        "exp": the NIST script mteval-v13a; Chen and Cherry 2014, "A systematic comparison of smoothing techniques for
        sentence-level BLEU", method 3.

    Example:
        >>> smoothed_precisions([3, 1, 0, 0], [4, 3, 2, 1], "exp")
        (75.0, 33.333333333333336, 25.0, 25.0)
    """
    precisions, share = [], 1.0
    for n_matches, total in zip(matches, totals, strict=True):
        if not any(matches) or not total:
            precisions.append(0.0)
        elif n_matches == 0 and smoothing == "exp":
            share /= 2
            precisions.append(100.0 * share / total)
        else:
            precisions.append(100.0 * n_matches / total)
    return tuple(precisions)


def brevity_penalty(n_system_words: int, n_reference_words: int) -> float:
    """exp(1 - r / c) where the c words written are fewer than the r of the reference, else 1; 0 for nothing written.

    Source:
        Papineni et al. 2002, section 2.2.2.

    Example:
        >>> brevity_penalty(12, 9), round(brevity_penalty(5, 10), 4)
        (1.0, 0.3679)
    """
    if n_system_words >= n_reference_words:
        return 1.0
    return math.exp(1 - n_reference_words / n_system_words) if n_system_words else 0.0


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product, 0 if a value is 0.

    Example:
        >>> round(geometric_mean([1.0, 4.0]), 12)
        2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values)) if all(values) else 0.0


def tokenizer_named(name: str):
    """The function that cuts a sentence into words.

    Raises:
        ConfigError: if there is none of that name.
    """
    tokenizers = {"13a": cut_13a, "none": str.split, "char": lambda text: list("".join(text.split()))}
    if name not in tokenizers:
        raise ConfigError(f"tokenize is {name!r}, expected one of {tuple(tokenizers)}")
    return tokenizers[name]


SEPARATED = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),      # ASCII punctuation, but not . , - '
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),                   # . and , unless after a digit
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),                   # . and , unless before a digit
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),                        # - after a digit
)
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def cut_13a(text: str) -> list[str]:
    """Words and punctuation marks, as the NIST script mteval-v13a cuts them.

    Args:
        text: a sentence.

    Returns:
        Its words; numbers such as 3.5 and words such as well-known stay whole.

    Example:
        >>> cut_13a("It's 3.5 (well-known), no?")
        ["It's", '3.5', '(', 'well-known', ')', ',', 'no', '?']
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in SEPARATED:
        text = pattern.sub(replacement, text)
    return text.split()
