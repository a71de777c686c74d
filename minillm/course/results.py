"""A report in the forms that others read: Gradescope's results.json, and the summary page of a GitHub Actions run."""

import html
import json
from typing import Any

from minillm.course.grading import Report, TaskResult
from minillm.errors import DataError

VISIBILITIES = ("visible", "hidden", "after_due_date", "after_published")
FORMATS = ("text", "html", "simple_format", "md", "ansi")
TOP_FIELDS = {
    **{"score": (int, float), "execution_time": (int, float), "output": str, "output_format": FORMATS},
    **{"test_output_format": FORMATS, "test_name_format": FORMATS, "visibility": VISIBILITIES},
    **{"stdout_visibility": VISIBILITIES, "extra_data": dict, "tests": list, "leaderboard": list},
}
TEST_FIELDS = {
    **{"score": (int, float), "max_score": (int, float), "status": ("passed", "failed"), "name": str},
    **{"name_format": FORMATS, "number": str, "output": str, "output_format": FORMATS, "tags": list},
    **{"visibility": VISIBILITIES, "extra_data": dict},
}
LEADERBOARD_FIELDS = {"name": str, "value": (int, float, str), "order": ("asc", "desc")}


def gradescope_results(report: Report) -> str:
    """results.json for Gradescope. Text of learners stays text (never HTML), what was printed stays hidden.

    Source:
        https://gradescope-autograders.readthedocs.io/en/latest/specs/
    """
    content = {
        "score": report.score,
        "execution_time": round(sum(task.seconds for task in report.tasks), 3),
        "output": _headline(report),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": [_gradescope_test(task) for task in report.tasks],
        "extra_data": {"chapter": report.chapter, "commit": report.commit, "n_hidden_seeds": report.n_hidden_seeds},
    }
    check_gradescope(content)
    return json.dumps(content, indent=2) + "\n"


def _headline(report: Report) -> str:
    unfinished = "" if report.complete else f"; {report.n_tasks - len(report.tasks)} tasks were not graded"
    return f"chapter {report.chapter}, {report.title}: {report.score} of {report.points} points{unfinished}"


def _gradescope_test(task: TaskResult) -> dict[str, Any]:
    return {
        "number": task.id,
        "name": f"task {task.id}",
        "score": task.score,
        "max_score": task.points,
        "status": "passed" if task.status == "passed" else "failed",
        "output": "\n".join(task.failures) + (f"\nline {task.line} of your file" if task.line is not None else ""),
        "output_format": "text",
        "visibility": "visible",
        "extra_data": {"status": task.status, "seconds": task.seconds},
    }


def check_gradescope(content: Any) -> None:
    """Hold a results.json against Gradescope's published fields.

    Raises:
        DataError: an unknown field, one of the wrong type or with a value that is not allowed, no score anywhere.
    """
    _check_fields(content, TOP_FIELDS, "results")
    for place, test in enumerate(content.get("tests", ())):
        _check_fields(test, TEST_FIELDS, f"tests[{place}]")
        if not all(isinstance(tag, str) for tag in test.get("tags", ())):
            raise DataError(f"tests[{place}].tags must be a list of strings")
        if "score" not in test and "score" not in content:
            raise DataError(f"tests[{place}] has no score, and there is none for the whole submission")
    for place, entry in enumerate(content.get("leaderboard", ())):
        _check_fields(entry, LEADERBOARD_FIELDS, f"leaderboard[{place}]")
    if "score" not in content and not content.get("tests"):
        raise DataError("a results.json needs a score or tests")


def _check_fields(content: Any, fields: dict[str, Any], where: str) -> None:
    if not isinstance(content, dict):
        raise DataError(f"{where} is {type(content).__name__}, expected an object")
    for name, value in content.items():
        if name not in fields:
            raise DataError(f"{where} has the unknown field {name!r}; known are {', '.join(fields)}")
        allowed = fields[name]
        if isinstance(allowed, tuple) and isinstance(allowed[0], str):
            if value not in allowed:
                raise DataError(f"{where}.{name} is {value!r}, expected one of {', '.join(allowed)}")
        elif not isinstance(value, allowed) or isinstance(value, bool):
            raise DataError(f"{where}.{name} is of type {type(value).__name__}")


def github_summary(report: Report) -> str:
    """Markdown for the file named by $GITHUB_STEP_SUMMARY: a table of tasks; a learner's text cannot become markup."""
    lines = [f"### {html.escape(_headline(report))}", "", "| task | points | result | |", "| --- | --- | --- | --- |"]
    for task in report.tasks:
        said = "" if task.status == "passed" else f"<code>{_cell(task.message)}</code>"
        lines.append(f"| {task.id} | {task.score}/{task.points} | {task.status.replace('_', ' ')} | {said} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text for a table's cell: every character that Markdown or HTML could read as a mark is written as its number."""
    return "".join(f"&#{ord(mark)};" if mark in "&<>|`*_[]!@#\\\"'" else mark for mark in " ".join(text.split()))


def github_notice(report: Report) -> str:
    """The line on standard output that shows the points beside the run; `github_summary` has the details."""
    points = json.dumps({"totalPoints": report.score, "maxPoints": report.points})
    return f"::notice title=Autograding report::{points}"
