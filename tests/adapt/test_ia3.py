"""(IA)^3: what is multiplied, counts, exact merging and unmerging, gradients, saving, misuse."""

import copy

import pytest
import torch
from helpers.adapt_models import disturb, ids_of, small_bert, small_gpt, small_t5
from helpers.parity import assert_near
from torch import nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.ia3 import PEFT_SETTINGS, IA3Config
from minillm.errors import CheckpointError, ConfigError
from minillm.infer.generate import generate
from minillm.infer.sampling import GREEDY
from minillm.models.bert_heads import TextClassifier

IDS = ids_of((3, 9), 5)
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
# name -> (model, how many numbers: l_k + l_v + l_ff for each layer)
MODELS = {
    "gpt": (lambda: small_gpt(bias=True, d_ff=40), 2 * (16 + 16 + 40)),
    "llama": (lambda: small_gpt(**LLAMA, d_ff=24), 2 * (8 + 8 + 24)),
    "falcon": (lambda: small_gpt(position="rotary", parallel_block=True, n_kv_heads=1, d_ff=40), 2 * (4 + 4 + 40)),
    "mixtral": (lambda: small_gpt(**LLAMA, n_experts=3, n_active_experts=2, d_ff=24), 2 * (8 + 8 + 3 * 24)),
    "bert": (lambda: small_bert(d_ff=40), 2 * (16 + 16 + 40)),
    "albert": (lambda: small_bert(kind="albert", d_embedding=8, d_ff=40), 16 + 16 + 40),
    "t5": (lambda: small_t5(d_ff=20), 2 * (8 + 8 + 20) + 2 * (2 * (8 + 8) + 20)),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(model):
    return model(IDS, IDS[:, :5]) if hasattr(model, "decoder") else model(IDS)


@pytest.fixture(params=MODELS)
def case(request):
    make, count = MODELS[request.param]
    return make().eval(), count


@torch.no_grad()
def test_base_at_first_and_when_disabled_merged_and_unmerged(case):
    model, count = case
    out, state = run(model), {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, IA3Config())
    assert torch.equal(run(model), out)
    assert adapted.count().trainable == count
    disturb(adapted)
    changed = run(model)
    assert (changed - out).abs().max() > 0.02
    with adapted.disable():
        assert torch.equal(run(model), out)
    adapted.merge()
    torch.testing.assert_close(run(model), changed, rtol=1e-11, atol=1e-12)
    with adapted.disable():
        assert torch.equal(run(model), out)
    with pytest.raises(ConfigError, match="merged"):
        adapted.merge()
    adapted.unmerge()
    assert torch.equal(run(model), changed)
    adapted.merge()
    adapted.remove()
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(run(model), out)


@torch.no_grad()
def test_unmerging_keeps_what_dividing_loses():
    """Zeros in the vectors, and the last digits: `peft` divides by l + 1e-8."""
    model = small_gpt(bias=True)
    weight = model.blocks[0].attention.qkv.weight.clone()
    adapted = adapt(model, IA3Config())
    disturb(adapted)
    adapted.trainable_parameters()["blocks.0.attention.qkv.ia3.key"][3] = 0.0
    adapted.merge()
    merged = model.blocks[0].attention.qkv.weight.clone()
    vector = model.blocks[0].attention.qkv.ia3.of_outputs()[:, None]
    divided = merged / (vector + 1e-8)
    adapted.unmerge()
    assert torch.equal(model.blocks[0].attention.qkv.weight, weight)
    there = vector[:, 0] != 0
    assert (divided - weight).abs().max() > 0.1 and not torch.equal(divided[there], weight[there])


def split(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(-2, -3)


@pytest.mark.parametrize("kind", ["gpt", "gated"])
@torch.no_grad()
def test_equal_to_the_model_written_out(kind):
    """Section 3.3 of the paper: softmax(Q (l_k K)^T / sqrt(d)) (l_v V) and (l_ff * f(W1 x)) W2, without rotation."""
    settings = {"bias": True} if kind == "gpt" else {"bias": True, "feed_forward": "geglu", "n_kv_heads": 2}
    base, model = small_gpt(**settings), small_gpt(**settings)
    adapted = adapt(model, IA3Config())
    disturb(adapted)
    vectors = adapted.trainable_parameters()
    x, _ = base.embed(IDS, 0, None)
    for index, block in enumerate(base.blocks):
        at = f"blocks.{index}"
        query, key, value = block.attention.qkv(block.attention_norm(x)).split(block.attention.sections, dim=-1)
        key = split(key * vectors[f"{at}.attention.qkv.ia3.key"], block.attention.n_kv_heads)
        value = split(value * vectors[f"{at}.attention.qkv.ia3.value"], block.attention.n_kv_heads)
        groups = 4 // block.attention.n_kv_heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = split(query, 4) @ key.mT / 2.0
        scores = scores.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + block.attention.output(mixed)
        part = block.feed_forward
        read = block.feed_forward_norm(x)
        inner = F.gelu(part.gate(read), approximate="tanh") if part.gate else F.gelu(part.up(read), approximate="tanh")
        inner = vectors[f"{at}.feed_forward.down.ia3.input"] * inner
        x = x + part.down(inner * part.up(read) if part.gate else inner)
    expected = base.logits(base.final_norm(x))
    assert_near(model(IDS), expected, 1e-12)
    # what the comparison would notice: vectors of other parts, or in other places
    for wrong in (IA3Config(parts=("query", "key")), IA3Config(inputs=("attention.output",))):
        other = small_gpt(**settings)
        delta = adapt(other, wrong)
        disturb(delta)
        assert (other(IDS) - expected).abs().max() > 0.02


@torch.no_grad()
def test_a_vector_on_the_queries_is_the_same_as_one_on_the_keys():
    """(l q) k = q (l k): the vector that `peft` puts on GPT-2's queries adds nothing that the keys' vector cannot do.
    With rotary positions between them it is another model."""
    for settings, same in (({"bias": True}, True), ({"position": "rotary"}, False)):
        outputs = []
        for part in ("query", "key"):
            model = small_gpt(**settings)
            disturb(adapt(model, IA3Config(parts=(part,))))        # the same numbers
            outputs.append(model(IDS))
        difference = (outputs[0] - outputs[1]).abs().max()
        assert difference < 1e-12 if same else difference > 0.01


@torch.no_grad()
def test_biases_of_keys_and_values_are_multiplied_too():
    model = small_gpt(bias=True)
    layer = model.blocks[0].attention.qkv
    x = torch.randn(5, 16, generator=seeded(), dtype=torch.float64)
    query, key, value = layer(x).chunk(3, -1)
    adapted = adapt(model, IA3Config())
    adapted.trainable_parameters()["blocks.0.attention.qkv.ia3.key"].fill_(2.0)
    for _ in range(2):
        after = layer(x).chunk(3, -1)
        assert torch.equal(after[0], query) and torch.equal(after[2], value)
        torch.testing.assert_close(after[1], 2 * key, rtol=1e-13, atol=1e-13)
        adapted.merge() if not adapted.merged else adapted.unmerge()


def test_gradients_only_where_they_belong_and_frozen_numbers_stay(case):
    model, _ = case
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, IA3Config())
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


def test_gradients_are_those_of_the_merged_weights(case):
    """By the chain rule: of l_out, the row sums of W * dL/dW (and b * dL/db); of l_in, the column sums; all over l."""
    model, _ = case
    adapted = adapt(model, IA3Config())
    disturb(adapted)
    run(model).square().sum().backward()
    plain = copy.deepcopy(model)
    handle = plain.__dict__["adapted_by"]
    handle.merge()
    layers = handle.delta.layers
    for layer in layers.values():
        for parameter in (layer.weight, *([layer.bias] if layer.bias is not None else [])):
            parameter.requires_grad_(True)
    run(plain).square().sum().backward()
    for name, layer in layers.items():
        sums = layer.weight * layer.weight.grad                    # (O, I)
        rows = sums.sum(1) if layer.bias is None else sums.sum(1) + layer.bias * layer.bias.grad
        for part, vector in model.get_submodule(name).ia3.named_parameters():
            expected = sums.sum(0) if part == "input" else rows[layer.ia3.sections[part]]
            torch.testing.assert_close(vector.grad, expected / vector, rtol=1e-8, atol=1e-9)


def test_cached_generation_of_unequal_lengths():
    model = small_gpt(**LLAMA)
    adapted = adapt(model, IA3Config())
    disturb(adapted, 0.6)
    prompts = [IDS[0, :4].tolist(), IDS[1, :1].tolist(), IDS[2, :7].tolist()]
    written = generate(model, prompts, 8, GREEDY)
    assert written == generate(model, prompts, 8, GREEDY, use_cache=False)
    adapted.merge()
    assert written == generate(model, prompts, 8, GREEDY)


@pytest.mark.parametrize("heads", [(), ("head", "pooler")])
def test_saved_and_loaded(heads, tmp_path):
    def classifier(seed=0):
        return TextClassifier(small_bert(seed), 2, generator=seeded()).double().eval()

    model, config = classifier(), IA3Config(heads=heads)
    adapted = adapt(model, config)
    disturb(adapted)
    out = model(IDS).detach()
    adapted.merge()
    adapted.save(tmp_path)                                         # merged or not, the vectors are what is saved
    again = classifier()
    loaded = load_delta(again, tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        assert torch.equal(again(IDS), out)
        with loaded.disable():
            assert torch.equal(again(IDS), classifier()(IDS))
    with pytest.raises(CheckpointError, match="base"):
        load_delta(classifier(1), tmp_path)


def test_a_head_is_trained_whole_and_gets_no_vectors():
    adapted = adapt(small_gpt(bias=True), IA3Config(heads=("blocks.1.feed_forward",)))
    trained = adapted.trainable_parameters()
    assert "blocks.1.feed_forward.down.weight" in trained and "blocks.0.feed_forward.down.ia3.input" in trained
    assert not any(name.startswith("blocks.1.feed_forward") and ".ia3." in name for name in trained)


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, generator=seeded(n_in), dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(n_out, generator=seeded(n_out), dtype=torch.float64))

    def forward(self, x):
        return x @ self.weight + self.bias


@torch.no_grad()
def test_transposed_layers_of_other_models():
    model = nn.ModuleDict({"c_attn": Conv1D(12, 4), "c_proj": Conv1D(4, 8)})
    x, inner = torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 8, dtype=torch.float64)
    before = model["c_attn"](x)
    adapted = adapt(model, IA3Config(outputs=("c_attn",), inputs=("c_proj",)))
    assert {name: len(p) for name, p in adapted.trainable_parameters().items()} == {
        "c_attn.ia3.key": 4, "c_attn.ia3.value": 4, "c_proj.ia3.input": 8}  # fmt: skip
    disturb(adapted)
    changed = model["c_attn"](x), model["c_proj"](inner)
    assert torch.equal(changed[0][:, :4], before[:, :4])
    adapted.merge()
    assert model["c_attn"].weight.is_contiguous()
    torch.testing.assert_close((model["c_attn"](x), model["c_proj"](inner)), changed)
    adapted.remove()
    assert torch.equal(model["c_attn"](x), before)


def test_number_formats():
    model = small_gpt(bias=True).to(torch.bfloat16)
    adapted = adapt(model, IA3Config())
    assert {p.dtype for p in adapted.trainable_parameters().values()} == {torch.float32}
    disturb(adapted)
    assert model(IDS).dtype == torch.bfloat16
    adapted.merge()
    assert model(IDS).dtype == torch.bfloat16 == model.blocks[0].attention.qkv.weight.dtype


def test_misuse():
    model = small_gpt(bias=True)
    state = list(model.state_dict())
    adapted = adapt(model, IA3Config())
    with pytest.raises(ConfigError, match="adapted already"):
        adapt(model, IA3Config())
    with pytest.raises(ConfigError, match="vectors already"):
        IA3Config().inject(model, "second", None)
    with pytest.raises(ConfigError, match="adapted already"):
        adapted.add(IA3Config(), "second")
    with pytest.raises(ConfigError, match="nothing to undo"):
        adapted.unmerge()
    adapted.remove()
    for wrong, message in (
        (IA3Config(outputs=("c_attn",)), "no module"),
        (IA3Config(inputs=("wo",)), "no module"),
        (IA3Config(heads=("nothing",)), "no module"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapt(model, wrong)
    assert list(model.state_dict()) == state and type(model.blocks[0].attention.qkv).__name__ == "Linear"
    with pytest.raises(ConfigError, match="qkv"):
        adapt(nn.Sequential(nn.Linear(2, 2)), IA3Config())
    with pytest.raises(ConfigError, match="has the parts"):
        adapt(small_t5(), IA3Config(outputs=("key_value",), parts=("query",)))
    for parts in ((), ("keys",)):
        with pytest.raises(ConfigError, match="parts"):
            IA3Config(parts=parts)
    assert IA3Config(parts="key").parts == ("key",)


def test_settings_of_the_package_find_their_layers():
    model = small_gpt(bias=True)
    assert adapt(model, IA3Config(**PEFT_SETTINGS["gpt2"])).count().trainable == 2 * (3 * 16 + 64)
    bert = small_bert()
    adapted = adapt(bert, IA3Config(**PEFT_SETTINGS["bert"]))
    assert adapted.count().trainable == 2 * (2 * 16 + 16 + 64)
    found = set(surgery.find(bert, ("qkv", "down", "attention.output")))
    assert found == {name.rpartition(".ia3.")[0] for name in adapted.trainable_parameters()}
