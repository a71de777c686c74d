"""Learning word vectors from a text: pair by pair, which is the definition, and in blocks, which is fast.

A block takes B consecutive places of the text and the T = B + 2W words in and around them. All scores of skip-gram are
one product, hidden (B, C) times outputs (T, C); a matrix of zeros and ones says which of the B x T are neighbours. CBOW
is the same with the roles exchanged: that matrix, divided by its row sums, makes the means that predict, and what each
mean is to predict is one word, its own. Instead of K noise words for each prediction the block draws M for all, each
with weight K / M: on average over the draws, loss and gradient are those of `negative_sampling`. All predictions of a
block take their step together, from the same vectors, instead of one by one.

Dimensions: B places of a block, T words of its stretch, M shared noise words, K noise words of a prediction, C width,
W reach of a window, V vocabulary, N ids of a text.

Source: Mikolov et al. 2013, arXiv:1310.4546. Shared noise words: Ji et al. 2016, arXiv:1604.04661, who share K of them
in each window; the weights and the blocks of whole stretches are ours.
"""

import math
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from minillm.data.context_windows import context_windows, keep_probabilities, noise_words
from minillm.errors import DataError, TrainingError
from minillm.models.word2vec import (
    Word2VecConfig,
    WordVectors,
    cbow_gradients,
    negative_sampling,
    shared_negative_sampling,
    softplus,
)

CHUNK_PLACES = 1 << 16  # places prepared at a time; windows end at the cut
SLOWEST = 1e-4          # the learning rate never falls below this share of what it was, as in word2vec.c


def train_word2vec(
    ids: np.ndarray,
    config: Word2VecConfig,
    rng: np.random.Generator,
    boundary: int | None = None,
    plain: bool = False,
    progress: bool = True,
) -> WordVectors:
    """Learn word vectors from a text.

    Each time through the text frequent words are thinned out anew, which brings the others closer together, and every
    place draws how far it looks from 1 .. window.

    Args:
        ids: (N,) integers 0 .. vocab_size - 1, at least two that are not the boundary.
        config: what to learn and how.
        rng: draws the first vectors, what is left out, the reaches and the noise words.
        boundary: the id that parts documents; nothing is learned about it or across it. None: the text is one piece.
        plain: True goes prediction by prediction (`plain_steps`), False block by block (`block_steps`).
        progress: show a bar with the mean loss and words per second.

    Returns:
        The vectors, with the mean loss of each time through the text.

    Raises:
        DataError: if an id is outside the vocabulary or there are fewer than two words.
        TrainingError: if the loss grows beyond all bounds: steps were too long.
    """
    counts = word_counts(ids, config.vocab_size, boundary)
    keep = keep_probabilities(counts, config.subsample) if config.subsample else np.ones(config.vocab_size)
    vectors = WordVectors.random(config.vocab_size, config.d_model, rng)
    steps = plain_steps if plain else block_steps
    with tqdm(total=config.n_epochs * len(ids), unit="word", unit_scale=True, disable=not progress) as bar:
        for epoch in range(config.n_epochs):
            text = ids[rng.random(len(ids)) < keep[ids]]
            done = (epoch + np.arange(len(text)) / max(1, len(text))) / config.n_epochs
            rates = config.learning_rate * np.maximum(1 - done, SLOWEST)  # (N,)
            total, n_predicted = 0.0, 0
            for part in (slice(start, start + CHUNK_PLACES) for start in range(0, len(text), CHUNK_PLACES)):
                reaches = rng.integers(1, config.window + 1, size=len(text[part]))
                windows = context_windows(text[part], reaches, boundary)
                for n_places, loss, n_new in steps(vectors, text[part], windows, rates[part], counts, config, rng):
                    total, n_predicted = total + loss, n_predicted + n_new
                    bar.update(n_places * len(ids) / len(text))
                bar.set_postfix(loss=f"{total / max(1, n_predicted):.3f}")
                check_loss(total / max(1, n_predicted), config)
            vectors.losses.append(total / max(1, n_predicted))
    return vectors


def check_loss(loss: float, config: Word2VecConfig) -> None:
    """Raise a TrainingError that says what to change if the loss is ten times that of vectors that know nothing."""
    ignorant = (1 + config.n_negatives) * math.log(2)
    if not loss < 10 * ignorant:
        raise TrainingError(
            f"the loss has grown to {loss:.3g} nats, where {ignorant:.2f} is knowing nothing: steps are too long; "
            f"lower learning_rate ({config.learning_rate}) or n_block ({config.n_block}) or raise n_shared "
            f"({config.n_shared})"
        )


def word_counts(ids: np.ndarray, vocab_size: int, boundary: int | None = None) -> np.ndarray:
    """(V,) how often each word occurs, the boundary not at all; raises a DataError for a text that cannot be used."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise DataError(f"ids go from {ids.min()} to {ids.max()}; expected 0 to vocab_size - 1 = {vocab_size - 1}")
    counts = np.bincount(ids, minlength=vocab_size)
    if boundary is not None:
        counts[boundary] = 0
    if counts.sum() < 2:
        raise DataError(f"the text has {counts.sum()} words; at least two are needed to make a pair")
    return counts


def held_out_loss(
    vectors: WordVectors, ids: np.ndarray, counts: np.ndarray, config: Word2VecConfig, boundary: int | None = None
) -> float:
    """Mean loss on a text, each window at its widest, and with all noise words at once instead of drawn ones.

    The K noise words of a prediction enter as what they are on average, K times the sum over the vocabulary of
    p(v) softplus(score of v). Nothing is random, so two models can be compared by it.

    Args:
        vectors: any.
        ids: (N,) of a text, best one that the vectors were not trained on.
        counts: (V,) of the training text, for the noise.
        config: `architecture`, `window`, `n_negatives` and `noise_power` are used.
        boundary: as in `train_word2vec`.

    Returns:
        Nats for each word predicted.

    Raises:
        DataError: if no two words of the text are neighbours.
    """
    contexts, allowed = context_windows(ids, np.full(len(ids), config.window), boundary)
    rows, columns = np.nonzero(allowed)
    if len(rows) == 0:
        raise DataError("no two words of the held-out text are neighbours; give a longer one")
    noise = counts**config.noise_power / (counts**config.noise_power).sum()
    if config.architecture == "skip-gram":
        places, hidden = rows, vectors.inputs[ids]
        targets = contexts[rows, columns]
    else:
        places = np.flatnonzero(allowed.any(axis=1))
        shares = allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        hidden = np.einsum("nw,nwc->nc", shares, vectors.inputs[contexts])
        targets = ids[places]
    expected = np.array([noise @ softplus(vectors.outputs @ one) for one in hidden])  # (N,)
    scores = np.einsum("pc,pc->p", hidden[places], vectors.outputs[targets])
    return float((softplus(-scores) + config.n_negatives * expected[places]).mean())


def plain_steps(
    vectors: WordVectors,
    ids: np.ndarray,
    windows: tuple[np.ndarray, np.ndarray],
    learning_rates: np.ndarray,
    counts: np.ndarray,
    config: Word2VecConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[int, float, int]]:
    """Stochastic gradient descent as it is written down: one prediction, one step, each with noise words of its own.

    Args:
        vectors: changed in place.
        ids: (N,) words of the text.
        windows: contexts and allowed, both (N, 2W); see `context_windows`.
        learning_rates: (N,), one for each place.
        counts: (V,), from which the noise words are drawn.
        config: `architecture`, `n_negatives` and `noise_power` are used.
        rng: draws the noise words.

    Yields:
        For each place of the text: how many places are done (1), the loss in nats, how many words were predicted.
    """
    skip_gram = config.architecture == "skip-gram"
    step, allowed = (skip_gram_steps if skip_gram else cbow_steps), windows[1]
    n_predicted = allowed.sum(axis=1) if skip_gram else allowed.any(axis=1).astype(int)  # (N,)
    noise = noise_words(counts, rng.random((n_predicted.sum(), config.n_negatives)), config.noise_power)
    places = zip(ids, *windows, learning_rates, np.split(noise, np.cumsum(n_predicted)[:-1]), strict=True)
    for word, context, near, rate, negatives in places:
        rate = vectors.inputs.dtype.type(rate)
        loss = step(vectors, word, context[near], negatives, rate) if len(negatives) else 0.0
        yield 1, loss, len(negatives)


def skip_gram_steps(
    vectors: WordVectors, word: int, near: np.ndarray, noise: np.ndarray, learning_rate: float
) -> float:
    """One step for each word in the window: the word in the middle predicts it.

    Args:
        vectors: changed in place.
        word: id in the middle.
        near: (n,) ids around it.
        noise: (n, K) ids drawn as noise.
        learning_rate: how far to go.

    Returns:
        The sum of the n losses in nats.
    """
    total = 0.0
    for context, negatives in zip(near, noise, strict=True):
        hidden, target, wrong = vectors.inputs[[word]], vectors.outputs[[context]], vectors.outputs[negatives][None]
        losses, d_hidden, d_target, d_negatives = negative_sampling(hidden, target, wrong)
        vectors.inputs[word] -= learning_rate * d_hidden[0]
        vectors.outputs[context] -= learning_rate * d_target[0]
        np.subtract.at(vectors.outputs, negatives, learning_rate * d_negatives[0])  # the same word may come twice
        total += float(losses[0])
    return total


def cbow_steps(
    vectors: WordVectors, word: int, near: np.ndarray, noise: np.ndarray, learning_rate: float
) -> float:
    """One step: the mean of the words around predicts the word in the middle; arguments as of `skip_gram_steps`."""
    contexts, target, wrong = vectors.inputs[near][None], vectors.outputs[[word]], vectors.outputs[noise]
    losses, d_contexts, d_target, d_negatives = cbow_gradients(contexts, np.ones((1, len(near)), bool), target, wrong)
    np.subtract.at(vectors.inputs, near, learning_rate * d_contexts[0])
    vectors.outputs[word] -= learning_rate * d_target[0]
    np.subtract.at(vectors.outputs, noise[0], learning_rate * d_negatives[0])
    return float(losses[0])


def add_rows(table: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
    """Add each row to the table's row of its id; rows of the same id are summed first, all of them count.

    `table[ids] += rows` would keep only one of them. A matrix of zeros and ones gives all places of an id the same sum,
    so that it does not matter which of them is written last.

    Args:
        table: (V, C), changed in place.
        ids: (n,) integers, a few hundred at most: the matrix is (n, n).
        rows: (n, C).

    Example:
        >>> table = np.zeros((3, 1))
        >>> add_rows(table, np.array([2, 0, 2]), np.array([[1.0], [5.0], [10.0]]))
        >>> table.ravel().tolist()
        [5.0, 0.0, 11.0]
    """
    same = (ids[:, None] == ids).astype(rows.dtype)
    table[ids] += same @ rows


def block_steps(
    vectors: WordVectors,
    ids: np.ndarray,
    windows: tuple[np.ndarray, np.ndarray],
    learning_rates: np.ndarray,
    counts: np.ndarray,
    config: Word2VecConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[int, float, int]]:
    """The work of `plain_steps`, a block of `n_block` places at a time; arguments and what it yields are the same."""
    allowed, n_block = windows[1], config.n_block
    widest = allowed.shape[1] // 2
    padded = np.pad(ids, widest)                                        # (N + 2*W,)
    n_blocks = math.ceil(len(ids) / n_block)
    noise = noise_words(counts, rng.random((n_blocks, config.n_shared)), config.noise_power)  # (n_blocks, M)
    for block, negatives in enumerate(noise):
        place = slice(block * n_block, (block + 1) * n_block)
        near = window_matrix(allowed[place])                            # (B, T)
        stretch = padded[place.start : place.start + near.shape[1]]
        rate = learning_rates[place].mean()
        step = skip_gram_block if config.architecture == "skip-gram" else cbow_block
        loss, n_predicted = step(vectors, stretch, near, negatives, config.n_negatives, vectors.inputs.dtype.type(rate))
        yield len(near), loss, n_predicted


def window_matrix(allowed: np.ndarray) -> np.ndarray:
    """Which words of a stretch are in the window of which place.

    Args:
        allowed: (B, 2W) bool, of B consecutive places: which of their neighbours count, from left to right.

    Returns:
        (B, B + 2W) bool: row b is the place that stands at b + W in the stretch.

    Example:
        >>> window_matrix(np.array([[False, True], [True, False]])).astype(int).tolist()
        [[0, 0, 1, 0], [0, 1, 0, 0]]
    """
    n_places, widest = len(allowed), allowed.shape[1] // 2
    steps = np.concatenate([np.arange(widest), np.arange(widest + 1, 2 * widest + 1)])
    near = np.zeros((n_places, n_places + 2 * widest), bool)
    near[np.arange(n_places)[:, None], np.arange(n_places)[:, None] + steps] = allowed
    return near


def skip_gram_block(
    vectors: WordVectors, stretch: np.ndarray, near: np.ndarray, noise: np.ndarray, n_negatives: int, rate: float
) -> tuple[float, int]:
    """One step for a block: every word in the middle predicts all words of its window.

    Args:
        vectors: changed in place.
        stretch: (T,) ids.
        near: (B, T) bool; see `window_matrix`.
        noise: (M,) ids.
        n_negatives: K.
        rate: learning rate.

    Returns:
        The summed loss in nats and how many words were predicted.
    """
    centres = stretch[middle(near)]                                     # (B,)
    hidden, rows, negatives = vectors.inputs[centres], vectors.outputs[stretch], vectors.outputs[noise]
    loss, d_hidden, d_rows, d_negatives = shared_negative_sampling(hidden, rows, near, negatives, n_negatives)
    add_rows(vectors.inputs, centres, -rate * d_hidden)
    add_rows(vectors.outputs, np.concatenate([stretch, noise]), -rate * np.concatenate([d_rows, d_negatives]))
    return loss, int(near.sum())


def cbow_block(
    vectors: WordVectors, stretch: np.ndarray, near: np.ndarray, noise: np.ndarray, n_negatives: int, rate: float
) -> tuple[float, int]:
    """One step for a block: the mean of each window predicts the word in its middle; as `skip_gram_block`."""
    centres, n_near = stretch[middle(near)], near.sum(axis=1, keepdims=True)
    shares = (near / np.maximum(n_near, 1)).astype(vectors.inputs.dtype)  # (B, T)
    own = (np.arange(len(near))[:, None] == np.arange(len(near))) & (n_near > 0)  # (B, B)
    rows, negatives = vectors.outputs[centres], vectors.outputs[noise]
    hidden = shares @ vectors.inputs[stretch]                           # (B, C)
    loss, d_hidden, d_rows, d_negatives = shared_negative_sampling(hidden, rows, own, negatives, n_negatives)
    add_rows(vectors.inputs, stretch, -rate * (shares.T @ d_hidden))
    add_rows(vectors.outputs, np.concatenate([centres, noise]), -rate * np.concatenate([d_rows, d_negatives]))
    return loss, int(own.sum())


def middle(near: np.ndarray) -> slice:
    """Where the places of a block stand in its stretch."""
    widest = (near.shape[1] - near.shape[0]) // 2
    return slice(widest, widest + near.shape[0])
