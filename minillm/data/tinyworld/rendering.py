"""From sentences to text and back: one template per kind of sentence both writes it and reads it.

A template is text with fields, `{field}`, `{field:form}`, `{field:form.1}`. The form says how a value is written (by
default as its own field name): a tuple of words, of which `.0`, `.1` picks one. The first time a chosen field appears
it carries the choice's surprisal; when it is written with several words, each carries what it reveals: the article "an"
tells that the colour begins with a vowel, and the colour after it has only the rest left to tell.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from minillm.data.tinyworld.choices import Choice
from minillm.data.tinyworld.grammar import CHOSEN_FIELDS, Derivation, Fact, Field, Sentence
from minillm.errors import DataError

FIELD = re.compile(r"( ?)\{(\w+)(?::(\w+))?(?:\.(\d))?\}")


class Piece(NamedTuple):
    """A stretch of text, its log-probability in nats given all before, its kind: "fixed", "chosen", or a recall's."""

    text: str
    log_probability: float
    kind: str


class Recall(NamedTuple):
    """A word that follows from what was told before.

    `text[start:stop] == word`; `kind` is "name", "object", "place", "colour", "count" or "agreement"; `log_probability`
    is in nats (0.0: a reader who remembers can be sure of it); `distance` is the number of words (Chinese: characters)
    back to the word that last stated this fact.
    """

    start: int
    stop: int
    word: str
    kind: str
    log_probability: float
    distance: int


@dataclass(frozen=True)
class Rendering:
    """A story in one language.

    Args:
        pieces: the text in order, cut where its surprisal changes; their log-probabilities sum to the story's.
        recalls: the recalled words in order.
    """

    pieces: tuple[Piece, ...]
    recalls: tuple[Recall, ...]

    @cached_property
    def text(self) -> str:
        """The whole text; it starts with a letter and ends with a full stop."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def log_probability(self) -> float:
        """The sum over the pieces in nats."""
        return math.fsum(piece.log_probability for piece in self.pieces)

    def token_floors(self, token_bytes: Sequence[int]) -> tuple[np.ndarray, list[Recall | None]]:
        """What a perfect model would pay for each token, and which recalled word, if any, the token is part of.

        A piece's surprisal goes to the token that holds its first byte that is not a space; a token that holds several
        pieces gets their sum. So the floors sum to the story's surprisal for every tokenizer.

        Args:
            token_bytes: the number of UTF-8 bytes of each token, in order, together the whole text.

        Returns:
            (n_tokens,) float64 surprisals in nats, and for each token the `Recall` it overlaps or None.

        Raises:
            DataError: if the tokens do not have as many bytes as the text.
        """
        stops = list(itertools.accumulate(token_bytes))
        n_bytes = len(self.text.encode())
        if not stops or stops[-1] != n_bytes:
            raise DataError(f"the tokens have {sum(token_bytes)} bytes, the text has {n_bytes}: give its own tokens")
        floors = np.zeros(len(stops))
        byte = 0
        for piece in self.pieces:
            floors[bisect.bisect_right(stops, byte + (piece.text[0] == " "))] -= piece.log_probability
            byte += len(piece.text.encode())

        recalls: list[Recall | None] = [None] * len(stops)
        byte_at = list(itertools.accumulate((len(letter.encode()) for letter in self.text), initial=0))
        for recall in self.recalls:
            first = bisect.bisect_right(stops, byte_at[recall.start])
            last = bisect.bisect_right(stops, byte_at[recall.stop] - 1)
            recalls[first : last + 1] = [recall] * (last + 1 - first)
        return floors, recalls


class Part(NamedTuple):
    """A compiled part of a template: literal text, or (field set) a space or nothing and one word of a field."""

    text: str
    field: str = ""
    form: str = ""
    index: int = 0
    first: bool = True                                             # the first time that this word of this field appears


def compile_template(template: str) -> tuple[Part, ...]:
    """Cut a template into its parts; a space before a field belongs to the field.

    Example:
        >>> [part.text + part.field for part in compile_template("{actor} goes to the {place}.")]
        ['actor', ' goes to the', ' place', '.']
    """
    parts, seen, position = [], set(), 0
    for match in FIELD.finditer(template):
        if literal := template[position : match.start()]:
            parts.append(Part(literal))
        space, field, form, index = match.groups()
        word = (field, int(index or 0))
        parts.append(Part(space, field, form or field, word[1], word not in seen))
        seen.add(word)
        position = match.end()
    if literal := template[position:]:
        parts.append(Part(literal))
    return tuple(parts)


class Language:
    """Writes and reads stories in one language.

    Args:
        templates: kind of sentence -> template, for every kind in `CHOSEN_FIELDS`.
        forms: form -> value -> the words that write this value in this form, the same number for every chosen value
            that one template can meet. Different values have different words.
        spaced: whether words are separated by spaces (distances then count words, else characters).
    """

    def __init__(self, templates: dict[str, str], forms: dict[str, dict], spaced: bool):
        self.forms = forms
        self.spaced = spaced
        self.templates = {kind: compile_template(template) for kind, template in templates.items()}
        self.patterns = {kind: self.pattern(kind) for kind in templates}
        self.values = {form: {words: value for value, words in table.items()} for form, table in forms.items()}
        self.one_word_forms = {
            form
            for form, table in forms.items()
            if len(self.values[form]) == len(table) and all(len(words) == 1 for words in table.values())
        }

    def write(self, sentences: Iterable[Sentence]) -> Rendering:
        """The text of a story, piece by piece, with its recalled words."""
        pieces: list[Piece] = []
        marks: list[tuple[int, int, str, Field]] = []              # start, stop, word, the recalled field
        stated: dict[tuple[int, str], int] = {}                    # (sentence, field) -> where it is in the text
        length = 0
        for number, (kind, fields) in enumerate(sentences):
            for space, name, form, index, first in self.templates[kind]:
                if not name:
                    pieces.append(Piece(space, 0.0, "fixed"))
                    length += len(space)
                    continue
                field = fields[name]
                word = self.forms[form][field.value][index]
                start, length = length + len(space), length + len(space) + len(word)
                if not first:
                    pieces.append(Piece(space + word, 0.0, "fixed"))
                    continue
                stated[number, name] = start
                if field.choice is not None:
                    pieces.append(Piece(space + word, self.revealed(form, field.choice, index), "chosen"))
                else:
                    pieces.append(Piece(space + word, 0.0, field.recall))
                    marks.append((start, length, word, field))
        return Rendering(tuple(pieces), self.recalls(pieces, marks, stated))

    def revealed(self, form: str, choice: Choice, index: int) -> float:
        """The log-probability of one word of a chosen value given the words of it that came before, in nats."""
        if form in self.one_word_forms:
            return choice.log_probability
        table = self.forms[form]
        words = table[choice.value]
        weights = choice.weights or (1.0,) * len(choice.options)
        before = with_word = 0.0
        for option, weight in zip(choice.options, weights, strict=True):
            option_words = table[option]
            if option_words[:index] == words[:index]:
                before += weight
                if option_words[index] == words[index]:
                    with_word += weight
        return math.log(with_word / before)

    def recalls(self, pieces: list[Piece], marks: list, stated: dict[tuple[int, str], int]) -> tuple[Recall, ...]:
        """The recalled words with their distances."""
        text = "".join(piece.text for piece in pieces)
        spaces = [place for place, letter in enumerate(text) if letter == " "]
        found = []
        for start, stop, word, field in marks:
            source = stated[field.source]
            distance = bisect.bisect(spaces, start) - bisect.bisect(spaces, source) if self.spaced else start - source
            found.append(Recall(start, stop, word, field.recall, 0.0, distance))
        return tuple(found)

    def pattern(self, kind: str) -> re.Pattern:
        """A regular expression that matches sentences of this kind; one group per word of a chosen field."""
        source, groups = "", set()
        for space, name, form, index, first in self.templates[kind]:
            words = {words[index] for words in self.forms[form].values() if index < len(words)} if name else {space}
            either = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
            is_group = name in CHOSEN_FIELDS[kind] and first and (name, index) not in groups
            groups.add((name, index))
            source += f"{space}(?P<{name}_{index}>{either})" if is_group else f"{space if name else ''}(?:{either})"
        return re.compile(source)

    def read(self, text: str, slots: Iterable[tuple[str, ...]]) -> Derivation:
        """The free choices that a text tells of; whether the rest of it follows from them is not checked here.

        Args:
            text: a story.
            slots: for each sentence in order, the kinds it can have.

        Returns:
            One fact per sentence.

        Raises:
            DataError: where a sentence has none of the forms it can have, or text is left over.
        """
        facts, position = [], 0
        for kinds in slots:
            for kind in kinds:
                if match := self.patterns[kind].match(text, position):
                    facts.append(Fact(kind, tuple(self.value(kind, name, match) for name in CHOSEN_FIELDS[kind])))
                    position = match.end()
                    break
            else:
                found = text[position : position + 60]
                raise DataError(f"character {position}: expected a sentence of kind {kinds}, found {found!r}")
        if position != len(text):
            follows = text[position : position + 60]
            raise DataError(f"character {position}: the story is complete here, but {follows!r} follows")
        return tuple(facts)

    def value(self, kind: str, name: str, match: re.Match):
        """The value that the matched words of one chosen field stand for."""
        parts = {part.index: part.form for part in reversed(self.templates[kind]) if part.field == name}
        words = tuple(match[f"{name}_{index}"] for index in sorted(parts))
        return self.values[parts[0]].get(words)
