"""Choice points: one telling of a story draws, scores or enumerates, depending only on who makes its choices.

Whatever tells a story calls `choose(name, options, weights)` at every free decision and goes on with the answer. A
*chooser* is such a function; this module has one that draws at random, one that follows given values, and a loop that
runs a telling once for every way its choices can fall. Because all three see the same options and weights, what is
drawn, what is scored and what is enumerated cannot disagree.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from minillm.errors import DataError

Value = str | int
Told = TypeVar("Told")


class Choice(NamedTuple):
    """A decision that was made: the value, what was possible (weights None: equally likely), the log-probability."""

    value: Value
    options: tuple[Value, ...]
    weights: tuple[float, ...] | None
    log_probability: float


Chooser = Callable[..., Choice]


def make_choice(index: int, options: Sequence[Value], weights: Sequence[float] | None) -> Choice:
    """The choice of `options[index]`, with log-probability log(weight / sum of weights) in nats."""
    if weights is None:
        return Choice(options[index], options, None, -math.log(len(options)))
    return Choice(options[index], options, weights, math.log(weights[index] / sum(weights)))


def drawing_chooser(generator: Random) -> Chooser:
    """A chooser that draws in proportion to the weights.

    Args:
        generator: the only source of randomness; one `random()` is taken per choice, which Python promises to be the
            same on every platform and version for the same seed.

    Returns:
        `choose(name, options, weights=None) -> Choice`.
    """

    def choose(name: str, options: tuple[Value, ...], weights: tuple[float, ...] | None = None) -> Choice:
        uniform = generator.random()
        if weights is None:
            return make_choice(int(uniform * len(options)), options, None)
        sums = list(itertools.accumulate(weights))
        index = bisect.bisect_right(sums, uniform * sums[-1])
        return make_choice(min(index, len(options) - 1), options, weights)

    return choose


def following_chooser(values: Iterable[Value]) -> Chooser:
    """A chooser that takes the given values one after another: telling with it scores them.

    Args:
        values: one value per choice, in the order in which the choices come.

    Returns:
        `choose(name, options, weights=None) -> Choice`; it raises DataError when a value is not among the options or
        the values end too early.
    """
    remaining = iter(values)

    def choose(name: str, options: tuple[Value, ...], weights: tuple[float, ...] | None = None) -> Choice:
        value = next(remaining, None)
        if value not in options:
            raise DataError(f"the derivation says {name} = {value!r}, but here it can only be one of {options}")
        return make_choice(options.index(value), options, weights)

    return choose


class Run(NamedTuple):
    """One way that a telling can go: what it returned, the probability of this way, and its surprisal in nats."""

    told: object
    probability: float
    surprisal: float


def every_run(tell: Callable[[Chooser], Told], symmetric: frozenset[str] = frozenset()) -> Iterator[Run]:
    """Run `tell(choose)` once for every way its choices can fall, depth first.

    Args:
        tell: calls `choose` any number of times; how often and with which options may depend on earlier answers.
        symmetric: names of choices whose answer does not change the number or weights of any later options. For these
            only the first option is followed, with the probability of all, and the expected surprisal (the entropy of
            the choice) is counted. The sum of probability * surprisal is then still the entropy of the whole.

    Yields:
        Runs; their probabilities sum to 1. Without `symmetric`, surprisal is -log(probability).

    Example:
        >>> def tell(choose):
        ...     return choose("coin", ("head", "tail")).value + choose("die", (1, 2), (3.0, 1.0)).value * "!"
        >>> [(run.told, round(run.probability, 9)) for run in every_run(tell)]
        [('head!', 0.375), ('head!!', 0.125), ('tail!', 0.375), ('tail!!', 0.125)]
    """
    path: list[list[int]] = []                                     # [option taken, number of options] per branching
    while True:
        depth, log_probability, surprisal = 0, 0.0, 0.0

        def choose(name: str, options: tuple, weights: tuple[float, ...] | None = None) -> Choice:
            nonlocal depth, log_probability, surprisal
            if name in symmetric:
                surprisal += choice_entropy(options, weights)
                return make_choice(0, options, weights)
            if depth == len(path):
                path.append([0, len(options)])
            choice = make_choice(path[depth][0], options, weights)
            depth += 1
            log_probability += choice.log_probability
            surprisal -= choice.log_probability
            return choice

        told = tell(choose)
        yield Run(told, math.exp(log_probability), surprisal)
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return
        path[-1][0] += 1


def choice_entropy(options: Sequence[Value], weights: Sequence[float] | None) -> float:
    """The entropy of one choice in nats: log n for n equally likely options, else -sum p log p."""
    if weights is None:
        return math.log(len(options))
    total = sum(weights)
    return -sum(weight / total * math.log(weight / total) for weight in weights)
