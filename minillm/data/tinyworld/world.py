"""The made world: stories whose exact probability is known, in English and Chinese."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from os.path import commonprefix
from random import Random

from minillm.data.tinyworld.chinese import chinese
from minillm.data.tinyworld.choices import Chooser, drawing_chooser, every_run, following_chooser
from minillm.data.tinyworld.config import EVENT_KINDS, WorldConfig
from minillm.data.tinyworld.english import english
from minillm.data.tinyworld.grammar import (
    QUESTION_KINDS,
    SYMMETRIC_CHOICES,
    Derivation,
    Grammar,
    Sentence,
    State,
    choice_values,
    derivation_of,
)
from minillm.data.tinyworld.rendering import Language, Rendering
from minillm.errors import DataError


@dataclass(frozen=True)
class Story:
    """One story in both languages.

    Args:
        derivation: its free choices, one `Fact(kind, values)` per sentence; equal for equal texts only.
        log_probability: in nats, of the derivation and so of the text in either language.
        sentences: what is told in no language: chosen and recalled fields of every sentence.
        languages: the English and the Chinese `Language`.
    """

    derivation: Derivation
    log_probability: float
    sentences: tuple[Sentence, ...]
    languages: tuple[Language, Language]

    @cached_property
    def english(self) -> Rendering:
        """The story in English."""
        return self.languages[0].write(self.sentences)

    @cached_property
    def chinese(self) -> Rendering:
        """The same story in Chinese."""
        return self.languages[1].write(self.sentences)


class World:
    """Tells, scores, reads and enumerates the stories of one world.

    Args:
        config: the sizes of the world.

    Example:
        >>> from minillm.data.tinyworld import World, world_config
        >>> world = World(world_config("tiny"))
        >>> story = world.story(seed=0, index=0)
        >>> world.parse_english(story.english.text) == world.parse_chinese(story.chinese.text) == story.derivation
        True
    """

    def __init__(self, config: WorldConfig):
        self.config = config
        self.grammar = Grammar(config)
        self.languages = english(), chinese()
        one_of = {"event": EVENT_KINDS, "question": QUESTION_KINDS}
        self.slots = [one_of.get(step.__name__, (step.__name__,)) for step in self.grammar.steps]

    def sample(self, generator: Random) -> Story:
        """A story drawn at random.

        Args:
            generator: the only source of randomness.

        Returns:
            The story; the texts are written when first asked for.
        """
        return self.told(drawing_chooser(generator))

    def story(self, seed: int, index: int) -> Story:
        """Story number `index` of the endless series that belongs to `seed`; the same on every platform.

        Args:
            seed: 0 or more.
            index: 0 to 2^64 - 1. Each story has a generator of its own, so any part of a series can be told alone.

        Returns:
            The story.

        Raises:
            DataError: if seed or index is negative or index is too large.
        """
        if seed < 0 or not 0 <= index < 2**64:
            raise DataError(f"seed {seed}, index {index}: expected seed >= 0 and an index from 0 to 2^64 - 1")
        return self.sample(Random((seed << 64) + index))

    def stories(self, seed: int, start: int = 0) -> Iterator[Story]:
        """The series of `seed` from story number `start` on, without end and one at a time.

        Args:
            seed: 0 or more.
            start: number of the first story, 0 or more.

        Yields:
            `story(seed, start)`, `story(seed, start + 1)`, ...
        """
        while True:
            yield self.story(seed, start)
            start += 1

    def told(self, choose: Chooser) -> Story:
        """The story that comes about when `choose` makes every free decision."""
        sentences = tuple(self.grammar.tell(choose))
        choices = (field.choice for _, fields in sentences for field in fields.values() if field.choice is not None)
        log_probability = math.fsum(choice.log_probability for choice in choices)
        return Story(derivation_of(sentences), log_probability, sentences, self.languages)

    def from_derivation(self, derivation: Derivation) -> Story:
        """The story with these free choices.

        Args:
            derivation: as `Story.derivation`.

        Returns:
            The story, with its log-probability and texts.

        Raises:
            DataError: if this world cannot tell it: a choice is not possible where it stands, or there are too few or
                too many.
        """
        story = self.told(following_chooser(choice_values(derivation)))
        if story.derivation != tuple(derivation):
            raise DataError(f"the derivation has {len(derivation)} sentences that do not fit {self.config}")
        return story

    def log_probability(self, derivation: Derivation) -> float:
        """The log-probability in nats of a derivation, and so of its text; DataError if the world cannot tell it."""
        return self.from_derivation(derivation).log_probability

    def parse_english(self, text: str) -> Derivation:
        """The one derivation of an English story.

        Args:
            text: exactly one story.

        Returns:
            The derivation.

        Raises:
            DataError: if this world cannot tell the text, with the first character that is wrong.
        """
        derivation = self.languages[0].read(text, self.slots)
        check_same(text, self.from_derivation(derivation).english.text)
        return derivation

    def parse_chinese(self, text: str) -> Derivation:
        """The one derivation of a Chinese story; otherwise as `parse_english`."""
        derivation = self.languages[1].read(text, self.slots)
        check_same(text, self.from_derivation(derivation).chinese.text)
        return derivation

    def enumerate(self) -> Iterator[Story]:
        """Every story of the world, each once; exp(log_probability) sums to 1. Only tiny worlds come to an end.

        Yields:
            Stories in the order of their choices.
        """
        return (run.told for run in every_run(self.told))

    def entropy(self) -> float:
        """The exact entropy of a story in nats: the expected surprisal, whatever the language.

        The chain rule step by step: states from which all later choices have as many options (`State.key`) are merged;
        the expected surprisal of the next sentence is the sum, over merged states, of their probability times the
        entropy of the sentence's choices, found by going through them all.

        Returns:
            H = E[-log p(story)] = sum over steps of E[-log p(sentence | story so far)], in nats.

        Source:
            Cover and Thomas 2006, Elements of Information Theory, theorem 2.5.1 (chain rule for entropy).
        """
        entropy = 0.0
        reached: dict[tuple, tuple[float, State]] = {(): (1.0, State())}
        n_events_left = self.config.n_events
        for step in self.grammar.steps:
            n_events_left -= step == self.grammar.event
            following: dict[tuple, tuple[float, State]] = {}
            for probability, state in reached.values():
                for after, share, surprisal in every_run(partial(self.after, step, state), SYMMETRIC_CHOICES):
                    entropy += probability * share * surprisal
                    key = after.key(n_events_left)
                    so_far = following[key][0] if key in following else 0.0
                    following[key] = so_far + probability * share, after
            reached = following
        return entropy

    def after(self, step, state: State, choose: Chooser) -> State:
        """The state after one more sentence; the given state stays as it is."""
        state = state.copy()
        self.grammar.take(step, state, choose)
        return state


def check_same(given: str, told: str) -> None:
    """Raise DataError at the first character where a text differs from what its own choices lead to."""
    if given != told:
        place = len(commonprefix([given, told]))
        found, follows = given[place : place + 40], told[place : place + 40]
        raise DataError(f"character {place}: found {found!r}, but what was told before leads to {follows!r}")
