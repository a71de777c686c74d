"""Leaving together: a signal reaches one process of a job, and all of them must save and stop at the same step.

Cluster schedulers send SIGTERM some time before they take a machine away. A rank that left by itself would leave the
others in a collective that nobody else comes to.
"""

import signal

from minillm.errors import ConfigError
from minillm.parallel.comm import Comm


def agree_on_signal(comm: Comm, received: str | None) -> str | None:
    """Which signal to stop for: the same answer on all ranks, at the same step.

    Each rank looks once, before it asks. A signal that comes while the ranks are talking is seen at the next step, by
    all of them alike. Where ranks received different signals, the one of the highest number counts.

    Args:
        comm: all ranks; all of them call this at the same point of the same step.
        received: the signal that has reached this rank, "SIGTERM" or "SIGINT", or None.

    Returns:
        its name, or None if no rank has received one.

    Raises:
        ConfigError: if there is no signal of that name.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> launch_threads(lambda comm: agree_on_signal(comm, "SIGTERM" if comm.rank == 1 else None), 3)
        ['SIGTERM', 'SIGTERM', 'SIGTERM']
        >>> launch_threads(lambda comm: agree_on_signal(comm, None), 2)
        [None, None]
    """
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}; expected a name such as SIGTERM, or None")
    mine = signal.Signals[received].value if received is not None else 0
    number = int(comm.all_numbers(mine, "max"))
    return signal.Signals(number).name if number else None
