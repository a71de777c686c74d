"""How large the made world is, and how long its stories are."""

from dataclasses import dataclass, replace

from minillm.data.tinyworld.lexicon import COLOURS, FRUITS, ITEMS, LARGEST_NUMBER, NAMES, PLACES, THINGS
from minillm.errors import ConfigError

EVENT_KINDS = ("move", "swap", "gift", "carry")
LARGEST_GIFT = 2


@dataclass(frozen=True)
class WorldConfig:
    """The sizes of a world; the first six bound the vocabulary, the others shape one story.

    The share of words that need recall is set by three of them: `n_questions` closing sentences with two to four
    recalled words each, `n_events` with up to six each, against the opening of `n_people` and `n_things`.
    `recall_share` measures it: in the defaults (the "demo" world) 15 % of all English words are recalled, and 30 % of
    those that vary at all.

    Args:
        n_names: names that a story's people are drawn from, 2 to 24.
        n_items: objects that people own, at least `n_people`, at most 20.
        n_colours: colours of objects, 1 to 8.
        n_places: places, 2 to 12.
        n_thing_kinds: large objects that stand somewhere and belong to nobody, at least `n_things`, at most 6.
        n_fruits: what people hold in numbers, 1 to 6; one fruit per story.
        n_people: people in a story, at least 2.
        n_things: large objects in a story, 0 or more.
        n_events: events between opening and evening, 0 or more.
        n_questions: closing sentences that recall the state of the world, 0 to `n_people + n_things`.
        min_count: smallest number of fruit at the start, at least 1.
        max_count: largest number of fruit at the start; `max_count + 2 * n_events` may not exceed 20.
        event_weights: relative weights of move, swap, gift, carry, each above 0. A gift needs two pieces of fruit and
            a carry needs a thing; where one is impossible the others keep their proportions.

    Raises:
        ConfigError: if a size is out of its range or contradicts another.

    Example:
        >>> WorldConfig(n_people=3).n_questions
        3
    """

    n_names: int = 8
    n_items: int = 8
    n_colours: int = 6
    n_places: int = 6
    n_thing_kinds: int = 4
    n_fruits: int = 3
    n_people: int = 3
    n_things: int = 0
    n_events: int = 3
    n_questions: int = 3
    min_count: int = 2
    max_count: int = 5
    event_weights: tuple[int, int, int, int] = (3, 3, 1, 2)

    def __post_init__(self):
        self._check("n_people", 2, len(NAMES))
        self._check("n_things", 0, len(THINGS))
        self._check("n_names", self.n_people, len(NAMES))
        self._check("n_items", self.n_people, len(ITEMS))
        self._check("n_colours", 1, len(COLOURS))
        self._check("n_places", 2, len(PLACES))
        self._check("n_thing_kinds", self.n_things, len(THINGS))
        self._check("n_fruits", 1, len(FRUITS))
        self._check("n_events", 0, (LARGEST_NUMBER - 1) // LARGEST_GIFT)
        self._check("n_questions", 0, self.n_people + self.n_things)
        self._check("max_count", 1, LARGEST_NUMBER - LARGEST_GIFT * self.n_events)
        self._check("min_count", 1, self.max_count)
        if len(self.event_weights) != len(EVENT_KINDS) or not all(weight > 0 for weight in self.event_weights):
            raise ConfigError(f"event_weights is {self.event_weights}; give a number above 0 for each of {EVENT_KINDS}")

    def _check(self, name: str, smallest: int, largest: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise ConfigError(f"{name} is {value!r}; in this world it must be an integer from {smallest} to {largest}")


def world_config(name: str, **overrides) -> WorldConfig:
    """A named world: "tiny" can be enumerated completely, "demo" is learned in minutes, "full" uses every word.

    Args:
        name: "tiny", "demo" or "full".
        overrides: fields of `WorldConfig` to change.

    Returns:
        The checked config.

    Raises:
        ConfigError: if the name or a field is unknown, or the sizes contradict each other.

    Example:
        >>> world_config("demo", n_events=7).n_events
        7
    """
    presets = {"tiny": TINY, "demo": WorldConfig(), "full": FULL}
    if name not in presets:
        raise ConfigError(f"no world is named {name!r}; known are {sorted(presets)}")
    if unknown := overrides.keys() - WorldConfig.__dataclass_fields__.keys():
        raise ConfigError(f"unknown settings {sorted(unknown)}; known are {sorted(WorldConfig.__dataclass_fields__)}")
    return replace(presets[name], **overrides)


TINY = WorldConfig(
    n_names=2, n_items=2, n_colours=1, n_places=2, n_thing_kinds=1, n_fruits=1,
    n_people=2, n_things=1, n_events=1, n_questions=1, min_count=1, max_count=2,
)  # fmt: skip
FULL = WorldConfig(
    n_names=24, n_items=20, n_colours=8, n_places=12, n_thing_kinds=6, n_fruits=6,
    n_people=5, n_things=2, n_events=7, n_questions=6, min_count=2, max_count=6,
)  # fmt: skip
