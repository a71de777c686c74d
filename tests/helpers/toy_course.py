"""A small course in a folder of its own: real library functions, its own chapter, grader and wrong answers."""

from pathlib import Path

from minillm.course.chapter import CourseChapter, read_chapter
from minillm.course.skeleton import skeleton
from minillm.course.syllabus import ROOT

EXERCISE = """title = "Heads"

[[task]]
id = "8.1"
object = "minillm.nn.attention:split_heads"
points = 2
hint = "Cut, then exchange."

[[task]]
id = "8.2"
object = "minillm.nn.attention:merge_heads"
points = 1
hint = "Exchange, then join."
"""

WRONG = '''"""Wrong answers."""

from minillm.course.wrong_answers import wrong


@wrong("8.1", "reshaped at once: numbers of different words end up in one head")
def split_heads(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ShapeError("no")
    return x.reshape(*x.shape[:-2], n_heads, x.shape[-2], -1)


@wrong("8.1", "not exchanged")
def split_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1))


@wrong("8.1", "any number of heads is taken")
def split_heads(x, n_heads):
    d_head = x.shape[-1] // n_heads
    return x[..., : n_heads * d_head].unflatten(-1, (n_heads, d_head)).transpose(-3, -2)


@wrong("8.2", "not exchanged")
def merge_heads(x):
    return x.flatten(-2)


@wrong("8.2", "flattens too much")
def merge_heads(x):
    return x.transpose(-3, -2).flatten(-3)


@wrong("8.2", "a sum of the heads")
def merge_heads(x):
    return x.sum(-3)
'''

GRADER = '''"""Graders of the toy chapter."""

import torch

from minillm.course.grader import expect_close, expect_error, normal, task


@task("8.1", cases=2)
def test_heads_are_slices(impl, rng):
    for leading in ((), (2,), (2, 3)):
        x = normal(rng, *leading, 5, 12)
        expected = torch.stack(x.split(4, dim=-1), dim=-3)
        expect_close(impl.split_heads(x, 3), expected)


@task("8.1")
def test_uneven_heads_are_refused(impl, rng):
    with expect_error(ValueError):
        impl.split_heads(normal(rng, 2, 7), 2)


@task("8.2", cases=2)
def test_heads_are_joined(impl, rng):
    for leading in ((), (2,)):
        heads = [normal(rng, *leading, 5, 4) for _ in range(3)]
        expect_close(impl.merge_heads(torch.stack(heads, dim=-3)), torch.cat(heads, dim=-1))
'''


def write_toy_course(root: Path, exercise: str = EXERCISE, wrong: str = WRONG, grader: str = GRADER) -> CourseChapter:
    """The chapter 08_toy under `root`, whose library is this repository's own."""
    folder = root / "chapters" / "08_toy"
    folder.mkdir(parents=True)
    (root / "minillm").symlink_to(ROOT / "minillm")
    (folder / "exercise.toml").write_text(exercise)
    (folder / "wrong.py").write_text(wrong)
    (root / "tests" / "graders").mkdir(parents=True)
    (root / "tests" / "graders" / "test_08_toy.py").write_text(grader)
    chapter = read_chapter("08", root)
    (folder / "exercise.py").write_text(skeleton(chapter))
    return chapter
