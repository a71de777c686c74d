"""Duplicates against brute force: Jaccard of sets, every pair, and the theory of MinHash and LSH."""

import random

import numpy as np
import pytest

from minillm.data.contamination import Decontamination
from minillm.data.dedup import DuplicateLines, ExactDuplicates, NearDuplicateIndex, components, near_duplicates
from minillm.data.minhash import MinHash, band_pairs, estimated_jaccard, lsh_candidates, s_curve, signature
from minillm.data.shingles import hashed_shingles, jaccard, shingles, words_of
from minillm.errors import ConfigError, DataError

WORDS = [f"w{number}" for number in range(400)]


def edited_pairs(n_pairs, n_words=120, seed=0):
    """Texts and copies with more and more words changed."""
    rng = random.Random(seed)
    texts = []
    for pair in range(n_pairs):
        words = rng.choices(WORDS, k=n_words)
        copy = list(words)
        for _ in range(pair % 12):
            copy[rng.randrange(n_words)] = "new"
        texts += [" ".join(words), " ".join(copy)]
    return texts


def test_words_of_every_script():
    assert words_of("Don't stop_it, ÉTÉ ６ 你好!") == ["don", "t", "stop_it", "été", "６", "你", "好"]
    assert words_of("ab_c 1.5") == words_of("ab_c 1.5 …") == ["ab_c", "1", "5"]


def test_hashed_shingles_count_as_the_sets_do():
    texts = ["", "one", "one two three", "a b a b a b a b", "你好吗你好吗", "...", " ".join(WORDS), "a b c d e"]
    for n_words in (1, 2, 5):
        hashes, starts = hashed_shingles(texts, n_words)
        sets = [set(hashes[start:stop].tolist()) for start, stop in zip(starts, starts[1:], strict=False)]
        for one, first in enumerate(texts):
            assert len(sets[one]) == len(shingles(first, n_words))
            for other, second in enumerate(texts):
                expected = len(shingles(first, n_words) & shingles(second, n_words))
                assert len(sets[one] & sets[other]) == expected, (first, second, n_words)


def test_hashes_do_not_depend_on_the_batch_or_the_process():
    texts = edited_pairs(3)
    alone = np.concatenate([hashed_shingles([text])[0] for text in texts])
    assert hashed_shingles(texts)[0].tolist() == alone.tolist()
    assert hashed_shingles(["one two"], 2)[0].tolist() == hashed_shingles(["One, two!"], 2)[0].tolist()
    assert len(hashed_shingles([])[0]) == 0


def test_the_estimate_is_unbiased_and_as_wide_as_the_theory_says():
    texts = edited_pairs(60)
    family = MinHash(n_hashes=256, n_words=3)
    signatures = family.signatures(texts)
    true = np.array([jaccard(shingles(a, 3), shingles(b, 3)) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    errors = estimated_jaccard(signatures[::2], signatures[1::2]) - true
    deviations = np.sqrt(true * (1 - true) / 256)
    assert true.min() < 0.6 and true.max() == 1
    assert abs(errors.mean()) < 3 * deviations.mean() / np.sqrt(60) + 1e-3
    assert (np.abs(errors) <= 4.5 * deviations + 1e-12).all()
    ratio = (errors[deviations > 0] / deviations[deviations > 0]).std()
    assert 0.7 < ratio < 1.3


def test_minhash_is_the_least_of_each_function_whatever_the_blocks():
    texts = ["", *edited_pairs(100), "one", " ".join(WORDS * 50)]
    family = MinHash(n_hashes=4, seed=3)
    hashes, starts = hashed_shingles(texts)
    a, b = (list(map(int, row)) for row in family.multipliers())
    got = family.signatures(texts)
    for place in (0, 1, 57, 200, 201, 202):
        row = [int(x) for x in hashes[starts[place] : starts[place + 1]]]
        expected = [min(((a[k] * x + b[k]) % 2**64 >> 32 for x in row), default=2**32 - 1) for k in range(4)]
        assert got[place].tolist() == expected
        assert signature(hashes[starts[place] : starts[place + 1]], *family.multipliers()).tolist() == expected


def test_candidates_by_brute_force():
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 4, (60, 12))
    for n_bands in (1, 2, 4, 12):
        parts = np.split(signatures, n_bands, axis=1)
        expected = [
            [i, j] for i in range(60) for j in range(i + 1, 60) if any((part[i] == part[j]).all() for part in parts)
        ]
        assert lsh_candidates(signatures, n_bands).tolist() == expected
        assert sorted(map(list, band_pairs(signatures, n_bands))) == expected
    crowd = lsh_candidates(np.zeros((30, 4)), 2, largest_bucket=5)
    assert crowd.tolist() == [[0, other] for other in range(1, 30)]
    assert lsh_candidates(np.zeros((0, 4), int), 2).shape == (0, 2)
    for n_bands in (0, 3):
        with pytest.raises(ConfigError):
            lsh_candidates(np.zeros((2, 4)), n_bands)


def test_pairs_meet_as_often_as_the_s_curve_says():
    rng = np.random.default_rng(1)
    for similarity in (0.3, 0.5, 0.8):
        first = rng.integers(0, 2**31, (3000, 32))
        second = np.where(rng.random((3000, 32)) < similarity, first, first + 2**31)
        met = sum(len(lsh_candidates(np.stack(pair), 8)) for pair in zip(first[:600], second[:600], strict=True)) / 600
        expected = float(s_curve(similarity, 8, 4))
        assert abs(met - expected) < 4 * np.sqrt(expected * (1 - expected) / 600) + 0.01


def test_near_duplicates_are_those_of_brute_force_where_they_are_very_alike():
    texts = [*edited_pairs(30), "", "", "...", "one word", "one word"]
    found = near_duplicates(texts, threshold=0.7, texts_at_once=7, n_bands=32)
    sets = [shingles(text) for text in texts]
    expected = {
        (i, j): jaccard(sets[i], sets[j])
        for i in range(len(texts)) for j in range(i + 1, len(texts)) if jaccard(sets[i], sets[j]) >= 0.7
    }  # fmt: skip
    got = dict(zip(map(tuple, found.pairs.tolist()), found.similarity.tolist(), strict=True))
    assert got == pytest.approx(expected)
    assert found.kept.tolist() == [not any((i, j) in expected for i in range(j)) for j in range(len(texts))]
    assert near_duplicates([]).pairs.shape == (0, 2) and near_duplicates([""]).kept.tolist() == [True]


def test_components_by_brute_force():
    rng = np.random.default_rng(2)
    pairs = rng.integers(0, 40, (25, 2))
    smallest = list(range(40))
    for _ in range(40):
        for one, other in pairs.tolist():
            smallest[one] = smallest[other] = min(smallest[one], smallest[other])
    assert components(40, pairs).tolist() == smallest
    assert components(3, np.empty((0, 2))).tolist() == [0, 1, 2]


def test_streaming_index():
    texts = edited_pairs(12)
    index = NearDuplicateIndex(0.6)
    answers = [index(text) for text in texts]
    assert all(answer is None for answer in answers[::2])
    assert answers[1] == "near duplicate of document 0 (1.00)" and "document 2 " in answers[3]
    assert index("") is None and index("") is None


def test_exact_duplicates_and_lines():
    seen = ExactDuplicates(key=str.lower)
    assert [seen("A"), seen("a"), seen("b"), seen("A"), seen("\ud800")] == [
        None, "duplicate of document 0", None, "duplicate of document 0", None,
    ]  # fmt: skip
    lines = DuplicateLines(5)
    assert lines("a long line\nshort\n  a long line\nx\nx") == ("a long line\nshort\nx\nx", 1)
    assert lines("a long line") == ("", 1) and lines("") == ("", 0)


def test_decontamination():
    test = " ".join(WORDS[:30])
    drop = Decontamination([test, ""], n_words=13)
    assert drop("so: " + " ".join(WORDS[10:23]).upper() + "!") == "contaminated: 1 run of 13 words stand in a test"
    assert drop(" ".join(WORDS[10:22])) is None and drop("") is None
    assert Decontamination([test], 13, least_runs=2)(" ".join(WORDS[10:23])) is None
    with pytest.raises(DataError):
        Decontamination(["..."])
    with pytest.raises(ConfigError):
        Decontamination([test], 0)


def test_bad_settings():
    for call in (
        lambda: shingles("a", 0), lambda: hashed_shingles(["a"], 0), lambda: MinHash(0), lambda: near_duplicates([], 0),
        lambda: near_duplicates([], n_bands=7), lambda: NearDuplicateIndex(1.5), lambda: NearDuplicateIndex(n_bands=0),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(DataError):
        estimated_jaccard(np.zeros(3), np.zeros(4))
