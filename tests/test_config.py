"""Settings from defaults, file and flags; every wrong one is named."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path

import pytest

from minillm.config import config_from_json, config_to_json, parse_config, setting
from minillm.errors import ConfigError


@dataclass(frozen=True)
class Oven:
    """Bake something."""

    recipe: str = setting("bread", "what to bake", positional=True)
    degrees: float = setting(180.0, "temperature in C")
    minutes: int = setting(30, "how long")
    fan: bool = setting(False, "use the fan")
    book: Path | None = setting(None, "recipe book")
    mode: str = setting("top", "which heat", choices=("top", "both"))
    trays: tuple[int, ...] = setting((1,), "which trays")

    def __post_init__(self):
        if self.minutes < 0:
            raise ConfigError(f"minutes is {self.minutes}, must be 0 or more")


def test_defaults_file_flags_in_that_order(tmp_path):
    file = tmp_path / "oven.toml"
    file.write_text('degrees = 200\nminutes = 5\nbook = "b.txt"\ntrays = [1, 2]\n')
    oven = parse_config(Oven, ["cake", "--config", str(file), "--minutes", "7", "--fan"])
    assert oven == Oven("cake", 200.0, 7, True, Path("b.txt"), "top", (1, 2))
    assert type(oven.degrees) is float


def test_repeated_and_negated_flags():
    assert parse_config(Oven, ["--trays", "3", "4", "--no-fan"]) == Oven(trays=(3, 4))


@pytest.mark.parametrize("kind", [int, float, Path, str])
def test_a_positional_that_is_not_given_keeps_its_default(kind):
    default = kind("7")
    settings = make_dataclass("Bare", [("what", kind, setting(default, "a word", positional=True))], frozen=True)
    assert parse_config(settings, []) == settings(default)
    assert parse_config(settings, ["8"]) == settings(kind("8"))


def test_json_round_trip():
    oven = Oven("pie", 10.0, 1, True, Path("x y"), "both", (5, 6))
    assert config_from_json(Oven, config_to_json(oven)) == oven


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--degree", "200"], ["--degree", "--degrees", "--minutes"]),  # an abbreviation is not accepted
        (["--colour", "red"], ["--colour", "--fan"]),
        (["--minutes", "soon"], ["minutes", "soon"]),
        (["--minutes", "-1"], ["-1", "0 or more"]),
        (["--mode", "sideways"], ["sideways", "top, both"]),
        (["--config", "nowhere.toml"], ["nowhere.toml"]),
    ],
)
def test_wrong_flags_are_named(argv, words):
    with pytest.raises(ConfigError) as error:
        parse_config(Oven, argv)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("degres = 3\n", ["degres", "known are", "degrees"]),
        ("minutes = 1.5\n", ["minutes", "int", "1.5"]),
        ("minutes = true\n", ["minutes", "int", "True"]),
        ('fan = "yes"\n', ["fan", "bool"]),
        ("trays = 3\n", ["trays", "list"]),
        ("minutes = \n", ["not a TOML file"]),
    ],
)
def test_wrong_files_are_named(tmp_path, text, words):
    file = tmp_path / "oven.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        parse_config(Oven, ["--config", str(file)])
    assert all(word in str(error.value) for word in words)


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as leave:
        parse_config(Oven, ["--help"])
    assert leave.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("temperature in C", "default: 180.0", "which trays", "{top,both}"))
