"""Stories of the made world that also tell how people feel: labelled by the feeling at the end, or not labelled.

Among the sentences of a story stand one to three about feelings. The label is the polarity of the last one. Words alone
do not give it away: a feeling is told plainly ("Ana is glad."), denied ("Ana is not glad."), ended ("Ana is no longer
glad.") or changed ("Ana was sad and is glad now."), and earlier feelings do not count. Unlabelled texts have a sentence
behind each feeling in which it shows ("Ana sings."), so that a language model has a reason to find out what is felt.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from minillm.data.tinyworld import World, WorldConfig
from minillm.data.tinyworld.lexicon import NAMES
from minillm.errors import DataError

CLASSES = ("negative", "positive")
WORDS = (  # per class
    ("sad", "angry", "tired", "lonely", "afraid"),
    ("glad", "merry", "proud", "content", "cheerful"),
)
SIGNS = (("weeps", "sighs", "frowns"), ("sings", "smiles", "dances"))
WAYS = (  # {same} is a word of the polarity that the sentence has in the end, {other} one of the opposite
    "{name} is {same}.",
    "{name} is not {other}.",
    "{name} is no longer {other}.",
    "{name} was {other} and is {same} now.",
)
MOST_FEELINGS = 3
SHORT_WORLD = WorldConfig(n_people=2, n_events=0, n_questions=0)  # stories of some 30 words before feelings are told
BASE_WORLD = WorldConfig(n_people=2, n_events=0, n_questions=1)  # the question at the end teaches to look back


class LabelledText(NamedTuple):
    """A text and the number of its class in `CLASSES`."""

    text: str
    label: int


def feelings(world: World, seed: int, start: int = 0) -> Iterator[LabelledText]:
    """Stories with feelings and the feeling at the end, without end and one at a time; both classes are as frequent.

    Args:
        world: tells the stories; `World(SHORT_WORLD)` has short ones.
        seed: 0 or more; text number i of a seed is the same on every platform.
        start: number of the first text.

    Yields:
        texts with their labels, each up to the sentence that decides; none follows that shows the feeling.

    Raises:
        DataError: if seed or start is negative.

    Example:
        >>> text, label = next(feelings(World(SHORT_WORLD), seed=1))
        >>> text[47:78], CLASSES[label]
        ('Rosalind is no longer cheerful.', 'negative')
    """
    for sentences, felt in told(world, seed, start):
        last = max(place for place, (_, sign) in enumerate(sentences) if sign)
        yield LabelledText(" ".join(sentence for sentence, _ in sentences[: last + 1]), felt[-1])


def unlabelled(world: World, seed: int, start: int = 0) -> Iterator[str]:
    """The same kind of stories for a base model: what follows each feeling shows it, and nothing says which it is.

    Args:
        world: as in `feelings`.
        seed: as in `feelings`; another one than that of labelled texts, or the stories are the same.
        start: number of the first text.

    Yields:
        texts.

    Raises:
        DataError: if seed or start is negative.
    """
    for sentences, _ in told(world, seed, start):
        yield " ".join(f"{sentence} {sign}" if sign else sentence for sentence, sign in sentences)


def told(world: World, seed: int, start: int) -> Iterator[tuple[list[tuple[str, str]], list[int]]]:
    """Stories as sentences, each with the sentence that shows its feeling ("" where it has none), and what is felt."""
    if seed < 0 or start < 0:
        raise DataError(f"seed {seed}, start {start}: expected both to be 0 or more")
    for number, story in enumerate(world.stories(seed, start), start):
        draw = Random(f"feelings {seed} {number}")
        sentences = [f"{sentence.rstrip('.')}." for sentence in story.english.text.split(". ")]
        places = feeling_places(sentences, draw)
        felt = [draw.randrange(2) for _ in places]
        yield with_feelings(sentences, places, felt, draw), felt


def feeling_places(sentences: Sequence[str], draw: Random) -> list[int]:
    """Behind how many sentences each feeling is told: one to three places, in order, after a person is known."""
    first = next(count for count in range(1, len(sentences) + 1) if people_in(sentences[:count]))
    n_feelings = draw.randint(1, MOST_FEELINGS)
    return sorted(draw.randint(first, len(sentences)) for _ in range(n_feelings))


def people_in(sentences: Sequence[str]) -> list[str]:
    """Names of the people that the sentences tell of, in the lexicon's order.

    Example:
        >>> people_in(["The plums are ripe.", "Bo gives Ana one of his plums."])
        ['Ana', 'Bo']
    """
    words = {word.strip(".") for sentence in sentences for word in sentence.split()}
    return [name.english for name in NAMES if name.english in words]


def with_feelings(
    sentences: Sequence[str], places: Sequence[int], felt: Sequence[int], draw: Random
) -> list[tuple[str, str]]:
    """The story with a feeling of somebody known told at each place, and how it shows."""
    whole: list[tuple[str, str]] = []
    for count in range(len(sentences) + 1):
        whole += [(sentence, "") for sentence in sentences[count - 1 : count]] if count else []
        for label in (label for place, label in zip(places, felt, strict=True) if place == count):
            name = draw.choice(people_in(sentences[:count]))
            same, other = draw.choice(WORDS[label]), draw.choice(WORDS[1 - label])
            sentence = draw.choice(WAYS).format(name=name, same=same, other=other)
            whole.append((sentence, f"{name} {draw.choice(SIGNS[label])}."))
    return whole
