"""The launcher and everything that can go wrong with a rank: an error with rank and cause, no orphan, nothing left."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import torch

from minillm.errors import CommError, ConfigError, DataError
from minillm.parallel.launch import RankDied, launch
from minillm.parallel.traffic import CommCounter

QUIET = {"timeout_seconds": 20, "show_output": False}


def left_over():
    """Folders of ranks in the temp folder, and children of this process."""
    folders = set(Path(tempfile.gettempdir()).glob("minillm-ranks-*"))
    mine = {folder for folder in folders if folder.stat().st_uid == os.getuid()}
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return mine, set(children)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def new_folder(tmp_path, monkeypatch):
    """Ranks that share this test run's machine with others have the temp folder for themselves."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def add(comm, number):
    tensor = torch.full((3,), float(comm.rank + number))
    comm.all_reduce(tensor)
    return comm.rank, tensor


def test_results_come_in_rank_order_and_nothing_is_left(new_folder):
    before = left_over()
    results = launch(add, 3, 10, **QUIET)
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert all(tensor.tolist() == [33.0] * 3 for _, tensor in results)
    assert left_over() == before and not list(new_folder.iterdir())


def test_one_rank_alone():
    assert launch(add, 1, 4, **QUIET)[0][1].tolist() == [4.0] * 3


def test_closures_and_objects_that_cannot_be_pickled_reach_forked_ranks():
    generator = (number for number in range(5))
    results = launch(lambda comm: next(generator) + comm.rank, 2, **QUIET)
    assert results == [0, 1]


def test_counters_are_copies():
    counters = [CommCounter(), CommCounter()]
    ours = launch(lambda comm: comm.all_numbers(1.0) and comm.counter, 2, counters=counters, **QUIET)
    assert [counter.count() for counter in ours] == [1, 1] and counters[0].count() == 0


def test_prints_come_out_rank_by_rank(capfd):
    def talk(comm):
        for line in range(2):
            comm.barrier()
            print("line", line, "of", comm.rank)
            os.write(2, b"from a library\n")

    launch(talk, 2, timeout_seconds=20)
    lines = capfd.readouterr().out.splitlines()
    assert lines == [
        f"[rank {rank}] {text}" for rank in range(2) for line in range(2)
        for text in (f"line {line} of {rank}", "from a library")
    ]  # fmt: skip
    launch(talk, 2, **QUIET)
    assert not capfd.readouterr().out


def test_prints_before_an_error_come_out_too(capsys):
    def fail(comm):
        print("before", comm.rank)
        comm.barrier()
        raise DataError("after")

    with pytest.raises(DataError):
        launch(fail, 2, timeout_seconds=20)
    assert "[rank 0] before 0\n[rank 1] before 1\n" in capsys.readouterr().out


def out_of_data(comm):
    for step in range(3):
        if comm.rank == 1 and step == 2:
            raise DataError("rank 1 has no rows left")
        comm.barrier()


def test_an_error_comes_back_as_it_was_raised_quickly_and_with_its_place(new_folder):
    began, before = time.monotonic(), left_over()
    with pytest.raises(DataError, match="rank 1 has no rows left") as caught:
        launch(out_of_data, 3, **QUIET)
    assert time.monotonic() - began < 1.9  # the others wait in a barrier of 20 s
    note = "\n".join(caught.value.__notes__)
    assert "raised on rank 1 of 3" in note and 'in out_of_data\n    raise DataError("rank 1' in note
    assert left_over() == before and not list(new_folder.iterdir())


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize("what", ["error", "result"])
def test_what_cannot_be_pickled_is_told_in_words(what):
    def run(comm):
        if what == "error":
            raise Unpicklable("this", "that")
        return lambda: None

    with pytest.raises(Exception, match="this and that" if what == "error" else "pickle"):
        launch(run, 2, **QUIET)


def killed(comm, how):
    comm.barrier()
    if comm.rank == 1:
        print("last words", flush=True)
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(7)
    comm.barrier()


@pytest.mark.parametrize(("how", "cause"), [("SIGKILL", "SIGKILL"), ("exit", "exit code 7")])
def test_a_rank_that_dies_is_named_with_its_cause(how, cause, new_folder):
    began, before = time.monotonic(), left_over()
    with pytest.raises(RankDied, match=f"rank 1 of 3 died .{cause}.; the others were stopped") as caught:
        launch(killed, 3, how, **QUIET)
    assert caught.value.rank == 1 and caught.value.cause == cause and "last words" in str(caught.value)
    assert time.monotonic() - began < 5
    assert left_over() == before and not list(new_folder.iterdir())


def test_a_death_can_be_handed_on():
    def hand_on(comm):
        raise RankDied(3, 4, "SIGKILL", "")

    with pytest.raises(RankDied, match="rank 3 of 4 died") as caught:
        launch(hand_on, 1, **QUIET)
    assert caught.value.cause == "SIGKILL"


@pytest.mark.slow
def test_a_rank_whose_child_keeps_its_pipe_open_is_still_seen_to_die():
    def leave_a_child(comm):
        if comm.rank == 0:
            if os.fork() == 0:
                time.sleep(4)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()

    began = time.monotonic()
    with pytest.raises(RankDied, match="rank 0 of 2 died"):
        launch(leave_a_child, 2, **QUIET)
    assert time.monotonic() - began < 3.5


def hang(comm):
    comm.barrier()
    while comm.rank == 1:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_limit_ends_everything_and_names_who_was_not_done():
    before = left_over()[1]
    with pytest.raises(CommError, match=r"not done after 0.8 s and stopped: rank 1 .last seen in barrier of world"):
        launch(hang, 2, limit_seconds=0.8, **QUIET)
    assert left_over()[1] == before


@pytest.mark.slow
def test_ranks_that_never_start_are_an_error(monkeypatch):
    from minillm.parallel import launch as launcher
    from minillm.parallel import rank_process

    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(rank_process, "die_with_parent", lambda parent: time.sleep(30))  # as if a lock were never free
    before = left_over()[1]
    with pytest.raises(CommError, match=r"ranks \[0, 1\] of 2 did not start within 0.3 s"):
        launch(add, 2, 1, timeout_seconds=0.3, show_output=False)
    assert left_over()[1] == before


def test_bad_input():
    with pytest.raises(ConfigError, match="world_size is 0"):
        launch(add, 0, 1)
    with pytest.raises(ConfigError, match="expected auto, fork or spawn"):
        launch(add, 1, 1, start_method="forkserver")
    with pytest.raises(ConfigError, match="backend 'mpi' is unknown; known are gloo, nccl"):
        launch(add, 2, 1, backend="mpi", **QUIET)
    with pytest.raises(ConfigError, match="launch was called inside a rank"):
        launch(lambda comm: launch(add, 2, 1), 1, **QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="NCCL needs a GPU for each rank"):
            launch(add, 1, 1, backend="nccl", **QUIET)


def test_a_forked_rank_computes_after_the_parent_used_many_threads():
    """Without set_num_threads(1) as a child's first statement this hangs (notes, item 0.4)."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        big = torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
        _ = big @ big
        big.exp().sum()
        launch(lambda comm: (big @ big).exp().sum().isnan().item(), 2, limit_seconds=15, **QUIET)
    finally:
        torch.set_num_threads(n_threads)


def script(text):
    return [sys.executable, "-c", textwrap.dedent(text)]


@pytest.mark.slow
def test_when_the_parent_is_killed_no_rank_lives_on(tmp_path):
    program = script(
        """
        import os, time
        from minillm.parallel.launch import launch

        def wait(comm):
            comm.barrier()
            os.write(channel, f"{os.getpid()} ".encode())
            time.sleep(60)

        channel = os.dup(1)
        launch(wait, 3, show_output=False)
        """
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(program, env={**os.environ, "TMPDIR": str(tmp_path)}, **pipes) as parent:
        said = ""
        while said.count(" ") < 3:
            said += parent.stdout.read(1)
        pids = [int(word) for word in said.split()]
        assert len(pids) == 3 and all(map(is_alive, pids))
        parent.kill()
        parent.wait()
        end = time.monotonic() + 3
        while any(map(is_alive, pids)) and time.monotonic() < end:
            time.sleep(0.01)
        assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_spawned_ranks():
    results = launch(add, 2, 10, start_method="spawn", **QUIET)
    assert [rank for rank, _ in results] == [0, 1] and results[1][1].tolist() == [21.0] * 3


@pytest.mark.slow
def test_a_notebook_cell():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "import torch\nfrom minillm.parallel.launch import launch\n(torch.ones(300, 300) @ torch.ones(300, 300)).sum()",
        """
def share(comm):
    print("I am", comm.rank)
    return comm.all_numbers(comm.rank)

print(launch(share, 3))
""",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    said = "".join(output.text for output in notebook.cells[1].outputs)
    assert said == "[rank 0] I am 0\n[rank 1] I am 1\n[rank 2] I am 2\n[3.0, 3.0, 3.0]\n"


JOINS = """
    import os
    from minillm.errors import CommError
    from minillm.parallel.processes import join_torchrun, leave
    try:
        comm = join_torchrun(timeout_seconds=3)
        print("sum", comm.all_numbers(comm.rank + 1))
        leave()
    except CommError as error:
        print("refused:", error)
"""


def joined(n_ranks, port, folder, **changes):
    """What ranks print that find each other through the environment, as torchrun sets it."""
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TMPDIR": str(folder)}
    ranks = []
    for rank in range(n_ranks):
        environment = {**base, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_ranks), **changes}
        ranks.append(subprocess.Popen(script(JOINS), env=environment, stdout=subprocess.PIPE, text=True))
    return [rank.communicate(timeout=30)[0] for rank in ranks]


@pytest.mark.slow
def test_ranks_of_torchrun_meet_and_leave_nothing_in_the_temp_folder(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert joined(2, port, tmp_path) == ["sum 3.0\n"] * 2
    assert not list(tmp_path.glob("minillm-*"))


@pytest.mark.slow
def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = joined(1, port, tmp_path)[0]
    assert f"refused: rank 0 of 1 cannot use the store at 127.0.0.1:{port}" in said and "--master-port" in said


@pytest.mark.slow
def test_a_world_with_too_few_ranks_gives_up_in_seconds(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = joined(1, port, tmp_path, WORLD_SIZE="2")[0]
    assert "refused: rank 0 of 2" in said and "1/2 clients joined" in said


def test_not_started_by_torchrun(monkeypatch):
    from minillm.parallel.processes import join_torchrun

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set; start with: torchrun"):
        join_torchrun()
