"""Records of the made world and the sentences that tell them: text from data, a task for models that write.

    name: Tom | place: mill | item: red kite | fruit: plum 3
    Tom is at the mill. Tom has a red kite and three plums.

The sentences are those of the made world's stories, so that a model of these can write them already.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from minillm.data.tinyworld import World, WorldConfig
from minillm.data.tinyworld.lexicon import COLOURS, ENGLISH_NUMBERS, FRUITS, ITEMS, NAMES, PLACES
from minillm.errors import DataError

HELD_OUT_EVERY = 5  # of the pairs of a name and an item, one in so many is kept for tests
PLURALS = {fruit.english: fruit.plural for fruit in FRUITS}


class TextPair(NamedTuple):
    """A text and what is to be written for it."""

    source: str
    target: str


class Record(NamedTuple):
    """What is known of one person: words of the made world, and how many pieces of fruit, 1 to 20."""

    name: str
    place: str
    colour: str
    item: str
    fruit: str
    count: int

    def fields(self) -> list[str]:
        """The record's four fields.

        Example:
            >>> Record("Tom", "mill", "red", "kite", "plum", 3).fields()
            ['name: Tom', 'place: mill', 'item: red kite', 'fruit: plum 3']
        """
        item, fruit = f"item: {self.colour} {self.item}", f"fruit: {self.fruit} {self.count}"
        return [f"name: {self.name}", f"place: {self.place}", item, fruit]

    def told(self) -> str:
        """The sentences.

        Example:
            >>> Record("Ana", "farm", "orange", "lamp", "peach", 1).told()
            'Ana is at the farm. Ana has an orange lamp and one peach.'
        """
        article = "an" if self.colour[0] in "aeiou" else "a"
        fruit = self.fruit if self.count == 1 else PLURALS[self.fruit]
        owned = f"{article} {self.colour} {self.item} and {ENGLISH_NUMBERS[self.count - 1]} {fruit}"
        return f"{self.name} is at the {self.place}. {self.name} has {owned}."


def records(
    world: World, seed: int, start: int = 0, held_out: bool = False, shuffled: bool = False
) -> Iterator[TextPair]:
    """Records drawn evenly from a world's words, with their sentences, without end and one at a time.

    Args:
        world: its sizes say which words and numbers there are.
        seed: 0 or more; pair number i of a seed is the same on every platform.
        start: number of the first pair.
        held_out: the pairs for tests: their names have in training never the item that they have here.
        shuffled: whether the fields come in any order; it is harder to find them then.

    Yields:
        pairs.

    Raises:
        DataError: if seed or start is negative.

    Example:
        >>> from minillm.data.tinyworld import world_config
        >>> next(records(World(world_config("demo")), seed=1)).source
        'name: Mei | place: harbour | item: green ball | fruit: peach 4'
    """
    if seed < 0 or start < 0:
        raise DataError(f"seed {seed}, start {start}: expected both to be 0 or more")
    owners = owners_and_items(world.config, held_out)
    while True:
        draw = Random(f"records {seed} {start}")
        record = drawn_record(world.config, draw.choice(owners), draw)
        fields = draw.sample(record.fields(), 4) if shuffled else record.fields()
        yield TextPair(" | ".join(fields), record.told())
        start += 1


def owners_and_items(config: WorldConfig, held_out: bool) -> list[tuple[str, str]]:
    """Who may have what: the pairs of a name and an item for tests, or all others.

    Example:
        >>> owners_and_items(WorldConfig(n_names=2, n_items=5, n_people=2, n_questions=0), held_out=True)
        [('Ana', 'kite'), ('Bo', 'lamp')]
    """
    return [
        (name.english, item.english)
        for number, name in enumerate(NAMES[: config.n_names])
        for place, item in enumerate(ITEMS[: config.n_items])
        if ((number + place) % HELD_OUT_EVERY == 0) == held_out
    ]


def drawn_record(config: WorldConfig, owner: tuple[str, str], draw: Random) -> Record:
    """A record of this person with this item; the rest is drawn evenly."""
    name, item = owner
    return Record(
        name,
        draw.choice(list(PLACES)[: config.n_places]),
        draw.choice(list(COLOURS)[: config.n_colours]),
        item,
        draw.choice(FRUITS[: config.n_fruits]).english,
        draw.randint(config.min_count, config.max_count),
    )
