"""Fitting neural n-gram models: they learn, the seed decides, the best weights are kept."""

import numpy as np
import pytest
import torch

from minillm.errors import ConfigError, DataError
from minillm.models.neural_ngram import NeuralNGram, NeuralNGramConfig
from minillm.statistical.smoothing import fit_ngram
from minillm.train.neural_ngram import BestSoFar, NeuralNGramTraining, fit_neural_ngram, last_token_loss

V, END = 8, 0
CONFIG = NeuralNGramConfig(vocab_size=V, end_of_text_id=END, order=3, d_embedding=4, d_hidden=16)
QUICK = NeuralNGramTraining(n_epochs=12, batch_size=16, learning_rate=0.02)


def made_text(n_documents, seed):
    """Documents in which the next id is decided by the one two places before, most of the time."""
    rng, ids = np.random.default_rng(seed), []
    for _ in range(n_documents):
        document = rng.integers(1, V, size=2).tolist()
        while len(document) < 12:
            expected = document[-2] % (V - 1) + 1
            document.append(expected if rng.random() < 0.9 else int(rng.integers(1, V)))
        ids += [*document, END]
    return np.array(ids)


@pytest.fixture(scope="module")
def fitted():
    return fit_neural_ngram(made_text(60, 0), CONFIG, QUICK, progress=False)


def nats(model, ids):
    return -float(model.log_probabilities(ids).mean())


def test_it_comes_near_to_the_n_gram_of_equal_order(fitted):
    new = made_text(40, 1)
    counted = fit_ngram("modified-kneser-ney", made_text(60, 0), 3, V, END)
    assert nats(fitted, new) < nats(counted, new) + 0.05 < np.log(V) - 0.5


def test_the_same_seed_gives_the_same_model_and_another_another(fitted):
    settings = [NeuralNGramTraining(n_epochs=1, batch_size=16, seed=seed) for seed in (3, 3, 4)]
    one, same, other = (fit_neural_ngram(made_text(9, 0), CONFIG, setting, progress=False) for setting in settings)
    assert torch.equal(one.output.weight, same.output.weight)
    assert not torch.equal(one.output.weight, other.output.weight)
    assert not fitted.training


def test_the_weights_that_scored_best_are_kept():
    """So few texts are soon known by heart: the last weights are worse on new ones than earlier ones were."""
    few, new = made_text(4, 0), made_text(40, 1)
    long = NeuralNGramTraining(n_epochs=40, batch_size=8, learning_rate=0.02, weight_decay=0.0)
    last = fit_neural_ngram(few, CONFIG, long, progress=False)
    best = fit_neural_ngram(few, CONFIG, long, validation_ids=new, progress=False)
    assert nats(best, new) < nats(last, new) - 0.3


def test_the_best_so_far_stays_the_best():
    model, ids = NeuralNGram(CONFIG, torch.Generator().manual_seed(0)), made_text(3, 0)
    best = BestSoFar(model, ids)
    first = best(lambda: False)["loss"]
    kept = model.output.weight.clone()
    with torch.no_grad():
        model.output.weight.mul_(100)
    assert best(lambda: False)["loss"] > first == best.loss
    assert torch.equal(best.state["output.weight"], kept)


def test_only_the_last_target_of_a_row_counts():
    model = NeuralNGram(CONFIG, torch.Generator().manual_seed(0))
    contexts, targets = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[-100, 5], [-100, 6]])
    expected = -model(contexts).log_softmax(dim=-1)[[0, 1], [5, 6]].sum()
    torch.testing.assert_close(last_token_loss(model, contexts, targets), expected)


def test_progress_says_loss_and_speed(capsys):
    fit_neural_ngram(made_text(4, 0), CONFIG, NeuralNGramTraining(n_epochs=2), progress=True)
    said = capsys.readouterr().err
    assert "loss" in said and "tokens/s" in said


@pytest.mark.parametrize(
    "wrong", [{"n_epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -0.1}, {"seed": -1}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NeuralNGramTraining(**wrong)


def test_texts_that_cannot_be_learned():
    with pytest.raises(DataError, match="at least one id"):
        fit_neural_ngram(np.array([], np.int64), CONFIG, QUICK, progress=False)
    with pytest.raises(DataError, match="token ids 0 to 7"):
        fit_neural_ngram(np.array([1, V]), CONFIG, QUICK, progress=False)
