"""Training and validation text do not share a document."""

import pytest

from minillm.data.split import split_documents, split_text
from minillm.errors import ConfigError, DataError

DOCUMENTS = [f"document {number}" for number in range(50)]


def test_every_document_on_exactly_one_side_in_order():
    train, validation = split_documents(DOCUMENTS, 0.1, seed=1)
    assert len(validation) == 5
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert train == [document for document in DOCUMENTS if document not in validation]
    assert validation == [document for document in DOCUMENTS if document in validation]


def test_the_seed_decides():
    assert split_documents(DOCUMENTS, 0.2, seed=1) == split_documents(DOCUMENTS, 0.2, seed=1)
    assert split_documents(DOCUMENTS, 0.2, seed=1) != split_documents(DOCUMENTS, 0.2, seed=2)


def test_every_document_has_its_turn():
    chosen = {document for seed in range(100) for document in split_documents(DOCUMENTS, 0.1, seed)[1]}
    assert chosen == set(DOCUMENTS)


@pytest.mark.parametrize(("fraction", "n_validation"), [(0.001, 1), (0.999, 2), (0.34, 1), (0.66, 2)])
def test_both_sides_have_something(fraction, n_validation):
    train, validation = split_documents(["a", "b", "c"], fraction, seed=0)
    assert (len(train), len(validation)) == (3 - n_validation, n_validation)


def test_equal_documents_are_split_by_place():
    train, validation = split_documents(["same"] * 10, 0.3, seed=0)
    assert (len(train), len(validation)) == (7, 3)


@pytest.mark.parametrize("documents", [[], ["one"]])
def test_too_few_documents(documents):
    with pytest.raises(DataError, match=rf"{len(documents)} document\(s\) cannot be split.*split_text"):
        split_documents(documents, 0.1, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fraction_out_of_range(fraction):
    for split in (lambda: split_documents(DOCUMENTS, fraction, seed=0), lambda: split_text("some text", fraction)):
        with pytest.raises(ConfigError, match="validation_fraction"):
            split()


def test_a_text_is_cut_behind_the_next_line_end():
    assert split_text("0123\n567\n9", 0.7) == ("0123\n", "567\n9")
    assert split_text("0123\n567\n9", 0.5) == ("0123\n", "567\n9")        # the cut was behind a line end already
    assert split_text("0123\n567\n9", 0.4) == ("0123\n567\n", "9")
    assert split_text("0123456789", 0.3) == ("0123456", "789")           # no line end follows
    assert split_text("012345678\n", 0.3) == ("0123456", "78\n")         # only the last one
    assert split_text("ab", 0.001) == ("a", "b")


def test_a_text_too_short_to_cut():
    with pytest.raises(DataError, match="1 character"):
        split_text("a", 0.5)
