"""(IA)^3 vectors in the layout of the `peft` package, for the exported model, and back.

    DIR/adapter_config.json         which modules, and of which the inputs are multiplied
        adapter_model.safetensors   base_model.model.<their module>.ia3_l: (O, 1) for outputs, (1, I) for inputs

A module of theirs has one vector for all its outputs. Where it makes queries, keys and values at once, those that are
not multiplied here get ones there. Vectors that a file lacks are ones here.

Dimensions: O outputs of a layer, I inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.adapted import Adapted, adapt
from minillm.adapt.delta import Delta, TrainedInPlace
from minillm.adapt.ia3 import IA3Config, IA3Delta, Vectors
from minillm.errors import CheckpointError, ConfigError
from minillm.export.exported import exported, head_tensors, heads_from, modules_of
from minillm.export.folder import new_folder, read_json_object, write_json
from minillm.export.peft_lora import CONFIG, EXPERT, PREFIX, WEIGHTS, Place, places_of, touches
from minillm.train.checkpoint import write_file
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

KEY = ".ia3_l"


def save_peft_ia3(adapted: Adapted, folder: str | Path, base: str = "") -> Path:
    """Write (IA)^3 vectors so that `PeftModel.from_pretrained(exported model, folder)` gives the same logits.

    Args:
        adapted: a model of a family that transformers has, or a classifier over one, with such vectors.
        folder: a new or empty folder; it appears complete or not at all.
        base: where `peft` finds the exported model; noted in the config.

    Returns:
        the folder.

    Raises:
        CheckpointError: if transformers has no such model, the method is another, or their layout cannot say it.
    """
    delta, heads = vectors_and_heads(adapted)
    places = places_of(adapted.model)
    theirs: dict[str, Tensor] = {}
    for name, layer in delta.layers.items():
        if name not in places:
            raise CheckpointError(f"{name} cannot be written for peft: the exported model has no such module")
        if any(EXPERT.match(module) for module in places[name].modules):
            raise CheckpointError(
                f"{name} is a layer of an expert, for which transformers has no module of its own; multiply "
                "others, such as inputs=(\"attention.output\",), or save with save()"
            )
        theirs |= to_theirs(name, layer.ia3, places[name])
    saved = head_tensors(adapted, heads)
    tensors = {f"{PREFIX}{module}{KEY}": vector for module, vector in theirs.items()}
    tensors |= {f"{PREFIX}{key}": tensor for key, tensor in saved.items()}
    settings = {
        "peft_type": "IA3",
        "task_type": exported(adapted.model).task,
        "base_model_name_or_path": base or None,
        "target_modules": sorted(theirs),
        "feedforward_modules": sorted(module for module, vector in theirs.items() if is_of_inputs(vector)),
        "modules_to_save": modules_of(saved),
        "fan_in_fan_out": any(places[name].is_transposed for name in delta.layers),
        "init_ia3_weights": True,
        "inference_mode": True,
    }
    with new_folder(Path(folder)) as temporary:
        write_json(temporary / CONFIG, settings)
        write_file(temporary / WEIGHTS, tensor_file_chunks(tensors, {"format": "pt"}))
    return Path(folder)


def vectors_and_heads(adapted: Adapted) -> tuple[IA3Delta, dict[str, Tensor]]:
    """The vectors of an adapted model, and what is trained beside them: our parameter's name -> numbers.

    Raises:
        CheckpointError: if it is another method.
    """
    parts: Sequence[Delta] = getattr(adapted.delta, "deltas", [adapted.delta])
    if not isinstance(parts[0], IA3Delta):
        raise CheckpointError(f"the model is adapted by the method {adapted.config.method}, expected ia3")
    return parts[0], {key: value for part in parts[1:] if isinstance(part, TrainedInPlace)
                      for key, value in part.tensors().items()}  # fmt: skip


def to_theirs(name: str, vectors: Vectors, place: Place) -> dict[str, Tensor]:
    """One layer's vectors as those of their modules.

    Raises:
        CheckpointError: if outputs and inputs are multiplied, for which they have no room.
    """
    of_inputs, of_outputs = vectors.of_inputs(), vectors.of_outputs()
    if of_inputs is not None and of_outputs is not None:
        raise CheckpointError(f"inputs and outputs of {name} are multiplied; peft has one vector for a module")
    if of_inputs is not None:
        return {module: of_inputs.detach()[None].contiguous() for module in place.modules}
    return {
        module: of_outputs.detach()[rows.to(of_outputs.device)][:, None].contiguous()
        for module, rows in zip(place.modules, place.rows, strict=True)
        if any(touches(section, rows) for section in vectors.sections.values())
    }


def is_of_inputs(vector: Tensor) -> bool:
    """Whether one of their vectors multiplies inputs."""
    return vector.shape[0] == 1


def load_peft_ia3(model: nn.Module, folder: str | Path, name: str = "default") -> Adapted:
    """Put (IA)^3 vectors that `peft` has trained, or `save_peft_ia3` written, on our model of the same base.

    Arguments, result and errors are those of `minillm.export.peft.load_peft`.
    """
    folder = Path(folder)
    kind = read_json_object(folder / CONFIG).get("peft_type")
    if kind != "IA3":
        raise CheckpointError(f"{folder / CONFIG} has peft_type {kind!r}, expected 'IA3'")
    found = Found(model, folder)
    kept = found.take(read_tensor_file(folder / WEIGHTS))
    try:
        adapted = adapt(model, found.config(sorted({key.rpartition(".")[0] for key in kept})), name)
    except ConfigError as error:
        raise CheckpointError(f"{folder} does not fit this {type(model).__name__}: {error}") from error
    delta, _ = vectors_and_heads(adapted)
    adapted.delta.load({**found.tensors(delta), **kept})
    return adapted


@dataclass
class Found:
    """What a file holds, by our layers.

    Attributes:
        model: ours.
        folder: of the file, for messages.
        outputs: our layer's name -> number of their module in its place -> vector (O,).
        inputs: our layer's name -> vector (I,).
    """

    model: nn.Module
    folder: Path
    outputs: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.places = places_of(self.model)

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sort a file's vectors; what else is in it are heads, under our names.

        Raises:
            CheckpointError: if there are none, or one has no place or the wrong size.
        """
        bare = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
        vectors = {key.removesuffix(KEY): bare.pop(key) for key in list(bare) if key.endswith(KEY)}
        if not vectors:
            raise CheckpointError(f"{self.folder / WEIGHTS} holds no (IA)^3 vectors")
        for module, vector in vectors.items():
            self.take_vector(module, vector)
        return heads_from(self.model, bare, str(self.folder / WEIGHTS))

    def take_vector(self, module: str, vector: Tensor) -> None:
        """Sort one vector."""
        name = next((name for name, place in self.places.items() if module in place.modules), None)
        if name is None:
            raise CheckpointError(f"{self.folder / WEIGHTS} adapts {module}, which this model does not have")
        place = self.places[name]
        number, width = place.modules.index(module), surgery.matrix_of(self.model.get_submodule(name)).shape[1]
        expected = (1, width) if is_of_inputs(vector) else (len(place.rows[number]), 1)
        if vector.shape != expected:
            given = tuple(vector.shape)
            raise CheckpointError(f"{self.folder / WEIGHTS}: {module} has a vector {given}, expected {expected}")
        if not is_of_inputs(vector):
            self.outputs.setdefault(name, {})[number] = vector[:, 0]
        elif not torch.equal(self.inputs.setdefault(name, vector[0]), vector[0]):
            raise CheckpointError(f"{self.folder / WEIGHTS}: {name} is one layer here, whose inputs have one vector")

    def config(self, heads: Sequence[str]) -> IA3Config:
        """Our settings for these layers."""
        parts = {part for name in self.outputs for part, rows in surgery.sections_of(self.model, name).items()
                 if any(touches(rows, self.places[name].rows[number]) for number in self.outputs[name])}  # fmt: skip
        chosen = {"parts": tuple(sorted(parts))} if parts else {}
        return IA3Config(outputs=tuple(self.outputs), inputs=tuple(self.inputs), heads=tuple(heads), **chosen)

    def tensors(self, delta: IA3Delta) -> dict[str, Tensor]:
        """Our parameter's name -> numbers."""
        tensors = {}
        for name, vector in delta.parameters().items():
            layer, _, part = name.rpartition(".ia3.")
            if part == "input":
                tensors[name] = self.inputs.get(layer, torch.ones_like(vector))
                continue
            whole = vector.new_ones(delta.layers[layer].ia3.n_rows)
            for number, theirs in self.outputs.get(layer, {}).items():
                whole[self.places[layer].rows[number]] = theirs.to(whole)
            tensors[name] = whole.detach()[delta.layers[layer].ia3.sections[part]]
        return tensors
