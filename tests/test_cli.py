"""The command line: cheap to start, clear when it is misused."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from minillm.cli import VERBS, main
from minillm.verbs.course import ACTIONS


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after `code` ran in a fresh Python."""
    program = f"{code}\nimport sys; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


HEAVY = {"torch", "matplotlib", "scipy", "datasets", "nltk", "tiktoken"}


def test_importing_minillm_imports_nothing_heavy():
    assert not loaded_by("import minillm") & (HEAVY | {"numpy", "regex"})


PLAIN_VERBS = [verb for verb in VERBS if verb != "course"]
COMMANDS = [[verb] for verb in PLAIN_VERBS] + [["course", action] for action in ACTIONS]


@pytest.mark.parametrize(
    "words", [["--help"], ["course"], *([*words, "--help"] for words in COMMANDS)], ids=lambda words: "-".join(words)
)
def test_help_answers_without_torch(words):
    code = f"import minillm.cli\ntry: minillm.cli.main({words!r})\nexcept SystemExit: pass"
    assert not loaded_by(code) & HEAVY


def test_help_names_every_verb(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_unknown_verb_is_named_with_the_known_ones(capsys):
    assert main(["trian"]) == 2
    shown = capsys.readouterr().err
    assert "trian" in shown and "train" in shown


@pytest.mark.parametrize("words", COMMANDS, ids="-".join)
def test_unknown_flag_is_named_with_the_known_ones(words, capsys):
    assert main([*words, "--no-such-flag", "1"]) == 2
    shown = capsys.readouterr().err
    assert "--no-such-flag" in shown and "--config" in shown


@pytest.mark.parametrize("words", COMMANDS, ids="-".join)
def test_every_setting_is_explained(words):
    verb = importlib.import_module(f"minillm.verbs.{words[0]}")
    for field in dataclasses.fields(verb.Settings if len(words) == 1 else ACTIONS[words[1]].settings):
        assert len(field.metadata["help"]) > 10, f"minillm {' '.join(words)} --{field.name} has no help"


def test_course_names_its_actions(capsys):
    assert main(["course"]) == 0
    shown = capsys.readouterr().out
    assert all(action in shown for action in ACTIONS)
    assert main(["course", "strat"]) == 2
    assert "start" in capsys.readouterr().err


def test_families_and_sizes_on_offer_are_the_registrys():
    from minillm.models.registry import families, sizes
    from minillm.verbs.train import FAMILY_NAMES, SIZE_NAMES

    assert (FAMILY_NAMES, SIZE_NAMES) == (families(), sizes())
