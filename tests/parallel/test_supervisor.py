"""H1, H2: a killed or hung rank, restarts with as many ranks or fewer, and the same run as if nothing had been."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm.errors import CommError, ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.data_parallel import FlatDataParallel
from minillm.parallel.elastic import ElasticBatches, rows_of_rank
from minillm.parallel.launch import RankDied, launch
from minillm.parallel.shard_reader import ShardReader
from minillm.parallel.sharded_checkpoint import ShardedCheckpoints
from minillm.parallel.supervisor import supervise
from minillm.parallel.training_shards import model_shards, optimizer_shards, restore_model, restore_optimizer
from minillm.train.loss import next_token_loss
from minillm.train.optim import AdamW

CONFIG = GPTConfig(vocab_size=16, max_seq_len=6, n_layers=1, n_heads=2, d_model=8)
N_STEPS, ROWS = 6, 12


def global_batch(step):
    """12 rows of unequal length: the counted targets differ from rank to rank."""
    rng = np.random.default_rng([7, step])
    ids = rng.integers(16, size=(ROWS, 7))
    targets = ids[:, 1:].copy()
    for row, length in enumerate(rng.integers(1, 7, size=ROWS)):
        targets[row, length:] = -100
    return ids[:, :-1].copy(), targets


def new_run():
    model = GPT(CONFIG, torch.Generator().manual_seed(0)).double()
    return model, AdamW(model.parameters(), lr=1e-2)


def one_process():
    model, optimizer = new_run()
    for step in range(N_STEPS):
        inputs, targets = (torch.from_numpy(array) for array in global_batch(step))
        optimizer.zero_grad()
        (next_token_loss(model, inputs, targets) / (targets != -100).sum()).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def train(comm, attempt, folder, accident=None, keyed=True):
    """Train to the end, saving every second step; `accident(comm, step)` happens in the first attempt."""
    model, optimizer = new_run()
    checkpoints = ShardedCheckpoints(folder, comm)
    first = 0
    if (path := checkpoints.newest_valid()) is not None:
        reader = ShardReader(path)
        restore_model(model, reader)
        restore_optimizer(optimizer, model, reader)
        first = reader.step
    wrapped = FlatDataParallel(model, comm)
    rank, world_size = comm.rank, comm.size
    batches = ElasticBatches(global_batch, rank, world_size)
    for step in range(first, N_STEPS):
        if attempt == 0 and accident is not None:
            accident(comm, step)
        inputs, targets = (torch.from_numpy(array) for array in batches(step if keyed else step - first))
        n_tokens = comm.all_numbers(int((targets != -100).sum()))
        optimizer.zero_grad()
        next_token_loss(wrapped, inputs, targets).backward()
        wrapped.finish_gradient_synchronization(1.0 / n_tokens)
        optimizer.step()
        if (step + 1) % 2 == 0:
            shards, rest = optimizer_shards(optimizer, model)
            checkpoints.save(step + 1, shards | model_shards(model), {}, {"optimizer": rest})
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def kill_rank_2(comm, step):
    if comm.rank == 2 and step == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def largest_difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return launch(train, 4, 0, tmp_path_factory.mktemp("whole"), timeout_seconds=20, show_output=False)[0]


def test_uninterrupted_ranks_equal_one_process(uninterrupted):
    assert largest_difference(uninterrupted, one_process()) < 1e-12


def test_killed_rank_comes_back_bit_by_bit(tmp_path, uninterrupted):
    found = supervise(train, 4, tmp_path, kill_rank_2, timeout_seconds=20, show_output=False)
    first, second = found.attempts
    assert [first.world_size, second.world_size] == [4, 4]
    assert "rank 2 of 4 died (SIGKILL)" in first.cause and second.cause is None
    assert all(torch.equal(result[name], uninterrupted[name]) for result in found.results for name in uninterrupted)
    assert 0 <= first.detection_seconds < 5 and 0 < found.restart_seconds < 5
    assert math.isnan(second.detection_seconds)


@pytest.mark.slow
def test_killed_rank_stays_away(tmp_path, uninterrupted):
    found = supervise(train, 4, tmp_path, kill_rank_2, min_ranks=2, timeout_seconds=20, show_output=False)
    assert [attempt.world_size for attempt in found.attempts] == [4, 3]
    assert len(found.results) == 3
    assert largest_difference(found.results[0], uninterrupted) < 1e-12
    assert largest_difference(found.results[0], one_process()) < 1e-12


@pytest.mark.slow
def test_hung_rank_is_lost_within_its_timeout(tmp_path, uninterrupted, monkeypatch):

    def hang(comm, step):
        if comm.rank == 1 and step == 3:
            time.sleep(60)

    start = time.monotonic()
    found = supervise(train, 4, tmp_path, hang, timeout_seconds=2.0, show_output=False)
    assert time.monotonic() - start < 40
    assert "rank 1" in found.attempts[0].cause and "2 s" in found.attempts[0].cause
    assert all(torch.equal(found.results[0][name], uninterrupted[name]) for name in uninterrupted)


def test_rank_that_runs_out_of_data_is_restarted_by_nobody(tmp_path):
    def no_more(comm, step):
        if comm.rank == 1 and step == 3:
            raise ValueError("rank 1 has no data left")

    start = time.monotonic()
    with pytest.raises(ValueError, match="no data left"):
        supervise(train, 3, tmp_path, no_more, timeout_seconds=20, show_output=False)
    assert time.monotonic() - start < 10


def test_mutation_data_keyed_by_the_attempt_is_noticed(tmp_path, uninterrupted):
    """Were the batches counted from the restart, the loss would look well and the run be another one."""
    found = supervise(train, 4, tmp_path, kill_rank_2, False, timeout_seconds=20, show_output=False)
    assert largest_difference(found.results[0], uninterrupted) > 1e-4


def test_no_more_than_so_many_restarts():
    def die(comm, attempt):
        if comm.rank == attempt % comm.size:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()

    with pytest.raises(RankDied, match="rank 1 of 2 died") as caught:
        supervise(die, 2, max_restarts=1, timeout_seconds=10, show_output=False)
    assert sum("attempt" in note for note in caught.value.__notes__) == 2
    with pytest.raises(CommError, match="died"):
        supervise(die, 2, min_ranks=2, max_restarts=5, timeout_seconds=10, show_output=False)
    with pytest.raises(ConfigError, match="min_ranks"):
        supervise(die, 2, min_ranks=3)
    with pytest.raises(ConfigError, match="max_restarts"):
        supervise(die, 2, max_restarts=-1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7])
def test_rows_of_all_ranks_are_those_of_the_step(world_size):
    for step in range(3):
        rows = [list(range(*rows_of_rank(step, 7, rank, world_size))) for rank in range(world_size)]
        assert sum(rows, []) == list(range(7 * step, 7 * step + 7))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        inputs, targets = global_batch(step)
        parts = [ElasticBatches(global_batch, rank, world_size)(step) for rank in range(world_size)]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), inputs)
        assert np.array_equal(np.concatenate([part[1] for part in parts]), targets)


def test_rows_refuse():
    for wrong in ((-1, 4, 0, 2), (0, 4, 2, 2), (0, 4, -1, 2), (0, 3, 0, 4)):
        with pytest.raises(ConfigError, match="expected"):
            rows_of_rank(*wrong)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_supervisor import N_STEPS, largest_difference, train
from minillm.parallel.processes import join_torchrun, leave
import torch

torch.set_num_threads(1)
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
comm = join_torchrun(timeout_seconds=20)

def accident(comm, step):
    if comm.rank == 1 and step == 3 and {kill}:
        os.kill(os.getpid(), signal.SIGKILL)

result = train(comm, attempt, {folder!r}, accident)
if comm.rank == 0:
    torch.save(result, {out!r})
    print("attempts", attempt + 1)
leave()
"""


def torchrun(tmp_path, name, kill):
    script, out = tmp_path / f"{name}.py", tmp_path / f"{name}.pt"
    here = str(Path(__file__).parent)
    text = SCRIPT.format(here=here, kill=kill, folder=str(tmp_path / name), out=str(out))
    script.write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True), done.stdout


@pytest.mark.slow
def test_torchrun_restarts_and_goes_on_bit_by_bit(tmp_path):
    whole, said = torchrun(tmp_path, "whole", kill=False)
    assert "attempts 1" in said
    restarted, said = torchrun(tmp_path, "killed", kill=True)
    assert "attempts 2" in said
    assert all(torch.equal(whole[name], restarted[name]) for name in whole)
