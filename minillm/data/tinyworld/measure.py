"""Numbers about a world: its entropy per byte (the floor for every model), the share of recall, its reach."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from minillm.data.tinyworld.rendering import Rendering
from minillm.data.tinyworld.world import Story, World
from minillm.errors import DataError

LANGUAGES = ("english", "chinese")


class Estimate(NamedTuple):
    """A number found by sampling, with the standard error of the estimate."""

    value: float
    standard_error: float


def bits_per_byte(world: World, language: str, n_stories: int = 1000, seed: int = 0) -> Estimate:
    """The floor: no model's bits per byte on many stories can be lower, and one that knew the world would reach it.

    The entropy of a story is exact (`World.entropy`); only the expected number of bytes is averaged over a sample, so
    the standard error is that of the mean length.

    Args:
        world: the source.
        language: "english" or "chinese".
        n_stories: stories to average the length over, at least 2.
        seed: of these stories.

    Returns:
        E[-log2 p(story)] / E[UTF-8 bytes of the story], in bits per byte.

    Raises:
        DataError: if the language is unknown or there are fewer than two stories.
    """
    n_bytes = np.array([len(rendering.text.encode()) for _, rendering in sample(world, language, n_stories, seed)])
    value = world.entropy() / math.log(2) / n_bytes.mean()
    return Estimate(value, value * n_bytes.std(ddof=1) / n_bytes.mean() / math.sqrt(n_stories))


def sampled_bits_per_byte(world: World, language: str, n_stories: int = 1000, seed: int = 0) -> Estimate:
    """The same number from the sample alone: the surprisal of the sampled stories over their bytes.

    Args:
        world: the source.
        language: "english" or "chinese".
        n_stories: stories to sample, at least 2.
        seed: of these stories.

    Returns:
        sum(-log2 p) / sum(bytes), with the standard error of a ratio of means.

    Raises:
        DataError: if the language is unknown or there are fewer than two stories.

    Source:
        Cochran 1977, Sampling Techniques, eq. (2.46).
    """
    stories = sample(world, language, n_stories, seed)
    bits = np.array([-story.log_probability / math.log(2) for story, _ in stories])
    n_bytes = np.array([len(rendering.text.encode()) for _, rendering in stories])
    value = bits.sum() / n_bytes.sum()
    return Estimate(value, (bits - value * n_bytes).std(ddof=1) / n_bytes.mean() / math.sqrt(n_stories))


def recall_share(world: World, language: str, n_stories: int = 1000, seed: int = 0, varying: bool = False) -> Estimate:
    """The share of words (Chinese: characters) that are recalled: they follow from what was told before.

    Pronouns and plurals, which agree with a word nearby, do not count as recalled.

    Args:
        world: the source.
        language: "english" or "chinese".
        n_stories: stories to average over, at least 2.
        seed: of these stories.
        varying: count only the words that vary from story to story (chosen, recalled, agreeing) in the whole,
            not the fixed words of the sentences such as "lives at the".

    Returns:
        Recalled words over all words, with the standard error of a ratio of means.

    Raises:
        DataError: if the language is unknown or there are fewer than two stories.
    """
    size = (lambda text: len(text.split())) if language == "english" else len
    recalled, total = [], []
    for _, rendering in sample(world, language, n_stories, seed):
        recalled.append(sum(size(recall.word) for recall in rendering.recalls if recall.kind != "agreement"))
        pieces = [piece.text for piece in rendering.pieces if piece.kind != "fixed"] if varying else [rendering.text]
        total.append(sum(map(size, pieces)))
    share = sum(recalled) / sum(total)
    errors = np.array(recalled) - share * np.array(total)
    return Estimate(share, errors.std(ddof=1) / np.mean(total) / math.sqrt(n_stories))


def recall_distances(world: World, language: str, n_stories: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """How far back recalled facts were last stated, by kind of word.

    Args:
        world: the source.
        language: "english" or "chinese".
        n_stories: stories to measure, at least 2.
        seed: of these stories.

    Returns:
        kind -> (number of recalls of this kind,) int64 distances in words (Chinese: characters), sorted.

    Raises:
        DataError: if the language is unknown or there are fewer than two stories.
    """
    found: dict[str, list[int]] = {}
    for _, rendering in sample(world, language, n_stories, seed):
        for recall in rendering.recalls:
            found.setdefault(recall.kind, []).append(recall.distance)
    return {kind: np.sort(np.array(distances, dtype=np.int64)) for kind, distances in sorted(found.items())}


def sample(world: World, language: str, n_stories: int, seed: int) -> list[tuple[Story, Rendering]]:
    """The first stories of a series, each with its text in one language."""
    if language not in LANGUAGES or n_stories < 2:
        raise DataError(f"language {language!r}, {n_stories} stories: expected one of {LANGUAGES}, at least 2 stories")
    stories = itertools.islice(world.stories(seed), n_stories)
    return [(story, getattr(story, language)) for story in stories]
