"""Packing: exact inverse of every width, bytes worked by hand and those of gguf, and codes that do not fit."""

import itertools

import numpy as np
import pytest
import torch

from minillm.compress.packing import PLANES, pack, pack_plane, packed_width, unpack, unpack_plane
from minillm.errors import ConfigError, DataError, ShapeError


def codes(bits, shape, seed=0):
    return torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(("bits", "width"), list(itertools.product(PLANES, (1, 2, 3, 7, 8, 31, 64, 100))))
def test_unpacking_is_the_exact_inverse_and_a_row_takes_its_bits_in_whole_bytes(bits, width):
    given = codes(bits, (3, width))
    packed = pack(given, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, packed_width(width, bits))
    assert bits * width / 8 <= packed.shape[1] < bits * width / 8 + len(PLANES[bits])
    assert torch.equal(unpack(packed, bits, width), given)


@pytest.mark.parametrize("bits", list(PLANES))
def test_every_code_comes_back_from_every_place(bits):
    for place in range(9):
        row = torch.zeros(2**bits, 9, dtype=torch.int64)
        row[:, place] = torch.arange(2**bits)
        assert torch.equal(unpack(pack(row, bits), bits, 9).long(), row)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 5)])
def test_any_number_of_rows(shape):
    given = codes(3, shape)
    assert torch.equal(unpack(pack(given, 3), 3, 5), given)


def test_the_parts_of_a_plane_lie_over_each_other_from_the_low_bits_up():
    given = codes(2, (12,), seed=3)
    by_hand = [sum(int(given[part * 3 + j]) << 2 * part for part in range(4)) for j in range(3)]
    assert pack_plane(given, 2).tolist() == by_hand
    assert torch.equal(unpack_plane(pack_plane(given, 2), 2), given)
    assert pack(torch.tensor([4, 0, 0, 0, 0, 0, 0, 7]), 3).tolist() == [0, 3 << 6, 1 | 1 << 7]


def test_numpy_packs_single_bits_the_same():
    given = codes(1, (16,), seed=1)
    # ours has part p of the row in bit p of every byte; numpy goes along the row
    expected = np.packbits(given.numpy().reshape(8, 2).T.reshape(-1), bitorder="little")
    assert pack(given, 1).tolist() == expected.tolist()


@pytest.mark.oracle
def test_four_bits_lie_as_in_blocks_of_gguf():
    gguf = pytest.importorskip("gguf")
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    theirs = gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType.Q4_0)  # two bytes of scale, then codes
    given = unpack(torch.from_numpy(theirs[:, 2:].copy()), 4, 32)
    assert np.allclose(
        gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q4_0),
        (given.float() - 8).numpy() * theirs[:, :2].copy().view(np.float16).astype(np.float32),
    )


def test_codes_that_do_not_fit_are_refused():
    for bits, bad in [(4, 16), (2, 4), (3, -1), (8, 256)]:
        with pytest.raises(DataError, match=f"{bits} bits"):
            pack(torch.tensor([0, bad]), bits)
    with pytest.raises(ConfigError, match="1 to 8"):
        pack(torch.tensor([0]), 9)
    with pytest.raises(ShapeError, match="take 5"):
        unpack(torch.zeros(2, 4, dtype=torch.uint8), 4, 9)
