"""From a text to what word vectors learn from: which words to keep, which stand near which, and which to draw as noise.

Dimensions: N ids of a text, V vocabulary, W largest reach of a window.
"""

import numpy as np

from minillm.errors import ConfigError, DataError


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
    if not threshold > 0:
        raise ConfigError(f"threshold must be above 0, not {threshold}; to keep every word, do not call this")
    if counts.sum() <= 0:
        raise DataError("no word occurs: every count is 0; expected the counts of a text")
    shares = counts / counts.sum()                                # (V,)
    return np.sqrt(threshold / np.maximum(shares, threshold))


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
    if counts.sum() <= 0:
        raise DataError("no word can be drawn: every count is 0; expected the counts of a text")
    ends = np.cumsum(counts**power)                                     # (V,)
    return np.searchsorted(ends, uniforms * ends[-1], side="right")


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
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError(f"there are {len(ids)} ids and {len(reaches)} reaches; expected as many, and at least one")
    widest = reaches.max()
    steps = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    places = np.arange(len(ids))[:, None] + steps                       # (N, 2*W)
    allowed = (places >= 0) & (places < len(ids)) & (np.abs(steps) <= reaches[:, None])
    places = np.where(allowed, places, 0)
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary  # (N,)
    document = np.cumsum(marks)                                         # (N,)
    allowed &= (document[places] == document[:, None]) & ~marks[places] & ~marks[:, None]
    return np.where(allowed, ids[places], 0), allowed


def window_pairs(
    ids: np.ndarray, reaches: np.ndarray, boundary: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Every word with every word that counts in its window: what skip-gram learns from; see `context_windows`.

    Returns:
        (n_pairs,) centres and (n_pairs,) contexts, in the order of the text.

    Example:
        >>> window_pairs(np.array([5, 6, 7]), np.array([1, 1, 2]))[1].tolist()
        [6, 5, 7, 5, 6]
    """
    contexts, allowed = context_windows(ids, reaches, boundary)
    places, columns = np.nonzero(allowed)
    return ids[places], contexts[places, columns]
