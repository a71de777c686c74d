"""Prefixes and prompts in peft's layout, without peft: what is in the files, there and back, and what is refused."""

import json

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5

from minillm.adapt.adapted import adapt
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.errors import CheckpointError
from minillm.export.peft_lora import CONFIG, WEIGHTS
from minillm.export.peft_prompts import load_peft_prompt, save_peft_prompt
from minillm.train.tensor_file import read_tensor_file

P = 3
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
MODELS = {
    "gpt2": lambda: small_gpt(bias=True),
    "llama": lambda: small_gpt(**LLAMA),
    "bert": small_bert,
    "t5": small_t5,
}
CONFIGS = {
    "prefix": PrefixConfig(n_virtual=P, std=0.5),
    "prefix network": PrefixConfig(n_virtual=P, reparametrised=True, d_hidden=7, std=0.5),
    "prompt": PromptConfig(n_virtual=P, std=0.5),
    "ptuning": PTuningConfig(n_virtual=P, encoder="lstm", d_hidden=7),
}


@torch.no_grad()
def logits(model, kind):
    return model(ids_of((2, 6)), ids_of((2, 4), seed=1)) if kind == "t5" else model(ids_of((2, 6)))


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(kind, method, tmp_path):
    if kind == "t5" and "prefix" in method:
        return
    model = MODELS[kind]()
    adapted = adapt(model, CONFIGS[method], generator=torch.Generator().manual_seed(0))
    expected = logits(model, kind)
    folder = save_peft_prompt(adapted, tmp_path / "adapter", base="some/base")
    settings, tensors = json.loads((folder / CONFIG).read_text()), read_tensor_file(folder / WEIGHTS)
    width = {"gpt2": 64, "llama": 32, "bert": 64}.get(kind) if "prefix" in method else model.config.d_model
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "prompt_embeddings": (2 * P if kind == "t5" else P, width)
    }
    assert settings["num_virtual_tokens"] == P and settings["inference_mode"] and settings["task_type"]
    assert settings["base_model_name_or_path"] == "some/base"
    adapted.remove()
    loaded = load_peft_prompt(model, folder)
    torch.testing.assert_close(logits(model, kind), expected, rtol=0, atol=1e-12)
    assert type(loaded.config) is type(CONFIGS[method]) and loaded.config.n_virtual == P


def test_what_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no class that computes what this model does"):
        save_peft_prompt(adapt(small_gpt(position="sinusoidal"), CONFIGS["prompt"]), tmp_path / "a")
    with pytest.raises(CheckpointError, match="no prefix or prompt alone"):
        config = PromptConfig(n_virtual=P, heads=("pooler",))
        save_peft_prompt(adapt(small_bert(), config), tmp_path / "a")
    with pytest.raises(CheckpointError, match="prefix for a T5 is another one"):
        save_peft_prompt(adapt(small_t5(), CONFIGS["prefix"]), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    folder = save_peft_prompt(adapt(small_gpt(bias=True), CONFIGS["prefix"]), tmp_path / "a")
    other = small_gpt(**LLAMA)
    names = list(other.state_dict())
    with pytest.raises(CheckpointError, match=r"has rows \(3, 64\), this model takes \(3, 32\)"):
        load_peft_prompt(other, folder)
    with pytest.raises(CheckpointError, match="does not fit this GPT: .*window"):
        load_peft_prompt(small_gpt(window=4), folder)
    with pytest.raises(CheckpointError, match="prefix for a T5 is another one"):
        load_peft_prompt(small_t5(), folder)
    settings = json.loads((folder / CONFIG).read_text())
    for changed, message in (
        ({"peft_type": "LORA"}, "'LORA', expected one of PREFIX_TUNING"),
        ({"num_virtual_tokens": 0}, "n_virtual is 0"),
        ({"num_virtual_tokens": None}, "n_virtual is None"),
    ):
        (folder / CONFIG).write_text(json.dumps(settings | changed))
        with pytest.raises(CheckpointError, match=message):
            load_peft_prompt(other, folder)
    assert list(other.state_dict()) == names
