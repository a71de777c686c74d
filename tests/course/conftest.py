"""A small chapter of its own in a clone of its own, so that graders are tested without the real chapters."""

from pathlib import Path

import pytest

from minillm.course.chapter import read_chapter
from minillm.course.grading import Grader
from minillm.course.remote import Limits, Worker
from minillm.course.skeleton import reference_file, skeleton
from minillm.course.syllabus import ROOT

collect_ignore_glob = ["attacks/*"]  # hostile programs: pytest, which imports what it collects for doctests, must not

EXERCISE = """
title = "Small"
given = ["minillm.nn.attention:SelfAttention"]

[[task]]
id = "90.1"
object = "minillm.nn.attention:causal_mask"
points = 2
hint = "Compare positions."

[[task]]
id = "90.2"
object = "minillm.nn.attention:attention_weights"
points = 3
hint = "Divide, hide, softmax."

[[task]]
id = "90.3"
object = "minillm.nn.attention:merge_heads"
points = 1
hint = "Exchange, then flatten."

[[task]]
id = "90.4"
object = "minillm.nn.linear:Linear.forward"
points = 1
hint = "One product."
"""

GRADER = '''
import torch
from minillm.course.grader import Seeded, expect_close, expect_equal, expect_error, normal, task

@task("90.1")
def test_mask_by_hand(impl):
    expect_equal(impl.causal_mask(2, 3), torch.tensor([[True, True, False], [True, True, True]]), "mask of 2 and 3")

@task("90.1")
def test_more_queries_than_keys(impl):
    with expect_error(ValueError):
        impl.causal_mask(3, 2)

@task("90.2", cases=2, needs=("90.1",))
def test_weights_under_a_mask(impl, rng):
    query, key = normal(rng, 2, 4, 8), normal(rng, 2, 4, 8)
    mask = impl.causal_mask(4, 4)
    scores = (query @ key.mT / 8**0.5).masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf)
    expect_close(impl.attention_weights(query, key, mask), torch.softmax(scores, -1), what="the weights")

@task("90.3")
def test_heads_are_put_back(impl, rng):
    x = normal(rng, 2, 3, 5, 4)
    got, (after,) = impl.merge_heads.after(x)
    expect_close(got, torch.cat([x[:, h] for h in range(3)], -1), what="merged heads")
    expect_equal(after, x, "the input afterwards")

@task("90.4", needs=("90.3",))
def test_linear_inside_a_layer(impl, rng):
    layer = impl.SelfAttention(8, 2, 2, generator=Seeded(1))
    x = normal(rng, 1, 3, 8, dtype=torch.float32)
    layer.set("qkv.weight", torch.nn.Parameter(torch.zeros(24, 8)))
    expect_close(layer(x), torch.zeros(1, 3, 8), what="a layer whose weights are zero")
    linear = layer.get("output")
    weight = linear.get("weight").detach()
    value, (by_x,), by_name = linear.gradients(x, output_gradient=torch.ones(1, 3, 8))
    expect_close(value, x @ weight.T, 1e-5, what="the product")
    expect_close(by_x, weight.sum(0).expand(1, 3, 8), 1e-5, what="gradient of the input")
    expect_close(by_name["weight"], x.sum((0, 1)).expand(8, 8), 1e-5, what="gradient of the weight")
'''


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A folder with the real library, one chapter and its grader."""
    root = tmp_path_factory.mktemp("clone")
    (root / "minillm").symlink_to(ROOT / "minillm")
    (root / "chapters" / "90_small").mkdir(parents=True)
    (root / "chapters" / "90_small" / "exercise.toml").write_text(EXERCISE, encoding="utf-8")
    (root / "tests" / "graders").mkdir(parents=True)
    (root / "tests" / "graders" / "test_90_small.py").write_text(GRADER, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def small(clone):
    return read_chapter("90", clone)


@pytest.fixture(scope="session")
def reference(small):
    return reference_file(small)


@pytest.fixture(scope="session")
def stub(small):
    return skeleton(small)


@pytest.fixture(scope="session")
def worker():
    """One for all tests: starting it imports torch."""
    with Worker() as opened:
        opened.start()
        yield opened


@pytest.fixture(scope="module")
def grader(clone):
    with Grader("90", root=clone) as opened:
        yield opened


@pytest.fixture
def quick():
    """Limits for programs that never end."""
    return Limits(cpu_seconds=1, wall_factor=1.5)


@pytest.fixture(scope="session")
def processes_of():
    """The processes of a worker: its own two (one where there are no namespaces), and what programs have left."""

    def find(worker):
        mark = worker.folder.encode()
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdecimal() and mark in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    return find
