"""Other people's formats, held against what they have published."""

import json

import pytest

from minillm.course.grading import Report, TaskResult
from minillm.course.results import check_gradescope, github_notice, github_summary, gradescope_results
from minillm.errors import DataError

BAD = "a | b <script>`x`</script> [l](http://x) @you ::error::\n# title"


@pytest.fixture
def report():
    tasks = [
        TaskResult("8.1", 3, 3, "passed", seconds=0.25),
        TaskResult("8.2", 2, 0, "failed", BAD, [BAD, "second"], 17, 0.5),
        TaskResult("8.3", 1, 0, "timeout", "no answer", ["no answer"]),
    ]
    return Report("08", "Attention", "ada", [0], 2, "abc", 3, [], tasks)


def test_gradescope(report):
    content = json.loads(gradescope_results(report))
    check_gradescope(content)
    assert content["score"] == 3 and content["execution_time"] == 0.75 and content["stdout_visibility"] == "hidden"
    assert [test["status"] for test in content["tests"]] == ["passed", "failed", "failed"]
    assert [(test["number"], test["score"], test["max_score"]) for test in content["tests"]] == [
        ("8.1", 3, 3),
        ("8.2", 0, 2),
        ("8.3", 0, 1),
    ]
    assert all(test["output_format"] == "text" for test in content["tests"])
    assert content["tests"][1]["output"].endswith("second\nline 17 of your file")


def test_an_unfinished_report_says_so(report):
    report.n_tasks = 5
    assert "2 tasks were not graded" in json.loads(gradescope_results(report))["output"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "expected an object"),
        ({}, "needs a score or tests"),
        ({"score": "3"}, "results.score is of type str"),
        ({"score": True}, "results.score is of type bool"),
        ({"score": 1, "points": 2}, "unknown field 'points'"),
        ({"score": 1, "visibility": "never"}, "expected one of visible, hidden"),
        ({"score": 1, "stdout_visibility": None}, "expected one of visible"),
        ({"score": 1, "execution_time": "9 s"}, "execution_time"),
        ({"tests": {}}, "results.tests is of type dict"),
        ({"tests": [{}]}, r"tests\[0\] has no score"),
        ({"tests": [{"score": 1, "number": 1.1}]}, r"tests\[0\].number is of type float"),
        ({"tests": [{"score": 1, "status": "ok"}]}, "expected one of passed, failed"),
        ({"tests": [{"score": 1, "tags": [1]}]}, "tags must be a list of strings"),
        ({"tests": [{"score": 1, "output_format": "pdf"}]}, "expected one of text"),
        ({"score": 1, "leaderboard": [{"name": "a", "value": 1, "order": "up"}]}, "expected one of asc, desc"),
    ],
)
def test_the_validator_can_fail(content, says):
    with pytest.raises(DataError, match=says):
        check_gradescope(content)


def test_the_published_example_is_valid():
    test = {"score": 2.0, "max_score": 2.0, "name": "n", "number": "1.1", "output": "o", "tags": ["a"]}
    board = [{"name": "A", "value": 0.9}, {"name": "T", "value": 15.1, "order": "asc"}, {"name": "S", "value": "***"}]
    test |= {"visibility": "visible", "extra_data": {}}
    top = {"score": 44.0, "execution_time": 136, "output": "text", "visibility": "after_due_date", "extra_data": {}}
    check_gradescope(top | {"stdout_visibility": "visible", "tests": [test], "leaderboard": board})


def test_the_github_summary_is_a_table_and_nothing_else(report):
    lines = github_summary(report).splitlines()
    assert lines[0] == "### chapter 08, Attention: 3 of 6 points"
    assert len(lines) == 7 and all(line.count("|") == 5 for line in lines[2:])
    assert "<script" not in lines[5] and "[l]" not in lines[5] and "@" not in lines[5] and "`" not in lines[5]


def test_the_github_notice(report):
    assert github_notice(report) == '::notice title=Autograding report::{"totalPoints": 3, "maxPoints": 6}'
