"""A probabilistic context-free grammar: it writes sentences, recognises them, and says how probable each one is.

    S -> NP VP [1.0]        one symbol becomes others, with a probability
    N -> dog [0.5] | hat [0.5]

Symbols that have rules of their own are replaced until only words are left. `minillm.statistical.parsing` recognises.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minillm.errors import ConfigError, DataError

SUM_TOLERANCE = 1e-6  # the probabilities of a symbol's rules may be this far from summing to 1
ALTERNATIVE = re.compile(r"\s*([^\[\]|]*?)\s*\[([^\]]*)\]\s*")


class Production(NamedTuple):
    """One rule: what the symbol becomes, and with which probability."""

    symbol: str
    right: tuple[str, ...]
    probability: float


@dataclass(frozen=True)
class Grammar:
    """Rules with probabilities; whatever never stands on the left of a rule is a word.

    Args:
        start: the symbol that a sentence comes from.
        productions: at least one; none of them has an empty right side.

    Raises:
        ConfigError: if the start has no rule, a right side is empty, or the rules of a symbol do not sum to 1.
    """

    start: str
    productions: tuple[Production, ...]

    def __post_init__(self) -> None:
        totals: dict[str, float] = defaultdict(float)
        for symbol, right, probability in self.productions:
            totals[symbol] += probability
            if not right or not 0 <= probability <= 1:
                raise ConfigError(f"{symbol} -> {' '.join(right)} [{probability}]: expected symbols, and 0 to 1")
        wrong = [f"{symbol}: {total:.6g}" for symbol, total in totals.items() if abs(total - 1) > SUM_TOLERANCE]
        if wrong or self.start not in totals:
            raise ConfigError(f"{self.start} must have rules, and each symbol's must sum to 1; they do not: {wrong}")

    @classmethod
    def from_text(cls, text: str) -> "Grammar":
        """Read rules, one symbol a line; the first is the start.

        Args:
            text: lines `S -> NP VP [0.7] | VP [0.3]`; empty lines and lines that begin with # are skipped.

        Raises:
            ConfigError: if a line has another form, or the rules are no grammar.

        Example:
            >>> Grammar.from_text("S -> a S [0.25] | a [0.75]").productions[0]
            Production(symbol='S', right=('a', 'S'), probability=0.25)
        """
        productions = []
        for line in text.splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            symbol, arrow, alternatives = line.partition("->")
            for alternative in alternatives.split("|"):
                match = ALTERNATIVE.fullmatch(alternative)
                if not arrow or match is None or len(symbol.split()) != 1 or not _is_number(match[2]):
                    raise ConfigError(f"cannot read {line.strip()!r}; a rule looks like  S -> NP VP [0.7] | VP [0.3]")
                productions.append(Production(symbol.strip(), tuple(match[1].split()), float(match[2])))
        return cls(productions[0].symbol if productions else "S", tuple(productions))

    @property
    def symbols(self) -> tuple[str, ...]:
        """What has rules, in the order of the first of them."""
        return tuple(dict.fromkeys(production.symbol for production in self.productions))

    def sample(self, generator: np.random.Generator, max_words: int = 1000) -> tuple[list[str], float]:
        """Write a sentence: replace the leftmost symbol by one of its rules, drawn by probability, until none is left.

        Args:
            generator: where the randomness comes from; one number is drawn for each replacement.
            max_words: give up beyond.

        Returns:
            The words, and the log-probability of this derivation in nats.

        Raises:
            DataError: if there would be more words or waiting symbols; a grammar may grow for ever.
        """
        rules: dict[str, list[Production]] = defaultdict(list)
        for production in self.productions:
            rules[production.symbol].append(production)
        words, waiting, log_probability = [], [self.start], 0.0
        while waiting:
            symbol = waiting.pop()
            if symbol not in rules:
                words.append(symbol)
                continue
            options = rules[symbol]
            sums = np.cumsum([option.probability for option in options])
            place = np.searchsorted(sums, generator.random() * sums[-1], side="right")
            chosen = options[min(int(place), len(options) - 1)]
            log_probability += float(np.log(chosen.probability))
            waiting += reversed(chosen.right)
            if len(words) + len(waiting) > max_words:
                raise DataError(f"the sentence has grown beyond {max_words} words; make its recursive rules rarer")
        return words, log_probability


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False
