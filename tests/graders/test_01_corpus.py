"""Graders of chapter 01: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are scipy, or written out here by brute force with Python's own numbers.
"""

import re

import numpy as np
from scipy import stats

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, task
from minillm.errors import ConfigError

UINT64 = np.uint64
NAN = float("nan")

# 1.1 robust scores


@task("1.1")
def test_the_copied_example(impl, rng):
    expected = 0.6744897501960817 * np.array([-2.0, 0.0, 0.0, 1.0, 0.0, 88.0]) / 0.5
    expect_close(impl.robust_z_scores([10, 12, 12, 13, 12, 100]), expected, what="scores of 10, 12, 12, 13, 12, 100")


@task("1.1", cases=4)
def test_scores_are_scipys(impl, rng):
    values = rng.standard_cauchy(int(rng.integers(2, 40))) * 10.0 ** rng.integers(-3, 4) + 50
    expected = (values - np.median(values)) / stats.median_abs_deviation(values, scale="normal")
    result, (after,) = impl.robust_z_scores.after(values)
    expect_close(result, expected, what=f"scores of {len(values)} values")
    expect_equal(after, values, what="the values that were given")


@task("1.1")
def test_when_most_values_are_equal(impl, rng):
    infinity = float("inf")
    for values, expected in (
        ([3.0, 3.0, 3.0, 2.5, 9.0], [0, 0, 0, -infinity, infinity]),
        ([7.0], [0.0]),
        ([2, 2, 2], [0.0, 0.0, 0.0]),
        ([-1.0, -1.0, -1.0, 0.0, -2.0], [0, 0, 0, infinity, -infinity]),
    ):
        expect_equal(impl.robust_z_scores(values), np.array(expected, dtype=float), what=f"scores of {values}")


@task("1.1")
def test_robust_scores_refuse(impl, rng):
    for bad in ([], [1.0, NAN], [[1.0, 2.0]], [float("inf"), 1.0]):
        with expect_error(ValueError):
            impl.robust_z_scores(bad)


# 1.2 interpolation


def bridged(values):
    """Each hole from its nearest known neighbours, place by place."""
    known = [place for place, value in enumerate(values) if value == value]
    filled = []
    for place, value in enumerate(values):
        before, after = [p for p in known if p <= place], [p for p in known if p >= place]
        if not before or not after:
            value = values[after[0] if after else before[-1]]
        elif before[-1] != after[0]:
            a, b = before[-1], after[0]
            value = values[a] + (values[b] - values[a]) * (place - a) / (b - a)
        filled.append(value)
    return np.array(filled, dtype=float)


@task("1.2")
def test_holes_by_hand(impl, rng):
    values = [NAN, NAN, 2.0, NAN, NAN, 5.0, NAN, 1.0, NAN]
    expected = np.array([2.0, 2, 2, 3, 4, 5, 3, 1, 1])
    expect_close(impl.interpolate_missing(values), expected, what="2 _ _ 5 _ 1 with holes at both ends")
    expect_close(impl.interpolate_missing([NAN, 4.0, NAN]), np.array([4.0, 4, 4]), what="a single known value")


@task("1.2", cases=4)
def test_holes_by_brute_force(impl, rng):
    values = rng.normal(size=int(rng.integers(3, 30)))
    values[rng.random(len(values)) < 0.6] = NAN
    values[int(rng.integers(len(values)))] = 1.5
    expected = bridged(values.tolist())
    result, (after,) = impl.interpolate_missing.after(values)
    expect_close(result, expected, what="holes filled")
    expect_equal(np.isnan(after), np.isnan(values), what="the holes of the input, which must stay as it is")
    whole = rng.normal(size=5)
    expect_equal(impl.interpolate_missing(whole), whole, what="a row without holes")


@task("1.2")
def test_nothing_known(impl, rng):
    for bad in ([], [NAN, NAN], [float("inf"), NAN, 1.0], [[1.0, NAN]]):
        with expect_error(ValueError):
            impl.interpolate_missing(bad)


# 1.3 the most frequent run


def share_by_hand(text, n_words):
    words = re.findall(r"\S+", text)
    runs = [tuple(words[start : start + n_words]) for start in range(len(words)) if start + n_words <= len(words)]
    if not runs or len(set(runs)) == len(runs):
        return 0.0
    most = max(runs.count(run) for run in runs)
    letters = max(len("".join(run)) for run in runs if runs.count(run) == most)
    return min(1.0, most * letters / len("".join(words)))


@task("1.3")
def test_shares_by_hand(impl, rng):
    expect_close(impl.top_ngram_share("buy it buy it now", 2), 10 / 13, what="share of 'buy it' in 'buy it buy it now'")
    for text, n_words, expected, what in (
        ("", 1, 0.0, "of no words"),
        ("one", 2, 0.0, "of runs longer than the text"),
        ("one two three", 1, 0.0, "of runs that are there only once"),
        ("a a a", 2, 1.0, "of runs that overlap"),
        ("aa bb x aa bb y cccc dd z cccc dd", 2, 12 / 23, "of the longer of two equally frequent runs"),
        ("b b b longer longer", 1, 3 / 15, "of the more frequent run, not the longer one"),
        ("the  end\nthe\tend", 2, 1.0, "over lines and tabs"),
        ("a a b", 1, 2 / 3, "of a run that is there twice"),
    ):
        expect_close(impl.top_ngram_share(text, n_words), expected, what=f"share {what}")


@task("1.3", cases=5)
def test_shares_by_brute_force(impl, rng):
    text = " ".join(rng.choice(["a", "bb", "ccc", "dd"], int(rng.integers(0, 14))))
    for n_words in (1, 2, 3):
        got = impl.top_ngram_share(text, n_words)
        expect_close(got, share_by_hand(text, n_words), what=f"share of the top run of {n_words} in {text!r}")


@task("1.3")
def test_no_run_of_nothing(impl, rng):
    for n_words in (0, -1):
        with expect_error(ValueError):
            impl.top_ngram_share("a b", n_words)


# 1.4 shingles


@task("1.4")
def test_shingles_by_hand(impl, rng):
    text = "To be, or not to BE!"
    pairs = {("to", "be"), ("be", "or"), ("or", "not"), ("not", "to")}
    expect_equal(impl.shingles(text, 2), pairs, what=f"runs of 2 of {text!r}")
    for text, n_words, expected in (
        ("one two", 5, {("one", "two")}),
        ("one two", 2, {("one", "two")}),
        ("a b c", 2, {("a", "b"), ("b", "c")}),
        ("", 5, set()),
        ("...", 1, set()),
        ("a b a", 1, {("a",), ("b",)}),
        ("你好 吗", 2, {("你", "好"), ("好", "吗")}),
        ("a b c d e f", None, {tuple("abcde"), tuple("bcdef")}),
    ):
        got = impl.shingles(text) if n_words is None else impl.shingles(text, n_words)
        expect_equal(got, expected, what=f"runs of {n_words or 5} of {text!r}")


@task("1.4", cases=3)
def test_shingles_of_random_words(impl, rng):
    words = rng.choice(["a", "b", "c"], int(rng.integers(0, 12))).tolist()
    for n_words in (1, 3, 4):
        runs = {tuple(words[i:j]) for i in range(len(words)) for j in range(len(words) + 1) if j - i == n_words}
        expected = runs or ({tuple(words)} if words else set())
        expect_equal(impl.shingles(" ".join(words), n_words), expected, what=f"runs of {n_words} of {words}")


@task("1.4")
def test_shingles_of_no_words(impl, rng):
    for n_words in (0, -2):
        with expect_error(ValueError):
            impl.shingles("a b", n_words)


# 1.5 signatures


def signature_by_hand(hashes, a, b):
    """With Python's whole numbers, which know no overflow."""
    least = []
    for times, plus in zip(a.tolist(), b.tolist(), strict=True):
        least.append(min((((times * x + plus) % 2**64) // 2**32 for x in hashes.tolist()), default=2**32 - 1))
    return np.array(least, dtype=np.uint32)


@task("1.5", cases=4)
def test_signatures_by_hand(impl, rng):
    n_shingles, n_hashes = int(rng.integers(1, 60)), int(rng.integers(1, 20))
    hashes, a, b = (rng.integers(0, 2**64, size, dtype=UINT64) for size in (n_shingles, n_hashes, n_hashes))
    got = impl.signature(hashes, a | UINT64(1), b)
    expected = signature_by_hand(hashes, a | UINT64(1), b)
    expect_equal(got, expected, what=f"signature of {n_shingles} shingles by {n_hashes} functions")
    again = np.concatenate([hashes, hashes[:1]])
    expect_equal(impl.signature(again, a | UINT64(1), b), expected, what="the signature with one shingle repeated")


@task("1.5")
def test_each_function_has_its_own_numbers(impl, rng):
    hashes = np.array([3 << 32, 1 << 33], dtype=UINT64)
    a, b = np.array([1, 3], dtype=UINT64), np.array([0, 1 << 32], dtype=UINT64)
    expect_equal(impl.signature(hashes, a, b), np.array([2, 7], dtype=np.uint32), what="the docstring's signature")


@task("1.5")
def test_a_text_without_shingles(impl, rng):
    a = rng.integers(0, 2**64, 5, dtype=UINT64)
    empty = np.empty(0, dtype=UINT64)
    expect_equal(impl.signature(empty, a, a), np.full(5, 2**32 - 1, dtype=np.uint32), what="no shingles")


# 1.6 bands


def pairs_by_hand(signatures, n_bands):
    rows = signatures.tolist()
    width = signatures.shape[1] // n_bands
    return {
        (i, j)
        for j in range(len(rows))
        for i in range(j)
        if any(rows[i][at : at + width] == rows[j][at : at + width] for at in range(0, n_bands * width, width))
    }


@task("1.6", cases=4)
def test_candidates_by_brute_force(impl, rng):
    signatures = rng.integers(0, 3, (int(rng.integers(2, 25)), 12))
    for n_bands in (1, 2, 3, 4, 6, 12):
        got = impl.band_pairs(signatures, n_bands)
        what = f"pairs of {len(signatures)} texts in {n_bands} bands"
        expect_equal(got, pairs_by_hand(signatures, n_bands), what=what)


@task("1.6")
def test_bands_are_compared_place_by_place(impl, rng):
    crossed = np.array([[1, 2, 8, 9], [8, 9, 1, 2], [2, 1, 9, 8], [12, 0, 0, 0]])
    expect_equal(impl.band_pairs(crossed, 2), set(), what="pairs whose equal bands stand at different places")
    same = np.tile([5, 6, 7, 8], (4, 1))
    everyone = {(i, j) for j in range(4) for i in range(j)}
    expect_equal(impl.band_pairs(same, 4), everyone, what="pairs of four copies")
    expect_equal(impl.band_pairs(same[:1], 2), set(), what="pairs of a single text")


@task("1.6")
def test_bands_must_fit(impl, rng):
    signatures = np.arange(24).reshape(4, 6)
    for n_bands in (4, 5, 0, -2, 12):
        with expect_error(ConfigError):
            impl.band_pairs(signatures, n_bands)
    expect(impl.band_pairs(signatures, 6) == set(), "texts that agree nowhere are no candidates")
