"""A chapter's exercise: `chapters/NN_name/exercise.toml` names library functions; they are the tasks."""

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minillm.course.source import find, module_file
from minillm.course.syllabus import ROOT
from minillm.errors import ConfigError

CHAPTER_KEYS = ("title", "given", "task")
TASK_KEYS = ("id", "object", "points", "hint", "remove", "starter")


@dataclass(frozen=True)
class Task:
    """One function to write.

    Args:
        id: chapter number without leading zero, dot, running number: "8.1".
        module: the library module that holds the reference.
        name: name of the function there, or Class.method.
        points: what it is worth.
        hint: help that does not give the answer away.
        remove: other library objects ("module:name") that would give the answer away.
        starter: a body to begin from instead of a bare hole, without indentation; empty for none.
    """

    id: str
    module: str
    name: str
    points: int
    hint: str
    remove: tuple[str, ...] = ()
    starter: str = ""

    @property
    def top(self) -> str:
        """The name at the module's margin: the function, or the class of a method."""
        return self.name.partition(".")[0]

    @property
    def object(self) -> str:
        """module:name, as exercise.toml writes it."""
        return f"{self.module}:{self.name}"


@dataclass(frozen=True)
class CourseChapter:
    """A chapter with tasks.

    Args:
        number: two digits.
        folder: where its README.md and exercise.toml are.
        title: as the exercise file says it.
        given: library objects ("module:name") the exercise file imports besides, for the graders.
        tasks: in the order in which a learner meets them.
        root: the clone whose library holds the reference.
    """

    number: str
    folder: Path
    title: str
    given: tuple[str, ...]
    tasks: tuple[Task, ...]
    root: Path = ROOT

    @property
    def points(self) -> int:
        """Points of all tasks."""
        return sum(task.points for task in self.tasks)

    def task(self, task_id: str) -> Task:
        """The task with this id.

        Raises:
            ConfigError: if there is none; the message names those there are.
        """
        for task in self.tasks:
            if task.id == task_id:
                return task
        known = ", ".join(task.id for task in self.tasks)
        raise ConfigError(f"chapter {self.number} has no task {task_id!r}; its tasks are {known}")


def split_object(name: str, where: str) -> tuple[str, str]:
    """ "module:name" -> (module, name).

    Raises:
        ConfigError: if it is not of that form.
    """
    match = re.fullmatch(r"(minillm(?:\.\w+)+):(\w+(?:\.\w+)?)", name)
    if match is None:
        raise ConfigError(f"{where}: {name!r} is no library object; write minillm.module:function or :Class.method")
    return match[1], match[2]


def read_chapter(number_or_folder: int | str | Path, root: Path = ROOT) -> CourseChapter:
    """Read and check a chapter's exercise.toml.

    Args:
        number_or_folder: 8, "08", "08_attention" or a folder.
        root: the clone whose library holds the reference.

    Raises:
        ConfigError: no such chapter, unknown or missing keys, an object that the library does not define, an id that
            comes twice or belongs to another chapter, two tasks that share a name.
    """
    folder = chapter_folder(number_or_folder, root)
    file = folder / "exercise.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{folder.name} has no exercise: {file} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from error
    _check_keys(table, CHAPTER_KEYS, ("title", "task"), str(file))
    number = folder.name[:2]
    tasks = tuple(_read_task(row, f"{file}, task {place}", number) for place, row in enumerate(table["task"], 1))
    given = tuple(table.get("given", ()))
    chapter = CourseChapter(number, folder, table["title"], given, tasks, root)
    _check_names(chapter, str(file))
    return chapter


def chapter_folder(number_or_folder: int | str | Path, root: Path = ROOT) -> Path:
    """The folder of a chapter.

    Raises:
        ConfigError: if there is none, naming those there are.
    """
    given = str(number_or_folder)
    if Path(given).is_dir() and re.match(r"\d\d_", Path(given).resolve().name):
        return Path(given).resolve()
    folders = sorted(path for path in (root / "chapters").glob("[0-9][0-9]_*") if path.is_dir())
    for folder in folders:
        if given == folder.name or (given.isdecimal() and int(given) == int(folder.name[:2])):
            return folder
    known = ", ".join(folder.name for folder in folders) or "none (chapters come with a clone of the repository)"
    raise ConfigError(f"there is no chapter {given!r}; known are {known}")


def all_chapters(root: Path = ROOT) -> list[CourseChapter]:
    """The chapters that have an exercise, in order."""
    return [read_chapter(file.parent, root) for file in sorted((root / "chapters").glob("[0-9][0-9]_*/exercise.toml"))]


def _read_task(row: dict, where: str, number: str) -> Task:
    _check_keys(row, TASK_KEYS, ("id", "object", "points", "hint"), where)
    module, name = split_object(row["object"], where)
    if not re.fullmatch(rf"{int(number)}\.[1-9]\d*", row["id"]):
        raise ConfigError(f"{where}: id is {row['id']!r}; expected {int(number)}. and a running number")
    if row["points"] < 1:
        raise ConfigError(f"{where}: points is {row['points']!r}; expected a whole number of at least 1")
    if not row["hint"].strip():
        raise ConfigError(f"{where}: the hint is empty; say in a sentence or two what helps")
    starter = row.get("starter", "").strip("\n")
    return Task(row["id"], module, name, row["points"], row["hint"].strip(), tuple(row.get("remove", ())), starter)


def _check_keys(row: dict, known: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    if unknown := sorted(row.keys() - set(known)):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [key for key in needed if key not in row]:
        raise ConfigError(f"{where}: {', '.join(missing)} is missing")
    kinds = {"points": int, "given": list, "remove": list, "task": list}
    for key, value in row.items():
        if type(value) is not kinds.get(key, str):
            raise ConfigError(f"{where}: {key} is {value!r}; expected {kinds.get(key, str).__name__}")


def _check_names(chapter: CourseChapter, where: str) -> None:
    for what, values in (
        ("task id", [task.id for task in chapter.tasks]),
        ("object", [task.object for task in chapter.tasks]),
        ("name", sorted({f"{task.module}:{task.top}" for task in chapter.tasks})),
    ):
        names = [value.rpartition(":")[2] for value in values] if what == "name" else values
        if twice := [value for value, count in Counter(names).items() if count > 1]:
            raise ConfigError(f"{where}: {what} {', '.join(twice)} comes more than once; each must be another")
    others = [name for task in chapter.tasks for name in task.remove]
    for name in [*(task.object for task in chapter.tasks), *others, *chapter.given]:
        module, qualified = split_object(name, where)
        text = module_file(module, chapter.root).read_text(encoding="utf-8")
        place = find(text, qualified, f"{where}: {module}")
        if name not in (*others, *chapter.given) and not hasattr(place.node, "args"):
            raise ConfigError(f"{where}: {name} is a class; a task is a function or a Class.method")
