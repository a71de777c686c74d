"""Filling masks: candidates against a softmax by hand, steps against a loop, scores against one mask at a time."""

import math

import pytest
import torch
from helpers.parity import random_ids, randomized

from minillm.errors import DataError, SamplingError
from minillm.infer.fill_masks import fill_masks, mask_candidates, pseudo_log_likelihood
from minillm.models.bert import Bert, bert_config

MASK = 4
SHAPE = {"vocab_size": 23, "max_seq_len": 12, "n_layers": 2, "n_heads": 2, "d_model": 8, "dropout": 0.3}


def small(seed=0):
    return randomized(Bert(bert_config(**SHAPE), torch.Generator().manual_seed(seed)).double(), seed, scale=0.5).eval()


def test_candidates():
    model, ids = small(), [5, MASK, 7, MASK]
    found = mask_candidates(model.train(), ids, MASK, 3)
    assert model.training and len(found) == 2
    probabilities = model.eval()(torch.tensor([ids]))[0].softmax(-1)
    for place, candidates in zip((1, 3), found, strict=True):
        row = probabilities[place].tolist()
        assert [i for i, _ in candidates] == sorted(range(23), key=lambda i, row=row: -row[i])[:3]
        assert [p for _, p in candidates] == pytest.approx(sorted(row, reverse=True)[:3], rel=1e-12)
    assert mask_candidates(model, ids, MASK, 3, segments=[0, 0, 1, 1]) != found
    assert len(mask_candidates(model, ids, MASK, 99)[0]) == 23


@pytest.mark.parametrize("surest_first", [True, False])
def test_filling_against_a_loop(surest_first):
    model, texts = small(1), random_ids(18, (6, 9), 3) + 5
    texts[torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) < 0.4] = MASK
    texts[5] = 9                                                    # nothing to fill
    filled, totals = fill_masks(model, texts, MASK, (0, 1), surest_first)
    for row, text in enumerate(texts.tolist()):
        total = 0.0
        while MASK in text:
            probabilities = model(torch.tensor([text]))[0].softmax(-1).tolist()
            options = [
                (probabilities[place][i], place, i)
                for place in range(9)
                for i in range(23)
                if text[place] == MASK and i not in (0, 1, MASK)
            ]
            if not surest_first:
                options = [option for option in options if option[1] == text.index(MASK)]
            probability, place, i = max(options)
            text[place], total = i, total + math.log(probability)
        assert filled[row].tolist() == text and totals[row].item() == pytest.approx(total, rel=1e-5)
    assert (texts == MASK).any() and not (filled == MASK).any()


def test_scores_of_texts():
    model, ids = small(2), [1, 5, 9, 7, 2]
    total = 0.0
    for place in (1, 2, 3):
        hidden = list(ids)
        hidden[place] = MASK
        total += model(torch.tensor([hidden]))[0, place].log_softmax(-1)[ids[place]].item()
    assert pseudo_log_likelihood(model, ids, MASK, kept_ids=(1, 2)) == pytest.approx(total, rel=1e-10)


def test_bad_input():
    with pytest.raises(DataError, match="no mask"):
        mask_candidates(small(), [5, 6], MASK)
    with pytest.raises(SamplingError, match="n_best"):
        mask_candidates(small(), [MASK], MASK, 0)
    with pytest.raises(SamplingError, match="all 23 ids"):
        fill_masks(small(), torch.tensor([[MASK]]), MASK, tuple(range(23)))
    with pytest.raises(DataError, match="left to be asked"):
        pseudo_log_likelihood(small(), [1, 2], MASK, (1, 2))
