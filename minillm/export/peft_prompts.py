"""Prefixes and prompts in the layout of the `peft` package, for the exported model, and back.

    DIR/adapter_config.json         which method, how many virtual tokens
        adapter_model.safetensors   prompt_embeddings (P, N): rows of keys and values, or words' vectors
                                    base_model.<their module>: the head of a classifier

Networks that made the rows are not kept, by either package.

Dimensions: P rows, N width of a row.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minillm.adapt.adapted import Adapted, adapt
from minillm.adapt.in_front import Host, host_of
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.errors import CheckpointError, ConfigError
from minillm.export.exported import exported, head_tensors, heads_from, modules_of
from minillm.export.folder import new_folder, read_json_object, write_json
from minillm.export.peft_lora import CONFIG, WEIGHTS
from minillm.models.bert import Bert
from minillm.models.bert_heads import TextClassifier
from minillm.models.t5 import T5Config
from minillm.train.checkpoint import write_file
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

ROWS = "prompt_embeddings"
KINDS = {"PREFIX_TUNING": PrefixConfig, "PROMPT_TUNING": PromptConfig, "P_TUNING": PTuningConfig}
FEATURES = "FEATURE_EXTRACTION"  # of an encoder with the heads of its pretraining
HEAD = "base_model."  # before the name of what is saved whole


def save_peft_prompt(adapted: Adapted, folder: str | Path, base: str = "") -> Path:
    """Write a prefix or prompt so that `PeftModel.from_pretrained(exported model, folder)` gives the same logits.

    Theirs answer for the words of a prompt too: their logits have P positions more at the front. Their classifier under
    a prompt reads the last position whatever the mask says: give it texts without padding, or with padding on the left.

    Args:
        adapted: a model of a family that transformers has, or a classifier over one, with such an adapter in use; no
            heads beside it but the classifier's own.
        folder: a new or empty folder; it appears complete or not at all.
        base: where `peft` finds the exported model; noted in the config.

    Returns:
        the folder.

    Raises:
        CheckpointError: if transformers has no such model, the method is another, or their layout cannot say it.
    """
    config, host = adapted.config, host_of(adapted.model)
    kind = next((kind for kind, ours in KINDS.items() if isinstance(config, ours)), None)
    with adapted.disable() as base_model:
        form = exported(base_model)                                # raises if transformers has no such model
    heads = dict(adapted.delta.tensors())
    (table,) = [name for name in heads if name.endswith(".table")] if kind else [""]
    rows = heads.pop(table, None)                                  # (P, N)
    if rows is None or heads.keys() - set(form.own):
        raise CheckpointError(f"{config.method} with heads {config.heads} is no prefix or prompt alone")
    check_method(adapted.model, host, kind)
    if isinstance(host.config, T5Config):
        rows = torch.cat((rows, torch.zeros_like(rows)))           # theirs has P more, which nothing reads
    saved = head_tensors(adapted, heads)
    settings = settings_for(config, kind, form.task or FEATURES, base)
    if saved:
        settings["modules_to_save"] = modules_of(saved)
    tensors = {ROWS: rows.contiguous(), **{HEAD + name: tensor for name, tensor in saved.items()}}
    with new_folder(folder) as new:
        write_json(new / CONFIG, settings)
        write_file(new / WEIGHTS, tensor_file_chunks(tensors, {"format": "pt"}))
    return Path(folder)


def check_method(model: nn.Module, host: Host, kind: str) -> None:
    """Refuse what is another computation there.

    Raises:
        CheckpointError: for a T5's prefix, which is in the decoder alone and cuts its rows so that layers share some;
            for that of an ALBERT, whose shared layer gets other rows each time; and for a prompt before an encoder's
            classifier, which reads the first vector of the prompt.
    """
    if kind == "PREFIX_TUNING" and isinstance(host.config, T5Config):
        raise CheckpointError("peft's prefix for a T5 is another one: in the decoder alone, whose layers share rows")
    if kind == "PREFIX_TUNING" and getattr(host.config, "share_layers", False):
        raise CheckpointError("peft's prefix has rows for each layer, ours one set for the layer that all share")
    if kind != "PREFIX_TUNING" and isinstance(host, Bert) and model is not host:
        reads = "the prompt's first vector" if isinstance(model, TextClassifier) else "the prompt's positions too"
        raise CheckpointError(f"a {type(model).__name__} of transformers reads {reads} in peft; take a prefix instead")


def settings_for(config: Any, kind: str, task: str, base: str) -> dict[str, Any]:
    """The content of adapter_config.json."""
    settings = {
        "peft_type": kind,
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "num_virtual_tokens": config.n_virtual,
    }
    if kind == "PREFIX_TUNING":
        settings["prefix_projection"] = config.reparametrised
        settings["encoder_hidden_size"] = config.d_hidden
    if kind == "P_TUNING":
        settings["encoder_reparameterization_type"] = config.encoder.upper()
        settings["encoder_hidden_size"] = config.d_hidden
        settings["encoder_num_layers"] = config.n_layers
        settings["encoder_dropout"] = config.dropout
    return settings


def load_peft_prompt(model: nn.Module, folder: str | Path, name: str = "default") -> Adapted:
    """Put a prefix or prompt that `peft` has trained on our model of the same base.

    Arguments, result and errors are those of `minillm.export.peft.load_peft`.
    """
    folder = Path(folder)
    theirs, tensors = read_json_object(folder / CONFIG), read_tensor_file(folder / WEIGHTS)
    config, host = our_config(theirs, folder), host_of(model)
    check_method(model, host, theirs["peft_type"])
    whole = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if tensors.keys() - {HEAD + name for name in whole} != {ROWS}:
        raise CheckpointError(f"{folder / WEIGHTS} holds {sorted(tensors)}, expected {ROWS} and a classifier's head")
    heads = heads_from(model, whole, str(folder / WEIGHTS))
    config = replace(config, heads=tuple(sorted({name.rpartition(".")[0] for name in heads})))
    try:
        adapted = adapt(model, config, name, torch.Generator().manual_seed(0))
    except ConfigError as error:
        raise CheckpointError(f"{folder} does not fit this {type(model).__name__}: {error}") from error
    ((key, table),) = [(key, table) for key, table in adapted.delta.tensors().items() if key.endswith(".table")]
    rows = tensors[ROWS]
    if isinstance(host.config, T5Config):
        rows = rows[: config.n_virtual]
    if rows.shape != table.shape:
        adapted.remove()
        raise CheckpointError(f"{folder / WEIGHTS} has rows {tuple(rows.shape)}, this model takes {tuple(table.shape)}")
    adapted.delta.load({key: rows, **heads})
    return adapted


def our_config(theirs: Mapping[str, Any], folder: Path) -> PrefixConfig | PromptConfig | PTuningConfig:
    """The config that their settings mean.

    Raises:
        CheckpointError: if the method is another, or a setting is out of range.
    """
    kind, n_virtual = theirs.get("peft_type"), theirs.get("num_virtual_tokens")
    if kind not in KINDS:
        raise CheckpointError(f"{folder / CONFIG} has peft_type {kind!r}, expected one of {', '.join(KINDS)}")
    d_hidden = {"d_hidden": theirs["encoder_hidden_size"]} if theirs.get("encoder_hidden_size") else {}
    try:
        if kind == "PROMPT_TUNING":
            return PromptConfig(n_virtual=n_virtual)
        if kind == "PREFIX_TUNING":
            return PrefixConfig(n_virtual=n_virtual, reparametrised=bool(theirs.get("prefix_projection")), **d_hidden)
        encoder = str(theirs.get("encoder_reparameterization_type", "MLP")).lower()
        return PTuningConfig(n_virtual=n_virtual, encoder=encoder, **d_hidden)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
