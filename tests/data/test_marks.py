"""The kinds and roles of words: every token has one, and they are what the stories say."""

import pytest

from minillm.data.tinyworld import World, world_config
from minillm.data.tinyworld.lexicon import COLOURS, ENGLISH_NUMBERS, FRUITS, ITEMS, NAMES, PLACES, THINGS
from minillm.data.tinyworld.marks import KINDS, word_marks
from minillm.tokenizers.words import split_words

WORDS = {
    "name": {name.english for name in NAMES},
    "place": set(PLACES),
    "colour": set(COLOURS),
    "object": {noun.english for noun in ITEMS + THINGS},
    "number": set(ENGLISH_NUMBERS),
    "fruit": {fruit.english for fruit in FRUITS} | {fruit.plural for fruit in FRUITS},
    "article": {"a", "an", "A", "An", "The", "the"},
    "verb": set("are is has stands belongs comes goes swaps gives carries".split()),
    "preposition": {"at", "to", "with", "from", "of"},
    "pronoun": {"her", "his"},
    "conjunction": {"and"},
    "adverb": {"Now"},
    "adjective": {"ripe"},
    "time": {"Evening"},
    "stop": {"."},
}


@pytest.mark.parametrize("size", ["tiny", "demo", "full"])
def test_every_token_has_the_kind_that_its_word_has(size):
    world, seen = World(world_config(size)), set()
    for index in range(60):
        story = world.story(seed=0, index=index)
        marks = word_marks(story)
        assert [mark.word for mark in marks] == split_words(story.english.text)
        for word, kind, role in marks:
            assert word.strip() in WORDS[kind] and role.split()[0] == kind
            seen.add(kind)
    assert seen == set(WORDS) == set(KINDS)


def test_roles_tell_who_is_who():
    world = World(world_config("demo"))
    for index in range(40):
        story = world.story(seed=1, index=index)
        kinds = [kind for kind, _ in story.sentences]
        roles = [(mark.word.strip(), mark.role) for mark in word_marks(story)]
        for number, (kind, fields) in enumerate(story.sentences):
            if kind == "gift" and kinds.count("gift") == 1:
                assert (fields["actor"].value, "name actor") in roles
                assert (fields["partner"].value, "name partner") in roles, number
            if kind == "carry":
                assert (fields["origin"].value, "place origin") in roles
