"""Packed layers in a file: which layers of a model have which form, so that it can be built again and loaded.

The stored numbers are part of the model's `state_dict` like all others. What a program must know before it can load
them is which form each layer has; that is a small table which JSON can hold and which has a version. Example:

    {"format": 1, "layers": {"blocks.0.attention.qkv": {"form": "QuantLinear", "bits": 4, "group_size": 32, ...}}}
"""

import importlib
from collections.abc import Mapping

import torch
from torch import nn

from minillm import surgery
from minillm.compress.packed_ends import QuantEmbedding, score_by_packed
from minillm.compress.packed_linear import PackedLinear
from minillm.errors import CheckpointError, ConfigError

FORMAT = 1
HOMES = {
    "QuantLinear": "minillm.compress.quant_linear",
    "NF4Linear": "minillm.compress.packed_linear",
    "GGMLLinear": "minillm.compress.ggml_linear",
    "BinaryLinear": "minillm.compress.binary_linear",
    "TernaryLinear": "minillm.compress.binary_linear",
    "QuantEmbedding": "minillm.compress.packed_ends",
    "TwiceBinaryLinear": "minillm.compress.binary_linear",
}


def forms_of(model: nn.Module) -> dict[str, object]:
    """The table of a model's packed layers.

    Returns:
        as above; without layers if none is packed.

    Raises:
        ConfigError: if a layer has a form that cannot be built again.

    Example:
        >>> from minillm.compress.packed_linear import NF4Linear
        >>> forms_of(nn.Sequential(NF4Linear(nn.Linear(4, 2))))["layers"]
        {'0': {'form': 'NF4Linear', 'double': True, 'block_size': 64}}
    """
    layers, inner = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, QuantEmbedding):
            inner.add(module.table)
        elif not surgery.is_packed(module) or module in inner:
            continue
        if (form := type(module).__name__) not in HOMES:
            raise ConfigError(f"{name} is a {form}, which cannot be saved in few bits; there are {', '.join(HOMES)}")
        layers[name] = {"form": form, **module.settings()}
    return {"format": FORMAT, "layers": layers}


@torch.no_grad()
def rebuild(model: nn.Module, forms: Mapping[str, object], where: str = "the file") -> surgery.Operation:
    """Give the layers of a new model the forms of a table; then its `load_state_dict` takes what was saved.

    Args:
        model: of the same shape, in full precision; is changed, and the weights of these layers are lost.
        forms: as `forms_of` makes it, also after a way through JSON.
        where: it comes from, for messages.

    Returns:
        the operation.

    Raises:
        CheckpointError: if it is of another version, names a form or a layer that there is not, or has settings that
            the form does not know. The model has its layers then, if not their weights.
    """
    if forms.get("format") != FORMAT:
        raise CheckpointError(
            f"{where}: packed layers of format {forms.get('format')!r}, this version reads format {FORMAT}; quantize "
            "again from the full weights"
        )
    layers = forms["layers"]
    modules = dict(model.named_modules())
    for name, form in layers.items():
        if form.get("form") not in HOMES:
            raise CheckpointError(f"{where}: {name} has the form {form.get('form')!r}; known are {', '.join(HOMES)}")
        fits = surgery.is_embedding if form["form"] == "QuantEmbedding" else surgery.is_linear
        if name not in modules or not fits(modules[name]) or isinstance(modules[name], PackedLinear | QuantEmbedding):
            raise CheckpointError(f"{where}: {name} is packed there, and no such layer of {type(model).__name__}")

    def make(name: str, layer: nn.Module) -> PackedLinear:
        settings = dict(layers[name])
        form = settings.pop("form")
        kind = getattr(importlib.import_module(HOMES[form]), form)
        layer.weight.zero_()
        try:
            return kind.empty(layer, **settings)
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"{where}: {name} cannot be built as {form} with {settings}: {error}") from error

    operation = surgery.wrap(model, layers, make)
    score_by_packed(model)
    return operation
