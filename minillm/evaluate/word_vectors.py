"""What vectors of words know: neighbours, analogies, whether words of a kind lie together, and a flat picture of them.

Dimensions: V words, C width of a vector, Q questions.
"""

import numpy as np

from minillm.errors import DataError
from minillm.shapes import check_shape


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each vector divided by its length, so that a product of two is the cosine of their angle; zero stays zero.

    Args:
        vectors: (V, C).

    Returns:
        (V, C) float64.

    Example:
        >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    vectors = np.asarray(vectors, float)                                # (V, C)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)            # (V, 1)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def neighbours(
    vectors: np.ndarray, query: np.ndarray, n: int, exclude: tuple[int, ...] = ()
) -> list[tuple[int, float]]:
    """The words whose vectors point most nearly where a query points.

    Args:
        vectors: (V, C).
        query: (C,), for instance the vector of one of the words.
        n: how many.
        exclude: ids that are not wanted, as a rule the word itself.

    Returns:
        Up to n pairs of id and cosine, the greatest cosine first, of equal ones the smaller id.

    Raises:
        ShapeError: if the shapes do not fit.

    Example:
        >>> neighbours(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]), np.array([1.0, 0.0]), 1, exclude=(0,))
        [(1, 0.6)]
    """
    sizes: dict[str, int] = {}
    check_shape("vectors", vectors, "V C", sizes)
    check_shape("query", query, "C", sizes)
    cosines = unit_rows(vectors) @ unit_rows(query[None])[0]            # (V,)
    ranked = [int(place) for place in np.argsort(-cosines, kind="stable") if place not in exclude]
    return [(place, float(cosines[place])) for place in ranked[:n]]


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
    check_shape("questions", questions, "Q 3", {})
    check_shape("vectors", vectors, "V C", {})
    if len(vectors) < 4:
        raise DataError(f"an analogy needs at least four words; there are {len(vectors)}")
    unit = unit_rows(vectors)                                           # (V, C)
    a, b, c = unit[questions.T]
    scores = (b - a + c) @ unit.T                                       # (Q, V), cosines times the length of b - a + c
    if exclude:
        np.put_along_axis(scores, questions, -np.inf, axis=1)
    return scores.argmax(axis=1)


def neighbour_purity(vectors: np.ndarray, kinds: np.ndarray, n: int = 1) -> float:
    """How often a word's nearest neighbours are of its own kind.

    Args:
        vectors: (V, C).
        kinds: (V,) integers: the kind of each word, or -1 for words that are left out altogether.
        n: neighbours to look at.

    Returns:
        Mean over the words, and over the n nearest of the other words, of 1 for the same kind and 0 for another.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if there are not more than n words with a kind.

    Example:
        >>> neighbour_purity(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([0, 0, 1]))
        0.6666666666666666
    """
    sizes: dict[str, int] = {}
    check_shape("vectors", vectors, "V C", sizes)
    check_shape("kinds", kinds, "V", sizes)
    known = np.flatnonzero(kinds >= 0)
    if len(known) <= n:
        raise DataError(f"{len(known)} words have a kind; expected more than n = {n}")
    unit, kinds = unit_rows(vectors[known]), kinds[known]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :n]
    return float((kinds[nearest] == kinds[:, None]).mean())


def principal_components(vectors: np.ndarray, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the n directions in which the vectors differ most: their flattest honest picture.

    Args:
        vectors: (V, C), at least two.
        n: directions, at most the smaller of V and C.

    Returns:
        (V, n) coordinates around the mean, and (n,) the share of the variance that each direction has. The sign of a
        direction means nothing; here the coordinate farthest from 0 is positive.

    Raises:
        DataError: if there are fewer than two vectors or n is out of range.

    Source:
        Pearson 1901, "On lines and planes of closest fit"; by singular value decomposition.

    Example:
        >>> places, shares = principal_components(np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]]), 1)
        >>> places.ravel().round(3).tolist(), shares.round(3).tolist()
        ([-3.0, -1.0, 4.0], [1.0])
    """
    vectors = np.asarray(vectors, float)
    if len(vectors) < 2 or not 1 <= n <= min(vectors.shape):
        shape = " x ".join(map(str, vectors.shape))
        raise DataError(f"n is {n} for vectors of {shape}; expected two vectors, and n from 1 to the smaller number")
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    places = left[:, :n] * sizes[:n]                                    # (V, n)
    farthest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
    return places * np.where(farthest < 0, -1.0, 1.0), sizes[:n] ** 2 / max(np.sum(sizes**2), np.finfo(float).tiny)
