"""SIGTERM to one rank only: all leave at the same step, with a checkpoint, and with the exit code of a signal."""

import os
import signal
import time

import pytest
import torch

from minillm.errors import CommError, ConfigError
from minillm.parallel.failure_drill import drill_all_or_none, drill_stop
from minillm.parallel.launch import launch
from minillm.parallel.pieces import Piece
from minillm.parallel.preemption import agree_on_signal
from minillm.parallel.sharded_checkpoint import Shard, ShardedCheckpoints
from minillm.parallel.threads import launch_threads
from minillm.train.signals import StopSignals, exit_code


def work(comm, folder, agree):
    """Steps with a collective each, until a signal; rank 2 of 4 is sent SIGTERM in the middle of step 5."""
    checkpoints, total = ShardedCheckpoints(folder, comm), torch.zeros(4)
    with StopSignals() as stop:
        for step in range(1000):
            received = agree_on_signal(comm, stop.received) if agree else stop.received
            if received is not None:
                break
            comm.all_reduce(total)
            if comm.rank == 2 and step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            if comm.rank == 0:
                time.sleep(0.001)  # ranks that are not in step by chance
    checkpoints.save(step, {"model/total": Shard(total, Piece((4,)))})
    return step, received, exit_code(received)


def test_all_ranks_leave_at_the_same_step(tmp_path):
    told = launch(work, 4, tmp_path, True, timeout_seconds=20, show_output=False)
    assert told == [(6, "SIGTERM", 143)] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]


@pytest.mark.slow
def test_mutation_a_flag_of_each_rank_alone_is_noticed(tmp_path):
    start = time.monotonic()
    with pytest.raises(CommError, match="rank"):
        launch(work, 4, tmp_path, False, timeout_seconds=1, show_output=False)
    assert time.monotonic() - start < 10
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_is_enough_whichever(place):
    def ask(comm):
        return agree_on_signal(comm, "SIGINT" if comm.rank == place else None)

    assert launch_threads(ask, 3) == ["SIGINT"] * 3


def test_drill_of_a_stop():
    never = [None, None, None]
    assert drill_stop([never, [None, None, "SIGTERM"], never]) == [(1, "SIGTERM")] * 3
    assert drill_stop([never] * 2) == [(2, None)] * 3


def test_drill_of_all_or_none():
    told, called = drill_all_or_none([None, "disk full", None])
    assert [kind for kind, _ in told] == ["CheckpointError", "OSError", "CheckpointError"]
    assert "rank 1 failed with OSError: disk full" in told[2][1][0] and called == [0, 1, 2]


def test_two_signals_and_names_that_are_none():
    assert launch_threads(lambda comm: agree_on_signal(comm, ["SIGINT", "SIGTERM"][comm.rank]), 2) == ["SIGTERM"] * 2
    with pytest.raises(ConfigError, match="no signal 'HUP'"):
        launch_threads(lambda comm: agree_on_signal(comm, "HUP"), 1)
