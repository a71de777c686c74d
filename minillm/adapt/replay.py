"""Replay: beside the rows of a new task, every batch holds a few rows of the old ones.

Dimensions: B rows of a batch, T length of a row, N rows kept.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from minillm.errors import ConfigError, DataError, ShapeError

Item = TypeVar("Item")
Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]


def reservoir(n_seen: int, n_kept: int, seed: int) -> list[int]:
    """Which items a memory of fixed size holds after a stream: each item of the stream is in it equally likely.

    Item number i (from 0) takes the place of a random one while it passes, with chance n_kept / (i + 1); so the length
    of the stream need not be known before, and what has passed is never asked for again.

    Args:
        n_seen: length of the stream so far; none if it is 0.
        n_kept: places of the memory, at least 1.
        seed: decides the choice; a longer stream of the same seed begins like a shorter one.

    Returns:
        numbers of the items in the memory's places, min(n_seen, n_kept) of them.

    Raises:
        ConfigError: if a number is out of range.

    Source:
        Vitter 1985, ACM Transactions on Mathematical Software 11(1), algorithm R.

    Example:
        >>> reservoir(3, 5, seed=0)
        [0, 1, 2]
    """
    check_memory(n_kept, seed)
    return keep(range(n_seen), n_kept, np.random.default_rng(seed))


def keep(stream: Iterable[Item], n_kept: int, generator: np.random.Generator) -> list[Item]:
    """Let a stream pass a memory of `n_kept` places; see `reservoir`."""
    kept: list[Item] = []
    for number, item in enumerate(stream):
        if number < n_kept:
            kept.append(item)
        elif (place := int(generator.integers(number + 1))) < n_kept:
            kept[place] = item
    return kept


def kept_rows(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], n_kept: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a stream of batches that a memory of fixed size holds in the end.

    Args:
        batches: of (inputs, targets), each (B, T), all with one T; B may differ.
        n_kept: places of the memory N, at least 1; no more rows are held at any time.
        seed: as in `reservoir`.

    Returns:
        inputs and targets, (N, T) each; fewer rows if the stream has fewer.

    Raises:
        ConfigError: if a number is out of range.
        DataError: if the stream has no row.
    """
    check_memory(n_kept, seed)
    rows = ((inputs, targets) for each in batches for inputs, targets in zip(*each, strict=True))
    kept = keep(rows, n_kept, np.random.default_rng(seed))
    if not kept:
        raise DataError("the stream has no row that could be kept")
    return np.stack([inputs for inputs, _ in kept]), np.stack([targets for _, targets in kept])


def check_memory(n_kept: int, seed: int) -> None:
    """Refuse a memory without places.

    Raises:
        ConfigError: for that, or a negative seed.
    """
    if n_kept < 1 or seed < 0:
        raise ConfigError(f"n_kept {n_kept}, seed {seed}: expected at least 1, and 0 or more")


class ReplayBatches:
    """Batches of a new task with rows of old ones behind them: a pure function of seed and step.

    The new task's rows all stay, so that it is learned as without replay; the batch only grows.

    Args:
        new: step -> (inputs, targets), (B, T) each.
        memory: (inputs, targets), (N, T) each, as `kept_rows` gives them.
        n_replayed: old rows in each batch, from 1 to N; within a batch none comes twice.
        seed: with the step it decides which; at least 0.

    Raises:
        ConfigError: if a number is out of range.

    Source:
        Rolnick et al. 2018, arXiv:1811.11682; before it Robins 1995, Connection Science 7(2).

    Example:
        >>> new = lambda step: (np.full((2, 1), step), np.full((2, 1), step))
        >>> memory = (np.array([[7]]), np.array([[8]]))
        >>> [rows.ravel().tolist() for rows in ReplayBatches(new, memory, 1, seed=0)(5)]
        [[5, 5, 7], [5, 5, 8]]
    """

    def __init__(self, new: Batches, memory: tuple[np.ndarray, np.ndarray], n_replayed: int, seed: int):
        inputs, targets = memory
        if inputs.shape != targets.shape or inputs.ndim != 2:
            raise ShapeError(f"memory has shapes {inputs.shape} and {targets.shape}, expected (N, T) both")
        if not 1 <= n_replayed <= len(inputs) or seed < 0:
            raise ConfigError(f"n_replayed {n_replayed}, seed {seed}: expected 1 to {len(inputs)}, and 0 or more")
        self.new, self.memory, self.n_replayed, self.seed = new, memory, n_replayed, seed

    def drawn(self, step: int) -> np.ndarray:
        """Numbers of the memory's rows in batch number `step`: (n_replayed,).

        Raises:
            DataError: if the step is negative.
        """
        if step < 0:
            raise DataError(f"step must be at least 0, not {step}")
        generator = np.random.default_rng([self.seed, step])
        return generator.choice(len(self.memory[0]), self.n_replayed, replace=False)

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`: inputs and targets, (B + n_replayed, T) each.

        Raises:
            DataError: if the step is negative.
            ShapeError: if new rows have another length than old ones.
        """
        numbers, new = self.drawn(step), self.new(step)
        if new[0].shape[1:] != self.memory[0].shape[1:]:
            raise ShapeError(
                f"rows of the new task have length {new[0].shape[1:]}, kept rows {self.memory[0].shape[1:]}; cut or "
                "fill up both to one length"
            )
        inputs, targets = (np.concatenate((part, kept[numbers])) for part, kept in zip(new, self.memory, strict=True))
        return inputs, targets
