"""Saved models and ARPA files: read back alike, scored by KenLM alike, and damage is named."""

import math

import numpy as np
import pytest

from minillm.errors import CheckpointError, DataError
from minillm.statistical.arpa import read_arpa, write_arpa
from minillm.statistical.backoff import BackoffModel
from minillm.statistical.counts import count_ngrams
from minillm.statistical.ngram import NGramModel
from minillm.statistical.smoothing import fit_ngram
from minillm.statistical.storage import load_counts, save_arrays, save_counts

TOKENS = ["<unk>", "the", "cat", "sat", "猫", "."]
BOUNDARY = 6
WRITABLE = ("mle", "katz", "jelinek-mercer", "witten-bell", "absolute", "kneser-ney", "modified-kneser-ney")


def sentences(n, seed):
    """[end, words .., end, words .., end]"""
    rng = np.random.default_rng(seed)
    ids = [BOUNDARY]
    for _ in range(n):
        ids += [*rng.choice([1, 1, 1, 2, 2, 3, 4, 5], size=rng.integers(1, 7)).tolist(), BOUNDARY]
    return ids


def model(method="modified-kneser-ney", order=3, boundary=BOUNDARY):
    return fit_ngram(method, sentences(60, seed=0), order, 7, boundary)


@pytest.mark.parametrize("method", WRITABLE)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_arpa_there_and_back(tmp_path, method, order):
    ours = model(method, order)
    write_arpa(ours, [*TOKENS, "</s>"], tmp_path / "m.arpa", digits=17)
    again, tokens = read_arpa(tmp_path / "m.arpa")
    assert tokens == [*TOKENS, "</s>"] and again.boundary == BOUNDARY and again.order == order
    text = sentences(20, seed=1)
    np.testing.assert_allclose(again.log_probabilities(text), ours.log_probabilities(text), rtol=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["m.arpa"]


def test_arpa_without_sentence_marks(tmp_path):
    ours = model(boundary=None)
    write_arpa(ours, [*TOKENS, "END"], tmp_path / "m.arpa")
    again, tokens = read_arpa(tmp_path / "m.arpa")
    assert tokens[-1] == "END" and again.boundary is None
    text = sentences(20, seed=1)
    np.testing.assert_allclose(again.log_probabilities(text), ours.log_probabilities(text), rtol=1e-7)


def test_the_lines_of_an_arpa_file(tmp_path):
    ours = fit_ngram("witten-bell", [2, 0, 1, 2, 0, 2], 2, 3, boundary=2)
    write_arpa(ours, ["a", "b", "?"], tmp_path / "m.arpa", digits=4)
    lines = (tmp_path / "m.arpa").read_text().splitlines()
    assert lines[:3] == ["\\data\\", "ngram 1=4", "ngram 2=4"]
    assert "-99\t<s>\t" in (tmp_path / "m.arpa").read_text()
    pairs = [line.split("\t")[1] for line in lines[lines.index("\\2-grams:") + 1 :] if "\t" in line]
    assert sorted(pairs) == ["<s> a", "a </s>", "a b", "b </s>"]
    p_a = ours.distribution([2])[0]
    assert f"{math.log10(p_a):.4g}\t<s> a" in lines


@pytest.mark.parametrize("method", WRITABLE[1:])
def test_kenlm_scores_our_files_alike(tmp_path, method):
    kenlm = pytest.importorskip("kenlm")  # an extra of its own, not among CI's oracles: it needs a C++ compiler
    ours = model(method)
    write_arpa(ours, [*TOKENS, "</s>"], tmp_path / "m.arpa")
    peer = kenlm.Model(str(tmp_path / "m.arpa"))
    for seed in range(30):
        ids = sentences(1, seed)
        found = ours.log_probabilities(ids)[1:] / math.log(10)
        expected = [p for p, _, _ in peer.full_scores(" ".join(TOKENS[i] for i in ids[1:-1]))]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)      # KenLM computes in float32


def test_files_of_others(tmp_path):
    """Pruned, unsorted, with \\r\\n, without a back-off weight where it is 0, spaces for tabs."""
    text = """made by hand

\\data\\
ngram 1 = 4
ngram 2=2

\\1-grams:
-1.0 </s>
-99 <s> -0.5
-0.5 a -0.25
-0.7 b

\\2-grams:
-0.1 a b
-0.2 <s> a

\\end\\
"""
    (tmp_path / "m.arpa").write_bytes(text.replace("\n", "\r\n").encode())
    found, tokens = read_arpa(tmp_path / "m.arpa")
    assert tokens == ["</s>", "a", "b"] and found.boundary == 0
    expected = [-0.2, -0.1, -0.7, -0.25 - 0.5, -0.25 - 1.0]           # b b: no weight; a a; a </s>
    assert found.log_probabilities([0, 1, 2, 2, 1, 1, 0])[[1, 2, 3]] / math.log(10) == pytest.approx(expected[:3])
    assert found.log_probabilities([0, 1, 2, 2, 1, 1, 0])[[5, 6]] / math.log(10) == pytest.approx(expected[3:])


GOOD = "\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-0.5\ta\t-0.1\n-0.5\tb\n\n\\2-grams:\n-0.2\ta b\n\n\\end\\\n"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\\end\\", "", "no whole ARPA file"),
        ("ngram 1=2", "ngram 1=3", r"announces \[3, 1\] n-grams by length and holds \[2, 1\]"),
        ("ngram 2=1", "ngram 3=1", "line 3: expected ngram 2="),
        ("-0.2\ta b", "-0.2\ta c", "the token 'c' of a 2-gram"),
        ("-0.2\ta b", "zero\ta b", "line 10: expected log10 p, 2 tokens"),
        ("-0.2\ta b", "0.2\ta b", "line 10"),
        ("-0.2\ta b", "-0.2\ta b -1 -1", "line 10"),
        ("-0.2\ta b", "nan\ta b", "line 10"),
        ("-0.2\ta b", "-0.2\ta", "line 10"),
        ("-0.5\tb\n", "-0.5\ta\n", "same 1-gram twice"),
        ("ngram 2=1\n", "ngram 2=2\n", "holds"),
        ("\\2-grams:", "\\3-grams:", "line 9: expected"),
        ("-0.2\ta b\n", "-0.2\ta b\n\n\\3-grams:\n-0.1\tb a b\n", "announces"),
    ],
)
def test_damaged_arpa_files(tmp_path, old, new, message):
    (tmp_path / "m.arpa").write_text(GOOD)
    assert read_arpa(tmp_path / "m.arpa")[1] == ["a", "b"]
    (tmp_path / "m.arpa").write_text(GOOD.replace(old, new))
    with pytest.raises(DataError, match=message):
        read_arpa(tmp_path / "m.arpa")


def test_arpa_ngrams_that_cannot_be(tmp_path):
    twice = GOOD.replace("ngram 2=1", "ngram 2=2").replace("-0.2\ta b\n", "-0.2\ta b\n-0.3\ta b\n")
    (tmp_path / "m.arpa").write_text(twice)
    with pytest.raises(DataError, match="2-gram is there twice"):
        read_arpa(tmp_path / "m.arpa")
    orphan = GOOD.replace("ngram 2=1", "ngram 2=1\nngram 3=1").replace("\\end\\", "\\3-grams:\n-0.1\tb a b\n\n\\end\\")
    (tmp_path / "m.arpa").write_text(orphan)
    with pytest.raises(DataError, match="'b a b' is there, but not its first 2 tokens"):
        read_arpa(tmp_path / "m.arpa")
    with pytest.raises(DataError, match="no file"):
        read_arpa(tmp_path / "none.arpa")
    (tmp_path / "m.arpa").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_arpa(tmp_path / "m.arpa")


def test_tokens_that_cannot_be_written(tmp_path):
    path = tmp_path / "m.arpa"
    for tokens, message in (
        (TOKENS, "expected 7 different tokens"),
        (["a"] * 7, "with 1 different"),
        (["a b", *TOKENS[1:], "end"], "white space"),
        (["", *TOKENS[1:], "end"], "empty"),
        (["</s>", *TOKENS[1:], "end"], "only the boundary 6"),
    ):
        with pytest.raises(DataError, match=message):
            write_arpa(model(), tokens, path)
    with pytest.raises(DataError, match="no weight for contexts"):
        write_arpa(model("stupid-backoff"), [*TOKENS, "end"], path)
    assert not path.exists()


@pytest.mark.parametrize("method", [*WRITABLE, "stupid-backoff"])
def test_saved_and_loaded(tmp_path, method):
    ours = model(method)
    ours.save(tmp_path / "m.npz")
    again, text = BackoffModel.load(tmp_path / "m.npz"), sentences(20, seed=1)
    np.testing.assert_array_equal(again.log_probabilities(text), ours.log_probabilities(text))
    assert (again.vocab_size, again.order, again.boundary) == (7, 3, BOUNDARY)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_damaged_model_files(tmp_path):
    path = tmp_path / "m.npz"
    with pytest.raises(CheckpointError, match="no file"):
        BackoffModel.load(path)
    model().save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2], b"no zip at all", whole[:200] + b"\xff" + whole[201:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            BackoffModel.load(path)
    np.savez(path, a=np.zeros(2))
    with pytest.raises(CheckpointError, match="damaged or not"):
        BackoffModel.load(path)
    save_arrays(path, {"format": "something else"}, {})
    with pytest.raises(CheckpointError, match="not of the format"):
        BackoffModel.load(path)
    header = {"format": "minillm n-gram model 1", "vocab_size": 2, "order": 1, "boundary": None}
    save_arrays(path, header, {"keys_1": np.arange(2)})
    with pytest.raises(CheckpointError, match="lacks a part"):
        BackoffModel.load(path)
    for keys in (np.array([1, 0]), np.array([0, 5]), np.array([0.0, 1.0]), np.arange(1)):
        n = len(keys)
        arrays = {"keys_1": keys, "log_probabilities_1": np.zeros(n), "log_backoffs_1": np.zeros(n + 1)}
        save_arrays(path, header, arrays)
        with pytest.raises(CheckpointError, match="contradict|has not all"):
            BackoffModel.load(path)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_counts_saved_and_loaded(tmp_path, order):
    counts = count_ngrams(sentences(60, seed=0), order, 7, BOUNDARY)
    save_counts(counts, tmp_path / "c.npz")
    again, text = load_counts(tmp_path / "c.npz"), sentences(20, seed=1)
    assert (again.order, again.vocab_size, again.boundary) == (order, 7, BOUNDARY)
    scores = [NGramModel(order, 7, 0.1).fit_counts(one).log_probabilities(text) for one in (counts, again)]
    np.testing.assert_array_equal(*scores)


def test_damaged_count_files(tmp_path):
    path = tmp_path / "c.npz"
    model().save(path)
    with pytest.raises(CheckpointError, match="not of the format"):
        load_counts(path)
    header = {"format": "minillm n-gram counts 1", "vocab_size": 3, "order": 1, "boundary": None}
    whole = {"keys_1": np.arange(2), "counts_1": np.array([4, 1, 0]), "context_counts_1": np.array([5, 0])}
    save_arrays(path, header, whole)
    assert load_counts(path).levels[0].counts.tolist() == [4, 1, 0]
    for change, message in (
        ({"keys_1": np.array([1, 0])}, "contradict"),
        ({"keys_1": np.array([1, 3])}, "contradict"),
        ({"keys_1": np.array([-1, 1])}, "contradict"),
        ({"counts_1": np.array([4, 1])}, "contradict"),
        ({"counts_1": np.array([4.0, 1, 0])}, "contradict"),
        ({"context_counts_1": np.array([5])}, "contradict"),
    ):
        save_arrays(path, header, {**whole, **change})
        with pytest.raises(CheckpointError, match=message):
            load_counts(path)
    for change in ({"order": 2}, {"vocab_size": 0}, {"boundary": 9}):
        save_arrays(path, {**header, **change}, whole)
        with pytest.raises(CheckpointError, match="lacks a part"):
            load_counts(path)
