"""What every tokenizer can do, and the parts that all of them share."""

import hashlib
import json
import os
import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Mapping
from operator import index
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from minillm.errors import TokenizerError

END_OF_TEXT = "<|endoftext|>"
FORMAT = "minillm-tokenizer"
VERSION = 1
SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 .. vocab_size - 1.

    Attributes:
        kind: "bytes", "chars", "words", "wordpiece" or "bpe".
        vocab_size: one more than the largest id, special tokens included.
        special_tokens: string -> id of the marks that ordinary text never produces.
    """

    kind: ClassVar[str]
    vocab_size: int
    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text; the string of a special token is ordinary text like any other."""
        ...

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """Lazily, the ids of the text that the parts make when joined, wherever it was parted."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        ...

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text in parts, each as soon as its characters are whole."""
        ...

    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        ...

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        ...

    def fingerprint(self) -> str:
        """A SHA-256 that two tokenizers share exactly if they give the same ids."""
        ...


class TableTokenizer:
    """The shared half of all our tokenizers: a table of bytes per id makes decoding, a dict of settings makes files.

    Attributes:
        vocab: id -> bytes of every token, the special ones included.

    A subclass gives `kind`, `encode`, `encode_iterable`, `settings` and `from_settings`, and calls `__init__`.
    """

    kind: ClassVar[str]

    def __init__(self, vocab: Mapping[int, bytes], special_tokens: Mapping[str, int]) -> None:
        """Keep the bytes of every id.

        Args:
            vocab: id -> bytes of the ordinary tokens (specials may be among them).
            special_tokens: string -> id.

        Raises:
            TokenizerError: if an id is negative or a special token has the id of another token.
        """
        self.vocab = dict(vocab)
        for string, token_id in special_tokens.items():
            if self.vocab.setdefault(token_id, string.encode()) != string.encode():
                raise TokenizerError(f"special token {string!r} has id {token_id}, which is {self.vocab[token_id]!r}")
        if any(token_id < 0 for token_id in self.vocab):
            raise TokenizerError(f"token ids must not be negative, got {min(self.vocab)}")
        self.special_tokens = dict(special_tokens)
        self.vocab_size = max(self.vocab, default=-1) + 1
        self._bytes_of_id: list[bytes | None] = [self.vocab.get(token_id) for token_id in range(self.vocab_size)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids.

        Args:
            ids: ints (NumPy's or a tensor's too) in 0 .. vocab_size - 1.

        Returns:
            The tokens' bytes joined and read as UTF-8; each byte sequence that is no UTF-8 becomes U+FFFD.

        Raises:
            TokenizerError: for an id that is no integer or has no token; the message names it and its position.
        """
        ids = list(ids)
        try:
            if min(ids, default=0) >= 0:
                return b"".join(map(self._bytes_of_id.__getitem__, ids)).decode("utf-8", "replace")
        except (TypeError, IndexError):
            pass                                           # the slow way below finds the culprit
        return b"".join(self.token_bytes(token_id, position) for position, token_id in enumerate(ids)).decode(
            "utf-8", "replace"
        )

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode ids as they arrive, holding back bytes until their character is whole.

        Args:
            ids: as for `decode`, consumed one at a time.

        Returns:
            An iterator of parts, see `stream_text`; joined they are `decode(ids)`.
        """
        return stream_text(self.token_bytes(token_id, position) for position, token_id in enumerate(ids))

    def token_bytes(self, token_id: int, position: int = 0) -> bytes:
        """The bytes of one id; `position` is only for the message of the TokenizerError that a wrong id raises."""
        try:
            number = index(token_id)
        except TypeError:
            raise TokenizerError(
                f"token id {token_id!r} at position {position} is a {type(token_id).__name__}, expected an integer"
            ) from None
        token = self._bytes_of_id[number] if 0 <= number < self.vocab_size else None
        if token is None:
            raise TokenizerError(
                f"token id {number} at position {position} is not in the vocabulary, ids are 0 .. {self.vocab_size - 1}"
            )
        return token

    def settings(self) -> dict[str, Any]:
        """Everything that decides the ids, as JSON values; `from_settings` makes an equal tokenizer of it."""
        raise NotImplementedError(f"{type(self).__name__} must say what its files hold")

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer that had these settings."""
        raise NotImplementedError(f"{cls.__name__} must say how it is read")

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the kind and the settings as canonical JSON; equal for equal tokenizers."""
        return _fingerprint({"kind": self.kind, **self.settings()})

    def save(self, path: str | Path) -> None:
        """Write one JSON file: format, version, kind, fingerprint, settings. A crash leaves the old or the new file."""
        content = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint(), "kind": self.kind}
        write_atomically(path, json.dumps({**content, **self.settings()}, ensure_ascii=False, indent=0))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer of this kind.

        Raises:
            TokenizerError: if the file is missing, truncated, changed, foreign, or of another kind.
        """
        settings = read_settings(path)
        if settings["kind"] != cls.kind:
            raise TokenizerError(f"{path} holds a tokenizer of kind {settings['kind']!r}, not {cls.kind!r}")
        return cls.from_file_settings(path, settings)

    @classmethod
    def from_file_settings(cls, path: str | Path, settings: dict[str, Any]) -> Self:
        """`from_settings`, with the file's name in the error when something is missing or of the wrong type."""
        try:
            return cls.from_settings(settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise TokenizerError(f"{path} is no valid tokenizer of kind {cls.kind!r}: {error!r}") from error


def stream_text(parts: Iterable[bytes]) -> Iterator[str]:
    """Read UTF-8 that arrives in parts, and show each character as soon as it is whole.

    A token may end in the middle of a character: its bytes wait for those of the next token.

    Args:
        parts: byte strings, cut anywhere, also empty; there may be no end of them.

    Yields:
        For each part, before the next one is asked for, the text that has become certain with it; nothing if none has.
        Bytes that cannot be part of a character come out as U+FFFD, and so does what is incomplete at the end: joined,
        the text is `b"".join(parts).decode("utf-8", "replace")`. (Half of a surrogate pair, never allowed in UTF-8, may
        come out one part late.)

    Example:
        >>> list(stream_text([b"a", b"\\xe4\\xb8", b"\\xadb", b"\\xe4"]))
        ['a', '中b', '�']
    """
    decoder = getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def check_text(text: str, errors: str = "strict", offset: int = 0) -> str:
    """Refuse what is not Unicode text.

    A Python string may hold a lone surrogate (half of a UTF-16 pair, from a broken file or JSON escape); UTF-8 cannot.

    Args:
        text: what the caller wants encoded.
        errors: "strict" refuses lone surrogates, "replace" turns each into U+FFFD.
        offset: characters that came before, for the message.

    Returns:
        The text, without surrogates.

    Raises:
        TokenizerError: naming the type that is not str, or the first surrogate and its position.

    Example:
        >>> check_text("a\\ud83d", errors="replace")
        'a�'
    """
    if not isinstance(text, str):
        raise TokenizerError(f"only str can be encoded, got {type(text).__name__}")
    if errors not in ("strict", "replace"):
        raise TokenizerError(f'errors must be "strict" or "replace", got {errors!r}')
    if text.isascii() or not (match := SURROGATE.search(text)):
        return text
    if errors == "replace":
        return SURROGATE.sub("\ufffd", text)
    raise TokenizerError(
        f"lone surrogate U+{ord(match[0]):04X} at position {offset + match.start()}: "
        'not a Unicode character; repair the text or pass errors="replace"'
    )


def check_parts(texts: Iterable[str], errors: str = "strict") -> Iterator[str]:
    """Lazily `check_text` every part; positions in messages count from the start of the first."""
    if isinstance(texts, (bytes, bytearray)):
        raise TokenizerError("only str can be encoded, got bytes; decode them first")
    offset = 0
    for text in texts:
        yield check_text(text, errors, offset)
        offset += len(text)


def check_special_token(string: str) -> None:
    """Raise a TokenizerError unless `string` is a non-empty string without surrogates."""
    if not isinstance(string, str) or not string:
        raise TokenizerError(f"a special token must be a non-empty string, got {string!r}")
    check_text(string)


def number_specials(special_tokens: Iterable[str], first_id: int) -> dict[str, int]:
    """Give special tokens consecutive ids from `first_id` on; a TokenizerError if one is there twice.

    Example:
        >>> number_specials(["<|endoftext|>", "<|user|>"], 256)
        {'<|endoftext|>': 256, '<|user|>': 257}
    """
    if isinstance(special_tokens, str):
        raise TokenizerError(f"special_tokens must be a list of strings, got the string {special_tokens!r}")
    strings = list(special_tokens)
    for string in strings:
        check_special_token(string)
    if len(set(strings)) < len(strings):
        raise TokenizerError(f"special tokens must differ from one another, got {strings}")
    return {string: first_id + n for n, string in enumerate(strings)}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The content of a tokenizer file, after checking that it is one of ours and has not changed.

    Raises:
        TokenizerError: naming the file and what is wrong with it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not a tokenizer file, or it was cut off: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        hint = ""
        if isinstance(content, dict) and "model" in content:
            hint = "; it looks like Hugging Face's format, read it with read_hugging_face(path)"
        raise TokenizerError(f"{path} is not a minillm tokenizer{hint}")
    version = content.pop("version", None)
    if version != VERSION:
        raise TokenizerError(f"{path} has format version {version!r}, this library reads version {VERSION}")
    if content.pop("fingerprint", None) != _fingerprint(content):
        raise TokenizerError(f"{path} was changed or damaged after it was saved: its fingerprint does not fit")
    return content


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file beside `path`, flush it to the disk and put it in place, so that no reader ever sees half of it.

    Raises:
        TokenizerError: if the disk is full or the folder missing; an old file stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise TokenizerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fingerprint(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
