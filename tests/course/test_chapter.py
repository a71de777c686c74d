"""Reading exercise.toml: what is right, and each mistake an author can make."""

from pathlib import Path

import pytest

from minillm.course.chapter import all_chapters, chapter_folder, read_chapter
from minillm.errors import ConfigError

LIBRARY = '''
def double(x):
    """Twice x."""
    return x + x


class Counter:
    """Counts."""

    def add(self, x):
        return x
'''

TOML = """
title = "Numbers"
[[task]]
id = "8.1"
object = "minillm.numbers:double"
points = 2
hint = "Add."
[[task]]
id = "8.2"
object = "minillm.numbers:Counter.add"
points = 1
hint = "Count."
remove = ["minillm.numbers:double"]
starter = '''
y = x
return y
'''
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with one library module and one chapter."""
    (tmp_path / "minillm").mkdir()
    (tmp_path / "minillm" / "numbers.py").write_text(LIBRARY)
    (tmp_path / "chapters" / "08_numbers").mkdir(parents=True)
    (tmp_path / "chapters" / "08_numbers" / "exercise.toml").write_text(TOML)
    (tmp_path / "chapters" / "09_planned").mkdir()
    return tmp_path


def write(clone: Path, old: str, new: str) -> None:
    assert old in TOML
    (clone / "chapters" / "08_numbers" / "exercise.toml").write_text(TOML.replace(old, new))


def test_a_chapter_is_read(clone):
    chapter = read_chapter("08", clone)
    assert (chapter.number, chapter.title, chapter.points) == ("08", "Numbers", 3)
    first, second = chapter.tasks
    assert (first.id, first.module, first.name, first.top, first.points) == (
        "8.1",
        "minillm.numbers",
        "double",
        "double",
        2,
    )
    assert (second.top, second.object, second.remove) == (
        "Counter",
        "minillm.numbers:Counter.add",
        ("minillm.numbers:double",),
    )
    assert second.starter == "y = x\nreturn y"
    assert chapter.task("8.2") is second


@pytest.mark.parametrize("name", [8, "8", "08", "08_numbers"])
def test_all_ways_to_name_a_chapter(clone, name):
    assert chapter_folder(name, clone).name == "08_numbers"


def test_a_folder_names_a_chapter_too(clone):
    assert read_chapter(clone / "chapters" / "08_numbers", clone).number == "08"


def test_only_folders_with_an_exercise_are_chapters(clone):
    assert [chapter.number for chapter in all_chapters(clone)] == ["08"]


def test_unknown_chapter_names_the_known(clone):
    with pytest.raises(ConfigError, match="08_numbers, 09_planned"):
        read_chapter("10", clone)


def test_chapter_without_exercise(clone):
    with pytest.raises(ConfigError, match="has no exercise"):
        read_chapter("09", clone)


def test_unknown_task_names_the_known(clone):
    with pytest.raises(ConfigError, match="8.1, 8.2"):
        read_chapter("08", clone).task("8.3")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"8.2"', '"8.1"', "task id 8.1 comes more than once"),
        ('"8.2"', '"9.2"', "expected 8. and a running number"),
        ('"8.2"', '"8.02"', "running number"),
        ("numbers:double\"\npoints", "numbers:triple\"\npoints", "defines no triple"),
        ("minillm.numbers:Counter.add", "minillm.numbers:Counter.take", "defines no Counter.take"),
        ("minillm.numbers:Counter.add", "minillm.numbers:Counter", "is a class"),
        ("minillm.numbers:Counter.add", "minillm.numbers:double", "comes more than once"),
        ("minillm.numbers:Counter.add", "minillm.letters:Counter", "no module minillm.letters"),
        ("minillm.numbers:Counter.add", "numbers:Counter.add", "no library object"),
        ('["minillm.numbers:double"]', '["minillm.numbers:gone"]', "defines no gone"),
        ("points = 1", "points = 0", "at least 1"),
        ("points = 1", "points = true", "expected int"),
        ('["minillm.numbers:double"]', '"minillm.numbers:double"', "expected list"),
        ('hint = "Count."', 'hint = " "', "hint is empty"),
        ('hint = "Count."', "", "hint is missing"),
        ('hint = "Count."', 'hnt = "Count."', "unknown hnt"),
        ('title = "Numbers"', "", "title is missing"),
        ('title = "Numbers"', 'title = "Numbers"\ngiven = ["minillm.numbers:gone"]', "defines no gone"),
        ('title = "Numbers"', "title = ", "not a TOML file"),
    ],
)
def test_authors_mistakes(clone, old, new, message):
    write(clone, old, new)
    with pytest.raises(ConfigError, match=message):
        read_chapter("08", clone)
