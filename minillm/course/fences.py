"""A line scanner for Markdown: which lines are prose, which stand between fences and what the fence says."""

import re
from dataclasses import dataclass

from minillm.errors import DataError

OPENING = re.compile(r"^ {0,3}(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
ANY_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]")


@dataclass(frozen=True)
class Block:
    """A run of lines of one kind.

    Args:
        info: what stands behind the opening fence (`python show`), or None for prose.
        text: the lines; a fence's marks are not among them.
        line: number of the first line of `text` in the file, from 1.
    """

    info: str | None
    text: str
    line: int

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the fence: ("python", "show"); none for prose and for a bare fence."""
        return tuple((self.info or "").split())


def blocks(markdown: str, where: str = "the text") -> list[Block]:
    """Cut a text into prose and fenced blocks, in order; blank prose is left out.

    Raises:
        DataError: if a fence is never closed.

    Example:
        >>> [(block.info, block.text) for block in blocks("Add.\\n```python\\n1 + 1\\n```\\nDone.")]
        [(None, 'Add.'), ('python', '1 + 1'), (None, 'Done.')]
    """
    found: list[Block] = []
    lines: list[str] = []
    marks, info, start = "", None, 1

    def close() -> None:
        if info is not None or any(line.strip() for line in lines):
            found.append(Block(info, "\n".join(lines), start))

    for number, line in enumerate(markdown.splitlines(), start=1):
        opening = OPENING.match(line)
        if not marks and opening:
            close()
            marks, info, lines, start = opening["marks"], opening["info"].strip(), [], number + 1
        elif marks and line.strip().startswith(marks) and not line.strip().strip(marks[0]):
            close()
            marks, info, lines, start = "", None, [], number + 1
        else:
            lines.append(line)
    if marks:
        raise DataError(f"{where}, line {start - 1}: the fence {marks}{info} is never closed; put {marks} on a line")
    close()
    return found


def prose_lines(markdown: str, where: str = "the text") -> list[tuple[int, str]]:
    """(line number, line) of everything that does not stand between fences."""
    return [
        (block.line + offset, line)
        for block in blocks(markdown, where)
        if block.info is None
        for offset, line in enumerate(block.text.split("\n"))
    ]


def fenced(text: str, language: str = "") -> str:
    """The text between fences that are longer than any run of backticks in it.

    Example:
        >>> fenced("1 + 1", "python")
        '```python\\n1 + 1\\n```'
    """
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"
