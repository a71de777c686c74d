"""Smoothing methods against brute force from the papers' formulas, against nltk.lm, and summed over every context."""

import itertools
import math
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from nltk.lm import (
    MLE,
    AbsoluteDiscountingInterpolated,
    KneserNeyInterpolated,
    StupidBackoff,
    WittenBellInterpolated,
)
from nltk.util import everygrams

from minillm.errors import ConfigError, DataError
from minillm.statistical.backoff import BackoffModel, choose_longest, sample_ids
from minillm.statistical.counts import count_ngrams
from minillm.statistical.ngram import GoodTuringModel, NGramModel, good_turing_counts
from minillm.statistical.smoothing import (
    ALL_METHODS,
    METHODS,
    absolute_discount,
    discounted_shares,
    em_step,
    fit_ngram,
    jelinek_mercer,
    jelinek_mercer_weights,
    katz_discounts,
    maximum_likelihood,
    modified_discounts,
    stupid_backoff,
    witten_bell_shares,
)
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.chars import CharTokenizer
from minillm.tokenizers.words import WordTokenizer

DISTRIBUTIONS = [method for method in ALL_METHODS if method != "stupid-backoff"]


def zipf_ids(n, vocab_size, seed):
    """Ids of unequal frequency, each depending on the one before it."""
    rng = np.random.default_rng(seed)
    chances = 1 / np.arange(1, vocab_size + 1)
    tables = np.stack([rng.permutation(chances) for _ in range(vocab_size)])
    ids = [0]
    for _ in range(n - 1):
        ids.append(int(rng.choice(vocab_size, p=tables[ids[-1]] / tables[ids[-1]].sum())))
    return ids


class ByHand:
    """Recursions of the papers over dictionaries of tuples; contexts are the longest tails that the order allows."""

    def __init__(self, text, order, vocab_size, boundary=None):
        self.order, self.vocab_size = order, vocab_size
        self.counts = [Counter() for _ in range(order + 1)]
        for m in range(1, order + 1):
            for i in range(len(text) - m + 1):
                if boundary not in text[i + 1 : i + m - 1]:
                    self.counts[m][tuple(text[i : i + m])] += 1
        self.adjusted = [Counter() for _ in range(order)] + [self.counts[order]]
        for m in range(1, order):
            left = defaultdict(set)
            for ngram in self.counts[m + 1]:
                left[ngram[1:]].add(ngram[0])
            for ngram in self.counts[m]:
                raw = m > 1 and ngram[0] == boundary
                self.adjusted[m][ngram] = self.counts[m][ngram] if raw else len(left[ngram])

    @cache  # noqa: B019
    def children(self, adjusted, context):
        table = (self.adjusted if adjusted else self.counts)[len(context) + 1]
        return {ngram[-1]: c for ngram, c in table.items() if ngram[:-1] == context and c > 0}

    def interpolated(self, x, context, adjusted, rule):
        """p(x | context): `rule(level, c, children) -> (share, backoff)`."""
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        lower = 1 / self.vocab_size if not context else self.interpolated(x, context[1:], adjusted, rule)
        children = self.children(adjusted, context)
        if not children:
            return lower
        share, backoff = rule(len(context) + 1, children.get(x, 0), children)
        return share + backoff * lower

    def n_with(self, adjusted, level, r):
        return sum(c == r for c in (self.adjusted if adjusted else self.counts)[level].values())

    @cache  # noqa: B019
    def discounts(self, adjusted, level, modified):
        n1, n2, n3, n4 = (self.n_with(adjusted, level, r) for r in (1, 2, 3, 4))
        if not modified:
            d = n1 / (n1 + 2 * n2) if n1 else 0.5
            return lambda c: d if c else 0
        y = n1 / (n1 + 2 * n2) if n1 else 0
        if 0 in (n1, n2, n3) or min(2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3) < 0:
            return lambda c: (0, 0.5, 1, 1.5)[min(c, 3)]
        return lambda c: (0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)[min(c, 3)]

    def rule(self, method, weights=None):
        adjusted = "kneser" in method

        def share_and_backoff(level, c, children):
            total = sum(children.values())
            if method == "witten-bell":
                return c / (total + len(children)), len(children) / (total + len(children))
            if method == "mle":
                return c / total, 0.0
            if method == "jelinek-mercer":
                return weights[level - 1] * c / total, 1 - weights[level - 1]
            discount = self.discounts(adjusted, level, method.startswith("modified"))
            return max(c - discount(c), 0) / total, sum(min(k, discount(k)) for k in children.values()) / total

        return adjusted, share_and_backoff

    @cache  # noqa: B019
    def katz(self, x, context):
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        level = len(context) + 1
        children = self.children(False, context)
        if not children:
            return self.katz(x, context[1:])
        n = [0] + [self.n_with(False, level, r) for r in range(1, 7)]
        kept = katz_discounts(np.array(n))
        values = {y: c * (kept[c] if c <= 5 else 1) for y, c in children.items()}
        total = sum(children.values())
        if len(children) == self.vocab_size:
            total = sum(values.values())
        elif sum(values.values()) >= total:
            total += 1
        if x in values:
            return values[x] / total
        lower = (lambda y: self.katz(y, context[1:])) if context else (lambda y: 1 / self.vocab_size)
        left = 1 - sum(values.values()) / total
        return left * lower(x) / sum(lower(y) for y in range(self.vocab_size) if y not in values)


@pytest.mark.parametrize("boundary", [None, 0])
@pytest.mark.parametrize("method", ["mle", "witten-bell", "absolute", "kneser-ney", "modified-kneser-ney"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_recursions(method, boundary, seed):
    train, text = zipf_ids(400, 7, seed), zipf_ids(80, 8, seed + 10)
    model = METHODS[method](count_ngrams(train, 4, 8, boundary))
    oracle = ByHand(train, 4, 8, boundary)
    tables, rule = oracle.rule(method)
    expected = [oracle.interpolated(x, text[:i], tables, rule) for i, x in enumerate(text)]
    np.testing.assert_allclose(np.exp(model.log_probabilities(text)), expected, rtol=1e-10, atol=1e-300)


def test_modified_kneser_ney_where_the_formula_needs_no_fallback():
    train = zipf_ids(3000, 40, seed=3)
    counts = count_ngrams(train, 3, 41)
    n_with = [[np.sum(level.counts == r) for r in range(5)] for level in counts.levels]
    assert modified_discounts(np.array(n_with[2])).tolist() != [0, 0.5, 1, 1.5]
    text, oracle = zipf_ids(40, 40, seed=4), ByHand(train, 3, 41)
    tables, rule = oracle.rule("modified-kneser-ney")
    expected = [oracle.interpolated(x, text[:i], tables, rule) for i, x in enumerate(text)]
    found = np.exp(METHODS["modified-kneser-ney"](counts).log_probabilities(text))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("boundary", [None, 1])
def test_katz(boundary):
    train, text = zipf_ids(500, 6, seed=0), zipf_ids(60, 7, seed=1)
    model, oracle = METHODS["katz"](count_ngrams(train, 3, 7, boundary)), ByHand(train, 3, 7, boundary)
    expected = [oracle.katz(x, tuple(text[:i])) for i, x in enumerate(text)]
    np.testing.assert_allclose(np.exp(model.log_probabilities(text)), expected, rtol=1e-9)


def test_jelinek_mercer():
    train, text, weights = zipf_ids(300, 6, seed=0), zipf_ids(60, 7, seed=1), [0.9, 0.6, 0.3]
    model, oracle = jelinek_mercer(count_ngrams(train, 3, 7), weights), ByHand(train, 3, 7)
    tables, rule = oracle.rule("jelinek-mercer", weights)
    expected = [oracle.interpolated(x, text[:i], tables, rule) for i, x in enumerate(text)]
    np.testing.assert_allclose(np.exp(model.log_probabilities(text)), expected, rtol=1e-10)


def test_em_finds_the_best_weights_and_never_steps_back():
    text = zipf_ids(2000, 6, seed=0)
    held_out = text[600:]
    counts = count_ngrams(text[:600], 3, 7)

    def objective(weights):
        return jelinek_mercer(counts, weights).log_probabilities(held_out).sum() + np.log1p(-weights).sum()

    logs = [objective(jelinek_mercer_weights(counts, held_out, n)) for n in (0, 1, 2, 3, 5, 10, 300)]
    assert np.all(np.diff(logs) >= -1e-9)
    best = jelinek_mercer_weights(counts, held_out, 300)
    for level, step in itertools.product(range(3), (-0.01, 0.01)):
        near = best.copy()
        near[level] += step
        assert objective(near) <= logs[-1] + 1e-5


def test_em_step_by_explicit_paths():
    rng = np.random.default_rng(0)
    weights, probabilities = rng.random(3), rng.random((20, 4))
    known = np.arange(3) <= rng.integers(3, size=20)[:, None]
    answered, asked = np.zeros(3), np.zeros(3)
    for row, knows in zip(probabilities, known, strict=True):
        paths = []                                                 # who answers: 0 uniform, 1..3
        for who in range(4):
            p = row[who] if who == 0 or knows[who - 1] else 0.0
            for level in range(who + 1, 4):
                p *= 1 - weights[level - 1] if knows[level - 1] else 1
            paths.append(p * (weights[who - 1] if who else 1))
        for who, p in enumerate(paths):
            for level in range(max(who, 1), 4):
                if knows[level - 1]:
                    asked[level - 1] += p / sum(paths)
                    answered[level - 1] += (who == level) * p / sum(paths)
    np.testing.assert_allclose(em_step(weights, probabilities, known), answered / asked, rtol=1e-12)
    nobody = np.zeros((20, 3), bool)
    np.testing.assert_array_equal(em_step(weights, probabilities, nobody), weights)


# every context of a small vocabulary: the probabilities of all ids sum to 1, seen ids, unseen ids and all


@pytest.mark.parametrize("boundary", [None, 2])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("method", DISTRIBUTIONS)
def test_every_context_sums_to_one(method, order, boundary):
    vocab_size = 5                                                 # ids 3 and 4 never occur in training
    model = fit_ngram(method, np.random.default_rng(order).integers(3, size=60), order, vocab_size, boundary)
    for length in range(min(order, 3) + 1):
        for context in itertools.product(range(vocab_size), repeat=length):
            scored = [math.exp(model.log_probabilities([*context, x])[-1]) for x in range(vocab_size)]
            assert sum(scored) == pytest.approx(1, abs=1e-12)
            np.testing.assert_allclose(model.distribution(context), scored, rtol=1e-12)
            assert method == "mle" or min(scored) > 0


@pytest.mark.parametrize("method", DISTRIBUTIONS)
@pytest.mark.parametrize("text", [[0], [0, 1], [1, 1, 1, 1, 1, 1, 1, 1], [0, 1] * 40, [2, 1, 0] * 3])
def test_strange_texts(method, text):
    if len(text) == 1 and method in ("add-k", "jelinek-mercer"):
        with pytest.raises(DataError, match="too few"):
            fit_ngram(method, text, 3, 3)
        return
    model = fit_ngram(method, text, 3, 3)
    for context in ([], [0], [1], [2], [0, 1], [1, 1], [2, 2], [1, 0]):
        assert model.distribution(context).sum() == pytest.approx(1, abs=1e-12)
        assert method == "mle" or model.distribution(context).min() > 0


@pytest.mark.parametrize("method", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", [CharTokenizer, WordTokenizer, BPETokenizer])
def test_unknown_words_and_special_ids_are_part_of_the_sum(method, kind):
    text = "the cat saw the dog. the dog saw a bird, and the bird saw nothing. " * 3
    tokenizer = kind.train([text], vocab_size=300) if kind is BPETokenizer else kind.train([text])
    model = fit_ngram(method, tokenizer.encode(text), 3, tokenizer.vocab_size)
    new = tokenizer.encode("the catfish saw the dog" if kind is WordTokenizer else "the bat saw")
    for i in range(len(new) + 1):
        probabilities = model.distribution(new[:i])
        assert probabilities.shape == (tokenizer.vocab_size,)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert method == "mle" or probabilities.min() > 0


def test_a_vocabulary_of_one():
    for method in DISTRIBUTIONS:
        assert fit_ngram(method, [0, 0, 0], 2, 1).log_probabilities([0, 0, 0]) == pytest.approx([0, 0, 0], abs=1e-12)


def test_every_id_after_every_id_leaves_nothing_to_katz_backoff():
    text = [a for pair in itertools.product(range(3), repeat=2) for a in pair] * 9
    model = fit_ngram("katz", text, 2, 3)
    for context in range(3):
        assert model.distribution([context]).sum() == pytest.approx(1, abs=1e-12)


# nltk


def nltk_model(kind, train, order, vocab_size, **options):
    words = [str(i) for i in train]
    oracle = kind(order=order, **options)
    oracle.fit([list(everygrams(words, max_len=order))], [str(i) for i in range(vocab_size - 1)])
    assert len(oracle.vocab) == vocab_size                         # <UNK> is the last id
    return oracle


def expect_nltk(oracle, model, text, order, rel=1e-12):
    found = np.exp(model.log_probabilities(text))
    for i in range(order - 1, len(text)):
        context = [str(x) for x in text[i - order + 1 : i]]
        assert found[i] == pytest.approx(oracle.score(str(text[i]), context), rel=rel), (i, context)


def test_nltk_maximum_likelihood():
    """nltk says 0 after a context it has not seen; we ask the tail. So only seen contexts are compared."""
    train = zipf_ids(400, 6, seed=0)
    text = train[50:150]
    expect_nltk(nltk_model(MLE, train, 3, 7), maximum_likelihood(count_ngrams(train, 3, 7)), text, 3)


def test_nltk_stupid_backoff():
    train, text = zipf_ids(300, 6, seed=0), zipf_ids(80, 6, seed=1)
    expect_nltk(nltk_model(StupidBackoff, train, 3, 7, alpha=0.4), stupid_backoff(count_ngrams(train, 3, 7)), text, 3)


def test_nltk_witten_bell_above_the_unigrams():
    """nltk ends its recursion at the unigrams' relative frequencies; we go on to the uniform distribution.

    With order 1 taken out of the way by weights that nltk uses, the rest is equal: unigrams are replaced in the oracle.
    """
    train, text = zipf_ids(400, 6, seed=0), zipf_ids(80, 6, seed=1)
    oracle, model = nltk_model(WittenBellInterpolated, train, 3, 7), METHODS["witten-bell"](count_ngrams(train, 3, 7))
    unigram = model.distribution([])
    oracle.estimator.unigram_score = lambda word: unigram[int(word)]
    expect_nltk(oracle, model, text, 3)


def test_nltk_absolute_discounting_with_its_discount(monkeypatch):
    monkeypatch.setattr("minillm.statistical.smoothing.absolute_discount", lambda n_with: 0.7)
    train, text = zipf_ids(400, 6, seed=0), zipf_ids(80, 6, seed=1)
    model = METHODS["absolute"](count_ngrams(train, 3, 7))
    oracle = nltk_model(AbsoluteDiscountingInterpolated, train, 3, 7, discount=0.7)
    unigram = model.distribution([])
    oracle.estimator.unigram_score = lambda word: unigram[int(word)]
    expect_nltk(oracle, model, text, 3)


def test_nltk_kneser_ney_with_its_discount(monkeypatch):
    """The text ends and begins alike, so that no n-gram lacks a left neighbour: nltk counts such contexts otherwise."""
    monkeypatch.setattr("minillm.statistical.smoothing.absolute_discount", lambda n_with: 0.1)
    train, text = zipf_ids(400, 6, seed=0), zipf_ids(80, 6, seed=1)
    train = [*train, *train[:3]]
    model = METHODS["kneser-ney"](count_ngrams(train, 3, 7))
    oracle = nltk_model(KneserNeyInterpolated, train, 3, 7, discount=0.1)
    unigram = model.distribution([])
    oracle.estimator.unigram_score = lambda word: unigram[int(word)]
    expect_nltk(oracle, model, text, 3)


# the parts


def test_discounts():
    assert absolute_discount(np.array([9, 3, 1])) == 3 / 5
    assert absolute_discount(np.array([9, 0, 1])) == 0.5
    assert absolute_discount(np.array([0, 4, 0])) == 1.0
    y = 10 / (10 + 2 * 5)
    expected = [0, 1 - 2 * y * 5 / 10, 2 - 3 * y * 4 / 5, 3 - 4 * y * 2 / 4]
    np.testing.assert_allclose(modified_discounts(np.array([7, 10, 5, 4, 2])), expected)
    for few in ([0, 0, 1, 1, 1], [0, 5, 0, 1, 1], [0, 5, 2, 0, 3], [0, 5, 1, 9, 1]):
        assert modified_discounts(np.array(few)).tolist() == [0, 0.5, 1, 1.5]
    assert modified_discounts(np.array([0, 5, 2, 1, 0]))[3] == 3


def test_katz_discounts():
    n = np.array([0, 100, 40, 20, 12, 8, 5])
    lost = 6 * 5 / 100
    expected = [1] + [((r + 1) * n[r + 1] / n[r] / r - lost) / (1 - lost) for r in range(1, 6)]
    np.testing.assert_allclose(katz_discounts(n), expected)
    assert sum(r * n[r] * (1 - katz_discounts(n)[r]) for r in range(1, 6)) == pytest.approx(n[1])   # n1 / N is freed
    np.testing.assert_allclose(katz_discounts(np.array([0, 8, 3, 1, 0])), [1, 0.6, 0.2, 1])
    np.testing.assert_allclose(katz_discounts(np.array([0, 10, 4, 0, 7])), [1, 0.5, 0.75, 1 - 0.5 / 3])
    np.testing.assert_allclose(katz_discounts(np.array([0, 10, 9, 4, 1])), [1, 0.5, 0.75, 1 - 0.5 / 3])
    np.testing.assert_allclose(katz_discounts(np.array([0, 0, 4, 1])), [1, 0.5, 0.75])


def test_good_turing_counts():
    found = good_turing_counts(np.array([99, 12, 6, 0, 2, 1, 9]))
    np.testing.assert_allclose(found, [0, 1.0, 2, 3, 5 * 1 / 2, 5])
    train = np.random.default_rng(2).integers(30, size=300).tolist()
    pairs = Counter(zip(train, train[1:], strict=False))
    n1, n2 = sum(c == 1 for c in pairs.values()), sum(c == 2 for c in pairs.values())
    model = GoodTuringModel(2, 31).fit(train)
    above, below = model.shares(2)
    assert above[-1] == pytest.approx(n1 / (31**2 - len(pairs)))
    place = list(model.levels[1].counts).index(1)
    assert above[place] == pytest.approx(2 * n2 / n1)
    assert below[-1] == pytest.approx(31 * above[-1])


def test_shares_and_weights_sum_to_one():
    counts, contexts = np.array([4, 0, 1, 2, 9, 0]), np.array([0, 0, 1, 1, 3, 4])
    shares, weights = discounted_shares(counts, contexts, 5, np.array([0, 0.5, 1.2]))
    np.testing.assert_allclose(shares, [2.8 / 4, 0, 0.5 / 3, 0.8 / 3, 7.8 / 9, 0])
    np.testing.assert_allclose(weights, [1.2 / 4, 1.7 / 3, 1, 1.2 / 9, 1])
    shares, weights = witten_bell_shares(counts, contexts, 5)
    np.testing.assert_allclose(shares, [4 / 5, 0, 1 / 5, 2 / 5, 9 / 10, 0])
    np.testing.assert_allclose(weights, [1 / 5, 2 / 5, 1, 1 / 10, 1])


def test_choose_longest_with_nothing_stored():
    found = choose_longest(np.array([-1]), np.array([]), np.array([-0.5]), np.array([-1.0]))
    assert found.tolist() == [-1.5]


def test_impossible_is_minus_infinity():
    model = fit_ngram("mle", [0, 1, 0, 1, 2], 2, 4)
    assert model.log_probabilities([0, 0, 3]).tolist() == [math.log(2 / 5), -math.inf, -math.inf]


def test_a_smoothed_model_beats_add_one():
    text = zipf_ids(4000, 30, seed=0)
    bits = {m: -fit_ngram(m, text[:3000], 3, 30).log_probabilities(text[3000:]).mean() for m in DISTRIBUTIONS[1:]}
    plain = -NGramModel(3, 30, 1.0).fit(text[:3000]).log_probabilities(text[3000:]).mean()
    assert all(bits[m] < plain for m in ("katz", "jelinek-mercer", "witten-bell", "kneser-ney", "modified-kneser-ney"))


def test_long_texts_are_scored_through_a_hash_table_alike():
    model, text = fit_ngram("modified-kneser-ney", zipf_ids(3000, 30, seed=0), 4, 31), zipf_ids(300, 30, seed=1) * 40
    short = np.concatenate([model.log_probabilities(text[:5000]), model.log_probabilities(text[4997:])[3:]])
    assert model._indexes is None
    np.testing.assert_array_equal(model.log_probabilities(text), short)
    assert model._indexes is not None
    large = fit_ngram("witten-bell", np.array(zipf_ids(3000, 30, seed=0)) * 10_007, 3, 30 * 10_007)
    long = np.array(text) * 10_007
    short = np.concatenate([large.log_probabilities(long[:5000]), large.log_probabilities(long[4998:])[2:]])
    np.testing.assert_array_equal(large.log_probabilities(np.tile(long, 30))[: len(long)], short)
    assert large._indexes is not None


# sampling, files, memory


def test_samples_follow_the_distribution():
    model = fit_ngram("kneser-ney", zipf_ids(300, 4, seed=0), 2, 4)
    ids = sample_ids(model, 20_000, np.random.default_rng(0))
    after = Counter(zip(ids, ids[1:], strict=False))
    for context in range(4):
        n = sum(after[context, x] for x in range(4))
        for x, p in enumerate(model.distribution([context])):
            assert after[context, x] / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n) + 1e-9)


def test_sampling_options():
    model = fit_ngram("witten-bell", [0, 1, 2, 0, 1, 2, 0], 3, 4)
    rng = np.random.default_rng(0)
    assert sample_ids(model, 6, rng, context=[0, 1], temperature=0.01) == [2, 0, 1, 2, 0, 1]
    assert sample_ids(model, 6, rng, context=[0, 1], temperature=0.01, stop=0) == [2, 0]
    uniform = sample_ids(model, 3000, rng, temperature=1e6)
    assert min(Counter(uniform).values()) > 650
    assert sample_ids(model, 50, np.random.default_rng(3)) == sample_ids(model, 50, np.random.default_rng(3))
    assert len(sample_ids(NGramModel(2, 4).fit([0, 1]), 5, rng)) == 5
    with pytest.raises(DataError, match="temperature"):
        sample_ids(model, 1, rng, temperature=0)


def test_memory_report():
    model = fit_ngram("kneser-ney", [0, 1, 2, 0, 1], 2, 4)
    assert model.n_entries == 4 + 3
    assert model.n_bytes == 8 * (4 + 4 + 5) + 8 * (3 + 3 + 4)
    assert "0.19" in model.memory_report() and model.memory_report().count("\n") == 3
    assert isinstance(model, BackoffModel)


def test_wrong_input():
    with pytest.raises(ConfigError, match="no smoothing method 'kneser'"):
        fit_ngram("kneser", [0], 2, 2)
    with pytest.raises(ConfigError, match="order of at least 1"):
        fit_ngram("mle", [0], 0, 2)
    counts = count_ngrams([0, 1], 2, 2)
    for weights in ([0.5], [0.5, 1.5], [0.5, -0.1]):
        with pytest.raises(ConfigError, match="2 weights between 0 and 1"):
            jelinek_mercer(counts, weights)
    with pytest.raises(DataError, match="empty held-out"):
        jelinek_mercer_weights(counts, [])
    with pytest.raises(DataError, match="id 2 at position 0"):
        fit_ngram("mle", [0, 1], 2, 2).log_probabilities([2])
    with pytest.raises(ConfigError, match="counts are of order 2"):
        NGramModel(3, 2).fit_counts(counts)
