"""The trusted side of grading: starts the worker, hands it orders, and believes nothing that comes back."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minillm
from minillm.course import wire
from minillm.course.proxy import Ended, RaisedThere, World
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError

START_SECONDS = 120.0  # importing torch on a busy machine
STOP_SECONDS = 20.0
QUIET = {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
OUTPUT_CHARACTERS = 2000
HIDDEN = ("minillm", "chapters", "tests", "notebooks", "homework", ".git")


@dataclass(frozen=True)
class Limits:
    """What a task's program may use.

    Args:
        cpu_seconds: computing time at least allowed, whatever the reference takes.
        times_reference: computing time allowed, as a multiple of the reference's; the larger of the two counts.
        wall_factor: real time allowed, as a multiple of the computing time (a sleeping program does not compute).
        memory_bytes: address space beyond what Python and torch have taken before.
        file_bytes: largest file, what it prints included.
    """

    cpu_seconds: float = 4.0
    times_reference: float = 20.0
    wall_factor: float = 3.0
    memory_bytes: int = 2 << 30
    file_bytes: int = 64 << 20

    def allowed_seconds(self, reference_seconds: float) -> int:
        """Whole seconds of computing time."""
        return max(1, round(max(self.cpu_seconds, self.times_reference * reference_seconds)))


class Worker:
    """A process that has imported torch and forks a child for every task; started when needed, again if it dies.

    Args:
        hidden: folders that the graded programs must not see, beside the repository's own.
        isolate: whether to use what the operating system offers; without it only accidents are stopped.
    """

    def __init__(self, hidden: tuple[Path, ...] = (), isolate: bool = True):
        self._isolate = "isolate" if isolate else "share"
        package = Path(minillm.__file__).resolve().parent
        candidates = [*(ROOT / name for name in HIDDEN), package, *(path.resolve() for path in hidden)]
        self.hidden = tuple(dict.fromkeys(str(path) for path in candidates if path.is_dir()))
        self.protection: tuple[str, ...] = ()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> str:
        """The worker's temporary folder, which is also in its command line; empty while none runs."""
        return self._folder.name if self._folder is not None else ""

    def start(self) -> None:
        """Start the process if none runs.

        Raises:
            CourseError: if it cannot be started.
        """
        if self._process is not None:
            return
        if not hasattr(os, "fork"):
            raise CourseError("grading a file needs a system that can fork: Linux, macOS, or Windows with WSL")
        self._folder = tempfile.TemporaryDirectory(prefix="minillm-grading-")
        os.chmod(self._folder.name, 0o711)  # the child may have to be `nobody`
        ours, theirs = socket.socketpair()
        site_packages = str(Path(np.__file__).resolve().parents[1])
        script = str(Path(__file__).with_name("worker.py"))
        words = [sys.executable, "-P", "-s", "-S", script, str(theirs.fileno()), site_packages, self._folder.name]
        complaints = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*words, self._isolate, *self.hidden],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", **QUIET},
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        hello = self._read(START_SECONDS)
        if hello is None:
            self.close()
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()[-500:] or "nothing"
            complaints.close()
            raise CourseError(f"the grading worker did not start; does `python -c 'import torch'` work? It said {said}")
        complaints.close()
        self.protection = tuple(str(word) for word in hello.get("protection", ()))

    def close(self) -> None:
        """End the process and everything below it."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._control = self._folder = None

    def program(self, library: Path, request: dict[str, Any], cpu_seconds: int, limits: Limits) -> "Program":
        """Fork a child and load a learner's file in it; see `substitution.graded_session` for the request.

        Raises:
            RaisedThere: what the file raised while it was loaded.
            Ended: if it ended or hung.
        """
        for attempt in range(2):
            self.start()
            ours, theirs = socket.socketpair()
            output = tempfile.TemporaryFile()
            order = {"library": str(library), "cpu_seconds": cpu_seconds}
            order |= {"memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes}
            started = self._order({"start": order}, [theirs.fileno(), output.fileno()])
            theirs.close()
            if started is not None or attempt:
                break
            ours.close()
            output.close()
        program = Program(self, ours, output, cpu_seconds, limits.wall_factor)
        try:
            World({}, program.send).request(request)
        except (RaisedThere, Ended):
            program.close()
            raise
        return program

    def stop(self, why: str) -> int | None:
        """End the child and its offspring; its exit code (minus the number of a signal) if it has ended by itself.

        Args:
            why: "ended" if it has hung up, "done" if we have.
        """
        ending = self._order({"stop": why}, [])
        code = ending.get("code") if ending else None
        return code if isinstance(code, int) else None

    def _order(self, content: dict, descriptors: list[int]) -> dict | None:
        if self._control is None:
            return None
        try:
            socket.send_fds(self._control, [json.dumps(content).encode()], descriptors)
            answer = self._read(STOP_SECONDS)
        except OSError:
            answer = None
        if answer is None:  # it was killed or hangs: the next program gets a new one
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self.close()
        return answer

    def _read(self, seconds: float) -> dict | None:
        """One line of JSON, or None if none comes."""
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n") and len(line) < 1 << 16:
            self._control.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                part = self._control.recv(1 << 12)
            except OSError:
                return None
            if not part:
                return None
            line += part
        try:
            content = json.loads(line)
        except ValueError:
            return None
        return content if isinstance(content, dict) else None


class Program:
    """A learner's file, loaded in a child of the worker; answers requests until its time is used up."""

    def __init__(self, worker: Worker, channel: socket.socket, output: Any, cpu_seconds: int, wall_factor: float):
        self._worker, self._channel, self._output = worker, channel, output
        self._cpu_seconds, self._remaining = cpu_seconds, cpu_seconds * wall_factor
        self.output = ""  # the beginning of what it printed, once it is closed
        self.seconds = 0.0  # spent waiting for answers

    @property
    def ended(self) -> bool:
        """Whether no more requests can be answered."""
        return self._channel is None

    def send(self, request: bytes) -> bytes:
        """One request, one answer.

        Raises:
            Ended: when there is no answer: with status "timeout", or "crashed".
        """
        if self._channel is None:
            raise Ended("crashed", "the program has ended")
        begin = time.monotonic()
        deadline = begin + self._remaining
        try:
            self._channel.settimeout(max(0.01, self._remaining))
            self._channel.sendall(request)
            return wire.receive(self._channel, deadline)
        except TimeoutError:
            self.close()
            raise self._timeout() from None
        except (OSError, wire.WireError) as error:
            too_large = isinstance(error, wire.WireError) and "at most" in str(error)
            raise self._ending(self.close("ended"), str(error) if too_large else "") from None
        finally:
            self._remaining -= time.monotonic() - begin
            self.seconds += time.monotonic() - begin

    def close(self, why: str = "done") -> int | None:
        """End it; returns its exit code if it had ended by itself."""
        if self._channel is None:
            return None
        self._channel.close()
        self._channel = None
        code = self._worker.stop(why)
        self._output.seek(0)
        self.output = self._output.read(4 * OUTPUT_CHARACTERS).decode("utf-8", "replace")[:OUTPUT_CHARACTERS]
        self._output.close()
        return code

    def _timeout(self) -> Ended:
        return Ended("timeout", f"no answer within {self._cpu_seconds} s of computing time: an endless loop?")

    def _ending(self, code: int | None, why: str) -> Ended:
        out_of_time = code == -signal.SIGKILL and self.seconds >= self._cpu_seconds
        if code == -signal.SIGXCPU or out_of_time:
            return self._timeout()
        if why:
            return Ended("crashed", why)
        if code is not None and code < 0:
            return Ended("crashed", f"the program ended with signal {signal.Signals(-code).name} before it answered")
        return Ended("crashed", "the program ended before it returned an answer")
