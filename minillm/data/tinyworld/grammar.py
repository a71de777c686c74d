"""What can happen in the made world: the one place that decides which choices a story has and what follows from them.

A story is told sentence by sentence. Each step looks at the state, makes its free choices through `choose`, writes down
a `Sentence` (every word that varies, as a field) and changes the state. A field is either *chosen* here and now, or
*recalled*: it follows from what has been told. Both languages are written from these sentences, so they tell the same.
The choices of a step are made in the order in which the texts reveal them.
"""

from collections.abc import Callable
from typing import NamedTuple

from minillm.data.tinyworld.choices import Choice, Chooser, Value
from minillm.data.tinyworld.config import EVENT_KINDS, LARGEST_GIFT, WorldConfig
from minillm.data.tinyworld.lexicon import COLOURS, FRUITS, ITEMS, NAMES, PLACES, THINGS

CHOSEN_FIELDS = {
    "opening": ("fruit",),
    "person": ("name", "place", "colour", "item", "count"),
    "thing": ("colour", "thing", "place"),
    "move": ("actor", "place"),
    "swap": ("actor", "partner"),
    "gift": ("actor", "partner", "amount"),
    "carry": ("actor", "thing", "place"),
    "evening": (),
    "ask_person": ("subject",),
    "ask_item": ("subject",),
    "ask_thing": ("subject",),
}
QUESTION_KINDS = ("ask_person", "ask_item", "ask_thing")
# Choices whose answer leaves the number of later options as it is: whoever is called Ana, as much can happen to her.
SYMMETRIC_CHOICES = frozenset({"fruit", "name", "place", "colour", "item", "thing"})


class Source(NamedTuple):
    """Where a fact was last stated: the index of the sentence and the field in it."""

    sentence: int
    field: str


class Field(NamedTuple):
    """A word that varies: chosen, with its `choice`, or recalled, with its kind and the place that last stated it."""

    value: Value | tuple[Value, Value]
    choice: Choice | None = None
    recall: str = ""
    source: Source | None = None


class Sentence(NamedTuple):
    """One step of a story in no language: its kind and its fields by name, chosen ones in the order of choosing."""

    kind: str
    fields: dict[str, Field]


class Fact(NamedTuple):
    """The free choices of one sentence, in the order of `CHOSEN_FIELDS`; a derivation is a tuple of these."""

    kind: str
    values: tuple[Value, ...]


Derivation = tuple[Fact, ...]


class State:
    """Everything that has been told: who is in the story, and each fact with the place in the text that last stated it.

    Facts are kept as (what, about whom) -> (value, source): ("place", person or thing), ("item", person),
    ("owner", item), ("colour", item or thing), ("count", person).
    """

    def __init__(self):
        self.n_sentences = 0
        self.fruit = ""
        self.people: tuple[str, ...] = ()
        self.things: tuple[str, ...] = ()
        self.people_to_ask: tuple[str, ...] = ()
        self.things_to_ask: tuple[str, ...] = ()
        self.facts: dict[tuple[str, str], tuple[Value, Source]] = {}

    def copy(self) -> "State":
        """An independent state with the same facts."""
        other = State()
        other.__dict__.update(self.__dict__)
        other.facts = dict(self.facts)
        return other

    def __getitem__(self, fact: tuple[str, str]) -> Value:
        return self.facts[fact][0]

    def state(self, what: str, about: str, value: Value, field: str) -> None:
        """Write down a fact that `field` of the sentence being told states."""
        self.facts[what, about] = (value, Source(self.n_sentences, field))

    def recall(self, what: str, about: str, kind: str) -> Field:
        """A field that repeats a fact told before."""
        value, source = self.facts[what, about]
        return Field(value, None, kind, source)

    def agree(self, value: Value | tuple[Value, Value], field: str) -> Field:
        """A word whose form agrees with another field of the sentence being told: her or his, a singular or plural."""
        return Field(value, None, "agreement", Source(self.n_sentences, field))

    def key(self, n_events_left: int) -> tuple:
        """All that the number of options of later choices depends on, the same for states that differ in names only.

        How much somebody has matters only as far as the events to come can use it up.
        """
        enough = 1 + LARGEST_GIFT * n_events_left
        counts = sorted(min(self["count", person], enough) for person in self.people)
        return tuple(counts), len(self.people_to_ask), len(self.things_to_ask)


class Grammar:
    """The steps of a story in a world of the given sizes.

    Args:
        config: the sizes. The options of every choice come from the first entries of the word lists.

    `steps` holds one function per sentence, `step(state, choose) -> Sentence`; it changes the state.
    """

    def __init__(self, config: WorldConfig):
        self.config = config
        self.names = tuple(name.english for name in NAMES[: config.n_names])
        self.items = tuple(item.english for item in ITEMS[: config.n_items])
        self.thing_kinds = tuple(thing.english for thing in THINGS[: config.n_thing_kinds])
        self.fruits = tuple(fruit.english for fruit in FRUITS[: config.n_fruits])
        self.colours = tuple(COLOURS)[: config.n_colours]
        self.places = tuple(PLACES)[: config.n_places]
        self.counts = tuple(range(config.min_count, config.max_count + 1))
        self.steps: list[Callable[[State, Chooser], Sentence]] = [
            self.opening,
            *[self.person] * config.n_people,
            *[self.thing] * config.n_things,
            *[self.event] * config.n_events,
            *[self.evening] * bool(config.n_questions),
            *[self.question] * config.n_questions,
        ]

    def tell(self, choose: Chooser) -> list[Sentence]:
        """Tell one story, every free decision made by `choose`."""
        state = State()
        return [self.take(step, state, choose) for step in self.steps]

    def take(self, step: Callable[[State, Chooser], Sentence], state: State, choose: Chooser) -> Sentence:
        """Tell one sentence and count it."""
        sentence = step(state, choose)
        state.n_sentences += 1
        return sentence

    def opening(self, state: State, choose: Chooser) -> Sentence:
        """The plums are ripe."""
        fruit = choose("fruit", self.fruits)
        state.fruit = fruit.value
        return Sentence("opening", {"fruit": Field(fruit.value, fruit)})

    def person(self, state: State, choose: Chooser) -> Sentence:
        """Ana is at the mill. Ana has a red kite and three plums."""
        name = choose("name", without(self.names, state.people))
        place = choose("place", self.places)
        colour = choose("colour", self.colours)
        item = choose("item", without(self.items, [state["item", person] for person in state.people]))
        count = choose("count", self.counts)

        person = name.value
        state.people += (person,)
        state.people_to_ask += (person,)
        state.state("place", person, place.value, "place")
        state.state("colour", item.value, colour.value, "colour")
        state.state("item", person, item.value, "item")
        state.state("owner", item.value, person, "item")
        state.state("count", person, count.value, "count")
        fields = {"name": name, "place": place, "colour": colour, "item": item, "count": count}
        fruit = state.agree((state.fruit, count.value), "count")
        return Sentence("person", chosen(fields) | {"fruit": fruit})

    def thing(self, state: State, choose: Chooser) -> Sentence:
        """A green box stands at the harbour."""
        colour = choose("colour", self.colours)
        thing = choose("thing", without(self.thing_kinds, state.things))
        place = choose("place", self.places)
        state.things += (thing.value,)
        state.things_to_ask += (thing.value,)
        state.state("colour", thing.value, colour.value, "colour")
        state.state("place", thing.value, place.value, "place")
        return Sentence("thing", chosen({"colour": colour, "thing": thing, "place": place}))

    def event(self, state: State, choose: Chooser) -> Sentence:
        """Somebody does one of the things that are possible for them now."""
        actor = choose("actor", state.people)
        possible = [True, True, state["count", actor.value] > 1, bool(state.things)]
        options = tuple(kind for kind, open_ in zip(EVENT_KINDS, possible, strict=True) if open_)
        weights = tuple(w for w, open_ in zip(self.config.event_weights, possible, strict=True) if open_)
        verb = choose("verb", options, weights)
        happen = {"move": self.move, "swap": self.swap, "gift": self.gift, "carry": self.carry}[verb.value]
        return Sentence(verb.value, happen(state, choose, chosen({"actor": actor, "verb": verb})))

    def move(self, state: State, choose: Chooser, fields: dict[str, Field]) -> dict[str, Field]:
        """Ana goes to the harbour."""
        actor = fields["actor"].value
        place = choose("place", without(self.places, [state["place", actor]]))
        state.state("place", actor, place.value, "place")
        return fields | chosen({"place": place})

    def swap(self, state: State, choose: Chooser, fields: dict[str, Field]) -> dict[str, Field]:
        """Ana swaps with Bo. Now Ana has the blue drum and three plums. Bo has the red kite and one plum."""
        actor, partner = fields["actor"].value, choose("partner", without(state.people, [fields["actor"].value]))
        given, gained = state.recall("item", actor, "object"), state.recall("item", partner.value, "object")
        left, sum_ = state.recall("count", actor, "count"), state.recall("count", partner.value, "count")
        fields |= chosen({"partner": partner})
        fields |= self.now_has(state, "actor", actor, gained, left)
        return fields | self.now_has(state, "partner", partner.value, given, sum_)

    def gift(self, state: State, choose: Chooser, fields: dict[str, Field]) -> dict[str, Field]:
        """Ana gives Bo two of her plums. Now Ana has the red kite and one plum. Bo has the drum and three plums."""
        actor, partner = fields["actor"].value, choose("partner", without(state.people, [fields["actor"].value]))
        left, sum_ = state.recall("count", actor, "count"), state.recall("count", partner.value, "count")
        amount = choose("amount", tuple(range(1, min(LARGEST_GIFT, left.value - 1) + 1)))
        left, sum_ = left._replace(value=left.value - amount.value), sum_._replace(value=sum_.value + amount.value)
        fields |= chosen({"partner": partner, "amount": amount})
        fields |= {"giver": state.agree(actor, "actor")}
        fields |= {"amount_fruit": state.agree((state.fruit, amount.value), "amount")}
        fields |= self.now_has(state, "actor", actor, state.recall("item", actor, "object"), left)
        return fields | self.now_has(
            state, "partner", partner.value, state.recall("item", partner.value, "object"), sum_
        )  # fmt: skip

    def now_has(self, state: State, role: str, person: str, item: Field, count: Field) -> dict[str, Field]:
        """Ana has the blue drum and three plums: says it, and writes it down as stated here."""
        colour = state.recall("colour", item.value, "colour")
        state.state("colour", item.value, colour.value, f"{role}_colour")
        state.state("item", person, item.value, f"{role}_item")
        state.state("owner", item.value, person, f"{role}_item")
        state.state("count", person, count.value, f"{role}_count")
        fruit = state.agree((state.fruit, count.value), f"{role}_count")
        return {f"{role}_colour": colour, f"{role}_item": item, f"{role}_count": count, f"{role}_fruit": fruit}

    def carry(self, state: State, choose: Chooser, fields: dict[str, Field]) -> dict[str, Field]:
        """Ana carries the box from the harbour to the mill."""
        thing = choose("thing", state.things)
        origin = state.recall("place", thing.value, "place")
        place = choose("place", without(self.places, [origin.value]))
        state.state("place", thing.value, place.value, "place")
        state.state("place", fields["actor"].value, place.value, "place")
        return fields | chosen({"thing": thing}) | {"origin": origin} | chosen({"place": place})

    def evening(self, state: State, choose: Chooser) -> Sentence:
        """Evening comes."""
        return Sentence("evening", {})

    def question(self, state: State, choose: Chooser) -> Sentence:
        """One person (asked by name or by what they own) or one thing that has not been told of this evening."""
        items = {state["item", person]: person for person in state.people_to_ask}
        subject = choose("subject", (*state.people_to_ask, *items, *state.things_to_ask))
        about, fields = subject.value, chosen({"subject": subject})
        if about in state.things_to_ask:
            state.things_to_ask = without(state.things_to_ask, [about])
            return Sentence("ask_thing", fields | self.thing_now(state, about))
        state.people_to_ask = without(state.people_to_ask, [items.get(about, about)])
        if about in items:
            return Sentence("ask_item", fields | self.item_now(state, about))
        return Sentence("ask_person", fields | self.person_now(state, about))

    def person_now(self, state: State, person: str) -> dict[str, Field]:
        """Ana is at the harbour. Ana has the blue drum and one plum."""
        count = state.recall("count", person, "count")
        return {
            "place": state.recall("place", person, "place"),
            "colour": state.recall("colour", state["item", person], "colour"),
            "item": state.recall("item", person, "object"),
            "count": count,
            "fruit": state.agree((state.fruit, count.value), "count"),
        }

    def item_now(self, state: State, item: str) -> dict[str, Field]:
        """The kite is red and belongs to Bo. Bo is at the harbour."""
        owner = state.recall("owner", item, "name")
        return {
            "colour": state.recall("colour", item, "colour"),
            "owner": owner,
            "place": state.recall("place", owner.value, "place"),
        }

    def thing_now(self, state: State, thing: str) -> dict[str, Field]:
        """The box is green and stands at the mill."""
        return {"colour": state.recall("colour", thing, "colour"), "place": state.recall("place", thing, "place")}


def without(options: tuple[str, ...], taken) -> tuple[str, ...]:
    """The options that are not taken, in their order."""
    return tuple(option for option in options if option not in taken)


def chosen(choices: dict[str, Choice]) -> dict[str, Field]:
    """Choices as fields of a sentence."""
    return {name: Field(choice.value, choice) for name, choice in choices.items()}


def derivation_of(sentences: list[Sentence]) -> Derivation:
    """The free choices of told sentences, without what follows from them."""
    return tuple(
        Fact(sentence.kind, tuple(sentence.fields[name].value for name in CHOSEN_FIELDS[sentence.kind]))
        for sentence in sentences
    )


def choice_values(derivation: Derivation) -> list[Value]:
    """The values that a telling asks for, in order: those of each fact, and the kind of event after its actor."""
    values: list[Value] = []
    for kind, given in derivation:
        values += (given[0], kind, *given[1:]) if kind in EVENT_KINDS else given
    return values
