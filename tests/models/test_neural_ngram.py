"""The neural n-gram model: by hand and in torch the same, probabilities that sum to one, no look across texts."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillm.data.contexts import ContextBatches
from minillm.errors import ConfigError, DataError, ShapeError, TrainingError
from minillm.models.neural_ngram import IDS_AT_A_TIME, NeuralNGram, NeuralNGramConfig
from minillm.models.neural_ngram_by_hand import (
    LossOfOne,
    descend,
    forward,
    initial_weights,
    loss_and_gradients,
    train_by_hand,
)
from minillm.nn.by_hand import finite_differences
from minillm.statistical.backoff import sample_ids

V, END = 7, 2


def make_config(**settings):
    usual = {"vocab_size": V, "end_of_text_id": END, "order": 4, "d_embedding": 3, "d_hidden": 5}
    return NeuralNGramConfig(**usual | settings)


def make_model(direct=False, seed=0, **settings):
    """A module in float64 in which no weight is 0."""
    model = NeuralNGram(make_config(direct=direct, **settings), torch.Generator().manual_seed(seed)).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def arrays(model):
    return {name: values.numpy() for name, values in model.state_dict().items()}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("direct", [False, True])
def test_by_hand_and_torch_agree_in_scores_and_gradients(rng, direct):
    model, contexts, targets = make_model(direct), rng.integers(V, size=(9, 3)), rng.integers(V, size=9)
    logits = model(torch.from_numpy(contexts))
    np.testing.assert_allclose(forward(arrays(model), contexts)[2], logits.detach().numpy(), rtol=1e-12)
    expected = F.cross_entropy(logits, torch.from_numpy(targets))
    expected.backward()
    loss, gradients = loss_and_gradients(arrays(model), contexts, targets)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("direct", [False, True])
def test_gradients_agree_with_finite_differences(rng, direct):
    weights = arrays(make_model(direct))
    contexts, targets = rng.integers(V, size=(4, 3)), rng.integers(V, size=4)
    _, gradients = loss_and_gradients(weights, contexts, targets)
    for name, values in weights.items():
        found = finite_differences(LossOfOne(name, weights, contexts, targets), values)
        np.testing.assert_allclose(gradients[name], found, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("direct", [False, True])
def test_initial_weights_have_the_modules_names_shapes_and_sizes(direct):
    config = make_config(direct=direct, vocab_size=200, d_embedding=20, d_hidden=90, embedding_std=0.3, scale=2.0)
    module = NeuralNGram(config, torch.Generator().manual_seed(0)).state_dict()
    weights = initial_weights(config, np.random.default_rng(0), np.float32)
    module_shapes = {name: tuple(values.shape) for name, values in module.items()}
    assert module_shapes == {name: values.shape for name, values in weights.items()}
    expected = {"embedding.weight": 0.6, "hidden.weight": 2 * 60**-0.5, "output.weight": 2 * 90**-0.5}
    for name, values in weights.items():
        assert values.dtype == np.float32
        assert values.std() == pytest.approx(expected.get(name, 0), rel=0.04)
        assert float(module[name].std()) == pytest.approx(expected.get(name, 0), rel=0.04)
    assert sum(values.size for values in weights.values()) == NeuralNGram(config).n_parameters()


def test_the_seed_decides_the_weights_and_the_scale_their_size():
    one, same, other = (NeuralNGram(make_config(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    large = NeuralNGram(make_config(scale=3.0), torch.Generator().manual_seed(0))
    for name, values in one.state_dict().items():
        assert torch.equal(values, same.state_dict()[name])
        torch.testing.assert_close(3 * values, large.state_dict()[name])
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def log_probability_by_hand(model, before, token_id):
    """The definition, for one id and the ids before it in its document."""
    context = ([END] * 3 + before)[-3:]
    logits = model(torch.tensor([context]))[0]
    return F.log_softmax(logits, dim=-1)[token_id].item()


def test_log_probabilities_of_a_packed_text_document_by_document(rng):
    model = make_model()
    documents = [[3, 4, 5, 6, 0, 1], [], [1], [5, 5, 5, 5, 5]]
    packed = [token_id for document in documents for token_id in (*document, END)]
    expected = [
        log_probability_by_hand(model, document[:place], token_id)
        for document in documents
        for place, token_id in enumerate((*document, END))
    ]
    found = model.log_probabilities(packed)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert model.log_probabilities([]).shape == (0,)


def test_a_long_text_is_scored_in_pieces_without_a_seam(rng):
    model, ids = make_model(), rng.integers(V, size=2 * IDS_AT_A_TIME + 5)
    found, near = model.log_probabilities(ids), IDS_AT_A_TIME + 40
    last_end = int(np.flatnonzero(ids[:near] == END)[-1])
    expected = log_probability_by_hand(model, ids[last_end + 1 : near].tolist(), int(ids[near]))
    assert found[near] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("context", [[], [3], [1, 5, 6, 3, 4], [6, 6, END], [6, 6, END, 3]])
def test_a_distribution_sums_to_one_and_is_what_scoring_uses(context):
    model = make_model().float()
    distribution = model.distribution(context)
    assert distribution.sum() == pytest.approx(1, abs=1e-12)
    for token_id in range(V):
        last = model.log_probabilities([*context, token_id])[-1]
        assert math.log(distribution[token_id]) == pytest.approx(last, abs=1e-6)


def test_texts_are_drawn_with_the_models_own_probabilities():
    model = make_model()
    drawn = sample_ids(model, 30, np.random.default_rng(0), context=[END], stop=END)
    assert drawn == sample_ids(model, 30, np.random.default_rng(0), context=[END], stop=END)
    first = [sample_ids(model, 1, np.random.default_rng(seed), context=[END])[0] for seed in range(600)]
    shares, expected = np.bincount(first, minlength=V) / 600, model.distribution([END])
    assert np.abs(shares - expected).max() < 4 * math.sqrt(0.25 / 600)


@pytest.mark.parametrize("ids", [[0, V], [-1, 0], [0.5, 1.0], ["a"]])
def test_ids_that_the_model_does_not_know(ids):
    for method in ("log_probabilities", "distribution"):
        with pytest.raises(DataError, match="token ids 0 to 6"):
            getattr(make_model(), method)(ids)


def test_contexts_of_another_length():
    with pytest.raises(ShapeError, match=r"expected \(B, 3\)"):
        make_model()(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"expected \(B, 3\)"):
        make_model()(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "wrong",
    [{"order": 1}, {"d_embedding": 0}, {"d_hidden": 0}, {"end_of_text_id": V}, {"end_of_text_id": -1}, {"scale": 0.0},
     {"scale": math.inf}, {"embedding_std": 0.0}, {"vocab_size": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_config(**wrong)


def test_descending_by_hand_learns_a_cycle_and_leaves_the_first_weights_alone():
    ids = np.array([0, 1, 3, 4, 5, 6] * 20 + [END])
    weights = initial_weights(make_config(), np.random.default_rng(0))
    before = {name: values.copy() for name, values in weights.items()}
    batches = ContextBatches(ids, 3, END, 16, seed=0)
    trained, losses = train_by_hand(weights, batches.batch, 400, 0.5, half_after=400, progress=False)
    assert len(losses) == 400
    assert losses[0] == pytest.approx(loss_and_gradients(weights, *examples(batches.batch(0)))[0])
    assert loss_and_gradients(trained, *examples(batches.batch(0)))[0] < 0.2 < 1.5 < losses[0]
    for name, values in before.items():
        np.testing.assert_array_equal(weights[name], values)


def examples(batch):
    contexts, targets = batch
    return contexts, targets[:, -1]


def test_the_learning_rate_falls_as_it_says(rng):
    weights = initial_weights(make_config(), rng)
    batches = ContextBatches(rng.integers(V, size=30), 3, END, 8, seed=0)
    expected = weights
    for step, rate in enumerate((0.5, 0.25, 0.5 / 3)):
        expected = descend(expected, loss_and_gradients(expected, *examples(batches.batch(step)))[1], rate)
    found, _ = train_by_hand(weights, batches.batch, 3, 0.5, half_after=1, progress=False)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12)


def test_the_progress_bar_says_loss_and_speed(rng, capsys):
    batches = ContextBatches(rng.integers(V, size=30), 3, END, 8, seed=0)
    train_by_hand(initial_weights(make_config(), rng), batches.batch, 3, 0.5)
    said = capsys.readouterr().err
    assert "loss" in said and "tokens/s" in said


@pytest.mark.parametrize("wrong", [{"n_steps": -1}, {"learning_rate": 0.0}, {"half_after": 0.0}])
def test_descents_that_cannot_be_made(rng, wrong):
    batches = ContextBatches(rng.integers(V, size=30), 3, END, 8, seed=0)
    settings = {"n_steps": 1, "learning_rate": 0.1, "half_after": 1.0} | wrong
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        train_by_hand(initial_weights(make_config(), rng), batches.batch, progress=False, **settings)


def test_a_loss_that_is_no_number_ends_the_descent(rng):
    batches = ContextBatches(rng.integers(V, size=30), 3, END, 8, seed=0)
    weights = initial_weights(make_config(), rng)
    weights["output.bias"][0] = np.nan
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train_by_hand(weights, batches.batch, 1, 0.1, progress=False)
