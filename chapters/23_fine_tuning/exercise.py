"""Chapter 23, Fine-tuning: fill in the holes (15 points).

`minillm course test 23` tests this file, `minillm course test 23 23.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.continual import LABELS, Anchor, Answers, add_square, answers_of, check_same
from minillm.adapt.layer_order import depths, stacks
from minillm.adapt.replay import Item
from minillm.errors import ConfigError, DataError
from minillm.models.bert import Bert, bert_config
from minillm.models.bert_heads import TextClassifier
from minillm.models.gpt import GPT
from minillm.nn.embedding import Embedding
from minillm.nn.linear import Linear
from minillm.train.grouping import decay_groups
from minillm.train.hooks import Hook, StepReport
from minillm.train.loss import IGNORED


def layer_groups(
    model: nn.Module, learning_rate: float, decay: float = 1 / 2.6, weight_decay: float = 0.0
) -> list[dict]:
    """Groups for an optimizer in which each layer learns more slowly than the one above it.

    What is near the input is of use for every text, what is near the output for the old task: so the lower a layer, the
    less it should move. A parameter at depth d of L + 1 (see `depths`) has the rate learning_rate * decay^(L + 1 - d).

    Args:
        model: its trainable parameters are grouped.
        learning_rate: of what follows the last layer, such as a new head.
        decay: rate of a layer over that of the layer above it, above 0 and at most 1; 1 gives all the same rate.
        weight_decay: of matrices; vectors have none, as in `decay_groups`.

    Returns:
        groups from the top down, with "params" as (name, parameter) pairs, "lr" and "weight_decay". A schedule of the
        training loop that gives one factor multiplies all these rates.

    Raises:
        ConfigError: if a number is out of range.

    Source:
        Howard and Ruder 2018, arXiv:1801.06146, section 3.2; 2.6 there.

    Example:
        >>> model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2, False) for _ in range(2)])})
        >>> [(group["params"][0][0], group["lr"]) for group in layer_groups(model, 0.8, decay=0.5)]
        [('blocks.1.weight', 0.4), ('blocks.0.weight', 0.2)]
    """
    # TASK 23.1 (2 points)
    # `decay_groups` parts matrices from vectors and leaves out what is frozen; `depths` says where each parameter
    # stands. What is behind the last layer has depth L + 1 and the full rate; each step down multiplies by the
    # decay. No group may be empty, and the fastest comes first.
    raise NotImplementedError("task 23.1")


class GradualUnfreezing(Hook):
    """A listener of the training loop that lets one more depth of the model learn every few steps.

    A new head is random, and so are the gradients that it sends down at first. While only the head learns they do no
    harm; when the layers below join, they are told something sensible. At the end of the run the model is as before:
    everything that was trainable is.

    Args:
        model: what is trainable now takes part, in the order of `layer_order.depths`; make the optimizer first, since
            an optimizer made of a frozen model knows nothing of what is frozen.
        steps_per_depth: so many steps after one depth the next one joins, at least 1.

    Raises:
        ConfigError: if the number is below 1, or nothing is trainable.

    Source:
        Howard and Ruder 2018, arXiv:1801.06146, section 3.3; there a depth joins after each epoch.

    Example:
        >>> model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2, False) for _ in range(2)])})
        >>> unfreezing = GradualUnfreezing(model, steps_per_depth=10)
        >>> unfreezing.let_learn(step=9)
        >>> list(surgery.trainable(model))
        ['blocks.1.weight']
        >>> unfreezing.let_learn(step=10)
        >>> list(surgery.trainable(model))
        ['blocks.0.weight', 'blocks.1.weight']
    """

    def __init__(self, model: nn.Module, steps_per_depth: int):
        trained, depth = surgery.trainable(model), depths(model)
        if steps_per_depth < 1 or not trained:
            raise ConfigError(
                f"steps_per_depth {steps_per_depth}, {len(trained)} trainable parameters: expected at least 1 of both"
            )
        self.model, self.steps_per_depth = model, steps_per_depth
        self.depth = {name: depth[name] for name in trained}

    def let_learn(self, step: int) -> None:
        """Freeze what does not learn yet in this step, and nothing else of what takes part.

        At step 0 the highest depth that takes part learns, after every `steps_per_depth` steps the next lower one too,
        until all do. A frozen parameter has no gradient.

        Args:
            step: number of steps made before, 0 or more.
        """
        # TASK 23.2 (2 points)
        # `self.depth` has the depth of each parameter that takes part, by name. Sort the different depths from the
        # top; how many of them have joined after `step` steps? A depth at which nothing takes part must not cost a
        # pause.
        raise NotImplementedError("task 23.2")

    def on_start(self, step: int, n_steps: int, pending: Collection[str]) -> None:
        """Also of a run that is resumed: who learns depends on the step alone."""
        self.let_learn(step)

    def on_step(self, report: StepReport) -> None:
        """What the next step needs."""
        self.let_learn(report.step)

    def on_end(self) -> None:
        """Everything that took part is trainable again."""
        for name, parameter in self.model.named_parameters():
            if name in self.depth:
                parameter.requires_grad_(True)


def class_batch(texts: Sequence[Sequence[int]], classes: Sequence[int], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts and their classes as a batch of the training loop; the class stands at the text's last token.

    Args:
        texts: B lists of ids, none empty.
        classes: B numbers, 0 or more.
        pad_id: fills short rows on the right.

    Returns:
        inputs and targets, both (B, T) int64, T the length of the longest text.

    Raises:
        DataError: if there is no text, or an empty one, or not one class for each.

    Example:
        >>> inputs, targets = class_batch([[4, 5], [6]], [1, 0], pad_id=9)
        >>> inputs.tolist(), targets.tolist()
        ([[4, 5], [6, 9]], [[-100, 1], [0, -100]])
    """
    # TASK 23.3 (2 points)
    # The training loop wants inputs and targets of one shape, and counts every target that is not -100: so there
    # is one in each row. It stands where the model has read the whole text.
    raise NotImplementedError("task 23.3")


def fisher_diagonal(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter] | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    labels: str = "model",
    generator: torch.Generator | None = None,
    answers: Answers = answers_of,
) -> dict[str, Tensor]:
    """How much a model's answers depend on each parameter: the mean over examples of the expected squared score.

    The score is the gradient of log p(answer | input) of ONE example; a batch's gradient squared would be something
    else, since there the scores of different examples cancel. An example with several counted positions is one answer
    that has several parts.

    Args:
        model: put it into `eval` mode first, if it has dropout.
        parameters: name -> parameter whose entry is asked for, as `Adapted.trainable_parameters` gives them; None takes
            all of the model that are trainable.
        batches: of (inputs, targets), first dimension the examples. Only which targets count (not `IGNORED`) is used,
            unless labels is "data".
        labels: which answers the expectation is over: "all" possible ones with the model's own probabilities, exactly,
            one backward pass for each; "model" one answer drawn from them; "data" the targets themselves (the
            "empirical Fisher", which is another matrix: where the model fits perfectly it is 0).
        generator: draws the answers of "model"; None is torch's own default generator.
        answers: (model, inputs, targets) -> logits, of the targets' shape and one dimension K more.

    Returns:
        name -> of the parameter's shape, 0 or more.

    Raises:
        ConfigError: if labels is unknown, or a parameter does not require a gradient.
        DataError: if there is no example.

    Source:
        Kirkpatrick et al. 2017, arXiv:1612.00796, section 2.1; why "data" is not the same: Kunstner et al. 2019,
        arXiv:1905.12558.

    Example:
        >>> coin = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(coin.weight)  # two answers, equally likely: p (1 - p) x^2 = 1/4 * 9
        >>> example = (torch.tensor([[3.0]]), torch.tensor([0]))
        >>> fisher_diagonal(coin, dict(coin.named_parameters()), [example], "all")["weight"].tolist()
        [[2.25], [2.25]]
    """
    # TASK 23.4 (2 points)
    # One example at a time, since the scores of two examples cancel in a sum. `answers` gives the logits of one;
    # `add_squared_scores` adds what it is told to `sums`. Divide by the number of examples, not of batches.
    raise NotImplementedError("task 23.4")


def add_squared_scores(
    sums: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    log_shares: Tensor,
    targets: Tensor,
    labels: str,
    generator: torch.Generator | None,
) -> None:
    """Add one example's expected squared score.

    Positions are judged given the true text before them. So, under the model, their scores have mean 0 and do not
    correlate, and the square of their sum is expected to be the sum of their squares, which "all" adds.

    Args:
        sums: name -> changed in place.
        parameters: name -> parameter.
        log_shares: (1, T, K) or (1, K), with a graph.
        targets: (1, T) or (1,).
        labels: as in `fisher_diagonal`.
        generator: likewise.
    """
    # TASK 23.5 (3 points)
    # "all": one backward pass for each possible answer at each counted position, weighted with its probability,
    # which gets no gradient itself. "model" and "data": one answer per position, and the positions' log-
    # probabilities are added up before the square. `add_square` does the backward pass.
    raise NotImplementedError("task 23.5")


def elastic_penalty(parameters: Mapping[str, Tensor], anchors: Sequence[Anchor], strength: float) -> Tensor:
    """The energy of all springs: strength / 2 times the sum of importance * (parameter - anchor)^2.

    Args:
        parameters: name -> parameter.
        anchors: one for each task that is to be kept, with the same names; their energies add up.
        strength: lambda, how much the old tasks count beside the new one; 0 or more.

    Returns:
        a scalar, with a gradient.

    Raises:
        ConfigError: if there is no anchor, names or shapes differ, or the strength is negative.

    Source:
        Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3.

    Example:
        >>> anchor = Anchor({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([2.0, 0.0])})
        >>> elastic_penalty({"w": torch.tensor([4.0, 9.0])}, [anchor], strength=1.0)
        tensor(9.)
    """
    # TASK 23.6 (1 point)
    # `check_same` refuses what does not fit. One sum over all anchors and all names; what is stretched is
    # squared, and its importance is not.
    raise NotImplementedError("task 23.6")


def keep(stream: Iterable[Item], n_kept: int, generator: np.random.Generator) -> list[Item]:
    """Let a stream pass a memory of `n_kept` places; see `reservoir`."""
    # TASK 23.7 (2 points)
    # The first `n_kept` items are simply kept. Item number i (from 0) draws a place below i + 1; it is kept only
    # if the memory has such a place, and whoever was there leaves.
    raise NotImplementedError("task 23.7")


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
        # TASK 23.8 (1 point)
        # `rows[i]` is measured after i tasks, so task number k (from 0) has been learned in `rows[k + 1]`. Multiply
        # by `sign` first, then larger is better in every case.
        raise NotImplementedError("task 23.8")

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
