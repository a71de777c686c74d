"""Graders of chapter 06: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are torch's automatic differentiation in float64, and loops over single numbers written from the formulas.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, task
from minillm.models.neural_ngram_by_hand import LossOfOne


def packed(rng, n, vocab_size, end, share_of_ends=0.25):
    """Random ids with ends of documents strewn in, some of them next to one another."""
    ids = rng.integers(vocab_size, size=n)
    ids[rng.random(n) < share_of_ends] = end
    return ids


# 6.1 contexts


def oracle_contexts(ids, n_before, end):
    rows = []
    for place in range(len(ids)):
        row = []
        for back in range(1, n_before + 1):
            inside = place - back >= 0 and end not in ids[place - back : place]
            row.insert(0, ids[place - back] if inside else end)
        rows.append(row)
    return np.array(rows, np.int64).reshape(len(ids), n_before)


@task("6.1")
def test_contexts_by_hand(impl, rng):
    got = impl.contexts_before(np.array([5, 6, 7, 0, 8]), 2, 0)
    expect_equal(got, np.array([[0, 0], [0, 5], [5, 6], [6, 7], [0, 0]]), what="contexts of 5 6 7 end 8, two ids each")


@task("6.1", cases=4)
def test_contexts_of_a_packed_text(impl, rng):
    vocab_size = int(rng.integers(3, 9))
    end = int(rng.integers(vocab_size))
    for n_before in (1, 2, int(rng.integers(3, 7))):
        ids = packed(rng, int(rng.integers(5, 40)), vocab_size, end)
        got, (unchanged, *_) = impl.contexts_before.after(ids, n_before, end)
        what = f"contexts of length {n_before}, end-of-text id {end}, ids {ids.tolist()}"
        expect_equal(got, oracle_contexts(ids.tolist(), n_before, end), what=what)
        expect_equal(unchanged, ids, what="the ids afterwards")


@task("6.1")
def test_contexts_without_any_end(impl, rng):
    ids = rng.integers(1, 9, size=12)
    got = impl.contexts_before(ids, 4, 0)
    expect_equal(got, oracle_contexts(ids.tolist(), 4, 0), what="contexts of one document")


@task("6.1")
def test_contexts_at_the_edges(impl, rng):
    for ids, n_before in (([], 3), ([4], 2), ([0], 2), ([0, 0, 0], 2), ([3, 4], 5), ([1, 0, 2], 0)):
        got = impl.contexts_before(np.array(ids, np.int64), n_before, 0)
        expect_equal(got, oracle_contexts(ids, n_before, 0), what=f"contexts of {ids}, {n_before} each")
    small = np.array([3, 1, 200, 7], np.uint8)
    got = impl.contexts_before(small, 2, 1)
    expect_equal(got, oracle_contexts(small.tolist(), 2, 1), what="contexts of ids that are uint8")


@task("6.1")
def test_what_is_no_text_is_refused(impl, rng):
    for ids, n_before in ((np.zeros((2, 3), np.int64), 2), (np.zeros(3), 2), (np.array([1, 2]), -1)):
        with expect_error(ValueError):
            impl.contexts_before(ids, n_before, 0)


# 6.2 softmax and cross-entropy


def oracle_loss(logits, targets):
    """torch's own kernel and its derivative."""
    leaf = torch.from_numpy(logits).requires_grad_()
    loss = F.cross_entropy(leaf, torch.from_numpy(targets))
    loss.backward()
    return loss.item(), leaf.grad.numpy()


def expect_loss(got, expected, what, tolerance=1e-10):
    expect(isinstance(got, tuple) and len(got) == 2, f"{what}: expected the loss and the derivative")
    expect_close(got[0], expected[0], tolerance, what=f"loss {what}")
    if isinstance(got[1], np.ndarray) and got[1].shape == expected[1].shape:
        sums = got[1].sum(axis=1)
        expect_close(sums, np.zeros_like(sums), tolerance, what=f"sums of the derivative's rows {what}")
    expect_close(got[1], expected[1], tolerance, what=f"derivative {what}")


@task("6.2")
def test_loss_by_hand(impl, rng):
    got = impl.softmax_cross_entropy(np.log([[0.25, 0.75], [0.5, 0.5]]), np.array([1, 0]))
    expected = (math.log(4 / 3) + math.log(2)) / 2, np.array([[0.125, -0.125], [-0.25, 0.25]])
    expect_loss(got, expected, "of probabilities 1/4 3/4 and 1/2 1/2 with targets 1 and 0")


@task("6.2", cases=4)
def test_loss(impl, rng):
    n, vocab_size = int(rng.integers(1, 9)), int(rng.integers(2, 12))
    for size in (1.0, 30.0):
        logits, targets = size * rng.standard_normal((n, vocab_size)), rng.integers(vocab_size, size=n)
        got, unchanged = impl.softmax_cross_entropy.after(logits, targets)
        expect_loss(got, oracle_loss(logits, targets), f"of {n} examples, {vocab_size} ids, scores of size {size:g}")
        expect_equal(unchanged[0], logits, what="the scores afterwards")
        expect_equal(unchanged[1], targets, what="the targets afterwards")


@task("6.2")
def test_loss_of_huge_scores(impl, rng):
    targets = np.array([0, 1, 2])
    for size in (1e4, -1e4):
        logits = size + rng.standard_normal((3, 4))
        expect_loss(impl.softmax_cross_entropy(logits, targets), oracle_loss(logits, targets), f"near {size:g}")
    logits = np.array([[0.0, -2e4, 0.0, 0.0], [1e4, 0.0, -1e4, 0.0], [0.0, 0.0, 1e4, 0.0]])
    expect_loss(impl.softmax_cross_entropy(logits, targets), oracle_loss(logits, targets), "of scores far apart")


@task("6.2")
def test_loss_in_single_precision(impl, rng):
    logits, targets = rng.standard_normal((5, 6)).astype(np.float32), rng.integers(6, size=5)
    got = impl.softmax_cross_entropy(logits, targets)
    expect_loss(got, oracle_loss(logits, targets), "of float32 scores", 1e-6)


@task("6.2")
def test_loss_refuses_what_does_not_fit(impl, rng):
    for shape, targets in (((2, 3), [0]), ((2, 3), [0, 3]), ((2, 3), [-1, 0]), ((0, 3), []), ((3,), [0, 1, 2])):
        with expect_error(ValueError):
            impl.softmax_cross_entropy(np.zeros(shape), np.array(targets, np.int64))


# 6.3 the affine layer


def oracle_affine(gradient, x, weight):
    """Sums over single numbers."""
    n, d_out, d_in = len(x), *weight.shape
    by_x, by_weight, by_bias = np.zeros((n, d_in)), np.zeros((d_out, d_in)), np.zeros(d_out)
    for b in range(n):
        for o in range(d_out):
            by_bias[o] += gradient[b, o]
            for i in range(d_in):
                by_x[b, i] += gradient[b, o] * weight[o, i]
                by_weight[o, i] += gradient[b, o] * x[b, i]
    return by_x, by_weight, by_bias


def expect_affine(impl, gradient, x, weight, what):
    got, unchanged = impl.affine_backward.after(gradient, x, weight)
    expect(isinstance(got, tuple) and len(got) == 3, "expected three derivatives: by x, by weight, by bias")
    for name, one, other in zip(("x", "weight", "bias"), got, oracle_affine(gradient, x, weight), strict=True):
        expect_close(one, other, what=f"derivative by {name} {what}")
    for name, one, other in zip(("gradient", "x", "weight"), unchanged, (gradient, x, weight), strict=True):
        expect_equal(one, other, what=f"{name} afterwards")


@task("6.3")
def test_affine_by_hand(impl, rng):
    got = impl.affine_backward(np.array([[1.0, 2.0]]), np.array([[5.0]]), np.array([[3.0], [4.0]]))
    expected = np.array([[11.0]]), np.array([[5.0], [10.0]]), np.array([1.0, 2.0])
    for name, one, other in zip(("x", "weight", "bias"), got, expected, strict=True):
        expect_close(one, other, what=f"derivative by {name} of one example")


@task("6.3", cases=4)
def test_affine(impl, rng):
    n, d_in, d_out = (int(size) for size in rng.integers(1, 7, size=3))
    gradient, x, weight = (rng.standard_normal(shape) for shape in ((n, d_out), (n, d_in), (d_out, d_in)))
    expect_affine(impl, gradient, x, weight, f"for {n} examples, {d_in} inputs, {d_out} outputs")
    square = (rng.standard_normal((3, 3)) for _ in range(3))
    expect_affine(impl, *square, "where every size is 3")


# 6.4 the embedding


def oracle_embedding(gradient, ids, n_rows):
    table = np.zeros((n_rows, gradient.shape[-1]))
    for place in np.ndindex(ids.shape):
        for c in range(gradient.shape[-1]):
            table[ids[place], c] += gradient[place][c]
    return table


@task("6.4")
def test_embedding_by_hand(impl, rng):
    got = impl.embedding_backward(np.array([[1.0], [10.0], [100.0]]), np.array([2, 0, 2]), 3)
    expect_close(got, np.array([[10.0], [0.0], [101.0]]), what="derivative by the table for ids 2 0 2")


@task("6.4", cases=4)
def test_embedding(impl, rng):
    n_rows, width = int(rng.integers(2, 8)), int(rng.integers(1, 5))
    for shape in ((int(rng.integers(1, 9)),), (int(rng.integers(1, 6)), 3), (2, 3, 2)):
        ids, gradient = rng.integers(n_rows, size=shape), rng.standard_normal((*shape, width))
        got, unchanged = impl.embedding_backward.after(gradient, ids, n_rows)
        what = f"derivative by a table of {n_rows} rows for ids {ids.tolist()}"
        expect_close(got, oracle_embedding(gradient, ids, n_rows), what=what)
        expect_equal(unchanged[0], gradient, what="the gradient afterwards")


@task("6.4")
def test_embedding_at_the_edges(impl, rng):
    nothing = impl.embedding_backward(np.zeros((0, 2, 3)), np.zeros((0, 2), np.int64), 4)
    expect_equal(nothing, np.zeros((4, 3)), what="derivative by a table from which nothing was looked up")
    ids, gradient = np.full((40, 2), 1), np.ones((40, 2, 3), np.float32)
    expected = np.array([[0.0] * 3, [80.0] * 3], np.float32)
    expect_equal(impl.embedding_backward(gradient, ids, 2), expected, what="one id eighty times, in float32")


# 6.5 the whole gradient


def model_inputs(rng, direct, n=6, vocab_size=5, n_context=3, width=2, d_hidden=4):
    """Weights of every part (none of them 0), contexts in which ids repeat, and targets."""
    shapes = {
        "embedding.weight": (vocab_size, width),
        "hidden.weight": (d_hidden, n_context * width),
        "hidden.bias": (d_hidden,),
        "output.weight": (vocab_size, d_hidden),
        "output.bias": (vocab_size,),
    }
    if direct:
        shapes["direct.weight"] = (vocab_size, n_context * width)
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return weights, rng.integers(vocab_size, size=(n, n_context)), rng.integers(vocab_size, size=n)


def oracle_model(weights, contexts, targets):
    """The formula y = b + W x + U tanh(d + H x) in torch, differentiated by torch."""
    leaves = {name: torch.from_numpy(values).requires_grad_() for name, values in weights.items()}
    x = F.embedding(torch.from_numpy(contexts), leaves["embedding.weight"]).flatten(1)
    hidden = torch.tanh(F.linear(x, leaves["hidden.weight"], leaves["hidden.bias"]))
    y = F.linear(hidden, leaves["output.weight"], leaves["output.bias"])
    if "direct.weight" in leaves:
        y = y + F.linear(x, leaves["direct.weight"])
    loss = F.cross_entropy(y, torch.from_numpy(targets))
    loss.backward()
    return loss.item(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}


def expect_gradients(impl, weights, contexts, targets, what):
    got, unchanged = impl.loss_and_gradients.after(weights, contexts, targets)
    expect(isinstance(got, tuple) and len(got) == 2, "expected the loss and a dictionary of derivatives")
    loss, gradients = oracle_model(weights, contexts, targets)
    expect_close(got[0], loss, what=f"loss {what}")
    expect_close(got[1], gradients, what=f"derivatives {what}")
    expect_equal(unchanged[0], weights, what="the weights afterwards")
    expect_equal(unchanged[1], contexts, what="the contexts afterwards")


@task("6.5", cases=3)
def test_gradients_without_direct_connections(impl, rng):
    expect_gradients(impl, *model_inputs(rng, False), "of the model without direct connections")


@task("6.5", cases=3)
def test_gradients_with_direct_connections(impl, rng):
    expect_gradients(impl, *model_inputs(rng, True), "of the model with direct connections")


@task("6.5", cases=3)
def test_gradients_of_any_shape(impl, rng):
    sizes = dict(zip(("n", "vocab_size", "n_context", "width", "d_hidden"), rng.integers(1, 6, size=5), strict=True))
    sizes = {name: int(size) for name, size in sizes.items()} | {"vocab_size": int(rng.integers(2, 7))}
    what = ", ".join(f"{name} {size}" for name, size in sizes.items())
    expect_gradients(impl, *model_inputs(rng, bool(rng.integers(2)), **sizes), f"of a model with {what}")


@task("6.5")
def test_gradients_of_one_id_in_every_place(impl, rng):
    weights, contexts, targets = model_inputs(rng, True)
    expect_gradients(impl, weights, np.full_like(contexts, 2), targets, "where every context is 2 2 2")


# 6.6 finite differences


def oracle_differences(weights, name, contexts, targets, step):
    """Central differences of the torch model's loss, number by number."""
    found = np.zeros(weights[name].shape)
    for place in np.ndindex(found.shape):
        losses = []
        for sign in (1, -1):
            moved = {key: values.copy() for key, values in weights.items()}
            moved[name][place] += sign * step
            losses.append(oracle_model(moved, contexts, targets)[0])
        found[place] = (losses[0] - losses[1]) / (2 * step)
    return found


@task("6.6", cases=2, needs=("6.2",))
def test_differences_are_near_the_derivative(impl, rng):
    weights, contexts, targets = model_inputs(rng, True)
    expected = oracle_model(weights, contexts, targets)[1]
    for name in weights:
        got, unchanged = impl.finite_differences.after(LossOfOne(name, weights, contexts, targets), weights[name])
        expect_close(got, expected[name], 1e-8, what=f"finite differences of the loss by {name}")
        expect_equal(unchanged[1], weights[name], what=f"{name} afterwards")


@task("6.6", cases=2, needs=("6.2",))
def test_the_step_is_the_one_that_was_given(impl, rng):
    weights, contexts, targets = model_inputs(rng, False)
    for name in ("embedding.weight", "output.bias"):
        for step in (0.5, 0.1, 1e-3):
            got = impl.finite_differences(LossOfOne(name, weights, contexts, targets), weights[name], step)
            expected = oracle_differences(weights, name, contexts, targets, step)
            expect_close(got, expected, 1e-9, what=f"differences of the loss by {name} with step {step:g}")


@task("6.6", needs=("6.2",))
def test_the_usual_step(impl, rng):
    """A steep function shows which step was taken when none was given: the error grows with its square."""
    weights, contexts, targets = model_inputs(rng, False, n=1)
    weights["embedding.weight"] = 1e-3 * weights["embedding.weight"]
    weights["hidden.weight"] = 1e4 * weights["hidden.weight"]
    function = LossOfOne("embedding.weight", weights, contexts, targets)
    got = impl.finite_differences(function, weights["embedding.weight"])
    expected = oracle_differences(weights, "embedding.weight", contexts, targets, 1e-5)
    expect_close(got, expected, 1e-7, what="differences of a steep function with the step that is usual, 1e-5")


@task("6.6", needs=("6.2",))
def test_steps_and_numbers_that_cannot_work_are_refused(impl, rng):
    weights, contexts, targets = model_inputs(rng, False)
    function, bias = LossOfOne("hidden.bias", weights, contexts, targets), weights["hidden.bias"]
    for values, step in ((bias, 0.0), (bias, -1e-5), (bias, math.nan), (bias.astype(np.float32), 1e-5)):
        with expect_error(ValueError):
            impl.finite_differences(function, values, step)
