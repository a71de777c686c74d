"""Graders of chapter 05: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are loops over single words, written from the formulas, and autograd for the gradients.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, task
from minillm.errors import ConfigError, DataError, ShapeError

# 5.1 thinning out


@task("5.1")
def test_keeping_by_hand(impl, rng):
    got = impl.keep_probabilities(np.array([64, 32, 4, 0]), 0.04)
    expect_close(got, np.array([0.25, math.sqrt(0.125), 1.0, 1.0]), what="probabilities for counts 64 32 4 0")


@task("5.1", cases=4)
def test_keeping(impl, rng):
    counts = rng.choice([0, 1, 2, 5, 20, 100, 1000], size=int(rng.integers(3, 20)))
    counts[0] = 3
    for threshold in (1e-3, 0.02, 0.2, 2.0):
        shares = [int(count) / int(counts.sum()) for count in counts]
        expected = np.array([math.sqrt(threshold / share) if share > threshold else 1.0 for share in shares])
        got, unchanged = impl.keep_probabilities.after(counts, threshold)
        expect_close(got, expected, what=f"probabilities for counts {counts.tolist()}, threshold {threshold}")
        expect_equal(unchanged[0], counts, what="the counts afterwards")


@task("5.1")
def test_keeping_refuses_nonsense(impl, rng):
    for threshold in (0, -1e-3, math.nan):
        with expect_error(ConfigError):
            impl.keep_probabilities(np.array([1, 2]), threshold)
    with expect_error(DataError):
        impl.keep_probabilities(np.zeros(3, int), 1e-3)
    expect_close(impl.keep_probabilities(np.array([1, 0]), 1e-4), np.array([0.01, 1.0]), what="one word, once")


# 5.2 noise


def oracle_noise(counts, uniform, power):
    """The word that a uniform number falls on, and how near to a border it falls."""
    lengths = [int(count) ** power if count else 0.0 for count in counts]
    place, end = uniform * math.fsum(lengths), 0.0
    for word, length in enumerate(lengths):
        end += length
        if place < end:
            return word, min(place - end + length, end - place)
    raise AssertionError("the numbers are below 1")


@task("5.2")
def test_noise_by_hand(impl, rng):
    counts = np.array([81, 0, 16, 1])                    # at the power 0.75: lengths 27, 0, 8, 1 of 36
    uniforms = np.array([[0.0, 0.74], [0.76, 0.96], [0.98, 0.5]])
    got = impl.noise_words(counts, uniforms)
    expect_equal(got, np.array([[0, 0], [2, 2], [3, 0]]), what="words for counts 81 0 16 1")
    got = impl.noise_words(np.array([0, 1, 2, 1]), np.array([0.0, 0.25, 0.75]), 1.0)
    expect_equal(got, np.array([1, 2, 3]), what="words where the numbers lie on the borders (counts 0 1 2 1, power 1)")


@task("5.2", cases=4)
def test_noise(impl, rng):
    counts = rng.choice([0, 1, 2, 5, 20, 300], size=int(rng.integers(2, 30)))
    counts[int(rng.integers(len(counts)))] = 7
    for power in (0.75, 1.0, 0.5, 2.0):
        uniforms = rng.random((3, 40))
        answers = [[oracle_noise(counts, float(one), power) for one in row] for row in uniforms]
        clear = np.array([[distance > 1e-9 for _, distance in row] for row in answers])
        got, unchanged = impl.noise_words.after(counts, uniforms, power)
        expected = np.array([[word for word, _ in row] for row in answers])
        expect_equal(np.shape(got), expected.shape, what="the shape of the words")
        expect_equal(np.where(clear, got, -1), np.where(clear, expected, -1), what=f"words at the power {power}")
        expect_equal(unchanged[0], counts, what="the counts afterwards")
        expect_equal(unchanged[1], uniforms, what="the uniform numbers afterwards")


@task("5.2")
def test_noise_at_the_edges(impl, rng):
    counts = np.array([0, 3, 0, 5, 0])
    got = impl.noise_words(counts, np.array([0.0, math.nextafter(1.0, 0.0)]))
    expect_equal(got, np.array([1, 3]), what="the smallest and the largest number, between words that do not occur")
    expect_equal(impl.noise_words(counts, np.zeros((0, 5))), np.zeros((0, 5), np.int64), what="no number")
    expect_equal(impl.noise_words(np.array([1]), np.array([0.5])), np.array([0]), what="a word that occurs once, alone")
    with expect_error(DataError):
        impl.noise_words(np.zeros(4, int), np.array([0.5]))


@task("5.2")
def test_noise_comes_as_often_as_it_should(impl, rng):
    counts, n = np.array([1000, 100, 10, 1]), 40_000
    got = impl.noise_words(counts, (np.arange(n) + 0.5) / n)
    shares = np.bincount(got, minlength=4) / n
    lengths = np.array([float(count) ** 0.75 for count in counts])
    expect_close(shares, lengths / lengths.sum(), tolerance=2 / n, what="share of each word, evenly spread numbers")


# 5.3 windows


def oracle_windows(ids, reaches, boundary):
    widest = max(int(reach) for reach in reaches)
    contexts, allowed = [], []
    for place in range(len(ids)):
        row, counts = [], []
        for step in [*range(-widest, 0), *range(1, widest + 1)]:
            other = place + step
            counts.append(
                abs(step) <= reaches[place]
                and 0 <= other < len(ids)
                and boundary not in ids[min(place, other) : max(place, other) + 1].tolist()
            )
            row.append(int(ids[other]) if counts[-1] else 0)
        contexts.append(row)
        allowed.append(counts)
    return np.array(contexts, np.int64).reshape(len(ids), -1), np.array(allowed, bool).reshape(len(ids), -1)


def expect_windows(impl, ids, reaches, boundary):
    expected = oracle_windows(ids, reaches, boundary)
    got, unchanged = impl.context_windows.after(ids, reaches, boundary)
    what = f"ids {ids.tolist()}, reaches {reaches.tolist()}, boundary {boundary}"
    expect(isinstance(got, tuple) and len(got) == 2, f"{what}: expected two arrays, contexts and allowed")
    expect_equal(got[1], expected[1], what=f"{what}: allowed")
    expect_equal(got[0], expected[0], what=f"{what}: contexts")
    expect_equal(unchanged[0], ids, what="the ids afterwards")
    expect_equal(unchanged[1], reaches, what="the reaches afterwards")


@task("5.3")
def test_windows_by_hand(impl, rng):
    contexts, allowed = impl.context_windows(np.array([5, 6, 7]), np.array([1, 1, 2]))
    expected = np.array([[0, 0, 6, 0], [0, 5, 7, 0], [5, 6, 0, 0]])
    expect_equal(contexts, expected, what="neighbours of 5 6 7, reaches 1 1 2")
    expected = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]], bool)
    expect_equal(allowed, expected, what="which neighbours of 5 6 7 count")


@task("5.3", cases=4)
def test_windows(impl, rng):
    n, widest = int(rng.integers(2, 14)), int(rng.integers(1, 6))
    ids = rng.integers(1, 9, size=n)
    expect_windows(impl, ids, rng.integers(1, widest + 1, size=n), None)
    expect_windows(impl, ids, rng.integers(0, widest + 1, size=n), None)


@task("5.3", cases=4)
def test_windows_of_documents(impl, rng):
    n, widest = int(rng.integers(5, 25)), int(rng.integers(1, 6))
    for boundary in (0, 3):
        ids = rng.integers(0, 5, size=n)
        expect_windows(impl, ids, rng.integers(1, widest + 1, size=n), boundary)
    ids = np.array([4, 1, 0, 0, 2, 3, 0])
    expect_windows(impl, ids, np.full(7, 4), 0)


@task("5.3")
def test_windows_at_the_edges(impl, rng):
    expect_windows(impl, np.array([4]), np.array([2]), None)
    expect_windows(impl, np.array([4, 2]), np.array([0, 0]), None)
    expect_windows(impl, np.array([7, 7]), np.array([1, 3]), 7)
    expect_windows(impl, np.array([1, 2]), np.array([5, 1]), 9)
    with expect_error(DataError):
        impl.context_windows(np.array([1, 2]), np.array([1]))
    with expect_error(DataError):
        impl.context_windows(np.array([], np.int64), np.array([], np.int64))


# 5.4 the loss of skip-gram


def vectors_of(rng, size, *shape):
    return rng.standard_normal(shape) * size


def oracle_losses(hidden, target, negatives):
    """Torch, on scores made by broadcasting and summing."""
    scores = (hidden * target).sum(-1)
    noise = (hidden[:, None] * negatives).sum(-1)
    return -F.logsigmoid(scores) - F.logsigmoid(-noise).sum(-1)


def autograd(losses_of, *arrays):
    """The losses, and the gradient of each with respect to its own row of every array."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    losses = losses_of(*tensors)
    gradients = torch.autograd.grad(losses.sum(), tensors)
    return (losses.detach().numpy(), *(gradient.numpy() for gradient in gradients))


def expect_gradients(got, expected, names, what):
    expect(isinstance(got, tuple) and len(got) == len(expected), f"{what}: expected {len(expected)} arrays: {names}")
    for name, one, other in zip(names.split(", "), got, expected, strict=True):
        expect_close(one, other, what=f"{what}: {name}")


NAMES = "losses, d_hidden, d_target, d_negatives"


@task("5.4")
def test_loss_by_hand(impl, rng):
    third = math.log(3)                                   # sigmoid(log 3) = 3/4
    hidden, target, negatives = np.array([[third, 0.0]]), np.array([[1.0, 2.0]]), np.array([[[1.0, 0.0], [0.0, 1.0]]])
    got = impl.negative_sampling(hidden, target, negatives)
    expected = (
        np.array([math.log(4 / 3) + math.log(4) + math.log(2)]),
        np.array([[-0.25 + 0.75, -0.5 + 0.5]]),
        np.array([[-0.25 * third, 0.0]]),
        np.array([[[0.75 * third, 0.0], [0.5 * third, 0.0]]]),
    )
    expect_gradients(got, expected, NAMES, "scores log 3, log 3 and 0")


@task("5.4", cases=4)
def test_loss_and_gradients(impl, rng):
    b, k, c = (int(n) for n in rng.integers(1, 7, size=3))
    for size in (0.3, 1.0, 3.0):
        arrays = vectors_of(rng, size, b, c), vectors_of(rng, size, b, c), vectors_of(rng, size, b, k, c)
        got, unchanged = impl.negative_sampling.after(*arrays)
        expect_gradients(got, autograd(oracle_losses, *arrays), NAMES, f"B, K, C = {b}, {k}, {c}")
        for one, before in zip(unchanged, arrays, strict=True):
            expect_equal(one, before, what="an argument afterwards")


@task("5.4")
def test_loss_without_overflow(impl, rng):
    hidden, target, negatives = np.array([[40.0], [-40.0]]), np.array([[50.0], [50.0]]), np.array([[[50.0]], [[50.0]]])
    got = impl.negative_sampling(hidden, target, negatives)
    expected = autograd(oracle_losses, hidden, target, negatives)
    expect_gradients(got, expected, NAMES, "scores of 2000 and -2000")


@task("5.4")
def test_loss_checks_shapes(impl, rng):
    good = vectors_of(rng, 1, 2, 3), vectors_of(rng, 1, 2, 3), vectors_of(rng, 1, 2, 4, 3)
    shapes = (0, (2, 1)), (0, (1, 3)), (1, (1, 3)), (1, (2, 1)), (2, (1, 4, 3)), (2, (2, 4, 1)), (2, (2, 3))
    for place, shape in shapes:
        bad = [*good[:place], vectors_of(rng, 1, *shape), *good[place + 1 :]]
        with expect_error(ShapeError):
            impl.negative_sampling(*bad)


@task("5.4")
def test_loss_keeps_single_precision(impl, rng):
    arrays = [vectors_of(rng, 1, *shape).astype(np.float32) for shape in ((3, 4), (3, 4), (3, 2, 4))]
    for name, one in zip(NAMES.split(", "), impl.negative_sampling(*arrays), strict=True):
        expect(isinstance(one, np.ndarray) and one.dtype == np.float32, f"{name} of float32 vectors should be float32")


# 5.5 CBOW


CBOW_NAMES = "losses, d_contexts, d_target, d_negatives"


def oracle_cbow(contexts, allowed, target, negatives):
    """Window by window: the mean of a list."""
    means = [
        torch.stack([word for word, counts in zip(window, row, strict=True) if counts]).mean(0)
        if row.any() else torch.zeros_like(window[0])
        for window, row in zip(contexts, allowed, strict=True)
    ]  # fmt: skip
    return oracle_losses(torch.stack(means), target, negatives)


def expect_cbow(impl, contexts, allowed, target, negatives, what):
    expected = autograd(lambda words, *others: oracle_cbow(words, allowed, *others), contexts, target, negatives)
    got, unchanged = impl.cbow_gradients.after(contexts, allowed, target, negatives)
    expect_gradients(got, expected, CBOW_NAMES, what)
    for one, before in zip(unchanged, (contexts, allowed, target, negatives), strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("5.5")
def test_cbow_by_hand(impl, rng):
    contexts, allowed = np.array([[[3.0], [1.0], [7.0]]]), np.array([[True, True, False]])
    target, negatives = np.array([[math.log(3) / 2]]), np.array([[[0.0]]])
    expected = (                                          # the mean is 2, the score log 3
        np.array([math.log(4 / 3) + math.log(2)]),
        np.array([[[-0.0625 * math.log(3)], [-0.0625 * math.log(3)], [0.0]]]),
        np.array([[-0.5]]),
        np.array([[[1.0]]]),
    )
    expect_gradients(impl.cbow_gradients(contexts, allowed, target, negatives), expected, CBOW_NAMES, "words 3 and 1")


@task("5.5", cases=4)
def test_cbow(impl, rng):
    b, w, k, c = (int(n) for n in rng.integers(1, 7, size=4))
    allowed = rng.random((b, w)) < 0.6
    allowed[:, 0] = True
    arrays = vectors_of(rng, 1, b, w, c), allowed, vectors_of(rng, 1, b, c), vectors_of(rng, 1, b, k, c)
    expect_cbow(impl, *arrays, f"B, W, K, C = {b}, {w}, {k}, {c}")


@task("5.5")
def test_cbow_where_nobody_is_near(impl, rng):
    allowed = np.array([[False, False], [True, False], [False, False]])
    arrays = vectors_of(rng, 1, 3, 2, 4), allowed, vectors_of(rng, 1, 3, 4), vectors_of(rng, 1, 3, 2, 4)
    expect_cbow(impl, *arrays, "windows without a word")


@task("5.5")
def test_cbow_checks_shapes(impl, rng):
    good = vectors_of(rng, 1, 2, 3, 4), np.ones((2, 3), bool), vectors_of(rng, 1, 2, 4), vectors_of(rng, 1, 2, 5, 4)
    for place, bad in (
        (0, vectors_of(rng, 1, 1, 3, 4)), (0, vectors_of(rng, 1, 2, 1, 4)), (0, vectors_of(rng, 1, 2, 3, 1)),
        (1, np.ones((2, 1), bool)), (1, np.ones((1, 3), bool)), (2, vectors_of(rng, 1, 1, 4)),
        (0, vectors_of(rng, 1, 2, 4)),
    ):  # fmt: skip
        with expect_error(ShapeError):
            impl.cbow_gradients(*good[:place], bad, *good[place + 1 :])


@task("5.5")
def test_cbow_keeps_single_precision(impl, rng):
    contexts, target, negatives = (
        vectors_of(rng, 1, *shape).astype(np.float32) for shape in ((3, 5, 4), (3, 4), (3, 2, 4))
    )
    got = impl.cbow_gradients(contexts, np.ones((3, 5), bool), target, negatives)
    for name, one in zip(CBOW_NAMES.split(", "), got, strict=True):
        expect(isinstance(one, np.ndarray) and one.dtype == np.float32, f"{name} of float32 vectors should be float32")


# 5.6 analogies


def oracle_analogy(vectors, question, exclude):
    """The answer, and by how much it is ahead of the next one."""
    def unit(vector):
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector] if length else list(vector)

    a, b, c = (unit(vectors[word].tolist()) for word in question)
    wanted = unit([y - x + z for x, y, z in zip(a, b, c, strict=True)])
    scores = [
        -math.inf if exclude and word in question.tolist()
        else sum(x * y for x, y in zip(wanted, unit(vectors[word].tolist()), strict=True))
        for word in range(len(vectors))
    ]  # fmt: skip
    best = max(scores)
    ahead = best - max((score for word, score in enumerate(scores) if word != scores.index(best)), default=-math.inf)
    return scores.index(best), ahead


@task("5.6")
def test_analogy_by_hand(impl, rng):
    # man, woman, king, queen, apple: east is royal, north is female; lengths differ and must not matter
    vectors = np.array([[1.0, -1.0, 0.0], [10.0, 10.0, 0.0], [1.0, -1.0, 2.0], [0.5, 0.5, 1.0], [-3.0, 0.0, 0.0]])
    got = impl.analogies(vectors, np.array([[0, 1, 2], [1, 0, 3], [0, 2, 1]]))
    what = "man : woman = king : ?, woman : man = queen : ?, man : king = woman : ?"
    expect_equal(got, np.array([3, 2, 3]), what=what)
    got = impl.analogies(np.array([[1.0, 0.1], [1.0, 1.0], [0.1, 1.0], [-1.0, 1.0]]), np.array([[0, 1, 2]]), False)
    expect_equal(got, np.array([2]), what="the answer when the words of the question are allowed")


@task("5.6", cases=4)
def test_analogies(impl, rng):
    n, c = int(rng.integers(5, 20)), int(rng.integers(2, 7))
    vectors = rng.standard_normal((n, c)) * rng.choice([0.1, 1.0, 20.0], size=(n, 1))
    questions = np.array([rng.choice(n, size=3, replace=False) for _ in range(12)])
    for exclude in (True, False):
        answers = [oracle_analogy(vectors, question, exclude) for question in questions]
        clear = np.array([ahead > 1e-9 for _, ahead in answers])
        got, unchanged = impl.analogies.after(vectors, questions, exclude)
        expect_equal(np.shape(got), (12,), what="the shape of the answers")
        expected = np.array([word for word, _ in answers])
        expect_equal(np.where(clear, got, -1), np.where(clear, expected, -1), what=f"answers with exclude={exclude}")
        expect_equal(unchanged[0], vectors, what="the vectors afterwards")
        expect_equal(unchanged[1], questions, what="the questions afterwards")


@task("5.6")
def test_analogies_at_the_edges(impl, rng):
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [5.0, 0.0], [0.0, 3.0]])
    got = impl.analogies(vectors, np.array([[2, 0, 1], [0, 0, 1]]))
    what = "a vector of length 0 in the question, two equally good answers; a word twice in the question"
    expect_equal(got, np.array([3, 4]), what=what)
    expect_equal(impl.analogies(vectors, np.zeros((0, 3), np.int64)), np.zeros(0, np.int64), what="no question")
    four = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expect_equal(impl.analogies(four, np.array([[0, 1, 2]])), np.array([3]), what="four words: only one answer is left")
    with expect_error(DataError):
        impl.analogies(vectors[:3], np.array([[0, 1, 2]]))
    with expect_error(ShapeError):
        impl.analogies(vectors, np.array([[0, 1]]))
    with expect_error(ShapeError):
        impl.analogies(vectors[0], np.array([[0, 1, 2]]))
