"""One door for every method in peft's layout: each kind there and back, and what has no kind."""

import json

import pytest
import torch
from helpers.adapt_models import ids_of, small_gpt

from minillm.adapt.adapted import adapt
from minillm.adapt.adapter import AdapterConfig
from minillm.adapt.bitfit import BitFitConfig
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.lora import LoraConfig
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.errors import CheckpointError
from minillm.export.peft import LOADERS, load_peft, save_peft

CONFIGS = {
    "LORA": LoraConfig(rank=2, targets="qkv"),
    "IA3": IA3Config(),
    "PREFIX_TUNING": PrefixConfig(n_virtual=3),
    "PROMPT_TUNING": PromptConfig(n_virtual=3),
    "P_TUNING": PTuningConfig(n_virtual=3, d_hidden=5),
}


@torch.no_grad()
def disturbed(config):
    """A model adapted, with numbers that change its answers."""
    generator = torch.Generator().manual_seed(0)
    adapted = adapt(small_gpt(bias=True), config, generator=generator)
    for parameter in adapted.trainable_parameters().values():
        parameter += 0.3 * torch.empty_like(parameter).normal_(generator=generator)
    return adapted


@pytest.mark.parametrize("kind", LOADERS)
@torch.no_grad()
def test_every_kind_there_and_back(kind, tmp_path):
    adapted, ids = disturbed(CONFIGS[kind]), ids_of((2, 6))
    expected = adapted.model(ids)
    folder = save_peft(adapted, tmp_path / "delta", "where/it/is")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["base_model_name_or_path"]) == (kind, "where/it/is")
    model = small_gpt(bias=True)
    base = model(ids)
    loaded = load_peft(model, folder, name="mine")
    assert loaded.name == "mine" and type(loaded.config) is type(CONFIGS[kind])
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-12)
    assert (model(ids) - base).abs().max() > 1e-3
    with loaded.disable():
        assert torch.equal(model(ids), base)


@pytest.mark.parametrize("config", [AdapterConfig(bottleneck=2), BitFitConfig()])
def test_methods_that_peft_does_not_have(config, tmp_path):
    adapted = adapt(small_gpt(bias=True), config)
    with pytest.raises(CheckpointError, match=rf"{config.method}, which peft does not have .*ia3, lora.*save\(\)"):
        save_peft(adapted, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("kind", ["LOHA", None, ["LORA"]])
def test_kinds_that_are_not_here(kind, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    model = small_gpt()
    names = list(model.state_dict())
    with pytest.raises(CheckpointError, match=r"peft_type .*; this library reads LORA, IA3, PREFIX_TUNING"):
        load_peft(model, tmp_path)
    assert list(model.state_dict()) == names


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        load_peft(small_gpt(), tmp_path)
