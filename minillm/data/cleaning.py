"""One pipeline of small steps that edit a text, edit and count, or drop it with a reason; a report says who did what.

The steps are plain functions and can be used alone. The pipeline streams: it holds a few blocks of documents, however
many there are. A document on which a step fails, takes too long, or even kills its process is dropped with the reason,
and the others go on.
"""

import pickle
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context

from minillm.data.dedup import ExactDuplicates, NearDuplicateIndex
from minillm.data.normalising import decode_utf8, tidy_whitespace, unicode_form, without_controls
from minillm.data.personal import mask_personal
from minillm.errors import ConfigError

N_EXAMPLES = 3
AROUND = 24  # characters of an example before and after the first change
DECODE = "decode"
Document = str | bytes


@dataclass(frozen=True)
class Step:
    """A named step.

    Args:
        name: for the report.
        kind: "edit" (text -> text), "count" (text -> (text, count)) or "drop" (text -> reason or None).
        function: what is done. To run in several processes it must be picklable: no lambda.
        in_order: the step remembers earlier documents, so it and all steps after it run in one process, in order.
    """

    name: str
    kind: str
    function: Callable
    in_order: bool = False

    def __post_init__(self):
        if self.kind not in ("edit", "count", "drop"):
            raise ConfigError(f"step {self.name!r}: kind must be edit, count or drop, not {self.kind!r}")

    def __call__(self, text: str) -> tuple[str, int, str | None]:
        """(text, count, reason to drop it or None), whatever the kind."""
        result = self.function(text)
        if self.kind == "drop":
            return text, 0, result
        return (*result, None) if self.kind == "count" else (result, 0, None)


@dataclass
class StepReport:
    """What one step did.

    Args:
        name: of the step.
        n_in: documents that reached it.
        n_changed: documents it changed.
        n_dropped: documents it dropped, failures included.
        n_found: sum of its counts.
        characters_removed: characters in minus characters out, dropped documents included.
        seconds: spent in it, in all processes together.
        reasons: reason without its numbers -> documents.
        examples: up to three pairs (before, after) of a changed place, or (start of a dropped document, reason).
    """

    name: str
    n_in: int = 0
    n_changed: int = 0
    n_dropped: int = 0
    n_found: int = 0
    characters_removed: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: "StepReport") -> None:
        """Add what the same step did to other documents."""
        for name in ("n_in", "n_changed", "n_dropped", "n_found", "characters_removed", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reasons += other.reasons
        self.examples = (self.examples + other.examples)[:N_EXAMPLES]

    def dropped(self, text: str, reason: str) -> None:
        """Note that a document was dropped."""
        self.n_dropped += 1
        self.characters_removed += len(text)
        self.reasons[re.sub(r"\d[\d.]*", "#", reason.partition(":")[0])] += 1
        if len(self.examples) < N_EXAMPLES:
            self.examples.append((text[: 2 * AROUND], reason))

    def edited(self, before: str, after: str, count: int) -> None:
        """Note what came out of an edit."""
        self.n_found += count
        if before != after:
            self.n_changed += 1
            self.characters_removed += len(before) - len(after)
            if len(self.examples) < N_EXAMPLES:
                place = max(first_difference(before, after) - AROUND, 0)
                self.examples.append((before[place : place + 2 * AROUND], after[place : place + 2 * AROUND]))


@dataclass
class Report:
    """What a pipeline did, step by step; `steps[0]` is the decoding of documents that come as bytes."""

    steps: list[StepReport]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Report":
        """An empty report for steps of these names."""
        return cls([StepReport(DECODE), *map(StepReport, names)])

    @property
    def n_documents(self) -> int:
        """How many came in."""
        return self.steps[0].n_in

    @property
    def n_kept(self) -> int:
        """How many came out."""
        return self.n_documents - sum(step.n_dropped for step in self.steps)

    def add(self, other: "Report") -> None:
        """Add the report of the same steps on other documents."""
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            mine.add(theirs)

    def table(self) -> str:
        """A Markdown table, a row per step."""
        heads = "step | in | changed | dropped | found | characters removed | why dropped"
        rows = [f"| {heads} |", "| --- |" + " --: |" * 5 + " --- |"]
        for step in self.steps:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in step.reasons.most_common())
            numbers = (step.n_in, step.n_changed, step.n_dropped, step.n_found, step.characters_removed)
            rows.append(f"| {step.name} | {' | '.join(f'{number:,}' for number in numbers)} | {reasons} |")
        return "\n".join(rows)

    def examples(self) -> str:
        """A line per example: step, before, after (or the reason for a drop)."""
        return "\n".join(
            f"{step.name}: {before!r} -> {after!r}" for step in self.steps for before, after in step.examples
        )

    def plot(self):
        """Documents dropped and changed by each step, as bars in a matplotlib figure."""
        from matplotlib.figure import Figure

        from minillm.plots import COLOURS, house_style

        with house_style():
            figure = Figure(figsize=(6, 0.8 + 0.3 * len(self.steps)))
            axes = figure.subplots()
            names = [step.name for step in self.steps]
            axes.barh(names, [step.n_changed for step in self.steps], color=COLOURS[5], label="changed")
            axes.barh(names, [step.n_dropped for step in self.steps], color=COLOURS[1], label="dropped", height=0.4)
            axes.invert_yaxis()
            axes.set(xlabel="documents", title=f"{self.n_kept:,} of {self.n_documents:,} documents are kept")
            axes.legend(loc="lower right")
        return figure


def first_difference(one: str, other: str) -> int:
    """The first place where two texts differ, found by halving; the shorter length if one begins the other.

    Example:
        >>> first_difference("abcd", "abxd"), first_difference("ab", "abc")
        (2, 2)
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def not_empty(text: str) -> str | None:
    """The reason "empty" for a text without anything but white space."""
    return None if text.strip() else "empty"


class _OutOfTime(BaseException):
    """Not an Exception, so that no step takes it for an error of its own."""


@contextmanager
def _time_limit(seconds: float | None):
    if seconds is None:
        yield
        return

    def interrupt(number, frame):
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Pipeline:
    """Steps in a row.

    Args:
        steps: each document goes through them in this order until one drops it.
        errors: "strict" drops documents (given as bytes) that are not UTF-8, "replace" mends them with U+FFFD.
        seconds_per_document: a document that needs longer is dropped; None sets no limit. Works on Unix, in the main
            thread of a process, and stops Python code and regular expressions.

    Example:
        >>> pipeline = Pipeline([edit(tidy_whitespace), drop(not_empty)])
        >>> report = pipeline.new_report()
        >>> list(pipeline.run(["a  b", " ", b"caf\\xe9", None], report))
        ['a b']
        >>> [(step.name, step.n_dropped) for step in report.steps]
        [('decode', 2), ('tidy_whitespace', 0), ('not_empty', 1)]
    """

    def __init__(self, steps: Sequence[Step], errors: str = "strict", seconds_per_document: float | None = None):
        if errors not in ("strict", "replace"):
            raise ConfigError(f"errors must be strict or replace, not {errors!r}")
        if seconds_per_document is not None and not seconds_per_document > 0:
            raise ConfigError(f"seconds_per_document must be above 0 or None, not {seconds_per_document}")
        if seconds_per_document is not None and not hasattr(signal, "setitimer"):
            raise ConfigError("this system has no interval timer, so no time limit; set seconds_per_document to None")
        self.steps, self.errors, self.seconds_per_document = tuple(steps), errors, seconds_per_document
        self.n_apart = next((place for place, step in enumerate(steps) if step.in_order), len(self.steps))

    def new_report(self) -> Report:
        """An empty report for `run` to fill."""
        return Report.of(step.name for step in self.steps)

    def run(
        self,
        documents: Iterable[Document],
        report: Report | None = None,
        n_processes: int = 1,
        documents_at_once: int = 64,
    ) -> Iterator[str]:
        """The documents that are kept, in their order, edited.

        Args:
            documents: texts or UTF-8 bytes, read as they are needed.
            report: from `new_report`; filled while the result is read.
            n_processes: 1 works here; more start as many processes for the steps before the first one that is in
                order. If a document kills its process, it alone is dropped ("process died").
            documents_at_once: documents handed to a process together.

        Raises:
            ConfigError: if a number is below 1, or a step cannot be sent to another process.
        """
        if n_processes < 1 or documents_at_once < 1:
            raise ConfigError(
                f"n_processes and documents_at_once must be at least 1, not {n_processes} and {documents_at_once}"
            )
        if self.seconds_per_document is not None and threading.current_thread() is not threading.main_thread():
            raise ConfigError("a time limit works in the main thread only; set seconds_per_document to None")
        report = self.new_report() if report is None else report
        blocks = in_blocks(documents, documents_at_once)
        return self._run(blocks, report, n_processes)

    def _run(self, blocks: Iterator[list[Document]], report: Report, n_processes: int) -> Iterator[str]:
        done = map(self.first_part, blocks) if n_processes == 1 else _Workers(self, n_processes).results(blocks)
        for texts, part in done:
            report.add(part)
            for text in texts:
                text = self._through(text, range(self.n_apart, len(self.steps)), report)
                if text is not None:
                    yield text

    def first_part(self, documents: Sequence[Document]) -> tuple[list[str], Report]:
        """Decode a block and take it through the steps before the first one that is in order."""
        report, kept = self.new_report(), []
        for document in documents:
            text = self._decoded(document, report.steps[0])
            if text is not None:
                text = self._through(text, range(self.n_apart), report)
            if text is not None:
                kept.append(text)
        return kept, report

    def _decoded(self, document: Document, note: StepReport) -> str | None:
        note.n_in += 1
        if isinstance(document, str):
            return document
        if not isinstance(document, bytes):
            note.dropped("", f"error: expected text or bytes, got {type(document).__name__}")
            return None
        try:
            text, count = decode_utf8(document, self.errors)
        except ValueError as error:
            note.dropped(document.decode("utf-8", "replace"), str(error))
            return None
        note.n_found += count
        note.n_changed += count > 0
        return text

    def _through(self, text: str, places: range, report: Report) -> str | None:
        """The text after these steps, or None; a failure or a time-out is a reason to drop it."""
        place = places.start
        try:
            with _time_limit(self.seconds_per_document):
                for place in places:
                    note, before = report.steps[place + 1], text
                    note.n_in += 1
                    start = time.perf_counter()
                    after, count, reason = self.steps[place](before)
                    note.seconds += time.perf_counter() - start
                    if reason is not None:
                        note.dropped(before, reason)
                        return None
                    note.edited(before, after, count)
                    text = after
        except _OutOfTime:
            report.steps[place + 1].dropped(text, f"too slow: more than {self.seconds_per_document} seconds")
            return None
        except Exception as error:  # whatever a step does to one document, the others must go on
            report.steps[place + 1].dropped(text, f"error {type(error).__name__}: {error}")
            return None
        return text


_PIPELINE_OF_THIS_PROCESS: list[Pipeline] = []


def _start_worker(pickled: bytes) -> None:
    _PIPELINE_OF_THIS_PROCESS[:] = [pickle.loads(pickled)]  # noqa: S301 (our own bytes, from the parent process)


def _work(documents: Sequence[Document]) -> tuple[list[str], Report]:
    return _PIPELINE_OF_THIS_PROCESS[0].first_part(documents)


class _Workers:
    """Processes that take blocks through a pipeline's first part; results come in order, whoever dies."""

    def __init__(self, pipeline: Pipeline, n_processes: int):
        self.pipeline, self.n_processes = pipeline, n_processes
        part = Pipeline(pipeline.steps[: pipeline.n_apart], pipeline.errors, pipeline.seconds_per_document)
        try:
            self.pickled = pickle.dumps(part)
        except Exception as error:  # pickle raises several unrelated kinds
            raise ConfigError(
                f"a step cannot be sent to another process ({error}); use functions that can be imported, not lambdas, "
                "or n_processes=1"
            ) from error

    def pool(self, n_processes: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(n_processes, get_context("spawn"), _start_worker, (self.pickled,))

    def results(self, blocks: Iterator[list[Document]]) -> Iterator[tuple[list[str], Report]]:
        pool, waiting = self.pool(self.n_processes), deque()
        try:
            for block in blocks:
                pool, future = self.submitted(pool, block)
                waiting.append((block, future))
                if len(waiting) > 2 * self.n_processes:
                    yield self.result(*waiting.popleft())
            while waiting:
                yield self.result(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def submitted(self, pool: ProcessPoolExecutor, block: list[Document]) -> tuple[ProcessPoolExecutor, Future]:
        try:
            return pool, pool.submit(_work, block)
        except BrokenProcessPool:
            pool.shutdown()
            pool = self.pool(self.n_processes)
            return pool, pool.submit(_work, block)

    def result(self, block: list[Document], future: Future) -> tuple[list[str], Report]:
        try:
            return self.whole(*future.result())
        except BrokenProcessPool:
            return self.one_by_one(block)

    def one_by_one(self, block: list[Document]) -> tuple[list[str], Report]:
        """A block in which some document may have killed its process: each alone, so that only the culprit is lost."""
        pool, kept, report = self.pool(1), [], self.pipeline.new_report()
        for document in block:
            try:
                texts, part = self.whole(*pool.submit(_work, [document]).result())
            except BrokenProcessPool:
                pool.shutdown()
                pool = self.pool(1)
                texts, part = [], self.pipeline.new_report()
                part.steps[0].n_in += 1
                part.steps[0].dropped(document if isinstance(document, str) else "", "process died")
            kept += texts
            report.add(part)
        pool.shutdown()
        return kept, report

    def whole(self, texts: list[str], part: Report) -> tuple[list[str], Report]:
        """The report with empty rows for the steps that only the parent runs."""
        report = self.pipeline.new_report()
        report.steps[: len(part.steps)] = part.steps
        return texts, report


def in_blocks(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Lists of `size` documents; the last may be shorter.

    Example:
        >>> list(in_blocks("abc", 2))
        [['a', 'b'], ['c']]
    """
    iterator = iter(documents)
    while block := list(islice(iterator, size)):
        yield block


def edit(function: Callable[[str], str], name: str | None = None) -> Step:
    """A step text -> text."""
    return Step(name or _name_of(function), "edit", function)


def count(function: Callable[[str], tuple[str, int]], name: str | None = None, in_order: bool = False) -> Step:
    """A step text -> (text, how often it changed something)."""
    return Step(name or _name_of(function), "count", function, in_order)


def drop(rule: Callable[[str], str | None], name: str | None = None, in_order: bool = False) -> Step:
    """A step text -> reason to drop it, or None."""
    return Step(name or _name_of(rule), "drop", rule, in_order)


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def standard_pipeline(*rules: Step, seconds_per_document: float | None = None) -> Pipeline:
    """What does no harm to a language model's text, then your own rules, then duplicates.

    Unicode NFC, no control characters, tidy white space, personal data masked, nothing empty; `rules`; exact, then near
    duplicates. Case, punctuation, accents and quotes stay. It remembers what it has seen: make a new one per corpus.

    Args:
        rules: further steps, for example `drop(QualityRules())`.
        seconds_per_document: as in `Pipeline`.
    """
    first = (edit(unicode_form), count(without_controls), edit(tidy_whitespace), count(mask_personal), drop(not_empty))
    last = (drop(ExactDuplicates(), in_order=True), drop(NearDuplicateIndex(), in_order=True))
    return Pipeline([*first, *rules, *last], seconds_per_document=seconds_per_document)
