"""Recognising with a probabilistic grammar: how probable is a sentence, and what is its structure?

Sentences are recognised in Chomsky's normal form, where a symbol becomes two symbols or one word: `NormalForm` makes it
from a grammar, `inside` adds up all derivations of all stretches of a sentence, `NormalForm.best_tree` finds the most
probable one. Probabilities are plain numbers: sentences of up to some hundred words, not texts.

Dimensions: M symbols of the normal form, R rules with two symbols on the right, T words of a sentence, L ways to cut.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from minillm.errors import ConfigError, DataError
from minillm.statistical.grammar import Grammar, Production

NEVER_ENDS = 1 - 1e-9  # symbols that become one another with this probability or more

Tree = tuple  # a symbol and its children, each of them a tree or a word
Key = str | tuple  # of a symbol: its name; a tuple with a word if it only becomes this word, or with the rest of a rule


@dataclass(frozen=True, eq=False)
class NormalForm:
    """A grammar whose rules have two symbols or one word on the right; every sentence keeps its probability.

    Attributes:
        symbols: M keys: the names of the grammar's symbols, the start first, then tuples for those that were made up.
        parents, lefts, rights: (R,) int64: rule r is symbols[parents[r]] -> symbols[lefts[r]] symbols[rights[r]].
        probabilities: (R,) float64 of these rules.
        words: word -> (M,) float64: the probability that each symbol becomes this word.
    """

    symbols: tuple[Key, ...]
    parents: np.ndarray
    lefts: np.ndarray
    rights: np.ndarray
    probabilities: np.ndarray
    words: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, grammar: Grammar) -> Self:
        """Convert a grammar.

        Words in longer rules get symbols of their own, and rules with more than two symbols are cut into a chain of
        pairs. Rules from one symbol to one other are replaced by what the other becomes: with U the matrix of these,
        (I - U)^-1 = I + U + U^2 + ... adds up chains of every length.

        Raises:
            ConfigError: if symbols become one another for ever.
        """
        pairs = _pairs(grammar)
        names = [grammar.start, *grammar.symbols]
        number = {key: n for n, key in enumerate(dict.fromkeys([*names, *(key for rule in pairs for key in rule)]))}
        units, words = _single(grammar, number)
        if np.abs(np.linalg.eigvals(units)).max() > NEVER_ENDS:
            raise ConfigError("some symbols become one another for ever; give them other rules")
        chains = np.linalg.inv(np.eye(len(number)) - units)                         # (M, M)
        rules: dict[tuple[int, int, int], float] = defaultdict(float)
        for (parent, left, right), probability in pairs.items():
            for ancestor in np.flatnonzero(chains[:, number[parent]] > 0).tolist():
                share = float(chains[ancestor, number[parent]]) * probability
                rules[ancestor, number[left], number[right]] += share
        columns = np.array(list(rules), np.int64).reshape(-1, 3).T                  # (3, R)
        words = {word: chains @ shares for word, shares in words.items()}
        return cls(tuple(number), *columns, np.array(list(rules.values())), words)

    def lexical(self, sentence: Sequence[str]) -> np.ndarray:
        """(T, M) the probability that each symbol becomes each word; zeros for a word that nothing becomes."""
        unknown = np.zeros(len(self.symbols))                                       # (M,)
        return np.array([self.words.get(word, unknown) for word in sentence]).reshape(-1, len(self.symbols))

    def log_probability(self, sentence: Sequence[str]) -> float:
        """log p(sentence) in nats: the sum over all its derivations; -inf if there is none.

        Args:
            sentence: words; the empty sentence has no derivation.
        """
        if len(sentence) == 0:
            return -np.inf
        rules = self.parents, self.lefts, self.rights, self.probabilities
        with np.errstate(divide="ignore"):
            return float(np.log(inside(self.lexical(sentence), *rules)[0, -1, 0]))

    def recognises(self, sentence: Sequence[str]) -> bool:
        """Whether the grammar can write this sentence."""
        return self.log_probability(sentence) > -np.inf

    def best_tree(self, sentence: Sequence[str]) -> tuple[Tree, float]:
        """The most probable derivation in the normal form.

        Args:
            sentence: at least one word.

        Returns:
            The tree, (symbol, child, ...) with words as leaves; symbols that were made up are left out, their children
            belong to the symbol above, and of a chain of single symbols only the first is there. And its
            log-probability in nats.

        Raises:
            DataError: if the grammar cannot write the sentence.
        """
        if not self.recognises(sentence):
            raise DataError(f"the grammar cannot write {' '.join(sentence)!r}; `recognises` tells beforehand")
        chart, rules, middles = self._best_derivations(self.lexical(sentence))

        def children(start: int, stop: int, symbol: int) -> list:
            if stop == start + 1:
                below = [sentence[start]]
            else:
                rule, middle = int(rules[start, stop, symbol]), int(middles[start, stop, symbol])
                below = children(start, middle, self.lefts[rule]) + children(middle, stop, self.rights[rule])
            name = self.symbols[symbol]
            return below if isinstance(name, tuple) else [(name, *below)]

        return children(0, len(sentence), 0)[0], float(np.log(chart[0, -1, 0]))

    def _best_derivations(self, lexical: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `inside`, but the best derivation in place of the sum: its probability, its first rule, where to cut."""
        n_words = len(lexical)
        best = np.zeros((n_words, n_words + 1, lexical.shape[1]))                   # (T, T + 1, M)
        rules, middles = np.zeros(best.shape, np.int64), np.zeros(best.shape, np.int64)
        best[np.arange(n_words), np.arange(n_words) + 1] = lexical
        for width in range(2, n_words + 1):
            for first in range(n_words - width + 1):
                cuts, last = np.arange(first + 1, first + width), first + width
                left, right = best[first, cuts], best[cuts, last]                   # (L, M), (L, M)
                ways = self.probabilities * left[:, self.lefts] * right[:, self.rights]  # (L, R)
                order = np.argsort(ways.max(axis=0), kind="stable")                 # (R,)
                place = first, last, self.parents[order]  # a symbol's best rule comes last and stays
                best[place], rules[place] = ways.max(axis=0)[order], order
                middles[place] = first + 1 + ways.argmax(axis=0)[order]
        return best, rules, middles


def inside(
    lexical: np.ndarray, parents: np.ndarray, lefts: np.ndarray, rights: np.ndarray, probabilities: np.ndarray
) -> np.ndarray:
    """The probability that each symbol becomes each stretch of a sentence, short stretches first (CKY).

        chart[i, j, a] = sum over rules a -> b c, and over i < m < j, of  p(a -> b c) chart[i, m, b] chart[m, j, c]

    for stretches of at least two words; for one word, chart[i, i+1, a] = lexical[i, a].

    Args:
        lexical: (T, M) float64: probability that symbol a becomes word i; T at least 1.
        parents: (R,) int64: the symbol a of each rule a -> b c; R may be 0.
        lefts: (R,) int64: b.
        rights: (R,) int64: c.
        probabilities: (R,) float64.

    Returns:
        (T, T + 1, M) float64: entry [i, j, a] is the probability that symbol a becomes words i .. j-1; 0 where j <= i.

    Source:
        Baker 1979, "Trainable grammars for speech recognition"; the order of work is that of Cocke, Kasami and Younger
        (Younger 1967).

    Example:
        >>> one = np.array([0])                                           # S -> S S [0.5] | a [0.5]; a sentence a a a
        >>> inside(np.full((3, 1), 0.5), one, one, one, np.array([0.5]))[0, :, 0].tolist()
        [0.0, 0.5, 0.125, 0.0625]
    """
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))                             # (T, T + 1, M)
    for start in range(n_words - 1, -1, -1):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            pairs = chart[start, start + 1 : stop].T @ chart[start + 1 : stop, stop]  # (M, M)
            ways = probabilities * pairs[lefts, rights]                             # (R,)
            chart[start, stop] = np.bincount(parents, ways, minlength=n_symbols)
    return chart


def drawn(tree: Tree | str, indent: str = "") -> str:
    """A tree as text, a symbol or word a line, deeper ones further to the right; a symbol of one word shares its line.

    Example:
        >>> print(drawn(("S", ("N", "Ana"), ("V", "sings"))))
        S
          N Ana
          V sings
    """
    if isinstance(tree, str):
        return indent + tree
    name, *children = tree
    if len(children) == 1 and isinstance(children[0], str):
        return f"{indent}{name} {children[0]}"
    return "\n".join([indent + name, *(drawn(child, indent + "  ") for child in children)])


def _pairs(grammar: Grammar) -> dict[tuple[Key, Key, Key], float]:
    """Rules with two symbols on the right: parent, left, right -> probability."""
    pairs: dict[tuple[Key, Key, Key], float] = defaultdict(float)
    for production in grammar.productions:
        for parent, left, right, probability in _cut(production, frozenset(grammar.symbols)):
            rule = parent, left, right
            pairs[rule] = 1.0 if isinstance(parent, tuple) else pairs[rule] + probability  # a rest has this one rule
    return pairs


def _cut(production: Production, known: frozenset[str]) -> Iterator[tuple[Key, Key, Key, float]]:
    """S -> a b c as S -> a (b c) and (b c) -> b c; nothing for a rule with one symbol or word."""
    parent, right, probability = production
    keys = [part if part in known else (part,) for part in right]
    while len(keys) > 2:
        right = right[1:]
        yield parent, keys[0], right, probability
        parent, keys, probability = right, keys[1:], 1.0
    if len(keys) == 2:
        yield parent, *keys, probability


def _single(grammar: Grammar, number: Mapping[Key, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(M, M) probabilities of becoming one other symbol, and for each word (M,) of becoming this word."""
    units = np.zeros((len(number), len(number)))
    words: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(number)))
    for symbol, right, probability in grammar.productions:
        if len(right) == 1 and right[0] in number:
            units[number[symbol], number[right[0]]] += probability
        elif len(right) == 1:
            words[right[0]][number[symbol]] += probability
    for key, place in number.items():
        if isinstance(key, tuple) and len(key) == 1:
            words[key[0]][place] = 1.0
    return units, words
