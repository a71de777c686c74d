"""Scores by hand, and against nltk's on random classes."""

import numpy as np
import pytest
from nltk.metrics import ConfusionMatrix
from nltk.metrics import accuracy as nltk_accuracy

from minillm.errors import ConfigError, DataError
from minillm.evaluate.classification import accuracy, confusion_matrix, precision_recall_f1


def random_classes(seed, n=200, n_classes=4):
    generator = np.random.default_rng(seed)
    return generator.integers(n_classes, size=n), generator.integers(n_classes, size=n)


@pytest.mark.parametrize("seed", range(5))
def test_against_nltk(seed):
    predicted, target = random_classes(seed)
    oracle = ConfusionMatrix(target.tolist(), predicted.tolist())
    scores = precision_recall_f1(predicted, target, 4, average="none")
    for name, nltk_score in (("precision", oracle.precision), ("recall", oracle.recall), ("f1", oracle.f_measure)):
        expected = [nltk_score(label) for label in range(4)]
        np.testing.assert_allclose(getattr(scores, name), expected, rtol=1e-12)
        assert getattr(precision_recall_f1(predicted, target, 4), name) == pytest.approx(np.mean(expected), rel=1e-12)
    assert accuracy(predicted, target) == pytest.approx(nltk_accuracy(target.tolist(), predicted.tolist()), rel=1e-12)
    expected = [[oracle[true, guess] for guess in range(4)] for true in range(4)]
    assert confusion_matrix(predicted, target, 4).tolist() == expected


def test_by_hand():
    """Three classes: 0 is called too often, 1 is always found, 2 is never called."""
    target, predicted = [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 1]
    scores = precision_recall_f1(predicted, target, 3, average="none")
    np.testing.assert_allclose(scores.precision, [2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(scores.recall, [1, 1, 0])
    np.testing.assert_allclose(scores.f1, [0.8, 0.8, 0])
    assert precision_recall_f1(predicted, target, 3) == pytest.approx((4 / 9, 2 / 3, 1.6 / 3), rel=1e-12)
    assert precision_recall_f1(predicted, target, 3, average="micro") == pytest.approx((2 / 3, 2 / 3, 2 / 3), rel=1e-12)


def test_one_class_of_interest():
    """30 true positives, 10 false alarms, 20 missed, 40 rightly left alone."""
    predicted, target = [1] * 30 + [1] * 10 + [0] * 20 + [0] * 40, [1] * 30 + [0] * 10 + [1] * 20 + [0] * 40
    precision, recall, f1 = (score[1] for score in precision_recall_f1(predicted, target, 2, average="none"))
    assert (precision, recall, f1) == pytest.approx((30 / 40, 30 / 50, 60 / 90), rel=1e-12)
    assert confusion_matrix(predicted, target, 2).tolist() == [[40, 10], [20, 30]]


def test_a_class_that_is_nowhere_scores_zero_and_counts():
    assert precision_recall_f1([0, 1], [0, 1], 4) == (0.5, 0.5, 0.5)
    assert precision_recall_f1([0, 1], [0, 1], 2) == (1, 1, 1)
    assert precision_recall_f1([0], [1], 2) == (0, 0, 0)


def test_wrong_input():
    for score in (accuracy, lambda p, t: precision_recall_f1(p, t, 2), lambda p, t: confusion_matrix(p, t, 2)):
        with pytest.raises(DataError, match="two equal lengths"):
            score([0, 1], [0])
        with pytest.raises(DataError, match="at least 1"):
            score([], [])
        with pytest.raises(DataError, match="two equal lengths"):
            score([[0]], [[0]])
    with pytest.raises(DataError, match="predicted has classes from 0 to 2, expected 0 to 1"):
        precision_recall_f1([0, 2], [0, 1], 2)
    with pytest.raises(DataError, match="target has classes from -1 to 0"):
        confusion_matrix([0, 1], [0, -1], 2)
    with pytest.raises(ConfigError, match="average must be one of micro, macro, none, not 'weighted'"):
        precision_recall_f1([0], [0], 2, average="weighted")
