"""Graders of chapter 03: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are loops over single n-grams, written from the formulas.
"""

import math
from fractions import Fraction

import numpy as np

from minillm.course.grader import expect, expect_close, expect_equal, task


def floats(values):
    return np.array([float(value) for value in values])


def random_counts(rng, n, n_contexts, zeros=True):
    """Counts of n-grams and their contexts; context 0 has no n-gram and, with zeros, context 1 only counts of 0."""
    contexts = np.sort(rng.integers(1, n_contexts, size=n))
    counts = rng.choice([0, 1, 1, 2, 3, 4, 9, 40] if zeros else [1, 2, 3, 4, 9], size=n)
    if zeros:
        counts[contexts == 1] = 0
    return counts, contexts


# 3.1 Good-Turing


def oracle_turing(n_with):
    found = []
    for r in range(len(n_with) - 1):
        estimate = None
        if r > 0 and n_with[r] and n_with[r + 1]:
            estimate = Fraction((r + 1) * int(n_with[r + 1]), int(n_with[r]))
        found.append(estimate if estimate is not None and estimate < r else Fraction(r))
    return floats(found)


@task("3.1")
def test_turing_by_hand(impl, rng):
    n_with = np.array([0, 10, 4, 3])
    expect_close(impl.good_turing_counts(n_with), np.array([0.0, 0.8, 2.0]), what="r* for n1, n2, n3 = 10, 4, 3")
    expect_close(impl.good_turing_counts(np.array([7, 5])), np.array([0.0]), what="r* for r = 0 alone")


@task("3.1", cases=5)
def test_turing_of_any_length(impl, rng):
    n_with = np.sort(rng.integers(1, 200, size=int(rng.integers(3, 9))))[::-1].copy()
    n_with[0] = int(rng.integers(0, 1000))
    got, unchanged = impl.good_turing_counts.after(n_with)
    expect_close(got, oracle_turing(n_with), what=f"r* for n = {n_with.tolist()}")
    expect_equal(unchanged[0], n_with, what="the argument afterwards")


@task("3.1", cases=5)
def test_turing_where_it_cannot_be_used(impl, rng):
    n_with = rng.choice([0, 0, 1, 2, 5, 30], size=int(rng.integers(2, 9)))
    expect_close(impl.good_turing_counts(n_with), oracle_turing(n_with), what=f"r* for n = {n_with.tolist()}")


@task("3.1")
def test_turing_exceptions_by_hand(impl, rng):
    for n_with, expected in (
        ([9, 0, 4, 1], [0, 1, 3 / 4]),      # nobody seen once
        ([9, 8, 0, 4], [0, 1, 2]),          # nobody seen twice
        ([0, 2, 1, 1], [0, 1, 2]),          # the estimate for 1 is 1, for 2 it is 3
        ([5, 4, 2, 0], [0, 1, 2]),          # 2 * 2 / 4 = 1, not less than 1
    ):
        got = impl.good_turing_counts(np.array(n_with))
        expect_close(got, floats(expected), what=f"r* for n = {n_with}")


# 3.2 one step of expectation and maximisation


def oracle_em(weights, probabilities, known):
    n_levels = len(weights)
    answered, asked = [0.0] * n_levels, [0.0] * n_levels
    for row, knows in zip(probabilities, known, strict=True):
        paths = []
        for who in range(n_levels + 1):
            p = row[who]
            if who > 0:
                p *= weights[who - 1] if knows[who - 1] else 0.0
            for level in range(who, n_levels):
                p *= 1 - weights[level] if knows[level] else 1.0
            paths.append(p)
        for level in range(n_levels):
            if knows[level]:
                answered[level] += paths[level + 1] / sum(paths)
                asked[level] += sum(paths[: level + 2]) / sum(paths)
    return floats(a / b if b > 0 else w for a, b, w in zip(answered, asked, weights, strict=True))


def em_inputs(rng, n, n_levels):
    probabilities = rng.random((n, n_levels + 1)) * rng.choice([0, 1, 1], size=(n, n_levels + 1))
    probabilities[:, 0] = 0.01 + rng.random()
    return 0.05 + 0.9 * rng.random(n_levels), probabilities


@task("3.2")
def test_em_by_hand(impl, rng):
    got = impl.em_step(np.array([0.5]), np.array([[0.25, 0.75], [0.25, 0.25]]), np.array([[True], [True]]))
    expect_close(got, np.array([0.625]), what="shares of 3/4 and 1/2: the new weight")
    got = impl.em_step(np.array([0.5, 0.5]), np.array([[0.2, 0.4, 0.0]]), np.array([[True, True]]))
    expect_close(got, np.array([2 / 3, 0.0]), what="the longest context says 0, the next twice the uniform share")
    one = np.array([[0.5, 0.25, 0.5]]), np.array([[True, True]])
    got = impl.em_step(np.array([0.5, 0.5]), *one)
    expect_close(got, np.array([1 / 3, 4 / 7]), what="shares of 1/8, 1/16 and 1/4: the new weights")


@task("3.2", cases=4)
def test_em_where_every_level_knows(impl, rng):
    n_levels = int(rng.integers(1, 5))
    weights, probabilities = em_inputs(rng, int(rng.integers(1, 30)), n_levels)
    known = np.ones((len(probabilities), n_levels), bool)
    got = impl.em_step(weights, probabilities, known)
    expect_close(got, oracle_em(weights, probabilities, known), what=f"new weights of {n_levels} levels")


@task("3.2", cases=4)
def test_em_where_long_contexts_are_unknown(impl, rng):
    n_levels = int(rng.integers(2, 6))
    weights, probabilities = em_inputs(rng, 25, n_levels)
    known = np.arange(n_levels) < rng.integers(1, n_levels + 1, size=25)[:, None]
    got, unchanged = impl.em_step.after(weights, probabilities, known)
    expect_close(got, oracle_em(weights, probabilities, known), what=f"new weights of {n_levels} levels")
    for one, before in zip(unchanged, (weights, probabilities, known), strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("3.2", cases=3)
def test_em_where_a_level_in_between_does_not_know(impl, rng):
    weights, probabilities = em_inputs(rng, 25, 4)
    known = rng.random((25, 4)) < 0.6
    got = impl.em_step(weights, probabilities, known)
    expect_close(got, oracle_em(weights, probabilities, known), what="new weights where some level does not know")


@task("3.2")
def test_em_where_nobody_was_asked(impl, rng):
    weights, probabilities = em_inputs(rng, 8, 3)
    known = np.array([[True, False, False]] * 8)
    got = impl.em_step(weights, probabilities, known)
    expect_close(got[1:], weights[1:], what="weights of levels that know no context")
    expect_close(got, oracle_em(weights, probabilities, known), what="new weights")


@task("3.2", cases=2)
def test_em_never_makes_the_text_less_likely(impl, rng):
    weights, probabilities = em_inputs(rng, 40, 3)
    known = np.arange(3) < rng.integers(1, 4, size=40)[:, None]

    def log_likelihood(weights):
        total = 0.0
        for row, knows in zip(probabilities, known, strict=True):
            p = row[0]
            for level in range(3):
                p = weights[level] * row[level + 1] + (1 - weights[level]) * p if knows[level] else p
            total += math.log(p)
        return total

    before = log_likelihood(weights)
    for step in range(4):
        weights = impl.em_step(weights, probabilities, known)
        after = log_likelihood(weights)
        expect(after >= before - 1e-9, f"step {step + 1} made the text less likely: {before:.6f} to {after:.6f} nats")
        before = after


# 3.3 and 3.4: shares of n-grams and weights of contexts


def oracle_shares(counts, contexts, n_contexts, keep, leave):
    """Loop over n-grams; `keep(count, total, n_different)` and `leave(counts of the context)`."""
    groups = [[int(c) for c, h in zip(counts, contexts, strict=True) if h == context] for context in range(n_contexts)]
    shares = [
        keep(int(c), sum(groups[h]), sum(one > 0 for one in groups[h])) if sum(groups[h]) else 0.0
        for c, h in zip(counts, contexts, strict=True)
    ]
    return floats(shares), floats(leave(group) if sum(group) else 1.0 for group in groups)


def expect_shares(got, expected, contexts, what):
    """The shares, the weights, and first of all that they sum to one."""
    expect(isinstance(got, tuple) and len(got) == 2, f"{what}: expected two arrays, shares and weights")
    if all(isinstance(one, np.ndarray) and one.shape == other.shape for one, other in zip(got, expected, strict=True)):
        sums = np.bincount(contexts, weights=got[0], minlength=len(expected[1])) + got[1]
        expect_close(sums, np.ones(len(expected[1])), what=f"{what}: shares of each context and its weight, summed")
    expect_close(got[0], expected[0], what=f"{what}: shares")
    expect_close(got[1], expected[1], what=f"{what}: weights of the contexts")


def oracle_witten_bell(counts, contexts, n_contexts):
    return oracle_shares(
        counts,
        contexts,
        n_contexts,
        lambda c, total, different: c / (total + different),
        lambda group: sum(c > 0 for c in group) / (sum(group) + sum(c > 0 for c in group)),
    )


@task("3.3")
def test_witten_bell_by_hand(impl, rng):
    got = impl.witten_bell_shares(np.array([3, 1, 2]), np.array([0, 0, 1]), 2)
    expect_shares(got, (floats([3 / 6, 1 / 6, 2 / 3]), floats([2 / 6, 1 / 3])), [0, 0, 1], "counts 3 1 | 2")


@task("3.3", cases=3)
def test_witten_bell(impl, rng):
    for zeros in (False, True):
        n_contexts = int(rng.integers(3, 9))
        counts, contexts = random_counts(rng, int(rng.integers(5, 40)), n_contexts, zeros)
        got, unchanged = impl.witten_bell_shares.after(counts, contexts, n_contexts)
        expect_shares(got, oracle_witten_bell(counts, contexts, n_contexts), contexts, f"counts {counts.tolist()}")
        expect_equal(unchanged[0], counts, what="the counts afterwards")


@task("3.3")
def test_witten_bell_at_the_edges(impl, rng):
    nothing = np.array([], np.int64)
    expect_shares(impl.witten_bell_shares(nothing, nothing, 3), (floats([]), np.ones(3)), nothing, "no n-gram")
    zero = np.array([0, 0, 5])
    contexts = np.array([0, 0, 1])
    expect_shares(impl.witten_bell_shares(zero, contexts, 4), (floats([0, 0, 5 / 6]), floats([1, 1 / 6, 1, 1])),
                  contexts, "contexts without counts")


def oracle_discounted(counts, contexts, n_contexts, discounts):
    def lost(c):
        return min(c, discounts[min(c, len(discounts) - 1)])

    return oracle_shares(
        counts, contexts, n_contexts, lambda c, total, _: (c - lost(c)) / total,
        lambda group: sum(map(lost, group)) / sum(group),
    )


@task("3.4")
def test_discounts_by_hand(impl, rng):
    got = impl.discounted_shares(np.array([3, 1, 2]), np.array([0, 0, 1]), 2, np.array([0, 0.5]))
    expect_shares(got, (floats([0.625, 0.125, 0.75]), floats([0.25, 0.25])), [0, 0, 1], "counts 3 1 | 2, one discount")
    got = impl.discounted_shares(np.array([3, 1, 2, 8]), np.array([0, 0, 1, 1]), 2, np.array([0, 0.5, 1.0, 1.5]))
    expected = floats([1.5 / 4, 0.5 / 4, 1 / 10, 6.5 / 10]), floats([2 / 4, 2.5 / 10])
    expect_shares(got, expected, [0, 0, 1, 1], "counts 3 1 | 2 8, three discounts")


@task("3.4", cases=4)
def test_discounts(impl, rng):
    for zeros in (False, True):
        n_contexts = int(rng.integers(3, 9))
        counts, contexts = random_counts(rng, int(rng.integers(5, 40)), n_contexts, zeros)
        discounts = np.concatenate([[0.0], rng.random(int(rng.integers(1, 5)))]) * 1.0
        got, unchanged = impl.discounted_shares.after(counts, contexts, n_contexts, discounts)
        expected = oracle_discounted(counts, contexts, n_contexts, discounts)
        expect_shares(got, expected, contexts, f"counts {counts.tolist()}, discounts {discounts.round(3).tolist()}")
        expect_equal(unchanged[0], counts, what="the counts afterwards")
        expect_equal(unchanged[3], discounts, what="the discounts afterwards")


@task("3.4", cases=2)
def test_no_count_loses_more_than_it_has(impl, rng):
    counts, contexts = random_counts(rng, 20, 5)
    discounts = np.array([0.7, 1.5, 2.5, 1.25])          # more than counts of 0, 1 and 2 have
    got = impl.discounted_shares(counts, contexts, 5, discounts)
    expected = oracle_discounted(counts, contexts, 5, discounts)
    expect_shares(got, expected, contexts, f"counts {counts.tolist()}, discounts {discounts.tolist()}")


@task("3.4")
def test_contexts_that_know_nothing(impl, rng):
    contexts = np.array([1, 1, 3])
    got = impl.discounted_shares(np.array([0, 0, 4]), contexts, 5, np.array([0, 0.5]))
    expected = floats([0, 0, 3.5 / 4]), floats([1, 1, 1, 0.5 / 4, 1])
    expect_shares(got, expected, contexts, "contexts without counts")
    nothing = np.array([], np.int64)
    got = impl.discounted_shares(nothing, nothing, 2, np.array([0, 0.5]))
    expect_shares(got, (floats([]), np.ones(2)), nothing, "no n-gram")


# 3.5 the three discounts


def oracle_modified(n_with):
    n1, n2, n3, n4 = (Fraction(int(n)) for n in n_with[1:5])
    if 0 in (n1, n2, n3):
        return floats([0, 0.5, 1, 1.5])
    y = n1 / (n1 + 2 * n2)
    found = [Fraction(0), 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return floats(found) if min(found) >= 0 else floats([0, 0.5, 1, 1.5])


@task("3.5")
def test_discounts_of_three_kinds_by_hand(impl, rng):
    got = impl.modified_discounts(np.array([0, 8, 4, 2, 1]))
    expect_close(got, np.array([0.0, 0.5, 1.25, 2.0]), what="0, D1, D2, D3+ of n1..n4 = 8, 4, 2, 1")


@task("3.5", cases=8)
def test_discounts_of_three_kinds(impl, rng):
    n_with = np.concatenate([rng.integers(50, size=1), np.sort(rng.integers(1, 300, size=4))[::-1], [7]])
    got, unchanged = impl.modified_discounts.after(n_with)
    expect_close(got, oracle_modified(n_with), what=f"0, D1, D2, D3+ of n = {n_with.tolist()}")
    expect_equal(unchanged[0], n_with, what="the argument afterwards")


@task("3.5")
def test_too_little_text_for_the_formula(impl, rng):
    fallback = np.array([0.0, 0.5, 1.0, 1.5])
    for few in ([0, 0, 3, 2, 1], [0, 4, 0, 2, 1], [0, 4, 3, 0, 1], [0, 0, 0, 0, 0], [0, 6, 3, 5, 1], [0, 9, 8, 2, 9]):
        got = impl.modified_discounts(np.array(few))
        expect_close(got, fallback, what=f"0, D1, D2, D3+ of n = {few}, too little for the formula")
    got = impl.modified_discounts(np.array([0, 6, 3, 2, 0]))
    expect_close(got, oracle_modified([0, 6, 3, 2, 0]), what="0, D1, D2, D3+ without any count of 4, which is no harm")
    got = impl.modified_discounts(np.array([0, 6, 3, 4, 0]))
    expect_close(got, oracle_modified([0, 6, 3, 4, 0]), what="n1..n4 = 6, 3, 4, 0, where D2 is 0: just possible")


# 3.6 continuations


@task("3.6")
def test_continuations_by_hand(impl, rng):
    got = impl.continuation_counts(3, np.array([0, 2, 2, 0, 2]))
    expect_equal(got, np.array([2, 0, 3]), what="continuation counts of the tails 0 2 2 0 2")


@task("3.6", cases=4)
def test_continuations(impl, rng):
    n_ngrams = int(rng.integers(1, 30))
    suffixes = rng.integers(max(1, n_ngrams // 2), size=int(rng.integers(0, 60)))     # the upper half is nobody's tail
    expected = np.array([sum(int(one) == ngram for one in suffixes) for ngram in range(n_ngrams)])
    got, unchanged = impl.continuation_counts.after(n_ngrams, suffixes)
    expect_equal(got, expected, what=f"continuation counts of {n_ngrams} n-grams")
    expect_equal(unchanged[1], suffixes, what="the tails afterwards")


# 3.7 the longest n-gram that is stored


@task("3.7")
def test_longest_by_hand(impl, rng):
    got = impl.choose_longest(np.array([1, -1]), np.array([-3.0, -2.0]), np.array([-0.5, -0.5]), np.array([-1.0, -1.0]))
    expect_close(got, np.array([-2.0, -1.5]), what="one stored, one not")


@task("3.7", cases=4)
def test_longest(impl, rng):
    n, n_stored = int(rng.integers(1, 30)), int(rng.integers(1, 9))
    places = rng.integers(-1, n_stored, size=n)
    stored, log_backoffs, shorter = -rng.random(n_stored) * 5, -rng.random(n), -rng.random(n) * 5
    log_backoffs[rng.random(n) < 0.2] = -math.inf
    expected = floats(
        stored[place] if place >= 0 else weight + below
        for place, weight, below in zip(places, log_backoffs, shorter, strict=True)
    )
    arguments = places, stored, log_backoffs, shorter
    got, unchanged = impl.choose_longest.after(*arguments)
    expect_close(got, expected, what=f"places {places.tolist()}")
    for one, before in zip(unchanged, arguments, strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("3.7")
def test_longest_with_nothing_stored(impl, rng):
    got = impl.choose_longest(np.array([-1, -1]), np.array([], float), np.array([-0.5, -1.0]), np.array([-1.0, -2.0]))
    expect_close(got, np.array([-1.5, -3.0]), what="no n-gram of this length is stored")
    none = np.array([], float)
    got = impl.choose_longest(np.array([], np.int64), none, none, none)
    expect_close(got, none, what="an empty text")
