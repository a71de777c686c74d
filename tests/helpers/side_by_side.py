"""Run the tests in two processes beside each other, which takes little more than half the time on two cores.

`python tests/helpers/side_by_side.py -m "not slow"` takes pytest's arguments. Both processes collect all tests; before
the first test of a file a process claims the file, and leaves alone what the other has claimed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
N_PROCESSES = 2
LOOK_SECONDS, SAY_SECONDS = 0.2, 20.0
DONE, TOTAL, OUTCOMES = "done", "total", "outcomes-{}"
LAST_WORDS = ("passed", "failed", "error", "skipped", "deselected", "xfailed", "xpassed", "warnings")


class HalfOfTheTests:
    """A pytest plugin that runs the files nobody else has claimed.

    Args:
        board: a folder that all processes write to.
        number: of this process.
    """

    def __init__(self, board: Path, number: int):
        self.board, self.number = board, number

    def claimed(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        """The tests of each file that this process is the first to ask for."""
        for file, tests in groupby(items, key=lambda item: str(item.path)):
            try:
                (self.board / file.replace(os.sep, "|")).touch(exist_ok=False)
            except FileExistsError:
                continue
            yield from tests

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        (self.board / TOTAL).write_text(str(len(session.items)))
        mine = self.claimed(session.items)
        item = next(mine, None)
        while item is not None:
            following = next(mine, None)  # pytest keeps the fixtures that the test after this one needs too
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop:
                raise session.Interrupted(session.shouldfail or session.shouldstop)
            item = following
        return True

    def pytest_runtest_logfinish(self) -> None:
        with open(self.board / DONE, "ab") as done:
            done.write(b".")

    def pytest_terminal_summary(self, terminalreporter) -> None:
        counts = {word: len(terminalreporter.stats.get(word, ())) for word in LAST_WORDS}
        (self.board / OUTCOMES.format(self.number)).write_text(json.dumps(counts))


def watch(board: Path, processes: list[subprocess.Popen]) -> None:
    """Show how far the tests are until all processes have ended; a log gets a line now and then."""
    said = time.monotonic()
    with tqdm(unit="test", dynamic_ncols=True, disable=None) as bar:
        while any(process.poll() is None for process in processes):
            time.sleep(LOOK_SECONDS)
            n_done, total = size_of(board / DONE), int(text_of(board / TOTAL) or 0)
            bar.total = total or None
            bar.update(n_done - bar.n)
            if bar.disable and time.monotonic() - said > SAY_SECONDS:
                print(f"{n_done} of {total} tests", flush=True)
                said = time.monotonic()


def size_of(file: Path) -> int:
    """Bytes of a file; 0 if there is none yet."""
    return file.stat().st_size if file.exists() else 0


def text_of(file: Path) -> str:
    """What is in a file; nothing if there is none."""
    return file.read_text() if file.exists() else ""


def what_matters(output: str) -> str:
    """A quiet pytest's output without its dots and its last line: failures, warnings, what was skipped."""
    lines = output.splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith("===")), len(lines))
    return "\n".join(lines[begin:-1])


def last_line(board: Path, seconds: float) -> str:
    """The outcomes of all processes as pytest counts them."""
    counts: Counter[str] = Counter()
    for number in range(N_PROCESSES):
        counts.update(json.loads(text_of(board / OUTCOMES.format(number)) or "{}"))
    counts["deselected"] //= N_PROCESSES  # each process has left out the same ones
    return f"{', '.join(f'{counts[word]} {word}' for word in LAST_WORDS if counts[word])} in {seconds:.2f}s"


def main(arguments: list[str]) -> int:
    """Run all, print what matters; pytest's exit code, the largest of all processes."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through `finally`, which ends the others
    with tempfile.TemporaryDirectory() as folder:
        board = Path(folder)
        outputs = [open(board / f"output-{number}", "w+") for number in range(N_PROCESSES)]
        command = [sys.executable, __file__, "--board", folder]
        processes = [
            subprocess.Popen([*command, str(number), *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            for number, output in enumerate(outputs)
        ]
        try:
            watch(board, processes)
        except KeyboardInterrupt:  # they got it too
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.kill()
        for output, process in zip(outputs, processes, strict=True):
            output.seek(0)
            text = output.read()
            matters = what_matters(text) if process.returncode in (0, 1) else text
            print(matters, end="\n" if matters else "")
            output.close()
        print(last_line(board, time.monotonic() - began))
        return max(abs(process.wait()) for process in processes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--board"]:
        sys.path[0] = str(ROOT)  # as with `python -m pytest`, also for the processes that tests start
        plugin = HalfOfTheTests(Path(sys.argv[2]), int(sys.argv[3]))
        raise SystemExit(pytest.main(["-q", *sys.argv[4:]], plugins=[plugin]))
    raise SystemExit(main(sys.argv[1:]))
