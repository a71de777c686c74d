"""Words to stems and dictionary forms by rules alone; nothing has to be downloaded.

nltk's PorterStemmer needs no download either and is the oracle here. Its WordNetLemmatizer and its `word_tokenize` do
need one (`wordnet`, and `punkt_tab` since nltk 3.9): where there is no network, `lemmatise` is the fallback.
"""

import re
from collections.abc import Container

VOWEL_ENDINGS = ("at", "bl", "iz")
STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "abli": "able", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble",
}  # fmt: skip
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
STEP_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize".split()
IRREGULAR = {
    "ate": "eat", "began": "begin", "best": "good", "better": "good", "bought": "buy", "brought": "bring",
    "came": "come", "children": "child", "did": "do", "does": "do", "done": "do", "drew": "draw", "feet": "foot",
    "fell": "fall",
    "felt": "feel", "found": "find", "gave": "give", "geese": "goose", "given": "give", "goes": "go", "gone": "go",
    "got": "get", "had": "have", "has": "have", "heard": "hear", "held": "hold", "kept": "keep", "knew": "know",
    "known": "know", "left": "leave", "lost": "lose", "made": "make", "men": "man", "mice": "mouse", "am": "be",
    "are": "be", "is": "be", "was": "be", "were": "be", "been": "be", "ran": "run", "said": "say", "sat": "sit",
    "saw": "see", "seen": "see", "sent": "send", "sold": "sell", "spoke": "speak", "stood": "stand", "taken": "take",
    "taught": "teach", "teeth": "tooth", "thought": "think", "told": "tell", "took": "take", "went": "go",
    "women": "woman", "wrote": "write", "written": "write", "worse": "bad", "worst": "bad",
}  # fmt: skip


def is_consonant(word: str, place: int) -> bool:
    """Whether the letter is a consonant: not a, e, i, o, u, and not a y that follows a consonant."""
    if word[place] == "y":
        return place == 0 or not is_consonant(word, place - 1)
    return word[place] not in "aeiou"


def measure(stem: str) -> int:
    """How many times a vowel is followed by a consonant: Porter's m in [C](VC)^m[V].

    Example:
        >>> [measure(stem) for stem in ("tree", "trouble", "private")]
        [0, 1, 2]
    """
    kinds = _kinds(stem)
    return sum(left and not right for left, right in zip(kinds[1:], kinds[:-1], strict=False))


def _kinds(stem: str) -> list[bool]:
    """Consonant or not, letter by letter, in one pass."""
    kinds: list[bool] = []
    for sign in stem:
        kinds.append((not kinds or not kinds[-1]) if sign == "y" else sign not in "aeiou")
    return kinds


def porter_stem(word: str) -> str:
    """The stem of an English word by Porter's five steps of suffix rules. A stem need not be a word.

    Args:
        word: one word; it is lower-cased. Words of other letters than a to z come back lower-cased and whole, and so do
            words of one or two letters, for which the rules of 1980 were not made.

    Returns:
        The stem.

    Source:
        Porter 1980, "An algorithm for suffix stripping", Program 14(3); as printed, without later extensions.

    Example:
        >>> [porter_stem(word) for word in ("running", "ponies", "relational", "universities", "universe")]
        ['run', 'poni', 'relat', 'univers', 'univers']
    """
    word = word.lower()
    if len(word) <= 2 or not re.fullmatch("[a-z]{1,100}", word):
        return word
    return _step_5(_step_4(_replace(_replace(_step_1(word), STEP_2, 0), STEP_3, 0)))


def _step_1(word: str) -> str:
    """Plurals, -ed and -ing, final y."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        word = word[:-1] if measure(word[:-3]) > 0 else word
    else:
        for ending in ("ed", "ing"):
            if word.endswith(ending):
                stem = word[: -len(ending)]
                word = _mended(stem) if not all(_kinds(stem)) else word
                break
    return word[:-1] + "i" if word.endswith("y") and not all(_kinds(word[:-1])) else word


def _mended(stem: str) -> str:
    """What -ed or -ing has left: hop from hopp, file from fil, conflate from conflat."""
    if stem.endswith(VOWEL_ENDINGS):
        return stem + "e"
    if _doubled(stem) and stem[-1] not in "lsz":
        return stem[:-1]
    return stem + "e" if measure(stem) == 1 and _short(stem) else stem


def _doubled(stem: str) -> bool:
    return len(stem) > 1 and stem[-1] == stem[-2] and _kinds(stem)[-1]


def _short(stem: str) -> bool:
    """Ends consonant, vowel, consonant, and the last is not w, x or y (Porter's *o)."""
    return len(stem) > 2 and _kinds(stem)[-3:] == [True, False, True] and stem[-1] not in "wxy"


def _replace(word: str, table: dict[str, str], least: int) -> str:
    """Only the longest ending that fits is tried; it is replaced if the measure of what is before it is > `least`."""
    for ending in sorted(table, key=len, reverse=True):
        if word.endswith(ending):
            stem = word[: -len(ending)]
            return stem + table[ending] if measure(stem) > least else word
    return word


def _step_4(word: str) -> str:
    for ending in sorted(STEP_4, key=len, reverse=True):
        if word.endswith(ending):
            stem = word[: -len(ending)]
            fits = measure(stem) > 1 and (ending != "ion" or stem.endswith(("s", "t")))
            return stem if fits else word
    return word


def _step_5(word: str) -> str:
    if word.endswith("e"):
        m = measure(word[:-1])
        if m > 1 or (m == 1 and not _short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and measure(word) > 1 else word


def lemmatise(word: str, known: Container[str] = frozenset()) -> str:
    """The dictionary form of an English word by a short list of irregular ones and the commonest endings.

    Plural -s, -es and -ies, -ing and -ed are undone. Whether an e belongs back (hoping, hopping) the endings cannot
    say: if one of the candidates is in `known` it wins, in the order without e, single letter, with e; otherwise a
    doubled consonant is undone and the rest stays as it is. It does not see the sentence: "saw" is always "see" and
    "leaves" never "leave". Adjectives and -ly stay.

    Args:
        word: one word; it is lower-cased.
        known: words that exist, for example the vocabulary of a corpus.

    Example:
        >>> [lemmatise(word) for word in ("cats", "ponies", "boxes", "running", "went", "playing", "bus")]
        ['cat', 'pony', 'box', 'run', 'go', 'play', 'bus']
        >>> lemmatise("hoping", known={"hope"})
        'hope'
    """
    word = word.lower()
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("ing", "ed")):
        stem = word[:-3] if word.endswith("ing") else word[:-2]
        return word if len(stem) < 3 or all(_kinds(stem)) else _verb(stem, known)
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def _verb(stem: str, known: Container[str]) -> str:
    single = stem[:-1] if _doubled(stem) else stem
    for candidate in (stem, single, stem + "e"):
        if candidate in known:
            return candidate
    if stem.endswith("i"):
        return stem[:-1] + "y"
    return single if stem[-1] not in "lsz" else stem
