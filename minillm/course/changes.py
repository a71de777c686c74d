"""Which chapters does a change touch? Those whose own files it changes, and those that need a module it changes."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from minillm.course.chapter import CourseChapter, split_object
from minillm.course.stripped import needed_modules

OF_A_CHAPTER = re.compile(r"(?:chapters/|notebooks/|tests/graders/test_)(\d\d)_")
OF_ALL = re.compile(r"minillm/course/|tests/graders/conftest\.py|tests/course/attacks/|pyproject\.toml|constraints\.")


def changed_files(root: Path, since: str = "") -> list[str] | None:
    """Paths that differ between a commit and the working tree, new files included.

    Args:
        root: the clone.
        since: a commit or branch; empty is the commit before the last one.

    Returns:
        paths relative to `root`; None where git cannot tell: no git, no repository, no such commit.
    """
    commit = since or "HEAD~1"
    listings = (["diff", "--name-only", "--relative", commit, "--"], ["ls-files", "--others", "--exclude-standard"])
    found: list[str] = []
    for words in listings:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found += done.stdout.splitlines()
    return found


def touched(chapters: Iterable[CourseChapter], files: Iterable[str] | None) -> list[CourseChapter]:
    """The chapters that a change of these files could break; all if the files are None or the machinery changed.

    Args:
        chapters: to choose from.
        files: paths relative to the clone, with "/".
    """
    chapters = list(chapters)
    if files is None:
        return chapters
    files = list(files)
    if any(OF_ALL.match(file) for file in files):
        return chapters
    numbers = {match[1] for file in files if (match := OF_A_CHAPTER.match(file))}
    modules = {module_name(file) for file in files if file.startswith("minillm/") and file.endswith(".py")}
    return [chapter for chapter in chapters if chapter.number in numbers or modules & modules_of(chapter)]


def module_name(file: str) -> str:
    """ "minillm/nn/attention.py" -> "minillm.nn.attention", "minillm/nn/__init__.py" -> "minillm.nn"."""
    parts = file.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(chapter: CourseChapter) -> set[str]:
    """The modules that hold a chapter's tasks and given objects, and all that these import."""
    given = [split_object(name, "given")[0] for name in chapter.given]
    return needed_modules([*(task.module for task in chapter.tasks), *given], chapter.root)
