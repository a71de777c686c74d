"""The command line: cheap to start, clear when it is misused."""

import subprocess
import sys

import pytest

from minillm.cli import VERBS, main


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after `code` ran in a fresh Python."""
    program = f"{code}\nimport sys; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


HEAVY = {"torch", "matplotlib", "scipy", "datasets", "nltk", "tiktoken"}


def test_importing_minillm_imports_nothing_heavy():
    assert not loaded_by("import minillm") & (HEAVY | {"numpy", "regex"})


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=lambda words: words[0])
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


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_flag_is_named_with_the_known_ones(verb, capsys):
    assert main([verb, "--no-such-flag", "1"]) == 2
    shown = capsys.readouterr().err
    assert "--no-such-flag" in shown and "--config" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_explained(verb):
    import dataclasses
    import importlib

    for field in dataclasses.fields(importlib.import_module(f"minillm.verbs.{verb}").Settings):
        assert len(field.metadata["help"]) > 10, f"minillm {verb} --{field.name} has no help"
