"""From windows of text to batches of a denoising objective: pure functions of seed and step, like the windows.

Dimensions: B batch, T longest row.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from minillm.data.batches import NOT_COUNTED
from minillm.errors import ConfigError, DataError

Corrupt = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Windows(Protocol):
    """What gives rows of ids: `SequentialBatches`, `RandomWindows`, `DocumentBatches`."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]: ...


class CorruptedBatches:
    """Batches whose every row is a corrupted text and what is to be said about it.

    With `n_versions=0` a row is corrupted anew each time it is seen (RoBERTa's dynamic masking). With `n_versions=k`
    the same row of text is corrupted in the same k ways again and again, one way per epoch (BERT's static masking had
    10).

    Args:
        windows: its inputs are the texts, without those whose target is `NOT_COUNTED` (padding).
        corrupt: (ids of one row, generator) -> inputs and targets of that row, such as
            `lambda ids, generator: mask_tokens(ids, config, generator)`; they may differ in length.
        seed: with step and row, or version and text, it decides the corruption; at least 0.
        pad_id: fills the inputs; targets are filled with `NOT_COUNTED`. It must stand in no text.
        n_versions: 0, or how many versions of each text there are; then `windows` must know `batches_per_epoch`.

    Raises:
        ConfigError: if a number is out of range, or the windows have no epochs.

    Source:
        Liu et al. 2019, arXiv:1907.11692, section 4.1 (static and dynamic masking).
    """

    def __init__(self, windows: Windows, corrupt: Corrupt, seed: int, pad_id: int, n_versions: int = 0):
        if seed < 0 or n_versions < 0:
            raise ConfigError(f"seed is {seed} and n_versions {n_versions}, expected 0 or more")
        if n_versions and not hasattr(windows, "batches_per_epoch"):
            raise ConfigError(f"{type(windows).__name__} has no epochs, so no version per epoch; use n_versions=0")
        self.windows, self.corrupt, self.seed, self.pad_id, self.n_versions = windows, corrupt, seed, pad_id, n_versions

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`.

        Args:
            step: counted from 0.

        Returns:
            inputs (B, T) filled up with `pad_id`, and targets (B, T) filled up with `NOT_COUNTED`, int64.

        Raises:
            DataError: if the step is negative, or a text contains the padding id.
        """
        rows = [row[wanted != NOT_COUNTED] for row, wanted in zip(*self.windows.batch(step), strict=True)]
        pairs = [self.corrupt(row, self._generator(step, number, row)) for number, row in enumerate(rows)]
        return pair_batch(pairs, self.pad_id)

    def _generator(self, step: int, number: int, row: np.ndarray) -> np.random.Generator:
        if not self.n_versions:
            return np.random.default_rng([self.seed, step, number])
        version = step // self.windows.batches_per_epoch % self.n_versions
        return np.random.default_rng([self.seed, version, zlib.crc32(np.ascontiguousarray(row).tobytes())])


def pair_batch(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int, end_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Put (input, target) rows of unequal lengths into two arrays of one shape, as the training loop wants them.

    Args:
        pairs: B pairs of one-dimensional ids; targets may contain `NOT_COUNTED`.
        pad_id: fills the inputs; a model's mask is `inputs != pad_id`.
        end_id: put behind every input and every target; None puts nothing.

    Returns:
        inputs (B, T) filled up with `pad_id`, and targets (B, T) filled up with `NOT_COUNTED`, int64; T is the length
        of the longest row of either.

    Raises:
        DataError: if there is no pair, or an input contains the padding id.

    Example:
        >>> inputs, targets = pair_batch([([5, 6], [7]), ([5], [8, 9])], pad_id=0, end_id=1)
        >>> inputs.tolist(), targets.tolist()
        ([[5, 6, 1], [5, 1, 0]], [[7, 1, -100], [8, 9, 1]])
    """
    if not pairs:
        raise DataError("there is no pair to make a batch of; expected at least one")
    end = [] if end_id is None else [end_id]
    sources = [np.concatenate((source, end)).astype(np.int64) for source, _ in pairs]
    targets = [np.concatenate((target, end)).astype(np.int64) for _, target in pairs]
    if any((source == pad_id).any() for source in sources):
        raise DataError(f"an input contains the padding id {pad_id}; choose an id that no text has")
    n_positions = max(map(len, sources + targets))
    return pad_rows(sources, pad_id, n_positions), pad_rows(targets, NOT_COUNTED, n_positions)


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray], fill: int, n_positions: int = 0) -> np.ndarray:
    """Rows of unequal lengths as one array, filled up on the right.

    Args:
        rows: B sequences of ids.
        fill: what stands behind the end of a row.
        n_positions: length T of all rows; 0 means that of the longest.

    Returns:
        (B, T) int64.

    Raises:
        DataError: if a row is longer than `n_positions`.

    Example:
        >>> pad_rows([[1, 2, 3], [4]], fill=0).tolist()
        [[1, 2, 3], [4, 0, 0]]
    """
    longest = max(map(len, rows), default=0)
    if n_positions and longest > n_positions:
        raise DataError(f"a row has {longest} ids, more than the {n_positions} there is room for; shorten it")
    padded = np.full((len(rows), n_positions or longest), fill, np.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return padded
