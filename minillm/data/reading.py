"""Text files to documents: txt and jsonl, plain or gzipped; one file, a folder or a glob pattern.

What happens to the bytes, in this order:
- A UTF-8 byte order mark at the start of a file is removed. UTF-16 and UTF-32 files are recognised and refused.
- Bytes that are not UTF-8 are an error with their offset (`errors="strict"`), or become U+FFFD, counted ("replace").
- The line end CR LF becomes LF. A lone CR, NUL and every other character stay as they are.

Everything streams: memory is bounded by the longest document, not by the file.
"""

import glob
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minillm.errors import ConfigError, DataError

DOCUMENT_SEPARATOR = "***"
TEXT_SUFFIXES = (".txt", ".txt.gz")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
LONG_DOCUMENT_CHARACTERS = 1 << 26  # 64 Mi: a text file without separators is cut at the next blank line from here on
SNIFFED_BYTES = 1024


@dataclass
class ReadReport:
    """What was read so far; give one to `read_documents` and look at it afterwards."""

    n_files: int = 0
    n_documents: int = 0
    n_replaced: int = 0


def read_documents(
    path: str | Path,
    errors: str = "strict",
    field: str = "text",
    separator: str = DOCUMENT_SEPARATOR,
    report: ReadReport | None = None,
) -> Iterator[str]:
    """Yield the documents of a file, of all texts in a folder, or of all files that match a glob pattern.

    Paths are checked at the call, contents while iterating. Files come in sorted order. Documents of white space only
    are left out.

    Args:
        path: a file (`.jsonl` and `.jsonl.gz` hold one JSON object a line, everything else is plain text, `.gz` is
            unpacked), a folder (searched with its subfolders for .txt, .jsonl and their .gz), or a pattern with * ? [.
        errors: what to do with bytes that are not UTF-8: "strict" raises, "replace" puts U+FFFD and counts.
        field: the key of the text in each JSON object.
        separator: a line of a plain text that holds only this ends a document; blank lines beside it go.
            A text without such a line is one document, unchanged; from 64 Mi characters on it is cut at a blank line.
        report: counts files, documents and replacements as they are read. Without it a file with replacements warns.

    Returns:
        An iterator of str.

    Raises:
        ConfigError: if `errors` is neither "strict" nor "replace".
        DataError: if nothing is there to read, or bytes, gzip or JSON are broken; names file and offset or line.
    """
    if errors not in ("strict", "replace"):
        raise ConfigError(f"errors must be 'strict' or 'replace', not {errors!r}")
    files = list_files(path)
    return _documents_of(files, path, errors, field, separator, report)


def _documents_of(
    files: list[Path], source: str | Path, errors: str, field: str, separator: str, report: ReadReport | None
) -> Iterator[str]:
    n_documents = 0
    for file in files:
        counts = ReadReport(n_files=1)
        if file.name.lower().endswith(JSONL_SUFFIXES):
            texts = jsonl_documents(file, errors, field, counts)
        else:
            texts = text_documents(file, errors, separator, counts)
        for text in texts:
            if text and not text.isspace():
                n_documents += 1
                if report is not None:
                    report.n_documents += 1
                yield text
        _hand_in(file, counts, report)
    if n_documents == 0:
        sizes = f"{sum(file.stat().st_size for file in files)} bytes in {len(files)} file(s)"
        raise DataError(f"{source} holds no text ({sizes}); expected at least one document that is not blank")


def _hand_in(file: Path, counts: ReadReport, report: ReadReport | None) -> None:
    """Add one file's counts to the caller's report, or warn where nobody would see the replacements."""
    if report is not None:
        report.n_files += counts.n_files
        report.n_replaced += counts.n_replaced
    elif counts.n_replaced:
        warnings.warn(f"{file}: {counts.n_replaced} broken UTF-8 sequence(s) replaced by U+FFFD", stacklevel=3)


def list_files(path: str | Path) -> list[Path]:
    """The files that a path, folder or glob pattern stands for, sorted.

    Args:
        path: an existing file or folder, or a pattern with any of * ? [ (** crosses folders).

    Returns:
        At least one file.

    Raises:
        DataError: if nothing is there, a folder has no texts, or a pattern matches no file.
    """
    given = Path(path)
    if given.is_dir():
        files = sorted(file for file in given.rglob("*") if file.name.lower().endswith(TEXT_SUFFIXES + JSONL_SUFFIXES))
        if not files:
            raise DataError(f"folder {path} has no texts; expected files ending in .txt, .jsonl, .txt.gz or .jsonl.gz")
        return files
    if given.exists():
        return [given]
    if glob.has_magic(str(path)):
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not files:
            raise DataError(f"no file matches the pattern {path}; quote it if your shell expands patterns itself")
        return files
    raise DataError(f"{path} does not exist; expected a file, a folder or a glob pattern")


def read_text(path: str | Path, errors: str = "strict", report: ReadReport | None = None) -> str:
    """The whole of one plain text file as one string, decoded as this module's first lines say.

    Args:
        path: a file, not a folder.
        errors: "strict" or "replace".
        report: counts the replacements; without it they give a warning.

    Returns:
        str, possibly empty.

    Raises:
        DataError: if the file is missing, a folder, or badly encoded.
    """
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; expected one text file")
    if not Path(path).exists():
        raise DataError(f"{path} does not exist; expected a text file")
    counts = ReadReport(n_files=1)
    text = "".join(_lines(Path(path), errors, counts))
    _hand_in(Path(path), counts, report)
    return text


def text_documents(file: Path, errors: str, separator: str, counts: ReadReport) -> Iterator[str]:
    """Split one plain text at lines that hold only `separator`; the text between two is a document.

    Args:
        file: plain text, or the same gzipped.
        errors: "strict" or "replace".
        separator: for example "***".
        counts: replacements are added here.

    Returns:
        An iterator of str, some perhaps blank. Without a separator the whole file is one, exactly as it stands.
    """
    lines: list[str] = []
    n_characters, separated = 0, False
    for line in _lines(file, errors, counts):
        ends_here = line.strip() == separator
        if ends_here or (n_characters >= LONG_DOCUMENT_CHARACTERS and line == "\n"):
            yield "".join(lines).strip("\n")
            lines, n_characters, separated = [], 0, True
        if not ends_here:
            lines.append(line)
            n_characters += len(line)
    rest = "".join(lines)
    yield rest.strip("\n") if separated else rest


def jsonl_documents(file: Path, errors: str, field: str, counts: ReadReport) -> Iterator[str]:
    """The named field of each JSON object, one object a line; blank lines are skipped.

    Args:
        file: JSON lines, or the same gzipped.
        errors: "strict" or "replace"; it also decides about lone surrogates written as escapes, such as "\\ud800".
        field: the key whose value is the document.
        counts: replacements are added here.

    Returns:
        An iterator of str.

    Raises:
        DataError: with file and line number, if a line is not a JSON object, lacks the field, or has no text there.
    """
    for number, line in enumerate(_lines(file, errors, counts), start=1):
        if not line.isspace():
            yield _field_of(line, f"{file}, line {number}", field, errors, counts)


def _field_of(line: str, where: str, field: str, errors: str, counts: ReadReport) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); expected one object per line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}; expected an object with the field {field!r}")
    if field not in record:
        raise DataError(f"{where}: no field {field!r}; the fields there are {sorted(record)}; name one of them")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {field!r} holds a {type(text).__name__}; expected text")
    return _without_surrogates(text, where, errors, counts).replace("\r\n", "\n")


def _without_surrogates(text: str, where: str, errors: str, counts: ReadReport) -> str:
    """JSON escapes can spell half of a surrogate pair, which no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise DataError(
                f"{where}: lone surrogate {text[error.start]!r} at character {error.start}; "
                "mend the escape or read with errors='replace'"
            ) from error
    surrogates = {code: "\ufffd" for code in range(0xD800, 0xE000)}
    counts.n_replaced += sum(0xD800 <= ord(character) < 0xE000 for character in text)
    return text.translate(surrogates)


def _lines(file: Path, errors: str, counts: ReadReport) -> Iterator[str]:
    """Decoded lines with their LF. No UTF-8 character contains the byte 0x0A, so lines can be decoded one by one."""
    try:
        with _open(file) as stream:
            offset = _skip_mark(stream, file)
            while raw := stream.readline():
                yield _decode(raw, errors, file, offset, counts)
                offset += len(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a complete gzip file ({error}); download or compress it again") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _open(file: Path) -> io.BufferedReader:
    if file.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(file, "rb"))
    return open(file, "rb")


def _skip_mark(stream: io.BufferedReader, file: Path) -> int:
    """Step over a UTF-8 byte order mark (its length is returned) and refuse what looks like UTF-16 or UTF-32."""
    start = stream.peek(SNIFFED_BYTES)[:SNIFFED_BYTES]
    halves = (start[0::2], start[1::2])
    half_is_nul = len(start) >= 32 and any(half.count(0) > 0.9 * len(half) for half in halves)
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or half_is_nul:
        raise DataError(
            f"{file} looks like UTF-16 or UTF-32 (it starts with the bytes {start[:4].hex(' ')}); expected UTF-8: "
            f"convert it, for example with iconv -f UTF-16 -t UTF-8"
        )
    return len(stream.read(3)) if start.startswith(b"\xef\xbb\xbf") else 0


def _decode(raw: bytes, errors: str, file: Path, offset: int, counts: ReadReport) -> str:
    if raw.endswith(b"\r\n"):
        raw = raw[:-2] + b"\n"
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"{file}: byte 0x{raw[error.start]:02x} at offset {offset + error.start} is not valid UTF-8 "
                f"({error.reason}); convert the file to UTF-8 or read it with errors='replace'"
            ) from error
    text = raw.decode("utf-8", errors="replace")
    counts.n_replaced += text.count("\ufffd") - raw.count("\ufffd".encode())
    return text
