"""More texts from few: words replaced, inserted, swapped, deleted; and there and back through another language."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minillm.errors import ConfigError

# Each row: words that can stand for one another in most places. Made for this project, deliberately small.
THESAURUS_ROWS = """
big large huge great
small little tiny
happy glad cheerful merry
sad unhappy sorrowful
fast quick swift rapid
slow unhurried sluggish
begin start commence
end finish conclude
house home dwelling
road street lane
good fine excellent
bad poor awful
say tell remark
walk stroll wander
look gaze glance
old aged ancient
new fresh recent
beautiful lovely pretty handsome
clever smart bright
quiet silent still
strange odd curious peculiar
angry cross furious
buy purchase acquire
help aid assist
answer reply respond
boat vessel ship
stone rock pebble
child kid youngster
often frequently regularly
perhaps maybe possibly
"""


def thesaurus(rows: str = THESAURUS_ROWS) -> dict[str, tuple[str, ...]]:
    """Word -> the other words of its row.

    Example:
        >>> thesaurus("big large huge")["large"]
        ('big', 'huge')
    """
    table = {}
    for row in rows.split("\n"):
        words = row.split()
        table |= {word: tuple(other for other in words if other != word) for word in words}
    return table


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie between 0 and 1, not {share}")


def replace_synonyms(
    text: str, share: float, rng: np.random.Generator, table: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, int]:
    """Each word that has synonyms is replaced by a random one of them with probability `share`; and how many were.

    Inflected forms are not in the table and stay; a capital first letter stays a capital. Nothing looks at the
    sentence: "still water" may become "quiet water", and "I am still here" "I am quiet here".

    Args:
        text: any text; everything between words stays as it is.
        share: 0 to 1.
        rng: the only source of randomness.
        table: lower-case word -> synonyms; None means `thesaurus()`.

    Example:
        >>> replace_synonyms("Big dogs", 1.0, np.random.default_rng(0), {"big": ["huge"]})
        ('Huge dogs', 1)
    """
    _check_share(share)
    table = thesaurus() if table is None else table
    n_replaced = 0

    def choose(match: re.Match) -> str:
        nonlocal n_replaced
        word = match[0]
        synonyms = table.get(word.lower(), ())
        if not synonyms or rng.random() >= share:
            return word
        n_replaced += 1
        new = synonyms[int(rng.integers(len(synonyms)))]
        return new.capitalize() if word[0].isupper() else new

    return re.sub(r"[^\W\d_]+", choose, text), n_replaced


def insert_words(
    text: str, share: float, rng: np.random.Generator, table: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, int]:
    """Synonyms of the text's own words put in at random places: `share` times the number of words, rounded.

    Args:
        text: words are what stands between white space; white space becomes single spaces.
        share: 0 to 1.
        rng: the only source of randomness.
        table: as in `replace_synonyms`.

    Returns:
        The text and how many were put in; none if no word has a synonym.
    """
    _check_share(share)
    table = thesaurus() if table is None else table
    words = text.split()
    sources = [word for word in words if table.get(word.lower())]
    n_inserted = round(share * len(words)) if sources else 0
    for _ in range(n_inserted):
        synonyms = table[sources[int(rng.integers(len(sources)))].lower()]
        words.insert(int(rng.integers(len(words) + 1)), synonyms[int(rng.integers(len(synonyms)))])
    return " ".join(words), n_inserted


def swap_words(text: str, share: float, rng: np.random.Generator) -> tuple[str, int]:
    """Two different random places exchange their words, `share` times the number of words, rounded.

    The words stay the same and their order is lost, which a bag of words does not notice and a language model does.

    Args:
        text: as in `insert_words`.
        share: 0 to 1.
        rng: the only source of randomness.

    Returns:
        The text and the number of exchanges; none if there are fewer than two words.
    """
    _check_share(share)
    words = text.split()
    n_swaps = round(share * len(words)) if len(words) > 1 else 0
    for _ in range(n_swaps):
        one, other = rng.choice(len(words), size=2, replace=False).tolist()
        words[one], words[other] = words[other], words[one]
    return " ".join(words), n_swaps


def delete_words(text: str, share: float, rng: np.random.Generator) -> tuple[str, int]:
    """Each word is left out with probability `share`; if all would be, one random word stays.

    Args:
        text: as in `insert_words`.
        share: 0 to 1.
        rng: the only source of randomness.

    Returns:
        The text and how many words are gone.

    Source:
        Wei and Zou 2019, "EDA: Easy Data Augmentation", arXiv:1901.11196, for this and the three above.
    """
    _check_share(share)
    words = text.split()
    if not words:
        return "", 0
    stays = rng.random(len(words)) >= share
    if not stays.any():
        stays[rng.integers(len(words))] = True
    kept = [word for word, keep in zip(words, stays.tolist(), strict=True) if keep]
    return " ".join(kept), len(words) - len(kept)


def back_translate(text: str, there: Callable[[str], str], back: Callable[[str], str]) -> str:
    """The text in another language and from there back again: the same said otherwise, if the translators differ
    enough.

    Going there alone is translation. Whatever the other language does not distinguish comes back as the translator
    likes it; a perfect pair without choices brings the same text back and adds nothing.

    Args:
        text: in the first language.
        there: from the first language to the second.
        back: from the second to the first.

    Source:
        Sennrich, Haddow and Birch 2015, arXiv:1511.06709, there for making parallel data from monolingual text.

    Example:
        >>> back_translate("big", {"big": "大"}.get, {"大": "large"}.get)
        'large'
    """
    return back(there(text))
