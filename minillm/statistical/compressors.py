"""General compressors as language models: a text that takes fewer bits was better predicted.

Two figures for each. Alone: the compressor has seen nothing before. After training text: it may use the training text
as a model may, and only the bits that the new text adds are counted.
"""

import lzma
import zlib

from minillm.errors import DataError

ZLIB_WINDOW_BYTES = 1 << 15
LZMA_PRESET = 9 | lzma.PRESET_EXTREME


def zlib_bits_per_byte(text: bytes, training: bytes = b"") -> float:
    """Bits that zlib, level 9, spends on each byte of `text`, its few header bytes included.

    Args:
        text: at least one byte.
        training: the last 32 KiB of it are the preset dictionary, all that the format can look back to; empty for none.

    Returns:
        8 * len(compressed) / len(text).

    Raises:
        DataError: if the text is empty.

    Source:
        Deutsch and Gailly 1996, RFC 1950.
    """
    _check(text)
    dictionary = training[-ZLIB_WINDOW_BYTES:]
    compressor = zlib.compressobj(level=9, zdict=dictionary) if dictionary else zlib.compressobj(level=9)
    return 8 * len(compressor.compress(text) + compressor.flush()) / len(text)


def lzma_bits_per_byte(text: bytes, training: bytes = b"") -> float:
    """Bits that LZMA (xz container, preset 9 extreme) adds for each byte of `text` behind `training`.

    Args:
        text: at least one byte.
        training: up to 64 MiB of it can be looked back to; empty for none, and then the container's header counts too.

    Returns:
        8 * (size(training + text) - size(training)) / len(text), size being that of the compressed bytes;
        8 * size(text) / len(text) without training text. Sizes are multiples of 4 bytes.

    Raises:
        DataError: if the text is empty.
    """
    _check(text)
    return 8 * (_lzma_size(training + text) - (_lzma_size(training) if training else 0)) / len(text)


def _lzma_size(content: bytes) -> int:
    return len(lzma.compress(content, format=lzma.FORMAT_XZ, preset=LZMA_PRESET))


def _check(text: bytes) -> None:
    if not text:
        raise DataError("an empty text has no bits per byte; expected at least one byte")
