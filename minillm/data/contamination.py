"""Is a test's text in the training data? Runs of words that stand in both."""

from collections.abc import Iterable

from minillm.data.shingles import digest, words_of
from minillm.errors import ConfigError, DataError


def ngram_digests(text: str, n_words: int) -> list[bytes]:
    """8 bytes for every run of `n_words` words, in order; a shorter text gives one, a text without words none."""
    words = words_of(text)
    n_runs = max(len(words) - n_words + 1, 1) if words else 0
    return [digest(" ".join(words[place : place + n_words]), 8) for place in range(n_runs)]


class Decontamination:
    """Drops training texts that share a run of words with a test.

    Case and punctuation do not count. Tests with fewer words than a run are looked for as a whole only if the
    training text is just as short, so keep `n_words` below the length of the tests.

    Args:
        tests: the texts that must not be trained on.
        n_words: length of a run; GPT-3 took 13. Short runs drop innocent texts, long ones miss edited copies.
        least_runs: how many different runs of a text must be found in the tests.

    Raises:
        ConfigError: if a number is below 1.
        DataError: if the tests have no words.

    Source:
        Brown et al. 2020, arXiv:2005.14165, appendix C.

    Example:
        >>> drop = Decontamination(["Who wrote the third letter to the king?"], n_words=4)
        >>> drop("Nobody knows who wrote the third letter."), drop("Who wrote it?")
        ('contaminated: 2 runs of 4 words stand in a test', None)
    """

    def __init__(self, tests: Iterable[str], n_words: int = 13, least_runs: int = 1):
        if n_words < 1 or least_runs < 1:
            raise ConfigError(f"n_words and least_runs must be at least 1, not {n_words} and {least_runs}")
        self.n_words, self.least_runs = n_words, least_runs
        self.known = frozenset(run for test in tests for run in ngram_digests(test, n_words))
        if not self.known:
            raise DataError("the tests have no words; nothing could be found")

    def __call__(self, text: str) -> str | None:
        """None, or how many different runs the text shares with the tests."""
        n_found = len(self.known.intersection(ngram_digests(text, self.n_words)))
        if n_found < self.least_runs:
            return None
        return f"contaminated: {n_found} run{'s' * (n_found > 1)} of {self.n_words} words stand in a test"
