"""Arrays and a small header in one file: NumPy's zip format without pickle, written whole or not at all."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import CheckpointError


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
