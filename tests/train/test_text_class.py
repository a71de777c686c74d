"""One class for a text or for each token: the loss is that of each text alone, and the loop trains with it."""

import numpy as np
import pytest
import torch
from helpers.adapt_models import small_bert, small_gpt
from torch.nn import functional as F

from minillm.errors import DataError, ShapeError
from minillm.models.bert_heads import TextClassifier, TokenClassifier
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.train.accumulation import accumulate_gradients
from minillm.train.loop import LoopConfig, train
from minillm.train.optim import AdamW
from minillm.train.text_class import TextClassLoss, TokenClassLoss, class_batch

TEXTS, LABELS = [[0, 7, 6, 9], [9], [3, 4, 3]], [2, 0, 1]          # one begins with the id that fills up


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def judge(make):
    head = TextClassifier if make is small_bert else LastTokenClassifier
    return head(make(), 3, 0.0, seeded(1)).double()


@pytest.mark.parametrize("make", [small_gpt, small_bert])
def test_the_loss_is_the_sum_of_those_of_the_texts_alone(make):
    model = judge(make)
    inputs, targets = map(torch.tensor, class_batch(TEXTS, LABELS, pad_id=0))
    pairs = zip(TEXTS, LABELS, strict=True)
    alone = [F.cross_entropy(model(torch.tensor([text])), torch.tensor([label])) for text, label in pairs]
    loss = TextClassLoss(0)(model, inputs, targets)
    torch.testing.assert_close(loss, sum(alone), atol=1e-12, rtol=1e-12)
    assert torch.equal(TextClassLoss(0)(model, inputs, torch.tensor(LABELS)), loss)
    mean = accumulate_gradients(model, inputs, targets, 2, TextClassLoss(0))
    torch.testing.assert_close(mean, loss.detach() / 3, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("make", [small_gpt, small_bert])
def test_one_class_per_token(make):
    model = TokenClassifier(make(), 4, 0.0, seeded(1)).double()
    inputs, targets = torch.tensor([[5, 7, 6, 9], [3, 4, 0, 0]]), torch.tensor([[1, -100, 0, 3], [2, 2, -100, -100]])
    rows = [(inputs[:1], targets[:1]), (inputs[1:, :2], targets[1:, :2])]
    alone = [F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in rows]
    loss = TokenClassLoss(0)(model, inputs, targets)
    torch.testing.assert_close(loss, sum(alone), atol=1e-12, rtol=1e-12)


def test_a_decoder_learns_to_judge():
    """The class is whether the token 5 stands in the text."""

    def batches(step):
        rng = np.random.default_rng(step)
        texts = [rng.integers(3, 9, rng.integers(2, 7)).tolist() for _ in range(24)]
        return class_batch(texts, [int(5 in text) for text in texts], pad_id=0)

    body = GPT(GPTConfig(vocab_size=9, max_seq_len=8, n_layers=1, n_heads=2, d_model=24), seeded(0))
    model = LastTokenClassifier(body, 2, 0.0, seeded(1))
    train(model, AdamW(model.parameters(), lr=1e-2), batches, LoopConfig(n_steps=60), loss_sum=TextClassLoss(0))
    inputs, targets = map(torch.tensor, batches(999))
    answers = model.eval()(inputs, inputs != 0).argmax(-1)
    assert (answers == targets.amax(1)).float().mean() > 0.95


def test_what_does_not_fit_is_refused():
    for texts, classes in (([], []), ([[1]], [0, 1]), ([[1], []], [0, 1]), ([[1]], [-100])):
        with pytest.raises(DataError):
            class_batch(texts, classes, pad_id=0)
    for targets in ([[1, 1, -100], [0, -100, -100]], [[-100] * 3, [0, -100, -100]]):
        with pytest.raises(ShapeError, match="one class in each row"):
            TextClassLoss(0)(judge(small_gpt), torch.ones(2, 3, dtype=torch.long), torch.tensor(targets))
