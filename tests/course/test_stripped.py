"""Copies of the library with holes, and which tasks reach which."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.course.chapter import Task, all_chapters, read_chapter
from minillm.course.leaks import answers, gives_away
from minillm.course.source import read_module
from minillm.course.stripped import all_modules, is_hole, needed_modules, needs, stripped_copy, uses

FILES = {
    "minillm/__init__.py": '__version__ = "1"\n',
    "minillm/low/__init__.py": "",
    "minillm/low/parts.py": '''
LIMIT = 4


def first(x):
    """First."""
    return x + LIMIT * 2 + len(str(x))


def second(x):
    return first(x) * first(x + 1)


def unused(x):
    return x


RULES = {"second": second}
''',
    "minillm/low/classes.py": '''
from minillm.low import parts
from minillm.low.parts import RULES as rules


class Base:
    def __init__(self):
        self.x = 1

    def run(self, x):
        return rules["second"](x) + self.step(x)

    def step(self, x):
        return parts.unused(x)


class Child(Base):
    def __init__(self):
        super().__init__()
        self.y = 2

    def go(self):
        return self.run(3)

    def alone(self, unused):
        return unused


def build():
    return Child()
''',
    "minillm/top.py": "from minillm.low.classes import build\n\n\ndef all_of_it():\n    return build().go()\n",
    "minillm/other.py": "import minillm.low.parts\n",
}

OBJECTS = [
    "low.parts:first",
    "low.parts:second",
    "low.parts:unused",
    "low.classes:Child.go",
    "low.classes:Child.alone",
    "top:all_of_it",
    "low.classes:Base.step",
    "low.classes:Child.__init__",
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(text)
    folder = tmp_path / "clone" / "chapters" / "08_things"
    folder.mkdir(parents=True)
    rows = [
        f'[[task]]\nid = "8.{number}"\nobject = "minillm.{name}"\npoints = 1\nhint = "h"\n'
        for number, name in enumerate(OBJECTS, 1)
    ]
    (folder / "exercise.toml").write_text('title = "T"\n' + "".join(rows))
    return tmp_path / "clone"


def test_modules_of_a_package(clone):
    assert all_modules(clone) == {
        "minillm",
        "minillm.low",
        "minillm.low.parts",
        "minillm.low.classes",
        "minillm.top",
        "minillm.other",
    }
    assert needed_modules(["minillm.low.classes"], clone) == {
        "minillm",
        "minillm.low",
        "minillm.low.parts",
        "minillm.low.classes",
    }


def test_only_the_named_bodies_go(clone, tmp_path):
    chapter = read_chapter("08", clone)
    stripped_copy(tmp_path / "copy", [chapter.task("8.1"), chapter.task("8.4")], root=clone)
    for name, text in FILES.items():
        copied = (tmp_path / "copy" / name).read_text()
        if name.endswith("parts.py"):
            assert copied == text.replace(
                "    return x + LIMIT * 2 + len(str(x))\n",
                '    # TASK 8.1 (1 point)\n    # h\n    raise NotImplementedError("task 8.1")\n',
            )
        elif name.endswith("classes.py"):
            assert "self.run(3)" not in copied
            assert "super().__init__()" in copied
        else:
            assert copied == text


def test_only_needed_modules_are_copied(clone, tmp_path):
    files = stripped_copy(tmp_path / "copy", [], ["minillm.low.parts"], root=clone)
    assert [str(file) for file in files] == ["minillm/__init__.py", "minillm/low/__init__.py", "minillm/low/parts.py"]
    assert not (tmp_path / "copy" / "minillm" / "top.py").exists()


def test_removed_objects_raise_but_can_be_imported(clone, tmp_path):
    task = Task("8.1", "minillm.low.parts", "first", 1, "h", remove=("minillm.low.classes:Base",))
    stripped_copy(tmp_path / "copy", [task], root=clone)
    code = (
        "from minillm.low.classes import Child\nfrom minillm.low.parts import first\n"
        "for call in (lambda: first(1), lambda: Child().go()):\n"
        "    try:\n        call()\n    except NotImplementedError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path / "copy", env=os.environ
    )
    assert done.stdout.splitlines() == ["task 8.1", "left out of this copy: it would give task 8.1 away"]


@pytest.mark.parametrize(
    "task, reached",
    [
        ("8.1", ""),
        ("8.2", "8.1"),
        ("8.3", ""),
        ("8.4", "8.1 8.2 8.3 8.7 8.8"),  # run and step are inherited, second is in a dictionary, unused in a module
        ("8.5", "8.8"),  # a parameter hides the function of its name
        ("8.6", "8.1 8.2 8.3 8.4 8.5 8.7 8.8"),
        ("8.7", "8.3"),
        ("8.8", ""),
    ],
)
def test_uses(clone, task, reached):
    chapter = read_chapter("08", clone)
    assert uses(chapter, chapter.task(task)) == set(reached.split())


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.number)
def test_no_answer_stands_in_the_stripped_library(chapter, tmp_path):
    known = answers(chapter)
    for file in stripped_copy(tmp_path, chapter.tasks):
        assert gives_away((tmp_path / file).read_text(), known) == []
    modules = {task.module for task in chapter.tasks}
    modules |= {name.split(":")[0] for task in chapter.tasks for name in task.remove}
    whole = "".join(line for module in modules for line in gives_away(read_module(module), known))
    told = {task.id for task in chapter.tasks if f"task {task.id}" in known}  # not one like `return gradient, None`
    assert {task_id for task_id in told if f"task {task_id}" not in whole} == set()
    assert len(told) >= len(chapter.tasks) - 1


def test_an_answer_is_found_under_another_name(clone):
    text = "def mine(x):\n    return x + LIMIT * 2 + len(str(x))\n\n\ndef other(x):\n    return x + LIMIT\n"
    assert gives_away(text, answers(read_chapter("08", clone))) == ["line 1: mine has 1 of 1 statements of task 8.1"]


def test_chapters_need_each_other_in_one_direction():
    attention, gpt = read_chapter("08"), read_chapter("12")
    assert needs(gpt, attention) >= {"8.4", "8.5"}  # the decoder splits and merges heads
    assert needs(attention, gpt) == set()


def test_holes_are_recognised(clone, tmp_path):
    chapter = read_chapter("08", clone)
    assert not any(is_hole(task, clone) for task in chapter.tasks)
    stripped_copy(tmp_path / "copy", [chapter.task("8.1"), chapter.task("8.4")], root=clone)
    assert [task.id for task in chapter.tasks if is_hole(task, tmp_path / "copy")] == ["8.1", "8.4"]


def test_a_starter_is_no_hole_so_copies_raise_instead(clone, tmp_path):
    task = Task("8.1", "minillm.low.parts", "first", 1, "h", starter="return 1")
    stripped_copy(tmp_path / "copy", [task], root=clone)
    assert is_hole(task, tmp_path / "copy")
