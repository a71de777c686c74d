"""Every attack scores 0, and afterwards the grader grades as before and no process is left."""

import json
import os
from pathlib import Path

import pytest

from minillm.course.attacks import read_attacks
from minillm.course.grading import Grader
from minillm.course.remote import Limits, Worker

ATTACKS = {attack.name: attack for attack in read_attacks()}
SLOW = {"endless_sleep", "flood", "many_allocations", "many_processes", "fill_disk", "search_memory", "daemon"}
MARKS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ATTACKS]


@pytest.fixture(scope="module")
def strict(clone):
    with Grader("90", secret="course", limits=Limits(cpu_seconds=1, wall_factor=2.0), root=clone) as opened:
        yield opened


def marks_of_success():
    return [path for path in Path("/tmp").iterdir() if path.name.startswith(("minillm-attack", "minillm-wire"))]


def test_there_are_the_eleven_of_the_notes_and_more():
    eleven = {"endless_loop", "exit_on_import", "exit_on_call", "patched_testing", "flood", "object_array"}
    eleven |= {"giant_allocation", "import_reference", "search_memory", "forged_answers", "daemon"}
    assert eleven < set(ATTACKS) and len(ATTACKS) >= 24


@pytest.mark.parametrize("name", MARKS)
def test_an_attack_gets_nothing(strict, worker, reference, processes_of, name, tmp_path):
    attack = ATTACKS[name]
    if not set(attack.needs) <= set(worker.protection):
        pytest.skip(f"without {attack.needs} this one cannot be stopped; here is {worker.protection}")
    before = set(processes_of(worker))
    report = strict.grade(attack.submission(strict.chapter), worker, name, ["90.2"], tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert report.score == 0 and content["score"] == 0 and content["tasks"][0]["status"] != "passed"
    assert set(processes_of(worker)) == before and marks_of_success() == []
    assert strict.grade(reference, worker, "after", ["90.3"]).score == 1


@pytest.mark.slow
def test_attacks_on_all_tasks_of_all_kinds(strict, worker):
    """A method, and functions whose tests need other tasks."""
    for name in ("forged_answers", "exit_on_import", "says_yes", "patched_testing", "import_reference", "daemon"):
        report = strict.grade(ATTACKS[name].submission(strict.chapter), worker, name)
        assert report.score == 0 and report.complete, name


@pytest.mark.slow
def test_attacks_where_there_are_no_namespaces(strict, reference, processes_of):
    """What needs no protection by the system is stopped without it, too."""
    with Worker(isolate=False) as bare:
        for name, attack in ATTACKS.items():
            if not attack.needs:
                assert strict.grade(attack.submission(strict.chapter), bare, name, ["90.2"]).score == 0, name
        assert strict.grade(reference, bare, "after", ["90.2", "90.3"]).score == 4
        assert len(processes_of(bare)) == 1
        folder = bare.folder
    assert not os.path.exists(folder) and marks_of_success() == []


@pytest.mark.slow
def test_no_process_outlives_the_worker(strict, processes_of):
    with Worker() as opened:
        strict.grade(ATTACKS["daemon"].submission(strict.chapter), opened, "daemon", ["90.1"])
        assert len(processes_of(opened)) >= 1
        folder = opened.folder.encode()
    left = []
    for process in Path("/proc").iterdir():
        try:
            left += [process.name] if process.name.isdecimal() and folder in (process / "cmdline").read_bytes() else []
        except OSError:
            continue
    assert left == []
