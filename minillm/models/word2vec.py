"""Word vectors by prediction: skip-gram and CBOW with negative sampling, gradients by hand, in NumPy.

Each word has two vectors: one for when it predicts (`inputs`, the word vectors that one keeps) and one for when it is
predicted (`outputs`). This file has the losses and their gradients, `word2vec_training` the steps along them.

Dimensions: B predictions, C width of a vector, K noise words of each, W words in a window, V vocabulary; T words and M
noise words of a block that shares them.

Source: Mikolov et al. 2013, arXiv:1301.3781 (skip-gram and CBOW) and arXiv:1310.4546 (negative sampling, subsampling).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from minillm.errors import ConfigError
from minillm.shapes import check_shape

ARCHITECTURES = ("skip-gram", "cbow")


@dataclass(frozen=True)
class Word2VecConfig:
    """What to learn and how.

    Args:
        vocab_size: V.
        d_model: width C of the vectors, at least 1.
        architecture: "skip-gram" (a word predicts each neighbour) or "cbow" (the mean of the neighbours predicts it).
        window: W, how far a window reaches at most; the reach of each place is drawn from 1 .. W.
        n_negatives: K, noise words for each word that is predicted.
        subsample: words that make up more than this share of the text are thinned out; 0 keeps all.
        noise_power: noise words are drawn in proportion to count^noise_power, above 0.
        learning_rate: at the start; it falls on a straight line to nothing.
        n_epochs: how often the text is gone through.
        n_block: places of the text that are computed at once, in blocks (the plain version has no blocks).
        n_shared: M, noise words that a block shares; with fewer than n_block each stands for many, and steps get rough.

    Raises:
        ConfigError: if a number is out of range or the architecture is unknown.
    """

    vocab_size: int
    d_model: int = 100
    architecture: str = "skip-gram"
    window: int = 5
    n_negatives: int = 5
    subsample: float = 1e-3
    noise_power: float = 0.75
    learning_rate: float = 0.025
    n_epochs: int = 5
    n_block: int = 32
    n_shared: int = 64

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {self.architecture!r}")
        for name in ("vocab_size", "d_model", "window", "n_negatives", "n_epochs", "n_block", "n_shared"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.noise_power > 0 and self.subsample >= 0):
            raise ConfigError(
                "learning_rate and noise_power must be above 0 and subsample at least 0, not "
                f"{self.learning_rate}, {self.noise_power} and {self.subsample}"
            )


@dataclass
class WordVectors:
    """What was learned; both tables are changed in place while they are trained.

    Attributes:
        inputs: (V, C), the vector of each word when it predicts.
        outputs: (V, C), the vector of each word when it is predicted.
        losses: mean loss in nats for each word predicted, one number for each time through the text.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    losses: list[float] = field(default_factory=list)

    @classmethod
    def random(cls, vocab_size: int, d_model: int, rng: np.random.Generator, dtype: np.dtype = np.float32) -> Self:
        """Inputs uniform in (-0.5, 0.5) / C, outputs 0, as in word2vec.c: at the start every score is 0."""
        inputs = (rng.random((vocab_size, d_model)) - 0.5) / d_model
        return cls(inputs.astype(dtype), np.zeros((vocab_size, d_model), dtype))


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-score)) of each score, without overflow at either end; of the same kind of number.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0, 1000.0])).tolist()
        [0.5, 0.0, 1.0]
    """
    return 0.5 * (1 + np.tanh(0.5 * scores))


def softplus(scores: np.ndarray) -> np.ndarray:
    """log(1 + exp(score)) = -log sigmoid(-score) of each score, without overflow; of the same kind of number.

    Example:
        >>> softplus(np.array([0.0, -1000.0, 1000.0])).round(4).tolist()
        [0.6931, 0.0, 1000.0]
    """
    return np.maximum(scores, 0) + np.log1p(np.exp(-np.abs(scores)))


def negative_sampling(
    hidden: np.ndarray, target: np.ndarray, negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loss and gradients of telling the word that was there from K words that were not.

        loss = -log sigmoid(hidden . target) - sum over k of log sigmoid(-hidden . negative_k)

    Every word is a question of its own, "is it the one?", and the derivative of the loss with respect to a score is
    what was answered minus what is right: sigmoid(score) - 1 for the target, sigmoid(score) for a negative.

    Args:
        hidden: (B, C), what predicts: of skip-gram the centre word's input vector.
        target: (B, C), output vectors of the words that were there.
        negatives: (B, K, C), output vectors of noise words.

    Returns:
        (B,) losses in nats, and the gradient of each with respect to `hidden` (B, C), `target` (B, C) and
        `negatives` (B, K, C); all in the precision of the vectors.

    Raises:
        ShapeError: if the shapes do not fit.

    Source:
        Mikolov et al. 2013, arXiv:1310.4546, equation 4 (there to be maximised); explained step by step in Goldberg and
        Levy 2014, arXiv:1402.3722.

    Example:
        >>> losses, d_hidden, d_target, d_negatives = negative_sampling(
        ...     np.array([[1.0, 2.0]]), np.array([[2.0, -1.0]]), np.array([[[4.0, -2.0]]]))
        >>> losses.round(4).tolist(), d_hidden.tolist(), d_target.tolist(), d_negatives.tolist()
        ([1.3863], [[1.0, -0.5]], [[-0.5, -1.0]], [[[0.5, 1.0]]])
    """
    sizes: dict[str, int] = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    target_scores = np.einsum("bc,bc->b", hidden, target)               # (B,)
    noise_scores = np.einsum("bc,bkc->bk", hidden, negatives)           # (B, K)
    losses = softplus(-target_scores) + softplus(noise_scores).sum(axis=1)  # (B,)
    target_errors = sigmoid(target_scores)[:, None] - 1                 # (B, 1)
    noise_errors = sigmoid(noise_scores)[:, :, None]                    # (B, K, 1)
    d_hidden = target_errors * target + (noise_errors * negatives).sum(axis=1)  # (B, C)
    return losses, d_hidden, target_errors * hidden, noise_errors * hidden[:, None, :]


def cbow_gradients(
    contexts: np.ndarray, allowed: np.ndarray, target: np.ndarray, negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loss and gradients where the mean of the words around predicts the word in the middle.

    Args:
        contexts: (B, W, C), input vectors of the words in each window.
        allowed: (B, W) bool, which of them count. Where none does, the mean is 0.
        target: (B, C), output vectors of the words in the middle.
        negatives: (B, K, C), output vectors of noise words.

    Returns:
        (B,) losses in nats, and the gradient of each with respect to `contexts` (B, W, C), `target` (B, C) and
        `negatives` (B, K, C), in the precision of the vectors. Of n words that count, each has an n-th of the mean's
        gradient; the others have 0.

    Raises:
        ShapeError: if the shapes do not fit.

    Source:
        Mikolov et al. 2013, arXiv:1301.3781, section 3.1. word2vec.c and programs after it give each word the whole
        gradient of the mean instead of its share: Irsoy et al. 2020, arXiv:2012.15332.

    Example:
        >>> contexts, allowed = np.array([[[1.0, 4.0], [1.0, 0.0], [9.0, 9.0]]]), np.array([[True, True, False]])
        >>> losses, d_contexts, d_target, d_negatives = cbow_gradients(
        ...     contexts, allowed, np.array([[2.0, -1.0]]), np.array([[[4.0, -2.0]]]))
        >>> losses.round(4).tolist(), d_contexts[0, :2].tolist(), d_contexts[0, 2].any()
        ([1.3863], [[0.5, -0.25], [0.5, -0.25]], np.False_)
    """
    sizes: dict[str, int] = {}
    check_shape("contexts", contexts, "B W C", sizes)
    check_shape("allowed", allowed, "B W", sizes)
    n_allowed = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    shares = (allowed / n_allowed).astype(contexts.dtype)[:, :, None]   # (B, W, 1)
    hidden = (shares * contexts).sum(axis=1)                            # (B, C)
    losses, d_hidden, d_target, d_negatives = negative_sampling(hidden, target, negatives)
    return losses, shares * d_hidden[:, None, :], d_target, d_negatives


def shared_negative_sampling(
    hidden: np.ndarray, rows: np.ndarray, positive: np.ndarray, negatives: np.ndarray, n_negatives: int
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Loss and gradients of a block whose predictions share their noise words.

        loss = sum over pairs of -log sigmoid(score) + sum over b, m of n_b K / M (-log sigmoid(-score)),

    n_b being how many words row b is to predict.

    Args:
        hidden: (B, C), what predicts.
        rows: (T, C), output vectors of the words of the stretch.
        positive: (B, T) bool, which of them row b is to predict.
        negatives: (M, C), output vectors of the noise words.
        n_negatives: K, how many noise words each prediction stands for.

    Returns:
        The summed loss in nats, and its gradients with respect to `hidden` (B, C), `rows` (T, C) and
        `negatives` (M, C).
    """
    weights = positive.sum(axis=1, keepdims=True).astype(hidden.dtype) * (n_negatives / len(negatives))  # (B, 1)
    scores, noise_scores = hidden @ rows.T, hidden @ negatives.T
    errors = np.where(positive, sigmoid(scores) - 1, 0)                 # (B, T)
    noise_errors = weights * sigmoid(noise_scores)                      # (B, M)
    loss = softplus(-scores[positive]).sum() + (weights * softplus(noise_scores)).sum()
    d_hidden = errors @ rows + noise_errors @ negatives                 # (B, C)
    return float(loss), d_hidden, errors.T @ hidden, noise_errors.T @ hidden
