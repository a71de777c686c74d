"""Several tasks in one stream of batches: how often each is drawn, and batches that hold examples of all of them.

Every task has the same form here, an input text and an output text, so one model and one loss serve for all.

Dimensions: B batch, T longest row.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from minillm.data.corrupted_batches import pair_batch
from minillm.errors import ConfigError, DataError

Pair = tuple[Sequence[int], Sequence[int]]


def mixing_rates(sizes: Mapping[str, int], limit: float = math.inf, temperature: float = 1.0) -> dict[str, float]:
    """How often each task is drawn: in proportion to min(its examples, limit)^(1 / temperature).

    Temperature 1 is in proportion to the examples, so that none is seen more often than another; infinity draws all
    tasks equally often. A limit keeps one very large task from drowning the others.

    Args:
        sizes: task -> number of its examples, at least 1.
        limit: a task with more examples counts as if it had so many; above 0.
        temperature: above 0; infinity is allowed.

    Returns:
        task -> rate, in the order of `sizes`; the rates sum to 1.

    Raises:
        ConfigError: if there is no task, or a number is out of range.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.5.2 (their K is our limit).

    Example:
        >>> mixing_rates({"translate": 300, "sort": 100})
        {'translate': 0.75, 'sort': 0.25}
        >>> mixing_rates({"translate": 900, "sort": 100}, temperature=2)
        {'translate': 0.75, 'sort': 0.25}
    """
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError(
            f"sizes {dict(sizes)}, limit {limit}, temperature {temperature}: expected at least one task, at least one "
            "example of each, and a limit and a temperature above 0"
        )
    counted = {task: min(size, limit) for task, size in sizes.items()}
    largest = max(counted.values())  # a ratio of at most 1 does not overflow, whatever the temperature
    weights = {task: (count / largest) ** (1 / temperature) for task, count in counted.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


class TaskMixture:
    """Batches whose rows are examples of several tasks, each row's task drawn anew: a pure function of seed and step.

    Args:
        tasks: task -> its examples, each a pair of ids to read and ids to write.
        rates: task -> how often a row is of it, as `mixing_rates` gives them; they sum to 1.
        batch_size: rows B.
        seed: with the step it decides everything; at least 0.
        pad_id: as `end_id` an argument of `pair_batch`.
        end_id: put behind every input and every output.

    Raises:
        ConfigError: if a number is out of range, or tasks and rates have different names.
        DataError: if a task has no example.

    Example:
        >>> tasks = {"copy": [([5], [5])], "double": [([5], [5, 5])]}
        >>> mixture = TaskMixture(tasks, {"copy": 0.0, "double": 1.0}, batch_size=1, seed=0, pad_id=0, end_id=1)
        >>> [rows.tolist() for rows in mixture.batch(0)]
        [[[5, 1, 0]], [[5, 5, 1]]]
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Pair]],
        rates: Mapping[str, float],
        batch_size: int,
        seed: int,
        pad_id: int,
        end_id: int,
    ):
        if batch_size < 1 or seed < 0:
            raise ConfigError(f"batch_size is {batch_size} and seed {seed}, expected at least 1 and at least 0")
        if tasks.keys() != rates.keys() or not math.isclose(math.fsum(rates.values()), 1) or min(rates.values()) < 0:
            raise ConfigError(f"rates are {dict(rates)}, expected one for each of {sorted(tasks)}, with sum 1")
        if empty := [task for task, examples in tasks.items() if not len(examples)]:
            raise DataError(f"the tasks {empty} have no example; leave them out or give them some")
        self.tasks, self.names, self.batch_size, self.seed = tasks, list(tasks), batch_size, seed
        self.shares = np.array([rates[name] for name in self.names])
        self.pad_id, self.end_id = pad_id, end_id

    def drawn(self, step: int) -> list[tuple[str, int]]:
        """For each row of batch number `step` the task and the number of its example.

        Raises:
            DataError: if the step is negative.
        """
        if step < 0:
            raise DataError(f"step must be at least 0, not {step}")
        generator = np.random.default_rng([self.seed, step])
        numbers = generator.choice(len(self.names), self.batch_size, p=self.shares / self.shares.sum())
        names = [self.names[number] for number in numbers]
        return [(name, int(generator.integers(len(self.tasks[name])))) for name in names]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`.

        Args:
            step: counted from 0.

        Returns:
            inputs (B, T) filled up with the padding id, and targets (B, T) filled up with `NOT_COUNTED`, int64.

        Raises:
            DataError: if the step is negative, or a text contains the padding id.
        """
        return pair_batch([self.tasks[name][number] for name, number in self.drawn(step)], self.pad_id, self.end_id)
