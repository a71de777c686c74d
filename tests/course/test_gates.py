"""Each gate holds for a sound chapter, and catches the fault that it is there for."""

import pytest
from helpers.toy_course import EXERCISE, GRADER, WRONG, write_toy_course

from minillm.course import gates
from minillm.course.attacks import Attack
from minillm.course.changes import changed_files, touched
from minillm.course.gates import Bench, Depth
from minillm.course.remote import Worker
from minillm.errors import ConfigError

DEPTH = Depth(seeds=2, wrong_seeds=2, mutants=0, neighbours=0, preset="tiny")
SHAPES_ONLY = """
@task("8.2")
def test_heads_are_joined(impl, rng):
    expect_equal(list(impl.merge_heads(normal(rng, 2, 3, 5, 4)).shape), [2, 5, 12])
"""
HEAD, OF_TASK_2 = GRADER.replace("expect_close, ", "expect_close, expect_equal, ").split('@task("8.2"')
ARGUED = """
[[equivalent]]
task = "8.2"
mutant = "{}"
reason = "it is the same for every input"
"""


@pytest.fixture(scope="module")
def workers():
    with Worker() as worker:
        yield [worker]


@pytest.fixture
def bench(tmp_path, workers):
    made = []

    def make(**parts):
        made.append(Bench(write_toy_course(tmp_path, **parts), DEPTH, workers))
        return made[-1]

    yield make
    for each in made:
        each.close()


def failures(gate, bench):
    return "\n".join(gates.run_gate(gate, bench).failures)


@pytest.mark.slow
def test_a_sound_chapter_passes(bench):
    toy = bench()
    for name, gate in gates.GATES.items():
        if name not in ("G7 texts", "G7 cells", "G6 attacks"):
            outcome = gates.run_gate(gate, toy)
            assert outcome.failures == (), name
            assert outcome.summary and outcome.seconds > 0


def test_g1_catches_a_grader_that_the_reference_fails(bench):
    toy = bench(grader=GRADER.replace("torch.cat(heads, dim=-1)", "torch.cat(heads, dim=-1) * (rng.random() < 0.5)"))
    found = failures(gates.reference_gets_everything, toy)
    assert "task 8.2, one of the seeds" in found and "8.1" not in found
    assert "the reference fails task 8.2" in failures(gates.mutants_die, toy)


def test_g2_catches_points_for_nothing_and_an_unmarked_test(bench, tmp_path):
    toy = bench(grader=HEAD + '@task("8.2")\ndef test_nothing(impl, rng):\n    assert True\n')
    assert failures(gates.skeleton_gets_nothing, toy) == "task 8.2 gives 1 points for nothing"


def test_g2_catches_a_hole_that_raises_something_else(bench):
    body = '    heads = [normal(rng, 5, 4)]\n    raise ValueError("too early")\n'
    toy = bench(grader=HEAD + '@task("8.2")\ndef test_heads_are_joined(impl, rng):\n' + body)
    assert "task 8.2 is failed instead of not implemented" in failures(gates.skeleton_gets_nothing, toy)


@pytest.mark.slow
def test_g3_catches_a_grader_that_looks_at_shapes_only(bench):
    text = WRONG.replace("return x.flatten(-2)\n", "return x.transpose(-3, -2).flatten(-2) * 2\n")
    found = failures(gates.wrong_answers_fail, bench(grader=HEAD + SHAPES_ONLY, wrong=text))
    assert "(merge_heads, not exchanged) passes task 8.2 with seed 0" in found
    assert "flattens too much" not in found


def test_g3_catches_a_right_answer_among_the_wrong_ones_and_too_few(bench):
    text = WRONG.replace("return x.sum(-3)", "return x.transpose(-3, -2).flatten(-2)")
    text = text.replace('@wrong("8.1", "not exchanged")\ndef split_heads(x, n_heads):\n'
                        "    return x.unflatten(-1, (n_heads, -1))\n", "")
    found = failures(gates.wrong_answers_fail, bench(wrong=text))
    assert "task 8.1 has 2 wrong answers, at least 3" in found
    assert "(merge_heads, a sum of the heads) passes task 8.2" in found


def test_g3_catches_a_wrong_answer_that_does_not_fail_all_it_names(bench):
    text = WRONG.replace('@wrong("8.2", "not exchanged")', '@wrong("8.2", "8.1", "not exchanged")')
    found = failures(gates.wrong_answers_fail, bench(wrong=text))
    assert "passes task 8.1 with seed 0" in found


def test_g4_catches_a_grader_that_tests_the_library_instead_of_the_file(bench):
    library = HEAD.replace("import torch\n", "import torch\n\nfrom minillm.nn.attention import merge_heads\n", 1)
    toy = bench(grader=library + '@task("8.2"' + OF_TASK_2.replace("impl.merge_heads", "merge_heads"))
    found = failures(gates.poison_is_tasted, toy)
    assert "merge_heads, poisoned, does not fail task 8.2 by its poison: passed, all points" in found
    assert "8.1 by" not in found
    assert "task 8.2 gives 1 points for nothing" in failures(gates.skeleton_gets_nothing, toy)


@pytest.mark.slow
def test_g5_catches_surviving_mutants_and_accepts_argued_ones(bench):
    toy = bench(grader=HEAD + SHAPES_ONLY)
    found = failures(gates.mutants_die, toy)
    assert "survives task 8.2: minillm/nn/attention.py:" in found
    names = [line.partition("(merge_heads): ")[2] for line in found.splitlines()]
    (toy.chapter.folder / "equivalent.toml").write_text("".join(map(ARGUED.format, names)))
    assert failures(gates.mutants_die, toy) == ""


@pytest.mark.slow
def test_g5_catches_arguments_that_do_not_hold(bench):
    toy = bench()
    dead = "`-2` became `-1` in `x.transpose(-3, -2).flatten(-2)`"
    (toy.chapter.folder / "equivalent.toml").write_text(ARGUED.format(dead) + ARGUED.format("`a` became `b`"))
    found = failures(gates.mutants_die, toy)
    assert f"argues a mutant that fails (task 8.2): {dead}" in found
    assert "argues a mutant that task 8.2 does not have: `a` became `b`" in found


def test_g6_catches_a_grader_that_believes_a_guess(bench, monkeypatch):
    guess = Attack("right_shape", "import torch\n\n\ndef attack(*args):\n    return torch.ones(2, 5, 12)\n")
    impossible = Attack("never_tried", "def attack(*args):\n    return None\n", ("no such protection",))
    monkeypatch.setattr(gates, "read_attacks", lambda root: [guess, impossible])
    toy = bench(grader=HEAD + SHAPES_ONLY)
    outcome = gates.run_gate(gates.attacks_get_nothing, toy)
    assert outcome.failures == ("the attack right_shape gets 1 points for task 8.2",)
    assert outcome.summary == "1 attacks, 1 left out for lack of protection"


def test_g7_catches_a_stale_exercise_and_an_answer_in_it(bench):
    toy = bench()
    file = toy.chapter.folder / "exercise.py"
    file.write_text(file.read_text().replace("Cut each vector", "Cut every vector"))
    found = failures(gates.generated_is_fresh, toy)
    assert found == "exercise.py is not that of today's library; run minillm course build"


def test_g7_catches_a_leak(bench):
    # CrossAttention.__init__ stays in the file; its statements are the answer of a task on another method of it
    exercise = EXERCISE.replace("minillm.nn.attention:split_heads", "minillm.nn.attention:CrossAttention.forward")
    toy = bench(exercise=exercise, wrong='"""None."""\n')
    assert failures(gates.generated_is_fresh, toy) == ""
    toy.chapter.tasks[0].__dict__["name"] = "CrossAttention.__init__"
    leaking = gates.skeleton
    try:
        gates.skeleton = lambda chapter: toy.reference
        assert "gives an answer away: line" in failures(gates.generated_is_fresh, toy)
    finally:
        gates.skeleton = leaking


def test_g8_catches_a_grader_that_throws_dice(bench):
    dice = HEAD.replace("import torch\n", "import random\n\nimport torch\n", 1) + SHAPES_ONLY.replace(
        "[2, 5, 12])", "[random.randrange(10**9), 5, 12])"
    )
    assert "task 8.2: " in failures(gates.reports_repeat, bench(grader=dice))


@pytest.mark.slow
def test_an_endless_mutant_is_ended_and_counts_as_found(bench):
    toy = bench()
    toy.trials.limits = dict.fromkeys(toy.trials.limits, 3.0)
    text = gates.with_bodies(toy.reference, {"merge_heads": "while True:\n    x = x"})
    crash = gates.with_bodies(toy.reference, {"merge_heads": "import os\nos._exit(0)"})
    verdicts = list(toy.trials.run([gates.Trial(name, each, "8.2") for name, each in (("a", text), ("b", crash))], 2))
    assert [verdict.passed for verdict in verdicts] == [False, False]
    assert [verdict.message for verdict in verdicts] == ["no answer in 3.0 s", "the process ended without an answer"]


def test_the_table_and_the_exit_code(tmp_path, monkeypatch, capsys):
    write_toy_course(tmp_path)
    monkeypatch.setattr(gates, "GATES", {"G7 exercise": gates.generated_is_fresh})
    assert gates.check(["08"], root=tmp_path) == 0
    out = capsys.readouterr().out
    assert "08      G7 exercise       ok" in out and "all 1 gates hold" in out
    (tmp_path / "chapters" / "08_toy" / "exercise.py").unlink()
    assert gates.check(root=tmp_path) == 1, "no git here: all chapters are looked at"
    out = capsys.readouterr().out
    assert "FAILED" in out and "run minillm course build" in out and "1 of 1 gates failed" in out
    with pytest.raises(ConfigError, match="no chapter '77'"):
        gates.check(["77"], root=tmp_path)


def test_build_writes_what_is_stale_and_only_that(tmp_path, monkeypatch, capsys):
    toy = write_toy_course(tmp_path)
    (tmp_path / "README.md").write_text("x")
    monkeypatch.setattr(gates, "with_table", lambda text, table: text)
    monkeypatch.setattr(gates, "syllabus_table", lambda chapters: "")
    monkeypatch.setattr(gates, "read_syllabus", lambda root: [])
    file = toy.folder / "exercise.py"
    fresh = file.read_text()
    file.write_text("old")
    assert gates.build(["08"], notebooks=False, root=tmp_path) == 0
    assert file.read_text() == fresh and "chapters/08_toy/exercise.py is new" in capsys.readouterr().out
    assert gates.build(["08"], notebooks=False, root=tmp_path) == 0
    assert capsys.readouterr().out == "everything is fresh\n"


def test_which_chapters_a_change_touches(tmp_path):
    toy = write_toy_course(tmp_path)
    assert changed_files(tmp_path) is None and touched([toy], None) == [toy]
    for file in ("chapters/08_toy/README.md", "tests/graders/test_08_toy.py", "notebooks/08_toy.ipynb",
                 "minillm/nn/attention.py", "minillm/nn/__init__.py", "minillm/errors.py", "minillm/course/wire.py",
                 "pyproject.toml"):  # fmt: skip
        assert touched([toy], [file]) == [toy], file
    for file in ("chapters/09_other/README.md", "README.md", "minillm/train/loop.py", "tests/nn/test_attention.py"):
        assert touched([toy], [file]) == [], file
