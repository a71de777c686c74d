"""How parameters are cut: every element held once, and the plan knows every feature of the decoder."""

import pytest
import torch

from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.layout import Split, check_tensor_parallel, join_slices, slice_of, tensor_layout

SMALL = {"vocab_size": 24, "max_seq_len": 12, "n_layers": 2, "n_heads": 4, "d_model": 16}
KINDS = {
    "gpt2": GPTConfig(**SMALL, bias=True),
    "llama": GPTConfig(
        **SMALL, n_kv_heads=2, norm="rms", position="rotary", feed_forward="swiglu", d_ff=32, tie_embeddings=False
    ),
    "modern": GPTConfig(
        **SMALL, n_kv_heads=2, norm="rms", position="rotary", feed_forward="relu2", qk_norm=True, token_shift=True,
        max_score=6.0, logit_cap=15.0, embedding_norm=True, tie_embeddings=False,
    ),
    "falcon": GPTConfig(**SMALL, n_kv_heads=4, position="alibi", parallel_block=True, norm_bias=True),
}


@pytest.mark.parametrize("split", [None, Split(0), Split(1), Split(1, (8, 4, 4)), Split(0, (4, 4))])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_slices_joined_are_the_whole(split, size):
    full = torch.arange(8 * 16).view(8, 16)
    parts = [slice_of(full, split, index, size) for index in range(size)]
    assert torch.equal(join_slices(parts, split), full)
    if split is not None:
        assert sorted(torch.cat([part.flatten() for part in parts]).tolist()) == list(range(8 * 16))


def test_fused_sections_keep_heads_together():
    """Head h of queries, keys and values is on the same rank; a cut without sections would mix queries with values."""
    rows = torch.tensor([10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33])
    assert slice_of(rows, Split(0, (4, 4, 4)), 1, 2).tolist() == [12, 13, 22, 23, 32, 33]
    assert slice_of(rows, Split(0), 1, 2).tolist() != [12, 13, 22, 23, 32, 33]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_knows_each_parameter_and_cuts_the_big_ones(kind):
    config = KINDS[kind]
    model = GPT(config, torch.Generator().manual_seed(0))
    layout = tensor_layout(model)
    assert layout == tensor_layout(config)
    assert list(layout) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        small = parameter.dim() == 1 and ".qkv." not in name and ".up." not in name
        assert (layout[name] is None) == (small or "position" in name), name


def test_bad_requests():
    with pytest.raises(ShapeError, match="make 6, dimension 0"):
        slice_of(torch.zeros(8), Split(0, (4, 2)), 0, 2)
    with pytest.raises(ShapeError, match="into 3 equal parts"):
        slice_of(torch.zeros(8), Split(0), 0, 3)
    with pytest.raises(ShapeError, match="not one of 2 equal shares"):
        join_slices([torch.zeros(3), torch.zeros(3)], Split(0, (4, 4)))
    experts = GPTConfig(**SMALL, n_experts=4, n_active_experts=2)
    with pytest.raises(ConfigError, match="mixture of 4 experts"):
        tensor_layout(experts)
    for name, count in {"n_heads": 2, "n_kv_heads": 2, "d_ff": 6, "vocab_size": 22}.items():
        with pytest.raises(ConfigError, match=f"tp=4 does not divide {name}"):
            check_tensor_parallel(GPTConfig(**SMALL | {name: count}), 4)
    model = GPT(KINDS["gpt2"])
    model.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="does not know the parameter 'extra'"):
        tensor_layout(model)
