"""Bytes to documents, and everything that can be wrong with a file."""

import gzip
import json

import pytest

from minillm.data import reading
from minillm.data.reading import ReadReport, list_files, read_documents, read_text
from minillm.errors import ConfigError, DataError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, **options):
    return list(read_documents(path, **options))


def test_a_text_without_separator_is_one_document_unchanged(tmp_path):
    text = "\n  first line\n\nsecond **** *** line\n\n"
    assert read(write(tmp_path / "a.txt", text)) == [text]


def test_three_stars_part_documents(tmp_path):
    path = write(tmp_path / "a.txt", "***\n\none\n\nmore\n\n***\n\n  two\n ***\t\n***\n\n***\nthree\n")
    assert read(path) == ["one\n\nmore", "  two", "three"]


def test_another_separator(tmp_path):
    assert read(write(tmp_path / "a.txt", "one\n<|endoftext|>\n***\n"), separator="<|endoftext|>") == ["one", "***"]


def test_a_long_text_is_cut_at_a_blank_line(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONG_DOCUMENT_CHARACTERS", 10)
    path = write(tmp_path / "a.txt", "aa\n\nbbbbbbbb\ncc\n\ndd\n\nee\n")
    assert read(path) == ["aa\n\nbbbbbbbb\ncc", "dd\n\nee"]


@pytest.mark.parametrize("suffix", [".txt", ".md", ""])
def test_any_other_named_file_is_plain_text(tmp_path, suffix):
    assert read(write(tmp_path / f"a{suffix}", '{"text": "x"}\n')) == ['{"text": "x"}\n']


def test_gzip_of_both_kinds(tmp_path):
    text = write(tmp_path / "a.txt.gz", gzip.compress("eins\n***\nzwei é\n".encode()))
    lines = write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"text": "drei"}\n'))
    assert read(text) + read(lines) == ["eins", "zwei é", "drei"]


def test_jsonl_field_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "no", "body": "one\\r\\n"}\n\n{"body": "二\\u0000"}')
    assert read(path, field="body") == ["one\n", "二\0"]


def test_folder_with_subfolders_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "z.txt", "z")
    write(tmp_path / "sub" / "a.jsonl", '{"text": "a"}')
    write(tmp_path / "notes.md", "not read")
    write(tmp_path / "empty.txt", "")
    report = ReadReport()
    assert read(tmp_path, report=report) == ["a", "z"]
    assert report == ReadReport(n_files=3, n_documents=2, n_replaced=0)


def test_glob(tmp_path):
    for name in ("b1.txt", "a1.txt", "a2.md"):
        write(tmp_path / name, name)
    assert read(str(tmp_path / "*1.txt")) == ["a1.txt", "b1.txt"]
    assert read(str(tmp_path / "**" / "a?.*")) == ["a1.txt", "a2.md"]
    with pytest.raises(DataError, match=r"no file matches .*c\*"):
        read_documents(str(tmp_path / "c*"))


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    assert read(write(tmp_path / "a[1].txt", "brackets")) == ["brackets"]


def test_reading_is_lazy(tmp_path):
    write(tmp_path / "a.txt", "good\n***\nmore\n***\n" + "x" * 100 + "\n***\n")
    write(tmp_path / "b.txt", b"\xff")
    documents = read_documents(tmp_path)
    assert next(documents) == "good"


# What can be wrong with the bytes.


def test_strict_names_file_byte_and_offset(tmp_path):
    path = write(tmp_path / "a.txt", "é\r\nab".encode() + b"\xff c\n")
    with pytest.raises(DataError, match=r"a\.txt: byte 0xff at offset 6 is not valid UTF-8.*errors='replace'"):
        read(path)
    with pytest.raises(DataError, match="offset 9"):
        read(write(tmp_path / "b.txt", b"\xef\xbb\xbf" + "é\r\nab".encode() + b"\xff c\n"))
    with pytest.raises(DataError, match="byte 0xed at offset 1"):
        read(write(tmp_path / "c.txt", b"a\xed\xa0\x80b"))                       # an encoded lone surrogate


def test_replace_counts(tmp_path):
    # \xff is one broken sequence, \xe2\x82 a cut character, the third U+FFFD was in the file before
    path = write(tmp_path / "a.txt", b"a\xffb\n\xe2\x82 \xef\xbf\xbd\n")
    report = ReadReport()
    assert read(path, errors="replace", report=report) == ["a\ufffdb\n\ufffd \ufffd\n"]
    assert report == ReadReport(n_files=1, n_documents=1, n_replaced=2)
    with pytest.warns(UserWarning, match=r"a\.txt: 2 broken"):
        read(path, errors="replace")
    with pytest.warns(UserWarning, match=r"a\.txt: 2 broken"):
        read_text(path, errors="replace")


def test_unknown_policy():
    with pytest.raises(ConfigError, match="'strict' or 'replace', not 'ignore'"):
        read_documents("anything", errors="ignore")


def test_mark_line_ends_and_nul(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\0\n\xef\xbb\xbf")
    assert read(path) == ["one\ntwo\rthree\0\n\ufeff"]
    assert read_text(path) == "one\ntwo\rthree\0\n\ufeff"
    assert read(write(tmp_path / "b.txt", b"one\r\n***\r\ntwo")) == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_utf_16_is_recognised(tmp_path, encoding, errors):
    path = write(tmp_path / "a.txt", "Once upon a time, long ago".encode(encoding))
    with pytest.raises(DataError, match=r"a\.txt looks like UTF-16"):
        read(path, errors=errors)


def test_many_nuls_are_still_text(tmp_path):
    text = "a\0" * 10 + "ordinary text that goes on for a while"
    assert read(write(tmp_path / "a.txt", text)) == [text]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n \r\n", b"***\n\n***\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_empty_file(tmp_path, content, name):
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=r"holds no text .* expected at least one document"):
        read(path)


def test_gzip_of_nothing_at_all(tmp_path):
    with pytest.raises(DataError, match="holds no text"):
        read(write(tmp_path / "a.txt.gz", b""))


def test_missing_file_and_folder_without_texts(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_documents(tmp_path / "none.txt")
    write(tmp_path / "a.md", "x")
    with pytest.raises(DataError, match=r"has no texts; expected files ending in \.txt"):
        read_documents(tmp_path)


def test_one_file_means_one_file(tmp_path):
    with pytest.raises(DataError, match="is a folder; expected one text file"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_text(tmp_path / "none")


def test_broken_gzip(tmp_path):
    good = gzip.compress(b"some text that goes on\n" * 200)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    for name, content in {"cut": good[:-12], "foreign": b"not gzip at all", "flipped": bytes(flipped)}.items():
        with pytest.raises(DataError, match=rf"{name}\.txt\.gz is not a complete gzip file"):
            read(write(tmp_path / f"{name}.txt.gz", content))


def test_unreadable_file(tmp_path):
    loop = tmp_path / "a.txt"
    write(loop, "x")
    documents = read_documents(loop)
    loop.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(documents)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"line 3: not valid JSON"),
        ("[" * 100_000, r"line 3: not valid JSON"),
        ('["text"]', r"line 3: a JSON list; expected an object with the field 'text'"),
        ('{"title": "a", "body": "b"}', r"line 3: no field 'text'; the fields there are \['body', 'title'\]"),
        ('{"text": 7}', r"line 3: field 'text' holds a int; expected text"),
        ('{"text": "ab\\ud83d"}', r"line 3: lone surrogate '\\ud83d' at character 2"),
    ],
)
def test_bad_json_line(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    documents = read_documents(path)
    assert next(documents) == "fine"
    with pytest.raises(DataError, match=r"a\.jsonl, " + message):
        next(documents)


def test_surrogate_escapes_replaced_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "\\ud83d \\ud83d\\ude00 \\udc00"}')
    report = ReadReport()
    assert read(path, errors="replace", report=report) == ["\ufffd 😀 \ufffd"]
    assert report.n_replaced == 2


def test_one_line_of_fifty_megabytes(tmp_path):
    line = "long line é " * 4_000_000                                               # 52 MB
    assert read(write(tmp_path / "a.txt", line)) == [line]
    assert read(write(tmp_path / "a.jsonl", json.dumps({"text": line}))) == [line]


def test_a_million_spaces_between_words(tmp_path):
    text = "a" + " " * 10**6 + "b"
    assert read(write(tmp_path / "a.txt", text)) == [text]


def test_list_files_refuses_an_empty_pattern(tmp_path):
    with pytest.raises(DataError, match="quote it"):
        list_files(tmp_path / "*.txt")
