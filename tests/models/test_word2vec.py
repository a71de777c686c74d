"""The gradients of shared noise words against autograd and against the definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.models.word2vec import (
    Word2VecConfig,
    WordVectors,
    cbow_gradients,
    negative_sampling,
    shared_negative_sampling,
    sigmoid,
    softplus,
)


def test_sigmoid_and_softplus_are_torchs():
    scores = np.concatenate([np.linspace(-30, 30, 101), [-800.0, 800.0]])
    np.testing.assert_allclose(sigmoid(scores), torch.sigmoid(torch.from_numpy(scores)).numpy(), atol=1e-15)
    np.testing.assert_allclose(softplus(scores), -F.logsigmoid(-torch.from_numpy(scores)), rtol=1e-13)


def difference(function, arrays, place, index, step=1e-6):
    """Central difference of the summed loss with respect to one number of one argument."""
    values = []
    for sign in (1, -1):
        moved = [array.copy() for array in arrays]
        moved[place][index] += sign * step
        values.append(function(moved))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("name", ["skip-gram", "cbow"])
def test_gradients_are_finite_differences(name):
    rng = np.random.default_rng(0)
    allowed = np.array([[True, False, True], [True, True, True]])
    shapes = ((2, 4), (2, 4), (2, 3, 4)) if name == "skip-gram" else ((2, 3, 4), (2, 4), (2, 3, 4))
    arrays = [rng.standard_normal(shape) for shape in shapes]

    def all_of(given):
        return negative_sampling(*given) if name == "skip-gram" else cbow_gradients(given[0], allowed, *given[1:])

    gradients = all_of(arrays)[1:]
    for place, array in enumerate(arrays):
        for index in np.ndindex(array.shape):
            expected = difference(lambda moved: all_of(moved)[0].sum(), arrays, place, index)
            assert gradients[place][index] == pytest.approx(expected, abs=1e-8)


def shared_case(seed, b=5, t=7, m=6, c=4):
    rng = np.random.default_rng(seed)
    hidden, rows, negatives = (rng.standard_normal((n, c)) for n in (b, t, m))
    return hidden, rows, rng.random((b, t)) < 0.4, negatives


def test_shared_gradients_are_autograds():
    hidden, rows, positive, negatives = shared_case(0)
    tensors = [torch.tensor(array, requires_grad=True) for array in (hidden, rows, negatives)]
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(5):
        for t in np.flatnonzero(positive[b]):
            noise = F.logsigmoid(-(tensors[2] * tensors[0][b]).sum(-1))
            loss = loss - F.logsigmoid((tensors[0][b] * tensors[1][t]).sum()) - 3 / 6 * noise.sum()
    expected = torch.autograd.grad(loss, tensors)
    got = shared_negative_sampling(hidden, rows, positive, negatives, 3)
    assert got[0] == pytest.approx(loss.item(), rel=1e-12)
    for one, other in zip(got[1:], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def test_shared_noise_is_the_definition_on_average():
    """All noise words of a vocabulary, each once, as M shared ones: K times their mean, as K drawn ones expect."""
    hidden, rows, positive, negatives = shared_case(1)
    k, pairs = 4, np.argwhere(positive)
    expected, d_hidden = 0.0, np.zeros_like(hidden)
    for b, t in pairs:
        target = negative_sampling(hidden[[b]], rows[[t]], np.zeros((1, 0, 4)))
        expected, d_hidden[b] = expected + target[0][0], d_hidden[b] + target[1][0]
        for one in negatives:                              # K draws expect K / V of each
            noise = negative_sampling(hidden[[b]], rows[[t]], one[None, None])
            expected += k / len(negatives) * (noise[0][0] - target[0][0])
            d_hidden[b] += k / len(negatives) * (noise[1][0] - target[1][0])
    loss, d_shared, _, _ = shared_negative_sampling(hidden, rows, positive, negatives, k)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(d_shared, d_hidden, rtol=1e-11)


def test_single_precision_stays_single():
    hidden, rows, positive, negatives = (
        array if array.dtype == bool else array.astype(np.float32) for array in shared_case(2)
    )
    assert all(one.dtype == np.float32 for one in shared_negative_sampling(hidden, rows, positive, negatives, 5)[1:])


def test_random_vectors_begin_small():
    vectors = WordVectors.random(50, 20, np.random.default_rng(0))
    assert vectors.inputs.shape == vectors.outputs.shape == (50, 20) and vectors.inputs.dtype == np.float32
    assert not vectors.outputs.any() and 0.024 < np.abs(vectors.inputs).max() <= 0.025 and vectors.losses == []


@pytest.mark.parametrize("setting", [
    {"vocab_size": 0}, {"d_model": 0}, {"window": 0}, {"n_negatives": 0}, {"n_epochs": 0}, {"n_block": 0},
    {"n_shared": 0}, {"architecture": "glove"}, {"subsample": -1.0}, {"noise_power": 0.0}, {"learning_rate": 0.0},
])  # fmt: skip
def test_settings_are_checked(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Word2VecConfig(**{"vocab_size": 10, **setting})
