"""Chapter 05, Word vectors: fill in the holes (16 points).

`minillm course test 05` tests this file, `minillm course test 05 5.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import numpy as np

from minillm.errors import ConfigError, DataError
from minillm.evaluate.word_vectors import unit_rows
from minillm.models.word2vec import sigmoid, softplus
from minillm.shapes import check_shape


def keep_probabilities(counts: np.ndarray, threshold: float) -> np.ndarray:
    """How likely each word of a text is kept when frequent words are thinned out: min(1, sqrt(threshold / share)).

    "the" stands near everything and says little about it; of its many occurrences most can go. A word that makes up no
    more than `threshold` of the text is always kept.

    Args:
        counts: (V,) integers of at least 0, how often each id occurs; at least one occurs.
        threshold: the share of the text up to which a word is kept whole, above 0; 1e-5 for a billion words, 1e-3 for a
            million.

    Returns:
        (V,) float64 in (0, 1]; 1 for ids that do not occur.

    Raises:
        ConfigError: if the threshold is not above 0.
        DataError: if no id occurs.

    Source:
        Mikolov et al. 2013, arXiv:1310.4546, equation 5, which gives the probability of dropping, 1 - sqrt(t / f). The
        program word2vec.c, published with it, keeps with sqrt(t / f) + t / f instead, always a little more.

    Example:
        >>> keep_probabilities(np.array([90, 10, 0]), threshold=0.1).round(3).tolist()
        [0.333, 1.0, 1.0]
    """
    # TASK 5.1 (2 points)
    # Turn the counts into shares of the text first. Words that are rarer than the threshold would get more than
    # 1, and words that never occur would divide by 0: both are kept for certain.
    raise NotImplementedError("task 5.1")


def noise_words(counts: np.ndarray, uniforms: np.ndarray, power: float = 0.75) -> np.ndarray:
    """Words drawn at random with probabilities proportional to count^power, one for each uniform number.

    Lay the words side by side on a line, each as long as its count^power; each uniform number, stretched to the length
    of the whole line, falls on one word. A power between 0 and 1 lies between "every word alike" and "as in the text".

    Args:
        counts: (V,) integers of at least 0, at least one above 0.
        uniforms: numbers in [0, 1) of any shape.
        power: above 0; 1 draws words as often as the text has them.

    Returns:
        int64 ids of the shape of `uniforms`: 0 falls on the first word that occurs, a number just below 1 on the last,
        and one that is exactly on a border on the word behind it. An id of count 0 never comes.

    Raises:
        DataError: if no id occurs.

    Source:
        Mikolov et al. 2013, arXiv:1310.4546, section 2.2 (the power 3/4). word2vec.c writes the line out as a table of
        10^8 entries, which rounds each length; a search in the cumulative sums is exact.

    Example:
        >>> noise_words(np.array([16, 0, 1]), np.array([0.0, 0.88, 0.89, 0.999])).tolist()   # lengths 8, 0, 1
        [0, 0, 2, 2]
    """
    # TASK 5.2 (2 points)
    # The cumulative sums of count^power say where each word ends on the line. `np.searchsorted` finds the
    # interval in which a number falls; think about which side a number belongs to that lies exactly on a border.
    raise NotImplementedError("task 5.2")


def context_windows(
    ids: np.ndarray, reaches: np.ndarray, boundary: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each place of a text the words around it, W to the left and W to the right, and which of them count.

    A word counts if it is no farther away than the reach of the place, and no boundary stands between the two, on the
    place, or on the word. W is the largest reach.

    Args:
        ids: (N,) integers, at least one.
        reaches: (N,) integers of at least 0, how far each place looks. If they are drawn from 1 .. W, near words are
            seen more often than far ones.
        boundary: the id that parts documents (or sentences), or None.

    Returns:
        (N, 2W) int64 ids, from the leftmost neighbour to the rightmost, the place itself left out, and (N, 2W) bool,
        True where the neighbour counts. Where it does not, the id is 0.

    Raises:
        DataError: if the two lengths differ or there is no id.

    Example:
        >>> contexts, allowed = context_windows(np.array([5, 6, 7]), np.array([1, 1, 2]))
        >>> contexts.tolist()
        [[0, 0, 6, 0], [0, 5, 7, 0], [5, 6, 0, 0]]
        >>> allowed.sum(axis=1).tolist()
        [1, 2, 2]
    """
    # TASK 5.3 (3 points)
    # Add a row of steps, -W .. -1 and 1 .. W, to a column of places: that is where every neighbour stands. Decide
    # which of them count before you look anything up, and look up place 0 for the others. Number the documents by
    # a running count of the boundaries; two words are in one document if their numbers are the same and neither
    # is a boundary itself.
    raise NotImplementedError("task 5.3")


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
    # TASK 5.4 (4 points)
    # Do it first for a single score: -log sigmoid(s) has the derivative sigmoid(s) - 1, and -log sigmoid(-s) has
    # sigmoid(s). A score is a product of two vectors, so its derivative with respect to one of them is the other.
    # The vector that predicts is in all K + 1 scores, so its gradient is a sum.
    raise NotImplementedError("task 5.4")


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
    # TASK 5.5 (3 points)
    # Build the mean, let `negative_sampling` do what it did for skip-gram, and ask how much the mean moves when
    # one of its n words moves by 1. A window without a word must not divide by 0.
    raise NotImplementedError("task 5.5")


def analogies(vectors: np.ndarray, questions: np.ndarray, exclude: bool = True) -> np.ndarray:
    """Answer "a is to b as c is to ?" by going from c as one goes from a to b: the word nearest to b - a + c.

    All vectors are first divided by their lengths. The answer is the word whose vector has the greatest cosine with
    b - a + c; of equal ones the smallest id.

    Args:
        vectors: (V, C).
        questions: (Q, 3) ids a, b, c.
        exclude: True: a, b and c themselves are not allowed as answers. They lie so near that otherwise the answer is
            nearly always b or c.

    Returns:
        (Q,) int64 ids.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if there are fewer than four words, so that nothing may be left to answer with.

    Source:
        Mikolov, Yih and Zweig 2013, "Linguistic regularities in continuous space word representations"; Levy and
        Goldberg 2014, "Linguistic regularities in sparse and explicit word representations", call it 3CosAdd.

    Example:
        >>> vectors = np.array([[1.0, 0.1], [1.0, 1.0], [0.1, 1.0], [-1.0, 1.0]])
        >>> questions = np.array([[0, 1, 2]])
        >>> analogies(vectors, questions).tolist(), analogies(vectors, questions, exclude=False).tolist()
        ([3], [2])
    """
    # TASK 5.6 (2 points)
    # Divide by the lengths before you add and subtract, not only after. To forbid an answer give it a cosine that
    # nothing can be below.
    raise NotImplementedError("task 5.6")
