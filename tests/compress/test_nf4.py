"""NF4: code, indices and scales byte for byte those of bitsandbytes, exact sizes, and blocks that are special."""

import json
import math

import pytest
import torch
from helpers.freeze_nf4 import FILE, SIZES, digest_of, hex_of, made_by_bitsandbytes, weights

from minillm.compress.nf4 import (
    dequantize_nf4,
    dequantize_scales,
    dynamic_code,
    nf4_code,
    pack_nibbles,
    quantize_blocks,
    quantize_nf4,
    quantize_scales,
    stored_bits,
    unpack_nibbles,
)
from minillm.errors import ConfigError, ShapeError

FROZEN = json.loads(FILE.read_text())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made_here(n_weights):
    values = weights(n_weights)
    packed, absmax = quantize_nf4(values)
    scales = quantize_scales(absmax)
    twice = dequantize_nf4(packed, dequantize_scales(scales), (n_weights,))
    return {
        "packed": hex_of(packed) if n_weights < 1000 else digest_of(packed),
        "absmax": digest_of(absmax),
        "weights": digest_of(dequantize_nf4(packed, absmax, (n_weights,))),
        "codes": hex_of(scales.codes),
        "largest": hex_of(scales.largest),
        "mean": hex_of(scales.mean),
        "weights with small scales": digest_of(twice),
    }


@pytest.mark.parametrize("name", SIZES)
def test_every_byte_is_that_of_bitsandbytes_as_it_was_written_down(name):
    assert made_here(SIZES[name]) == FROZEN[name]


@pytest.mark.oracle
@pytest.mark.parametrize("name", SIZES)
def test_what_was_written_down_is_what_bitsandbytes_does(name):
    pytest.importorskip("bitsandbytes")
    assert made_by_bitsandbytes(SIZES[name]) == FROZEN[name]


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(64, 64), (48, 100), (3, 37), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_bitsandbytes_makes_the_same_of_random_weights(shape, dtype):
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(nf4_code(), functional.get_4bit_type("nf4", "cpu"))
    assert torch.equal(dynamic_code(), functional.create_dynamic_map())
    values = torch.randn(shape, generator=seeded(len(shape) + shape[0])).to(dtype)
    expected, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4")
    packed, absmax = quantize_nf4(values)
    assert torch.equal(packed, expected.view(-1)) and torch.equal(absmax, state.absmax)


@pytest.mark.oracle
def test_small_scales_are_those_of_bitsandbytes_but_where_two_levels_are_equally_near():
    """Its code for CPUs finds levels by a table of 2^16 steps: near the middle of two it may take the farther one."""
    functional = pytest.importorskip("bitsandbytes.functional")
    absmax = torch.rand(256 * 400, generator=seeded())
    expected, state = functional.quantize_blockwise(absmax, blocksize=256)
    code = dynamic_code()
    codes, largest = quantize_blocks(absmax, code, 256)
    assert torch.equal(largest, state.absmax)
    (where,) = (codes != expected).nonzero(as_tuple=True)
    assert len(where) < 0.002 * len(absmax)
    middles = (code[codes[where].int()] + code[expected[where].int()]) / 2
    assert (absmax[where] / largest[where // 256] - middles).abs().max() < 2**-15
    exact = (absmax.double() / largest.double().repeat_interleave(256))[:, None] - code.double()
    assert torch.equal(exact.abs().argmin(-1), codes.long()), "ours are the nearest"


def test_the_code_is_made_of_normal_quantiles():
    """Against a quantile function that is not torch's, and the values printed in the paper's appendix E."""
    scipy_stats = pytest.importorskip("scipy.stats")
    code = nf4_code()
    tail = 1 - (1 / 32 + 1 / 30) / 2
    chances = [tail + (0.5 - tail) * i / 8 for i in range(8)], [tail + (0.5 - tail) * i / 7 for i in range(7)]
    levels = sorted([*scipy_stats.norm.ppf(chances[0]), 0.0, *-scipy_stats.norm.ppf(chances[1])])
    torch.testing.assert_close(code.double(), torch.tensor(levels) / levels[-1], rtol=0, atol=1e-6)
    assert code[7] == 0.0 and code[0] == -1.0 and code[15] == 1.0 and bool((code.diff() > 0).all())
    assert [round(level, 4) for level in code[8:11].tolist()] == [0.0796, 0.1609, 0.2461]


def test_each_weight_goes_to_its_nearest_level():
    values = torch.randn(50, 64, generator=seeded(), dtype=torch.float64)
    packed, absmax = quantize_nf4(values)
    indices = unpack_nibbles(packed, values.numel()).view(50, 64)
    distances = (values[..., None] - absmax[:, None, None].double() * nf4_code().double()).abs()
    best = distances.min(-1).values
    chosen = distances.gather(-1, indices.long()[..., None]).squeeze(-1)
    torch.testing.assert_close(chosen, best, rtol=0, atol=1e-6)
    again = dequantize_nf4(packed, absmax, values.shape)
    assert torch.equal(quantize_nf4(again)[0], packed), "quantizing again changes nothing"


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 16 * 1024 + 1])
def test_packing_is_undone(n):
    indices = torch.randint(16, (n,), generator=seeded(n)).to(torch.uint8)
    packed = pack_nibbles(indices)
    assert packed.numel() == math.ceil(n / 2) and torch.equal(unpack_nibbles(packed, n), indices)


def test_the_first_weight_stands_in_the_high_half():
    packed, _ = quantize_nf4(torch.tensor([1.0, -1.0]))
    assert packed.tolist() == [0xF0]


def test_blocks_that_are_special():
    for block, expected in {
        "zero": (torch.zeros(64), torch.zeros(64)),
        "constant": (torch.full((64,), 0.3), torch.full((64,), 0.3)),
        "negative constant": (torch.full((64,), -0.3), torch.full((64,), -0.3)),
        "one element": (torch.tensor([-7.5]), torch.tensor([-7.5])),
        "one zero": (torch.tensor([0.0]), torch.tensor([0.0])),
        "largest": (torch.tensor([3e38, -3e38]), torch.tensor([3e38, -3e38])),
    }.values():
        assert torch.equal(dequantize_nf4(*quantize_nf4(block), block.shape), expected)
    tiny = torch.tensor([1e-42, -1e-42, 0.0])
    assert bool(torch.isfinite(dequantize_nf4(*quantize_nf4(tiny), (3,))).all())


def test_a_zero_block_among_others_stays_zero_with_small_scales():
    values = torch.randn(300, 64, generator=seeded())
    values[::5] = 0.0
    packed, absmax = quantize_nf4(values)
    again = dequantize_nf4(packed, dequantize_scales(quantize_scales(absmax)), values.shape)
    assert bool((again[::5] == 0).all()) and bool(torch.isfinite(again).all())


def test_a_scale_never_turns_negative():
    """One weak block beside strong ones: rounded with them its scale can pass zero, and all its signs would turn."""
    generator = seeded(2)
    seen = 0
    for _ in range(50):
        absmax = torch.rand(256, generator=generator) * 3
        absmax[:20] = 1e-3
        scales = quantize_scales(absmax)
        code = dynamic_code()[scales.codes.int()]
        seen += int((code * scales.largest + scales.mean < 0).sum())
        again = dequantize_scales(scales)
        assert bool((again >= 0).all())
        assert (again - absmax).abs().max() <= 0.0071 * scales.largest.max()
    assert seen > 0, "the case does not come up: this test checks nothing"


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_weights_that_are_not_finite_are_refused(wrong):
    values = torch.ones(3, 70)
    values[2, 5] = wrong
    with pytest.raises(ConfigError, match=r"1 of 210 weights are not finite, the first -?(inf|nan) at \[2, 5\]"):
        quantize_nf4(values)


def test_misuse_is_named():
    with pytest.raises(ConfigError, match="0 weights"):
        quantize_nf4(torch.zeros(0, 3))
    with pytest.raises(ConfigError, match="blocks of 0"):
        quantize_nf4(torch.ones(3), block_size=0)
    packed, absmax = quantize_nf4(torch.ones(130))
    with pytest.raises(ShapeError, match="3 scales were given; 128 weights have 2"):
        dequantize_nf4(packed, absmax, (128,))
    with pytest.raises(ShapeError, match="65 bytes were given"):
        dequantize_nf4(packed, absmax, (132,))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 16384, 16385, 100_001])
def test_stored_bits_are_the_bytes_that_are_there(n):
    packed, absmax = quantize_nf4(weights(n))
    scales = quantize_scales(absmax)
    parts = [packed, scales.codes, scales.largest, scales.mean]
    assert stored_bits(n) == 8 * sum(part.numel() * part.element_size() for part in parts)
    assert stored_bits(n, double=False) == 8 * (packed.numel() + 4 * absmax.numel())


def test_bits_of_a_weight_as_in_the_paper():
    """Dettmers et al. 2023, section 3: 0.5 bits of overhead become 8/64 + 32/(64 * 256) = 0.127."""
    n = 2**26
    assert stored_bits(n, double=False) == 4.5 * n
    assert stored_bits(n) - 32 == (4 + 8 / 64 + 32 / (64 * 256)) * n
    assert round(stored_bits(n) / n, 3) == 4.127


MUTATIONS = {
    "low half first": lambda values: quantize_nf4(values.view(-1, 2).flip(-1).reshape(-1))[0],
    "columns first": lambda values: quantize_nf4(values.view(-1, 32).T.contiguous())[0],
    "blocks of 128": lambda values: quantize_nf4(values, 128)[0],
    "one scale": lambda values: quantize_nf4(values, values.numel())[0],
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_frozen_bytes_notice(name):
    values = weights(301 * 64)
    assert digest_of(quantize_nf4(values)[0]) == FROZEN["many"]["packed"]
    assert digest_of(MUTATIONS[name](values)) != FROZEN["many"]["packed"]
