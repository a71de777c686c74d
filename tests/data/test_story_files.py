"""The stories of this project: there, large enough, clean, nothing said twice, and their checksums true."""

import re
from collections import Counter
from pathlib import Path

import pytest

from minillm.data.checksums import ROW, with_true_checksums
from minillm.data.corpora import documents
from minillm.errors import DataError

DATA = Path(__file__).parents[2] / "data"
FILES = {"en": ("stories_en.txt", 150_000), "zh": ("stories_zh.txt", 60_000)}


@pytest.fixture(params=FILES)
def language(request):
    return request.param


def text_of(language):
    return (DATA / FILES[language][0]).read_bytes().decode("utf-8", errors="strict")


def english_sentences(text):
    """Runs of words between full stops, question and exclamation marks or paragraph ends, of more than 4 words."""
    for sentence in re.split(r"[.!?]+|\n\s*\n|\n\*\*\*\n", text):
        words = re.findall(r"[\w'’]+", sentence.lower())
        if len(words) > 4:
            yield " ".join(words)


def chinese_sentences(text):
    """Runs of characters between 。！？ or line ends, of more than 6 characters without punctuation."""
    for sentence in re.split(r"[。！？\n]+", text):
        characters = re.sub(r"\W+", "", sentence)
        if len(characters) > 6:
            yield characters


def test_large_enough(language):
    name, at_least = FILES[language]
    assert (DATA / name).stat().st_size >= at_least


def test_clean(language):
    text = text_of(language)
    assert not text.startswith("\ufeff") and "\r" not in text and "\0" not in text and "\ufffd" not in text
    assert "\t" not in text and "<|" not in text and "\n\n\n" not in text
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert text.endswith("\n") and text.strip()


def test_the_only_separator_is_three_stars(language):
    lines = text_of(language).split("\n")
    separators = [line for line in lines if line and not re.search(r"\w", line)]
    assert len(separators) > 10 and set(separators) == {"***"}
    pieces = list(documents(f"stories-{language}"))
    assert len(pieces) == len(separators) + 1
    assert all(len(piece.encode()) > 200 for piece in pieces)


def test_no_sentence_twice(language):
    sentences = list((english_sentences if language == "en" else chinese_sentences)(text_of(language)))
    assert len(sentences) > 500
    assert [sentence for sentence, count in Counter(sentences).items() if count > 1] == []


def test_the_sentence_splitters_see_repetition():
    assert max(Counter(english_sentences("The cat sat on it. So?\n\nThe cat sat on it!")).values()) == 2
    assert max(Counter(chinese_sentences("小猫坐在那张桌子上。好。小猫坐在那张桌子上！")).values()) == 2


def test_both_come_together():
    assert list(documents("stories")) == list(documents("stories-en")) + list(documents("stories-zh"))


def test_checksums_in_the_readme_are_true():
    table = (DATA / "README.md").read_text(encoding="utf-8")
    assert {match["name"] for match in ROW.finditer(table)} == {name for name, _ in FILES.values()}
    assert with_true_checksums(table, DATA) == table


def test_checksums_follow_the_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    table = "# A\n| `a.txt` | letters | 0 | `-` |\nend\n"
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert with_true_checksums(table, tmp_path) == f"# A\n| `a.txt` | letters | 3 | `{sha256}` |\nend\n"
    with pytest.raises(DataError, match=r"b\.txt"):
        with_true_checksums("| `b.txt` | none | 0 | `-` |", tmp_path)
