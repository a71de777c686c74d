"""The made world in English."""

from minillm.data.tinyworld.lexicon import COLOURS, ENGLISH_NUMBERS, FRUITS, ITEMS, NAMES, PLACES, THINGS
from minillm.data.tinyworld.rendering import Language

NOW = (
    " Now {actor:name} has the {actor_colour:colour} {actor_item:item} and {actor_count:number} {actor_fruit:counted}."
    " {partner:name} has the {partner_colour:colour} {partner_item:item} and {partner_count:number}"
    " {partner_fruit:counted}."
)
TEMPLATES = {
    "opening": "The {fruit:plural} are ripe.",
    "person": " {name} is at the {place}. {name} has {colour:a_colour.0} {colour:a_colour.1} {item}"
    " and {count:number} {fruit:counted}.",
    "thing": " {colour:capital_a_colour.0} {colour:capital_a_colour.1} {thing} stands at the {place}.",
    "move": " {actor:name} {verb} to the {place}.",
    "swap": " {actor:name} {verb} with {partner:name}." + NOW,
    "gift": " {actor:name} {verb} {partner:name} {amount:number} of {giver:possessive} {amount_fruit:plurals}." + NOW,
    "carry": " {actor:name} {verb} the {thing} from the {origin:place} to the {place}.",
    "evening": " Evening comes.",
    "ask_person": " {subject} is at the {place}. {subject} has the {colour} {item} and {count:number} {fruit:counted}.",
    "ask_item": " {subject} {subject.1} is {colour} and belongs to {owner:name}. {owner:name} is at the {place}.",
    "ask_thing": " {subject} {subject.1} is {colour} and stands at the {place}.",
}


def english() -> Language:
    """The English of the made world: a/an before colours, singular and plural fruit, her and his."""
    names = {name.english: (name.english,) for name in NAMES}
    objects = {noun.english: ("The", noun.english) for noun in ITEMS + THINGS}
    forms = {
        "name": names,
        "possessive": {name.english: ("her" if name.female else "his",) for name in NAMES},
        "place": {place: (place,) for place in PLACES},
        "colour": {colour: (colour,) for colour in COLOURS},
        "a_colour": {colour: ("an" if colour[0] in "aeiou" else "a", colour) for colour in COLOURS},
        "capital_a_colour": {colour: ("An" if colour[0] in "aeiou" else "A", colour) for colour in COLOURS},
        "item": {item.english: (item.english,) for item in ITEMS},
        "thing": {thing.english: (thing.english,) for thing in THINGS},
        "number": {count: (word,) for count, word in enumerate(ENGLISH_NUMBERS, 1)},
        "plural": {fruit.english: (fruit.plural,) for fruit in FRUITS},
        "plurals": {
            (fruit.english, count): (fruit.plural,) for fruit in FRUITS for count in range(1, len(ENGLISH_NUMBERS) + 1)
        },
        "counted": {
            (fruit.english, count): (fruit.english if count == 1 else fruit.plural,)
            for fruit in FRUITS
            for count in range(1, len(ENGLISH_NUMBERS) + 1)
        },
        "verb": {"move": ("goes",), "swap": ("swaps",), "gift": ("gives",), "carry": ("carries",)},
        "subject": names | objects,
    }
    return Language(TEMPLATES, forms, spaced=True)
