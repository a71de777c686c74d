"""Which language is a text in? Counts of runs of one to three characters, learned from texts of known language."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from minillm.errors import ConfigError, DataError

UNKNOWN = "unknown"
LONGEST = 20_000  # characters looked at; more do not change the answer


def character_ngrams(text: str, order: int) -> Counter[str]:
    """How often each run of 1 to `order` characters stands in the case-folded text; each run of non-letters is one
    space.

    Args:
        text: any text; a space is put before and behind it.
        order: length of the longest runs, 1 or more.

    Example:
        >>> sorted(character_ngrams("Ab, ab!", 2).items())
        [(' ', 3), (' a', 2), ('a', 2), ('ab', 2), ('b', 2), ('b ', 2)]
    """
    if order < 1:
        raise ConfigError(f"order must be at least 1, not {order}")
    letters = "".join(sign if sign.isalpha() else " " for sign in text.casefold())
    words = f" {' '.join(letters.split())} "
    counts = Counter()
    for length in range(1, order + 1):
        counts.update(words[place : place + length] for place in range(len(words) - length + 1))
    return counts


class LanguageIdentifier:
    """Naive Bayes over character n-grams: the language under which the text's n-grams are the most probable.

    log P(text | language) is the sum, over the n-grams g of the text, of log((f(g) + alpha) / (1 + alpha (V + 1))),
    with the relative frequency f of g in the language and V different n-grams in all languages together. Frequencies,
    not counts, so that what no text has shown costs the same in a language with a few texts as in one with many.
    Languages are equally likely beforehand.

    Args:
        counts: language -> counts of its n-grams.
        order: length of the longest n-grams in characters.
        alpha: added to each relative frequency, above 0.

    Source:
        Cavnar and Trenkle 1994, "N-Gram-Based Text Categorization", for the features; Dunning 1994, "Statistical
        Identification of Language", for the probabilities.

    Example:
        >>> identifier = LanguageIdentifier.train({"en": ["the cat and the dog"], "de": ["die Katze und der Hund"]})
        >>> identifier.identify("the dog")[0], identifier.identify("der Hund")[0], identifier.identify("42")
        ('en', 'de', ('unknown', 0.0))
    """

    def __init__(self, counts: Mapping[str, Mapping[str, int]], order: int = 3, alpha: float = 1e-4):
        if len(counts) < 2 or not all(counts.values()):
            raise DataError("at least two languages are needed, each with some letters to learn from")
        if not 0 < alpha < math.inf:
            raise ConfigError(f"alpha must be above 0, not {alpha}")
        self.order = order
        n_different = len(set().union(*counts.values()))
        self.unseen, self.seen = {}, {}
        for language, known in counts.items():
            total, n_grams = math.log1p(alpha * (n_different + 1)), sum(known.values())
            self.unseen[language] = math.log(alpha) - total
            self.seen[language] = {gram: math.log(count / n_grams + alpha) - total for gram, count in known.items()}

    @classmethod
    def train(cls, texts: Mapping[str, Iterable[str]], order: int = 3, alpha: float = 1e-4) -> "LanguageIdentifier":
        """Count the n-grams of the texts of each language."""
        counts = {}
        for language, documents in texts.items():
            counts[language] = Counter()
            for document in documents:
                counts[language].update(character_ngrams(document, order))
        return cls(counts, order, alpha)

    def scores(self, text: str) -> dict[str, float]:
        """Language -> log-probability in nats per n-gram; empty if the text has no letters."""
        grams = character_ngrams(text[:LONGEST], self.order)
        n_grams = grams.total()
        if not any(gram.strip() for gram in grams):
            return {}
        return {
            language: math.fsum(n * known.get(gram, self.unseen[language]) for gram, n in grams.items()) / n_grams
            for language, known in self.seen.items()
        }

    def identify(self, text: str) -> tuple[str, float]:
        """The most probable language, and by how many nats per n-gram it beats the next; ("unknown", 0.0) without
        letters.

        The lead says how sure one can be: on other languages than the learned ones it is small, but an answer comes.
        """
        scores = self.scores(text)
        if not scores:
            return UNKNOWN, 0.0
        best, next_best = sorted(scores, key=lambda language: (-scores[language], language))[:2]
        return best, scores[best] - scores[next_best]
