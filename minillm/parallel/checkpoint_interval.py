"""How often to save: every save costs time, and so does every step that a failure throws away.

Failures are taken to come at random, on average one every M seconds however long ago the last one was (exponential
times between them). All times are in seconds.
"""

import math

import numpy as np

from minillm.errors import ConfigError


def young_interval(save_seconds: float, failure_seconds: float) -> float:
    """The time of work between two saves at which a run ends soonest, if saving is short against it.

    Saving costs save / interval of the time; a failure throws away half an interval on average, which costs
    interval / (2 M). The sum is least where both are equal.

    Args:
        save_seconds: one save takes.
        failure_seconds: M, mean time between failures of the whole job: that of one machine divided by their number.

    Returns:
        sqrt(2 * save * M).

    Raises:
        ConfigError: unless both are above 0.

    Source:
        J. W. Young, A first order approximation to the optimum checkpoint interval, Communications of the ACM 17(9),
        1974.

    Example:
        >>> round(young_interval(save_seconds=30, failure_seconds=6 * 3600))  # a save every 19 minutes
        1138
    """
    check_positive(save_seconds=save_seconds, failure_seconds=failure_seconds)
    return math.sqrt(2 * save_seconds * failure_seconds)


def expected_run_seconds(
    work_seconds: float, interval: float, save_seconds: float, failure_seconds: float, restart_seconds: float
) -> float:
    """How long a run takes on average, with failures: exact for exponential times between them.

    The work is cut into segments of `interval` (the last one may be shorter), each followed by a save. A segment of s
    seconds, save included, that must run through without a failure takes (M + restart) (exp(s / M) - 1) on average:
    there are exp(s / M) - 1 failures before it succeeds. Restarting takes its time too, and does not fail.

    Args:
        work_seconds: the run would take without failures and saves.
        interval: work between two saves.
        save_seconds: one save takes, 0 or more.
        failure_seconds: M, mean time between failures.
        restart_seconds: from a failure until work goes on, 0 or more.

    Returns:
        the mean number of seconds.

    Raises:
        ConfigError: unless work, interval and M are above 0 and the others 0 or more.

    Source:
        J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation
        Computer Systems 22(3), 2006; there a restart can fail as well.

    Example:
        >>> round(expected_run_seconds(1000, 100, 0, failure_seconds=1e9, restart_seconds=0), 2)
        1000.0
        >>> round(expected_run_seconds(1000, 300, 10, failure_seconds=1000, restart_seconds=50), 1)
        1266.9
    """
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    cost = failure_seconds + restart_seconds
    full = cost * math.expm1((interval + save_seconds) / failure_seconds)
    last = cost * math.expm1((rest + save_seconds) / failure_seconds) if rest else 0.0
    return n_full * full + last


def cut_into_segments(work_seconds: float, interval: float) -> tuple[int, float]:
    """How many whole intervals of work there are, and how much remains after them."""
    n_full = math.floor(work_seconds / interval + 1e-9)
    rest = work_seconds - n_full * interval
    return n_full, rest if rest > 1e-9 * interval else 0.0


def simulate_run(
    work_seconds: float,
    interval: float,
    save_seconds: float,
    failure_seconds: float,
    restart_seconds: float,
    rng: np.random.Generator,
) -> tuple[float, int]:
    """One run, with failures drawn at random.

    Args:
        work_seconds: as in `expected_run_seconds`, as all that follow.
        interval: work between two saves.
        save_seconds: one save takes; a failure during it loses the segment too.
        failure_seconds: mean time between failures.
        restart_seconds: from a failure until work goes on.
        rng: draws the times between failures.

    Returns:
        seconds in all, and the number of failures.

    Raises:
        ConfigError: as `expected_run_seconds`.
    """
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    clock, n_failures, next_failure = 0.0, 0, rng.exponential(failure_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    for segment in [interval] * n_full + [rest] * bool(rest):
        needed = segment + save_seconds
        while next_failure < needed:                               # time until the failure, from the segment's start
            clock += next_failure + restart_seconds
            n_failures += 1
            next_failure = rng.exponential(failure_seconds)
        clock += needed
        next_failure -= needed
    return clock, n_failures


def check_positive(**values: float) -> None:
    """Refuse what is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}, expected more than 0")


def check_not_negative(**values: float) -> None:
    """Refuse what is below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ConfigError(f"{name} is {value}, expected 0 or more")
