"""Baking: merge and keep. What is left is a plain model with the change in it, that can be saved and adapted again."""

import warnings

import pytest
import torch
from helpers.adapt_models import disturb, ids_of, small_bert, small_gpt

from minillm import surgery
from minillm.adapt.adapted import HANDLE, adapt, load_delta
from minillm.adapt.adapter import AdapterConfig
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.intrinsic import IntrinsicConfig
from minillm.adapt.lora import LoraConfig
from minillm.adapt.partial import FullConfig, LastLayersConfig
from minillm.compress.packed_linear import pack_model
from minillm.errors import CheckpointError, ConfigError
from minillm.export.hugging_face import load_hugging_face, save_hugging_face
from minillm.models.bert_heads import TextClassifier

IDS = ids_of((3, 9))
METHODS = {
    "lora": LoraConfig(rank=2, targets=("qkv", "up", "down", "token_embedding")),
    "ia3": IA3Config(),
    "intrinsic": IntrinsicConfig(dimension=20, structure="said"),
    "full": FullConfig(),
    "last layers": LastLayersConfig(n_layers=1),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(model, names):
    """Whether a model has its old names, and nothing that a method has put there."""
    return list(model.state_dict()) == names and HANDLE not in model.__dict__


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_baked_model_is_plain_and_computes_what_the_adapted_one_did(name):
    model = small_gpt(bias=True).eval()
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    adapted = adapt(model, METHODS[name], generator=seeded())
    disturb(adapted)
    out = model(IDS)
    assert adapted.bake() is model and not adapted.merged and not adapted.deltas
    torch.testing.assert_close(model(IDS), out, rtol=1e-11, atol=1e-12)
    assert plain(model, names) and [type(module) for module in model.modules()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
    again = small_gpt(1, bias=True).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IDS), model(IDS))


@torch.no_grad()
def test_baking_what_is_merged_adds_the_change_once():
    model = small_gpt().eval()
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    disturb(adapted)
    merged = adapted.merge().model(IDS)
    assert torch.equal(adapted.bake()(IDS), merged)


@torch.no_grad()
def test_of_several_adapters_the_one_in_use_stays(tmp_path):
    model = small_gpt().eval()
    names = list(model.state_dict())
    adapted = adapt(model, LoraConfig(rank=2, targets=("qkv", "up")), "first", seeded())
    disturb(adapted, 1)
    first = model(IDS)
    adapted.save(tmp_path)
    adapted.add(LoraConfig(rank=3, targets=("qkv", "down")), "second", seeded(1))
    disturb(adapted, 2)
    adapted.use("first").bake()
    torch.testing.assert_close(model(IDS), first, rtol=1e-11, atol=1e-12)
    assert plain(model, names)
    with pytest.raises(CheckpointError, match="another base"):
        load_delta(model, tmp_path)
    again = adapt(model, LoraConfig(rank=2), generator=seeded())
    disturb(again)
    assert not torch.equal(model(IDS), first)
    again.remove()
    torch.testing.assert_close(model(IDS), first, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_heads_that_were_trained_beside_the_method_stay():
    model = TextClassifier(small_bert(), 3, dropout=0.0, generator=seeded(1)).double().eval()
    head = "head"
    adapted = adapt(model, LoraConfig(rank=2, heads=(head,)), generator=seeded())
    disturb(adapted)
    out, trained = model(IDS), [p.clone() for p in model.get_submodule(head).parameters()]
    adapted.bake()
    torch.testing.assert_close(model(IDS), out, rtol=1e-11, atol=1e-12)
    kept = model.get_submodule(head).parameters()
    assert all(torch.equal(p, old) for p, old in zip(kept, trained, strict=True))


@torch.no_grad()
def test_what_was_frozen_before_stays_frozen():
    model = small_gpt()
    model.blocks[0].attention.qkv.weight.requires_grad_(False)
    model.token_embedding.weight.requires_grad_(False)
    adapt(model, LoraConfig(rank=2), generator=seeded()).bake()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"blocks.0.attention.qkv.weight", "token_embedding.weight"}


@torch.no_grad()
def test_packed_layers_become_ordinary_ones_with_a_warning():
    model = small_gpt().eval()
    names = list(model.state_dict())
    pack_model(model)
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    disturb(adapted)
    out = model(IDS)
    with pytest.warns(UserWarning, match="full matrices of 2 packed layers"):
        adapted.bake()
    torch.testing.assert_close(model(IDS), out, rtol=1e-10, atol=1e-11)
    packed = [name for name, module in model.named_modules() if surgery.is_packed(module)]
    assert len(packed) == 6 and not any("qkv" in name for name in packed), "only layers with branches are unpacked"
    assert {name for name in names if "qkv" in name} <= model.state_dict().keys()


@torch.no_grad()
def test_a_method_that_cannot_be_merged_refuses():
    model = small_gpt().eval()
    adapted = adapt(model, AdapterConfig(bottleneck=3), generator=seeded())
    disturb(adapted)
    out = model(IDS)
    with pytest.raises(ConfigError, match="cannot be merged"):
        adapted.bake()
    assert torch.equal(model(IDS), out) and adapted.name == "default" and HANDLE in model.__dict__


@torch.no_grad()
def test_a_baked_model_is_exported_as_any_other(tmp_path):
    model = small_gpt(dtype=torch.float32, bias=True).eval()
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    disturb(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted.bake()
    out = model(IDS)
    save_hugging_face(model, tmp_path / "model")
    assert torch.equal(load_hugging_face(tmp_path / "model")(IDS), out)
