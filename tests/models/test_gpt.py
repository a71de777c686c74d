"""The decoder: both families, kernels, cache, masks, and what it refuses."""

import dataclasses

import pytest
import torch

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.infer.generate import generate
from minillm.infer.sampling import GREEDY
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import model_config
from minillm.nn.position import rotary_rows, sinusoidal_positions

VOCAB_SIZE, MAX_SEQ_LEN = 11, 16
VARIANTS = {
    "gpt2": ("gpt2", {}),
    "gpt2-grouped": ("gpt2", {"n_kv_heads": 1, "bias": False, "tie_embeddings": False}),
    "modern": ("modern", {}),
    "modern-grouped-swiglu": ("modern", {"n_kv_heads": 2, "feed_forward": "swiglu", "norm_weight": True}),
    "bloom": ("bloom", {}),
    "bloom-window": ("bloom", {"window": 3, "n_kv_heads": 2}),
    "sinusoidal": ("gpt2", {"position": "sinusoidal"}),
    "nowhere": ("gpt2", {"position": "none"}),
    "llama-window": ("llama", {"window": 3, "n_kv_heads": 2, "rotary_layout": "interleaved"}),
    "llama-scaled": ("llama", {"rotary_scaling": "llama3", "rotary_factor": 2.0, "rotary_base": 3.0}),
    "falcon": ("falcon", {}),
    "falcon-rms": ("falcon", {"norm": "rms", "n_kv_heads": 2, "n_experts": 3, "n_active_experts": 2}),
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


@pytest.mark.parametrize("variant", ["gpt2", "modern", "bloom", "sinusoidal", "llama-window"])
def test_the_order_of_earlier_tokens_matters(variant):
    model = make(variant)
    first, second = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert (first - second)[0, -1].abs().max() > 1e-6


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1), (1, MAX_SEQ_LEN)], ids=str)
@pytest.mark.parametrize("variant", ["gpt2", "modern", "bloom-window", "llama-window", "sinusoidal"])
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
    with pytest.raises(DataError, match="run from -1 to 0"):
        model(torch.tensor([[0, -1]]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_masks_of_ones_and_zeros_are_refused(dtype):
    with pytest.raises(ShapeError, match="expected bool with True where attention is allowed"):
        make("gpt2")(some_ids(2, 3), mask=torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("variant", ["gpt2", "modern", "sinusoidal"])
@pytest.mark.parametrize(
    ("positions", "message"),
    [([[0, 16]], "run from 0 to 16, the model has 0 to 15"), ([[-1, 0]], "run from -1"), ([[0.0, 1.0]], "integers")],
)
def test_positions_outside_the_context_are_refused(variant, positions, message):
    with pytest.raises(ShapeError, match=message):
        make(variant)(some_ids(1, 2), positions=torch.tensor(positions))


@pytest.mark.parametrize("variant", ["gpt2", "modern", "bloom"])
def test_a_cache_serves_batches_of_its_own_size_only(variant):
    model = make(variant).eval()
    cache = model.make_cache(batch_size=3)
    model(some_ids(3, 4), cache)
    before = cache.keys.clone()
    for batch_size in (1, 2, 4):
        with pytest.raises(ShapeError, match=f"made for 3 rows and cannot serve {batch_size}"):
            model(some_ids(batch_size, 1), cache)
    assert cache.length == 4 and torch.equal(cache.keys, before)
    cache.reset()
    torch.testing.assert_close(model(some_ids(3, 5), cache), model(some_ids(3, 5)), **EXACT)


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
        ({"position": "sinusoidal", "d_model": 15, "n_heads": 3}, "even width"),
        ({"rotary_layout": "pairs"}, "rotary_layout is 'pairs'"),
        ({"position": "rotary", "rotary_scaling": "yarn"}, "scaling is 'yarn'"),
        ({"position": "rotary", "rotary_scaling": "linear", "rotary_factor": 0.5}, "factor is 0.5"),
        ({"position": "rotary", "rotary_factor": 2.0}, "factor is 2.0 with scaling 'none'"),
        ({"rotary_scaling": "linear", "rotary_factor": 2.0}, "with 'learned' positions"),
        ({"window": -1}, "window is -1"),
        ({"window": True}, "window is True"),
        ({"rotary_trained_len": 1.5}, "rotary_trained_len is 1.5"),
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


@pytest.mark.parametrize("kernels", ["torch", "naive"])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_nothing_is_seen_beyond_the_windows_of_all_layers(family, kernels):
    settings = SMALL | {"window": 3, "kernels": kernels}
    model = GPT(model_config(family, "tiny", VOCAB_SIZE, MAX_SEQ_LEN, **settings)).double()
    ids = some_ids(1, 12)
    changed = ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % VOCAB_SIZE
    moved = (model(ids) - model(changed))[0].abs().amax(dim=-1) > 0
    assert moved.tolist() == [4 <= place <= 4 + 2 * 2 for place in range(12)]  # two layers, each two places back


@pytest.mark.parametrize("variant", ["llama-window", "bloom-window"])
def test_a_window_longer_than_the_text_changes_nothing(variant):
    whole, wide = make(variant, window=0), make(variant, window=7)
    wide.load_state_dict(whole.state_dict())
    torch.testing.assert_close(wide(some_ids(2, 7)), whole(some_ids(2, 7)), **EXACT)
    assert (wide(some_ids(2, 8)) - whole(some_ids(2, 8)))[:, -1].abs().max() > 1e-6


def test_reordered_weights_are_the_same_model_in_the_other_layout():
    halves, interleaved = make("llama-scaled"), make("llama-scaled", rotary_layout="interleaved")
    state = halves.state_dict()
    for name, weight in state.items():
        if name.endswith("qkv.weight"):
            query, key, value = weight.split(halves.blocks[0].attention.sections)
            state[name] = torch.cat([rotary_rows(rows, 4, "interleaved") for rows in (query, key)] + [value])
    interleaved.load_state_dict(state)
    torch.testing.assert_close(interleaved(some_ids(2, 7)), halves(some_ids(2, 7)), **EXACT)


def test_linear_scaling_reads_twice_as_far_with_the_angles_of_training():
    trained = make("llama-scaled", rotary_scaling="none", rotary_factor=1.0)
    longer = make("llama-scaled", rotary_scaling="linear", rotary_factor=2.0)
    longer.load_state_dict(trained.state_dict())
    ids, positions = some_ids(2, 6), torch.arange(6).expand(2, 6)
    torch.testing.assert_close(longer(ids, positions=2 * positions), trained(ids, positions=positions), **EXACT)


def test_one_layer_without_positions_knows_a_set_only():
    model = make("nowhere", n_layers=1)
    first, second = model(torch.tensor([[1, 2, 5, 3]])), model(torch.tensor([[5, 1, 2, 3]]))
    torch.testing.assert_close(first[:, -1], second[:, -1], **EXACT)


def test_sines_are_added_to_token_vectors_times_the_root_of_the_width():
    model = make("sinusoidal")
    x, rotation = model.embed(some_ids(2, 3), 2, None)
    sines = sinusoidal_positions(torch.arange(2, 5), 16)
    expected = 4.0 * model.token_embedding.weight[some_ids(2, 3)] + sines
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
    assert rotation is None


def test_the_norm_of_the_embedding_comes_before_the_first_block():
    model = make("bloom")
    with torch.no_grad():
        model.embedding_norm.weight.uniform_(0.5, 2.0)
        x, _ = model.embed(some_ids(2, 3), 0, None)
    norm, vectors = model.embedding_norm, model.token_embedding.weight[some_ids(2, 3)]
    expected = torch.nn.functional.layer_norm(vectors, (16,), norm.weight, norm.bias)
    torch.testing.assert_close(x, expected, **EXACT)


@pytest.mark.parametrize("variant", ["bloom-window", "llama-window", "llama-scaled", "sinusoidal", "nowhere"])
def test_generation_with_a_cache_is_generation_without(variant):
    model = make(variant).float().eval()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    with_cache, without = (generate(model, prompts, 10, GREEDY, use_cache=use) for use in (True, False))
    assert with_cache == without == [generate(model, [prompt], 10, GREEDY)[0] for prompt in prompts]


@pytest.mark.parametrize("kernels", ["torch", "naive"])
def test_a_mixture_generates_with_its_cache_what_it_computes_at_once(kernels):
    config = model_config("mixtral", "nano", 13, 12, n_experts=4, capacity_factor=0.5, kernels=kernels)
    model = GPT(config, torch.Generator().manual_seed(0)).double().eval()
    ids, cache = torch.randint(13, (2, 9), generator=torch.Generator().manual_seed(1)), model.make_cache(2, 9)
    parts = [model(ids[:, :4], cache), model(ids[:, 4:5], cache), model(ids[:, 5:], cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n_experts": 2, "n_active_experts": 3}, "3 of 2 experts"),
        ({"n_experts": 2, "n_active_experts": 0}, "0 of 2 experts"),
        ({"n_experts": 0, "n_active_experts": 1}, "1 of 0 experts"),
        ({"n_experts": 0, "n_active_experts": 0, "capacity_factor": 1.0}, "0 of 0 experts"),
        ({"n_experts": 2.0}, "n_experts is 2.0"),
    ],
)
def test_experts_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        model_config("mixtral", "nano", 13, 12, **settings)


def test_both_parts_of_a_parallel_block_read_the_same_normalised_vectors():
    block = make("falcon").blocks[0]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = torch.rand(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotation = angles.cos(), angles.sin()
    normed = torch.nn.functional.layer_norm(x, (16,), block.attention_norm.weight, block.attention_norm.bias)
    expected = x + block.attention(normed, causal=True, rotation=rotation) + block.feed_forward(normed)
    torch.testing.assert_close(block(x, causal=True, rotation=rotation), expected, **EXACT)
    assert block.feed_forward_norm is None


def test_norms_of_falcon_have_biases_and_its_maps_none():
    names = {name.rpartition(".")[2] for name, _ in make("falcon").named_parameters() if "norm" in name}
    others = {name for name, _ in make("falcon").named_parameters() if "norm" not in name}
    assert names == {"weight", "bias"} and not any(name.endswith("bias") for name in others)


def test_a_parallel_block_drops_what_its_parts_add():
    block = make("falcon", dropout=0.25).blocks[0]
    x = torch.ones(8, 9, 16, dtype=torch.float64) * torch.arange(16)
    parts = [block.attention(block.attention_norm(x)), block.feed_forward(block.attention_norm(x))]
    torch.testing.assert_close(block.eval()(x), x + sum(parts), **EXACT)
    torch.manual_seed(0)
    added = block.train()(x) - x
    kept = [(1 / 0.75) * (left * parts[0] + right * parts[1]) for left in (0, 1) for right in (0, 1)]
    nearest = torch.stack([(added - one).abs() for one in kept]).amin(dim=0)
    assert nearest.max() < 1e-9 and (added == 0).any()
