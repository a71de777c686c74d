"""What there is to know about one family of models in `transformers`: its config keys and its tensors' names."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from minillm.errors import CheckpointError
from minillm.export.weights import Match

Theirs = Mapping[str, Any]
REQUIRED = object()


@dataclass(frozen=True)
class Family:
    """How one of our kinds of models is written as one of theirs.

    Args:
        name: `model_type` in config.json.
        architecture: their class, as `architectures` in config.json names it.
        config_type: our config's class.
        make_model: (config, generator) -> our model.
        config_from: config.json -> our config; raises a CheckpointError for what our model does not do.
        config_to: our config -> the keys of config.json that say the same (without the token ids of the tokenizer).
        matches: our config -> every parameter of ours with the tensors of theirs.
        reasons_against: our config -> why their class computes something else; empty if it does not.
        prefix: what a checkpoint without a head leaves out at the beginning of each name.
        aliases: our config -> {their name of a tied tensor: their name that `matches` uses}.
        ignored: regular expressions of names that old files hold and that are no parameters.
    """

    name: str
    architecture: str
    config_type: type
    make_model: Callable[[Any, torch.Generator | None], nn.Module]
    config_from: Callable[[Theirs], Any]
    config_to: Callable[[Any], dict[str, Any]]
    matches: Callable[[Any], list[Match]]
    reasons_against: Callable[[Any], list[str]]
    prefix: str = ""
    aliases: Callable[[Any], dict[str, str]] = lambda config: {}
    ignored: Sequence[str] = ()


def taken(theirs: Theirs, key: str, default: Any = REQUIRED) -> Any:
    """The value of a key of config.json.

    Args:
        theirs: the file's content.
        key: which.
        default: what their class takes if the file leaves it out or says null; without one, the key must be there.

    Raises:
        CheckpointError: naming the key that is missing.
    """
    value = theirs.get(key)
    if value is not None:
        return value
    if default is REQUIRED:
        raise CheckpointError(f"config.json of a {theirs.get('model_type')!r} model lacks {key!r}")
    return default


def check_settings(theirs: Theirs, understood: Mapping[str, Collection[Any]]) -> None:
    """Refuse settings with which their class computes something that ours does not.

    Args:
        theirs: the content of config.json.
        understood: key -> the values that mean what our model does; the first is what a missing key means.

    Raises:
        CheckpointError: naming each such setting with what was expected.
    """
    wrong = []
    for key, values in understood.items():
        value = theirs.get(key, next(iter(values)))
        if value not in values:
            wrong.append(f"{key} = {value!r} (expected {' or '.join(map(repr, values))})")
    if wrong:
        raise CheckpointError(
            f"config.json of this {theirs.get('model_type')!r} model asks for what this library's does not do: "
            + "; ".join(wrong)
        )


def differences(config: Any, needed: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Which settings of ours have no counterpart in a class of theirs.

    Args:
        config: our config, a dataclass.
        needed: field -> the one value that their class computes.
        free: fields that may have any value; all others must have their default.

    Returns:
        one text per setting, "qk_norm is True (needs False)".
    """
    found = []
    for field in dataclasses.fields(config):
        if field.name in free:
            continue
        value, only = getattr(config, field.name), needed.get(field.name, field.default)
        if value != only:
            found.append(f"{field.name} is {value!r} (needs {only!r})")
    return found
