"""How well a model does each of several tasks while it learns one after another: what is learned and what forgotten.

Dimensions: K tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minillm.errors import ConfigError, DataError


@dataclass(frozen=True)
class TaskScores:
    """Scores of all tasks after each stage of learning; row 0 is the model before the first.

    Args:
        tasks: K names, in the order in which they are learned.
        rows: K + 1 rows of K scores; row i is measured after tasks 1 to i.
        larger_is_better: True for accuracies, False for losses; all measures below are in the unit of the scores, and
            positive numbers of `forgetting` are bad in both cases.

    Raises:
        DataError: if the rows do not fit the tasks.

    Example:
        >>> scores = TaskScores(("old", "new"), ((0.5, 0.5), (0.9, 0.6), (0.7, 0.8)))
        >>> [round(number, 3) for number in (scores.average(), scores.forgetting(), scores.backward_transfer())]
        [0.75, 0.2, -0.2]
    """

    tasks: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    larger_is_better: bool = True

    def __post_init__(self):
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "rows", tuple(tuple(map(float, row)) for row in self.rows))
        sizes = {len(row) for row in self.rows}
        if not self.tasks or len(self.rows) != len(self.tasks) + 1 or sizes != {len(self.tasks)}:
            raise DataError(
                f"{len(self.rows)} rows with {sorted(sizes)} scores for {len(self.tasks)} tasks: expected one row "
                "before the first task and one after each, of a score for every task"
            )

    @property
    def sign(self) -> float:
        """1 if larger scores are better, else -1."""
        return 1.0 if self.larger_is_better else -1.0

    def average(self) -> float:
        """Mean score over all tasks at the end."""
        return sum(self.rows[-1]) / len(self.tasks)

    def forgotten(self) -> dict[str, float]:
        """For each task but the last, how far its score at the end is behind the best since it was learned.

        Source:
            Chaudhry et al. 2018, arXiv:1801.10112, section 3; there the best may also lie before the task was learned,
            and does not include the end itself, so that theirs may be negative.
        """
        behind = {}
        for number, task in enumerate(self.tasks[:-1]):
            since = [self.sign * row[number] for row in self.rows[number + 1 :]]
            behind[task] = max(since) - since[-1]
        return behind

    def forgetting(self) -> float:
        """Mean of `forgotten`; 0 or more, and 0 for a single task."""
        behind = self.forgotten().values()
        return sum(behind) / max(1, len(behind))

    def backward_transfer(self) -> float:
        """Mean change of a task's score from when it was learned to the end; negative where tasks were forgotten.

        Source:
            Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 3.
        """
        changes = [self.sign * (self.rows[-1][k] - self.rows[k + 1][k]) for k in range(len(self.tasks) - 1)]
        return sum(changes) / max(1, len(changes))

    def forward_transfer(self) -> float:
        """Mean gain of a task's score from the tasks before it, measured just before it is learned itself.

        Source:
            Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 4; their baseline is a random model, ours row 0.
        """
        gains = [self.sign * (self.rows[k][k] - self.rows[0][k]) for k in range(1, len(self.tasks))]
        return sum(gains) / max(1, len(gains))


def learn_in_turn(
    train: Mapping[str, Callable[[], object]],
    score: Callable[[str], float],
    larger_is_better: bool = True,
) -> TaskScores:
    """Train one task after another, and after each ask for the score of every task.

    Args:
        train: task -> what trains it, in the order of learning.
        score: task -> its score now, on texts that no training has seen.
        larger_is_better: as in `TaskScores`.

    Returns:
        all scores, (K + 1) x K of them.

    Raises:
        ConfigError: if there is no task.
    """
    if not train:
        raise ConfigError("there is no task to learn; expected at least one")
    rows = [[score(task) for task in train]]
    for learn in train.values():
        learn()
        rows.append([score(task) for task in train])
    return TaskScores(tuple(train), tuple(map(tuple, rows)), larger_is_better)


def score_table(scores: TaskScores, digits: int = 3) -> str:
    """The scores as a table in Markdown, one line per stage.

    Example:
        >>> print(score_table(TaskScores(("a",), ((1.0,), (0.25,))), digits=2))
        | after | a |
        | --- | --- |
        | nothing | 1.00 |
        | a | 0.25 |
    """
    lines: list[Sequence[str]] = [("after", *scores.tasks), ("---",) * (len(scores.tasks) + 1)]
    for stage, row in zip(("nothing", *scores.tasks), scores.rows, strict=True):
        lines.append((stage, *(f"{score:.{digits}f}" for score in row)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
