"""Byte strings as printable characters, the way GPT-2's files write them."""

from functools import cache

from minillm.errors import TokenizerError


@cache
def byte_characters() -> tuple[str, ...]:
    """For each byte 0 .. 255 a visible character that is its own; a space is "Ġ", a line feed "Ċ".

    Bytes that Latin-1 shows as visible characters stand for themselves; the 68 others get the characters from
    U+0100 on, in order.

    Source:
        Radford et al. 2019, the files released with GPT-2.

    Example:
        >>> byte_characters()[ord("a")], byte_characters()[ord(" ")]
        ('a', 'Ġ')
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, n_hidden = [], 0
    for byte in range(256):
        characters.append(chr(byte if byte in visible else 0x100 + n_hidden))
        n_hidden += byte not in visible
    return tuple(characters)


@cache
def _byte_of_character() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


def printable(token: bytes) -> str:
    """A byte string as visible characters, one per byte.

    Example:
        >>> printable(b" caf\\xc3\\xa9")
        'ĠcafÃ©'
    """
    return "".join(map(byte_characters().__getitem__, token))


def bytes_of(text: str) -> bytes:
    """The byte string that `printable` wrote; a TokenizerError for a character that it never writes."""
    try:
        return bytes(map(_byte_of_character().__getitem__, text))
    except KeyError as error:
        raise TokenizerError(f"{text!r} is no byte string in GPT-2's characters: {error} stands for no byte") from None
