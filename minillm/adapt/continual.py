"""Elastic weight consolidation: while a model learns something new, springs hold the weights that the old task needs.

How stiff a spring is says the Fisher information: how much the model's answers on the old task change with that weight.

Dimensions: T positions of one example, K classes or tokens to choose from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.errors import ConfigError, DataError
from minillm.train.accumulation import LossSum
from minillm.train.loss import IGNORED, next_token_loss

LABELS = ("all", "model", "data")
Answers = Callable[[nn.Module, Tensor, Tensor], Tensor]


def answers_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Logits of a model that needs its inputs alone; for others give `fisher_diagonal` another function."""
    return model(inputs)


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
    if labels not in LABELS:
        raise ConfigError(f"labels is {labels!r}, expected one of {LABELS}")
    parameters = surgery.trainable(model) if parameters is None else parameters
    if fixed := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
        raise ConfigError(f"{fixed[0]} is frozen and has no gradient; give the trainable parameters alone")
    sums, n_examples = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    for inputs, targets in batches:
        for number in range(len(inputs)):
            one = slice(number, number + 1)
            log_shares = answers(model, inputs[one], targets[one]).log_softmax(-1)
            add_squared_scores(sums, parameters, log_shares, targets[one], labels, generator)
            n_examples += 1
    if not n_examples:
        raise DataError("there is no example to measure the Fisher information on")
    return {name: total / n_examples for name, total in sums.items()}


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
    counted = log_shares[targets != IGNORED]                       # (N, K)
    if labels == "all":
        for log_share in counted.flatten():
            add_square(sums, parameters, log_share, weight=log_share.detach().exp())
        return
    chosen = targets[targets != IGNORED]                           # (N,)
    if labels == "model":
        chosen = torch.multinomial(counted.detach().exp(), 1, generator=generator)[:, 0]  # (N,)
    add_square(sums, parameters, counted.gather(1, chosen[:, None]).sum())


def add_square(
    sums: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], value: Tensor, weight: Tensor | float = 1.0
) -> None:
    """Add weight times the squared gradient of `value`, whose graph is kept."""
    gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            sums[name].add_(weight * gradient.square())


@dataclass(frozen=True)
class Anchor:
    """Where parameters stood when a task had been learned, and how much it needs each of them.

    Attributes:
        values: name -> the numbers then.
        importance: name -> of the same shape, 0 or more; the Fisher information, or ones (then all springs are equal).
    """

    values: Mapping[str, Tensor]
    importance: Mapping[str, Tensor]


def anchor_at(parameters: Mapping[str, nn.Parameter], importance: Mapping[str, Tensor] | None = None) -> Anchor:
    """Remember where parameters are now.

    Args:
        parameters: name -> parameter.
        importance: as `fisher_diagonal` gives it for the same names; None makes every number equally important.

    Returns:
        the anchor, a copy.

    Raises:
        ConfigError: if names or shapes differ.
    """
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    if importance is None:
        importance = {name: torch.ones_like(value) for name, value in values.items()}
    check_same(values, importance)
    return Anchor(values, dict(importance))


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
    if not strength >= 0 or not anchors:
        raise ConfigError(f"strength {strength}, {len(anchors)} anchors: expected 0 or more, and at least one")
    energies = []
    for anchor in anchors:
        check_same(parameters, anchor.values)
        for name, parameter in parameters.items():
            stretched = parameter - anchor.values[name]
            energies.append((anchor.importance[name] * stretched.square()).sum())
    return strength / 2 * torch.stack(energies).sum()


def check_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Compare names and shapes.

    Raises:
        ConfigError: naming the first that differ.
    """
    wrong = sorted(first.keys() ^ second.keys())
    wrong += [name for name in first if name in second and first[name].shape != second[name].shape]
    if wrong:
        raise ConfigError(f"parameters and what is known of them differ in {wrong[0]}; take both from one model")


class ElasticLoss:
    """A `loss_sum` of the training loop: that of the new task plus, per counted target, the energy of the springs.

    The loop divides by the number of counted targets, so what is minimised is the mean loss plus the energy once.

    Args:
        parameters: name -> parameter that is being trained.
        anchors: as in `elastic_penalty`.
        strength: likewise.
        loss_sum: of the new task.

    Raises:
        ConfigError: as `elastic_penalty`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        anchors: Sequence[Anchor],
        strength: float,
        loss_sum: LossSum = next_token_loss,
    ):
        self.parameters, self.anchors = dict(parameters), tuple(anchors)
        self.strength, self.loss_sum = strength, loss_sum
        with torch.no_grad():
            elastic_penalty(self.parameters, self.anchors, strength)

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets; arguments as those of `next_token_loss`."""
        energy = elastic_penalty(self.parameters, self.anchors, self.strength)
        return self.loss_sum(model, inputs, targets) + (targets != IGNORED).sum() * energy
