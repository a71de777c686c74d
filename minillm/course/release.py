"""A copy of the project for a course that must not show answers: what the taught chapters ask for are holes in it.

The copy can do what a learner needs: `course start`, `course test`, `train --with-my`. Its tests put a learner's own
functions where the library has holes. Grades come from the full project.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from minillm.course.chapter import CourseChapter, all_chapters, read_chapter
from minillm.course.fences import blocks
from minillm.course.leaks import answers, gives_away, leaks
from minillm.course.source import with_bodies
from minillm.course.stripped import cut_bodies, needs
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError, DataError

# Never handed out: wrong answers are answers with one flaw, argued mutants quote them, tests of the machinery use both.
LEFT_OUT_FILES = ("wrong.py", "equivalent.toml", "toy_course.py")
LEFT_OUT_FOLDERS = ("tests/course/", "runs/", "homework/")
MAY_BE_LEFT_OUT = ("tests/", "benchmarks/", "notebooks/")  # but not tests/graders/
NOTE = "HANDOUT.md"


def release(target: Path, numbers: Iterable[str] = (), root: Path = ROOT) -> list[str]:
    """Write the copy.

    Args:
        target: a folder that does not exist yet.
        numbers: of the taught chapters; none is all that have exercises.
        root: the full project.

    Returns:
        lines that say what was written and what was left out because it gives an answer away.

    Raises:
        CourseError: if the folder exists, cannot be written, or the library, a grader or an exercise gives an answer
            away; nothing is written then.
    """
    chapters = [read_chapter(number, root) for number in dict.fromkeys(numbers)] or all_chapters(root)
    target = target.resolve()
    if target.exists():
        raise CourseError(f"{target} exists; choose a new folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            whole = Path(folder) / target.name
            copy_files(whole, chapters, root)
            removed = remove_answers(whole, chapters)
            (whole / NOTE).write_text(note(chapters), encoding="utf-8")
            whole.rename(target)
    except OSError as error:
        raise CourseError(f"{target} cannot be written: {error.strerror or error}; choose another folder") from error
    n_files = sum(path.is_file() for path in target.rglob("*"))
    n_tasks = sum(len(chapter.tasks) for chapter in chapters)
    taught = ", ".join(chapter.number for chapter in chapters)
    lines = [f"{target}: {n_files} files; {n_tasks} functions of chapters {taught} are holes"]
    for chapter in all_chapters(root):
        for other in chapters:
            if other.number != chapter.number and (missing := needs(chapter, other)):
                what = f"{len(missing)} functions that chapter {other.number} has as holes"
                lines.append(
                    f"chapter {chapter.number} needs {what}: not all of its tests can pass here; "
                    f"hand out another copy for it, without {other.number}"
                )
    return lines + [f"left out, since it gives an answer away: {path} ({reason})" for path, reason in removed]


def copy_files(target: Path, chapters: list[CourseChapter], root: Path) -> None:
    """Copy the project's files; in the library's modules the tasks' bodies are cut."""
    bodies = cut_bodies([task for chapter in chapters for task in chapter.tasks], root)
    notebooks = {f"notebooks/{chapter.folder.name}.ipynb" for chapter in chapters}
    for path in project_files(root):
        name = path.as_posix()
        if name in notebooks or path.name in LEFT_OUT_FILES or name.startswith(LEFT_OUT_FOLDERS):
            continue
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if path.suffix == ".py" and module in bodies:
            text = (root / path).read_text(encoding="utf-8")
            (target / path).write_text(with_bodies(text, bodies[module], module), encoding="utf-8")
        else:
            shutil.copyfile(root / path, target / path)
            shutil.copymode(root / path, target / path)


def project_files(root: Path) -> list[Path]:
    """The project's files, relative to its folder: what git knows or would add; without git, everything but caches."""
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        said = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout.decode()
        names = [Path(name) for name in said.split("\0") if name]
    except (OSError, subprocess.SubprocessError):
        names = [path.relative_to(root) for path in root.rglob("*") if not hidden(path.relative_to(root))]
    return sorted(path for path in set(names) if (root / path).is_file() and not (root / path).is_symlink())


def hidden(path: Path) -> bool:
    """Whether a path belongs to caches or to what is made on the way."""
    made = ("__pycache__", "build", "runs", "homework")
    parts = [part for part in path.parts if part not in (".ci", ".gitignore")]
    return any(part.startswith(".") or part in made or part.endswith(".egg-info") for part in parts)


def remove_answers(copy: Path, chapters: list[CourseChapter]) -> list[tuple[str, str]]:
    """Look for answers in every Python file, page and notebook of the copy; delete tests and notebooks that have some.

    Returns:
        (path, reason) of what was deleted.

    Raises:
        CourseError: if a file that learners need has an answer.
    """
    known = {owner: said for chapter in chapters for owner, said in answers(chapter).items()}
    removed, bad = [], []
    for file in sorted(path for path in copy.rglob("*") if path.suffix in (".py", ".md", ".ipynb")):
        name = file.relative_to(copy).as_posix()
        found = [line for text in code_in(file) for line in found_in(text, known)]
        if file.name == "exercise.py":
            found += [line for chapter in chapters for line in leaks(chapter, file.read_text(encoding="utf-8"))]
        if found and name.startswith(MAY_BE_LEFT_OUT) and not name.startswith("tests/graders/"):
            file.unlink()
            removed.append((name, found[0]))
        elif found:
            bad.append(f"{name}, {found[0]}")
    if bad:
        listed = "; ".join(bad[:5])
        raise CourseError(f"the copy gives answers away: {listed}. List such functions under `remove` of the task")
    return removed


def found_in(text: str, known: dict[str, set[str]]) -> list[str]:
    """Answers in a piece of code; what is not Python has none."""
    try:
        return gives_away(text, known)
    except DataError:
        return []


def code_in(file: Path) -> Iterator[str]:
    """The pieces of a file that may be Python: itself, the fences of a page, the cells and outputs of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield text
    elif file.suffix == ".md":
        yield from (block.text for block in blocks(text) if block.words)
    else:
        for cell in json.loads(text).get("cells", ()):
            source = "".join(cell["source"])
            yield from [source] if cell["cell_type"] == "code" else [b.text for b in blocks(source) if b.words]
            for output in cell.get("outputs", ()):
                for said in (output.get("text", ""), *output.get("data", {}).values()):
                    page = "".join(said) if isinstance(said, list | str) else ""
                    yield from (page, *(block.text for block in blocks(page) if block.words))


def note(chapters: list[CourseChapter]) -> str:
    """The page that tells learners what they have before them."""
    rows = "\n".join(
        f"| {chapter.number} | {chapter.title} | {len(chapter.tasks)} | {chapter.points} |" for chapter in chapters
    )
    first = chapters[0].number
    return f"""# This copy has holes

It was handed out for a course. The library works except for the functions that you will write:
they raise `NotImplementedError("task ...")`.

| chapter | title | tasks | points |
| --: | --- | --: | --: |
{rows}

```console
minillm course start {first}     # your own file, homework/...
minillm course test {first}      # points, what failed and where, hints
minillm course status      # your points over all chapters
```

Where a task needs an earlier one, the tests use your own function for it: solve them in order.
`minillm train --with-my {first}` puts what passes into the library and trains a model with it.
"""
