"""What the `train` methods take: a text, the file that holds one, or documents."""

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from pathlib import Path

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers.tokenizer import check_text

READ_BYTES = 1 << 20


def training_texts(source: str | Path | Iterable[str]) -> Iterator[Iterator[str]]:
    """The documents of a corpus, each as the parts it is read in.

    Args:
        source: a str is the text itself, a Path the UTF-8 file of one text, anything else an iterable of documents.

    Yields:
        One iterator of parts per document.

    Raises:
        TokenizerError: if the source, or a document in it, is no text.
        DataError: if a file is missing, is a folder, or is not UTF-8.
    """
    if isinstance(source, Path):
        yield read_text(source)
    elif isinstance(source, str):
        yield iter([check_text(source)])
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray)):
        yield from (iter([check_text(document)]) for document in source)
    else:
        raise TokenizerError(f"cannot train on {type(source).__name__}, expected a str, a Path or an iterable of str")


def read_text(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in parts; a byte order mark at its start is not text and left out.

    Raises:
        DataError: if the file cannot be read (message of the system) or is not UTF-8 (offset of the first wrong byte).
    """
    decoder = getincrementaldecoder("utf-8")()
    n_read = 0
    try:
        with path.open("rb") as file:
            while True:
                part = file.read(READ_BYTES)
                n_held = len(decoder.getstate()[0])
                text = decoder.decode(part, final=not part)
                yield text.removeprefix("\ufeff") if n_read == 0 else text
                n_read += len(part)
                if not part:
                    return
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: wrong byte at offset {n_read - n_held + error.start}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
