"""`minillm course check` and `course build`: what must hold before a chapter is handed to learners.

A grader that cannot fail is worse than none, so most gates plant something and look whether it is found:

- G1 the reference gets all points, with every seed;
- G2 the empty skeleton gets none, and each task says that it is its own hole;
- G3 each wrong answer fails exactly the tasks it names;
- G4 poison in one function fails that task and no other: what is graded is the learner's file, not the library;
- G5 no mutant of a task's function survives, but for those argued in `equivalent.toml`;
- G6 hostile submissions get nothing, and the grader lives;
- G7 what is generated is fresh, gives no answers away, reads well, and the chapter's cells run;
- G8 the same submission and seed give the same report.
"""

import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from textwrap import indent

from tqdm import tqdm

from minillm.course.attacks import read_attacks
from minillm.course.changes import changed_files, touched
from minillm.course.chapter import CourseChapter, Task, all_chapters, read_chapter
from minillm.course.freshness import refresh, refresh_notebooks
from minillm.course.grading import Grader, Report
from minillm.course.leaks import leaks
from minillm.course.mutants import choose, mutants, read_equivalents
from minillm.course.notebook import build as build_notebook
from minillm.course.remote import Limits, Worker
from minillm.course.skeleton import def_source, reference_file, skeleton, with_function
from minillm.course.source import find, read_module, with_bodies
from minillm.course.syllabus import ROOT, read_syllabus, syllabus_table, with_table
from minillm.course.texts import course_complaints
from minillm.course.trials import Trial, Trials, Verdict
from minillm.course.wrong_answers import FEWEST, WrongAnswer, read_wrong_answers, too_few
from minillm.errors import ConfigError, MinillmError

POISON = 'raise RuntimeError("poison")'
IMPATIENT = Limits(cpu_seconds=1.0, times_reference=2.0)  # for programs that will not answer
N_PROCESSES = 2
SHOW_SECONDS = 0.5


@dataclass(frozen=True)
class Depth:
    """How much is tried.

    Args:
        seeds: random seeds for the reference.
        wrong_seeds: random seeds with each of which a wrong answer must fail.
        mutants: at most this many for each task; 0 for all.
        neighbours: how many other tasks see a poisoned file and a wrong answer; 0 for all.
        preset: at which the chapter's cells run.
    """

    seeds: int
    wrong_seeds: int
    mutants: int
    neighbours: int
    preset: str


QUICK = Depth(seeds=4, wrong_seeds=1, mutants=40, neighbours=1, preset="tiny")
FULL = Depth(seeds=20, wrong_seeds=5, mutants=0, neighbours=0, preset="default")


@dataclass(frozen=True)
class Outcome:
    """What a gate found.

    Args:
        summary: what was tried, in a few words.
        failures: what should not be; empty if the gate holds.
        seconds: how long it took.
    """

    summary: str
    failures: tuple[str, ...] = ()
    seconds: float = 0.0


class Bench:
    """A chapter with everything that its gates need, made when first needed.

    Args:
        chapter: what is checked.
        depth: how much.
        workers: untrusted processes, as many as may run at a time.
        say: told how far a long gate is.
    """

    def __init__(
        self,
        chapter: CourseChapter,
        depth: Depth,
        workers: Sequence[Worker],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.chapter, self.depth, self.workers, self.say = chapter, depth, workers, say

    @cached_property
    def reference(self) -> str:
        """The reference submission."""
        return reference_file(self.chapter)

    @cached_property
    def grader(self) -> Grader:
        """Grades with seed 0, the one that learners see."""
        return prepared_grader(self.chapter, [0])

    @cached_property
    def trials(self) -> Trials:
        """The same tests for submissions that we made ourselves.

        Raises:
            ConfigError: if the reference fails, because nothing can be learned from wrong answers then.
        """
        trials = Trials(self.grader)
        for verdict in trials.measure(self.reference, len(self.workers)):
            if not verdict.passed:
                raise ConfigError(f"the reference fails task {verdict.trial.task_id}: {verdict.message}")
        return trials

    @cached_property
    def wrong_answers(self) -> list[WrongAnswer]:
        """The chapter's `wrong.py`."""
        return read_wrong_answers(self.chapter)

    def neighbours(self, task: Task) -> list[Task]:
        """The tasks after this one, in a circle: as many as the depth says."""
        tasks = self.chapter.tasks
        place = tasks.index(task)
        following = [*tasks[place + 1 :], *tasks[:place]]
        return following[: self.depth.neighbours or None]

    def bystanders(self, answer: WrongAnswer) -> list[Task]:
        """Tasks that a wrong answer should not touch: all, or the neighbours of the first wrong answer of its task."""
        first = next(each for each in self.wrong_answers if each.task == answer.task)
        return self.neighbours(answer.task) if answer is first or not self.depth.neighbours else []

    def judged(self, trials: Sequence[Trial]) -> Iterator[Verdict]:
        """Verdicts, with a word on how far they are."""
        for number, verdict in enumerate(self.trials.run(trials, len(self.workers)), 1):
            self.say(f"{number} of {len(trials)}")
            yield verdict

    def graded(self, jobs: Sequence[tuple[str, Grader, Sequence[str] | None]]) -> list[Report]:
        """Reports of the real grader on (submission, grader, task ids or None), several at a time."""
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def one(job: tuple[str, Grader, Sequence[str] | None]) -> Report:
            worker = free.get()
            try:
                return job[1].grade(job[0], worker, tasks=job[2])
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as pool:
            reports = []
            for report in pool.map(one, jobs):
                reports.append(report)
                self.say(f"{len(reports)} of {len(jobs)}")
        return reports

    def close(self) -> None:
        """Remove what was written."""
        if "grader" in vars(self):
            self.grader.__exit__()


def prepared_grader(chapter: CourseChapter, seeds: Sequence[int], limits: Limits | None = None) -> Grader:
    """A grader that has its libraries, and what torch imports late: Python 3.11 cannot parse in two threads."""
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    grader = Grader(chapter, seeds, limits=limits, root=chapter.root)
    for task in chapter.tasks:
        grader.library(task)
    return grader


def reference_gets_everything(bench: Bench) -> Outcome:
    """G1: all points, with every seed, from the real grader."""
    seeds = list(range(bench.depth.seeds))
    shares = [seeds[start :: len(bench.workers)] for start in range(len(bench.workers))]
    graders = [prepared_grader(bench.chapter, share) for share in shares if share]
    reports = bench.graded([(bench.reference, grader, None) for grader in graders])
    failures = [
        f"task {task.id}, one of the seeds {report.seeds}: {task.message}"
        for report in reports
        for task in report.tasks
        if task.score != task.points
    ]
    for grader in graders:
        grader.__exit__()
    slowest = max(reports[0].tasks, key=lambda task: task.seconds)
    once = slowest.seconds / len(reports[0].seeds)
    summary = f"{len(bench.chapter.tasks)} tasks, {bench.chapter.points} points, {len(seeds)} seeds"
    return Outcome(f"{summary}; slowest {slowest.id}: {once:.1f} s", tuple(dict.fromkeys(failures)))


def skeleton_gets_nothing(bench: Bench) -> Outcome:
    """G2: no points for the file as it is handed out; each task raises its own NotImplementedError."""
    [report] = bench.graded([(skeleton(bench.chapter), bench.grader, None)])
    starters = {task.id for task in bench.chapter.tasks if task.starter}
    failures = []
    for task in report.tasks:
        if task.score:
            failures.append(f"task {task.id} gives {task.score} points for nothing")
        elif task.status != "not_implemented" and task.id not in starters:
            failures.append(f"task {task.id} is {task.status} instead of not implemented: {task.message}")
    return Outcome(f"{len(report.tasks)} holes, {report.score} points", tuple(failures))


def wrong_answers_fail(bench: Bench) -> Outcome:
    """G3: at least three for each task, and each fails exactly the tasks it names, with each seed."""
    answers = bench.wrong_answers
    failures = [f"task {task} has {count} wrong answers, at least {FEWEST} are expected"
                for task, count in too_few(bench.chapter, answers).items()]
    planned = [
        (answer, Trial(answer.reason, answer.submission(bench.reference), task.id, seed))
        for answer in answers
        for task in bench.chapter.tasks
        if task.id in answer.fails or task in bench.bystanders(answer)
        for seed in range(bench.depth.wrong_seeds if task.id in answer.fails else 1)
    ]
    verdicts = bench.judged([trial for _, trial in planned])
    for (answer, trial), verdict in zip(planned, verdicts, strict=True):
        name = f"wrong.py, line {answer.line} ({answer.task.name}, {answer.reason})"
        if verdict.passed and trial.task_id in answer.fails:
            failures.append(f"{name} passes task {trial.task_id} with seed {trial.seed}: the grader does not see it")
        elif not verdict.passed and trial.task_id not in answer.fails:
            failures.append(f"{name} also fails task {trial.task_id}, which it does not name: {verdict.message}")
    return Outcome(f"{len(answers)} wrong answers on {len(planned)} task and seed pairs", tuple(failures))


def poison_is_tasted(bench: Bench) -> Outcome:
    """G4: the reference with an error planted into one function fails that task by this error, and no other task."""
    jobs, failures = [], []
    for task in bench.chapter.tasks:
        text = with_bodies(bench.reference, {task.name: POISON})
        jobs.append((text, bench.grader, [task.id, *(other.id for other in bench.neighbours(task))]))
    for task, report in zip(bench.chapter.tasks, bench.graded(jobs), strict=True):
        first, *others = report.tasks
        if first.score or not any("poison" in text for text in first.failures):
            failures.append(f"{task.name}, poisoned, does not fail task {task.id} by its poison: {first.status}, "
                            f"{first.message or 'all points'}")
        failures += [f"poison in {task.name} (task {task.id}) also fails task {other.id}: {other.message}"
                     for other in others if not other.score]
    return Outcome(f"{len(jobs)} poisoned files, each given to {len(jobs[0][2])} tasks", tuple(failures))


def mutants_die(bench: Bench) -> Outcome:
    """G5: every planted fault is found, or argued to be none; what is argued must be there and must survive."""
    argued = {(each.task, each.mutant): each for each in read_equivalents(bench.chapter.folder)}
    trials, failures, known = [], [], set()
    for task in bench.chapter.tasks:
        found = mutants(def_source(bench.reference, task.name))
        known |= {(task.id, mutant.description) for mutant in found}
        first_line = line_in_library(bench.chapter, task)
        for mutant in choose(found, bench.depth.mutants) if bench.depth.mutants else found:
            text = with_function(bench.reference, task.name, mutant.source)
            name = f"{task.module.replace('.', '/')}.py:{first_line + mutant.line - 1} ({task.name}): "
            trials.append((mutant, Trial(name + mutant.description, text, task.id)))
    survived = 0
    for (mutant, trial), verdict in zip(trials, bench.judged([trial for _, trial in trials]), strict=True):
        reason = argued.get((trial.task_id, mutant.description))
        if verdict.passed and reason is None:
            failures.append(f"survives task {trial.task_id}: {trial.name}")
        elif not verdict.passed and reason is not None:
            failures.append(f"equivalent.toml argues a mutant that fails (task {trial.task_id}): {mutant.description}")
        survived += verdict.passed and reason is None
    failures += [f"equivalent.toml argues a mutant that task {task} does not have: {mutant}"
                 for task, mutant in argued.keys() - known]
    summary = f"{len(trials)} of {len(known)} mutants, {survived} survive, {len(argued)} argued"
    return Outcome(summary, tuple(failures))


def line_in_library(chapter: CourseChapter, task: Task) -> int:
    """Where the task's function begins, its decorators included."""
    return find(read_module(task.module, chapter.root), task.name).start + 1


def attacks_get_nothing(bench: Bench) -> Outcome:
    """G6: no points for files that attack the grader, and all points for the reference after them.

    What only the operating system can stop is not tried where it offers no such protection.
    """
    for worker in bench.workers:
        worker.start()
    tasks, protection = bench.chapter.tasks, set(bench.workers[0].protection)
    attacks = read_attacks(ROOT)
    tried = [attack for attack in attacks if protection.issuperset(attack.needs)]
    grader = prepared_grader(bench.chapter, [0], IMPATIENT)
    jobs: list[tuple[str, Grader, Sequence[str]]] = []
    for place, attack in enumerate(tried):
        chosen = tasks if not bench.depth.neighbours else [tasks[place % len(tasks)]]
        jobs.append((attack.submission(bench.chapter), grader, [task.id for task in chosen]))
    *reports, last = bench.graded([*jobs, (bench.reference, bench.grader, None)])
    failures = [
        f"the attack {attack.name} gets {task.score} points for task {task.id}"
        for attack, report in zip(tried, reports, strict=True)
        for task in report.tasks
        if task.score
    ]
    failures += [f"after the attacks the reference fails task {task.id}: {task.message}"
                 for task in last.tasks if not task.score]
    grader.__exit__()
    left_out = f", {len(attacks) - len(tried)} left out for lack of protection" if len(tried) < len(attacks) else ""
    return Outcome(f"{len(tried)} attacks{left_out}", tuple(failures))


def generated_is_fresh(bench: Bench) -> Outcome:
    """G7: exercise.py is that of today's library, and gives nothing away."""
    chapter = bench.chapter
    path, fresh = chapter.folder / "exercise.py", skeleton(chapter)
    failures = [f"{path.name} gives an answer away: {each}" for each in leaks(chapter, fresh)]
    if not path.is_file() or path.read_text(encoding="utf-8") != fresh:
        failures.append(f"{path.name} is not that of today's library; run minillm course build")
    return Outcome("exercise.py", tuple(failures))


def texts_are_sound(bench: Bench) -> Outcome:
    """G7: mathematics, links, commands, sizes, and the committed notebook's freshness."""
    complaints = course_complaints(bench.chapter.root, [bench.chapter.folder])
    return Outcome("text, links, figures, freshness", tuple(map(str, complaints)))


def cells_run(bench: Bench) -> Outcome:
    """G7: every cell of the chapter runs."""
    notebook = build_notebook(bench.chapter.folder, bench.depth.preset)
    n_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    return Outcome(f"{n_cells} cells at preset {bench.depth.preset}")


def reports_repeat(bench: Bench) -> Outcome:
    """G8: two workers give the same report on a submission in which every task is wrong, but for the times."""
    text, done = bench.reference, set()
    for answer in bench.wrong_answers:
        if answer.task.id not in done:
            text, _ = answer.submission(text), done.add(answer.task.id)
    first, second = (timeless(report) for report in bench.graded([(text, bench.grader, None)] * 2))
    if first == second:
        return Outcome(f"{len(first['tasks'])} tasks twice")
    pairs = zip(first["tasks"], second["tasks"], strict=True)
    failures = [f"task {a['id']}: {a['message']!r}, then {b['message']!r}" for a, b in pairs if a != b]
    return Outcome("two different reports", tuple(failures or ["the reports differ outside the tasks"]))


def timeless(report: Report) -> dict:
    """A report's JSON without what may differ: the seconds, and the operating system's protection."""
    content = json.loads(report.to_json())
    tasks = [{key: value for key, value in task.items() if key != "seconds"} for task in content["tasks"]]
    return content | {"tasks": tasks, "protection": None}


GATES: dict[str, Callable[[Bench], Outcome]] = {
    "G1 reference": reference_gets_everything,
    "G2 skeleton": skeleton_gets_nothing,
    "G3 wrong answers": wrong_answers_fail,
    "G4 poison": poison_is_tasted,
    "G5 mutants": mutants_die,
    "G6 attacks": attacks_get_nothing,
    "G7 exercise": generated_is_fresh,
    "G7 texts": texts_are_sound,
    "G7 cells": cells_run,
    "G8 repeats": reports_repeat,
}


@dataclass
class Row:
    """One line of the table."""

    chapter: str
    gate: str
    outcome: Outcome

    def __str__(self) -> str:
        state = "FAILED" if self.outcome.failures else "ok"
        return f"{self.chapter:7} {self.gate:17} {state:6} {self.outcome.seconds:6.1f} s  {self.outcome.summary}"


def run_gate(gate: Callable[[Bench], Outcome], bench: Bench) -> Outcome:
    """A gate's outcome with its time; an error that names its cause is a failure too."""
    begin = time.perf_counter()
    try:
        outcome = gate(bench)
    except MinillmError as error:
        outcome = Outcome("could not be tried", (str(error),))
    return replace(outcome, seconds=time.perf_counter() - begin)


def check(chapters: Sequence[str] = (), full: bool = False, since: str = "", root: Path = ROOT) -> int:
    """Put chapters through the gates and print a table.

    Args:
        chapters: numbers, also several in one string ("02,08"); none means those that a change could break, or all
            with `full`.
        full: all mutants, 20 seeds, notebooks at the default preset; minutes for each chapter.
        since: the commit against which something counts as changed; empty is the last but one.
        root: the clone.

    Returns:
        the exit code: 1 if any gate failed.

    Raises:
        ConfigError: for a chapter that is not there.
    """
    root = root.resolve()
    chosen = named_chapters(chapters, root)
    if not chapters:
        chosen = chosen if full else touched(chosen, changed_files(root, since))
    rows = []
    for row in run_gates(chosen, FULL if full else QUICK):
        tqdm.write("\n".join([str(row), *(indent(failure, "  ") for failure in row.outcome.failures)]))
        sys.stdout.flush()  # a log shows each gate when it is through, not all of them after half an hour
        rows.append(row)
    if not rows:
        print("no chapter has changed")
    failed = [row for row in rows if row.outcome.failures]
    for row in failed:
        print(f"\n{row.chapter}, {row.gate}:")
        print("\n".join(indent(failure, "  ") for failure in row.outcome.failures))
    verdict = f"{len(failed)} of {len(rows)} gates failed" if failed else f"all {len(rows)} gates hold"
    print(f"\n{verdict} ({sum(row.outcome.seconds for row in rows):.0f} s)")
    return int(bool(failed))


def run_gates(chapters: Sequence[CourseChapter], depth: Depth) -> Iterator[Row]:
    """All gates on all chapters, with a progress bar."""
    tqdm.monitor_interval = 0  # a thread of its own would be in the way of forks
    workers = [Worker() for _ in range(N_PROCESSES)]
    try:
        with tqdm(total=len(chapters) * len(GATES), unit="gate", dynamic_ncols=True, disable=None) as bar:
            for chapter in chapters:
                bench = Bench(chapter, depth, workers, lambda text: now_and_then(bar, text))
                for name, gate in GATES.items():
                    bar.set_description(f"{chapter.number} {name}")
                    yield Row(chapter.number, name, run_gate(gate, bench))
                    bar.set_postfix_str("", refresh=False)
                    bar.update()
                bench.close()
    finally:
        for worker in workers:
            worker.close()


def now_and_then(bar: tqdm, text: str) -> None:
    """Show a word behind the bar, unless it was drawn a moment ago; a log has no bar."""
    if bar.disable:
        return
    bar.set_postfix_str(text, refresh=False)
    if time.time() - bar.last_print_t > SHOW_SECONDS:
        bar.refresh()
        bar.last_print_t = time.time()


def named_chapters(names: Sequence[str], root: Path) -> list[CourseChapter]:
    """The chapters with these numbers; all that have an exercise if there are none.

    Raises:
        ConfigError: for a chapter that is not there.
    """
    numbers = [number for name in names for number in re.split(r"[,\s]+", name) if number]
    return [read_chapter(number, root) for number in numbers] if numbers else all_chapters(root)


def build(chapters: Sequence[str] = (), notebooks: bool = True, root: Path = ROOT) -> int:
    """Write again what is generated and stale: exercise.py, README's table, notebooks, their index.

    Args:
        chapters: numbers, also several in one string ("02,08"); none means all, and the index.
        notebooks: whether to run notebooks that are stale, which takes minutes.
        root: the clone.

    Returns:
        the exit code, 0.

    Raises:
        MinillmError: if a chapter is not there or contradicts itself, or a cell fails.
    """
    root = root.resolve()
    chosen = named_chapters(chapters, root)
    readme = root / "README.md"
    table = with_table(readme.read_text(encoding="utf-8"), syllabus_table(read_syllabus(root)))
    texts = {chapter.folder / "exercise.py": skeleton(chapter) for chapter in chosen} | {readme: table}
    done = [f"{path.relative_to(root)} is new" for path, text in texts.items() if write_if_new(path, text)]
    if notebooks and chapters:
        reasons = {chapter.folder.name: refresh(chapter.folder) for chapter in chosen}
        done += [f"notebooks/{name}.ipynb is new: {reason}" for name, reason in reasons.items() if reason]
    elif notebooks:
        done += refresh_notebooks(root)
    print("\n".join(done) or "everything is fresh")
    return 0


def write_if_new(path: Path, text: str) -> bool:
    """Write a file unless it already has this text; whether it was written."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True
