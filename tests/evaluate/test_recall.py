"""Scores on the made world: a perfect reader, one that knows nothing, and one that errs in known places."""

import itertools
import math

import pytest
import torch

from minillm.data.tinyworld import World, world_config
from minillm.errors import DataError
from minillm.evaluate.recall import RECALL_KINDS, TOKEN_KINDS, score_world
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT

LANGUAGES = ("english", "chinese")
STORIES = list(itertools.islice(World(world_config("demo")).stories(3), 7))
WORDS = BPETokenizer.train([story.english.text for story in STORIES], 320)


class Oracle:
    """Logits that give each true token exactly the probability that a perfect reader would; the rest is shared.

    It knows the stories by heart: a row is recognised by its ids.

    Args:
        tokenizer: whose ids it is asked about.
        language: of the stories.
        confused: (recall, number of tokens of it before this one, and behind it) -> whether this token gets the
            probability 1/e and is not the likeliest.
    """

    def __init__(self, tokenizer, language="english", confused=lambda recall, n_before, n_behind: False):
        self.vocab_size, self.end = tokenizer.vocab_size, tokenizer.special_tokens[END_OF_TEXT]
        self.rows = {}
        for story in STORIES:
            rendering = getattr(story, language)
            ids = tokenizer.encode(rendering.text)
            floors, recalls = rendering.token_floors([len(tokenizer.token_bytes(token_id)) for token_id in ids])
            nats = [
                1.0 if recall and confused(recall, recalls[:n].count(recall), recalls[n + 1 :].count(recall)) else nats
                for n, (nats, recall) in enumerate(zip(floors.tolist(), recalls, strict=True))
            ]
            self.rows[tuple(ids)] = [*nats, 0.0]

    def __call__(self, token_ids):
        logits = torch.full((*token_ids.shape, self.vocab_size), -math.inf)
        for row, ids in enumerate(token_ids.tolist()):
            assert ids[0] == self.end  # every story is read from its beginning
            story = tuple(itertools.takewhile(lambda token_id: token_id != self.end, ids[1:]))
            for place, (token_id, nats) in enumerate(zip((*story, self.end), self.rows[story], strict=True)):
                logits[row, place, (token_id + 1) % self.vocab_size] = math.log(max(-math.expm1(-nats), 1e-30))
                logits[row, place, token_id] = -nats
            logits[row, len(story) + 1 :] = 0.0  # behind the end nothing may count
        return logits


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WORDS], ids=["bytes", "bpe"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_perfect_reader_is_at_the_floor(tokenizer, language, batch_size):
    score = score_world(Oracle(tokenizer, language), tokenizer, STORIES, language, batch_size)
    surprisal = -math.fsum(story.log_probability for story in STORIES)
    texts = [getattr(story, language).text for story in STORIES]
    assert score.n_stories == len(STORIES) and score.n_bytes == sum(len(text.encode()) for text in texts)
    assert score.rest_floor_nats + score.recall_floor_nats == pytest.approx(surprisal, rel=1e-12)
    assert score.rest_excess == pytest.approx(0.0, abs=1e-5)
    assert score.recall_nats == pytest.approx(score.recall_floor_nats, rel=1e-5, abs=1e-4)
    assert score.bits_per_byte == pytest.approx(score.floor_bits_per_byte, rel=1e-5)
    assert score.floor_bits_per_byte == pytest.approx(surprisal / math.log(2) / score.n_bytes, rel=1e-12)
    if tokenizer is not WORDS:  # a token of several words may hold a free choice besides the recalled word
        assert score.recall_floor_nats == 0.0
        assert score.accuracy() == 1.0 and score.accuracy(far_only=True) == 1.0


def test_excess_by_kind_of_token():
    def confused(recall, n_before, n_behind):
        return recall.kind == "place"                              # 1 nat for each token of a recalled place

    tokenizer = ByteTokenizer()
    score = score_world(Oracle(tokenizer, confused=confused), tokenizer, STORIES)
    renderings = [story.english for story in STORIES]
    bytes_of = {
        kind: sum(r.stop - r.start for each in renderings for r in each.recalls if r.kind == kind)
        for kind in (*RECALL_KINDS, "agreement")
    }
    assert {kind: score.n_tokens[kind] for kind in bytes_of} == bytes_of and set(score.n_tokens) <= set(TOKEN_KINDS)
    assert sum(score.n_tokens.values()) == score.n_bytes + len(STORIES), "every byte, and the end of each story"
    chosen = (piece.text.strip() for each in renderings for piece in each.pieces if piece.kind == "chosen")
    assert score.n_tokens["chosen"] == sum(map(len, chosen))
    assert score.excess["place"] == pytest.approx(bytes_of["place"], rel=1e-5)
    assert all(abs(nats) < 1e-3 for kind, nats in score.excess.items() if kind != "place")


def test_words_are_counted_by_kind_and_distance():
    tokenizer = ByteTokenizer()
    score = score_world(Oracle(tokenizer), tokenizer, STORIES)
    recalls = [recall for story in STORIES for recall in story.english.recalls]
    for kind in RECALL_KINDS:
        far = [recall.distance > 60 for recall in recalls if recall.kind == kind]
        assert (score.n_words[kind, True], score.n_words[kind, False]) == (sum(far), len(far) - sum(far))
    assert sum(far_count for (_, far), far_count in score.n_words.items() if far) > 0


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_reader_who_forgets_one_kind_pays_there_and_only_there(where):
    """One nat for the first or last byte of each recalled colour: that is the excess, just those words are wrong."""
    tokenizer = ByteTokenizer()

    def confused(recall, n_before, n_behind):
        return recall.kind == "colour" and (n_before if where == "first" else n_behind) == 0

    score = score_world(Oracle(tokenizer, confused=confused), tokenizer, STORIES)
    colours = [recall for story in STORIES for recall in story.english.recalls if recall.kind == "colour"]
    assert score.recall_nats == pytest.approx(len(colours), rel=1e-6)
    assert score.rest_excess == pytest.approx(0.0, abs=1e-5)
    assert score.accuracy(("colour",)) == 0.0
    assert score.accuracy(("name", "object", "place", "count")) == 1.0
    n_words = sum(score.n_words[kind, far] for kind in RECALL_KINDS for far in (True, False))
    assert score.accuracy() == pytest.approx(1 - len(colours) / n_words, rel=1e-12)


def test_forgetting_what_was_told_long_ago_shows_in_the_far_words():
    tokenizer = ByteTokenizer()
    model = Oracle(tokenizer, confused=lambda recall, n_before, n_behind: recall.distance > 60)
    score = score_world(model, tokenizer, STORIES)
    assert score.accuracy(far_only=True) == 0.0 < score.accuracy() < 1.0


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_uniform_model_pays_log_v_for_each_token(language):
    score = score_world(lambda ids: torch.zeros(*ids.shape, WORDS.vocab_size), WORDS, STORIES, language, batch_size=4)
    n_tokens = sum(len(WORDS.encode(getattr(story, language).text)) + 1 for story in STORIES)
    assert score.recall_nats + score.rest_nats == pytest.approx(n_tokens * math.log(WORDS.vocab_size), rel=1e-6)
    assert score.recall_nats > 0 and score.rest_excess > 1 and score.accuracy() == 0.0


def test_no_story_and_no_word():
    with pytest.raises(DataError, match="no story"):
        score_world(lambda ids: ids, ByteTokenizer(), [])
    assert math.isnan(score_world(Oracle(ByteTokenizer()), ByteTokenizer(), STORIES[:1]).accuracy(("weather",)))
