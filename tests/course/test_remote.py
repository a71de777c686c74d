"""The worker: limits, isolation, and a trusted side that survives whatever the other side does."""

import os
import time

import pytest

from minillm.course.proxy import Ended, Impl, RaisedThere, World
from minillm.course.remote import Limits, Worker
from minillm.errors import CourseError

NAMES = {"causal_mask": "minillm.nn.attention"}
PLACES = [("90.1", "minillm.nn.attention", "causal_mask")]


def request(source):
    return {"source": source, "places": PLACES, "task": "90.1", "own": [], "names": NAMES}


def program(worker, grader, small, source, limits=None, cpu_seconds=4):
    """The function `causal_mask` of this source, called through the border."""
    library = grader.library(small.task("90.1"))
    opened = worker.program(library, request(source), cpu_seconds, limits or Limits())
    return opened, Impl(World({"causal_mask": None}, opened.send)).causal_mask


def call(worker, grader, small, body, *args, **options):
    source = "import os, sys, time\n\ndef causal_mask(*args):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    opened, function = program(worker, grader, small, source, **options)
    try:
        return function(*args)
    finally:
        opened.close()


@pytest.fixture(scope="module")
def bare():
    """A worker without namespaces, as on a system that forbids them."""
    with Worker(isolate=False) as opened:
        yield opened


def isolated(worker):
    if "hidden" not in worker.protection:
        pytest.skip(f"this system allows no namespaces ({worker.protection})")


def test_a_call_and_what_it_printed(worker, grader, small):
    opened, function = program(worker, grader, small, "def causal_mask(x):\n    print('hello', x)\n    return x + 1\n")
    assert function(3) == 4 and function(4) == 5
    opened.close()
    assert opened.output == "hello 3\nhello 4\n" and opened.ended and opened.seconds > 0
    with pytest.raises(Ended, match="has ended"):
        function(5)


def test_the_path_holds_nothing_of_the_repository(worker, grader, small):
    import minillm

    body = "import minillm\nreturn sys.path, minillm.__file__, [sys.flags.no_site, sys.flags.safe_path]"
    paths, file, flags = call(worker, grader, small, body)
    repository = os.path.dirname(os.path.dirname(minillm.__file__))
    assert repository not in paths and "" not in paths and not file.startswith(repository) and flags == [1, True]


def test_the_environment_is_empty(worker, grader, small, monkeypatch):
    monkeypatch.setenv("COURSE_SECRET", "do not tell")
    names = call(worker, grader, small, "return sorted(os.environ)")
    allowed = {"PATH", "PYTHONHASHSEED", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES", "TMPDIR"}
    assert set(names) <= allowed | {"LC_CTYPE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}


def test_only_four_descriptors_are_open(worker, grader, small):
    body = "found = []\nfor number in range(256):\n    try:\n        os.fstat(number)\n        found.append(number)\n"
    assert call(worker, grader, small, body + "    except OSError:\n        pass\nreturn found") == [0, 1, 2, 3]


def test_numbers_drawn_at_random_are_the_same_every_time(worker, grader, small):
    body = "import random, torch, numpy\nreturn random.random(), torch.rand(2).tolist(), numpy.random.rand(), hash('a')"
    assert call(worker, grader, small, body) == call(worker, grader, small, body)


def test_programs_do_not_see_each_other(worker, grader, small):
    body = "open('mine', 'w').close()\nreturn os.getcwd(), os.listdir(os.path.dirname(os.getcwd()))"
    first, _ = call(worker, grader, small, body)
    second, seen = call(worker, grader, small, body)
    assert os.path.basename(first) not in seen and first != second


def test_an_exception_on_loading_has_its_line(worker, grader, small):
    with pytest.raises(RaisedThere, match=r"ZeroDivisionError: division by zero \(line 2: x = 1 / 0\)"):
        program(worker, grader, small, "y = 1\nx = 1 / 0\n")
    with pytest.raises(RaisedThere, match="SyntaxError"):
        program(worker, grader, small, "def f(:\n")
    with pytest.raises(RaisedThere, match="no causal_mask"):
        program(worker, grader, small, "x = 1\n")


def test_memory_is_limited(worker, grader, small):
    with pytest.raises(RaisedThere, match="MemoryError"):
        call(worker, grader, small, "return len(bytearray(3 << 30))")
    assert call(worker, grader, small, "return len(bytearray(1 << 28))") == 1 << 28


def test_computing_time_is_limited(worker, grader, small):
    with pytest.raises(Ended, match="within 1 s of computing time") as caught:
        call(worker, grader, small, "while True: pass", cpu_seconds=1, limits=Limits(wall_factor=20.0))
    assert caught.value.status == "timeout"


def test_real_time_is_limited(worker, grader, small):
    begin = time.monotonic()
    with pytest.raises(Ended) as caught:
        call(worker, grader, small, "time.sleep(60)", cpu_seconds=1, limits=Limits(wall_factor=0.5))
    assert caught.value.status == "timeout" and time.monotonic() - begin < 20


def test_file_size_is_limited(worker, grader, small):
    with pytest.raises(RaisedThere, match="File too large"):
        call(worker, grader, small, "open('f', 'wb').write(bytes(1 << 20))", limits=Limits(file_bytes=1 << 19))


def test_signals_and_exits_are_told_apart(worker, grader, small):
    with pytest.raises(Ended, match="signal SIGSEGV") as caught:
        call(worker, grader, small, "import ctypes\nctypes.string_at(0)")
    assert caught.value.status == "crashed"
    with pytest.raises(Ended, match="ended before it returned an answer"):
        call(worker, grader, small, "os._exit(0)")
    with pytest.raises(Ended, match="signal SIGKILL"):
        call(worker, grader, small, "os.kill(os.getpid(), 9)")


DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
return 1
""".strip()


def test_no_process_is_left(worker, grader, small, processes_of):
    before = set(processes_of(worker))
    assert call(worker, grader, small, DAEMON) == 1
    assert set(processes_of(worker)) == before


@pytest.mark.slow
def test_no_process_is_left_without_namespaces(bare, grader, small, processes_of):
    bare.start()
    before = set(processes_of(bare))
    assert call(bare, grader, small, DAEMON) == 1
    assert set(processes_of(bare)) == before


@pytest.mark.slow
def test_a_killed_worker_is_replaced(bare, grader, small):
    with pytest.raises(Ended):
        call(bare, grader, small, "os.kill(os.getppid(), 9)\ntime.sleep(60)")
    assert call(bare, grader, small, "return 5") == 5


@pytest.mark.slow
def test_without_namespaces_nothing_is_promised(bare, grader, small):
    assert call(bare, grader, small, "return 5") == 5 and bare.protection == ()


def test_the_repository_is_an_empty_folder(worker, grader, small):
    isolated(worker)
    body = "return {path: os.listdir(path) for path in args}"
    assert call(worker, grader, small, body, *worker.hidden) == {path: [] for path in worker.hidden}
    assert any(path.endswith("minillm") for path in worker.hidden)


def test_nothing_outside_can_be_written(worker, grader, small, tmp_path):
    isolated(worker)
    body = "\n".join(
        ["refused = 0", "for folder in args:", "    try:", "        open(folder + '/x', 'w').write('x')"]
        + ["    except OSError:", "        refused += 1", "return refused"]
    )
    folders = [str(tmp_path), "/tmp", "/dev/shm", os.path.dirname(os.__file__), "/dev"]
    assert call(worker, grader, small, body, *folders) == len(folders) and list(tmp_path.iterdir()) == []


def test_there_is_no_network_and_no_other_process(worker, grader, small):
    isolated(worker)
    body = "import socket\nprocesses = [int(name) for name in os.listdir('/proc') if name.isdecimal()]\n"
    body += "return processes, os.getppid(), [name for _, name in socket.if_nameindex()]"
    processes, parent, networks = call(worker, grader, small, body)
    assert len(processes) <= 2 and parent == 1 and set(networks) <= {"lo", "tunl0", "sit0", "ip6tnl0", "gre0"}


def test_a_worker_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CourseError, match="did not start"):
        Worker().start()
