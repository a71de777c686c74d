"""Text -> text: one small step each, and what each destroys. Steps that count say how often they changed something.

None of them is always right. To count documents or to find duplicates, throw away as much as you like; a language model
learns to write exactly what is left.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from minillm.errors import ConfigError, DataError

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
QUOTES = str.maketrans({"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "…": "..."})
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
# Characters of traditional writing and their simplified forms: enough to recognise a text, not to convert one.
TRADITIONAL = dict(
    zip(
        "們個來說時國會為這後學對過開們現點東門問間見長書車馬語愛樂話電頭體關兒發實氣",
        "们个来说时国会为这后学对过开们现点东门问间见长书车马语爱乐话电头体关儿发实气",
        strict=True,
    )
)
ABBREVIATIONS = {
    "dr.": "doctor", "e.g.": "for example", "etc.": "and so on", "i.e.": "that is", "mr.": "mister",
    "mrs.": "missus", "no.": "number", "prof.": "professor", "vs.": "versus", "approx.": "approximately",
}  # fmt: skip
CONTRACTIONS = {
    "can't": "cannot", "won't": "will not", "shan't": "shall not", "let's": "let us", "it's": "it is",
    "that's": "that is", "there's": "there is", "what's": "what is", "i'm": "i am", "y'all": "you all",
}  # fmt: skip
ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will"}


def decode_utf8(raw: bytes, errors: str = "strict") -> tuple[str, int]:
    """Bytes to text, and how many characters could not be read.

    Args:
        raw: bytes, with or without a byte order mark (which is dropped).
        errors: "strict" refuses bytes that are not UTF-8, "replace" writes U+FFFD for each.

    Raises:
        DataError: under "strict", naming the first offset that is wrong.

    Example:
        >>> decode_utf8(b"caf\\xe9", errors="replace")
        ('caf\\ufffd', 1)
    """
    if errors not in ("strict", "replace"):
        raise ConfigError(f"errors must be strict or replace, not {errors!r}")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8"), 0
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason}); "
                "convert the text, or decode with errors='replace'"
            ) from error
    text = raw.decode("utf-8", errors="replace")
    return text, text.count("\ufffd") - raw.count("\ufffd".encode())


def unicode_form(text: str, form: str = "NFC") -> str:
    """The text with each character written in one way only.

    NFC joins letter and accent, NFD parts them; both mean the same text. NFKC and NFKD also replace characters that
    look special by plain ones: full-width letters, ligatures, circled and raised digits. That cannot be undone, and
    "2⁵" becomes "25".

    Args:
        text: any text.
        form: NFC, NFD, NFKC or NFKD.

    Raises:
        ConfigError: for another form.

    Example:
        >>> unicode_form("ＡＢＣ ﬁne", "NFKC")
        'ABC fine'
    """
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    return unicodedata.normalize(form, text)


def plain_quotes(text: str) -> str:
    """Typographic quotes, dashes and ellipses as ASCII. Destroys the difference between a hyphen and a dash.

    Example:
        >>> plain_quotes("“Don’t…”")
        '"Don\\'t..."'
    """
    return text.translate(QUOTES)


def lower_case(text: str) -> str:
    """Without capitals (`str.casefold`). Destroys names, starts of sentences, and "US" against "us".

    Example:
        >>> lower_case("The US, Straße")
        'the us, strasse'
    """
    return text.casefold()


def without_controls(text: str) -> tuple[str, int]:
    """Without control characters, invisible marks, lone surrogates and private ones, and how many there were.

    Tab and line end stay; so do joiners and variation selectors, which emoji and several scripts need.

    Example:
        >>> without_controls("a\\x00b\\u200bc\\n")
        ('abc\\n', 2)
    """
    kept = "".join(sign for sign in text if sign in "\t\n\u200c\u200d" or unicodedata.category(sign)[0] != "C")
    return kept, len(text) - len(kept)


def tidy_whitespace(text: str) -> str:
    """One space for each run of spaces and tabs, none at the ends of lines, at most one empty line in a row.

    All kinds of Unicode spaces count, and all kinds of line ends become "\\n". Destroys indentation, so tables, poems
    and programs.

    Example:
        >>> tidy_whitespace("  a \\u3000 b\\r\\n\\n\\n\\nc ")
        'a b\\n\\nc'
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    kept = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return "\n".join(kept).strip("\n")


def without_punctuation(text: str) -> str:
    """Each punctuation mark or symbol, in any script, becomes a space; runs of white space become one.

    Destroys numbers (3.14), contractions, questions, everything that tells sentences apart.

    Example:
        >>> without_punctuation("Well, 你好！ 3.14")
        'Well 你好 3 14'
    """
    return " ".join("".join(" " if unicodedata.category(sign)[0] in "PS" else sign for sign in text).split())


def expand_abbreviations(text: str, table: Mapping[str, str] = ABBREVIATIONS) -> tuple[str, int]:
    """Abbreviations written out, and how many were. The first letter keeps its size.

    Args:
        text: any text.
        table: from lower-case abbreviation, with its dot, to the words for it. The dot goes; that it may also have
            ended a sentence is lost.

    Example:
        >>> expand_abbreviations("Dr. Wu ate pears, e.g. ripe ones, etc.")
        ('Doctor Wu ate pears, for example ripe ones, and so on', 3)
    """
    if not table:
        return text, 0
    longest_first = sorted(table, key=lambda short: (-len(short), short))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})", re.IGNORECASE)
    return pattern.subn(lambda match: _like(match[0], table[match[0].lower()]), text)


def expand_contractions(text: str, table: Mapping[str, str] = CONTRACTIONS) -> tuple[str, int]:
    """"won't" -> "will not", "they're" -> "they are", and how many were written out.

    Whole words come from `table`; else the endings n't, 're, 've and 'll are replaced. 's and 'd stay, because only the
    sentence says whether "she'd" is "she had" or "she would". The first letter keeps its size.

    Example:
        >>> expand_contractions("Don't! They're Tom's, and I won't.")
        ("Do not! They are Tom's, and I will not.", 3)
    """
    n_expanded = 0

    def expand(match: re.Match) -> str:
        nonlocal n_expanded
        word = match[0].replace("’", "'")
        if word.lower() in table:
            n_expanded += 1
            return _like(word, table[word.lower()])
        for ending, full in ENDINGS.items():
            if word.lower().endswith(ending) and len(word) > len(ending):
                n_expanded += 1
                return word[: -len(ending)] + full
        return match[0]

    return re.sub(r"(?<![^\W\d_])[^\W\d_]+['’][^\W\d_]+", expand, text), n_expanded


def _like(original: str, replacement: str) -> str:
    return replacement[0].upper() + replacement[1:] if original[0].isupper() else replacement


def script_notes(text: str) -> dict[str, int]:
    """How many characters are full-width letters or digits, traditional Chinese, or their simplified twins.

    Full-width and half-width are one letter in two widths: NFKC joins them. Traditional and simplified are different
    characters, and the way back is not unique (发 is 發 or 髮): nothing here converts them, this only notes them.

    Example:
        >>> script_notes("ＡＢ 這 这些")
        {'full_width': 2, 'traditional': 1, 'simplified': 1}
    """
    counts = Counter(text)
    simplified = {new for old, new in TRADITIONAL.items() if new != old}
    return {
        "full_width": sum(n for sign, n in counts.items() if "！" <= sign <= "～"),
        "traditional": sum(n for sign, n in counts.items() if sign in TRADITIONAL),
        "simplified": sum(n for sign, n in counts.items() if sign in simplified),
    }


def edit_distance(first: str, second: str, swaps: bool = False) -> int:
    """The least number of insertions, deletions and replacements of one character that turn one word into the other.

    A table of (len(first) + 1) x (len(second) + 1), where d(i, j) is the distance between the first i characters of the
    one and the first j of the other: the smallest of d(i-1, j) + 1, d(i, j-1) + 1 and d(i-1, j-1) + [they differ].

    Args:
        first: any text.
        second: any text.
        swaps: also count the exchange of two neighbours as one (d(i-2, j-2) + 1 where they are crosswise equal); no
            character is edited twice.

    Returns:
        0 for equal words.

    Source:
        Levenshtein 1966; with swaps Damerau 1964, in the form called optimal string alignment.

    Example:
        >>> edit_distance("kitten", "sitting"), edit_distance("form", "from"), edit_distance("form", "from", swaps=True)
        (3, 2, 1)
    """
    before, row = [], list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        older, before, row = before, row, [i]
        for j, right in enumerate(second, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if swaps and i > 1 and j > 1 and left == second[j - 2] and first[i - 2] == right:
                best = min(best, older[j - 2] + 1)
            row.append(best)
    return row[-1]


class SpellingCorrector:
    """Puts a known word for an unknown one, if one is at most a single edit away: the one that is seen most often.

    Args:
        counts: lower-case word -> how often it was seen; words seen less than `least` times are not known.
        least: 1 or more.
        alphabet: letters that an edit may put in.

    Source:
        Kernighan, Church and Gale 1990, "A Spelling Correction Program Based on a Noisy Channel Model", here with every
        edit equally likely.

    Example:
        >>> corrector = SpellingCorrector({"the": 9, "then": 2, "hat": 3})
        >>> corrector("Teh hta is xyz")
        ('The hat is xyz', 2)
    """

    def __init__(self, counts: Mapping[str, int], least: int = 1, alphabet: str = "abcdefghijklmnopqrstuvwxyz"):
        self.counts = {word: n for word, n in counts.items() if n >= least}
        self.alphabet = alphabet

    @classmethod
    def train(cls, texts: Iterable[str], least: int = 2) -> "SpellingCorrector":
        """Count the words of texts; what stands there less than `least` times may be a misspelling itself."""
        counts = Counter(word.lower() for text in texts for word in WORD.findall(text))
        return cls(counts, least)

    def one_edit(self, word: str) -> set[str]:
        """Everything one insertion, deletion, replacement or swap of neighbours away; 54 n + 25 strings or fewer."""
        cuts = [(word[:place], word[place:]) for place in range(len(word) + 1)]
        shorter = {left + right[1:] for left, right in cuts if right}
        swapped = {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
        replaced = {left + letter + right[1:] for left, right in cuts if right for letter in self.alphabet}
        longer = {left + letter + right for left, right in cuts for letter in self.alphabet}
        return (shorter | swapped | replaced | longer) - {word}

    def word(self, word: str) -> str:
        """The word itself if it is known, is no plain ASCII word of 3 to 30 letters, or has no known neighbour."""
        lower = word.lower()
        if lower in self.counts or not (lower.isascii() and lower.isalpha() and 3 <= len(lower) <= 30):
            return word
        candidates = sorted(self.counts.keys() & self.one_edit(lower))
        return _like(word, max(candidates, key=self.counts.__getitem__)) if candidates else word

    def __call__(self, text: str) -> tuple[str, int]:
        """The text with unknown words corrected, and how many were. Names are unknown words: it corrects them too."""
        n_corrected = 0

        def correct(match: re.Match) -> str:
            nonlocal n_corrected
            better = self.word(match[0])
            n_corrected += better != match[0]
            return better

        return WORD.sub(correct, text), n_corrected
