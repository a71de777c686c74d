"""(IA)^3: keys, values and the inner numbers of the feed-forward layers are multiplied by learned vectors, no more.

Dimensions: O rows of a layer's matrix (its outputs), I columns (its inputs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.delta import Delta
from minillm.adapt.heads import head_modules
from minillm.errors import ConfigError

OUTPUTS, INPUTS = ("qkv", "key_value"), ("down",)  # of this library's models
CHILD = "ia3"  # name of the new module within the layer whose inputs or outputs it multiplies
PARTS = ("query", "key", "value")
WHOLE, INPUT = "whole", "input"  # what a vector is called if it multiplies all outputs, or the inputs
# What `peft` does without being told, where it differs from the paper: settings for the models of this library.
PEFT_SETTINGS = {
    "gpt2": {"parts": PARTS},        # its mapping names the fused c_attn, so the queries are multiplied too
    "falcon": {"parts": PARTS},
    "bloom": {"parts": PARTS},
    "bert": {"inputs": ("down", "attention.output")},  # "output.dense" means the map behind attention too
    "roberta": {"inputs": ("down", "attention.output")},
    "llama": {},
    "mixtral": {},
    "t5": {},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class IA3Config:
    """What is multiplied by learned vectors, which are all ones at first.

    Args:
        outputs: linear layers whose outputs, bias included, are multiplied, by whole name, ending or regular expression
            (`surgery.find`); none means `qkv` and `key_value`, the maps of this library that make keys and values.
        parts: of a fused layer these sections only; the paper has keys and values.
        inputs: linear layers whose inputs are multiplied; none means `down`, the second map of a feed-forward layer,
            whose inputs are the inner numbers. With a gate, l * (gate * up) is the same as gate * (l * up), which is
            what the authors' code does in T5.
        heads: modules, such as a new classifier, that are trained and saved whole.

    Where keys are turned by rotary positions or normalised (`qk_norm`), they are multiplied before that.

    Raises:
        ConfigError: if a part is unknown or there is none.

    Source:
        Liu et al. 2022, arXiv:2205.05638, section 3.3; the package's choices: `PEFT_SETTINGS`.
    """

    method: ClassVar[str] = "ia3"

    outputs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("outputs", "parts", "inputs", "heads"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.parts or set(self.parts) - set(PARTS):
            raise ConfigError(f"parts is {self.parts}, expected some of {PARTS}")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> "IA3Delta":
        """Give every layer its vectors; ones, for which no generator is needed."""
        return IA3Delta(model, self)


class Vectors(nn.Module):
    """The learned vectors of one layer, as parameters named by what they multiply.

    Args:
        layer: the linear layer.
        sections: part -> rows of the layer's matrix whose outputs are multiplied.
        with_input: whether the inputs are multiplied.
    """

    def __init__(self, layer: nn.Module, sections: Mapping[str, slice], with_input: bool):
        super().__init__()
        self.sections, self.is_on = dict(sections), True
        self.n_rows, n_columns = surgery.matrix_of(layer).shape
        sizes = {part: rows.stop - rows.start for part, rows in sections.items()}
        dtype = layer.weight.dtype if layer.weight.dtype == torch.float64 else torch.float32
        for part, size in (sizes | ({INPUT: n_columns} if with_input else {})).items():
            self.register_parameter(part, nn.Parameter(torch.ones(size, dtype=dtype, device=layer.weight.device)))

    def of_outputs(self) -> Tensor | None:
        """(O,) with ones where nothing is learned; None if no output is multiplied."""
        if not self.sections:
            return None
        pieces, end = [], 0
        for part, rows in sorted(self.sections.items(), key=lambda item: item[1].start):
            vector = self.get_parameter(part)
            pieces += [vector.new_ones(rows.start - end), vector]
            end = rows.stop
        return torch.cat([*pieces, pieces[-1].new_ones(self.n_rows - end)])

    def of_inputs(self) -> Tensor | None:
        """(I,), or None if the inputs are not multiplied."""
        return self._parameters.get(INPUT)


class Multiplied:
    """Laid over a linear layer: l_out * layer(l_in * x), with the vectors of its child `ia3`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        if not self.ia3.is_on or self.unmerged:
            return super().forward(x)
        of_inputs, of_outputs = self.ia3.of_inputs(), self.ia3.of_outputs()
        out = super().forward(x if of_inputs is None else x * of_inputs.to(x.dtype))  # (..., O)
        return out if of_outputs is None else out * of_outputs.to(out.dtype)


class IA3Delta(Delta):
    """The vectors in all layers of one model.

    `merge` multiplies the weights' rows and columns and keeps the old ones beside them, so that `unmerge` is exact;
    dividing by the vectors again, as `peft` does, loses the last digits, and everything where one is 0.

    Args:
        model: is changed: its layers get a child named `ia3`; names stay.
        config: what to multiply.

    Raises:
        ConfigError: if nothing is found, a layer lacks the parts, or has vectors already; the model is as it was then.
    """

    def __init__(self, model: nn.Module, config: IA3Config):
        self.model, self.overlays = model, {}
        outputs = found(model, config.outputs, OUTPUTS, config.heads)
        inputs = found(model, config.inputs, INPUTS, config.heads)
        sections = {name: sections_to_multiply(model, name, config.parts) for name in outputs}
        sections = {name: parts for name, parts in sections.items() if parts}
        if not sections:
            raise ConfigError(f"none of {list(outputs)} has the parts {list(config.parts)}")
        for name, layer in (outputs | inputs).items():
            if hasattr(layer, CHILD):
                raise ConfigError(f"{name} has (IA)^3 vectors already; remove them first")
        self.layers = {name: layer for name, layer in (outputs | inputs).items() if name in sections or name in inputs}
        for name, layer in self.layers.items():
            vectors = Vectors(layer, sections.get(name, {}), name in inputs)
            layer.add_module(CHILD, vectors)
            self.overlays[name] = surgery.overlay(layer, Multiplied, unmerged={})

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{CHILD}.{part}": vector
                for name, layer in self.layers.items() for part, vector in layer.ia3.named_parameters()}  # fmt: skip

    def switch(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.ia3.is_on = on

    @torch.no_grad()
    def merge(self) -> None:
        for layer in self.layers.values():
            merged = merged_parameters(layer)
            layer.unmerged.update({kind: getattr(layer, kind) for kind in merged})
            for kind, value in merged.items():
                setattr(layer, kind, nn.Parameter(value, requires_grad=False))

    def unmerge(self) -> None:
        for layer in self.layers.values():
            while layer.unmerged:
                setattr(layer, *layer.unmerged.popitem())

    def remove(self) -> None:
        for name, overlay in self.overlays.items():
            overlay.remove()
            delattr(self.layers[name], CHILD)
        self.layers, self.overlays = {}, {}


def found(
    model: nn.Module, targets: tuple[str, ...], default: tuple[str, ...], heads: tuple[str, ...]
) -> dict[str, nn.Module]:
    """The linear layers that targets mean; or, without any, those of the default names that the model has.

    Raises:
        ConfigError: if a target means nothing, or the model has none of the default names.
    """
    inside = {id(part) for head in head_modules(model, heads).values() for part in head.modules()}
    ends = {name.rpartition(".")[2] for name, module in model.named_modules() if surgery.is_linear(module)}
    targets = targets or tuple(name for name in default if name in ends) or default
    return surgery.find(model, targets, lambda module: surgery.is_linear(module) and id(module) not in inside)


def sections_to_multiply(model: nn.Module, name: str, parts: tuple[str, ...]) -> dict[str, slice]:
    """Part -> rows of one layer; all rows of a layer that is not fused.

    Example:
        >>> from minillm.models.gpt import GPT, GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=5, max_seq_len=8, n_layers=1, n_heads=2, n_kv_heads=1, d_model=4))
        >>> sections_to_multiply(model, "blocks.0.attention.qkv", ("key", "value"))
        {'key': slice(4, 6, None), 'value': slice(6, 8, None)}
    """
    sections = surgery.sections_of(model, name)
    if not sections:
        return {WHOLE: slice(0, len(surgery.matrix_of(model.get_submodule(name))))}
    return {part: rows for part, rows in sections.items() if part in parts}


def merged_parameters(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's weight, as it stores it, and its bias, if the outputs change, with the vectors multiplied in.

    Args:
        layer: with vectors.

    Returns:
        "weight" and perhaps "bias" -> a new tensor.
    """
    of_inputs, of_outputs = layer.ia3.of_inputs(), layer.ia3.of_outputs()
    weight = surgery.matrix_of(layer)                              # (O, I)
    dtype, changed = weight.dtype, weight
    changed = changed if of_inputs is None else changed * of_inputs
    changed = changed if of_outputs is None else changed * of_outputs[:, None]
    merged = {"weight": (changed.T if surgery.is_transposed(layer) else changed).to(dtype).contiguous()}
    if of_outputs is not None and getattr(layer, "bias", None) is not None:
        merged["bias"] = (layer.bias * of_outputs).to(dtype)
    return merged
