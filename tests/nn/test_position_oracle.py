"""Positions are those of `transformers`: rotary in both layouts, scaled speeds, T5 buckets, ALiBi slopes."""

import pytest
import torch

from minillm.nn.position import ntk_base, rotary_angles, rotate, scaled_frequencies
from minillm.nn.relative_position import alibi_slopes, relative_buckets

pytestmark = pytest.mark.oracle
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "max_position_embeddings": 64}


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_halves_are_llamas_rotation():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    query, key, positions = rand(2, 4, 5, 8), rand(2, 2, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 0, 1]])
    angles = rotary_angles(positions, 8)
    wide = torch.cat((angles, angles), dim=-1)
    theirs = llama.apply_rotary_pos_emb(query, key, wide.cos(), wide.sin())
    for x, expected in zip((query, key), theirs, strict=True):
        turned = rotate(x, angles.cos()[:, None], angles.sin()[:, None])
        torch.testing.assert_close(turned, expected, rtol=1e-12, atol=1e-14)


def test_interleaved_is_gptjs_rotation():
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    query, angles = rand(2, 5, 4, 8), rotary_angles(torch.arange(5), 8)
    expected = gptj.apply_rotary_pos_emb(query, angles.sin()[None], angles.cos()[None])
    ours = rotate(query.transpose(1, 2), angles.cos(), angles.sin(), "interleaved").transpose(1, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("scaling", "factor", "theirs"),
    [
        ("linear", 4.0, {"rope_type": "linear", "factor": 4.0}),
        (
            "llama3",
            8.0,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_scaled_speeds_are_theirs(scaling, factor, theirs):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 500.0, **theirs})
    expected, _ = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    ours = scaled_frequencies(16, 500.0, scaling, factor, trained_len=64)
    torch.testing.assert_close(ours.float(), expected, rtol=1e-6, atol=0)


def test_the_base_for_longer_texts_is_theirs():
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 1.0}
    config = transformers.LlamaConfig(**SHAPE, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=256)  # 4 times 64
    torch.testing.assert_close(scaled_frequencies(16, 500.0, "ntk", 4.0).float(), expected, rtol=1e-6, atol=0)
    assert ntk_base(500.0, 4.0, 16) == pytest.approx(500.0 * 4.0 ** (16 / 14))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (32, 100), (16, 64), (64, 1000), (8, 20)])
def test_buckets_are_t5s(n_buckets, max_distance, bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = torch.arange(-3000, 3000)
    expected = t5.T5Attention._relative_position_bucket(distances, bidirectional, n_buckets, max_distance)
    assert torch.equal(relative_buckets(distances, n_buckets, max_distance, bidirectional), expected)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 12, 20, 112])
def test_slopes_are_blooms(n_heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), n_heads, torch.float64).view(n_heads, 9)
    torch.testing.assert_close(alibi_slopes(n_heads)[:, None] * torch.arange(9), theirs, rtol=1e-6, atol=0)
