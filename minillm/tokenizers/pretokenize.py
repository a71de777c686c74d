"""Cutting text into the pieces that BPE merges never cross.

Three cuts, one inside the other:

1. *special tokens* are taken out first (`split_specials`);
2. each ordinary stretch is cut into *chunks* at whitespace, by a cheap expression (`cut_stream`);
3. each chunk is split into *pieces* by the pattern of GPT-2 or GPT-4 (`split`).

Step 2 is only there for speed: a chunk border is always a piece border, so splitting the chunks gives exactly the
pieces of the whole text, and each distinct chunk of a corpus is split only once. It also makes streaming possible.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import regex

from minillm.errors import TokenizerError

# Unicode's White_Space, which is `\s` of the `regex` package and of Rust. Python's own `\s` has U+001C to U+001F too.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SPACE_IN_LINE = r"\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# The pieces of a chunk may change when more text follows, but never further back than this many chunks.
N_OPEN_CHUNKS = 2
# Long texts are cut in blocks of this many characters, so that their chunks never lie in memory all at once.
BLOCK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class SplitPattern:
    """How one family of models splits text.

    Attributes:
        name: "gpt2" or "gpt4"; for any other expression, the expression itself.
        expression: what defines the pieces, in the syntax of the `regex` package.
        ascii_expression: the same for text of ASCII characters only, in the syntax of `re` (faster); "" when not known.
        chunk_expression: an expression for `re` whose matches tile the text, such that every border between two matches
            is a border of pieces as well; "" when not known: then the whole text is one chunk.
    """

    name: str
    expression: str
    ascii_expression: str = ""
    chunk_expression: str = ""

    def splitter(self) -> Callable[[str], list[str]]:
        """A function from a text to its pieces; joined they give the text back."""
        if not self.ascii_expression:
            return lambda text: split(text, self.expression)
        find_all = regex.compile(self.expression).findall
        find_all_ascii = re.compile(self.ascii_expression).findall
        return lambda text: find_all_ascii(text) if text.isascii() else find_all(text)

    def cutter(self) -> Callable[[str], list[str]] | None:
        """A function from a text to its chunks, or None when no safe place to cut is known for this pattern."""
        return re.compile(self.chunk_expression).findall if self.chunk_expression else None


# Radford et al. 2019 (GPT-2): English contractions; letters, digits or other marks, each with at most one space before;
# and whitespace, whose last space is left to the word that follows.
GPT2 = SplitPattern(
    name="gpt2",
    expression=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ascii_expression=rf" ?[A-Za-z]+|'(?:[sdmt]|ll|ve|re)| ?[0-9]+| ?[^{SPACE}A-Za-z0-9]+"
    rf"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+",
    chunk_expression=rf"[{SPACE}]?[^{SPACE}]+|[{SPACE}]+(?![^{SPACE}])",
)
# GPT-4 (the encoding named cl100k_base): contractions in any case, at most three digits together, any one mark may lead
# a word, and line breaks stay with the marks before them. Hence a chunk must keep `;\n\n` whole.
GPT4 = SplitPattern(
    name="gpt4",
    expression=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    ascii_expression=r"'(?:[sdmtSDMT]|[lL]{2}|[vV][eE]|[rR][eE])|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}"
    rf"| ?[^{SPACE}A-Za-z0-9]+[\r\n]*|[{SPACE}]*[\r\n]|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]",
    chunk_expression=rf"[{SPACE_IN_LINE}]?[^{SPACE}]+(?:[\r\n](?:[{SPACE}]*[\r\n])?)?"
    rf"|[{SPACE}]*[\r\n]|[{SPACE}]+(?![^{SPACE}])",
)
SPLIT_PATTERNS = {pattern.name: pattern for pattern in (GPT2, GPT4)}


def split_pattern(name_or_expression: str) -> SplitPattern:
    """The split pattern called "gpt2" or "gpt4", or one made of any other regular expression.

    Raises:
        TokenizerError: if it is neither a known name nor a valid expression.
    """
    known = {known.expression: known for known in SPLIT_PATTERNS.values()} | SPLIT_PATTERNS
    if name_or_expression in known:
        return known[name_or_expression]
    try:
        regex.compile(name_or_expression)
    except (regex.error, TypeError) as error:
        raise TokenizerError(
            f"split pattern {name_or_expression!r} is neither one of {sorted(SPLIT_PATTERNS)} "
            f"nor a valid expression: {error}"
        ) from error
    return SplitPattern(name_or_expression, name_or_expression)


def split(text: str, expression: str) -> list[str]:
    r"""Split a text into the matches of a regular expression and whatever lies between them; nothing is lost.

    Args:
        text: any text.
        expression: in the syntax of the `regex` package (`\p{L}` is a letter).

    Returns:
        The pieces in order, none of them empty; joined they give the text.

    Source:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2: merges must not join
        a word with its punctuation.

    Example:
        >>> split("It's 42!", GPT2.expression)
        ['It', "'s", ' 42', '!']
        >>> split("a-b", "[a-z]")
        ['a', '-', 'b']
    """
    pieces, end = [], 0
    for match in regex.finditer(expression, text):
        pieces += [text[end : match.start()], match[0]]
        end = match.end()
    return [piece for piece in [*pieces, text[end:]] if piece]


def blocks(text: str, size: int = BLOCK_CHARACTERS) -> Iterator[str]:
    """Consecutive slices of at most `size` characters."""
    return (text[start : start + size] for start in range(0, len(text), size))


def cut_stream(texts: Iterable[str], cut: Callable[[str], list[str]] | None) -> Iterator[list[str]]:
    """Cut a text that arrives in parts into the chunks of the whole, as soon as no later part can change them.

    The last chunks are held back, because the next part may go on with a word, a run of spaces or of line breaks. A
    held chunk is cut again only after as much new text has come in, so a long one costs linear time.

    Args:
        texts: parts of one text; where they were parted has no influence.
        cut: from a text to its chunks; None keeps the whole text as one chunk.

    Yields:
        Lists of chunks; all of them joined give the text.
    """
    held, fresh, n_fresh = "", [], 0
    for text in texts:
        for block in blocks(text):
            fresh.append(block)
            n_fresh += len(block)
            if cut is None or n_fresh < len(held):
                continue
            chunks = cut(held + "".join(fresh))
            yield chunks[:-N_OPEN_CHUNKS]
            held, fresh, n_fresh = "".join(chunks[-N_OPEN_CHUNKS:]), [], 0
    rest = held + "".join(fresh)
    if rest:
        yield cut(rest) if cut else [rest]


def split_specials(text: str, special_tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """Part a text at the special tokens in it.

    Args:
        text: any text.
        special_tokens: the strings to find, leftmost first, and of two that begin at the same place the longer. Every
            character of them stands for itself.

    Returns:
        (string, is_special) in the order of the text, no string empty; joined they give the text. The text between two
        special tokens is one string.

    Example:
        >>> split_specials("a<|end|><|end|>b", ["<|end|>"])
        [('a', False), ('<|end|>', True), ('<|end|>', True), ('b', False)]
        >>> split_specials("<|a|>b", ["<|a|>", "<|a|>b"])
        [('<|a|>b', True)]
    """
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [(text, False)] if text else []
    strings = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [(string, place % 2 == 1) for place, string in enumerate(strings) if string]


def split_specials_stream(texts: Iterable[str], special_tokens: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """`split_specials` for a text that arrives in parts; a special token may lie across several of them.

    Args:
        texts: parts of one text.
        special_tokens: the strings to find.

    Yields:
        (string, is_special); ordinary strings that follow one another belong together. Joined they give the text.

    Example:
        >>> list(split_specials_stream(["a<|e", "nd|>b"], ["<|end|>"]))
        [('a', False), ('<|end|>', True), ('b', False)]
    """
    special_tokens = list(special_tokens)
    n_unsure = max(map(len, special_tokens), default=1) - 1   # what begins in the last n_unsure may yet go on
    held = ""
    for text in texts:
        held += text
        end = 0
        for string, is_special in split_specials(held, special_tokens):
            if end >= len(held) - n_unsure:
                break
            certain = string if is_special else string[: len(held) - n_unsure - end]
            yield certain, is_special
            end += len(certain)
        held = held[end:]
    yield from split_specials(held, special_tokens)


def stretches(texts: Iterable[str], special_tokens: Iterable[str]) -> Iterator[str | Iterator[str]]:
    """The same as `split_specials_stream`, with the ordinary text between two special tokens in one place.

    Yields:
        A str for each special token, and for each stretch of ordinary text an iterator of its parts, which has to be
        used up before the next stretch is asked for.
    """
    parts = split_specials_stream(texts, special_tokens)
    ended_by: list[str] = []

    def rest_of_stretch() -> Iterator[str]:
        for text, is_special in parts:
            if is_special:
                ended_by.append(text)
                return
            yield text

    for text, is_special in parts:
        if is_special:
            yield text
            continue
        yield chain([text], rest_of_stretch())
        yield from ended_by
        ended_by.clear()


def ordinary_chunks(
    texts: Iterable[str], special_tokens: Iterable[str], cut: Callable[[str], list[str]] | None
) -> Iterator[list[str]]:
    """What a tokenizer learns from: the chunks of a text that arrives in parts, special tokens left out.

    Args:
        texts: parts of one text.
        special_tokens: strings that no chunk may hold or reach across.
        cut: as for `cut_stream`.

    Example:
        >>> list(ordinary_chunks(["a b<|end|>c"], ["<|end|>"], re.compile(" ?[a-z]+").findall))
        [['a', ' b'], ['c']]
    """
    for stretch in stretches(texts, special_tokens):
        if not isinstance(stretch, str):
            yield from filter(None, cut_stream(stretch, cut))
