"""The zip that Gradescope takes as a chapter's autograder, and the program that runs inside it.

Gradescope unpacks the zip to /autograder/source and runs setup.sh once, while it builds an image. For every submission
it starts a fresh container: run_autograder reads /autograder/submission and writes /autograder/results/results.json.
"""

import json
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from minillm.config import parse_config, setting
from minillm.course.chapter import CourseChapter, read_chapter
from minillm.course.syllabus import ROOT
from minillm.errors import CourseError, DataError, MinillmError

# What the library and the graders import; constraints.txt pins the versions.
PACKAGES = ("numpy", "torch", "regex", "scipy", "nltk", "tiktoken", "tqdm", "safetensors", "pytest")
SECRET = "secret.txt"
DATE = (2026, 1, 1, 0, 0, 0)  # the same for every file, so that equal projects give equal zips

SETUP = """#!/usr/bin/env bash
# Runs once, while Gradescope builds the image: Python and exactly the packages that were tested.
set -euo pipefail
apt-get update
apt-get install -y python3 python3-venv
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {{
    echo "Python 3.11 or newer is needed: choose Ubuntu 24.04 as the base image" >&2
    exit 1
}}
cd /autograder/source
python3 -m venv /autograder/venv
/autograder/venv/bin/python -m pip install --no-cache-dir \\
    --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt {packages}
chmod -R go-rwx /autograder/source
"""

RUN = """#!/usr/bin/env bash
# Runs for every submission; results.json is written before, during and after grading.
cd /autograder/source || exit 1
export OMP_NUM_THREADS=1
exec /autograder/venv/bin/python -m minillm.course.gradescope {number}
"""


def write_zip(number: str, out: Path, secret: str | None = None, root: Path = ROOT) -> list[str]:
    """Write a chapter's autograder.

    Args:
        number: of the chapter.
        out: the zip.
        secret: from which hidden inputs are drawn; None tests with the visible ones only.
        root: the full project.

    Returns:
        lines that say what to do with it.

    Raises:
        CourseError: if the chapter has no grader or the zip cannot be written.
    """
    chapter = read_chapter(number, root)
    files = zip_files(chapter, secret, root)
    try:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in sorted(files.items()):
                entry = zipfile.ZipInfo(name, DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if name in ("setup.sh", "run_autograder") else 0o644) << 16
                archive.writestr(entry, text)
    except OSError as error:
        raise CourseError(f"{out} cannot be written: {error.strerror}") from error
    hidden = "hidden inputs from your secret" if secret else "visible inputs only; --secret-file adds hidden ones"
    return [
        f"{out}: {len(files)} files, {out.stat().st_size // 1000} kB; chapter {chapter.number}, {hidden}",
        f"on Gradescope: Configure Autograder, base image Ubuntu 24.04, upload; {chapter.points} autograder points",
        "learners hand in their exercise.py",
    ]


def zip_files(chapter: CourseChapter, secret: str | None, root: Path) -> dict[str, str]:
    """Name in the zip -> text.

    Raises:
        CourseError: if the chapter has no grader.
    """
    grader = root / "tests" / "graders" / f"test_{chapter.folder.name}.py"
    if not grader.is_file():
        raise CourseError(f"chapter {chapter.number} has no grader: {grader} is missing")
    folder = root / "chapters" / chapter.folder.name
    paths = [*(root / "minillm").rglob("*.py"), grader, folder / "exercise.toml", folder / "exercise.py"]
    paths += [root / "chapters" / "syllabus.toml", root / "constraints.txt", root / "LICENSE"]
    paths += (root / "data").glob("stories_*.txt")
    files = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths if path.is_file()}
    files["setup.sh"] = SETUP.format(packages=" ".join(PACKAGES))
    files["run_autograder"] = RUN.format(number=chapter.number)
    if secret:
        files[SECRET] = secret + "\n"
    return files


@dataclass(frozen=True)
class Settings:
    """Grade the submission in Gradescope's folder and write its results.json after every task."""

    chapter: str = setting("", "the chapter's number", positional=True)
    base: Path = setting(Path("/autograder"), "Gradescope's folder")


def run_autograder(settings: Settings, root: Path = ROOT) -> None:
    """Grade; whatever happens, results.json is valid and says what happened.

    The secret's file is deleted before the learner's code runs: every submission has a fresh container.
    """
    results = settings.base / "results" / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    chapter = read_chapter(settings.chapter, root)
    write(results, failed(chapter, "the autograder was stopped before it began to grade; please tell your instructor"))
    secret_file = root / SECRET
    secret = secret_file.read_text(encoding="utf-8").strip() if secret_file.is_file() else None
    if secret:
        secret_file.unlink()
    try:
        submission = find_submission(settings.base / "submission")
        grade_into(results, chapter, submission, student(settings.base / "submission_metadata.json"), secret, root)
    except DataError as error:
        write(results, failed(chapter, str(error)))
    except Exception as error:  # a fault of ours must not look like the learner's zero without a word
        write(results, failed(chapter, f"the autograder failed ({type(error).__name__}); please tell your instructor"))
        raise


def grade_into(
    results: Path, chapter: CourseChapter, submission: Path, name: str, secret: str | None, root: Path
) -> None:
    """Grade task by task; results.json is complete after each for what was graded."""
    from minillm.course.grading import Grader, read_submission
    from minillm.course.remote import Worker
    from minillm.course.results import gradescope_results

    source = read_submission(submission)
    report = None
    with Grader(chapter, secret=secret, root=root) as grader, Worker((submission.parent,)) as worker:
        for task in chapter.tasks:
            one = grader.grade(source, worker, name, [task.id])
            done = [*(report.tasks if report else []), *one.tasks]
            report = replace(one, tasks=done, n_tasks=len(chapter.tasks))
            write(results, gradescope_results(report))


def find_submission(folder: Path) -> Path:
    """The file handed in: exercise.py, or the only Python file.

    Raises:
        DataError: if there is none, or several and none is called exercise.py.
    """
    found = sorted(path for path in folder.rglob("*.py") if path.is_file())
    named = [path for path in found if path.name == "exercise.py"]
    if len(named) == 1 or len(found) == 1:
        return (named or found)[0]
    what = ", ".join(path.name for path in found) or "no Python file"
    raise DataError(f"hand in one file called exercise.py; there is {what}")


def student(metadata: Path) -> str:
    """A name for the hidden inputs that stays the same when a student hands in again."""
    try:
        users = json.loads(metadata.read_text(encoding="utf-8"))["users"]
        return "-".join(sorted(str(user["id"]) for user in users)) or "submission"
    except (OSError, ValueError, KeyError, TypeError):
        return "submission"


def failed(chapter: CourseChapter, message: str) -> str:
    """A results.json of 0 points with one message for the learner."""
    tests = [
        {"number": task.id, "name": f"task {task.id}", "score": 0, "max_score": task.points, "status": "failed"}
        for task in chapter.tasks
    ]
    content = {"score": 0, "output": message, "output_format": "text", "stdout_visibility": "hidden", "tests": tests}
    return json.dumps(content, indent=2) + "\n"


def write(path: Path, text: str) -> None:
    """Write results.json; it is always whole."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main(argv: list[str]) -> int:
    """Entry point inside the container."""
    try:
        run_autograder(parse_config(Settings, argv, "python -m minillm.course.gradescope"))
    except MinillmError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
