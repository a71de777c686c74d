"""tinyworld: little stories about a made world, in English and Chinese, whose exact probability is known."""

from minillm.data.tinyworld.config import WorldConfig, world_config
from minillm.data.tinyworld.grammar import Derivation, Fact, Sentence
from minillm.data.tinyworld.measure import (
    Estimate,
    bits_per_byte,
    recall_distances,
    recall_share,
    sampled_bits_per_byte,
)
from minillm.data.tinyworld.rendering import Piece, Recall, Rendering
from minillm.data.tinyworld.world import Story, World

__all__ = [
    "Derivation",
    "Estimate",
    "Fact",
    "Piece",
    "Recall",
    "Rendering",
    "Sentence",
    "Story",
    "World",
    "WorldConfig",
    "bits_per_byte",
    "recall_distances",
    "recall_share",
    "sampled_bits_per_byte",
    "world_config",
]
