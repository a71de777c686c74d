"""An adapter on disk: adapter.json (method, settings, base) and adapter.safetensors (what was trained, no more)."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.adapt.delta import MethodConfig
from minillm.config import config_from_dict, config_to_dict
from minillm.errors import CheckpointError
from minillm.train.checkpoint import json_chunks, read_json, sha256_of, write_file
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

SETTINGS, TENSORS = "adapter.json", "adapter.safetensors"
FORMAT = "minillm adapter 1"
METHODS = {  # name in a file -> where its config is
    "lora": "minillm.adapt.lora:LoraConfig",
    "adapter": "minillm.adapt.adapter:AdapterConfig",
    "prefix": "minillm.adapt.prefix:PrefixConfig",
    "prompt": "minillm.adapt.prompt:PromptConfig",
    "ptuning": "minillm.adapt.prompt:PTuningConfig",
    "ia3": "minillm.adapt.ia3:IA3Config",
    "bitfit": "minillm.adapt.bitfit:BitFitConfig",
    "intrinsic": "minillm.adapt.intrinsic:IntrinsicConfig",
    "full": "minillm.adapt.partial:FullConfig",
    "head": "minillm.adapt.partial:HeadConfig",
    "last_layers": "minillm.adapt.partial:LastLayersConfig",
    "feed_forward": "minillm.adapt.partial:FeedForwardConfig",
    "encoder": "minillm.adapt.partial:EncoderConfig",
}


@dataclass(frozen=True)
class SavedDelta:
    """What a folder says.

    Attributes:
        name: of the adapter.
        config: of its method.
        model: class of the base, for messages.
        fingerprint: of the base.
        tensors: name -> what was trained.
    """

    name: str
    config: MethodConfig
    model: str
    fingerprint: str
    tensors: dict[str, Tensor]


def write_delta(folder: Path, saved: SavedDelta) -> None:
    """Write an adapter; one that is there already is replaced when the new one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    new_tensors, new_settings = folder / f".{TENSORS}", folder / f".{SETTINGS}"
    content = {
        "format": FORMAT,
        "method": saved.config.method,
        "name": saved.name,
        "base": {"model": saved.model, "fingerprint": saved.fingerprint},
        "config": config_to_dict(saved.config),
        "sha256": write_file(new_tensors, tensor_file_chunks(saved.tensors, {"format": "pt"})),
    }
    write_file(new_settings, json_chunks(content))
    new_tensors.replace(folder / TENSORS)
    new_settings.replace(folder / SETTINGS)


def read_delta(folder: Path) -> SavedDelta:
    """Read an adapter.

    Raises:
        CheckpointError: if the folder holds none, or a damaged one.
    """
    content = read_settings(folder)
    tensors = read_tensor_file(folder / TENSORS)
    if sha256_of(folder / TENSORS) != content["sha256"]:
        raise CheckpointError(f"{folder / TENSORS} is damaged, or of another moment than {SETTINGS}; save it again")
    base = content["base"]
    return SavedDelta(content["name"], read_method(content, folder), base["model"], base["fingerprint"], tensors)


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of adapter.json.

    Raises:
        CheckpointError: if it is missing or something else.
    """
    content = read_json(folder / SETTINGS)
    if content.get("format") != FORMAT or not {"method", "name", "base", "config", "sha256"} <= content.keys():
        raise CheckpointError(f"{folder / SETTINGS} is not of the format {FORMAT!r} but {content.get('format')!r}")
    return content


def read_method(content: Mapping[str, Any], folder: Path) -> MethodConfig:
    """The config in a file.

    Raises:
        CheckpointError: if its method is unknown here.
    """
    if content["method"] not in METHODS:
        raise CheckpointError(f"{folder} holds the method {content['method']!r}; known are {', '.join(METHODS)}")
    module, _, config_type = METHODS[content["method"]].partition(":")
    return config_from_dict(getattr(importlib.import_module(module), config_type), content["config"], str(folder))
