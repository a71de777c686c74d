"""Files of texts with answers, one example per line, as two columns or as JSON; the answer is a class or a text."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from minillm.data.feelings import LabelledText
from minillm.data.records import TextPair
from minillm.errors import ConfigError, DataError

KEYS = {"classes": ("label", "text"), "pairs": ("source", "target")}


def read_answers(path: str | Path, kind: str) -> list[tuple[str, str]]:
    """The examples of a file.

    Args:
        path: UTF-8; lines are JSON objects in a .jsonl file, else two columns with a tab between them. Empty lines do
            not count.
        kind: "classes": each line is a label and a text; "pairs": a source and a target.

    Returns:
        (label, text) or (source, target), in the file's order.

    Raises:
        ConfigError: if the kind is unknown.
        DataError: if the file cannot be read, is empty, or a line is something else.
    """
    if kind not in KEYS:
        raise ConfigError(f"kind is {kind!r}, expected one of {', '.join(KEYS)}")
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    read = from_json if path.suffix == ".jsonl" else from_columns
    found = [read(line, KEYS[kind], f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path} is empty; expected lines of {KEYS[kind][0]}, a tab, {KEYS[kind][1]}")
    return found


def from_columns(line: str, keys: tuple[str, str], where: str) -> tuple[str, str]:
    """Both parts of a line with one tab.

    Raises:
        DataError: if it has none or several, or a part is empty.
    """
    parts = [part.strip() for part in line.split("\t")]
    if len(parts) != 2 or not all(parts):
        raise DataError(f"{where}: expected {keys[0]}, one tab, {keys[1]}; found {line[:60]!r}")
    return parts[0], parts[1]


def from_json(line: str, keys: tuple[str, str], where: str) -> tuple[str, str]:
    """Both values of a JSON object; a label may be a number.

    Raises:
        DataError: if it is no object with these keys, or a value is empty.
    """
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict) or not set(keys) <= found.keys():
        raise DataError(f"{where}: expected an object with the keys {keys[0]} and {keys[1]}; found {line[:60]!r}")
    first, second = (str(found[key]).strip() for key in keys)
    if not first or not second:
        raise DataError(f"{where}: {keys[0] if not first else keys[1]} is empty")
    return first, second


def with_numbers(examples: Sequence[tuple[str, str]]) -> tuple[list[LabelledText], list[str]]:
    """Labelled texts with numbers for their classes, and the classes' names in the order of the alphabet.

    Raises:
        DataError: if all have the same label: there is nothing to decide.

    Example:
        >>> with_numbers([("spam", "buy"), ("ham", "hello")])
        ([LabelledText(text='buy', label=1), LabelledText(text='hello', label=0)], ['ham', 'spam'])
    """
    classes = sorted({label for label, _ in examples})
    if len(classes) < 2:
        raise DataError(f"all {len(examples)} texts have the label {classes}; expected at least two different labels")
    return [LabelledText(text, classes.index(label)) for label, text in examples], classes


def as_pairs(examples: Sequence[tuple[str, str]]) -> list[TextPair]:
    """Sources and targets."""
    return [TextPair(source, target) for source, target in examples]


def set_aside(examples: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """The examples shuffled, in two parts: to learn from and, at least one, to test with.

    Raises:
        DataError: if there are fewer than two examples.

    Example:
        >>> [len(part) for part in set_aside(range(10), 0.2, seed=0)]
        [8, 2]
    """
    if len(examples) < 2:
        raise DataError(f"there are {len(examples)} examples; expected two or more, some of them to test with")
    shuffled = list(examples)
    Random(f"set aside {seed}").shuffle(shuffled)
    n_test = min(len(shuffled) - 1, max(1, round(fraction * len(shuffled))))
    return shuffled[n_test:], shuffled[:n_test]
