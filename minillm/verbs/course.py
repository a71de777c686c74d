"""`minillm course ACTION`: exercises for learners, grades and hand-outs for instructors, checks for authors.

Each action is a frozen dataclass, whose fields are its settings, and a function; both stand together here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config import parse_config, setting
from minillm.errors import ConfigError

HOMEWORK_HELP = "folder of your homework; homework/ in the clone if not given"
CHAPTER_HELP = "the chapter's number, such as 08"


@dataclass(frozen=True)
class Action:
    """The settings of an action, and what it does with them; that returns the exit code, or None for 0."""

    settings: type
    run: Callable[[Any], int | None]


@dataclass(frozen=True)
class Start:
    """Begin a chapter: a file of your own with holes to fill in."""

    chapter: str = setting("", CHAPTER_HELP, positional=True)
    folder: Path | None = setting(None, HOMEWORK_HELP)
    force: bool = setting(False, "begin again although there is a file; a copy of it is kept")


@dataclass(frozen=True)
class Reset:
    """Make the holes of a chapter again, or the hole of one task; a copy of your file is kept."""

    chapter: str = setting("", CHAPTER_HELP, positional=True)
    task: str = setting("", "one task, such as 8.2; empty is the whole file", positional=True)
    folder: Path | None = setting(None, HOMEWORK_HELP)


@dataclass(frozen=True)
class Test:
    """Test your file: points, what failed and where, and a hint after two failures of a task."""

    chapter: str = setting("", CHAPTER_HELP, positional=True)
    task: str = setting("", "one task, such as 8.2; empty is all of them", positional=True)
    folder: Path | None = setting(None, HOMEWORK_HELP)
    watch: bool = setting(False, "test again whenever the file is saved, until all passes or Ctrl-C")


@dataclass(frozen=True)
class Status:
    """Show your points over all chapters."""

    folder: Path | None = setting(None, HOMEWORK_HELP)


@dataclass(frozen=True)
class Grade:
    """Grade a submission, or a folder of them, in processes that cannot reach the answers or the grader."""

    chapter: str = setting("", CHAPTER_HELP, positional=True)
    submission: Path | None = setting(
        None, "a file, or a folder with NAME.py or NAME/exercise.py for each submission", positional=True
    )
    secret: str = setting("", "the course's secret, from which hidden inputs are drawn; empty: visible ones only")
    secret_file: Path | None = setting(None, "read the secret from this file, so that it is not on the command line")
    seeds: tuple[int, ...] = setting((0,), "seeds of the visible inputs")
    json: Path | None = setting(None, "write the report here after every task (a folder: one report per submission)")
    csv: Path = setting(Path("grades.csv"), "table of a folder's submissions")
    gradescope: Path | None = setting(None, "write Gradescope's results.json here")
    summary: Path | None = setting(None, "append a GitHub job summary in Markdown to this file")
    processes: int = setting(0, "submissions of a folder graded at a time; 0 is one per processor")

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ConfigError(f"processes is {self.processes}; it must be 0 or more")
        if self.secret and self.secret_file:
            raise ConfigError("give --secret or --secret-file, not both")


@dataclass(frozen=True)
class Release:
    """Write a copy of the project for learners in which the taught chapters' answers are holes."""

    out: Path | None = setting(None, "the new folder", positional=True)
    taught: tuple[str, ...] = setting((), "numbers of the chapters to cut, such as 08,10; none is all")


@dataclass(frozen=True)
class Gradescope:
    """Write the zip that Gradescope takes as a chapter's autograder."""

    chapter: str = setting("", CHAPTER_HELP, positional=True)
    out: Path | None = setting(None, "the zip; autograder_08.zip here if not given")
    secret_file: Path | None = setting(None, "file with the course's secret for hidden inputs; none: visible ones only")


@dataclass(frozen=True)
class Check:
    """Check chapters: reference, empty file, wrong answers, planted faults, attacks, notebooks, texts, freshness."""

    chapters: tuple[str, ...] = setting((), "numbers; none is those changed since --since", positional=True)
    full: bool = setting(False, "all chapters, all planted faults, all notebooks at their default preset")
    since: str = setting("", "the commit or branch against which a chapter counts as changed")


@dataclass(frozen=True)
class Build:
    """Make generated files again: exercises, notebooks, their index, the README's table."""

    chapters: tuple[str, ...] = setting((), "numbers; none is all chapters", positional=True)
    notebooks: bool = setting(True, "run the notebooks too, which takes minutes")


def run(words: list[str]) -> int:
    """Run one action.

    Args:
        words: the command line behind `minillm course`.

    Returns:
        The exit code.

    Raises:
        ConfigError: if the action or one of its settings is unknown.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = words[0], words[1:]
    if name not in ACTIONS:
        raise ConfigError(f"unknown action {name!r}; known are {', '.join(ACTIONS)}")
    settings = parse_config(ACTIONS[name].settings, rest, f"minillm course {name}")
    if getattr(settings, "chapter", None) == "":
        raise ConfigError(f"say which chapter: minillm course {name} 08")
    return ACTIONS[name].run(settings) or 0


def usage() -> str:
    """What `minillm course` alone prints."""
    lines = ["usage: minillm course ACTION [settings]   (minillm course ACTION --help explains every setting)", ""]
    lines += [f"  {name:10} {action.settings.__doc__.splitlines()[0]}" for name, action in ACTIONS.items()]
    return "\n".join(lines)


def run_start(settings: Start) -> None:
    """Begin a chapter and say what comes next."""
    from minillm.course.learner import homework, shown, start

    work = homework(settings.chapter, settings.folder)
    kept = start(work, settings.force)
    where = f" --folder {settings.folder}" if settings.folder else ""
    if kept != work.file:
        print(f"the file you had is now {shown(kept)}")
    tasks = f"{len(work.chapter.tasks)} tasks, {work.chapter.points} points"
    print(f"{shown(work.file)}: chapter {work.chapter.number}, {work.chapter.title}; {tasks}")
    print(f"fill in a hole, then: minillm course test {work.chapter.number} {work.chapter.tasks[0].id}{where}")


def run_reset(settings: Reset) -> None:
    """Make holes again."""
    from minillm.course.learner import homework, reset, shown

    work = homework(settings.chapter, settings.folder)
    kept = reset(work, settings.task)
    print(f"{shown(work.file)}: {'task ' + settings.task if settings.task else 'every task'} is a hole again")
    print(f"the file you had is now {shown(kept)}")


def run_test(settings: Test) -> int:
    """Test a learner's file; the exit code is 0 if all that was tested passes, else 1."""
    from minillm.course.learner import homework, load_progress, test, watch

    work = homework(settings.chapter, settings.folder)
    task_ids = [settings.task] if settings.task else []
    if settings.watch:
        watch(work, task_ids)
    else:
        print("\n".join(test(work, task_ids)))
    progress = load_progress(work)
    wanted = [work.chapter.task(task_id) for task_id in task_ids] or work.chapter.tasks
    return 0 if all(progress.of(task).status == "passed" for task in wanted) else 1


def run_status(settings: Status) -> None:
    """Print the table of points."""
    from minillm.course.learner import status

    print("\n".join(status(settings.folder)))


def run_grade(settings: Grade) -> int:
    """Grade one file or a folder."""
    from minillm.course.grading import grade, grade_class, table
    from minillm.course.results import github_summary, gradescope_results

    if settings.submission is None:
        raise ConfigError("say what to grade: minillm course grade 08 FILE, or a folder of submissions")
    secret = read_secret(settings.secret_file) if settings.secret_file else settings.secret or None
    if settings.submission.is_dir():
        reports = grade_class(
            settings.chapter,
            settings.submission,
            settings.csv,
            secret,
            settings.seeds,
            settings.json,
            n_workers=settings.processes or None,
        )
        for report in reports:
            print(f"{report.score:>3}/{report.points}  {report.submission}")
        print(f"{len(reports)} submissions: {settings.csv}")
        return 0
    report = grade(settings.chapter, settings.submission, settings.seeds, secret, out=settings.json)
    print("\n".join(table(report)))
    if settings.gradescope:
        settings.gradescope.write_text(gradescope_results(report), encoding="utf-8")
    if settings.summary:
        with settings.summary.open("a", encoding="utf-8") as file:
            file.write(github_summary(report))
    return 0


def read_secret(path: Path) -> str:
    """The secret in a file, without the space around it.

    Raises:
        ConfigError: if it cannot be read or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the secret cannot be read from {path}: {error}") from error
    if not secret:
        raise ConfigError(f"{path} is empty; put the course's secret into it")
    return secret


def run_release(settings: Release) -> None:
    """Write a hand-out."""
    from minillm.course.release import release

    if settings.out is None:
        raise ConfigError("say where: minillm course release FOLDER --taught 08,10")
    numbers = [number for word in settings.taught for number in word.split(",") if number]
    print("\n".join(release(settings.out, numbers)))


def run_gradescope(settings: Gradescope) -> None:
    """Write the upload."""
    from minillm.course.gradescope import write_zip

    out = settings.out or Path(f"autograder_{settings.chapter}.zip")
    secret = read_secret(settings.secret_file) if settings.secret_file else None
    print("\n".join(write_zip(settings.chapter, out, secret)))


def run_check(settings: Check) -> int:
    """Run the gates."""
    from minillm.course.gates import check

    return check(settings.chapters, settings.full, settings.since)


def run_build(settings: Build) -> int:
    """Make generated files again."""
    from minillm.course.gates import build

    return build(settings.chapters, settings.notebooks)


ACTIONS = {
    "start": Action(Start, run_start),
    "test": Action(Test, run_test),
    "reset": Action(Reset, run_reset),
    "status": Action(Status, run_status),
    "grade": Action(Grade, run_grade),
    "release": Action(Release, run_release),
    "gradescope": Action(Gradescope, run_gradescope),
    "check": Action(Check, run_check),
    "build": Action(Build, run_build),
}
