"""Training word vectors: steps against gradients, the plain version against the fast one, a text to learn."""

import math

import numpy as np
import pytest

from minillm.data.context_windows import context_windows, noise_words
from minillm.errors import DataError, TrainingError
from minillm.evaluate.word_vectors import neighbour_purity
from minillm.models.word2vec import Word2VecConfig, WordVectors, cbow_gradients, negative_sampling
from minillm.models.word2vec_training import (
    add_rows,
    cbow_block,
    held_out_loss,
    plain_steps,
    skip_gram_block,
    train_word2vec,
    window_matrix,
    word_counts,
)


def random_vectors(seed, vocab_size=9, d_model=5):
    rng = np.random.default_rng(seed)
    return WordVectors(rng.standard_normal((vocab_size, d_model)), rng.standard_normal((vocab_size, d_model)))


def test_rows_of_the_same_id_are_summed():
    rng = np.random.default_rng(0)
    for n in (1, 3, 40):
        table, rows, ids = rng.standard_normal((6, 3)), rng.standard_normal((n, 3)), rng.integers(0, 6, size=n)
        expected = table.copy()
        np.add.at(expected, ids, rows)
        add_rows(table, ids, rows)
        np.testing.assert_allclose(table, expected, rtol=1e-12)


def test_window_matrix_is_the_windows_in_other_places():
    rng = np.random.default_rng(0)
    ids, reaches = rng.integers(1, 9, size=20), rng.integers(1, 4, size=20)
    reaches[3] = 3
    contexts, allowed = context_windows(ids, reaches)
    near, padded = window_matrix(allowed[5:12]), np.pad(ids, 3)[5 : 12 + 6]
    assert near.shape == (7, 13)
    for place in range(7):
        assert padded[near[place]].tolist() == contexts[5 + place][allowed[5 + place]].tolist()


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_a_block_steps_along_the_gradients_of_its_predictions(architecture):
    """The sum over single predictions, each with all M noise words at the weight K / M."""
    rng, k, rate = np.random.default_rng(3), 2, 0.1
    stretch, noise = rng.integers(0, 9, size=10), rng.integers(0, 9, size=4)
    _, allowed = context_windows(stretch, np.full(10, 2))
    near = window_matrix(allowed[2:8])
    near[1] = False                                        # a place without neighbours predicts nothing
    before, vectors = random_vectors(0), random_vectors(0)
    block = skip_gram_block if architecture == "skip-gram" else cbow_block
    loss, n_predicted = block(vectors, stretch, near, noise, k, rate)

    after, total, n = random_vectors(0), 0.0, 0
    for b, row in enumerate(near):
        words, own = stretch[row], stretch[b + 2]
        for target in words if architecture == "skip-gram" else [own] * bool(len(words)):
            for negative in noise:
                hidden = before.inputs[[own]] if architecture == "skip-gram" else before.inputs[words].mean(0)[None]
                right = negative_sampling(hidden, before.outputs[[target]], np.zeros((1, 0, 5)))
                both = negative_sampling(hidden, before.outputs[[target]], before.outputs[[negative]][None])
                weights = 1 / len(noise), k / len(noise)   # the target once over all noise words, each of these K / M
                d_hidden = weights[0] * right[1][0] + weights[1] * (both[1] - right[1])[0]
                for word in [own] if architecture == "skip-gram" else words:
                    after.inputs[word] -= rate * d_hidden / (1 if architecture == "skip-gram" else len(words))
                after.outputs[target] -= rate * weights[0] * right[2][0]
                after.outputs[negative] -= rate * weights[1] * both[3][0, 0]
                total += weights[0] * right[0][0] + weights[1] * (both[0] - right[0])[0]
            n += 1
    assert n_predicted == n and loss == pytest.approx(total, rel=1e-11)
    np.testing.assert_allclose(vectors.inputs, after.inputs, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(vectors.outputs, after.outputs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_the_plain_version_takes_one_step_for_each_prediction(architecture):
    config = Word2VecConfig(9, 5, architecture, window=2, n_negatives=3)
    ids, counts, rates = np.array([1, 2, 2, 5]), np.arange(9), np.array([0.1, 0.2, 0.3, 0.4])
    windows = context_windows(ids, np.array([1, 2, 1, 1]))
    vectors, expected = random_vectors(1), random_vectors(1)
    steps = list(plain_steps(vectors, ids, windows, rates, counts, config, np.random.default_rng(7)))

    n = windows[1].sum() if architecture == "skip-gram" else 4
    noise = iter(noise_words(counts, np.random.default_rng(7).random((n, 3))))
    for place, (step, word) in enumerate(zip(steps, ids, strict=True)):
        words, loss = windows[0][place][windows[1][place]], 0.0
        for target in words if architecture == "skip-gram" else [word]:
            negatives = next(noise)
            outputs = expected.outputs[[target]], expected.outputs[negatives][None]
            if architecture == "skip-gram":
                losses, d_inputs, d_target, d_negatives = negative_sampling(expected.inputs[[word]], *outputs)
                np.subtract.at(expected.inputs, [word], rates[place] * d_inputs)
            else:
                shown = np.ones((1, len(words)), bool)
                losses, d_inputs, d_target, d_negatives = cbow_gradients(expected.inputs[words][None], shown, *outputs)
                np.subtract.at(expected.inputs, words, rates[place] * d_inputs[0])
            expected.outputs[target] -= rates[place] * d_target[0]
            np.subtract.at(expected.outputs, negatives, rates[place] * d_negatives[0])
            loss += losses[0]
        assert step == (1, pytest.approx(loss, rel=1e-12), len(words) if architecture == "skip-gram" else 1)
    np.testing.assert_allclose(vectors.inputs, expected.inputs, rtol=1e-12)
    np.testing.assert_allclose(vectors.outputs, expected.outputs, rtol=1e-12)


def two_kinds(n_sentences=400, seed=0):
    """Sentences about letters 1 .. 4 and sentences about 5 .. 8, which never meet; 0 ends each."""
    rng = np.random.default_rng(seed)
    return np.concatenate([[*rng.integers(1, 5, size=6) + 4 * (n % 2), 0] for n in range(n_sentences)])


SIZES = {"vocab_size": 9, "d_model": 8, "window": 2, "n_block": 16, "n_shared": 16}
SMALL = SIZES | {"subsample": 0.0, "learning_rate": 0.1}


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_both_versions_learn_the_same(architecture):
    ids, new = two_kinds(), two_kinds(100, seed=9)
    config = Word2VecConfig(architecture=architecture, n_epochs=3, **SMALL)
    counts = word_counts(ids, 9, boundary=0)
    losses = {}
    for plain in (False, True):
        rng = np.random.default_rng(5)
        vectors = train_word2vec(ids, config, rng, boundary=0, plain=plain, progress=False)
        losses[plain] = held_out_loss(vectors, new, counts, config, boundary=0)
        assert len(vectors.losses) == 3 and vectors.losses[0] > vectors.losses[-1]
        assert neighbour_purity(vectors.inputs[1:], np.repeat([0, 1], 4), 3) == 1
        assert np.abs(vectors.inputs[0]).max() <= 0.5 / 8 and not vectors.outputs[0].any()  # nothing about the end
    assert losses[False] < 6 * math.log(2) - 0.3 and losses[True] == pytest.approx(losses[False], rel=0.02)


def test_training_repeats_itself_and_the_seed_matters():
    ids, config = two_kinds(50), Word2VecConfig(n_epochs=1, **SMALL)
    first, again, other = (
        train_word2vec(ids, config, np.random.default_rng(seed), 0, progress=False).inputs for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_held_out_loss_by_a_loop():
    vectors, counts, ids = random_vectors(4), np.arange(9), np.array([3, 1, 4, 0, 5, 2])
    for architecture in ("skip-gram", "cbow"):
        config = Word2VecConfig(9, 5, architecture, window=2, n_negatives=3)
        contexts, allowed = context_windows(ids, np.full(6, 2), 0)
        noise = counts**0.75 / (counts**0.75).sum()
        losses = []
        for word, row, near in zip(ids, contexts, allowed, strict=True):
            words = row[near]
            for target in words if architecture == "skip-gram" else [word] * bool(len(words)):
                hidden = vectors.inputs[word] if architecture == "skip-gram" else vectors.inputs[words].mean(axis=0)
                scores = vectors.outputs @ hidden
                losses.append(math.log1p(math.exp(-scores[target])) + 3 * noise @ np.log1p(np.exp(scores)))
        assert held_out_loss(vectors, ids, counts, config, 0) == pytest.approx(np.mean(losses), rel=1e-12)


def test_frequent_words_are_thinned_out():
    """Word 1 fills the text between the others; thinned to next to nothing, it leaves them as neighbours."""
    ids = np.array([1, 1, 1, 2, 1, 1, 1, 3] * 300)
    alone = {}
    for subsample in (0.0, 1e-3):
        config = Word2VecConfig(4, 4, window=1, n_epochs=10, learning_rate=0.02, subsample=subsample, n_block=8)
        vectors = train_word2vec(ids, config, np.random.default_rng(0), progress=False)
        alone[subsample] = float(vectors.inputs[2] @ vectors.outputs[3])
    assert alone[1e-3] > alone[0.0] + 0.5


def test_texts_that_cannot_be_learned():
    config = Word2VecConfig(n_epochs=1, **SMALL)
    rng = np.random.default_rng(0)
    for ids, boundary in (([], None), ([3], None), ([0, 0, 4], 0)):
        with pytest.raises(DataError, match="at least two"):
            train_word2vec(np.array(ids, np.int64), config, rng, boundary, progress=False)
    for wrong in (9, -1):
        with pytest.raises(DataError, match="vocab_size"):
            train_word2vec(np.array([1, 2, wrong]), config, rng, progress=False)
    with pytest.raises(DataError, match="neighbours"):
        held_out_loss(random_vectors(0), np.array([1, 0, 2]), np.ones(9), config, boundary=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_steps_that_are_too_long_are_an_error():
    config = Word2VecConfig(9, 8, learning_rate=1000.0, subsample=0, n_epochs=3)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train_word2vec(two_kinds(), config, np.random.default_rng(0), 0, progress=False)


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_a_text_of_two_words_is_enough(architecture):
    config = Word2VecConfig(3, 4, architecture, n_epochs=2, subsample=0)
    for plain in (False, True):
        vectors = train_word2vec(np.array([1, 2]), config, np.random.default_rng(0), plain=plain, progress=False)
        assert np.isfinite(vectors.losses).all() and vectors.outputs[1:].any()
