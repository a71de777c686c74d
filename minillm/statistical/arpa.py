"""The ARPA file format: an n-gram model as text, read and written by KenLM, SRILM and others.

Each line is `log10 p <tab> the n-gram's tokens, a space between <tab> log10 back-off weight`. The format knows two
sentence marks: `<s>` is only a context, `</s>` is only predicted. A model with a boundary has one id for both, so it is
written as `<s>` where an n-gram begins with it and as `</s>` where one ends with it, and both are read as that one id.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from minillm.errors import DataError
from minillm.statistical.backoff import BackoffLevel, BackoffModel
from minillm.statistical.counts import find

LOG10 = math.log(10)
IMPOSSIBLE = -99.0   # what the format writes for log10 of 0
START, END = "<s>", "</s>"


def write_arpa(model: BackoffModel, tokens: Sequence[str], path: str | Path, digits: int = 9) -> None:
    """Write a model as an ARPA file.

    KenLM wants `<s>`, `</s>` and `<unk>` in it: give the model a boundary, and one of the tokens that name.

    Args:
        model: every context that is not stored must have weight 1 (stupid backoff has not).
        tokens: V different strings, not empty and without white space, one per id. The boundary's is not used.
        path: of the file; an old one is replaced when the new one is whole.
        digits: significant digits of the numbers.

    Raises:
        DataError: if the tokens do not fit, or the model cannot be written so.
    """
    path = Path(path)
    names = _checked_tokens(tokens, model)
    if any(level.log_backoffs[-1] != 0 for level in model.levels[:-1]):
        raise DataError("the format has no weight for contexts that are not stored; this model needs one")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(model, names, digits))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arpa(path: str | Path) -> tuple[BackoffModel, list[str]]:
    """The model of an ARPA file, and the token of each id in the order of the file.

    If both `<s>` and `</s>` are there, they become one id, the model's boundary, whose token is `</s>`. N-grams may be
    missing (pruned), but not the first m-1 tokens of one that is there.

    Raises:
        DataError: if the file is missing or not UTF-8, or a line is wrong; the message names the line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            sections = _sections(path, file)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error})") from None
    names = [line[1] for line in sections[0]]
    both = START in names and END in names
    tokens = [name for name in names if not (both and name == START)]
    id_of = {name: token_id for token_id, name in enumerate(tokens)}
    if both:
        id_of[START] = id_of[END]
    if len(tokens) != len(set(tokens)):
        raise DataError(f"{path} has the same 1-gram twice")
    levels: list[BackoffLevel] = []
    for length, lines in enumerate(sections, start=1):
        levels.append(_read_level(path, length, lines, id_of, levels, both))
    return BackoffModel(len(tokens), levels, id_of[END] if both else None), tokens


def _checked_tokens(tokens: Sequence[str], model: BackoffModel) -> list[str]:
    names = list(tokens)
    if len(names) != model.vocab_size or len(set(names)) != len(names):
        n_different = len(set(names))
        raise DataError(f"expected {model.vocab_size} different tokens, not {len(names)} with {n_different} different")
    for token_id, name in enumerate(names):
        if token_id != model.boundary and (not name or name.split() != [name]):
            raise DataError(f"the token {name!r} of id {token_id} is empty or has white space, which cannot be written")
        if model.boundary is not None and token_id != model.boundary and name in (START, END):
            raise DataError(f"id {token_id} has the name {name!r}, which only the boundary {model.boundary} may have")
    return names


def _lines(model: BackoffModel, names: list[str], digits: int) -> Iterator[str]:
    yield "\\data\\\n"
    for length, level in enumerate(model.levels, start=1):
        n_marks = 1 if length == 1 and model.boundary is not None else 0
        yield f"ngram {length}={len(level.keys) + n_marks}\n"
    ngrams = [[]]                                               # token by token; the boundary only ever comes first
    for length, level in enumerate(model.levels, start=1):
        yield f"\n\\{length}-grams:\n"
        context, last = (part.tolist() for part in np.divmod(level.keys, model.vocab_size))
        ends, starts = (_named(names, model.boundary, mark) for mark in (END, START))
        contexts = [""] if length == 1 else ngrams
        texts = [contexts[c] + ends[i] for c, i in zip(context, last, strict=True)]
        scores = np.where(np.isneginf(level.log_probabilities), IMPOSSIBLE, level.log_probabilities / LOG10).tolist()
        weights = np.where(np.isneginf(level.log_backoffs), IMPOSSIBLE, level.log_backoffs / LOG10).tolist()
        if length == 1 and model.boundary is not None:
            yield f"{IMPOSSIBLE:g}\t{START}\t{weights[model.boundary]:.{digits}g}\n"
            weights[model.boundary] = 0.0
        if length == model.order:
            yield from (f"{score:.{digits}g}\t{text}\n" for score, text in zip(scores, texts, strict=True))
        else:
            lines = zip(scores, texts, weights[: len(texts)], strict=True)
            yield from (f"{score:.{digits}g}\t{text}\t{weight:.{digits}g}\n" for score, text, weight in lines)
        ngrams = [contexts[c] + (starts if length == 1 else ends)[i] + " " for c, i in zip(context, last, strict=True)]
    yield "\n\\end\\\n"


def _named(names: list[str], boundary: int | None, mark: str) -> list[str]:
    return names if boundary is None else [*names[:boundary], mark, *names[boundary + 1 :]]


Line = tuple[float, str, float]  # log10 p, the n-gram's tokens with a space between, log10 back-off weight


def _sections(path: str | Path, file: Iterable[str]) -> list[list[Line]]:
    """The lines of each length, checked against the numbers that the head of the file announces."""
    announced: list[int] = []
    sections: list[list[Line]] = []
    place = "before"                                            # then "head", "grams", "end"
    for number, line in enumerate(file, start=1):
        line = line.rstrip("\n").rstrip("\r")
        if not line.strip():
            continue
        if place == "before":
            place = "head" if line.strip() == "\\data\\" else "before"
        elif line.strip() == "\\end\\":
            place = "end"
            break
        elif line.startswith("\\"):
            sections.append([])
            place = "grams"
            if line.strip() != f"\\{len(sections)}-grams:":
                raise DataError(f"{path}, line {number}: expected \\{len(sections)}-grams:, not {line!r}")
        elif place == "head":
            announced.append(_announced(path, number, line, len(announced) + 1))
        else:
            sections[-1].append(_line(path, number, line, len(sections)))
    if place != "end" or not sections or announced != [len(lines) for lines in sections]:
        found = [len(lines) for lines in sections]
        raise DataError(f"{path} is no whole ARPA file: it announces {announced} n-grams by length and holds {found}")
    return sections


def _announced(path: str | Path, number: int, line: str, length: int) -> int:
    head, _, count = line.partition("=")
    if head.split() != ["ngram", str(length)] or not count.strip().isdecimal():
        raise DataError(f"{path}, line {number}: expected ngram {length}=<how many>, not {line!r}")
    return int(count)


def _line(path: str | Path, number: int, line: str, length: int) -> Line:
    parts = line.split()
    try:
        values = [float(part) for part in (parts[0], *parts[length + 1 :])]
        finite = all(math.isfinite(value) for value in values)
        if len(values) > 2 or len(parts) <= length or not finite or values[0] > 0:
            raise ValueError
    except ValueError:
        raise DataError(f"{path}, line {number}: expected log10 p, {length} tokens, back-off, not {line!r}") from None
    return values[0], " ".join(parts[1 : length + 1]), values[1] if len(values) == 2 else 0.0


def _read_level(
    path: str | Path, length: int, lines: list[Line], id_of: dict[str, int], levels: list[BackoffLevel], both: bool
) -> BackoffLevel:
    """Pack the n-grams of one length and sort them."""
    vocab_size = len(set(id_of.values()))
    scores, texts, weights = (list(column) for column in zip(*lines, strict=True)) if lines else ([], [], [])
    if length == 1:
        scores, weights = _unigram_columns(texts, scores, weights, vocab_size, both)
        return BackoffLevel(np.arange(vocab_size), _nats(scores), _nats([*weights, 0.0]))
    try:
        ids = np.array([[id_of[token] for token in text.split()] for text in texts], np.int64).reshape(-1, length)
    except KeyError as error:
        raise DataError(f"{path}: the token {error} of a {length}-gram is not among the 1-grams") from None
    nodes = ids[:, 0]
    for column, level in enumerate(levels[1:], start=1):
        nodes = find(level.keys, nodes * vocab_size + ids[:, column])
    if np.any(nodes < 0):
        raise DataError(f"{path}: {texts[int(np.argmin(nodes))]!r} is there, but not its first {length - 1} tokens")
    keys = nodes * vocab_size + ids[:, -1]
    order = np.argsort(keys)
    if np.any(np.diff(keys[order]) == 0):
        raise DataError(f"{path}: a {length}-gram is there twice")
    return BackoffLevel(keys[order], _nats(scores)[order], np.append(_nats(weights)[order], 0.0))


def _unigram_columns(
    texts: list[str], scores: list[float], weights: list[float], vocab_size: int, both: bool
) -> tuple[list[float], list[float]]:
    """Scores and weights by id: of the two sentence marks, the score of the end and the weight of the start."""
    if not both:
        return scores, weights
    start, end = texts.index(START), texts.index(END)
    weights[end] = weights[start]
    keep = [i for i in range(vocab_size + 1) if i != start]
    return [scores[i] for i in keep], [weights[i] for i in keep]


def _nats(log10: Sequence[float]) -> np.ndarray:
    values = np.array(log10, np.float64)
    return np.where(values <= IMPOSSIBLE, -np.inf, values * LOG10)
