"""Finding, wrapping, replacing, restoring, freezing, counting and watching parts of finished models."""

import copy

import pytest
import torch
from torch import nn

from minillm import surgery
from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.models.t5 import T5, T5Config


@pytest.fixture
def model():
    config = model_config("llama", "nano", 32, 16, n_layers=3, n_heads=4, n_kv_heads=2, d_model=32)
    return GPT(config, torch.Generator().manual_seed(0)).double()


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.nf = n_out
        self.weight = nn.Parameter(torch.randn(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class Doubled(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


def test_find_by_whole_name_ending_expression_and_kind(model):
    assert list(surgery.find(model, "blocks.1.attention.qkv")) == ["blocks.1.attention.qkv"]
    assert list(surgery.find(model, "qkv")) == [f"blocks.{layer}.attention.qkv" for layer in range(3)]
    assert list(surgery.find(model, ["attention.output", "up"], surgery.is_linear)) == [
        name for layer in range(3) for name in (f"blocks.{layer}.attention.output", f"blocks.{layer}.feed_forward.up")
    ]
    assert list(surgery.find(model, r"blocks\.[02]\.attention")) == ["blocks.0.attention", "blocks.2.attention"]
    linear = surgery.find(model, kinds=surgery.is_linear, exclude="head")
    assert len(linear) == 3 * 5 and all(surgery.is_linear(module) for module in linear.values())
    assert list(surgery.find(model, kinds=surgery.is_embedding)) == ["token_embedding"]


def test_a_name_is_not_the_end_of_a_longer_word(model):
    with pytest.raises(ConfigError, match="candidates"):
        surgery.find(model, "kv")


def test_nothing_found_lists_the_candidates(model):
    with pytest.raises(ConfigError, match=r"no module of GPT is meant by \['q_proj'\].*qkv.*feed_forward.down"):
        surgery.find(model, ["qkv", "q_proj"], surgery.is_linear)
    with pytest.raises(ConfigError, match="neither the end of a name nor a regular expression"):
        surgery.find(model, "*bad(")
    with pytest.raises(ConfigError, match="no such part"):
        surgery.find(nn.Sequential(nn.ReLU()), kinds=surgery.is_linear)


def test_transposed_weights_are_seen_the_right_way(model):
    layer = Conv1D(6, 4)
    assert surgery.is_linear(layer) and surgery.is_transposed(layer)
    x = torch.randn(3, 4)
    assert torch.allclose(layer(x), nn.functional.linear(x, surgery.matrix_of(layer), layer.bias))
    with torch.no_grad():
        surgery.matrix_of(layer)[5] = 7.0
    assert (layer.weight[:, 5] == 7.0).all()
    assert surgery.matrix_of(model.blocks[0].attention.qkv) is model.blocks[0].attention.qkv.weight
    with pytest.raises(ConfigError, match="RMSNorm is no linear layer"):
        surgery.matrix_of(model.final_norm)


def test_sections_of_fused_layers(model):
    found = surgery.sections_of(model, "blocks.0.attention.qkv")
    assert found == {"query": slice(0, 32), "key": slice(32, 48), "value": slice(48, 64)}
    assert surgery.sections_of(model, "blocks.0.feed_forward.up") == {}
    attention = nn.Module()
    attention.c_attn = Conv1D(12, 4)
    assert surgery.sections_of(attention, "c_attn") == {"query": slice(0, 4), "key": slice(4, 8), "value": slice(8, 12)}


def test_sections_make_what_their_names_say(model):
    block, x = model.blocks[0].attention, torch.randn(2, 5, 32, dtype=torch.float64)
    query, key, value = block.queries_keys_values(x)
    for part, expected in (("query", query), ("key", key), ("value", value)):
        rows = surgery.sections_of(model, "blocks.0.attention.qkv")[part]
        made = x @ block.qkv.weight[rows].T
        assert torch.allclose(made, expected.transpose(1, 2).flatten(2))


def test_wrap_and_restore_leave_no_trace(model):
    ids = torch.arange(10).view(1, -1)
    before, state = model(ids), copy.deepcopy(model.state_dict())
    names = list(surgery.find(model, ["qkv", "down"]))
    old = {name: model.get_submodule(name) for name in names}
    operation = surgery.wrap(model, names, lambda name, module: Doubled(module))
    assert (model(ids) - before).abs().max() > 1e-3
    assert all(model.get_submodule(name).base is old[name] for name in names)
    operation.restore()
    operation.restore()
    assert torch.equal(model(ids), before)
    assert all(model.get_submodule(name) is old[name] for name in names)
    assert list(model.state_dict()) == list(state)


def test_a_failure_in_the_middle_undoes_everything(model):
    names = list(surgery.find(model, "qkv"))

    def make(name, module):
        if name == names[2]:
            raise ConfigError("no")
        return Doubled(module)

    old = [model.get_submodule(name) for name in names]
    with pytest.raises(ConfigError, match="no"):
        surgery.wrap(model, names, make)
    assert [model.get_submodule(name) for name in names] == old


def test_a_module_with_two_names_is_replaced_under_both():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert list(surgery.find(model, kinds=surgery.is_linear)) == ["a"]
    operation = surgery.wrap(model, ["a"], lambda name, module: Doubled(module))
    assert model["b"][0] is model["a"] and isinstance(model["a"], Doubled)
    operation.restore()
    assert model["b"][0] is shared and model["a"] is shared


def test_wrapping_keeps_the_training_mode(model):
    model.eval()
    surgery.wrap(model, ["blocks.0.attention.qkv"], lambda name, module: Doubled(module))
    assert not model.blocks[0].attention.qkv.training


def test_tied_parameters_are_known_and_trained_together():
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "head": nn.Linear(2, 3)})
    model["head"].weight = model["embedding"].weight
    assert surgery.tied(model) == [["embedding.weight", "head.weight"]]
    surgery.freeze(model, but=lambda name, parameter: name == "head.weight")
    assert list(surgery.trainable(model)) == ["embedding.weight"]
    assert surgery.count(model) == surgery.Count(total=9, trainable=6)


def test_frozen_parameters_lose_their_gradients_and_do_not_move(model):
    model(torch.arange(6).view(1, -1)).sum().backward()
    surgery.freeze(model, but=lambda name, parameter: "norm" in name)
    assert all((parameter.grad is None) == ("norm" not in name) for name, parameter in model.named_parameters())
    assert set(surgery.trainable(model)) == {name for name, _ in model.named_parameters() if "norm" in name}


def test_recorder_adds_up_what_the_layers_were_given(model):
    seen = {}
    names = list(surgery.find(model, ["attention.output", "down"]))
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, inputs, name=name: seen.setdefault(name, []).append(inputs[0].detach().flatten(0, 1))
        )
        for name in names
    ]
    with surgery.ActivationRecorder(model, names) as recorder:
        for seed in range(3):
            model(torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(seed)))
    for handle in handles:
        handle.remove()
    for name in names:
        rows, found = torch.cat(seen[name]), recorder.statistics[name]
        assert found.n_rows == len(rows) == 42
        torch.testing.assert_close(found.products, rows.T @ rows)
        torch.testing.assert_close(found.largest, rows.abs().amax(0))
        torch.testing.assert_close(found.sums, rows.abs().sum(0))
        torch.testing.assert_close(found.squares, rows.square().sum(0))
    model(torch.zeros(1, 3, dtype=torch.int64))
    assert recorder.statistics[names[0]].n_rows == 42, "closed recorders do not watch"


def test_recorder_refuses_what_is_not_finite(model):
    with torch.no_grad():
        model.blocks[1].feed_forward.up.weight[0] = torch.inf
    with pytest.raises(ShapeError, match=r"blocks.1.feed_forward.down is not finite"):
        with surgery.ActivationRecorder(model, surgery.find(model, "down")):
            model(torch.zeros(1, 3, dtype=torch.int64))


def test_encoder_decoders_have_sections_for_cross_attention():
    t5 = T5(T5Config(vocab_size=16, max_seq_len=8, d_model=16, n_heads=2, n_layers=1, d_ff=16))
    fused = {name: surgery.sections_of(t5, name) for name in surgery.find(t5, kinds=surgery.is_linear)}
    assert any(set(parts) == {"key", "value"} for parts in fused.values())
    assert any(set(parts) == {"query", "key", "value"} for parts in fused.values())


class TwiceTheLogits:
    def logits(self, hidden):
        return self.factor * super().logits(hidden)


class Shifted:
    def logits(self, hidden):
        return super().logits(hidden) + 1.0


def test_methods_are_laid_over_and_taken_off(model):
    ids = torch.arange(5)[None]
    before, names = model(ids), list(model.state_dict())
    first = surgery.overlay(model, TwiceTheLogits, factor=2.0)
    torch.testing.assert_close(model(ids), 2 * before, rtol=0, atol=0)
    assert isinstance(model, GPT) and isinstance(model, TwiceTheLogits) and list(model.state_dict()) == names
    copied = copy.deepcopy(model)
    second = surgery.overlay(model, Shifted)
    torch.testing.assert_close(model(ids), 2 * before + 1, rtol=0, atol=0)
    torch.testing.assert_close(copied(ids), 2 * before, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="Shifted was laid over TwiceTheLogits later"):
        first.remove()
    second.remove()
    first.remove()
    first.remove()
    assert type(model) is GPT and "factor" not in model.__dict__
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)


def test_methods_are_not_laid_over_twice_nor_over_attributes(model):
    surgery.overlay(model, TwiceTheLogits, factor=2.0)
    with pytest.raises(ConfigError, match="TwiceTheLogits is laid over this GPT already"):
        surgery.overlay(model, TwiceTheLogits, factor=3.0)
    with pytest.raises(ConfigError, match="has an attribute 'config' already"):
        surgery.overlay(model, Shifted, config=1)
