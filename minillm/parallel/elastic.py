"""Data that does not care how many ranks there are: which rows belong to a step is decided by the step alone.

When a machine is lost and the run goes on with fewer, each rank takes more rows of the same global batch. The gradient
of the batch is the same up to the order of its sum, and so is the run.

Dimensions: P ranks, B rows of the global batch, T sequence length.
"""

from collections.abc import Callable

import numpy as np

from minillm.errors import ConfigError
from minillm.parallel.rings import part_bounds

Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]


def rows_of_rank(step: int, global_batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """Which rows of an endless stream a rank trains on at a step.

    Step s takes rows s B to (s + 1) B, whoever trains; the ranks take neighbouring parts of these that differ by one
    row at most, the first ranks the longer ones.

    Args:
        step: counted from 0 over the whole run, restarts included.
        global_batch: rows of all ranks together B, at least one for each rank.
        rank: of the data-parallel group.
        world_size: number of ranks P.

    Returns:
        (begin, end): the rank has rows begin to end - 1.

    Raises:
        ConfigError: if the step is negative, the rank is none of P, or there are fewer rows than ranks.

    Example:
        >>> [rows_of_rank(2, 8, rank, 3) for rank in range(3)]
        [(16, 19), (19, 22), (22, 24)]
        >>> [rows_of_rank(2, 8, rank, 2) for rank in range(2)]
        [(16, 20), (20, 24)]
    """
    if step < 0:
        raise ConfigError(f"step is {step}, expected 0 or more")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}, expected 0 to {world_size - 1}")
    if global_batch < world_size:
        raise ConfigError(f"{global_batch} rows for {world_size} ranks: expected a row for each; enlarge the batch")
    begin, end = part_bounds(global_batch, world_size)[rank]
    return step * global_batch + begin, step * global_batch + end


class ElasticBatches:
    """A rank's rows of global batches, for any number of ranks; to be used as `batches` of a training loop.

    Each rank reads the whole batch and keeps its part: with P ranks the text is read P times, which costs little beside
    training and makes every kind of batches elastic.

    Args:
        batches: step -> the global batch, inputs and targets (B, T), such as `SequentialBatches(...).batch`.
        rank: of the data-parallel group.
        world_size: number of ranks P.

    Example:
        >>> numbers = lambda step: (np.arange(4)[:, None] + 10 * step, np.arange(4)[:, None] + 10 * step + 1)
        >>> inputs, targets = ElasticBatches(numbers, rank=1, world_size=2)(3)
        >>> inputs.tolist(), targets.tolist()
        ([[32], [33]], [[33], [34]])
    """

    def __init__(self, batches: Batches, rank: int, world_size: int):
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of global batch number `step`: inputs and targets, each (its share of B, T).

        Raises:
            ConfigError: if the batch has fewer rows than there are ranks.
        """
        inputs, targets = self.batches(step)
        begin, end = rows_of_rank(0, len(inputs), self.rank, self.world_size)
        return inputs[begin:end], targets[begin:end]
