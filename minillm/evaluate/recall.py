"""How well a model knows the made world: what must be recalled, and everything else, apart, against the true floor.

Dimensions: B stories at a time, T tokens of the longest of them, V vocabulary.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minillm.data.tinyworld import Recall, Rendering, Story
from minillm.errors import DataError
from minillm.evaluate.likelihood import bits_per_byte
from minillm.tokenizers.tokenizer import END_OF_TEXT, TableTokenizer
from minillm.train.loss import token_cross_entropy

RECALL_KINDS = ("name", "object", "place", "colour", "count")  # "agreement" follows from grammar and counts as the rest
FAR_WORDS = 60
TOKEN_KINDS = (*RECALL_KINDS, "agreement", "chosen", "fixed")


@dataclass
class WorldScore:
    """A model's loss on stories, beside what a perfect reader would pay.

    Attributes:
        n_stories: how many were read.
        n_bytes: their UTF-8 bytes.
        recall_nats: loss on tokens that belong to a recalled word.
        recall_floor_nats: what is unavoidable there.
        rest_nats: loss on all other tokens, the end of each story included.
        rest_floor_nats: what is unavoidable there.
        n_words: recalled words by (kind, whether the fact was stated more than 60 words before).
        n_right: how many of them were the model's first choice, every token of the word, given the true text before it.
        n_tokens: tokens by kind: that of the recalled word a token is part of, "chosen" if it is part of a word by
            which the story decides something, "fixed" if a perfect reader is sure of it and need not recall anything.
        excess: loss above the floor in nats, by the same kinds.
    """

    n_stories: int = 0
    n_bytes: int = 0
    recall_nats: float = 0.0
    recall_floor_nats: float = 0.0
    rest_nats: float = 0.0
    rest_floor_nats: float = 0.0
    n_words: Counter = field(default_factory=Counter)
    n_right: Counter = field(default_factory=Counter)
    n_tokens: Counter = field(default_factory=Counter)
    excess: Counter = field(default_factory=Counter)

    def accuracy(self, kinds: Sequence[str] = RECALL_KINDS, far_only: bool = False) -> float:
        """Share of recalled words of these kinds that the model got right; NaN if there are none."""
        chosen = [key for key in self.n_words if key[0] in kinds and (key[1] or not far_only)]
        n_words = sum(self.n_words[key] for key in chosen)
        return sum(self.n_right[key] for key in chosen) / n_words if n_words else float("nan")

    @property
    def rest_excess(self) -> float:
        """How far the loss on the other tokens lies above its floor, as a share of the floor."""
        return self.rest_nats / self.rest_floor_nats - 1

    @property
    def bits_per_byte(self) -> float:
        """Of whole stories."""
        return bits_per_byte(self.recall_nats + self.rest_nats, self.n_bytes)

    @property
    def floor_bits_per_byte(self) -> float:
        """The same for a perfect reader of these stories."""
        return bits_per_byte(self.recall_floor_nats + self.rest_floor_nats, self.n_bytes)


def score_world(
    model: Callable[[Tensor], Tensor],
    tokenizer: TableTokenizer,
    stories: Sequence[Story],
    language: str = "english",
    batch_size: int = 25,
    device: torch.device | str = "cpu",
) -> WorldScore:
    """Read stories from their beginnings, each alone, and compare the loss of every token with its floor.

    Args:
        model: token_ids (B, T) int64 -> logits (B, T, V), in evaluation mode; its context must hold a whole story.
        tokenizer: that knows the bytes of each token and the end-of-text token.
        stories: of one world.
        language: "english" or "chinese".
        batch_size: stories B at a time, sorted by length so that little is padding.
        device: where the model computes.

    Returns:
        The sums; a perfect reader has `rest_excess` 0 and `accuracy()` 1.

    Raises:
        DataError: if there is no story.
    """
    if not stories:
        raise DataError("there is no story to score; give at least one")
    end = tokenizer.special_tokens[END_OF_TEXT]
    renderings = [getattr(story, language) for story in stories]
    rows = sorted(((tokenizer.encode(each.text), each) for each in renderings), key=lambda row: len(row[0]))
    score = WorldScore()
    for first in range(0, len(rows), batch_size):
        group = rows[first : first + batch_size]
        losses, right = _losses([ids for ids, _ in group], end, model, device)  # (B, T), (B, T)
        for (ids, rendering), row_losses, row_right in zip(group, losses, right, strict=True):
            n_tokens = len(ids) + 1
            _add_story(score, rendering, [len(tokenizer.token_bytes(i)) for i in ids], row_losses[:n_tokens], row_right)
    return score


def _losses(
    rows: list[list[int]], end: int, model: Callable[[Tensor], Tensor], device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each token in nats, and whether it was the likeliest; each row is followed by an end, then padding."""
    n_positions = max(map(len, rows)) + 1
    ids = torch.full((len(rows), n_positions + 1), end)            # (B, T + 1)
    for place, row in enumerate(rows):
        ids[place, 1 : len(row) + 1] = torch.tensor(row)
    ids = ids.to(device)
    with torch.inference_mode():
        logits = model(ids[:, :-1]).float()                        # (B, T, V)
        losses = token_cross_entropy(logits, ids[:, 1:], reduction="none")  # (B, T)
        right = logits.argmax(-1) == ids[:, 1:]                    # (B, T)
    return losses.double().cpu().numpy(), right.cpu().numpy()


def _add_story(
    score: WorldScore, rendering: Rendering, token_bytes: list[int], losses: np.ndarray, right: np.ndarray
) -> None:
    """Add one story's tokens to the sums; the last loss is that of its end, which is certain to come."""
    floors, recalls = rendering.token_floors(token_bytes)
    is_recall = np.array([recall is not None and recall.kind in RECALL_KINDS for recall in recalls] + [False])
    floors = np.append(floors, 0.0)
    score.n_stories += 1
    score.n_bytes += sum(token_bytes)
    score.recall_nats += float(losses[is_recall].sum())
    score.recall_floor_nats += float(floors[is_recall].sum())
    score.rest_nats += float(losses[~is_recall].sum())
    score.rest_floor_nats += float(floors[~is_recall].sum())
    for kind, loss, floor in zip([*token_kinds(rendering, token_bytes, recalls), "fixed"], losses, floors, strict=True):
        score.n_tokens[kind] += 1
        score.excess[kind] += float(loss - floor)
    all_right: dict = {}
    for recall, token_right in zip(recalls, right, strict=False):
        if recall is not None:
            all_right[recall] = all_right.get(recall, True) and bool(token_right)
    for recall, word_right in all_right.items():
        key = (recall.kind, recall.distance > FAR_WORDS)
        score.n_words[key] += 1
        score.n_right[key] += word_right


def token_kinds(rendering: Rendering, token_bytes: Sequence[int], recalls: Sequence[Recall | None]) -> list[str]:
    """What each token of a story is there for, one of `TOKEN_KINDS`.

    Args:
        rendering: the story.
        token_bytes: the number of UTF-8 bytes of each token, in order, together the whole text.
        recalls: for each token the recalled word it is part of, or None.

    Returns:
        The kind of the recalled word, or "chosen" for a token with a byte (other than the space before it) of a word
        by which the story decides something, or "fixed".
    """
    chosen = []                                                    # for each byte
    for piece in rendering.pieces:
        text = piece.text.lstrip(" ")
        n_bytes, is_chosen = len(text.encode()), piece.kind == "chosen"
        chosen += [False] * (len(piece.text) - len(text)) + [is_chosen] * n_bytes
    stops = itertools.accumulate(token_bytes)
    return [
        recall.kind if recall is not None else "chosen" if any(chosen[stop - n_bytes : stop]) else "fixed"
        for recall, n_bytes, stop in zip(recalls, token_bytes, stops, strict=True)
    ]
