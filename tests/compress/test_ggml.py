"""GGML's blocks: every byte is that of ggml's C as written down, of the `gguf` package, and of the C if present."""

import json

import numpy as np
import pytest
import torch
from helpers.freeze_ggml import FILE, SIZES, cases, decoded_by_c, digest_of, made_by_c
from torch import nn

from minillm.compress import ggml, k_quants
from minillm.compress.ggml_linear import GGMLLinear
from minillm.compress.packed_linear import stored_bytes
from minillm.errors import ConfigError, DataError, ShapeError

FROZEN = json.loads(FILE.read_text())
CASES = cases()


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", SIZES)
def test_every_byte_is_that_of_the_c_library_as_it_was_written_down(name):
    frozen = FROZEN[name]
    assert ggml.encode(CASES["plain"], name)[0, : SIZES[name]].tobytes().hex() == frozen["first block"]
    for case, weights in CASES.items():
        encoded = ggml.encode(weights, name)
        assert digest_of(encoded) == frozen["encoded"][case], case
        assert digest_of(ggml.decode(encoded, name)) == frozen["decoded"][case], case


@pytest.mark.oracle
@pytest.mark.parametrize("name", SIZES)
def test_what_was_written_down_is_what_the_c_library_does(name):
    pytest.importorskip("pywhispercpp")
    for case, weights in CASES.items():
        encoded = made_by_c(name, weights)
        assert digest_of(encoded) == FROZEN[name]["encoded"][case]
        assert digest_of(decoded_by_c(name, encoded)) == FROZEN[name]["decoded"][case]
    for seed, strength in enumerate((1e-20, 1e-4, 0.02, 1.0, 300.0)):
        weights = normal((16, 2048), seed) * np.float32(strength)
        assert np.array_equal(ggml.encode(weights, name), made_by_c(name, weights))


@pytest.mark.oracle
@pytest.mark.parametrize("name", SIZES)
def test_the_gguf_package_reads_and_where_it_can_writes_the_same(name):
    gguf = pytest.importorskip("gguf")
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    assert kind == ggml.TYPES[name].number
    assert gguf.GGML_QUANT_SIZES[kind] == (ggml.TYPES[name].n_weights, ggml.TYPES[name].n_bytes)
    for strength in (1e-3, 0.02, 5.0):
        weights = normal((32, 2048)) * np.float32(strength)
        encoded = ggml.encode(weights, name)
        assert np.array_equal(ggml.decode(encoded, name), gguf.quants.dequantize(encoded, kind))
        if not name.endswith("k"):
            assert np.array_equal(encoded, gguf.quants.quantize(weights, kind))


@pytest.mark.parametrize(
    ("name", "error"),
    [("q8_0", 0.00537), ("q6_k", 0.01777), ("q4_k", 0.07143), ("q4_1", 0.07816), ("q4_0", 0.08619)],
)
def test_errors_on_normal_weights_are_those_that_were_measured_with_the_c_library(name, error):
    """Root mean square on N(0, 1); the figures are those of the encoders in C, on other numbers."""
    weights = normal((64, 1024), 3)
    measured = float(np.sqrt(np.mean((ggml.decode(ggml.encode(weights, name), name) - weights) ** 2)))
    assert measured == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_a_weight_moves_by_at_most_half_a_step_but_at_the_short_end(name):
    """By hand: the step is the range over the number of levels; a signed block has one level less on one side."""
    weights = normal((50, 32), 5)
    moved = np.abs(ggml.decode(ggml.encode(weights, name), name) - weights).max(-1)
    largest, width = np.abs(weights).max(-1), np.ptp(weights, axis=-1)
    step = {"q8_0": largest / 127, "q4_0": largest / 8, "q5_0": largest / 16, "q4_1": width / 15, "q5_1": width / 31}
    at_most = step[name] * (1.0 if name in ("q4_0", "q5_0") else 0.5) + largest * 2e-3
    assert (moved <= at_most).all()


def test_one_block_by_hand():
    """Farthest weight -4: scale 0.5, so that -4 is code 0; 3.9 wants code 15.8, has 15; 0 is code 8."""
    block = np.zeros((1, 32), dtype=np.float32)
    block[0, [0, 1, 16, 17]] = [-4.0, 3.9, 1.0, -0.6]
    encoded = ggml.encode(block, "q4_0")[0]
    assert encoded[:2].tobytes() == np.float16(0.5).tobytes()
    assert [f"{byte:02x}" for byte in encoded[2:5]] == ["a0", "7f", "88"]
    assert ggml.decode(encoded[None], "q4_0")[0, [0, 1, 2, 16, 17]].tolist() == [-4.0, 3.5, 0.0, 1.0, -0.5]


def test_six_bits_are_packed_and_unpacked():
    scales, minima = np.random.default_rng(0).integers(0, 64, (2, 100, 8)).astype(np.uint8)
    back = k_quants.unpack_six_bits(k_quants.pack_six_bits(scales, minima))
    assert np.array_equal(back[0], scales) and np.array_equal(back[1], minima)


def test_what_is_zero_or_tiny_stays_finite():
    for name in SIZES:
        for value in (0.0, 1e-42, -1e-30, 1e-8, 60000.0):
            decoded = ggml.decode(ggml.encode(np.full((1, 256), value), name), name)
            assert np.isfinite(decoded).all()
            assert np.abs(decoded - value).max() <= max(1e-7, abs(value) * 0.01)


def test_encoding_in_parts_changes_nothing(monkeypatch):
    weights = normal((6, 512))
    whole = {name: ggml.encode(weights, name) for name in SIZES}
    monkeypatch.setattr(ggml, "AT_ONCE", 300)
    for name in SIZES:
        assert np.array_equal(ggml.encode(weights, name), whole[name])


def test_misuse_is_named():
    with pytest.raises(ConfigError, match="no block type 'q3_k' here; known: f32, f16, q4_0"):
        ggml.encode(normal((1, 32)), "q3_k")
    with pytest.raises(ShapeError, match=r"\(2, 96\) cannot .* q4_k: rows must be multiples of 256; q5_0 fits"):
        ggml.encode(normal((2, 96)), "q4_k")
    with pytest.raises(ShapeError, match="expected a matrix that is not empty"):
        ggml.encode(normal((0, 32)), "q4_0")
    with pytest.raises(ShapeError, match=r"\(2, 17\) are no rows of q4_0, whose blocks have 18"):
        ggml.decode(np.zeros((2, 17), dtype=np.uint8), "q4_0")
    for bad in (np.nan, np.inf):
        weights = normal((2, 64))
        weights[1, 40] = bad
        with pytest.raises(DataError, match=r"the weight at \(1, 40\) is (nan|inf)"):
            ggml.encode(weights, "q8_0")
    for name in SIZES:
        with pytest.raises(DataError, match="but fp16 ends at 65504"):
            ggml.encode(normal((1, 256)) * np.float32(1e8), name)


@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0", "q5_1"])
def test_a_layer_computes_with_the_decoded_matrix_and_takes_the_bytes_of_its_blocks(name):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(512, 24)
    packed = GGMLLinear(layer, name)
    expected = torch.from_numpy(ggml.decode(ggml.encode(layer.weight.detach().numpy(), name), name))
    x = torch.randn(3, 512, generator=generator, requires_grad=True)
    torch.testing.assert_close(packed(x), x @ expected.T + layer.bias)
    (gradient,) = torch.autograd.grad(packed(x).sum(), x)
    torch.testing.assert_close(gradient, expected.sum(0).expand(3, -1))
    assert stored_bytes(packed) * 8 == 24 * 512 * ggml.TYPES[name].bits_per_weight + 24 * 32


def test_a_layer_says_which_format_it_took_instead_and_refuses_to_be_packed_twice():
    packed = GGMLLinear(nn.Linear(96, 4), "q4_k")
    assert packed.block_type == "q5_0" and "block_type=q5_0 instead of q4_k" in repr(packed)
    assert GGMLLinear(nn.Linear(33, 4), "q6_k").block_type == "f16"
    with pytest.raises(ConfigError, match="packed already"):
        GGMLLinear(packed)
