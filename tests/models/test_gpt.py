"""The decoder: both families, kernels, cache, masks, and what it refuses."""

import dataclasses

import pytest
import torch

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import model_config

VOCAB_SIZE, MAX_SEQ_LEN = 11, 16
VARIANTS = {
    "gpt2": ("gpt2", {}),
    "gpt2-grouped": ("gpt2", {"n_kv_heads": 1, "bias": False, "tie_embeddings": False}),
    "modern": ("modern", {}),
    "modern-grouped-swiglu": ("modern", {"n_kv_heads": 2, "feed_forward": "swiglu", "norm_weight": True}),
    "rotary-layer": ("gpt2", {"position": "rotary", "qk_norm": True, "logit_cap": 3.0}),
}
SMALL = {"n_layers": 2, "n_heads": 4, "d_model": 16, "zero_outputs": False}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make(variant, **settings):
    family, overrides = VARIANTS[variant]
    config = model_config(family, "tiny", VOCAB_SIZE, MAX_SEQ_LEN, **SMALL | overrides | settings)
    model = GPT(config, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in model.parameters():                       # large weights: positions and masks must matter
            parameter.mul_(10.0 if parameter.dim() == 2 else 1.0)
    return model


def some_ids(batch_size, n_tokens):
    return torch.randint(VOCAB_SIZE, (batch_size, n_tokens), generator=torch.Generator().manual_seed(n_tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_naive_and_fast_kernels_agree_in_value_and_gradient(variant):
    fast, naive = make(variant), make(variant, kernels="naive")
    results = []
    for model in (fast, naive):
        logits = model(some_ids(2, 7))
        results.append((logits, torch.autograd.grad(logits.square().mean(), list(model.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cache_gives_the_logits_of_the_whole(variant):
    model, ids = make(variant).eval(), some_ids(3, 12)
    cache = model.make_cache(batch_size=3)
    pieces = [model(part, cache) for part in ids.split([5, 3, 1, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), **EXACT)
    assert cache.length == 12


@pytest.mark.parametrize("variant", VARIANTS)
def test_left_padded_rows_are_as_if_alone(variant):
    model, lengths = make(variant).eval(), (6, 1, 4)
    rows = [some_ids(1, n) for n in lengths]
    padding = torch.tensor([6 - n for n in lengths])[:, None]
    token_ids = torch.cat([torch.nn.functional.pad(row, (6 - row.shape[1], 0), value=3) for row in rows])
    index = torch.arange(6) - padding
    logits = model(token_ids, mask=index >= 0, positions=index.clamp(min=0))
    assert logits.isfinite().all()
    for row, ids in enumerate(rows):
        torch.testing.assert_close(logits[row : row + 1, -ids.shape[1] :], model(ids), **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_tokens_change_nothing_earlier_and_earlier_ones_do(variant):
    model, ids = make(variant), some_ids(1, 8)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % VOCAB_SIZE
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before - after)[0, 5:].abs().amax(dim=-1) > 1e-6).all()


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_the_order_of_earlier_tokens_matters(variant):
    model = make(variant)
    first, second = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert (first - second)[0, -1].abs().max() > 1e-6


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1), (1, MAX_SEQ_LEN)], ids=str)
@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_edge_shapes(variant, shape):
    assert make(variant)(some_ids(*shape)).shape == (*shape, VOCAB_SIZE)


def test_too_many_positions_are_refused():
    model = make("gpt2")
    with pytest.raises(ShapeError, match="17 positions .* max_seq_len 16"):
        model(some_ids(1, 17))
    cache = model.make_cache(1, max_seq_len=4)
    with pytest.raises(ShapeError, match="cache"):
        model(some_ids(1, 5), cache)


def test_wrong_inputs_are_refused():
    model = make("gpt2")
    with pytest.raises(DataError, match="ids 0 to 10"):
        model(torch.tensor([[0, 11]]))
    with pytest.raises(ShapeError, match="token_ids"):
        model(torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match="mask"):
        model(some_ids(2, 3), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="positions"):
        model(some_ids(2, 3), positions=torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_layers": 1.5}, "n_layers is 1.5"),
        ({"n_heads": True}, "n_heads is True"),
        ({"d_ff": -1}, "d_ff is -1"),
        ({"n_heads": 3}, "not a multiple of n_heads 3"),
        ({"n_kv_heads": 3}, "not a multiple of n_kv_heads 3"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"position": "sine"}, "position is 'sine'"),
        ({"feed_forward": "elu"}, "feed_forward is 'elu'"),
        ({"kernels": "triton"}, "kernels is 'triton'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"logit_cap": float("nan")}, "logit_cap is nan"),
        ({"rotary_base": 0.0}, "rotary_base is 0.0"),
        ({"qk_norm": True, "max_score": -1.0}, "max_score is -1.0"),
        ({"max_score": 8.0}, "with qk_norm"),
        ({"position": "rotary", "n_heads": 16}, "even head width"),
    ],
)
def test_config_refuses(settings, message):
    good = {"vocab_size": 11, "max_seq_len": 8, "n_layers": 1, "n_heads": 4, "d_model": 16}
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**good | settings)


def test_config_is_frozen_and_goes_through_plain_values():
    config = make("modern-grouped-swiglu").config
    assert GPTConfig(**dataclasses.asdict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 3


def test_same_generator_same_weights():
    config = model_config("gpt2", "nano", VOCAB_SIZE, MAX_SEQ_LEN)
    models = [GPT(config, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_initial_spread_of_gpt2_weights():
    model = GPT(model_config("gpt2", "tiny", 500, 64), torch.Generator().manual_seed(0))
    block = model.blocks[1]
    for layer in (block.attention.qkv, block.feed_forward.up, model.token_embedding):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
    for layer in (block.attention.output, block.feed_forward.down):
        assert layer.weight.std().item() == pytest.approx(0.02 / (2 * 4) ** 0.5, rel=0.03)


def test_modern_model_starts_with_no_opinion_and_still_learns():
    model = GPT(model_config("modern", "nano", VOCAB_SIZE, MAX_SEQ_LEN), torch.Generator().manual_seed(0))
    logits = model(some_ids(2, 5))
    assert (logits == 0).all()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), some_ids(2, 5).flatten()).backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_logits_stay_below_the_cap():
    model = make("modern", logit_cap=2.0)
    with torch.no_grad():
        model.head.weight.mul_(100)
    assert 1.5 < model(some_ids(2, 9)).abs().max() <= 2.0


def test_dropout_only_while_training():
    model, ids = make("gpt2", dropout=0.5), some_ids(1, 6)
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_tied_head_is_the_embedding():
    model = make("gpt2")
    assert model.head is None
    hidden = model.hidden(some_ids(1, 3))
    assert torch.equal(model.logits(hidden), hidden @ model.token_embedding.weight.T)


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_a_small_model_learns_a_sequence_by_heart(variant):
    family, _ = VARIANTS[variant]
    model = GPT(model_config(family, "nano", VOCAB_SIZE, MAX_SEQ_LEN), torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = some_ids(4, 13)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8, "four sequences whose first token does not tell them apart need some luck, not more"


def test_token_shift_adds_a_share_of_the_token_before():
    model = make("modern", token_shift=True)
    plain = make("modern", token_shift=False)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "share_of_previous"})
    with torch.no_grad():
        model.share_of_previous.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(1))
        ids = some_ids(2, 5)
        x, _ = model.embed(ids, 0, None)
        vectors, _ = plain.embed(ids, 0, None)
        expected = vectors.clone()
        for place in range(1, 5):
            expected[:, place] += model.share_of_previous * vectors[:, place - 1]
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


def test_no_score_passes_max_score_and_the_largest_is_reached():
    attention = make("modern", max_score=5.0, position="learned").blocks[0].attention
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        attention.qkv.weight[16:32] = attention.qkv.weight[:16]    # keys equal to queries: each finds itself
        query, key, _ = attention.queries_keys_values(x)
    scores = query @ key.mT / 4**0.5
    assert float(scores.diagonal(dim1=-2, dim2=-1).max()) == pytest.approx(5.0, rel=1e-4)
    assert scores.abs().max() <= 5.0
