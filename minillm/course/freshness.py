"""Are the committed notebooks those of today's texts and library, and which must be built again?

`python -m minillm.course.freshness` builds what is stale at the default preset; `--check` only says what is,
`--preset tiny` runs every chapter in seconds and keeps nothing.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from minillm.config import parse_config, setting
from minillm.course.notebook import (
    PRESETS,
    assembled,
    build,
    cell_of,
    first_cell,
    notebook_path,
    notebook_text,
    source_hash,
)
from minillm.course.quotation import as_output, quoted_by_name
from minillm.course.syllabus import ROOT, Chapter, read_syllabus
from minillm.errors import CourseError, MinillmError

INDEX = "00_index"
WELCOME = """\
# minillm: the notebooks

You can understand a language model by building every part of it, and what you built really works.

Each notebook is a chapter with everything it computed; run it yourself, change a number, run it again. The same text
without outputs is the chapter's page. Exercises: `minillm course start 08` gives you a file to fill in,
`minillm course test 08` says how far you are."""


def chapter_folders(root: Path = ROOT) -> list[Path]:
    """The folders of the finished chapters, in the order of the syllabus."""
    return [root / "chapters" / chapter.folder for chapter in read_syllabus(root) if chapter.finished]


def stale(folder: Path) -> str | None:
    """Why a chapter's committed notebook is not the one its text would give now; None if it is.

    The source's hash must agree, every quotation of the library must still be what the library says, and the notebook
    must have been run at the default preset. Nothing is executed.
    """
    path = notebook_path(folder)
    if not path.is_file():
        return "there is no notebook yet"
    notebook = read_notebook(path)
    ours = notebook.metadata.get("minillm", {})
    if ours.get("source") != source_hash(folder):
        return "the chapter's text has changed since"
    if ours.get("preset") != "default":
        return f"it was built at preset {ours.get('preset')}, only default is committed"
    if any(cell.cell_type == "code" and cell.execution_count is None for cell in notebook.cells):
        return "it has not been run"
    for name, docstring, output in quotations(notebook):
        if output.data["text/plain"] != quoted_by_name(name, docstring):
            return f"it quotes {name}, which has changed since"
    return None


def quotations(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, bool, nbformat.NotebookNode]]:
    """Name, whether with docstring, and output of everything that `show` displayed."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            marks = output.get("metadata", {}).get("minillm", {})
            if "quotes" in marks:
                yield marks["quotes"], marks["docstring"], output


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook from disk.

    Raises:
        CourseError: if the file is not a notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError) as error:
        raise CourseError(f"{path} is not a notebook: {error}; delete it and run make notebooks") from error


def requote(notebook: nbformat.NotebookNode) -> None:
    """Replace each quotation by what the library says now, without running anything."""
    for name, docstring, output in quotations(notebook):
        output.data.update(as_output(quoted_by_name(name, docstring)))


def refresh(folder: Path) -> str | None:
    """Build a chapter's notebook if it is stale; where only quotations have changed, nothing is run.

    Returns:
        what was wrong, or None if nothing was to be done.

    Raises:
        CourseError: if a cell fails.
    """
    reason = stale(folder)
    if reason is None:
        return None
    path = notebook_path(folder)
    notebook = read_notebook(path) if reason.startswith("it quotes") else build(folder)
    requote(notebook)
    path.parent.mkdir(exist_ok=True)
    path.write_text(notebook_text(notebook), encoding="utf-8")
    return reason


def index_notebook(root: Path = ROOT) -> nbformat.NotebookNode:
    """The notebook `00_index.ipynb`: one table of all chapters; what is finished is a link."""
    cells = [first_cell(INDEX), cell_of(INDEX, "markdown", WELCOME)]
    rows: dict[str, list[str]] = {}
    for chapter in read_syllabus(root):
        rows.setdefault(chapter.part, []).append(_index_row(chapter))
    for part, lines in rows.items():
        table = ["| no. | notebook | question it starts from | |", "| --: | --- | --- | --- |", *lines]
        cells.append(cell_of(INDEX, "markdown", f"## {part}\n\n" + "\n".join(table)))
    return assembled(cells, {"preset": "none"})


def _index_row(chapter: Chapter) -> str:
    title = chapter.folder[3:].replace("_", " ")
    if not chapter.finished:
        return f"| {chapter.number} | {title} | {chapter.question} | planned |"
    text = f"[text](../chapters/{chapter.folder}/README.md)"
    return f"| {chapter.number} | [{title}]({chapter.folder}.ipynb) | {chapter.question} | {text} |"


def stale_notebooks(root: Path = ROOT) -> list[str]:
    """A complaint for each notebook in `notebooks/` that is stale, missing, or of no chapter."""
    complaints = []
    for folder in chapter_folders(root):
        if reason := stale(folder):
            complaints.append(f"notebooks/{folder.name}.ipynb: {reason}; run make notebooks")
    known = {f"{folder.name}.ipynb" for folder in chapter_folders(root)} | {f"{INDEX}.ipynb"}
    found = {path.name for path in (root / "notebooks").glob("*.ipynb")}
    complaints += [f"notebooks/{name}: no finished chapter has this name; delete it" for name in sorted(found - known)]
    index = root / "notebooks" / f"{INDEX}.ipynb"
    if not index.is_file() or index.read_text(encoding="utf-8") != notebook_text(index_notebook(root)):
        complaints.append(f"notebooks/{INDEX}.ipynb: it is not that of today's syllabus; run make notebooks")
    return complaints


def refresh_notebooks(root: Path = ROOT) -> list[str]:
    """Build every stale notebook and the index.

    Returns:
        one line for each notebook that was built, with the reason.

    Raises:
        CourseError: if a cell of a chapter fails; chapters before it are written.
    """
    done = []
    for folder in chapter_folders(root):
        if reason := refresh(folder):
            done.append(f"notebooks/{folder.name}.ipynb is new: {reason}")
    index = root / "notebooks" / f"{INDEX}.ipynb"
    text = notebook_text(index_notebook(root))
    if not index.is_file() or index.read_text(encoding="utf-8") != text:
        index.parent.mkdir(exist_ok=True)
        index.write_text(text, encoding="utf-8")
        done.append(f"notebooks/{INDEX}.ipynb is new")
    return done


def ran(folder: Path, preset: str) -> str:
    """Run a chapter without writing anything, and say how long it took."""
    start = time.perf_counter()
    notebook = build(folder, preset)
    return f"{folder.name}: {len(notebook.cells)} cells in {time.perf_counter() - start:.0f} s at preset {preset}"


@dataclass(frozen=True)
class Settings:
    """Build the notebooks whose text or quotations have changed; or check; or run all chapters at another preset."""

    preset: str = setting("default", "tiny or gpu: run all chapters, write nothing", choices=tuple(PRESETS))
    check: bool = setting(False, "only say what is stale; exit code 1 if anything is")


def main(argv: list[str], root: Path = ROOT) -> int:
    """Run the command of this module; 0 done, 1 something is stale, 2 a mistake that was explained."""
    try:
        settings = parse_config(Settings, argv, "python -m minillm.course.freshness")
        if settings.check:
            lines = stale_notebooks(root)
        elif settings.preset == "default":
            lines = refresh_notebooks(root)
        else:
            lines = [ran(folder, settings.preset) for folder in chapter_folders(root)]
    except MinillmError as error:
        print(f"minillm: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines) or "the notebooks are fresh")
    return int(settings.check and bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
