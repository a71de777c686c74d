"""Setting text aside for validation: whole documents where there are several, the end of a text where there is one."""

from collections.abc import Sequence

import numpy as np

from minillm.errors import ConfigError, DataError


def split_documents(
    documents: Sequence[str], validation_fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Put a random share of the documents aside. No document is cut, so nothing of one is seen on both sides.

    Args:
        documents: at least two.
        validation_fraction: share of the number of documents, between 0 and 1, both excluded; at least one
            document goes to each side.
        seed: chooses the documents; the same seed, fraction and number of documents choose the same places.

    Returns:
        (train, validation), each in the original order.

    Raises:
        ConfigError: if the fraction is out of range.
        DataError: if there are fewer than two documents.

    Example:
        >>> split_documents(["a", "b", "c", "d"], 0.25, seed=0)
        (['a', 'b', 'd'], ['c'])
    """
    _check_fraction(validation_fraction)
    n_documents = len(documents)
    if n_documents < 2:
        raise DataError(
            f"{n_documents} document(s) cannot be split into training and validation, at least 2 are needed; "
            "cut a single text with split_text"
        )
    n_validation = min(max(round(n_documents * validation_fraction), 1), n_documents - 1)
    chosen = set(np.random.default_rng(seed).permutation(n_documents)[:n_validation].tolist())
    train = [document for place, document in enumerate(documents) if place not in chosen]
    return train, [documents[place] for place in sorted(chosen)]


def split_text(text: str, validation_fraction: float) -> tuple[str, str]:
    """Cut one text in two: its beginning to train on, its end to validate on, cut behind a line end if possible.

    Args:
        text: at least two characters.
        validation_fraction: share of the characters, between 0 and 1, both excluded.

    Returns:
        (train, validation), both non-empty; joined they are the text.

    Raises:
        ConfigError: if the fraction is out of range.
        DataError: if the text has fewer than two characters.

    Example:
        >>> split_text("one\\ntwo\\nsix\\n", 0.5)
        ('one\\ntwo\\n', 'six\\n')
    """
    _check_fraction(validation_fraction)
    if len(text) < 2:
        raise DataError(f"a text of {len(text)} character(s) cannot be cut in two; give a longer one")
    cut = min(max(round(len(text) * (1 - validation_fraction)), 1), len(text) - 1)
    after_line = text.find("\n", cut - 1) + 1
    if 0 < after_line < len(text):
        cut = after_line
    return text[:cut], text[cut:]


def _check_fraction(validation_fraction: float) -> None:
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"validation_fraction must lie between 0 and 1, both excluded, not {validation_fraction}")
