"""Arrays and a small header in one file: NumPy's zip format without pickle, written whole or not at all."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import CheckpointError
from minillm.statistical.counts import NGramCounts, NGramLevel, check_sizes

COUNTS_FORMAT = "minillm n-gram counts 1"


def save_arrays(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays and the header, a JSON object, to one file; an old file is replaced by a whole one."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `save_arrays` wrote.

    Args:
        path: of the file.
        kind: what the header's "format" must be.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another kind.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        header = json.loads(str(arrays.pop("header")))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it is damaged or not {kind!r}") from None
    if not isinstance(header, dict) or header.get("format") != kind:
        raise CheckpointError(f"{path} is not of the format {kind!r}")
    return header, arrays


def save_counts(counts: NGramCounts, path: str | Path) -> None:
    """Write count tables to one file; every smoothing method can be made of them again."""
    arrays = {
        f"{name}_{length}": array
        for length, level in enumerate(counts.levels, start=1)
        for name, array in vars(level).items()
    }
    header = {"vocab_size": counts.vocab_size, "order": counts.order, "boundary": counts.boundary}
    save_arrays(Path(path), {"format": COUNTS_FORMAT, **header}, arrays)


def load_counts(path: str | Path) -> NGramCounts:
    """The count tables that were saved.

    Raises:
        CheckpointError: if the file is missing, damaged or something else.
    """
    header, arrays = load_arrays(Path(path), COUNTS_FORMAT)
    try:
        check_sizes(header["order"], header["vocab_size"], header["boundary"])
        levels = [
            NGramLevel(*(arrays[f"{name}_{length}"] for name in ("keys", "counts", "context_counts")))
            for length in range(1, header["order"] + 1)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} lacks a part of n-gram counts ({error}); save them again") from None
    n_below = 1
    for level in levels:
        n = len(level.keys)
        shapes = [array.shape for array in vars(level).values()]
        whole = all(array.dtype.kind == "i" for array in vars(level).values())
        fitting = whole and shapes == [(n,), (n + 1,), (n_below + 1,)]
        if not fitting or not keys_fit(level.keys, n_below * header["vocab_size"]):
            raise CheckpointError(f"the arrays of {path} contradict one another; save the counts again")
        n_below = n
    return NGramCounts(header["vocab_size"], tuple(levels), header["boundary"])


def keys_fit(keys: np.ndarray, n_possible: int) -> bool:
    """Whether the keys are sorted, all different, and from 0 to n_possible - 1."""
    return len(keys) == 0 or bool(keys[0] >= 0 and keys[-1] < n_possible and np.all(np.diff(keys) > 0))
