"""Settings are frozen dataclasses; this module fills them from TOML files, command-line flags and checkpoint JSON.

Precedence: the dataclass's own defaults, then `--config FILE.toml`, then `--field value`. A key that the dataclass does
not have is an error that names the ones it has.
"""

import dataclasses
import json
import tomllib
import types
import typing
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from minillm.errors import ConfigError

Config = TypeVar("Config")


def setting(default: Any, help: str, choices: tuple | None = None, positional: bool = False) -> Any:
    """A config field with its one-line meaning and unit, which `--help` shows.

    Args:
        default: the value when nothing is said.
        help: meaning, unit and range in one line.
        choices: the allowed values, if they are few.
        positional: the command line takes it as a bare word, not as a flag.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "positional": positional})


class _Parser(ArgumentParser):
    """An argument parser that raises instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def parse_config(
    config_type: type[Config],
    argv: list[str],
    program: str = "minillm",
    fill_in: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Config:
    """Build a config from its defaults, then `--config FILE.toml`, then `--field value`; the last one wins.

    Args:
        config_type: a frozen dataclass whose fields all have defaults and are int, float, str, bool, Path,
            one of these or None, or a tuple of these.
        argv: command-line words, without the program name.
        program: the name that `--help` and errors show.
        fill_in: what file and flags said -> the same with more settings (a preset's); None adds none.

    Returns:
        The checked config: `__post_init__` of the dataclass has run on the final values.

    Raises:
        ConfigError: unknown flag or key (the known ones are named), a value of the wrong type, an unreadable file.
    """
    parser = _build_parser(config_type, program)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(f"{program}: unknown {' '.join(unknown)}; known are {', '.join(_flags(config_type))}")
    flags = vars(known)
    path = flags.pop("config", None)
    settings = {} if path is None else read_toml(path)
    settings |= {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}
    where = program if path is None else str(path)
    return config_from_dict(config_type, settings if fill_in is None else fill_in(settings), where)


def _flags(config_type: type) -> list[str]:
    return ["--config"] + [_flag(field) for field in dataclasses.fields(config_type)]


def _flag(field: dataclasses.Field) -> str:
    return field.name.upper() if field.metadata.get("positional") else "--" + field.name.replace("_", "-")


def _build_parser(config_type: type, program: str) -> _Parser:
    hints = typing.get_type_hints(config_type)
    parser = _Parser(prog=program, description=config_type.__doc__, allow_abbrev=False, argument_default=SUPPRESS)
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="TOML file with any of the settings below")
    for field in dataclasses.fields(config_type):
        kind, repeated = _plain_type(hints[field.name])
        choices = field.metadata.get("choices")
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{field.metadata.get('help', '')} (default: {shown})".replace("%", "%%")
        options: dict[str, Any] = {"help": text}
        if kind is bool:
            options["action"] = BooleanOptionalAction
        else:
            options |= {"type": kind, "metavar": "{" + ",".join(map(str, choices)) + "}" if choices else None}
            if repeated:
                options["nargs"] = "*"
            elif field.metadata.get("positional"):
                options |= {"nargs": "?", "type": _word_or_nothing(kind)}
        name = field.name if field.metadata.get("positional") else _flag(field)
        parser.add_argument(name, **options)
    return parser


def _word_or_nothing(kind: type) -> Callable[[str], Any]:
    """A converter that leaves argparse's mark for "nothing was given" alone; argparse converts that too."""

    def convert(word: str) -> Any:
        return word if word is SUPPRESS else kind(word)

    convert.__name__ = kind.__name__  # for its error messages
    return convert


def _plain_type(hint: Any) -> tuple[type, bool]:
    """(int, float, str, bool or Path; whether it repeats) for `X`, `X | None` and `tuple[X, ...]`."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(hint) if part is not type(None)), False
    return hint, False


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file; names may use `-` or `_`.

    Raises:
        ConfigError: if the file is missing or is not TOML.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    return {name.replace("-", "_"): value for name, value in settings.items()}


def config_from_dict(config_type: type[Config], settings: Mapping[str, Any], where: str = "settings") -> Config:
    """Build a config from a mapping (TOML, JSON), checking names and types.

    Args:
        config_type: the dataclass.
        settings: field name -> value; an int is taken for a float, a str for a Path, a list for a tuple.
        where: where the mapping came from, for the message.

    Raises:
        ConfigError: unknown names, wrong types, values that are not among the choices.
    """
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    if unknown := sorted(settings.keys() - fields.keys()):
        raise ConfigError(f"{where}: unknown settings {', '.join(unknown)}; known are {', '.join(fields)}")
    hints = typing.get_type_hints(config_type)
    values = {name: _checked(where, fields[name], hints[name], value) for name, value in settings.items()}
    return config_type(**values)


def _checked(where: str, field: dataclasses.Field, hint: Any, value: Any) -> Any:
    kind, repeated = _plain_type(hint)
    optional = type(None) in typing.get_args(hint)
    if value is None and optional:
        return None
    if repeated:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {field.name} must be a list of {kind.__name__}, not {value!r}")
        return tuple(_checked_one(where, field, kind, part) for part in value)
    return _checked_one(where, field, kind, value)


def _checked_one(where: str, field: dataclasses.Field, kind: type, value: Any) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: {field.name} must be {kind.__name__}, not {type(value).__name__} {value!r}")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{where}: {field.name} is {value!r}; choose one of {', '.join(map(str, choices))}")
    return value


def config_to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values (Path as str, tuple as list), in the order of its fields."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def config_to_json(config: Any) -> str:
    """The config as indented JSON text that `config_from_json` reads back to an equal config."""
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def config_from_json(config_type: type[Config], text: str, where: str = "settings") -> Config:
    """Inverse of `config_to_json`.

    Raises:
        ConfigError: if the text is not a JSON object, or as `config_from_dict`.
    """
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} must hold a JSON object, not {type(settings).__name__}")
    return config_from_dict(config_type, settings, where)
