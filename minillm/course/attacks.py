"""Submissions that try to get points without solving anything: `tests/course/attacks/*.py`, for any chapter.

Each file defines `attack(*args, **kwargs)`, which takes the place of every task's function.
"""

from dataclasses import dataclass
from pathlib import Path

from minillm.course.chapter import CourseChapter
from minillm.course.skeleton import skeleton
from minillm.course.syllabus import ROOT

FOLDER = Path("tests", "course", "attacks")
NEEDS = "# needs: "


@dataclass(frozen=True)
class Attack:
    """One attack file.

    Args:
        name: the file's, without ending.
        text: its source.
        needs: the protection of the operating system (see `worker.py`) without which it cannot be stopped.
    """

    name: str
    text: str
    needs: tuple[str, ...] = ()

    def submission(self, chapter: CourseChapter) -> str:
        """The chapter's skeleton with the attack in the place of all functions."""
        lines = [f"{task.name} = attack" for task in chapter.tasks]
        return "\n\n".join([skeleton(chapter), self.text, "\n".join(lines), ""])


def read_attacks(root: Path = ROOT) -> list[Attack]:
    """All attack files, by name; a line `# needs: hidden pid` in one says what protection it takes to stop it."""
    found = []
    for path in sorted((root / FOLDER).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        needs = [line.removeprefix(NEEDS).split() for line in text.splitlines() if line.startswith(NEEDS)]
        found.append(Attack(path.stem, text, tuple(word for words in needs for word in words)))
    return found
