"""The recurrent language model: state, documents, scores, and what it refuses."""

import numpy as np
import pytest
import torch

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models import lstm
from minillm.models.lstm import RecurrentConfig, RecurrentLM

V, END = 7, 2
KINDS = ("lstm", "gru", "rnn")


def make(kind="lstm", **settings):
    config = RecurrentConfig(vocab_size=V, end_of_text_id=END, kind=kind, d_hidden=6, **settings)
    return RecurrentLM(config, torch.Generator().manual_seed(0)).double()


def some_ids(n, seed=0):
    return np.random.default_rng(seed).integers(V, size=n)


def slow_log_probabilities(model, ids):
    """One id at a time, from torch's cells; a zero state before every end of text."""
    weights, cells = model.state_dict(), []
    for layer in range(model.config.n_layers):
        names = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}
        d_in = model.config.d_hidden if layer else model.config.d_embedding
        cell = names[model.config.kind](d_in, model.config.d_hidden).double()
        cell.load_state_dict({name: weights[f"layers.{name}_l{layer}"] for name in cell.state_dict()})
        cells.append(cell)
    found, states = [], [None] * len(cells)
    for before, token_id in zip([END, *ids[:-1]], ids, strict=True):
        if before == END:
            states = [None] * len(cells)
        x = weights["token_embedding.weight"][[int(before)]]
        for layer, cell in enumerate(cells):
            states[layer] = cell(x, states[layer])
            x = states[layer][0] if model.config.kind == "lstm" else states[layer]
        found.append((x @ weights["head.weight"].T + weights["head.bias"]).log_softmax(-1)[0, int(token_id)].item())
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"n_layers": 2, "d_embedding": 3, "dropout": 0.5}, {"tie_embeddings": True}])
def test_log_probabilities_are_those_of_reading_id_by_id(kind, settings, monkeypatch):
    monkeypatch.setattr(lstm, "ROWS", 3)
    monkeypatch.setattr(lstm, "WINDOW", 4)                         # documents longer and shorter than a window
    model, ids = make(kind, **settings), some_ids(90)
    ids[20:41] = np.where(ids[20:41] == END, 1, ids[20:41])
    got = model.log_probabilities(ids)
    assert got.dtype == np.float64 and got.shape == ids.shape
    np.testing.assert_allclose(got, slow_log_probabilities(model.eval(), ids), rtol=1e-9)
    assert np.array_equal(model.train().log_probabilities(ids), got) and model.training


@pytest.mark.parametrize("ids", [[], [END], [1], [END, END, 3], [4, 5, END, 6]])
def test_short_texts(ids):
    model = make()
    expected = slow_log_probabilities(model, np.array(ids, np.int64)) if ids else np.zeros(0)
    np.testing.assert_allclose(model.log_probabilities(ids), expected, rtol=1e-9)


def test_probabilities_of_the_vocabulary_sum_to_one():
    model = make()
    total = sum(np.exp(model.log_probabilities([3, 4, token_id])[-1]) for token_id in range(V))
    assert abs(total - 1) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_carries_a_text_on_and_an_end_wipes_it(kind):
    model, ids = make(kind, n_layers=2).eval(), torch.tensor([[1, 3, END, 4, 5, 6]])
    whole, last = model(ids)
    first, state = model(ids[:, :2])
    second, state = model(ids[:, 2:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(state, last)
    alone, _ = model(ids[:, 2:])
    torch.testing.assert_close(second, alone)
    other, _ = model(torch.tensor([[4, 4, 1, 4, 5, 6]]))
    assert (other[:, 3:] - whole[:, 3:]).abs().max() > 1e-3        # without an end the past is seen


def test_tied_weights_are_one_parameter():
    tied, free = make(tie_embeddings=True), make()
    assert tied.head.weight is tied.token_embedding.weight
    assert free.n_parameters() - tied.n_parameters() == V * 6
    tied(torch.tensor([[1, 2]]))[0].sum().backward()
    assert tied.token_embedding.weight.grad.abs().min() > 0


def test_a_fresh_model_believes_nothing():
    ids = torch.arange(200)[None] % 50
    for kind in KINDS:
        config = RecurrentConfig(vocab_size=50, end_of_text_id=0, kind=kind, d_hidden=64)
        logits, _ = RecurrentLM(config, torch.Generator().manual_seed(0))(ids)
        assert torch.nn.functional.cross_entropy(logits[0], ids[0]).item() == pytest.approx(np.log(50), abs=0.25)


def test_forget_gates_start_open_and_dropout_acts_while_training():
    bias = make(forget_bias=2.0).layers.bias_ih_l0
    assert (bias[6:12] == 2.0).all()
    model, ids = make(dropout=0.5), torch.tensor([[1, 3, 4]])
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="end_of_text_id is 7, expected 0 to 6"):
        RecurrentConfig(vocab_size=7, end_of_text_id=7)
    with pytest.raises(ConfigError, match="as wide as the state, got 3 and 6"):
        make(tie_embeddings=True, d_embedding=3)
    with pytest.raises(ConfigError, match="kind is 'transformer'"):
        make("transformer")
    model = make()
    with pytest.raises(ShapeError, match="token_ids has shape"):
        model(torch.tensor([1, 2]))
    with pytest.raises(DataError, match="vocabulary"):
        model(torch.tensor([[1, V]]))
    with pytest.raises(ShapeError, match="state has shape"):
        model(torch.tensor([[1], [2]]), model(torch.tensor([[1]]))[1])
    with pytest.raises(DataError, match="outside the vocabulary"):
        model.log_probabilities([1, V])
    with pytest.raises(DataError, match="integers"):
        model.log_probabilities([0.5])
