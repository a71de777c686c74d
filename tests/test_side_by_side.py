"""The runner of `make test`: every test once, failures told, the counts of both processes together."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "helpers" / "side_by_side.py"
FILE = """
import pathlib
import pytest

@pytest.fixture(scope="module")
def once():
    with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
        log.write("made ")

@pytest.mark.parametrize("number", range(4))
def test_number(once, number):
    with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
        log.write(f"{number} ")
    assert number != BAD

def test_skipped():
    pytest.skip("not today")
"""


def run(folder: Path, bad: int, *arguments: str) -> subprocess.CompletedProcess:
    """Three files of five tests, in the middle one of which one number is bad."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name in ("first", "second", "third"):
        (folder / f"test_{name}.py").write_text(FILE.replace("BAD", str(bad if name == "second" else -1)))
    command = [sys.executable, str(SCRIPT), str(folder), "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_every_test_runs_once_with_its_files_fixtures(tmp_path):
    done = run(tmp_path, -1, "-k", "number")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("12 passed, 3 deselected in ")
    assert {(tmp_path / f"test_{name}.log").read_text() for name in ("first", "second", "third")} == {"made 0 1 2 3 "}


@pytest.mark.parametrize("bad", (0, 3))
def test_a_failure_is_told_and_decides_the_exit_code(tmp_path, bad):
    done = run(tmp_path, bad)
    assert done.returncode == 1
    assert f"assert {bad} != {bad}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("11 passed, 1 failed, 3 skipped in ")


def test_no_test_is_no_success(tmp_path):
    assert run(tmp_path, -1, "-k", "nothing_has_this_name").returncode != 0


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name")
    done = run(tmp_path, -1)
    assert done.returncode != 0 and "nothing_of_this_name" in done.stdout
