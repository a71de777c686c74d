"""Compressors as models: sizes against the one-call functions, and against texts whose size is known beforehand."""

import lzma
import random
import zlib

import pytest

from minillm.errors import DataError
from minillm.statistical.compressors import lzma_bits_per_byte, zlib_bits_per_byte

TEXT = b"The hen went to the mill, and the mill went round and round and round. " * 30
OTHER = bytes(random.Random(0).randbytes(2000))


def test_alone():
    assert zlib_bits_per_byte(TEXT) == 8 * len(zlib.compress(TEXT, 9)) / len(TEXT)
    packed = lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME)
    assert lzma_bits_per_byte(TEXT) == 8 * len(packed) / len(TEXT)


@pytest.mark.parametrize("measure", [zlib_bits_per_byte, lzma_bits_per_byte])
def test_noise_costs_eight_bits_and_known_noise_next_to_none(measure):
    assert 8 <= measure(OTHER) < 8.5
    assert 7.9 <= measure(OTHER, training=TEXT) < 8.5
    assert measure(OTHER, training=TEXT + OTHER) < 0.3


def test_zlib_knows_the_last_32_kib():
    filler = random.Random(1).randbytes(1 << 15)
    assert zlib_bits_per_byte(OTHER, training=OTHER + filler) > 8
    assert zlib_bits_per_byte(OTHER, training=filler + OTHER) < 0.3
    assert zlib_bits_per_byte(OTHER, training=OTHER + filler[: (1 << 15) - 2500]) < 0.3
    compressor = zlib.compressobj(9, zdict=TEXT[-(1 << 15) :])
    size = len(compressor.compress(OTHER) + compressor.flush())
    assert zlib_bits_per_byte(OTHER, training=TEXT) == 8 * size / len(OTHER)


def test_lzma_counts_what_the_new_text_adds():
    def size(content):
        return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))

    assert lzma_bits_per_byte(TEXT, training=OTHER) == 8 * (size(OTHER + TEXT) - size(OTHER)) / len(TEXT)


@pytest.mark.parametrize("measure", [zlib_bits_per_byte, lzma_bits_per_byte])
def test_an_empty_text(measure):
    with pytest.raises(DataError, match="at least one byte"):
        measure(b"", training=TEXT)
