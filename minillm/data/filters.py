"""Keep or drop: each rule says nothing (keep) or the reason for which a text is dropped, with the number that decided.

A rule is a function text -> str | None. The rules on quality are those of Gopher's corpus, which were made for English
web pages: on poems, code, lists and Chinese they are wrong more often than right, and the reason makes that visible.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minillm.data.shingles import words_of
from minillm.errors import ConfigError

Rule = Callable[[str], str | None]
STOP_WORDS = frozenset("the be to of and that have with".split())
SYMBOLS = re.compile(r"#|\.\.\.|…")
CHINESE = re.compile(r"[\u3400-\u9fff]")


def document_statistics(text: str) -> dict[str, float]:
    """Numbers about one text, for rules and for `outliers`; the shares of an empty text are NaN: they do not exist.

    Args:
        text: any text. Words are what stands between white space.

    Returns:
        n_characters, n_words, mean_word_length (characters), symbol_share (# and ellipses per word), letter_words
        (share of words with a letter), bullet_lines and ellipsis_lines (shares of the lines that are not blank),
        n_stop_words (different ones of `STOP_WORDS`), digit_share (of all characters), repeated_lines (share of
        non-blank lines that stood there before).

    Example:
        >>> numbers = document_statistics("- the cat\\n- the cat\\n")
        >>> numbers["n_words"], numbers["bullet_lines"], numbers["repeated_lines"]
        (6, 1.0, 0.5)
    """
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    n_words, n_lines = len(words) or float("nan"), len(lines) or float("nan")
    return {
        "n_characters": len(text),
        "n_words": len(words),
        "mean_word_length": sum(map(len, words)) / n_words,
        "symbol_share": len(SYMBOLS.findall(text)) / n_words,
        "letter_words": sum(any(map(str.isalpha, word[:1000])) for word in words) / n_words,
        "bullet_lines": sum(line.startswith(("-", "*", "•")) for line in lines) / n_lines,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / n_lines,
        "n_stop_words": len(STOP_WORDS.intersection(word.strip(".,;:!?\"'()").lower() for word in words)),
        "digit_share": sum(map(str.isdigit, text)) / (len(text) or float("nan")),
        "repeated_lines": (len(lines) - len(set(lines))) / n_lines,
    }


@dataclass(frozen=True)
class QualityRules:
    """The rules of Gopher with their thresholds as fields; calling it gives the first reason to drop a text, or None.

    Args:
        least_words: fewer words: "too few words".
        most_words: more words: "too many words".
        word_length: bounds of the mean length of a word.
        most_symbols: hashes or ellipses per word.
        least_letter_words: share of words with a letter.
        most_bullets: share of lines that begin with a bullet.
        most_ellipses: share of lines that end with an ellipsis.
        least_stop_words: how many different ones of eight common English words; 0 for other languages.
        most_repeated_lines: share of lines that stood there before.
        most_top_ngram: characters in the most frequent pair of words, as a share of those in all words.

    Source:
        Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv:2112.11446,
        appendix A.1.1; the last two are from its repetition rules.

    Example:
        >>> QualityRules(least_words=3, least_stop_words=1)("Buy now!")
        'too few words: 2 < 3'
        >>> QualityRules(least_words=3, least_stop_words=1)("The cat sat with the dog.") is None
        True
    """

    least_words: int = 50
    most_words: int = 100_000
    word_length: tuple[float, float] = (3.0, 10.0)
    most_symbols: float = 0.1
    least_letter_words: float = 0.8
    most_bullets: float = 0.9
    most_ellipses: float = 0.3
    least_stop_words: int = 2
    most_repeated_lines: float = 0.3
    most_top_ngram: float = 0.2

    def reasons(self, text: str) -> list[str]:
        """Every rule that fires, in the order above, with the number and the bound."""
        numbers = document_statistics(text)
        if not numbers["n_words"]:
            return ["no words"]
        lower, upper = self.word_length
        checks = [
            ("too few words", numbers["n_words"], "<", self.least_words),
            ("too many words", numbers["n_words"], ">", self.most_words),
            ("words too short", numbers["mean_word_length"], "<", lower),
            ("words too long", numbers["mean_word_length"], ">", upper),
            ("too many symbols", numbers["symbol_share"], ">", self.most_symbols),
            ("too few words with letters", numbers["letter_words"], "<", self.least_letter_words),
            ("too many bullets", numbers["bullet_lines"], ">", self.most_bullets),
            ("too many ellipses", numbers["ellipsis_lines"], ">", self.most_ellipses),
            ("too few stop words", numbers["n_stop_words"], "<", self.least_stop_words),
            ("repeated lines", numbers["repeated_lines"], ">", self.most_repeated_lines),
            ("repeated pair of words", top_ngram_share(text, 2), ">", self.most_top_ngram),
        ]
        return [
            f"{name}: {value:.3g} {sign} {bound:g}"
            for name, value, sign, bound in checks
            if (value < bound if sign == "<" else value > bound)
        ]

    def __call__(self, text: str) -> str | None:
        """The first reason, or None."""
        return next(iter(self.reasons(text)), None)


def top_ngram_share(text: str, n_words: int) -> float:
    """Characters that belong to the most frequent run of `n_words` words, as a share of the characters of all words.

    A run that is there only once counts nothing. Of runs that are equally frequent the longest counts. Runs that
    overlap count each, up to a share of 1.

    Args:
        text: any text; words are what stands between white space.
        n_words: 1 or more.

    Returns:
        Between 0 and 1.

    Source:
        Rae et al. 2021, arXiv:2112.11446, table A1.

    Example:
        >>> top_ngram_share("buy it buy it now", 2)
        0.7692307692307693
    """
    if n_words < 1:
        raise ConfigError(f"n_words must be at least 1, not {n_words}")
    words = text.split()
    counts = Counter(zip(*(words[place:] for place in range(n_words)), strict=False))
    if not counts or max(counts.values()) < 2:
        return 0.0
    most = max(counts.values())
    letters = max(sum(map(len, run)) for run, count in counts.items() if count == most)
    return min(1.0, most * letters / sum(map(len, words)))


class Blocklist:
    """Drops texts that use a listed word or phrase more often than allowed.

    Words of scripts with spaces match whole words only: "ass" is not in "class" (the Scunthorpe problem). Chinese is
    written without spaces, so its entries match anywhere, unless the place is covered by one of `harmless`, longer
    words in which the entry is innocent.

    Args:
        entries: words or phrases; case and punctuation do not count.
        harmless: longer words that protect what stands in them.
        allowed: how many hits a text may have.

    Example:
        >>> blocked = Blocklist(["ass", "傻"], harmless=["装傻"])
        >>> blocked("a class, 装傻"), blocked("What an ass!"), blocked("你真傻")
        (None, "blocklist: 'ass' (1)", "blocklist: '傻' (1)")
    """

    def __init__(self, entries: Iterable[str], harmless: Iterable[str] = (), allowed: int = 0):
        self.phrases = {tuple(words_of(entry)) for entry in entries} - {()}
        self.harmless = {tuple(words_of(word)) for word in harmless} - {()}
        if not self.phrases:
            raise ConfigError("a blocklist needs at least one word")
        self.lengths = sorted({len(phrase) for phrase in self.phrases | self.harmless}, reverse=True)
        self.allowed = allowed

    def hits(self, text: str) -> Counter[str]:
        """Entry -> how often it was found; at each place the longest entry or harmless word is taken."""
        words, found, place = words_of(text), Counter(), 0
        while place < len(words):
            here = (tuple(words[place : place + length]) for length in self.lengths)
            phrase = next((part for part in here if part in self.phrases or part in self.harmless), None)
            if phrase in self.phrases and phrase not in self.harmless:
                found["".join(phrase) if CHINESE.match(phrase[0]) else " ".join(phrase)] += 1
            place += len(phrase) if phrase else 1
        return found

    def __call__(self, text: str) -> str | None:
        """None, or the entry found most often, with the number of all hits."""
        found = self.hits(text)
        if found.total() <= self.allowed:
            return None
        return f"blocklist: {min(found, key=lambda entry: (-found[entry], entry))!r} ({found.total()})"
