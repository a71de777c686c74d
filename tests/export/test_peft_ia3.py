"""(IA)^3 in peft's layout: names and sizes of the file, there and back, and what is refused."""

import json

import pytest
import torch
from helpers.adapt_models import small_gpt
from helpers.ia3_models import MODELS, disturbed, run

from minillm.adapt.adapted import adapt
from minillm.adapt.adapter import AdapterConfig
from minillm.adapt.ia3 import PEFT_SETTINGS, IA3Config
from minillm.errors import CheckpointError
from minillm.export.peft_ia3 import load_peft_ia3, save_peft_ia3
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

CASES = [(kind, config) for kind in MODELS
         for config in ({}, {"parts": ("key",)}, {"inputs": ("attention.output",)}, PEFT_SETTINGS[kind])]  # fmt: skip


@pytest.mark.parametrize("kind, settings", CASES)
@torch.no_grad()
def test_there_and_back(kind, settings, tmp_path):
    adapted = disturbed(kind, IA3Config(**settings))
    save_peft_ia3(adapted, tmp_path / "peft")
    loaded = load_peft_ia3(MODELS[kind](), tmp_path / "peft")
    assert torch.equal(run(loaded.model), run(adapted.model))
    assert torch.equal(run(loaded.remove()), run(MODELS[kind]()))


def test_names_and_sizes_of_the_file(tmp_path):
    folder = save_peft_ia3(disturbed("llama", IA3Config()), tmp_path / "peft", base="where/it/is")
    tensors = read_tensor_file(folder / "adapter_model.safetensors")
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {}
    for layer in range(2):
        start = f"base_model.model.model.layers.{layer}."
        expected |= {f"{start}self_attn.k_proj.ia3_l": (8, 1), f"{start}self_attn.v_proj.ia3_l": (8, 1)}
        expected[f"{start}mlp.down_proj.ia3_l"] = (1, 48)
    assert sizes == expected
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["peft_type"] == "IA3" and settings["base_model_name_or_path"] == "where/it/is"
    assert len(settings["target_modules"]) == 6
    assert settings["feedforward_modules"] == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]


def test_queries_that_are_not_multiplied_have_ones_in_a_fused_module(tmp_path):
    folder = save_peft_ia3(disturbed("gpt2", IA3Config()), tmp_path / "peft")
    tensors = read_tensor_file(folder / "adapter_model.safetensors")
    vector = tensors["base_model.model.transformer.h.0.attn.c_attn.ia3_l"]
    assert vector.shape == (48, 1) and (vector[:16] == 1).all() and (vector[16:] != 1).all()


@torch.no_grad()
def test_a_head_is_kept(tmp_path):
    def model():
        return small_gpt(bias=True, tie_embeddings=False)

    adapted = adapt(model(), IA3Config(heads=("head",)))
    for parameter in adapted.trainable_parameters().values():
        parameter.mul_(1.5)
    save_peft_ia3(adapted, tmp_path / "peft")
    loaded = load_peft_ia3(model(), tmp_path / "peft")
    assert torch.equal(run(loaded.model), run(adapted.model)) and loaded.config.heads == ("head",)
    file = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = read_tensor_file(file)
    tensors["base_model.model.lm_head.weight"] = torch.ones(5, 16, dtype=torch.float64)
    file.write_bytes(b"".join(tensor_file_chunks(tensors, {"format": "pt"})))
    fresh = model()
    with pytest.raises(CheckpointError, match=r"head\.weight is \(5, 16\), that of this model \(23, 16\)"):
        load_peft_ia3(fresh, tmp_path / "peft")
    assert torch.equal(run(fresh), run(model()))


def test_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected ia3"):
        save_peft_ia3(adapt(MODELS["gpt2"](), AdapterConfig()), tmp_path / "other")
    both = adapt(MODELS["gpt2"](), IA3Config(outputs=("qkv", "down")))
    with pytest.raises(CheckpointError, match="one vector for a module"):
        save_peft_ia3(both, tmp_path / "both")
    folder = save_peft_ia3(disturbed("gpt2", IA3Config()), tmp_path / "peft")
    for make, message in ((MODELS["llama"], "does not have"), (lambda: small_gpt(bias=True, d_model=8), "expected")):
        model = make()
        state = list(model.state_dict())
        with pytest.raises(CheckpointError, match=message):
            load_peft_ia3(model, folder)
        assert list(model.state_dict()) == state
    file, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    file.write_bytes(b"".join(tensor_file_chunks({"lora": torch.ones(2)}, {"format": "pt"})))
    with pytest.raises(CheckpointError, match="no .IA.*vectors"):
        load_peft_ia3(MODELS["gpt2"](), folder)
    settings.write_text('{"peft_type": "LORA"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="LORA"):
        load_peft_ia3(MODELS["gpt2"](), folder)
    assert not (tmp_path / "both").exists() and not (tmp_path / "other").exists()
