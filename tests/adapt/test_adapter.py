"""Adapters: counts, places and values against a model written out, gradients, freezing, saving, misuse."""

import copy

import pytest
import torch
from helpers.adapt_models import disturb, ids_of, small_bert, small_gpt, small_t5
from helpers.parity import randomized
from torch import nn
from torch.nn import functional as F

from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.adapter import ACTIVATIONS, AdapterConfig, Bottleneck, adapter_count
from minillm.errors import CheckpointError, ConfigError
from minillm.infer.generate import generate
from minillm.infer.sampling import GREEDY
from minillm.models.bert_heads import TextClassifier
from minillm.models.transformer import Transformer, TransformerConfig

IDS = ids_of((3, 9), 5)
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}


def small_transformer(**settings):
    config = TransformerConfig(vocab_size=23, max_seq_len=24, n_layers=2, n_heads=2, d_model=12, **settings)
    return randomized(Transformer(config, seeded())).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# name -> (model, width, parts of all layers that add into the residual stream, layers)
MODELS = {
    "gpt": (lambda: small_gpt(bias=True), 16, 4, 2),
    "llama": (lambda: small_gpt(**LLAMA), 16, 4, 2),
    "falcon": (lambda: small_gpt(position="rotary", parallel_block=True), 16, 4, 2),
    "mixtral": (lambda: small_gpt(**LLAMA, n_experts=3, n_active_experts=2), 16, 4, 2),
    "bert": (small_bert, 16, 4, 2),
    "albert": (lambda: small_bert(kind="albert", d_embedding=8), 16, 2, 1),
    "t5": (small_t5, 12, 2 * 2 + 2 * 3, 4),
    "transformer": (small_transformer, 12, 2 * 2 + 2 * 3, 4),
}
WITH_SOURCE = ("t5", "transformer")


def run(model):
    return model(IDS, IDS[:, :5]) if hasattr(model, "decoder") else model(IDS)


@pytest.fixture(params=MODELS)
def case(request):
    make, *sizes = MODELS[request.param]
    return make().eval(), *sizes


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_count(case, placement):
    model, width, n_parts, n_layers = case
    n_adapters = n_parts if placement == "houlsby" else n_layers
    adapted = adapt(model, AdapterConfig(bottleneck=3, placement=placement), generator=seeded())
    n_trained = sum(p.numel() for p in adapted.trainable_parameters().values())
    assert n_trained == adapter_count(width, 3, n_adapters) == n_adapters * (2 * width * 3 + width + 3)
    assert n_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_houlsby_count_of_the_paper():
    """2 L (2 d m + d + m), and 4 d a layer for the two norms with scale and shift."""
    n_layers, d, m = 2, 16, 5
    expected = 2 * n_layers * (2 * d * m + d + m)
    model = small_bert()
    assert adapt(model, AdapterConfig(bottleneck=m)).count().trainable == expected
    with_norms = adapt(small_bert(), AdapterConfig(bottleneck=m, train_norms=True))
    assert with_norms.count().trainable == expected + 4 * d * n_layers


def test_the_norm_of_the_attention_to_the_source_is_trained_too():
    model = small_t5()
    adapted = adapt(model, AdapterConfig(bottleneck=3, train_norms=True))
    norms = {name for name in adapted.trainable_parameters() if ".adapter." not in name}
    kinds = {"encoder": ("attention", "feed_forward"), "decoder": ("attention", "source", "feed_forward")}
    assert norms == {f"{stack}.{layer}.{kind}_norm.weight"
                     for stack, parts in kinds.items() for layer in range(2) for kind in parts}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_adapters_are_in_the_mode_of_the_model(training):
    model = small_gpt(bias=True).train(training)
    adapt(model, AdapterConfig())
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("train_norms", [False, True])
@torch.no_grad()
def test_near_identity_at_first_and_the_base_bit_for_bit_when_disabled(case, placement, train_norms):
    model, *_ = case
    out, state = run(model), {name: value.clone() for name, value in model.state_dict().items()}
    config = AdapterConfig(bottleneck=3, placement=placement, train_norms=train_norms)
    adapted = adapt(model, config, generator=seeded())
    first = (run(model) - out).abs().max()
    assert 0.0 < first < 0.01 * out.abs().max()
    disturb(adapted)
    changed = run(model)
    assert (changed - out).abs().max() > 100 * first
    with adapted.disable():
        assert torch.equal(run(model), out)
    assert torch.equal(run(model), changed)
    adapted.remove()
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(run(model), out) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@torch.no_grad()
def test_zero_up_starts_as_the_base_bit_for_bit(case, placement):
    model, *_ = case
    out = run(model)
    adapt(model, AdapterConfig(bottleneck=3, placement=placement, zero_up=True), generator=seeded())
    assert torch.equal(run(model), out)


def bottleneck(weights, name, h, f=F.relu):
    """W_up f(W_down h + b_down) + b_up by its formula."""
    w = {key: weights[f"{name}.adapter.{key}"] for key in ("down.weight", "down.bias", "up.weight", "up.bias")}
    return f(h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]


def gpt_written_out(base, weights, placement):
    """The layers of a GPT with adapters, by the formulas of the paper's figure 2."""
    x, _ = base.embed(IDS, 0, None)
    for index, block in enumerate(base.blocks):
        name = f"blocks.{index}"
        h = block.attention(block.attention_norm(x), causal=True)
        if placement == "houlsby":
            h = h + bottleneck(weights, f"{name}.attention.output", h)
        x = x + h
        h = block.feed_forward(block.feed_forward_norm(x))
        adapted = bottleneck(weights, f"{name}.feed_forward", h) if placement == "houlsby" else (
            bottleneck(weights, name, h + x))  # fmt: skip
        x = x + (h + adapted)
    return base.logits(base.final_norm(x))


def bert_written_out(base, weights, placement):
    x = base.embed(IDS)
    for index, layer in enumerate(base.layers):
        name = f"layers.{index}"
        h = layer.attention(x)
        if placement == "houlsby":
            h = h + bottleneck(weights, f"{name}.attention.output", h)
        x = layer.attention_norm(x + h)
        h = layer.feed_forward(x)
        read = h if placement == "houlsby" else layer.feed_forward_norm(h + x)
        x = layer.feed_forward_norm(x + (h + bottleneck(weights, f"{name}.feed_forward", read)))
    return base.logits(x)


def t5_encoder_written_out(base, weights, placement):
    x, bias = base.embed(IDS), base.encoder_bias(IDS.shape[1])
    for index, layer in enumerate(base.encoder):
        name = f"encoder.{index}"
        h = layer.attention(layer.attention_norm(x), bias=bias)
        x = x + h + (bottleneck(weights, f"{name}.attention.output", h) if placement == "houlsby" else 0)
        h = layer.feed_forward(layer.feed_forward_norm(x))
        read, at = (h, f"{name}.feed_forward") if placement == "houlsby" else (x + h, name)
        x = x + h + bottleneck(weights, at, read)
    return base.encoder_norm(x)


WRITTEN_OUT = {
    "gpt": (lambda: small_gpt(bias=True), gpt_written_out, lambda model: model(IDS)),
    "bert": (small_bert, bert_written_out, lambda model: model(IDS)),
    "t5": (small_t5, t5_encoder_written_out, lambda model: model.encode(IDS)),
}


@pytest.mark.parametrize("kind", WRITTEN_OUT)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@torch.no_grad()
def test_equal_to_the_model_written_out(kind, placement):
    make, written_out, call = WRITTEN_OUT[kind]
    base, model = make(), make()
    adapted = adapt(model, AdapterConfig(bottleneck=3, placement=placement, activation="relu"), generator=seeded())
    disturb(adapted)
    weights = adapted.trainable_parameters()
    torch.testing.assert_close(call(model), written_out(base, weights, placement), rtol=1e-12, atol=1e-12)
    other = written_out(base, weights, placement) - call(base)
    assert other.abs().max() > 0.01                                # the adapters do matter in this comparison


def wrong_no_skip(adapter, h):
    return adapter(h)


def wrong_no_bias(adapter, h):
    return h + F.relu(h @ adapter.down.weight.T) @ adapter.up.weight.T


def wrong_no_nonlinearity(adapter, h):
    return h + adapter.up(adapter.down(h))


def wrong_after_the_sum(adapter, h):
    return h + adapter(h + 1.0)


@pytest.mark.parametrize("wrong", [wrong_no_skip, wrong_no_bias, wrong_no_nonlinearity, wrong_after_the_sum])
@torch.no_grad()
def test_the_comparison_notices_wrong_adapters(wrong, monkeypatch):
    from minillm.adapt.adapter import Behind

    base, model = small_gpt(bias=True), small_gpt(bias=True)
    adapted = adapt(model, AdapterConfig(bottleneck=3, activation="relu"), generator=seeded())
    disturb(adapted)
    mro_forward = lambda self, *args, **kwargs: wrong(self.adapter, super(Behind, self).forward(*args, **kwargs))  # noqa: E731
    monkeypatch.setattr(Behind, "forward", mro_forward)
    expected = gpt_written_out(base, adapted.trainable_parameters(), "houlsby")
    assert (model(IDS) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_gradients_only_where_they_belong_and_frozen_numbers_stay(case, placement):
    model, *_ = case
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, AdapterConfig(bottleneck=3, placement=placement), generator=seeded())
    trained = adapted.trainable_parameters()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(run(model).flatten(0, 1), IDS[:, : 5 if hasattr(model, "decoder") else 9].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all((p.grad is not None) == (name in trained) for name, p in model.named_parameters())
        optimizer.step()
        losses.append(loss.item())
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before) and losses[-1] < losses[0]
    assert after.keys() - before.keys() == set(trained)


def test_gradient_by_finite_differences():
    adapter = Bottleneck(4, AdapterConfig(bottleneck=2, initial_std=0.5), seeded()).double()
    x = torch.randn(3, 4, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adapter, (x,))
    names, values = zip(*adapter.named_parameters(), strict=True)
    call = lambda *given: torch.func.functional_call(adapter, dict(zip(names, given, strict=True)), (x.detach(),))  # noqa: E731
    assert torch.autograd.gradcheck(call, values)


def test_two_matrices_at_zero_would_never_learn_and_are_refused():
    adapter = Bottleneck(4, AdapterConfig(bottleneck=2, zero_up=True), seeded())
    nn.init.zeros_(adapter.down.weight)
    adapter(torch.ones(3, 4)).square().add(1.0).sum().backward()
    assert not adapter.down.weight.grad.any() and not adapter.up.weight.grad.any()
    with pytest.raises(ConfigError, match="zero_up"):
        AdapterConfig(initial_std=0.0)


def test_initial_values_are_cut_off_and_drawn_from_the_generator():
    config = AdapterConfig(bottleneck=100, initial_std=0.05)
    state = torch.get_rng_state()
    one, same, other = (Bottleneck(200, config, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.up.weight, same.up.weight) and not torch.equal(one.up.weight, other.up.weight)
    weight = one.down.weight
    assert weight.abs().max() <= 0.1 and not one.down.bias.any() and not one.up.bias.any()
    # a normal cut off at two standard deviations keeps 0.8796 of the standard deviation
    assert abs(weight.std().item() / 0.05 - 0.8796) < 0.02


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_cached_generation_and_padding(placement):
    """Texts of unequal length, with a cache and without, together and alone."""
    model = small_gpt(**LLAMA)
    adapted = adapt(model, AdapterConfig(bottleneck=3, placement=placement), generator=seeded())
    disturb(adapted)
    prompts = [IDS[0, :4].tolist(), IDS[1, :1].tolist(), IDS[2, :7].tolist()]
    written = generate(model, prompts, 8, GREEDY)
    assert written == generate(model, prompts, 8, GREEDY, use_cache=False)
    assert written == [generate(model, [prompt], 8, GREEDY)[0] for prompt in prompts]
    with adapted.disable():
        assert written != generate(model, prompts, 8, GREEDY)


@pytest.mark.parametrize("config", [
    AdapterConfig(bottleneck=3),
    AdapterConfig(bottleneck=3, placement="pfeiffer", train_norms=True),
    AdapterConfig(bottleneck=3, train_norms=True, heads=("head",), activation="silu"),
], ids=["houlsby", "pfeiffer", "heads"])  # fmt: skip
def test_saved_and_loaded(config, tmp_path):
    def classifier():
        return TextClassifier(small_bert(), 2, generator=seeded()).double().eval()

    model = classifier()
    adapted = adapt(model, config, generator=seeded())
    disturb(adapted)
    adapted.save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    numbers = sum(p.numel() for p in adapted.trainable_parameters().values())
    assert size < 8 * numbers + 6000
    again = classifier()
    loaded = load_delta(again, tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        assert torch.equal(again(IDS), model(IDS))
        with loaded.disable():
            assert torch.equal(again(IDS), classifier()(IDS))
    with pytest.raises(CheckpointError, match="another base|fingerprint|base"):
        load_delta(TextClassifier(small_bert(1), 2, generator=seeded()).double(), tmp_path)


def test_number_formats_and_copies():
    model = small_gpt(bias=True).to(torch.bfloat16)
    adapted = adapt(model, AdapterConfig(bottleneck=3), generator=seeded())
    assert {p.dtype for p in adapted.trainable_parameters().values()} == {torch.float32}
    assert model(IDS).dtype == torch.bfloat16
    model(IDS).float().sum().backward()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(IDS), model(IDS))
    names = [name for name, _ in model.named_parameters() if "adapter" in name]
    assert names == list(adapted.trainable_parameters())


def test_misuse():
    model = small_gpt(bias=True)
    state = list(model.state_dict())
    config = AdapterConfig(bottleneck=3)
    adapted = adapt(model, config)
    with pytest.raises(ConfigError, match="adapted already"):
        adapt(model, config)
    with pytest.raises(ConfigError, match="has an adapter already"):
        config.inject(model, "second", None)
    with pytest.raises(ConfigError, match="adapted already"):
        adapted.add(config, "second")
    with pytest.raises(ConfigError, match="cannot be merged"):
        adapted.merge()
    adapted.remove()
    assert list(model.state_dict()) == state
    with pytest.raises(ConfigError, match="no layers"):
        adapt(nn.Sequential(nn.Linear(2, 2)), config)
    with pytest.raises(ConfigError, match="trained by the method already"):
        adapt(model, AdapterConfig(train_norms=True, heads=("blocks.0.attention_norm",)))
    assert list(model.state_dict()) == state and torch.isfinite(run(model)).all()
    for wrong in ({"bottleneck": 0}, {"bottleneck": 2.0}, {"placement": "both"}, {"activation": "softmax"},
                  {"initial_std": -1.0}, {"initial_std": float("inf")}, {"initial_std": float("nan")}):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AdapterConfig(**wrong)
    for activation in ACTIVATIONS:
        assert adapt(model, AdapterConfig(activation=activation)).remove() is model
