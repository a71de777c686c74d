"""What is wrong with the pages and notebooks of the course, found without running anything.

Each function returns complaints as (line, text); `page_complaints` and `course_complaints` put them together.
"""

import ast
import dataclasses
import importlib
import importlib.util
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat

from minillm.course.fences import blocks, prose_lines
from minillm.course.freshness import chapter_folders, notebook_path, read_notebook, stale_notebooks
from minillm.course.markdown_math import CODE_SPAN, math_complaints
from minillm.course.notebook import figures, is_cell
from minillm.course.syllabus import ROOT, read_syllabus, syllabus_table, with_table

NOTEBOOK_BYTES, FIGURE_BYTES, FIGURE_WIDTH = 400_000, 60_000, 900
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\((?P<target>[^)\s]+)\)|^\[[^\]]+\]:\s+(?P<defined>\S+)")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(?P<words>.*?)\s*#*$")
SHELL_LANGUAGES = ("bash", "sh", "shell", "zsh")
FOLDERS = ("chapters", "notebooks", "tests", "minillm", "benchmarks", "data")


@dataclass(frozen=True)
class Complaint:
    """One fault of a page: its path from the root, the line (0 = the file as a whole), what is wrong and what to do."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


def course_complaints(root: Path = ROOT, folders: Iterable[Path] | None = None) -> list[Complaint]:
    """Everything that is wrong with the pages, the README's table and the notebooks.

    Args:
        root: the clone.
        folders: the chapters to look at; all finished ones by default.
    """
    chosen = list(chapter_folders(root) if folders is None else folders)
    pages = [*root.glob("*.md"), *root.glob("chapters/*.md"), *(folder / "README.md" for folder in chosen)]
    found = [complaint for page in pages if page.is_file() for complaint in page_complaints(page, root)]
    found += [
        Complaint(f"chapters/{each.name}", 0, "there is no README.md, the chapter's text")
        for each in chosen
        if not (each / "README.md").is_file()
    ]
    found += [Complaint("README.md", 0, text) for text in table_complaints(root)]
    for path in filter(Path.is_file, map(notebook_path, chosen)):
        name = path.relative_to(root.resolve()).as_posix()
        found += [Complaint(name, 0, text) for text in notebook_complaints(path)]
    names = {f"notebooks/{folder.name}.ipynb" for folder in chosen}
    for text in stale_notebooks(root):
        name, _, reason = text.partition(": ")
        if folders is None or name in names:
            found.append(Complaint(name, 0, reason))
    return found


def page_complaints(path: Path, root: Path = ROOT) -> list[Complaint]:
    """Everything that is wrong with one Markdown page: mathematics, links, code, commands."""
    text, name = path.read_text(encoding="utf-8"), path.resolve().relative_to(root.resolve()).as_posix()
    found = [
        *math_complaints(text, name),
        *link_complaints(text, path, root),
        *code_complaints(text, name),
        *command_complaints(text, root, name),
    ]
    return [Complaint(name, line, words) for line, words in sorted(found)]


def link_complaints(text: str, path: Path, root: Path = ROOT) -> list[tuple[int, str]]:
    """Relative links whose file or heading does not exist.

    Args:
        text: what the page says.
        path: where the page lies; links count from its folder.
        root: no link may leave this folder.
    """
    found = []
    for number, line in prose_lines(text, path.name):
        for match in LINK.finditer(CODE_SPAN.sub("", line)):
            target = match["target"] or match["defined"]
            if not re.match(r"[a-z][a-z0-9+.-]*:", target):
                found += [(number, words) for words in _target_complaints(target, text, path, root.resolve())]
    return found


def _target_complaints(target: str, text: str, path: Path, root: Path) -> Iterator[str]:
    name, _, anchor = target.partition("#")
    file = (path.parent / name).resolve() if name else path.resolve()
    if name.startswith("/") or not file.is_relative_to(root):
        yield f"the link {target} leaves the repository"
    elif name and not _exists_exactly(file, root):
        yield f"the link {target} leads nowhere: there is no {file.relative_to(root).as_posix()}"
    elif anchor and file.suffix == ".md":
        known = anchors(file.read_text(encoding="utf-8") if name else text)
        if anchor not in known:
            yield f"the link {target} leads to no heading; there are {', '.join(sorted(known))}"


def _exists_exactly(file: Path, root: Path) -> bool:
    """Whether a file exists under just this name: other systems forgive a wrong capital letter, GitHub does not."""
    return file == root or (file.exists() and file in file.parent.iterdir())


def anchors(text: str) -> set[str]:
    """The names under which GitHub links to the headings of a page.

    Example:
        >>> sorted(anchors("# Why √d?\\n## `show(x)`, twice\\n## Why √d?"))
        ['showx-twice', 'why-d', 'why-d-1']
    """
    names: list[str] = []
    for _, line in prose_lines(text):
        if match := HEADING.match(line):
            words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", match["words"]).lower()
            names.append("".join(c for c in words if c.isalnum() or c in "-_ ").replace(" ", "-"))
    seen: Counter[str] = Counter()
    found = set()
    for name in names:
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def code_complaints(text: str, where: str = "the text") -> list[tuple[int, str]]:
    """Cells that are not Python, and fences whose language the builder would not show as it is meant."""
    found = []
    for block in blocks(text, where):
        language, *rest = block.words or ("",)
        if language in SHELL_LANGUAGES:
            found.append((block.line - 1, f"a {language} fence: shell text stands in a console fence"))
        elif language == "python" and not is_cell(block) and rest != ["show"]:
            found.append((block.line - 1, f"python {' '.join(rest)}: known are show and raises-exception"))
        elif is_cell(block):
            try:
                ast.parse(block.text)
            except SyntaxError as error:
                found.append((block.line + (error.lineno or 1) - 1, f"this cell is not Python: {error.msg}"))
    return found


def command_complaints(text: str, root: Path = ROOT, where: str = "the text") -> list[tuple[int, str]]:
    """Commands in console fences that do not exist: verbs and settings of minillm, make targets, modules, files."""
    found = []
    for block in blocks(text, where):
        if block.words[:1] == ("console",):
            lines = block.text.split("\n")
            prompts = any(line.startswith("$ ") for line in lines)  # then every other line is output
            for number, line in enumerate(lines, start=block.line):
                if line.startswith("$ ") or not prompts:
                    found += [(number, words) for words in _command_complaints(line.removeprefix("$ "), root)]
    return found


def _command_complaints(line: str, root: Path) -> Iterator[str]:
    for command in re.split(r"&&|\|\|?|;", line.split(" #")[0]):
        words = command.split()
        if words and re.search(r"(^|/)python3?$", words[0]) and words[1:2] == ["-m"]:
            words = words[2:]
            if words and words[0].startswith("minillm.") and importlib.util.find_spec(words[0]) is None:
                yield f"there is no module {words[0]}"
        if words and words[0].rpartition("/")[2] == "minillm":
            yield from _verb_complaints(words[1:])
        elif words[:1] == ["make"]:
            makefile = (root / "Makefile").read_text(encoding="utf-8")
            targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            yield from (f"make has no target {name}" for name in targets if f"\n{name}:" not in makefile)
        for word in words:
            path = word.partition("::")[0].strip("'\"")
            if path.startswith(FOLDERS) and "/" in path and "*" not in path and not (root / path).exists():
                yield f"there is no {path}"


def _verb_complaints(words: list[str]) -> Iterator[str]:
    if not words or words[0] in ("--help", "-h", "--version", "VERB"):
        return
    known = known_verbs()
    if words[0] not in known:
        yield f"minillm has no verb {words[0]}; known are {', '.join(known)}"
        return
    verb = importlib.import_module(f"minillm.verbs.{words[0]}")
    settings, name = getattr(verb, "Settings", None), words[0]
    actions = getattr(verb, "ACTIONS", None)
    if actions is not None and len(words) > 1 and not words[1].startswith("-"):
        if words[1] not in actions:
            yield f"minillm {name} has no action {words[1]}; known are {', '.join(actions)}"
            return
        settings, name = getattr(actions[words[1]], "settings", None), f"{name} {words[1]}"
    if settings is not None:
        fields = [field.name.replace("_", "-") for field in dataclasses.fields(settings)]
        known = {"--help", "--config", *(f"--{field}" for field in fields), *(f"--no-{field}" for field in fields)}
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        yield from (f"minillm {name} has no setting {flag}" for flag in flags if flag not in known)


@cache
def known_verbs() -> tuple[str, ...]:
    """The verbs of the command line as its help lists them."""
    command = [sys.executable, "-m", "minillm", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(re.findall(r"^  (\w+) ", text, flags=re.MULTILINE))


def table_complaints(root: Path = ROOT) -> list[str]:
    """The README's table of chapters, if it is not that of the syllabus."""
    text = (root / "README.md").read_text(encoding="utf-8")
    fresh = with_table(text, syllabus_table(read_syllabus(root))) == text
    return [] if fresh else ["the table of chapters is old; run python -m minillm.course.syllabus"]


def notebook_complaints(path: Path) -> list[str]:
    """A committed notebook that is too large, or whose outputs a reader should not get.

    Sizes count what GitHub has to load: the file, and each picture's bytes and width.
    """
    found = []
    size = path.stat().st_size
    if size > NOTEBOOK_BYTES:
        found.append(f"{size / 1000:.0f} kB, at most {NOTEBOOK_BYTES / 1000:.0f}: fewer or smaller figures")
    notebook = read_notebook(path)
    for name, png in figures(notebook):
        width, height = struct.unpack(">II", png[16:24])
        if len(png) > FIGURE_BYTES:
            found.append(f"figure {name}: {len(png) / 1000:.0f} kB, at most {FIGURE_BYTES / 1000:.0f}")
        if width > FIGURE_WIDTH:
            found.append(f"figure {name}: {width} x {height} pixels, at most {FIGURE_WIDTH} wide")
    for number, cell in enumerate(notebook.cells, start=1):
        found += [f"cell {number}: {words}" for output in cell.get("outputs", []) for words in _unfit(cell, output)]
    return found


def _unfit(cell: nbformat.NotebookNode, output: nbformat.NotebookNode) -> Iterator[str]:
    if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
        yield f"it failed with {output.ename}"
    if output.output_type in ("stream", "error"):
        return
    if " at 0x..." in output.get("data", {}).get("text/plain", ""):
        yield "its output is an address in memory; end the last line with a semicolon, or with plt.show()"
    for kind in ("image/svg+xml", "text/html", "application/javascript", "application/vnd.jupyter.widget-view+json"):
        if kind in output.get("data", {}):
            yield f"its output is {kind}; GitHub shows text, Markdown and PNG pictures"
