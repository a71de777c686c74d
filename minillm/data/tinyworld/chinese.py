"""The made world in Chinese, sentence by sentence parallel to the English."""

from minillm.data.tinyworld.lexicon import CHINESE_NUMBERS, COLOURS, FRUITS, ITEMS, NAMES, PLACES, THINGS
from minillm.data.tinyworld.rendering import Language

NOW = (
    "现在{actor:name}有{actor_colour:colour}{actor_item:item}和{actor_count:number}{actor_fruit:counted}。"
    "{partner:name}有{partner_colour:colour}{partner_item:item}和{partner_count:number}{partner_fruit:counted}。"
)
TEMPLATES = {
    "opening": "{fruit:fruit}熟了。",
    "person": "{name}在{place}。{name}有{item:classified.0}{colour}{item:classified.1}"
    "和{count:number}{fruit:counted}。",
    "thing": "有{thing:classified.0}{colour}{thing:classified.1}放在{place}。",
    "move": "{actor:name}{verb}{place}。",
    "swap": "{actor:name}{verb}{partner:name}交换。" + NOW,
    "gift": "{actor:name}{verb}{partner:name}{giver:possessive}{amount:number}{amount_fruit:counted}。" + NOW,
    "carry": "{actor:name}{verb}{thing}从{origin:place}搬到了{place}。",
    "evening": "天黑了。",
    "ask_person": "{subject}在{place}。{subject}有{colour}{item}和{count:number}{fruit:counted}。",
    "ask_item": "{subject}是{colour}，属于{owner:name}。{owner:name}在{place}。",
    "ask_thing": "{subject}是{colour}，放在{place}。",
}


def chinese() -> Language:
    """The Chinese of the made world: measure words, 的 after colours, no spaces, full-width punctuation."""
    names = {name.english: (name.chinese,) for name in NAMES}
    items = {item.english: (item.chinese,) for item in ITEMS}
    things = {thing.english: (thing.chinese,) for thing in THINGS}
    forms = {
        "name": names,
        "possessive": {name.english: ("她的" if name.female else "他的",) for name in NAMES},
        "place": {english: (chinese,) for english, chinese in PLACES.items()},
        "colour": {english: (chinese,) for english, chinese in COLOURS.items()},
        "item": items,
        "thing": things,
        "classified": {noun.english: ("一" + noun.classifier, noun.chinese) for noun in ITEMS + THINGS},
        "number": {count: (word,) for count, word in enumerate(CHINESE_NUMBERS, 1)},
        "fruit": {fruit.english: (fruit.chinese,) for fruit in FRUITS},
        "counted": {
            (fruit.english, count): (fruit.classifier + fruit.chinese,)
            for fruit in FRUITS
            for count in range(1, len(CHINESE_NUMBERS) + 1)
        },
        "verb": {"move": ("去了",), "swap": ("和",), "gift": ("送给",), "carry": ("把",)},
        "subject": names | items | things,
    }
    return Language(TEMPLATES, forms, spaced=False)
