"""The layout of `peft`, without `peft`: what the files say, added to the exported weights, is the adapted model."""

import json

import pytest
import torch
from helpers.parity import randomized
from safetensors.torch import load_file, save_file

from minillm.adapt.adapted import adapt
from minillm.adapt.lora import LoraConfig
from minillm.errors import CheckpointError
from minillm.export.hugging_face import load_hugging_face, save_hugging_face
from minillm.export.peft_lora import CONFIG, WEIGHTS, load_peft_lora, save_peft_lora
from minillm.models.bert import Bert, bert_config
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.models.t5 import T5, t5_config

LAYERS = ("qkv", "attention.output", "up", "down")
IDS = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(5))
SIZES = {"vocab_size": 31, "max_seq_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}


def decoder(family, **settings):
    return GPT(model_config(family, "nano", **SIZES | settings), torch.Generator().manual_seed(1))


MODELS = {  # the targets that a family has
    "gpt2": (lambda: decoder("gpt2"), LAYERS),
    "gpt2 with head": (lambda: decoder("gpt2", tie_embeddings=False), (*LAYERS, "token_embedding", "head")),
    "llama": (lambda: decoder("llama", n_kv_heads=2), (*LAYERS, "gate", "token_embedding", "head")),
    "mistral": (lambda: decoder("mistral", n_kv_heads=2, window=5), LAYERS),
    "mixtral": (lambda: decoder("mixtral", n_kv_heads=2), (*LAYERS, "gate")),
    "bloom": (lambda: decoder("bloom"), LAYERS),
    "falcon": (lambda: decoder("falcon", n_kv_heads=4, bias=True), LAYERS),
    "bert": (lambda: Bert(bert_config("bert", **SIZES)), LAYERS),
    "roberta": (lambda: Bert(bert_config("roberta", **SIZES)), LAYERS),
    "albert": (lambda: Bert(bert_config("albert", d_embedding=8, **SIZES)), LAYERS),
    "t5": (lambda: T5(t5_config("1.1", **SIZES)), (*LAYERS, "gate", "query", "key_value", "head")),
}
PARTS = [("query", "value"), (), ("query", "key", "value")]


def run(model, ids=IDS):
    with torch.no_grad():
        return model(ids, ids[:, :4]) if isinstance(model, T5) else model(ids)


def made(family):
    make, targets = MODELS[family]
    return randomized(make(), 3).double().eval(), targets


@torch.no_grad()
def adapted_of(model, std=0.2, **settings):
    generator = torch.Generator().manual_seed(2)
    adapted = adapt(model, LoraConfig(**{"rank": 3, "alpha": 5.0} | settings), generator=generator)
    for parameter in adapted.trainable_parameters().values():
        parameter += torch.empty_like(parameter).normal_(0.0, std, generator=generator)
    return adapted


def merged_by_their_rules(exported, delta):
    """What `merge_and_unload` of peft does, written down from its documentation: W += alpha / r * B A, by module."""
    settings, matrices = json.loads((delta / CONFIG).read_text()), load_file(delta / WEIGHTS)
    weights = load_file(exported / "model.safetensors")
    for key in [key for key in matrices if "lora_A" in key or "embedding_A" in key]:
        module = key.removeprefix("base_model.model.").partition(".lora_")[0]
        assert module in settings["target_modules"]
        rank = settings["rank_pattern"].get(module, settings["r"])
        alpha = settings["alpha_pattern"].get(module, settings["lora_alpha"])
        a, b = matrices[key], matrices[key.replace("_A", "_B")]
        assert a.shape[0] == b.shape[1] == rank
        change = b @ a * alpha / (rank**0.5 if settings["use_rslora"] else rank)
        transposed = settings["fan_in_fan_out"] and "c_" in module or "embedding_A" in key
        weights[f"{module}.weight"] += change.T if transposed else change
    for key in [key for key in matrices if ".lora_" not in key]:
        weights[key.removeprefix("base_model.model.")] = matrices[key]
    save_file(weights, exported / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("family", MODELS)
def test_the_files_say_what_the_adapted_model_computes(family, parts, tmp_path):
    model, targets = made(family)
    save_hugging_face(model, tmp_path / "base")
    stabilised = parts == ()
    adapted = adapted_of(model, targets=targets, parts=parts, rank_stabilised=stabilised)
    save_peft_lora(adapted, tmp_path / "delta")
    merged_by_their_rules(tmp_path / "base", tmp_path / "delta")
    merged = load_hugging_face(tmp_path / "base", dtype=torch.float64)
    torch.testing.assert_close(run(merged), run(model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("family", MODELS)
def test_there_and_back(family, parts, tmp_path):
    model, targets = made(family)
    names = list(model.state_dict())
    adapted = adapted_of(model, targets=targets, parts=parts)
    changed = run(model)
    save_peft_lora(adapted, tmp_path / "delta")
    adapted.remove()
    again = load_peft_lora(model, tmp_path / "delta")
    torch.testing.assert_close(run(model), changed, rtol=1e-10, atol=1e-10)
    again.remove()
    assert list(model.state_dict()) == names


def test_names_and_sizes_as_peft_has_them(tmp_path):
    """GPT-2's fused map is one module there, LLaMA's three; two parts become one module of twice the rank."""
    save_peft_lora(adapted_of(made("gpt2")[0], targets="qkv", rank=3, alpha=6.0), tmp_path / "gpt2", "my/base")
    settings, tensors = json.loads((tmp_path / "gpt2" / CONFIG).read_text()), load_file(tmp_path / "gpt2" / WEIGHTS)
    start = "base_model.model.transformer.h"
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{start}.{layer}.attn.c_attn.lora_{matrix}.weight": shape
        for layer in (0, 1) for matrix, shape in (("A", (6, 32)), ("B", (96, 6)))
    }  # fmt: skip
    assert (settings["r"], settings["lora_alpha"], settings["fan_in_fan_out"]) == (6, 12.0, True)
    assert (settings["peft_type"], settings["task_type"]) == ("LORA", "CAUSAL_LM")
    assert settings["base_model_name_or_path"] == "my/base"
    save_peft_lora(adapted_of(made("llama")[0], targets=("qkv", "token_embedding")), tmp_path / "llama")
    tensors = load_file(tmp_path / "llama" / WEIGHTS)
    shapes = {"q_proj": 32, "v_proj": 16}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{matrix}.weight": shape
        for layer in (0, 1) for name, width in shapes.items() for matrix, shape in (("A", (3, 32)), ("B", (width, 3)))
    } | {
        "base_model.model.model.embed_tokens.lora_embedding_A": (3, 31),
        "base_model.model.model.embed_tokens.lora_embedding_B": (32, 3),
    }  # fmt: skip


def test_unlike_ranks_are_listed_and_filled_up_when_read(tmp_path):
    model, _ = made("gpt2")
    adapted = adapted_of(model, targets=("qkv", "down", "up"))
    changed = run(model)
    save_peft_lora(adapted, tmp_path / "delta")
    settings = json.loads((tmp_path / "delta" / CONFIG).read_text())
    assert settings["r"] == 3 and set(settings["rank_pattern"].values()) == {6}
    assert settings["rank_pattern"].keys() == {f"transformer.h.{layer}.attn.c_attn" for layer in (0, 1)}
    adapted.remove()
    again = load_peft_lora(model, tmp_path / "delta")
    assert again.config.rank == 6 and again.config.parts == ()
    torch.testing.assert_close(run(model), changed, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_modules_trained_whole_travel_with_the_adapter(tmp_path):
    model, _ = made("gpt2 with head")
    before = model.head.weight.clone()
    adapted = adapted_of(model, heads=("head", r"blocks\.1\.attention"), targets=(r"blocks\.0\.attention\.qkv",))
    changed = run(model)
    save_peft_lora(adapted, tmp_path / "delta")
    settings = json.loads((tmp_path / "delta" / CONFIG).read_text())
    assert settings["modules_to_save"] == [
        "lm_head", "transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj"
    ]  # fmt: skip
    adapted.remove()
    assert torch.equal(model.head.weight, before)
    again = load_peft_lora(model, tmp_path / "delta")
    torch.testing.assert_close(run(model), changed, rtol=1e-12, atol=1e-12)
    again.remove()
    assert torch.equal(model.head.weight, before)


def test_what_their_layout_cannot_say(tmp_path):
    tied, _ = made("gpt2")
    with pytest.raises(CheckpointError, match="token_embedding cannot be written for peft: it is tied"):
        save_peft_lora(adapted_of(tied, targets="token_embedding"), tmp_path / "x")
    wrapped = torch.nn.Sequential(made("gpt2")[0])
    with pytest.raises(CheckpointError, match="Sequential is none of the models that can be exported"):
        save_peft_lora(adapted_of(wrapped, targets="attention.qkv"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"target_parameters": ["x"]}, "target_parameters"),
    ],
)
def test_settings_that_compute_something_else_are_refused(settings, message, tmp_path):
    model, _ = made("llama")
    adapted = adapted_of(model)
    save_peft_lora(adapted, tmp_path / "delta")
    adapted.remove()
    content = json.loads((tmp_path / "delta" / CONFIG).read_text())
    (tmp_path / "delta" / CONFIG).write_text(json.dumps(content | settings))
    with pytest.raises(CheckpointError, match=message):
        load_peft_lora(model, tmp_path / "delta")
    assert "adapted_by" not in model.__dict__


def test_other_models_and_damaged_files_are_refused_and_change_nothing(tmp_path):
    model, _ = made("llama")
    adapted = adapted_of(model, rank=2)
    save_peft_lora(adapted, tmp_path / "delta")
    with pytest.raises(CheckpointError, match="is there already"):
        save_peft_lora(adapted, tmp_path / "delta")
    adapted.remove()
    for other, message in (
        (made("gpt2")[0], "for which this model has no layer"),
        (decoder("llama", d_model=16, n_heads=4, n_kv_heads=2), "do not fit into a layer of 16"),
        (decoder("llama", n_kv_heads=2, n_layers=1), "model.layers.1.*has no layer"),
    ):
        names = list(other.state_dict())
        with pytest.raises(CheckpointError, match=message):
            load_peft_lora(other, tmp_path / "delta")
        assert list(other.state_dict()) == names and "adapted_by" not in other.__dict__
    tensors = load_file(tmp_path / "delta" / WEIGHTS)
    key = next(name for name in tensors if "lora_B" in name)
    for damage, message in (
        ({name: tensor for name, tensor in tensors.items() if name != key}, "two matrices of .* are missing"),
        ({name: tensor for name, tensor in tensors.items() if ".0.self_attn.q_proj" not in name}, "but .* of others"),
        (tensors | {"base_model.model.other.weight": torch.zeros(2)}, "other.weight, for which this model"),
        (tensors | {"base_model.model.x.lora_magnitude_vector": torch.zeros(2)}, "which this library does not know"),
        ({"base_model.model.lm_head.weight": torch.zeros(31, 32)}, "holds no LoRA matrices"),
    ):
        save_file(damage, tmp_path / "delta" / WEIGHTS)
        with pytest.raises(CheckpointError, match=message):
            load_peft_lora(model, tmp_path / "delta")
        assert "adapted_by" not in model.__dict__
