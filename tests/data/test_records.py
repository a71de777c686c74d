"""Records and their sentences: read back by another reader, and test pairs that no training pair shares."""

import re
from itertools import islice

import pytest

from minillm.data.records import HELD_OUT_EVERY, Record, owners_and_items, records
from minillm.data.tinyworld import World, WorldConfig, world_config
from minillm.data.tinyworld.lexicon import ENGLISH_NUMBERS, FRUITS
from minillm.errors import DataError

SENTENCES = re.compile(r"(\w+) is at the (\w+)\. (\w+) has (an?) (\w+) (\w+) and (\w+) (\w+)\.")
SINGULAR = {form: fruit.english for fruit in FRUITS for form in (fruit.english, fruit.plural)}


def read_target(target: str) -> set[str]:
    """The fields that the sentences tell."""
    name, place, again, article, colour, item, number, fruit = SENTENCES.fullmatch(target).groups()
    count = ENGLISH_NUMBERS.index(number) + 1
    assert again == name and (article == "an") == (colour[0] in "aeiou")
    assert (fruit in {entry.english for entry in FRUITS}) == (count == 1)
    return {f"name: {name}", f"place: {place}", f"item: {colour} {item}", f"fruit: {SINGULAR[fruit]} {count}"}


@pytest.mark.parametrize("name", ["demo", "full"])
@pytest.mark.parametrize("held_out", [False, True])
def test_sentences_tell_the_record(name, held_out):
    for source, target in islice(records(World(world_config(name, min_count=1)), 2, held_out=held_out), 150):
        assert set(source.split(" | ")) == read_target(target)


def test_the_world_could_tell_the_sentences():
    """The person's sentences are those of a story: the made world's own reader accepts them there."""
    world = World(WorldConfig(n_people=2, n_events=0, n_questions=0))
    first = Record("Clara", "castle", "white", "lamp", "peach", 4).told()
    second = Record("Omar", "mill", "blue", "hat", "peach", 2).told()
    world.parse_english(f"The peaches are ripe. {first} {second}")


def test_tests_have_pairs_of_name_and_item_that_training_never_has():
    world = World(WorldConfig())
    seen = {}
    for held_out in (False, True):
        pairs = islice(records(world, 9, held_out=held_out), 800)
        seen[held_out] = {SENTENCES.fullmatch(target).group(1, 6) for _, target in pairs}
    assert not seen[False] & seen[True]
    assert seen[True] == set(owners_and_items(world.config, True))
    assert seen[False] == set(owners_and_items(world.config, False))
    assert len(seen[True]) / (len(seen[True]) + len(seen[False])) == pytest.approx(1 / HELD_OUT_EVERY, abs=0.03)


def test_fields_come_in_any_order_if_wanted_and_pairs_depend_on_the_seed_alone():
    world = World(WorldConfig())
    first = {source.split(":")[0] for source, _ in islice(records(world, 0, shuffled=True), 60)}
    assert first == {"name", "place", "item", "fruit"}
    assert {source.split(":")[0] for source, _ in islice(records(world, 0), 60)} == {"name"}
    assert list(islice(records(world, 5, start=3), 2)) == list(islice(records(world, 5), 5))[3:]


def test_negative_numbers_are_refused():
    with pytest.raises(DataError, match="start -1"):
        next(records(World(WorldConfig()), 0, start=-1))
