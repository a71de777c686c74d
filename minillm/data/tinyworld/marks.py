"""What every word of an English story is: the truth against which taggers are measured.

The stories are written from templates, so nothing has to be guessed. A word has a kind (name, place, verb, ...), which
mostly follows from the word itself, and a role, which does not: Ana may be the one who acts, her partner, or the owner.
"""

from collections.abc import Iterator
from typing import NamedTuple

from minillm.data.tinyworld.rendering import Part
from minillm.data.tinyworld.world import Story
from minillm.tokenizers.words import split_words

KIND_OF_FORM = {
    "name": "name",
    "possessive": "pronoun",
    "place": "place",
    "colour": "colour",
    "item": "object",
    "thing": "object",
    "number": "number",
    "plural": "fruit",
    "plurals": "fruit",
    "counted": "fruit",
    "verb": "verb",
}
KIND_OF_WORD = {
    word: kind
    for kind, words in {
        "article": "The the",
        "verb": "are is has stands belongs comes",
        "preposition": "at to with from of",
        "conjunction": "and",
        "adverb": "Now",
        "adjective": "ripe",
        "time": "Evening",
        "stop": ".",
    }.items()
    for word in words.split()
}
KINDS = tuple(dict.fromkeys([*KIND_OF_FORM.values(), *KIND_OF_WORD.values()]))


class Mark(NamedTuple):
    """One word of a story: as `split_words` cuts it (with the space before it), its kind, and its role.

    The role is the kind, and for a word that varies the field of the sentence that it fills: "name partner".
    """

    word: str
    kind: str
    role: str


def word_marks(story: Story) -> list[Mark]:
    """Every word and mark of an English story in order, with its kind, one of `KINDS`, and its role.

    Args:
        story: of any world.

    Returns:
        One entry per token of `split_words(story.english.text)`.

    Example:
        >>> from minillm.data.tinyworld import World, world_config
        >>> [tuple(mark) for mark in word_marks(World(world_config("tiny")).story(seed=0, index=0))[:3]]
        [('The', 'article', 'article'), (' plums', 'fruit', 'fruit fruit'), (' are', 'verb', 'verb')]
    """
    language = story.languages[0]
    marks: list[Mark] = []
    for kind, fields in story.sentences:
        for part in language.templates[kind]:
            if part.field:
                word = language.forms[part.form][fields[part.field].value][part.index]
                kind_of_word = _kind_of_field(part, len(language.forms[part.form][fields[part.field].value]))
                marks.append(Mark(part.text + word, kind_of_word, f"{kind_of_word} {part.field}"))
            else:
                marks += _marks_of_text(part.text)
    return marks


def _kind_of_field(part: Part, n_words: int) -> str:
    """The kind of one word of a field: of several words the first is an article; one word as a subject is a name."""
    if n_words > 1 and part.index == 0:
        return "article"
    if part.form == "subject":
        return "object" if n_words > 1 else "name"
    return KIND_OF_FORM["colour" if part.form.endswith("a_colour") else part.form]


def _marks_of_text(text: str) -> Iterator[Mark]:
    for word in split_words(text):
        kind = KIND_OF_WORD[word.strip()]
        yield Mark(word, kind, kind)
