"""Losses of encoders against sums by hand; they learn through the training loop, also when only the head is new."""

import numpy as np
import pytest
import torch
from helpers.parity import random_ids, randomized

from minillm.data.batches import SequentialBatches
from minillm.data.corrupted_batches import CorruptedBatches
from minillm.data.masking import MaskingConfig, mask_tokens
from minillm.errors import ConfigError
from minillm.models.bert import Bert, bert_config
from minillm.models.bert_heads import TextClassifier
from minillm.train.loop import LoopConfig, train
from minillm.train.loss import kernel_cross_entropy
from minillm.train.masked_text import MaskedPairLoss, MaskedTextLoss, segments_of
from minillm.train.optim import AdamW

SHAPE = {"vocab_size": 23, "max_seq_len": 12, "n_layers": 1, "n_heads": 2, "d_model": 8}


def small(**settings):
    return randomized(Bert(bert_config(**SHAPE | settings), torch.Generator().manual_seed(0))).double()


def nats(logits, target):
    return -logits.log_softmax(-1)[target].item()


def test_masked_texts():
    model = small()
    inputs = torch.tensor([[5, 3, 7, 0], [3, 8, 9, 3]])
    targets = torch.tensor([[-100, 6, -100, -100], [4, -100, -100, 2]])
    total = nats(model(inputs[:1, :3])[0, 1], 6)
    total += nats(model(inputs[1:])[0, 0], 4) + nats(model(inputs[1:])[0, 3], 2)
    assert MaskedTextLoss(pad_id=0)(model, inputs, targets).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
def test_masked_pairs(weight):
    model = small()
    inputs = torch.tensor([[1, 5, 2, 3, 2, 0], [1, 3, 6, 2, 7, 2]])
    targets = torch.tensor([[1, -100, -100, 9, -100, -100], [0, 4, -100, -100, -100, -100]])
    total = 0.0
    for row, n, segments in ((0, 5, [0, 0, 0, 1, 1]), (1, 6, [0, 0, 0, 0, 1, 1])):
        hidden = model.hidden(inputs[row : row + 1, :n], torch.tensor([segments]))
        place = 3 if row == 0 else 1
        total += nats(model.logits(hidden)[0, place], targets[row, place])
        total += weight * nats(model.pair_logits(hidden)[0], targets[row, 0])
    loss = MaskedPairLoss(pad_id=0, separator_id=2, pair_weight=weight)
    assert loss(model, inputs, targets).item() == pytest.approx(total, rel=1e-9)


def test_segments_by_a_loop():
    ids = random_ids(4, (5, 9))
    for row, segments in zip(ids.tolist(), segments_of(ids, 2).tolist(), strict=True):
        assert segments == [int(2 in row[:place]) for place in range(9)]


def test_it_learns_to_fill_in():
    """Each window says one token twelve times, so that every hidden one follows from the others."""
    text = np.append(np.repeat(np.random.default_rng(0).integers(3, 23, 200), 12), 3)
    masking = MaskingConfig(vocab_size=23, mask_id=1, special_ids=(0,), rate=0.2)
    batches = CorruptedBatches(
        SequentialBatches(text, 16, 12, seed=0), lambda ids, rng: mask_tokens(ids, masking, rng), seed=0, pad_id=0
    )
    model = Bert(bert_config(**SHAPE | {"d_model": 32}), torch.Generator().manual_seed(0))
    optimizer = AdamW(model.parameters(), lr=1e-2)
    before = MaskedTextLoss(0)(model, *map(torch.tensor, batches.batch(999))).item()
    train(model, optimizer, batches.batch, LoopConfig(n_steps=120), loss_sum=MaskedTextLoss(pad_id=0))
    after = MaskedTextLoss(0)(model, *map(torch.tensor, batches.batch(999))).item()
    assert after < 0.2 * before


def test_a_head_for_texts_trains_in_the_loop():
    """Class: whether the first token is even. The heads of pretraining get no gradient, and are in no one's way."""

    def batches(step):
        inputs = np.random.default_rng(step).integers(3, 23, (16, 6))
        targets = np.full((16, 6), -100)
        targets[:, 0] = inputs[:, 0] % 2
        return inputs, targets

    def loss(model, inputs, targets):
        return kernel_cross_entropy(model(inputs), targets[:, 0], reduction="sum")

    body = Bert(bert_config(**SHAPE | {"d_model": 32}), torch.Generator().manual_seed(0))
    model = TextClassifier(body, 2, dropout=0.0, generator=torch.Generator().manual_seed(1))
    train(model, AdamW(model.parameters(), lr=3e-3), batches, LoopConfig(n_steps=150), loss_sum=loss)
    model.eval()
    inputs, targets = map(torch.tensor, batches(1000))
    assert (model(inputs).argmax(-1) == targets[:, 0]).float().mean() > 0.9


def test_bad_weight():
    with pytest.raises(ConfigError, match="pair_weight"):
        MaskedPairLoss(0, 2, -1.0)
