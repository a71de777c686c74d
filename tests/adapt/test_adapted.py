"""The interface of all methods: freeze, switch, save, load, remove; heads are never lost; another base is refused."""

import copy
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers.adapt_models import disturb
from torch import nn

from minillm.adapt.adapted import Adapted, TrainedInPlace, adapt, load_delta
from minillm.adapt.delta_file import METHODS, SETTINGS, TENSORS
from minillm.adapt.fingerprint import fingerprint
from minillm.adapt.lora import LoraConfig
from minillm.errors import CheckpointError, ConfigError
from minillm.models.bert import Bert, bert_config
from minillm.models.bert_heads import TokenClassifier
from minillm.models.gpt import GPT, GPTConfig

SETTINGS_OF_GPT = {"vocab_size": 19, "max_seq_len": 12, "n_layers": 2, "n_heads": 4, "d_model": 16, "n_kv_heads": 2}
IDS = torch.randint(0, 19, (3, 9), generator=torch.Generator().manual_seed(5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return GPT(GPTConfig(**SETTINGS_OF_GPT), seeded()).double()


@pytest.fixture
def tagger():
    body = Bert(bert_config(vocab_size=19, max_seq_len=12, n_layers=2, n_heads=2, d_model=16), seeded())
    return TokenClassifier(body, 5, dropout=0.0, generator=seeded(1)).double()


@torch.no_grad()
def outputs(model):
    return model(IDS)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model, before):
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def train(model, adapted, n_steps=3):
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=1e-2, weight_decay=0.1)
    for _ in range(n_steps):
        optimizer.zero_grad()
        model(IDS).square().mean().backward()
        optimizer.step()


def test_training_leaves_every_number_of_the_base_as_it_was(model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    first = {name: parameter.detach().clone() for name, parameter in adapted.trainable_parameters().items()}
    train(model, adapted)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad, name
    assert all(not torch.equal(p, first[name]) for name, p in adapted.trainable_parameters().items())
    trained = {id(p) for p in adapted.trainable_parameters().values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained


def test_a_fresh_adapter_changes_nothing_and_removing_it_gives_the_base_back(model):
    model.blocks[0].attention.qkv.weight.requires_grad_(False)
    before, out = snapshot(model), outputs(model)
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    assert torch.equal(outputs(model), out)
    disturb(adapted)
    assert not torch.allclose(outputs(model), out)
    assert adapted.remove() is model and same_state(model, before) and torch.equal(outputs(model), out)
    assert not model.blocks[0].attention.qkv.weight.requires_grad and model.token_embedding.weight.requires_grad
    adapt(model, LoraConfig(rank=2))


def test_disabled_is_the_base_bit_for_bit_and_comes_back_after_an_error(model):
    out = outputs(model)
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    disturb(adapted)
    changed = outputs(model)
    with pytest.raises(ZeroDivisionError), adapted.disable() as base:
        assert torch.equal(outputs(base), out)
        raise ZeroDivisionError
    assert torch.equal(outputs(model), changed)
    adapted.merge()
    with adapted.disable():
        assert torch.equal(outputs(model), out)
    assert adapted.merged


def test_what_is_saved_is_small_and_loads_on_the_same_base(model, tmp_path):
    adapted = adapt(model, LoraConfig(rank=2, alpha=3.0, targets="qkv"), "poems", seeded())
    disturb(adapted)
    changed = outputs(model)
    folder = adapted.save(tmp_path / "delta")
    assert {file.name for file in folder.iterdir()} == {SETTINGS, TENSORS}
    n_numbers = sum(parameter.numel() for parameter in adapted.trainable_parameters().values())
    assert (folder / TENSORS).stat().st_size < 8 * n_numbers + 1500
    adapted.remove()
    again = load_delta(model, folder)
    assert again.name == "poems" and again.config == LoraConfig(rank=2, alpha=3.0, targets=("qkv",))
    assert torch.equal(outputs(model), changed)
    single = GPT(GPTConfig(**SETTINGS_OF_GPT), seeded())
    load_delta(single, folder)
    torch.testing.assert_close(single(IDS).double(), changed, rtol=0, atol=1e-5)


def test_saving_again_replaces_and_leaves_nothing_else(model, tmp_path):
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    adapted.save(tmp_path)
    disturb(adapted)
    changed = outputs(model)
    adapted.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [SETTINGS, TENSORS]
    adapted.remove()
    load_delta(model, tmp_path)
    assert torch.equal(outputs(model), changed)


def test_another_base_is_refused_and_left_as_it_was(model, tmp_path):
    adapt(model, LoraConfig(rank=2)).save(tmp_path)
    other = GPT(GPTConfig(**SETTINGS_OF_GPT), seeded()).double()
    with torch.no_grad():
        other.blocks[1].feed_forward.down.weight[3, 4] += 0.01
    before = snapshot(other)
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_delta(other, tmp_path)
    assert same_state(other, before) and all(p.requires_grad for p in other.parameters())
    load_delta(GPT(GPTConfig(**SETTINGS_OF_GPT), seeded()), tmp_path)


@pytest.mark.parametrize("harm", ["tensors", "settings", "format", "method", "missing", "name", "size"])
def test_damaged_files_are_named(model, tmp_path, harm):
    adapted = adapt(model, LoraConfig(rank=2))
    adapted.save(tmp_path)
    adapted.remove()
    before, content = snapshot(model), json.loads((tmp_path / SETTINGS).read_text())
    if harm == "tensors":
        data = bytearray((tmp_path / TENSORS).read_bytes())
        data[-1] ^= 1
        (tmp_path / TENSORS).write_bytes(data)
    elif harm == "settings":
        (tmp_path / SETTINGS).write_text("{")
    elif harm == "missing":
        (tmp_path / TENSORS).unlink()
    elif harm == "name":
        (tmp_path / SETTINGS).write_text(json.dumps(content | {"config": content["config"] | {"targets": ["output"]}}))
    elif harm == "size":
        (tmp_path / SETTINGS).write_text(json.dumps(content | {"config": content["config"] | {"rank": 3}}))
    else:
        (tmp_path / SETTINGS).write_text(json.dumps(content | {harm: "other"}))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_delta(model, tmp_path)
    assert same_state(model, before)


def test_heads_are_trained_saved_and_loaded_beside_the_adapter(tagger, tmp_path):
    before, out = snapshot(tagger), outputs(tagger)
    adapted = adapt(tagger, LoraConfig(rank=2, heads=("head",)), generator=seeded())
    assert {"head.weight", "head.bias"} < adapted.trainable_parameters().keys()
    train(tagger, adapted)
    changed, head = outputs(tagger), tagger.head.weight.detach().clone()
    assert not torch.equal(head, before["head.weight"])
    with adapted.disable():
        assert torch.equal(outputs(tagger), out)
        adapted.save(tmp_path)                                     # the trained head is saved, not the one in place
    assert torch.equal(outputs(tagger), changed)
    adapted.remove()
    assert same_state(tagger, before)
    with torch.no_grad():
        tagger.head.weight.normal_()                               # a new head for a new task: still the same base
    load_delta(tagger, tmp_path)
    assert torch.equal(tagger.head.weight, head) and torch.equal(outputs(tagger), changed)


def test_heads_that_cannot_be(model, tagger):
    with pytest.raises(ConfigError, match="no module of TokenClassifier is meant by"):
        adapt(tagger, LoraConfig(rank=2, heads=("classifier",)))
    torch_model = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    torch_model["head"].weight = torch_model["table"].weight
    with pytest.raises(ConfigError, match="tied"):
        adapt(torch_model, LoraConfig(rank=2, targets=("table",), heads=("head",)))
    with pytest.raises(ConfigError, match="is meant by"):
        adapt(tagger, LoraConfig(rank=2, targets=("head",), heads=("head",)))
    assert all(parameter.requires_grad for parameter in tagger.parameters())


def test_double_injection_is_refused_and_changes_nothing(model):
    adapted = adapt(model, LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="adapted already, by .'default'"):
        adapt(model, LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="has an adapter 'default' already"):
        adapted.add(LoraConfig(rank=2), "default")
    assert list(adapted.trainable_parameters()) == [
        f"blocks.{layer}.attention.qkv.{part}.{matrix}" for layer in range(2) for part in ("query", "value")
        for matrix in "AB"
    ]  # fmt: skip


@dataclass(frozen=True)
class Norms:
    """A method of one line, as any other module could bring it."""

    method: ClassVar[str] = "norms"

    def inject(self, model, name, generator):
        return TrainedInPlace(model, [n for n, _ in model.named_parameters() if "norm" in n])


def test_other_methods_need_only_inject(model):
    before, out = snapshot(model), outputs(model)
    adapted = adapt(model, Norms())
    train(model, adapted)
    assert not torch.equal(outputs(model), out)
    with adapted.disable():
        assert torch.equal(outputs(model), out)
    with pytest.raises(ConfigError, match="cannot be merged"):
        adapted.merge()
    assert not adapted.merged
    with pytest.raises(ConfigError, match="norms cannot be put beside norms"):
        adapted.add(Norms(), "second")
    with pytest.raises(ConfigError, match="lora cannot be put beside norms"):
        adapted.add(LoraConfig(rank=2), "second")
    adapted.remove()
    assert same_state(model, before)


def test_training_goes_on_after_a_look_at_the_base(model):
    """The optimizer's parameters stay the same objects while the old numbers are shown."""
    twin = copy.deepcopy(model)
    one, other = adapt(model, Norms()), adapt(twin, Norms())
    for adapted, looks in ((one, True), (other, False)):
        optimizer = torch.optim.SGD(adapted.trainable_parameters().values(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            adapted.model(IDS).square().mean().backward()
            optimizer.step()
            if looks:
                with adapted.disable():
                    outputs(adapted.model)
    assert torch.equal(outputs(model), outputs(twin))


def test_a_copy_of_an_adapted_model_has_a_handle_of_its_own(model):
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    copied = copy.deepcopy(model)
    handle = copied.__dict__["adapted_by"]
    assert isinstance(handle, Adapted) and handle.model is copied
    out = outputs(model)
    disturb(handle)
    assert torch.equal(outputs(model), out) and not torch.allclose(outputs(copied), out)
    handle.remove()
    assert "adapted_by" in model.__dict__ and adapted.model is model


def test_count_says_what_is_trained(model):
    n_base = sum(parameter.numel() for parameter in model.parameters())
    adapted = adapt(model, LoraConfig(rank=2))
    trained = 2 * 2 * (16 + 16) + 2 * 2 * (16 + 8)                 # per layer: query 16 x 16, value 8 x 16 (two heads)
    assert (adapted.count().trainable, adapted.count().total) == (trained, n_base + trained)


def test_fingerprints_tell_numbers_names_and_sizes_apart(model):
    first = fingerprint(model)
    assert first == fingerprint(copy.deepcopy(model)) == fingerprint(copy.deepcopy(model).float())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.final_norm.weight[0] += 0.01
    assert fingerprint(other) != first
    renamed = nn.ModuleDict({"body": copy.deepcopy(model)})
    assert fingerprint(renamed) != first
    packed = nn.Module()
    packed.register_buffer("packed", torch.arange(5, dtype=torch.uint8))
    before = fingerprint(packed)
    packed.packed[1] = 7
    assert fingerprint(packed) != before, "saved buffers, such as packed weights, count"


def test_names_of_adapters(model):
    for name in ("", "a.b", "1", "keys", "two words"):
        with pytest.raises(ConfigError, match="name must be"):
            adapt(model, LoraConfig(rank=2), name)
    adapted = adapt(model, LoraConfig(rank=2), "ok_1")
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        adapted.use("other")
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        adapted.save("nowhere", "other")
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        adapted.drop("other")


def test_all_methods_that_files_may_name_have_unlike_names():
    assert len(set(METHODS.values())) == len(METHODS) and all(":" in place for place in METHODS.values())
