"""The pipeline: order, report, bad documents, several processes."""

import os
import re
import time

import pytest

from minillm.data.cleaning import (
    Pipeline,
    Step,
    count,
    drop,
    edit,
    first_difference,
    not_empty,
    standard_pipeline,
)
from minillm.data.dedup import ExactDuplicates
from minillm.data.filters import QualityRules
from minillm.data.normalising import tidy_whitespace
from minillm.data.personal import mask_emails
from minillm.errors import ConfigError


def fail_on_bomb(text):
    if "bomb" in text:
        raise KeyError("boom")
    return text.upper()


def die_on_poison(text):
    if text == "poison":
        os._exit(3)
    return text


def slow_pattern(text):
    return re.sub(r"(a+)+$", "", text)


def many(n_documents):
    return [f"document {number % 7}" if number % 3 else f"mail me{number}@x.org" for number in range(n_documents)]


def all_steps():
    new = drop(ExactDuplicates(), in_order=True)
    return [count(mask_emails), edit(fail_on_bomb), drop(not_empty), new, edit(str.lower)]


def test_everything_is_counted():
    documents = ["a@b.org!", "bomb", "", "x", b"x", "caf\xe9".encode("latin-1"), 7, "Y"]
    pipeline = Pipeline(all_steps())
    report = pipeline.new_report()
    assert list(pipeline.run(documents, report)) == ["<email>!", "x", "y"]
    assert report.n_documents == 8 and report.n_kept == 3
    assert [(s.name, s.n_in, s.n_changed, s.n_dropped, s.n_found) for s in report.steps] == [
        ("decode", 8, 0, 2, 0), ("mask_emails", 6, 1, 0, 1), ("fail_on_bomb", 6, 2, 1, 0), ("not_empty", 5, 0, 1, 0),
        ("ExactDuplicates", 4, 0, 1, 0), ("lower", 3, 3, 0, 0),
    ]  # fmt: skip
    reasons = [reason for step in report.steps for reason in step.reasons]
    assert reasons == ["not UTF-#", "error", "error KeyError", "empty", "duplicate of document #"]
    assert sum(step.characters_removed for step in report.steps) == sum(
        len(d) if isinstance(d, str) else len(d.decode("utf-8", "replace")) for d in documents if d != 7
    ) - len("<email>!xy")  # fmt: skip
    assert "| mask_emails | 6 | 1 | 0 | 1 |" in report.table() and "KeyError" in report.examples()
    assert report.plot().axes[0].get_title(loc="left").startswith("3 of 8")


def test_bytes_can_be_mended():
    pipeline = Pipeline([], errors="replace")
    report = pipeline.new_report()
    assert list(pipeline.run([b"a\xffb"], report)) == ["a\ufffdb"] and report.steps[0].n_found == 1


def test_it_streams():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield f"text {len(taken)}"

    results = Pipeline([edit(str.upper)]).run(endless(), documents_at_once=5)
    assert [next(results) for _ in range(3)] == ["TEXT 1", "TEXT 2", "TEXT 3"] and len(taken) == 5


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="needs an interval timer")
def test_a_regex_bomb_is_dropped_when_its_time_is_up():
    pipeline = Pipeline([edit(tidy_whitespace), edit(slow_pattern)], seconds_per_document=0.2)
    report = pipeline.new_report()
    start = time.monotonic()
    assert list(pipeline.run(["ok", "a" * 40 + "!", "fine"], report)) == ["ok", "fine"]
    assert time.monotonic() - start < 5 and report.steps[2].reasons == {"too slow": 1}


@pytest.mark.parametrize("n_processes", [2])
def test_processes_give_the_same_and_survive_a_death(n_processes):
    documents = [*many(40), "poison", *many(30), "bomb"]
    alone, together = Pipeline(all_steps()), Pipeline([edit(die_on_poison), *all_steps()])
    expected, one = list(alone.run([d for d in documents if d != "poison"])), together.new_report()
    assert list(together.run(documents, one, n_processes, documents_at_once=16)) == expected
    assert one.n_documents == 72 and one.n_kept == len(expected)
    assert one.steps[0].reasons == {"process died": 1} and one.steps[3].reasons == {"error KeyError": 1}


def test_the_standard_pipeline():
    text = " ".join(f"word{number}" for number in range(60))
    pipeline = standard_pipeline(drop(QualityRules(least_words=3, least_stop_words=0)))
    report = pipeline.new_report()
    kept = list(pipeline.run([text, "two words", text, text.replace("word30", "other"), "\ud800 \x00", " "], report))
    assert kept == [text] and [step.n_dropped for step in report.steps] == [0, 0, 0, 0, 0, 2, 1, 1, 1]


def test_bad_settings():
    for call in (
        lambda: Step("a", "filter", str), lambda: Pipeline([], errors="ignore"),
        lambda: Pipeline([], seconds_per_document=0), lambda: Pipeline([]).run([], n_processes=0),
        lambda: Pipeline([]).run([], documents_at_once=0),
        lambda: list(Pipeline([edit(lambda text: text)]).run(["a"], n_processes=2)),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            call()


def test_first_difference_by_looking():
    for one, other in (("", ""), ("abc", "abc"), ("abc", "abd"), ("xbc", "abc"), ("ab", "abab"), ("aaab", "aaac")):
        pairs = zip(one, other, strict=False)
        expected = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
        assert first_difference(one, other) == expected
