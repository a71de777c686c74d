"""The README is true: its map is the disk, its table is generated, its library example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.course.syllabus import read_syllabus, syllabus_table, with_table
from minillm.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text between a heading of any level and the next heading."""
    return re.split(r"^#+ ", README.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_map_names_what_is_on_disk_and_nothing_else():
    rows = [line for line in section("Map").splitlines() if line.startswith("| `")]
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    package = {
        f"minillm/{path.name}"
        for path in (ROOT / "minillm").iterdir()
        if path.name not in ("__pycache__", "__init__.py")
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith((".", "minillm/"))}
    assert named == package | (folders or named - package)


def test_syllabus_table_is_fresh():
    table = syllabus_table(read_syllabus())
    assert with_table(README, table) == README, "run: python -m minillm.course.syllabus"
    assert table.count("\n| ") >= 39


def test_finished_chapters_become_links(tmp_path):
    (tmp_path / "chapters" / "08_attention").mkdir(parents=True)
    (tmp_path / "chapters" / "syllabus.toml").write_text((ROOT / "chapters" / "syllabus.toml").read_text())
    table = syllabus_table(read_syllabus(tmp_path))
    assert "[attention](chapters/08_attention/README.md)" in table
    assert table.count("(planned)") == 38


def test_missing_syllabus_and_missing_marks_are_named(tmp_path):
    with pytest.raises(DataError, match="clone"):
        read_syllabus(tmp_path)
    with pytest.raises(DataError, match="marks"):
        with_table("no marks here", "table")


def test_library_example_runs():
    code = README.split("```python\n", 1)[1].split("```", 1)[0]
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "The lighthouse" in answer.stdout or answer.stdout.strip()


def test_commands_named_in_the_readme_exist():
    from minillm.cli import VERBS

    verbs = set(re.findall(r"^(?:\$ )?minillm (\w+)", README, flags=re.MULTILINE))
    targets = set(re.findall(r"^\$? ?make (\w+)", README, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert verbs and verbs <= set(VERBS)
    assert targets and all(f"\n{target}:" in makefile for target in targets)
