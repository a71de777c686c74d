"""What the configs of encoders and encoder-decoders check alike."""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from minillm.errors import ConfigError
from minillm.models.gpt import check_count

Config = TypeVar("Config")


def check_counts(config: object, positive: Collection[str], from_zero: Collection[str] = ()) -> None:
    """Check the whole numbers of a config.

    Args:
        config: the dataclass.
        positive: fields that are at least 1.
        from_zero: fields that are at least 0.

    Raises:
        ConfigError: naming the first that is not.
    """
    for names, at_least in ((positive, 1), (from_zero, 0)):
        for name in names:
            check_count(name, getattr(config, name), at_least)


def check_choices(config: object, choices: Mapping[str, Collection[str]]) -> None:
    """Check the settings that are names.

    Args:
        config: the dataclass.
        choices: field -> the names it may have.

    Raises:
        ConfigError: naming the first that has another.
    """
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ConfigError(f"{name} is {getattr(config, name)!r}, expected one of {tuple(allowed)}")


def check_training_numbers(dropout: float, norm_epsilon: float) -> None:
    """Check two numbers that most configs have.

    Raises:
        ConfigError: if dropout is outside [0, 1) or the epsilon is not positive.
    """
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout is {dropout}, expected 0 <= dropout < 1")
    if not 0.0 < norm_epsilon < math.inf:
        raise ConfigError(f"norm_epsilon is {norm_epsilon}, expected a positive number")


def fill_in(config: object, **values: object) -> None:
    """Give fields of a frozen config, which were 0 for "the usual", their values; others stay as they are."""
    for name, value in values.items():
        object.__setattr__(config, name, getattr(config, name) or value)


def named_config(
    config_type: type[Config], what: str, name: str, known: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> Config:
    """The config of a named kind with some settings of the caller's.

    Args:
        config_type: the dataclass.
        what: how a message calls the name.
        name: one of `known`.
        known: name -> the settings that make the kind.
        settings: any fields, which win.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value out of range.
    """
    if name not in known:
        raise ConfigError(f"{what} is {name!r}, expected one of {tuple(known)}")
    fields = config_type.__dataclass_fields__
    if unknown := sorted(set(settings) - set(fields)):
        raise ConfigError(f"unknown model settings {unknown}; known are {sorted(fields)}")
    return config_type(**{**known[name], **settings})
