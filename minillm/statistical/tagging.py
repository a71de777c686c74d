"""Tagging, and how well it went: a lookup tagger to compare with, and states without names against true tags.

Dimensions: N ids of a text, V vocabulary, K states, C tags.
"""

from collections.abc import Sequence

import numpy as np

from minillm.errors import DataError
from minillm.statistical.counts import checked_ids


def lookup_tags(token_ids: Sequence[int] | np.ndarray, tags: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """For each id the tag that it had most often in a tagged text, without a look at its neighbours.

    Args:
        token_ids: (N,) integers, at least one.
        tags: (N,) integers, at least 0.
        vocab_size: V.

    Returns:
        (V,) int64; of equally frequent tags the smallest number, and for an id that did not occur the text's most
        frequent tag.

    Raises:
        DataError: if the two have different lengths or are empty.

    Example:
        >>> lookup_tags([0, 0, 0, 2], [1, 1, 0, 0], vocab_size=3).tolist()
        [1, 0, 0]
    """
    table = crossed(checked_ids(token_ids, vocab_size), tags, vocab_size)                # (V, C)
    return np.where(table.any(axis=1), table.argmax(axis=1), table.sum(axis=0).argmax())


def many_to_one(states: Sequence[int] | np.ndarray, tags: Sequence[int] | np.ndarray) -> tuple[float, np.ndarray]:
    """How well nameless states tell tags apart, when each state is called by the tag that it meets most often.

    More states make this larger whatever they are: with a state for each word it is the accuracy of `lookup_tags` on
    the text itself. Compare equal numbers of states only.

    Args:
        states: (N,) integers, at least 0; N at least 1.
        tags: (N,) integers, at least 0.

    Returns:
        The share of places whose state is called by the true tag, and (K,) int64 the name of each state, K - 1 being
        the largest state that occurs; of equally frequent tags the smallest number.

    Raises:
        DataError: if the two have different lengths or are empty.

    Example:
        >>> accuracy, names = many_to_one([0, 0, 0, 1], [2, 2, 1, 1])
        >>> accuracy, names.tolist()
        (0.75, [2, 1])
    """
    states = np.asarray(states)
    table = crossed(states, tags, int(states.max(initial=0)) + 1)                        # (K, C)
    return float(table.max(axis=1).sum() / table.sum()), table.argmax(axis=1)


def crossed(rows: Sequence[int] | np.ndarray, columns: Sequence[int] | np.ndarray, n_rows: int) -> np.ndarray:
    """How often each row number stands together with each column number.

    Args:
        rows: (N,) integers 0 .. n_rows - 1; N at least 1.
        columns: (N,) integers, at least 0.

    Returns:
        (n_rows, C) int64, C - 1 being the largest column number.

    Raises:
        DataError: if the two have different lengths or are empty, or a number is negative.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    if rows.shape != columns.shape or rows.ndim != 1 or rows.size == 0:
        raise DataError(f"expected a tag for each place, at least one; given are shapes {rows.shape}, {columns.shape}")
    if rows.min() < 0 or columns.min() < 0:
        raise DataError("states and tags are numbers from 0 on; one of them is negative")
    n_columns = int(columns.max()) + 1
    return np.bincount(rows * n_columns + columns, minlength=n_rows * n_columns).reshape(n_rows, n_columns)
