"""One JSON object per line: what a run measured, easy to append to, to cut and to plot."""

import json
import os
from collections.abc import Collection
from pathlib import Path

from minillm.errors import DataError


class MetricsWriter:
    """Appends lines to a file and has each one on its way to the disk before it returns.

    Args:
        path: the file; made with its folder if missing.
        after_step: None starts a new file. A step number keeps the lines up to that step and cuts the later ones,
            also a half-written last one: a resumed run then writes the file of an uninterrupted run.
        pending: kinds of lines that will be written again for `after_step` itself.

    Raises:
        DataError: if a file to be continued has a damaged line before its last.
    """

    def __init__(self, path: str | Path, after_step: int | None = None, pending: Collection[str] = ()):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if after_step is None else lines_up_to(self.path, after_step, pending)
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, **entry: object) -> None:
        """Append one line and flush it.

        Args:
            entry: at least `step`; numbers, texts, or lists of them. NaN is written as null, which JSON knows.
        """
        entry = {key: None if value != value else value for key, value in entry.items()}
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file; further writes fail."""
        self.file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path, kind: str | None = None) -> list[dict]:
    """The lines of a metrics file.

    Args:
        path: the file.
        kind: only lines of this kind ("train", "validation", ...); None for all.

    Returns:
        one dictionary per line, in order. A half-written last line (the run was killed) is left out.

    Raises:
        DataError: if there is no such file or an earlier line is not JSON; the message names file and line.
    """
    entries = [entry for _, entry in numbered_entries(Path(path))]
    return [entry for entry in entries if kind is None or entry.get("kind") == kind]


def lines_up_to(path: Path, last_step: int, pending: Collection[str]) -> list[str]:
    """The lines of steps up to `last_step`, without the pending kinds at that step; none if there is no file."""
    if not path.exists():
        return []
    last = (last_step, False)
    return [
        line for line, entry in numbered_entries(path) if (entry.get("step", 0), entry.get("kind") in pending) <= last
    ]


def numbered_entries(path: Path) -> list[tuple[str, dict]]:
    """(line, its content) for each whole line."""
    try:
        lines = [line + "\n" for line in path.read_text(encoding="utf-8", errors="replace").split("\n")]
    except OSError as error:
        raise DataError(f"{path}: metrics cannot be read ({error.strerror}); give a run's metrics.jsonl") from error
    lines[-1] = lines[-1][:-1]  # what follows the last line end: nothing, or a half-written line
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not line.endswith("\n"):
                raise ValueError("not a whole JSON object")
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not a metrics line ({error}); delete it to go on") from error
        pairs.append((line, entry))
    return pairs
