"""A learner's own files: begin a chapter, test it, see hints and points. Only `force` and `reset` overwrite them.

`homework/08_attention/exercise.py` is the learner's; `progress.json` beside it remembers points and failures.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

from minillm.course.chapter import CourseChapter, Task, all_chapters, read_chapter
from minillm.course.skeleton import exercise_text
from minillm.course.source import def_source, with_function
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError, DataError

FAILURES_BEFORE_HINT = 2
FAILURES_SHOWN = 2  # of one task; the rest is counted
SECONDS_BETWEEN_LOOKS = 0.5
INDENT, WIDTH = " " * 12, 110
NOT_LOADED = "the file cannot be loaded"


@dataclass(frozen=True)
class Homework:
    """Where a learner works on one chapter.

    Args:
        chapter: which one.
        folder: holds exercise.py and progress.json.
    """

    chapter: CourseChapter
    folder: Path

    @property
    def file(self) -> Path:
        """The file to fill in."""
        return self.folder / "exercise.py"

    @property
    def progress_file(self) -> Path:
        """Points and failures."""
        return self.folder / "progress.json"


@dataclass
class TaskProgress:
    """One task: points of its last test, how often it has failed in a row, and how the last test ended."""

    score: int = 0
    failures: int = 0
    status: str = "not_implemented"


@dataclass
class Progress:
    """What progress.json holds: the skeleton the learner began with (its SHA-256), and each task's progress."""

    skeleton: str = ""
    tasks: dict[str, TaskProgress] = field(default_factory=dict)

    def of(self, task: Task) -> TaskProgress:
        """The progress of a task, new if it was never tested."""
        return self.tasks.setdefault(task.id, TaskProgress())

    def score(self, chapter: CourseChapter) -> int:
        """Points so far; a task that is now worth less gives no more than that."""
        return sum(min(self.of(task).score, task.points) for task in chapter.tasks)


def homework(number: int | str | Path, folder: Path | None = None, root: Path = ROOT) -> Homework:
    """A chapter's place in the learner's homework.

    Args:
        number: of the chapter, or its folder.
        folder: where all homework is; None is `homework/` in the clone.
        root: the clone.
    """
    chapter = read_chapter(number, root)
    return Homework(chapter, (folder or root / "homework") / chapter.folder.name)


def start(work: Homework, force: bool = False) -> Path:
    """Give the learner a file with holes.

    Args:
        work: where.
        force: begin again although there is a file; the old one is kept beside it.

    Returns:
        the copy of the old file, or the new file if there was none.

    Raises:
        CourseError: if there is a file already and `force` is not given, or the folder cannot be written.
    """
    if work.file.exists() and not force:
        raise CourseError(f"{work.file} exists and stays as it is; --force begins again and keeps a copy of it")
    text = exercise_text(work.chapter)
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
        kept = put_aside(work.file) if work.file.exists() else work.file
        write_whole(work.file, text)
        save_progress(work, Progress(digest(text)))
    except OSError as error:
        raise CourseError(f"{work.folder} cannot be written: {error.strerror}; choose another --folder") from error
    return kept


def reset(work: Homework, task_id: str = "") -> Path:
    """Make the hole again, of one task or of all; a copy of the file as it was is kept.

    Args:
        work: where.
        task_id: one task; empty is the whole file.

    Returns:
        the copy.

    Raises:
        CourseError: if the chapter was not begun.
        DataError: for one task: if the file is not Python, so that its function cannot be found.
    """
    text = read_file(work)
    if not task_id:
        return start(work, force=True)
    task = work.chapter.task(task_id)
    new = with_function(text, task.name, def_source(exercise_text(work.chapter), task.name))
    kept = put_aside(work.file)
    write_whole(work.file, new)
    progress = load_progress(work)
    progress.tasks[task.id] = TaskProgress()
    save_progress(work, progress)
    return kept


def put_aside(file: Path) -> Path:
    """Copy a file to the first free name of exercise.old-1.py, exercise.old-2.py, ...; returns that name."""
    number = 1
    while (copy := file.with_name(f"{file.stem}.old-{number}.py")).exists():
        number += 1
    write_whole(copy, file.read_text(encoding="utf-8", errors="surrogateescape"))
    return copy


def read_file(work: Homework) -> str:
    """The learner's file.

    Raises:
        CourseError: if the chapter was not begun.
    """
    try:
        return work.file.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError as error:
        number = work.chapter.number
        raise CourseError(f"there is no {work.file}; begin with: minillm course start {number}") from error
    except OSError as error:
        raise CourseError(f"{work.file} cannot be read: {error.strerror}") from error


def test(work: Homework, task_ids: Iterable[str] = ()) -> list[str]:
    """Grade the learner's file with the visible inputs, remember the outcome.

    Args:
        work: where.
        task_ids: which tasks; none is all.

    Returns:
        lines for the learner: each task's points, what failed and where, hints after two failures, the points so far.
    """
    with Tester(work) as tester:
        return tester.test(task_ids)


class Tester:
    """Tests a homework any number of times with one worker, which saves the seconds of starting it."""

    def __init__(self, work: Homework):
        from minillm.course.grading import Grader
        from minillm.course.remote import Worker

        read_file(work)
        self.work, self.grader = work, Grader(work.chapter, root=work.chapter.root)
        self.worker = Worker()

    def __enter__(self) -> "Tester":
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close()
        self.grader.__exit__()

    def test(self, task_ids: Iterable[str] = ()) -> list[str]:
        """As the function `test`."""
        from minillm.course.grading import read_submission

        work = self.work
        wanted = [work.chapter.task(task_id).id for task_id in task_ids] or None
        try:
            source = read_submission(work.file)
        except DataError as error:
            return [str(error)]
        report = self.grader.grade(source, self.worker, work.file.name, wanted)
        progress = load_progress(work)
        lines, before = [], ""
        for result in report.tasks:
            task = work.chapter.task(result.id)
            if not result.message.startswith(NOT_LOADED):
                note(progress.of(task), result.status, result.score)
                lines += result_lines(work, task, result, progress.of(task))
            elif result.message != before:  # once for all tasks, and no task's failure
                progress.of(task).status, progress.of(task).score = result.status, 0
                lines += load_lines(work, result)
            before = result.message
        save_progress(work, progress)
        return [*lines, *closing_lines(work, progress)]


def load_lines(work: Homework, result) -> Iterator[str]:
    """What a learner reads of a file that Python cannot load."""
    yield from indented(result.message)
    if result.line is not None:
        yield f"{INDENT}at {shown(work.file)}:{result.line}"


def indented(text: str) -> Iterator[str]:
    """Lines under a task, none too wide for a terminal."""
    for line in text.splitlines():
        yield from wrap(line, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  ", break_on_hyphens=False)


def note(progress: TaskProgress, status: str, score: int) -> None:
    """Remember how a test ended; an empty hole is no failure."""
    progress.status, progress.score = status, score
    if status == "passed":
        progress.failures = 0
    elif status != "not_implemented":
        progress.failures += 1


def result_lines(work: Homework, task: Task, result, progress: TaskProgress) -> Iterator[str]:
    """What a learner reads of one task: points, the first bad case, where, what the program printed, a hint."""
    yield f"{task.id:>5}  {result.score}/{task.points}  {task.name}: {result.status.replace('_', ' ')}"
    if result.status in ("passed", "not_implemented"):
        return
    failures = result.failures or [result.message]
    for message in failures[:FAILURES_SHOWN]:
        yield from indented(message)
    if len(failures) > FAILURES_SHOWN:
        yield f"{INDENT}{len(failures) - FAILURES_SHOWN} more of this task's tests fail"
    if result.line is not None:
        yield f"{INDENT}at {shown(work.file)}:{result.line}"
    if result.output.strip():
        yield f"{INDENT}your code printed:"
        yield from (f"{INDENT}| {line}" for line in result.output.strip().splitlines()[:20])
    if progress.failures >= FAILURES_BEFORE_HINT:
        yield from indented(f"hint: {' '.join(task.hint.split())}")
    else:
        yield f"{INDENT}(a second failure shows a hint)"


def closing_lines(work: Homework, progress: Progress) -> Iterator[str]:
    """Points so far, and a word if the exercise has changed since the learner began."""
    chapter = work.chapter
    yield f"points so far: {progress.score(chapter)} of {chapter.points}"
    if progress.skeleton and progress.skeleton != digest(exercise_text(chapter)):
        yield (
            f"chapter {chapter.number}'s exercise has changed since you began; your file stays as it is. "
            f"Compare it with {shown(chapter.folder / 'exercise.py')}"
        )


def watch(
    work: Homework,
    task_ids: Iterable[str] = (),
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Test now and after every change of the file, until interrupted or until all that is tested passes.

    Args:
        work: where.
        task_ids: which tasks; none is all.
        say: takes each line.
        sleep: waits so many seconds between two looks at the file.
    """
    wanted = [work.chapter.task(task_id) for task_id in task_ids] or list(work.chapter.tasks)
    with Tester(work) as tester:
        for _ in changes(work.file, sleep):
            for line in tester.test([task.id for task in wanted]):
                say(line)
            progress = load_progress(work)
            if all(progress.of(task).status == "passed" for task in wanted):
                return
            say(f"waiting for {shown(work.file)} to change; Ctrl-C ends")


def changes(file: Path, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Yield at once, then each time the file has changed; while it is missing, as when an editor saves, wait."""
    seen = None
    while True:
        now = stamp(file)
        if now is not None and now != seen:
            seen = now
            yield
        else:
            sleep(SECONDS_BETWEEN_LOOKS)


def stamp(file: Path) -> tuple[int, int] | None:
    """Time of change and size; None while there is no file."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def status(folder: Path | None = None, root: Path = ROOT) -> list[str]:
    """A table of the learner's points over all chapters that have exercises."""
    rows = [("chapter", "points", "tasks passed", "next")]
    reached = total = 0
    for chapter in all_chapters(root):
        work = Homework(chapter, (folder or root / "homework") / chapter.folder.name)
        progress = load_progress(work)
        passed = [task for task in chapter.tasks if progress.of(task).status == "passed"]
        open_tasks = [task.id for task in chapter.tasks if task not in passed]
        begin = "done" if not open_tasks else f"task {open_tasks[0]}"
        todo = begin if work.file.exists() else f"minillm course start {chapter.number}"
        points = progress.score(chapter)
        rows.append((chapter.folder.name, f"{points}/{chapter.points}", f"{len(passed)}/{len(chapter.tasks)}", todo))
        reached, total = reached + points, total + chapter.points
    rows.append(("all", f"{reached}/{total}", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def load_progress(work: Homework) -> Progress:
    """The progress so far; a file that is missing or damaged counts as none, since it can be made again by testing."""
    try:
        table = json.loads(work.progress_file.read_text(encoding="utf-8"))
        tasks = {str(name): TaskProgress(**row) for name, row in table["tasks"].items()}
        return Progress(str(table["skeleton"]), tasks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Progress()


def save_progress(work: Homework, progress: Progress) -> None:
    """Write progress.json; readable by people and by `status`."""
    tasks = {name: vars(row) for name, row in sorted(progress.tasks.items())}
    table = {"schema": 1, "chapter": work.chapter.number, "skeleton": progress.skeleton, "tasks": tasks}
    write_whole(work.progress_file, json.dumps(table, indent=2) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(temporary, file)


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def shown(path: Path) -> str:
    """The path as one types it from here."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
