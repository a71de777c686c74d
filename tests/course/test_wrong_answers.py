"""Wrong answers are read as source, checked, and put into the reference submission."""

import ast

import pytest
from helpers.toy_course import WRONG, write_toy_course

from minillm.course.skeleton import reference_file
from minillm.course.wrong_answers import read_wrong_answers, too_few, wrong
from minillm.errors import DataError


def test_read_in_order_without_running_anything(tmp_path):
    chapter = write_toy_course(tmp_path, wrong=WRONG.replace("return x.sum(-3)", "return x.sum(-3) + 1 / 0"))
    answers = read_wrong_answers(chapter)
    assert [(each.task.id, sorted(each.fails)) for each in answers] == [("8.1", ["8.1"])] * 3 + [("8.2", ["8.2"])] * 3
    assert answers[0].reason.startswith("reshaped at once")
    assert WRONG.splitlines()[answers[3].line - 1] == "def merge_heads(x):"
    assert answers[3].source == "def merge_heads(x):\n    return x.flatten(-2)\n"
    assert too_few(chapter, answers) == {} and too_few(chapter, answers[:4]) == {"8.2": 1}


def test_a_submission_differs_from_the_reference_in_one_function_only(tmp_path):
    chapter = write_toy_course(tmp_path)
    reference = reference_file(chapter)
    for answer in read_wrong_answers(chapter):
        old = {ast.unparse(node) for node in ast.parse(reference).body}
        new = {ast.unparse(node) for node in ast.parse(answer.submission(reference)).body}
        assert [text.startswith(f"def {answer.task.name}(") for text in new - old] == [True]
        assert len(old - new) == 1
    assert "wrong" not in answer.submission(reference)


def test_other_decorators_are_kept(tmp_path):
    old = "def merge_heads(x):\n    return x.sum"
    text = WRONG.replace(old, "@torch.no_grad()\n" + old)
    last = read_wrong_answers(write_toy_course(tmp_path, wrong=text))[-1]
    assert last.source.startswith("@torch.no_grad()\ndef merge_heads")


def test_methods_are_named_by_their_last_name_and_several_tasks_may_fail(tmp_path):
    exercise = """title = "Forward"
[[task]]
id = "8.1"
object = "minillm.nn.attention:SelfAttention.forward"
points = 2
hint = "Split, mix, merge."
[[task]]
id = "8.2"
object = "minillm.nn.attention:merge_heads"
points = 1
hint = "Exchange, then join."
"""
    text = '@wrong("8.1", "8.2", "nothing at all")\ndef forward(self, x):\n    return None\n'
    chapter = write_toy_course(tmp_path, exercise, text)
    [answer] = read_wrong_answers(chapter)
    assert answer.fails == {"8.1", "8.2"} and answer.task.name == "SelfAttention.forward"
    submission = answer.submission(reference_file(chapter))
    assert "    def forward(self, x):\n        return None\n" in submission and "def __init__" in submission


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "expected imports and functions"),
        ("def split_heads(x, n_heads): pass\n", "lacks its first decorator"),
        ('@wrong("8.1")\ndef split_heads(x, n_heads): pass\n', "must name a task"),
        ('@wrong("8.9", "no")\ndef split_heads(x, n_heads): pass\n', "unknown tasks"),
        ('@wrong("8.2", "no")\ndef split_heads(x, n_heads): pass\n', "cannot stand in for merge_heads"),
        ('@wrong("8.1", reason="no")\ndef split_heads(x, n_heads): pass\n', "lacks its first decorator"),
        ("def split_heads(:\n", "is not Python"),
        (
            '@wrong("8.2", "a")\ndef merge_heads(x): return x\n@wrong("8.2", "b")\ndef merge_heads(x): return  x\n',
            "same answer",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    chapter = write_toy_course(tmp_path, wrong=text)
    with pytest.raises(DataError, match=message):
        read_wrong_answers(chapter)


def test_a_missing_file_says_what_belongs_there(tmp_path):
    chapter = write_toy_course(tmp_path)
    (chapter.folder / "wrong.py").unlink()
    with pytest.raises(DataError, match="3 wrong answers for each task"):
        read_wrong_answers(chapter)


def test_the_mark_leaves_the_function_alone_and_needs_a_reason():
    def function():
        return 1

    assert wrong("8.1", "a reason")(function) is function
    for arguments in (("8.1",), (), ("8.1", ""), ("8.1", 3)):
        with pytest.raises(DataError, match="say what is wrong"):
            wrong(*arguments)
