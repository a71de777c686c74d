"""A decoder that judges texts: padding does not matter, the last real token is read, misuse is refused."""

import pytest
import torch
from helpers.adapt_models import GPTS, padded_left, padded_right, small_gpt

from minillm.errors import ConfigError, ShapeError
from minillm.models.bert_heads import TokenClassifier
from minillm.models.gpt_heads import LastTokenClassifier, last_real

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["learned", "rotary", "alibi", "token_shift"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_answer(kind):
    model = LastTokenClassifier(small_gpt(**GPTS[kind]), 3, 0.0, seeded()).double().eval()
    alone = torch.cat([model(torch.tensor([row])) for row in ROWS])
    torch.testing.assert_close(model(*padded_right(ROWS)), alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(model(*padded_left(ROWS)), alone, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_answer_is_the_heads_map_of_the_last_vector_and_depends_on_every_token():
    model = LastTokenClassifier(small_gpt(), 3, 0.0, seeded()).double().eval()
    ids = torch.tensor(ROWS[:1])
    expected = model.body.hidden(ids)[:, -1] @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(ids), expected, atol=1e-12, rtol=0)
    for place in range(ids.shape[1]):
        other = ids.clone()
        other[0, place] += 1
        assert not torch.allclose(model(other), expected), place


@torch.no_grad()
def test_tagging_a_decoder_sees_the_past_alone_and_its_last_tag_is_a_judgement_of_the_text():
    judge = LastTokenClassifier(small_gpt(), 4, 0.0, seeded()).double().eval()
    tagger = TokenClassifier(judge.body, 4, 0.0).double().eval()
    tagger.head = judge.head
    ids, mask = padded_right(ROWS)
    tags = tagger(ids, None, mask)
    torch.testing.assert_close(tags[torch.arange(3), last_real(mask)], judge(ids, mask), atol=1e-12, rtol=0)
    later = ids.clone()
    later[0, 3:] = 7
    torch.testing.assert_close(tagger(later, None, mask)[0, :3], tags[0, :3], atol=1e-12, rtol=0)


def test_wrong_numbers_and_masks_are_refused():
    with pytest.raises(ConfigError, match="n_classes is 1"):
        LastTokenClassifier(small_gpt(), 1)
    with pytest.raises(ShapeError, match="no real token"):
        last_real(torch.tensor([[True], [False]]))
    with pytest.raises(ShapeError, match="expected bool"):
        last_real(torch.ones(2, 3))
