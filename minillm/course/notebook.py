"""Notebooks from chapter texts: `chapters/08_attention/README.md` becomes `notebooks/08_attention.ipynb`.

A fence that says `python` is a cell that is run, one that says `python raises-exception` a cell that is meant to fail;
every other fence (`python show`, `console`) is only displayed. The same text gives the same bytes.

`python -m minillm.course.notebook chapters/08_attention --preset tiny --out /tmp/08.ipynb --png-dir /tmp/figures`
builds one notebook and saves its figures, so that they can be looked at.
"""

import base64
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import v4

from minillm.config import parse_config, setting
from minillm.course.fences import ANY_HEADING, Block, blocks, fenced
from minillm.course.quotation import show
from minillm.errors import CourseError, MinillmError

__all__ = ["build", "figures", "notebook_of", "notebook_text", "show"]

PRESETS = {"tiny": (300, 600), "default": (600, 1200), "gpu": (1800, 3600)}  # seconds: one cell, the whole notebook
PRESET_LINE = re.compile(r'^PRESET = "\w+"', flags=re.MULTILINE)
LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)#\s]+)(?P<after>(?:#[^)\s]*)?\))")

CLONE_ADDRESS = ""  # where `git clone` finds this project; a course that publishes its own copy says so here
FIRST_CELL = '''\
# Finds the clone that this notebook belongs to; where there is none, as on Colab, it makes one.
import os, subprocess, sys
from pathlib import Path

CLONE_ADDRESS = "{address}"  # the project's address, for `git clone`
folders = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "minillm"]
root = next((folder for folder in folders if (folder / "chapters" / "syllabus.toml").is_file()), None)
if root is None:
    root = Path.cwd() / "minillm"
    address = CLONE_ADDRESS or input("Address of the project, for git clone: ")
    subprocess.run(["git", "clone", "--depth", "1", address, str(root)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", str(root)], check=True)
os.chdir(root)
sys.path.insert(0, str(root))

from minillm.course.notebook import show
from minillm.plots import use_house_style

use_house_style()'''


def build(folder: Path, preset: str = "default", execute: bool = True) -> nbformat.NotebookNode:
    """Make a chapter's notebook and run it.

    Args:
        folder: the chapter's folder, chapters/NN_name.
        preset: "tiny", "default" or "gpu": what the line `PRESET = ...` of the text becomes.
        execute: False leaves the outputs empty.

    Returns:
        the notebook; its metadata hold the preset and the hash of its source.

    Raises:
        CourseError: no such chapter or preset, no line `PRESET = "default"` in the first cell, or a cell that fails.
    """
    text = _text_of(folder)
    if preset not in PRESETS:
        raise CourseError(f"preset {preset!r} is unknown; known are {', '.join(PRESETS)}")
    notebook = notebook_of(text, folder, preset)
    if execute:
        from minillm.course.execution import execute as run

        run(notebook, folder.resolve().parents[1], *PRESETS[preset], where=folder.name)
    return notebook


def notebook_of(text: str, folder: Path, preset: str) -> nbformat.NotebookNode:
    """The notebook of a text that lies in `folder`, not yet run.

    Raises:
        CourseError: if the first python fence does not hold the line `PRESET = "default"`, once.
    """
    where = f"{folder.name}/README.md"
    code = [block for block in blocks(text, where) if is_cell(block)]
    if not code or len(PRESET_LINE.findall(code[0].text)) != 1:
        line = code[0].line if code else 1
        raise CourseError(f'{where}, line {line}: the first python fence must hold the line PRESET = "default", once')
    cells = [first_cell(folder.name)]
    for kind, source, tags in cells_of(text, folder):
        if kind == "code" and source == code[0].text:
            source = PRESET_LINE.sub(f'PRESET = "{preset}"', source)
        cells.append(cell_of(folder.name, kind, source, tags))
    return assembled(cells, {"source": source_hash(folder), "preset": preset})


def is_cell(block: Block) -> bool:
    """Whether a block is run: its fence says python and nothing else, or python raises-exception."""
    return block.words in (("python",), ("python", "raises-exception"))


def cells_of(text: str, folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Kind, source and tags of the cells; a heading begins a new Markdown cell, so that an edit touches little."""
    prose: list[str] = []
    for block in blocks(text, f"{folder.name}/README.md"):
        if is_cell(block):
            yield from _prose_cell(prose)
            yield "code", block.text, list(block.words[1:])
        elif block.info is not None:
            apart = [""] if prose and prose[-1].strip() else []
            prose += [*apart, fenced(block.text, block.words[0] if block.words else "")]
        else:
            for line in block.text.split("\n"):
                if ANY_HEADING.match(line):
                    yield from _prose_cell(prose)
                prose.append(relinked(line, folder))
    yield from _prose_cell(prose)


def _prose_cell(prose: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    source = "\n".join(prose).strip()
    prose.clear()
    if source:
        yield "markdown", source, []


def relinked(line: str, folder: Path) -> str:
    """A line of Markdown whose relative links hold in notebooks/; another chapter's text becomes its notebook."""

    def moved(match: re.Match) -> str:
        target = match["target"]
        if ":" in target or target.startswith("/"):
            return match[0]
        path = Path(os.path.normpath(Path("chapters", folder.name, target)))
        chapter = path.parts[0] == "chapters" and path.name == "README.md" and len(path.parts) == 3
        new = f"{path.parts[1]}.ipynb" if chapter else f"../{path.as_posix()}"
        return f"{match['before']}{new}{'' if chapter else match['after'][:-1]})"

    return LINK.sub(moved, line)


def first_cell(chapter: str) -> nbformat.NotebookNode:
    """The cell that every notebook begins with: it finds the clone or makes one."""
    return cell_of(chapter, "code", FIRST_CELL.format(address=CLONE_ADDRESS))


def cell_of(chapter: str, kind: str, source: str, tags: list[str] | None = None) -> nbformat.NotebookNode:
    """A "code" or "markdown" cell whose id follows from chapter, kind and source."""
    name = hashlib.sha1(f"{chapter}\0{kind}\0{source}".encode(), usedforsecurity=False).hexdigest()[:16]
    cell = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell}[kind](source, id=name)
    if tags:
        cell.metadata["tags"] = tags
    return cell


def assembled(cells: list[nbformat.NotebookNode], ours: dict[str, str]) -> nbformat.NotebookNode:
    """A notebook whose cells have different ids: the second of two equal cells gets a number."""
    taken: set[str] = set()
    for cell in cells:
        plain, number = cell.id, 1
        while cell.id in taken:
            number += 1
            cell.id = f"{plain}-{number}"
        taken.add(cell.id)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "minillm": ours}
    notebook = v4.new_notebook(cells=cells, metadata=metadata)
    notebook.nbformat_minor = 5
    return notebook


def notebook_path(folder: Path) -> Path:
    """Where the notebook of a chapter's folder is committed."""
    return folder.resolve().parents[1] / "notebooks" / f"{folder.resolve().name}.ipynb"


def source_hash(folder: Path) -> str:
    """A hash of all that the notebook is made from: the chapter's text and the first cell."""
    parts = (FIRST_CELL, CLONE_ADDRESS, folder.name, _text_of(folder))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _text_of(folder: Path) -> str:
    path = folder / "README.md"
    if not path.is_file():
        raise CourseError(f"there is no {path}: expected a chapter's folder such as chapters/08_attention")
    return path.read_text(encoding="utf-8")


def notebook_text(notebook: nbformat.NotebookNode) -> str:
    """The notebook as it is written to disk.

    Raises:
        CourseError: if it is not a valid notebook of format 4.5.
    """
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        raise CourseError(f"the notebook that was built is not valid: {error}") from error
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def figures(notebook: nbformat.NotebookNode) -> list[tuple[str, bytes]]:
    """The PNG pictures of an executed notebook: (`cell-output`, the file's bytes), in order."""
    return [
        (f"{number:02}-{place}", base64.b64decode(output.data["image/png"]))
        for number, cell in enumerate(notebook.cells, start=1)
        for place, output in enumerate(cell.get("outputs", []), start=1)
        if "image/png" in output.get("data", {})
    ]


@dataclass(frozen=True)
class Settings:
    """Build one chapter's notebook, run it, and save its figures to look at."""

    folder: Path = setting(Path("."), "the chapter's folder, chapters/NN_name", positional=True)
    preset: str = setting("default", "sizes of the experiments", choices=tuple(PRESETS))
    out: Path | None = setting(None, "file to write; by default notebooks/NN_name.ipynb, for preset default only")
    png_dir: Path | None = setting(None, "folder for the figures as PNG files")
    execute: bool = setting(True, "run the cells")


def main(argv: list[str]) -> int:
    """Run the command of this module; 0 done, 2 a mistake that was explained."""
    try:
        settings = parse_config(Settings, argv, "python -m minillm.course.notebook")
        notebook = build(settings.folder, settings.preset, settings.execute)
        out = settings.out or notebook_path(settings.folder)
        if settings.out is None and settings.preset != "default":
            raise CourseError(f"{out} is for preset default; give --out FILE for preset {settings.preset}")
        text = notebook_text(notebook)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        pictures = figures(notebook)
        print(f"{out}: {len(notebook.cells)} cells, {len(pictures)} figures, {len(text.encode()) / 1000:.0f} kB")
        for name, png in pictures if settings.png_dir else []:
            settings.png_dir.mkdir(parents=True, exist_ok=True)
            (settings.png_dir / f"{name}.png").write_bytes(png)
            print(f"{settings.png_dir / name}.png: {len(png) / 1000:.0f} kB")
    except MinillmError as error:
        print(f"minillm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
