"""Graders of chapter 14: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles walk through a text token by token, enumerate every way to cut, and count in exact fractions.
"""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np

from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, task
from minillm.errors import ConfigError, DataError

SENTINELS = list(range(1000, 1040))


def seeded(rng):
    """A generator for the graded side."""
    return Seeded(int(rng.integers(2**32)), "numpy")


def expect_even(drawn, possible, what):
    """Each possible result must come about equally often, and nothing else: chi-square, false once in 10 million."""
    counts = Counter(drawn)
    strange = [result for result in counts if result not in possible]
    expect(not strange, f"{what}: {strange[:1]} came out, which is none of the {len(possible)} possible results")
    share = sum(counts.values()) / len(possible)
    surprise = sum((counts[result] - share) ** 2 / share for result in possible)
    n_free = len(possible) - 1
    bound = n_free * (1 - 2 / (9 * n_free) + 5.2 * math.sqrt(2 / (9 * n_free))) ** 3  # Wilson and Hilferty 1931
    often, seldom = counts.most_common(1)[0], min(possible, key=lambda result: counts[result])
    expect(
        surprise < bound,
        f"{what}: of {sum(counts.values())} draws {often[1]} gave {often[0]} and {counts[seldom]} gave {seldom}; all "
        f"{len(possible)} should come equally often, {share:.0f} times",
    )


def compositions(n_tokens, n_spans):
    """Every way to cut a number into so many parts of at least 1."""
    return [cut for cut in itertools.product(range(1, n_tokens + 1), repeat=n_spans) if sum(cut) == n_tokens]


def whole_numbers(got, what):
    """A one-dimensional array of integers as a tuple."""
    expect(
        isinstance(got, np.ndarray) and got.ndim == 1 and got.dtype.kind in "iu",
        f"{what} should be an array (n_spans,) of whole numbers, but is {got!r}",
    )
    return tuple(got.tolist())


# 14.1 random lengths


@task("14.1")
def test_only_one_way_to_cut(impl, rng):
    for n_tokens, n_spans in ((1, 1), (5, 5), (7, 1), (40, 40)):
        got = whole_numbers(impl.random_lengths(n_tokens, n_spans, seeded(rng)), f"{n_tokens} tokens, {n_spans} spans")
        expected = (n_tokens,) if n_spans == 1 else (1,) * n_spans
        expect_equal(got, expected, what=f"the lengths of {n_spans} spans of together {n_tokens} tokens")


@task("14.1", cases=4)
def test_lengths_fill_the_tokens(impl, rng):
    n_tokens = int(rng.integers(2, 300))
    n_spans = int(rng.integers(1, n_tokens + 1))
    what = f"lengths of {n_spans} spans of together {n_tokens} tokens"
    got = whole_numbers(impl.random_lengths(n_tokens, n_spans, seeded(rng)), what)
    expect_equal(len(got), n_spans, what=f"the number of {what}")
    expect_equal(sum(got), n_tokens, what=f"the sum of {what}")
    expect(min(got) >= 1, f"{what}: a span has {min(got)} tokens, at least 1 is expected")


@task("14.1")
def test_every_way_to_cut_is_equally_likely(impl, rng):
    for n_tokens, n_spans in ((6, 3), (5, 2), (6, 5)):
        drawn = [tuple(impl.random_lengths(n_tokens, n_spans, seeded(rng)).tolist()) for _ in range(400)]
        expect_even(drawn, compositions(n_tokens, n_spans), f"{n_tokens} tokens in {n_spans} spans")


@task("14.1")
def test_the_generator_decides(impl, rng):
    generator, other = Seeded(int(rng.integers(1000)), "numpy"), Seeded(int(rng.integers(1000, 2000)), "numpy")
    first = impl.random_lengths(500, 20, generator)
    expect_equal(impl.random_lengths(500, 20, generator), first, what="lengths from a generator of the same seed")
    again = impl.random_lengths(500, 20, other)
    expect(again.tolist() != first.tolist(), "generators of two seeds gave the same lengths of 20 spans of 500 tokens")


@task("14.1")
def test_impossible_cuts_are_refused(impl, rng):
    for n_tokens, n_spans in ((3, 4), (1, 2), (5, 0), (0, 0), (4, -1)):
        with expect_error(ConfigError):
            impl.random_lengths(n_tokens, n_spans, seeded(rng))


# 14.2 random spans


def counts_of(n_tokens, rate, mean_length):
    """Hidden tokens and spans as the chapter says: rounded, at least one, and a kept token before each span."""
    n_hidden = sorted((1, round(n_tokens * rate), n_tokens - 1))[1]
    return n_hidden, sorted((1, round(n_hidden / mean_length), n_tokens - n_hidden))[1]


def runs_of(hidden):
    return [len(list(run)) for is_hidden, run in itertools.groupby(hidden.tolist()) if is_hidden]


def expect_spans(hidden, n_tokens, n_hidden, n_spans, what):
    expect(isinstance(hidden, np.ndarray) and hidden.dtype == bool, f"{what}: an array of bool is expected")
    expect_equal(hidden.shape, (n_tokens,), what=f"{what}: the shape")
    expect_equal(int(hidden.sum()), n_hidden, what=f"{what}: the number of hidden tokens")
    expect_equal(len(runs_of(hidden)), n_spans, what=f"{what}: the number of spans {runs_of(hidden)}")
    expect(not hidden[0], f"{what}: the first token is hidden")
    expect(bool(hidden[-1]), f"{what}: the last token is not hidden")


@task("14.2")
def test_fifteen_per_cent_in_spans_of_three(impl, rng):
    for n_tokens, n_hidden, n_spans in ((100, 15, 5), (512, 77, 26), (20, 3, 1), (2, 1, 1)):
        hidden = impl.random_spans(n_tokens, seeded(rng))
        expect_spans(hidden, n_tokens, n_hidden, n_spans, f"spans in {n_tokens} tokens")


@task("14.2", cases=4)
def test_other_rates_and_lengths(impl, rng):
    n_tokens, rate = int(rng.integers(2, 200)), float(rng.uniform(0.02, 0.9))
    mean_length = float(rng.choice([1.0, 2.0, 3.0, 8.0, 64.0]))
    what = f"spans in {n_tokens} tokens, rate {rate:.2f}, mean length {mean_length}"
    hidden = impl.random_spans(n_tokens, seeded(rng), rate, mean_length)
    expect_spans(hidden, n_tokens, *counts_of(n_tokens, rate, mean_length), what)
    hidden = impl.random_spans(100, seeded(rng), rate=0.5, mean_length=8)
    expect_spans(hidden, 100, 50, 6, "spans in 100 tokens, rate 0.5, mean length 8")


@task("14.2")
def test_every_choice_of_spans_is_equally_likely(impl, rng):
    possible = []
    for kept, gone in itertools.product(compositions(4, 2), compositions(4, 2)):
        marks = [mark for pair in zip(kept, gone, strict=True) for mark in (pair[0] * "-", pair[1] * "x")]
        possible.append("".join(marks))
    drawn = [impl.random_spans(8, seeded(rng), 0.5, 2.0) for _ in range(400)]
    drawn = ["".join("x" if is_hidden else "-" for is_hidden in hidden.tolist()) for hidden in drawn]
    expect_even(drawn, possible, "4 of 8 tokens hidden in 2 spans (x is hidden)")


@task("14.2")
def test_spans_depend_on_the_generator_alone(impl, rng):
    generator = Seeded(int(rng.integers(1000)), "numpy")
    first = impl.random_spans(400, generator)
    expect_equal(impl.random_spans(400, generator), first, what="spans from a generator of the same seed")
    expect((impl.random_spans(400, seeded(rng)) != first).any(), "another seed gave the same spans in 400 tokens")


@task("14.2")
def test_impossible_spans_are_refused(impl, rng):
    for arguments in ((1,), (10, 0.0), (10, 1.0), (10, 0.5, 0.5)):
        with expect_error(ConfigError):
            impl.random_spans(arguments[0], seeded(rng), *arguments[1:])


# 14.3 hiding spans


def by_the_paper(ids, hidden, sentinels):
    """Walk through the text; at each beginning of a hidden span take the next sentinel."""
    inputs, targets, number, inside = [], [], 0, False
    for token_id, is_hidden in zip(ids, hidden, strict=True):
        if is_hidden and not inside:
            inputs.append(sentinels[number])
            targets.append(sentinels[number])
            number += 1
        (targets if is_hidden else inputs).append(token_id)
        inside = is_hidden
    return np.array(inputs, np.int64), np.array([*targets, sentinels[number]], np.int64)


def expect_pair(got, expected, what):
    expect(isinstance(got, tuple) and len(got) == 2, f"{what}: inputs and targets are expected, a tuple of two arrays")
    for name, ours, theirs in zip(("inputs", "targets"), got, expected, strict=True):
        expect_equal(ours, theirs, what=f"the {name} of {what}")


@task("14.3")
def test_the_figure_of_the_paper(impl, rng):
    hidden = np.isin(np.arange(11), [2, 3, 8])  # Thank you (for inviting) me to your party (last) week .
    expected = np.array([0, 1, 1000, 4, 5, 6, 7, 1001, 9, 10]), np.array([1000, 2, 3, 1001, 8, 1002])
    expect_pair(impl.hide_spans(np.arange(11), hidden, SENTINELS), expected, "the paper's example")
    expect_pair(impl.hide_spans(list(range(11)), hidden, SENTINELS[:3]), expected, "the paper's example as a list")


@task("14.3", cases=6)
def test_any_spans_against_a_walk_through_the_text(impl, rng):
    n_tokens = int(rng.integers(1, 40))
    ids, hidden = rng.integers(0, 9, n_tokens), rng.random(n_tokens) < rng.random()
    got = impl.hide_spans(ids, hidden, SENTINELS)
    marks = "".join("x" if is_hidden else "-" for is_hidden in hidden)
    expect_pair(got, by_the_paper(ids.tolist(), hidden, SENTINELS), f"a text with holes at {marks}")


@task("14.3")
def test_spans_at_both_ends_and_everywhere(impl, rng):
    for marks in ("xx--", "--xx", "x--x", "----", "xxxx", "x", "-", "x-x-x"):
        ids, hidden = rng.integers(0, 99, len(marks)), np.array([mark == "x" for mark in marks])
        exact = SENTINELS[: len(runs_of(hidden)) + 1]
        got, after = impl.hide_spans.after(ids, hidden, exact)
        expect_pair(got, by_the_paper(ids.tolist(), hidden, exact), f"a text with holes at {marks}")
        expect_equal(after[0], ids, what="token_ids after the call")
        expect_equal(after[1], hidden, what="hidden after the call")


@task("14.3")
def test_sentinels_may_have_any_ids(impl, rng):
    sentinels = rng.permutation(200)[:5] + 50
    ids, hidden = rng.integers(0, 50, 9).astype(np.int32), np.array([0, 1, 1, 0, 1, 0, 0, 0, 1], bool)
    expected = by_the_paper(ids.tolist(), hidden, sentinels.tolist())
    expect_pair(impl.hide_spans(ids, hidden, sentinels), expected, "a text of int32 with sentinels in no order")


@task("14.3")
def test_what_does_not_fit_is_refused(impl, rng):
    true, false = np.ones(3, bool), np.zeros((2, 3), bool)
    for ids, hidden, sentinels in (
        ([1, 2], true, SENTINELS),  # another length
        (np.ones((2, 3), int), false, SENTINELS),  # two dimensions
        ([1, 2, 3], np.array([0, 1, 0]), SENTINELS),  # marks that are no bool
        ([1, 2, 3], np.array([True, False, True]), SENTINELS[:2]),  # no sentinel left for the end
        ([1, 2, 3], true, SENTINELS[:1]),
        ([1, 2, 3], np.zeros(3, bool), []),
        ([1, SENTINELS[-1], 3], true, SENTINELS),  # a sentinel in the text
    ):
        with expect_error(DataError):
            impl.hide_spans(ids, hidden, sentinels)


# 14.4 infilling


def from_the_end(ids, starts, lengths, mask_id):
    """Replace the spans from the last to the first, so that places stay what they were."""
    text = ids.tolist()
    for start, length in reversed(list(zip(starts, lengths, strict=True))):
        text[start : start + length] = [mask_id]
    return np.array(text, np.int64)


@task("14.4")
def test_infilling_by_hand(impl, rng):
    ids = np.array([5, 6, 7, 8])
    for starts, lengths, expected in (
        ([1], [2], [5, 99, 8]),
        ([0, 3], [1, 1], [99, 6, 7, 99]),
        ([1, 2], [1, 1], [5, 99, 99, 8]),  # side by side: two masks
        ([2], [0], [5, 6, 99, 7, 8]),  # a mask for nothing
        ([0, 0, 4], [0, 4, 0], [99, 99, 99]),
        ([4], [0], [5, 6, 7, 8, 99]),
        ([0], [4], [99]),
    ):
        got = impl.infill_spans(ids, np.array(starts), np.array(lengths), 99)
        what = f"(5, 6, 7, 8) with 99 for spans of lengths {lengths} at {starts}"
        expect_equal(got, np.array(expected, np.int64), what=what)


@task("14.4", cases=5)
def test_any_infilling_against_replacing_from_the_end(impl, rng):
    n_tokens = int(rng.integers(0, 40))
    lengths = rng.poisson(1.5, 12)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), n_tokens, side="right"))]
    gaps = rng.multinomial(n_tokens - lengths.sum(), [1 / (len(lengths) + 1)] * (len(lengths) + 1))
    starts = np.cumsum(gaps[:-1]) + np.cumsum(lengths) - lengths
    ids, mask_id = rng.integers(0, 50, n_tokens), int(rng.integers(50, 99))
    got, after = impl.infill_spans.after(ids, starts, lengths, mask_id)
    what = f"{n_tokens} ids with spans of lengths {lengths.tolist()} at {starts.tolist()}"
    expect_equal(got, from_the_end(ids, starts, lengths, mask_id), what=what)
    for name, given, left in zip(("token_ids", "starts", "lengths"), (ids, starts, lengths), after, strict=False):
        expect_equal(left, given, what=f"{name} after the call")


@task("14.4")
def test_nothing_hidden_and_other_whole_numbers(impl, rng):
    ids, none = rng.integers(0, 50, 6).astype(np.int32), np.zeros(0, np.int64)
    expect_equal(impl.infill_spans(ids, none, none, 7), ids.astype(np.int64), what="int32 ids without any span")
    got = impl.infill_spans(ids, np.array([2]), np.array([3]), mask_id=0)
    expect_equal(got, from_the_end(ids, [2], [3], 0), what="int32 ids with one span of 3")
    expect_equal(impl.infill_spans(ids[:0], none, none, 7), none, what="an empty text")


# 14.5 prefix mask


def oracle_prefix_mask(n_prefix, n_positions):
    table = [
        [[key <= query or key < prefix for key in range(n_positions)] for query in range(n_positions)]
        for prefix in n_prefix
    ]
    return np.array(table, bool).reshape(len(n_prefix), n_positions, n_positions)


@task("14.5")
def test_who_sees_whom_in_four_positions(impl, rng):
    names = {0: "no prefix", 1: "a prefix of 1", 2: "a prefix of 2", 4: "all of it"}
    for n_prefix, name in names.items():
        expect_equal(impl.prefix_mask([n_prefix], 4), oracle_prefix_mask([n_prefix], 4), what=f"mask of 4, {name}")


@task("14.5", cases=3)
def test_every_row_has_its_own_prefix(impl, rng):
    n_positions = int(rng.integers(1, 9))
    n_prefix = rng.integers(0, n_positions + 1, int(rng.integers(2, 6)))
    expected = oracle_prefix_mask(n_prefix.tolist(), n_positions)
    got, after = impl.prefix_mask.after(n_prefix, n_positions)
    expect_equal(got, expected, what=f"mask of {n_positions} positions with prefixes {n_prefix.tolist()}")
    expect_equal(after[0], n_prefix, what="n_prefix after the call")
    expect_equal(impl.prefix_mask(n_prefix.tolist(), n_positions), expected, what="the same from a list")


@task("14.5")
def test_masks_of_the_smallest_sizes(impl, rng):
    expect_equal(impl.prefix_mask(np.zeros(0, np.int64), 3), np.zeros((0, 3, 3), bool), what="mask of no rows")
    expect_equal(impl.prefix_mask([0, 2], 0), np.zeros((2, 0, 0), bool), what="mask of no positions")
    expect_equal(impl.prefix_mask([5, 1], 3), oracle_prefix_mask([5, 1], 3), what="a prefix longer than the row")


# 14.6 mixing rates


def exact_rates(sizes, limit):
    counted = {name: Fraction(min(size, limit)) for name, size in sizes.items()}
    return {name: count / sum(counted.values()) for name, count in counted.items()}


def some_sizes(rng):
    return {f"task{number}": int(10 ** rng.uniform(0, 6)) for number in range(int(rng.integers(1, 6)))}


@task("14.6")
def test_rates_by_hand(impl, rng):
    sizes = {"translate": 90_000, "question": 9_000, "sort": 1_000}
    expected = {"translate": 0.9, "question": 0.09, "sort": 0.01}
    expect_close(impl.mixing_rates(sizes), expected, what="rates in proportion to 90,000, 9,000 and 1,000 examples")
    got = impl.mixing_rates(sizes, 10_000)
    expect_close(got, {"translate": 0.5, "question": 0.45, "sort": 0.05}, what="the same with a limit of 10,000")
    got = impl.mixing_rates({"a": 16, "b": 9, "c": 1}, temperature=2)
    expect_close(got, {"a": 0.5, "b": 0.375, "c": 0.125}, what="rates of 16, 9 and 1 at temperature 2: roots 4, 3, 1")
    got = impl.mixing_rates({"a": 3, "b": 1}, temperature=0.5)
    expect_close(got, {"a": 0.9, "b": 0.1}, what="rates of 3 and 1 at temperature 0.5: squares 9 and 1")
    got = impl.mixing_rates({"a": 100, "b": 9}, 16, 2)
    expect_close(got, {"a": 4 / 7, "b": 3 / 7}, what="100 cut off at 16, then roots: 4 and 3")


@task("14.6", cases=3)
def test_rates_are_powers_of_exact_fractions(impl, rng):
    sizes = some_sizes(rng)
    for limit in (math.inf, 10 ** int(rng.integers(1, 6)), 1, 0.5):
        plain = exact_rates(sizes, 10**9 if limit == math.inf else limit)
        for temperature in (1.0, 0.5, 2.0, float(rng.uniform(1, 9))):
            powers = {name: float(rate) ** (1 / temperature) for name, rate in plain.items()}
            expected = {name: power / math.fsum(powers.values()) for name, power in powers.items()}
            got, after = impl.mixing_rates.after(sizes, limit, temperature)
            expect_close(got, expected, what=f"rates of {sizes}, limit {limit}, temperature {temperature:.2f}")
            expect_equal(after[0], sizes, what="sizes after the call")
    expect_close(math.fsum(got.values()), 1.0, what="the sum of the rates")


@task("14.6")
def test_very_hot_and_very_cold(impl, rng):
    sizes = {"a": 10**12, "b": 10**11, "c": 1}
    expect_close(impl.mixing_rates(sizes, temperature=math.inf), dict.fromkeys(sizes, 1 / 3), what="rates at infinity")
    got = impl.mixing_rates(sizes, temperature=0.01)
    expect_close(got, {"a": 1.0, "b": 0.0, "c": 0.0}, what="rates of 10^12, 10^11 and 1 at temperature 0.01")
    expect_close(impl.mixing_rates({"alone": 7}, 3, 0.3), {"alone": 1.0}, what="the rate of the only task")


@task("14.6")
def test_numbers_out_of_range_are_refused(impl, rng):
    for arguments in (
        ({},),
        ({"a": 5, "b": 0},),
        ({"a": -3},),
        ({"a": 5}, 0),
        ({"a": 5}, -1),
        ({"a": 5}, 10, 0.0),
        ({"a": 5}, 10, -2.0),
        ({"a": 5}, math.nan),
        ({"a": 5}, 10, math.nan),
    ):
        with expect_error(ConfigError):
            impl.mixing_rates(*arguments)
