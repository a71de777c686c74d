"""Models from and to the Hugging Face layout, so that they open in `transformers` and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm import __version__
from minillm.errors import CheckpointError
from minillm.export import bert, bloom, falcon, gpt2, llama, mixtral, t5
from minillm.export.family import Family
from minillm.export.folder import (
    CONFIG,
    SHARD_BYTES,
    TensorFolder,
    new_folder,
    read_json_object,
    write_json,
    write_tensors,
)
from minillm.export.tokenizer import token_ids_of, write_tokenizer
from minillm.export.weights import check_tensors, expected_shapes, to_ours, to_theirs
from minillm.tokenizers.tokenizer import Tokenizer

DECODERS = (gpt2.FAMILY, bloom.FAMILY, llama.FAMILY, llama.MISTRAL, mixtral.FAMILY, falcon.FAMILY)
FAMILIES = {family.name: family for family in (*DECODERS, *bert.FAMILIES, t5.FAMILY)}
DTYPE_NAMES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def family_of(config: Any) -> Family:
    """The family of `transformers` that computes the same as a model of ours.

    Args:
        config: our model's config.

    Returns:
        The first family without a reason against it.

    Raises:
        CheckpointError: if there is none, with what stands against the nearest one.
    """
    reasons = {
        name: family.reasons_against(config)
        for name, family in FAMILIES.items()
        if isinstance(config, family.config_type)
    }
    if not reasons:
        raise CheckpointError(f"no class of transformers is known for a {type(config).__name__}; known: {[*FAMILIES]}")
    nearest = min(reasons, key=lambda name: len(reasons[name]))
    if reasons[nearest]:
        raise CheckpointError(
            "transformers has no class that computes what this model does, so it would give other logits there; "
            f"the nearest is {nearest}, but {', '.join(reasons[nearest])}. "
            f"Train one of the families {', '.join(FAMILIES)} to export it"
        )
    return FAMILIES[nearest]


def save_hugging_face(
    model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write a model so that `transformers.AutoModel...from_pretrained(folder)` gives the same logits.

    Args:
        model: of a family that transformers has; the number format of its weights is kept.
        folder: a new or empty folder; it appears complete or not at all.
        tokenizer: written beside it for `AutoTokenizer`; None writes none.
        shard_bytes: the most bytes in one weight file.

    Returns:
        the folder.

    Raises:
        CheckpointError: if transformers has no such model (with the reason), or the folder cannot be written.
        TokenizerError: if the tokenizer cannot be written in their format.
    """
    family = family_of(model.config)
    tensors = to_theirs(model.state_dict(), family.matches(model.config))
    with new_folder(Path(folder)) as temporary:
        write_json(temporary / CONFIG, config_json(family, model, tokenizer))
        write_tensors(temporary, tensors, shard_bytes)
        if tokenizer is not None:
            write_tokenizer(tokenizer, temporary, model.config.max_seq_len)
    return Path(folder)


def config_json(family: Family, model: nn.Module, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The content of config.json."""
    dtype = next(model.parameters()).dtype
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **token_ids_of(tokenizer),
        **family.config_to(model.config),
        "dtype": DTYPE_NAMES[dtype],
        "torch_dtype": DTYPE_NAMES[dtype],  # the same for versions before 5
        "minillm_version": __version__,
    }


def load_hugging_face(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The model in a folder on this disk.

    Args:
        folder: config.json and safetensors, as `save_pretrained` of transformers or `save_hugging_face` writes them.
        device: where to put the model.
        dtype: number format of its weights.

    Returns:
        Our model, in evaluation mode.

    Raises:
        CheckpointError: if the folder holds no model, one of a family or with settings that this library does not
            have, or weights whose names or sizes do not fit; the message lists them.
        ConfigError: if the sizes in config.json contradict each other.
    """
    family, config = read_config(Path(folder))
    model = family.make_model(config, torch.Generator().manual_seed(0)).to(dtype)
    load_weights(model, folder)
    return model.to(device).eval()


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Fill a model of ours with the weights of a folder. All is read and compared before anything is changed.

    Args:
        model: of the folder's family and shape.
        folder: as for `load_hugging_face`.

    Raises:
        CheckpointError: as `load_hugging_face`; the model is as it was.
    """
    folder = Path(folder)
    family, state = known_family(read_json_object(folder / CONFIG), folder), model.state_dict()
    if not isinstance(model.config, family.config_type):
        raise CheckpointError(f"{folder} holds a {family.name}, the model is a {type(model).__name__}")
    if reasons := family.reasons_against(model.config):
        raise CheckpointError(f"{folder} holds a {family.name}, which the model is not: {', '.join(reasons)}")
    matches, tensors = family.matches(model.config), TensorFolder(folder)
    names = names_in_file(family, tensors.shapes)
    expected = {names(name): shape for name, shape in expected_shapes(state, matches).items()}
    aliases = {names(alias): names(name) for alias, name in family.aliases(model.config).items()}
    check_tensors(str(folder), expected, without(tensors.shapes, aliases), family.ignored)
    check_aliases(tensors, aliases)
    weights = to_ours(lambda name: tensors.read(names(name)), matches)
    model.load_state_dict(weights)


def read_config(folder: Path) -> tuple[Family, Any]:
    """The family of a folder and our config of its model."""
    theirs = read_json_object(folder / CONFIG)
    family = known_family(theirs, folder)
    return family, family.config_from(theirs)


def known_family(theirs: Mapping[str, Any], folder: Path) -> Family:
    """The family that config.json names."""
    if theirs.get("model_type") not in FAMILIES:
        raise CheckpointError(f"{folder} holds a {theirs.get('model_type')!r} model; known are {', '.join(FAMILIES)}")
    return FAMILIES[theirs["model_type"]]


def names_in_file(family: Family, found: Mapping[str, Any]):
    """Their full name -> the name in this file: checkpoints of a bare body leave the prefix out."""
    bare = bool(family.prefix) and not any(name.startswith(family.prefix) for name in found)
    return (lambda name: name.removeprefix(family.prefix)) if bare else (lambda name: name)


def without(shapes: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The names that are no aliases of others."""
    return {name: shape for name, shape in shapes.items() if name not in aliases}


def check_aliases(tensors: TensorFolder, aliases: Mapping[str, str]) -> None:
    """Tied tensors that a file holds twice must be equal.

    Raises:
        CheckpointError: if they are not: the file says that they are two.
    """
    for alias, name in aliases.items():
        if alias in tensors.shapes and not equal(tensors.read(alias), tensors.read(name)):
            raise CheckpointError(f"{tensors.folder}: config.json says that {alias} is {name}, but the two differ")


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same size and numbers."""
    return first.shape == second.shape and torch.equal(first, second)
