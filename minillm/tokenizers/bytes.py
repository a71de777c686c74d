"""The simplest tokenizer: one id per byte of UTF-8."""

from collections.abc import Iterable, Iterator
from typing import Any, Self

from minillm.tokenizers.tokenizer import END_OF_TEXT, TableTokenizer, check_parts, check_text, number_specials


class ByteTokenizer(TableTokenizer):
    """Ids 0 .. 255 are the bytes of UTF-8, special tokens follow from 256 on. Nothing is learned and nothing is lost.

    Example:
        >>> ByteTokenizer().encode("hé")
        [104, 195, 169]
    """

    kind = "bytes"

    def __init__(self, special_tokens: Iterable[str] = (END_OF_TEXT,)) -> None:
        """Make the tokenizer; a TokenizerError if the special tokens are not different, non-empty strings."""
        super().__init__({byte: bytes([byte]) for byte in range(256)}, number_specials(special_tokens, 256))

    def encode(self, text: str, errors: str = "strict") -> list[int]:
        """The UTF-8 bytes of a text.

        Args:
            text: any text.
            errors: what to do about lone surrogates: "strict" raises a TokenizerError, "replace" reads U+FFFD.
        """
        return list(check_text(text, errors).encode())

    def encode_iterable(self, texts: Iterable[str], errors: str = "strict") -> Iterator[int]:
        """Lazily, the ids of the text that the parts make when joined."""
        for text in check_parts(texts, errors):
            yield from text.encode()

    def settings(self) -> dict[str, Any]:
        """The special tokens; all else is fixed."""
        return {"special_tokens": list(self.special_tokens)}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer that had these settings."""
        return cls(settings["special_tokens"])
