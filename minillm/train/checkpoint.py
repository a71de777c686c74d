"""Checkpoints that survive kill -9, a full disk and a flipped bit, and from which a run goes on bit by bit.

    folder/step-000123/   model.safetensors      parameters and buffers
                          optimizer.safetensors  optimizer tensors, keyed by parameter name
                          optimizer.json         the rest of the optimizer
                          state.json             step, config, generators, loss scaler, versions ...
                          SHA256SUMS             of the four, as `sha256sum -c` reads it

A checkpoint is written into `.tmp-...`, every file is brought to the disk, and one rename makes it exist. So a folder
named step-... is complete, and the checksums prove it. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm import __version__
from minillm.errors import CheckpointError, ConfigError
from minillm.runtime import AnyGenerator, generator_states, restore_generators
from minillm.train.optimizer_state import (
    check_optimizer_state,
    join_tensors,
    load_optimizer_state_by_name,
    optimizer_state_by_name,
    parameter_names,
    split_tensors,
)
from minillm.train.precision import LossScaler
from minillm.train.tensor_file import kind_of_file, read_tensor_file, tensor_file_chunks, untie

MODEL, OPTIMIZER, OPTIMIZER_REST, STATE, SUMS = (
    "model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json", "SHA256SUMS",
)  # fmt: skip
FORMAT = 1
CHUNK_BYTES = 1 << 20


@dataclass
class RunParts:
    """All that a run consists of and a checkpoint must bring back; saved from and restored into the same objects.

    Args:
        model: any module.
        optimizer: any torch optimizer over its parameters, or None (weights only).
        config: what made the model, as JSON can hold it; another config is refused when loading.
        tokenizer_fingerprint: of the tokenizer that made the ids; another one is refused when loading.
        generators: name -> torch or numpy generator that the run draws from.
        scaler: the loss scaler of fp16, if any.
    """

    model: nn.Module
    optimizer: Optimizer | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    tokenizer_fingerprint: str | None = None
    generators: Mapping[str, AnyGenerator] = field(default_factory=dict)
    scaler: LossScaler | None = None


class CheckpointFolder:
    """The checkpoints of one run, newest last. Opening it removes what a killed run left half-written.

    Args:
        folder: made if missing.
        keep_last: how many to keep, 2 or more: with one alone there is nothing to go back to when it is damaged.

    Raises:
        ConfigError: if `keep_last` is below 2.
        CheckpointError: if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, keep_last: int = 3):
        if keep_last < 2:
            raise ConfigError(f"keep_last is {keep_last}, expected 2 or more: the newest may turn out damaged")
        self.folder, self.keep_last = Path(folder), keep_last
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot make the checkpoint folder ({error.strerror})") from error
        remove_leftovers(self.folder)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; whether it is sound is not looked at."""
        return checkpoint_steps(self.folder)

    def path(self, step: int) -> Path:
        """Where the checkpoint of that step is, or would be."""
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, parts: RunParts, extra: Mapping[str, object] | None = None) -> Path:
        """Write the checkpoint of that step, then delete the oldest beyond `keep_last`.

        Args:
            step: number of steps made so far.
            parts: what to save.
            extra: more that JSON can hold (tokens seen, history of losses ...).

        Returns:
            the folder of the checkpoint, complete and on the disk.

        Raises:
            CheckpointError: if it cannot be written (disk full?), a parameter is not finite, or that step is saved
                already and sound. Earlier checkpoints are untouched and nothing half-written stays.
        """
        target = self.path(step)
        check_finite(parts.model)
        if target.exists():
            remove_damaged(target)
        temporary = self.folder / f".tmp-{target.name}"
        try:
            temporary.mkdir()
            write_checkpoint(temporary, step, parts, dict(extra or {}))
            sync_folder(temporary)
            os.rename(temporary, target)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(save_failure(target, error)) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.prune()
        return target

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond `keep_last`; one that cannot be deleted is a warning, not an error."""
        prune_checkpoints(self.folder, self.keep_last)

    def newest_valid(self) -> Path | None:
        """The newest checkpoint whose checksums agree; None in a folder without checkpoints.

        Damaged ones that are passed over are warned about.

        Raises:
            CheckpointError: if there are checkpoints and all are damaged.
        """
        return newest_valid_checkpoint(self.folder)

    def resume(self, parts: RunParts) -> dict | None:
        """Bring `parts` into the state of the newest valid checkpoint.

        Returns:
            the content of its state.json, or None if there is no checkpoint.

        Raises:
            CheckpointError: as `newest_valid` and `load_checkpoint`.
        """
        path = self.newest_valid()
        return None if path is None else load_checkpoint(path, parts, verify=False)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the folders step-N, ascending."""
    names = [path.name.removeprefix("step-") for path in Path(folder).glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def prune_checkpoints(folder: Path, keep_last: int) -> None:
    """Delete the oldest checkpoints beyond `keep_last`; see `CheckpointFolder.prune`."""
    for step in checkpoint_steps(folder)[:-keep_last]:
        doomed, path = folder / f".tmp-delete-{step:06d}", folder / f"step-{step:06d}"
        try:
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(f"old checkpoint {path} could not be deleted: {error}", stacklevel=4)


def newest_valid_checkpoint(folder: str | Path, required: Collection[str] = (MODEL, STATE)) -> Path | None:
    """The newest checkpoint below `folder` whose checksums agree, without changing anything; see `CheckpointFolder`.

    Args:
        folder: holds folders step-N.
        required: files without which it is none.

    Returns:
        the path, or None if there is no checkpoint.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    damage = []
    for step in reversed(checkpoint_steps(Path(folder))):
        path = Path(folder) / f"step-{step:06d}"
        try:
            verify_checkpoint(path, required)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for text in damage:
            warnings.warn(f"damaged checkpoint passed over, using {path.name}: {text}", stacklevel=3)
        return path
    if damage:
        raise CheckpointError(f"no checkpoint in {folder} is sound: {'; '.join(damage)}")
    return None


def verify_checkpoint(path: str | Path, required: Collection[str] = (MODEL, STATE)) -> None:
    """Compare every file of a checkpoint with its SHA-256 checksum.

    Args:
        path: the folder step-N.
        required: files without which it is none.

    Raises:
        CheckpointError: naming the first file that is missing, or differs, with its size.
    """
    sums = read_sums(Path(path) / SUMS)
    for name in sorted(set(required) - sums.keys()):
        raise CheckpointError(f"{path}: {SUMS} does not list {name}; this is not a whole checkpoint")
    for name, expected in sums.items():
        file = Path(path) / name
        try:
            found = sha256_of(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
        if found != expected:
            raise CheckpointError(
                f"SHA-256 of {name} differs in {path}: the file ({file.stat().st_size} bytes) was damaged after saving"
            )


def load_checkpoint(path: str | Path, parts: RunParts, verify: bool = True) -> dict:
    """Bring `parts` into the state of a checkpoint. Everything is read and compared before anything is changed.

    Args:
        path: the folder step-N.
        parts: model, optimizer, generators and scaler to restore; `config` and `tokenizer_fingerprint` to compare,
            an empty config and None compare nothing.
        verify: check the SHA-256 sums first.

    Returns:
        the content of state.json: "step", "config", "tokenizer_fingerprint", "extra", "versions" ...

    Raises:
        CheckpointError: if it is damaged, or belongs to another config, tokenizer, model or optimizer; the message
            lists what was expected and found.
    """
    path = Path(path)
    if verify:
        verify_checkpoint(path)
    state = read_state(path)
    check_identity(path, state, parts)
    weights = read_weights(path, state)
    check_weights(path, weights, parts.model)
    saved_optimizer = None if parts.optimizer is None else read_optimizer(path, parts)
    if parts.scaler is not None and state["scaler"] is None:
        raise CheckpointError(f"{path} has no loss scaler: the run was not in fp16; give its --precision")
    restore_generators(parts.generators, state["generators"])
    if parts.scaler is not None:
        parts.scaler.load_state_dict(state["scaler"])
    parts.model.load_state_dict(weights)
    if saved_optimizer is not None:
        load_optimizer_state_by_name(parts.optimizer, parts.model, saved_optimizer)
    return state


def read_state(path: str | Path) -> dict:
    """state.json of a checkpoint, from which a program can build the model before it loads the weights.

    Raises:
        CheckpointError: if it is missing, not JSON, or of a format that this version does not know.
    """
    state = read_json(Path(path) / STATE)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {state.get('format')!r}, this version reads format {FORMAT}")
    return state


def read_weights(path: str | Path, state: Mapping[str, object] | None = None) -> dict[str, Tensor]:
    """A model's state_dict from a checkpoint, tied names included; the caller verifies and compares.

    Args:
        path: the folder step-N.
        state: what `read_state` gave, to save reading it again.

    Returns:
        name -> tensor on the CPU.

    Raises:
        CheckpointError: if the file is not a safetensors file.
    """
    tied = (state or read_state(path))["tied"]
    weights = read_tensor_file(Path(path) / MODEL)
    if lost := sorted(set(tied.values()) - weights.keys()):
        raise CheckpointError(f"{path}: {MODEL} lacks {lost}, to which other names are tied")
    return weights | {name: weights[kept] for name, kept in tied.items()}


def write_checkpoint(folder: Path, step: int, parts: RunParts, extra: dict) -> None:
    """Write all files of a checkpoint into an empty folder, the checksums last."""
    tensors, tied = untie(parts.model.state_dict())
    metadata = {"format": "pt"}
    sums = {MODEL: write_file(folder / MODEL, tensor_file_chunks(tensors, metadata))}
    if parts.optimizer is not None:
        tensors, rest = split_tensors(optimizer_state_by_name(parts.optimizer, parts.model))
        sums[OPTIMIZER] = write_file(folder / OPTIMIZER, tensor_file_chunks(tensors, metadata))
        sums[OPTIMIZER_REST] = write_file(folder / OPTIMIZER_REST, json_chunks(rest))
    state = {
        "format": FORMAT,
        "step": step,
        "config": dict(parts.config),
        "tokenizer_fingerprint": parts.tokenizer_fingerprint,
        "tied": tied,
        "generators": generator_states(parts.generators),
        "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
        "extra": extra,
        "versions": {"minillm": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }
    sums[STATE] = write_file(folder / STATE, json_chunks(state))
    write_file(folder / SUMS, ("".join(f"{value}  {name}\n" for name, value in sums.items()).encode("ascii"),))


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write, bring to the disk, and return the SHA-256 of what was meant to be written."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return digest.hexdigest()


def json_chunks(content: dict) -> tuple[bytes]:
    """The content as JSON bytes; what JSON cannot hold is the caller's mistake."""
    try:
        return (json.dumps(content, indent=1, allow_nan=False).encode("utf-8"),)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a checkpoint holds tensors, numbers, texts, lists and dictionaries: {error}") from error


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_damaged(target: Path, required: Collection[str] = (MODEL, STATE)) -> None:
    """Make room for a checkpoint where a damaged one stands; refuse to replace a sound one."""
    try:
        verify_checkpoint(target, required)
    except CheckpointError:
        doomed = target.with_name(f".tmp-damaged-{target.name}")
        os.rename(target, doomed)
        shutil.rmtree(doomed)
        return
    raise CheckpointError(f"{target} exists already; resume from it or choose another folder")


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def save_failure(target: Path, error: OSError) -> str:
    """What happened, how much room is left, what is safe."""
    try:
        room = f"{shutil.disk_usage(target.parent).free / 1e6:.1f} MB free there"
    except OSError:
        room = "free space unknown"
    return (
        f"{target} could not be saved: {error.strerror or error} ({room}); disk full? "
        "Earlier checkpoints are untouched; make room and resume"
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_sums(path: Path) -> dict[str, str]:
    """File name -> checksum; names with a folder in them are refused."""
    try:
        *lines, rest = path.read_text(encoding="ascii").split("\n")
        sums = {name: value for value, name in (line.split("  ", 1) for line in lines)}
        if rest:
            raise ValueError("its last line is cut off")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}); this is not a whole checkpoint") from error
    for name in sums:
        if Path(name).name != name:
            raise CheckpointError(f"{path} lists {name!r}, which is not a file of the checkpoint")
    return sums


def read_json(path: Path) -> dict:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); is this a checkpoint?") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON but {kind_of_file(path)} ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_optimizer(path: Path, parts: RunParts) -> dict:
    """Named optimizer state, compared with the optimizer it is for."""
    if not (path / OPTIMIZER_REST).exists():
        raise CheckpointError(f"{path} holds weights only, no optimizer; it can be sampled from, not resumed")
    rest = read_json(path / OPTIMIZER_REST)
    if not rest.keys() >= {"state", "groups"}:
        raise CheckpointError(f"{path / OPTIMIZER_REST}: expected state and groups, found {sorted(rest)}")
    saved = join_tensors(read_tensor_file(path / OPTIMIZER), rest)
    check_optimizer_state(parts.optimizer, parameter_names(parts.optimizer, parts.model), saved)
    return saved


def check_identity(path: Path, state: dict, parts: RunParts) -> None:
    """Refuse another config or another tokenizer, listing what differs."""
    expected = json.loads(json.dumps(dict(parts.config)))
    found = state["config"]
    lines = [
        f"{key}: expected {expected.get(key, 'nothing')!r}, found {found.get(key, 'nothing')!r}"
        for key in sorted(expected.keys() | found.keys())
        if expected and expected.get(key) != found.get(key)
    ]
    ours, theirs = parts.tokenizer_fingerprint, state["tokenizer_fingerprint"]
    if ours is not None and ours != theirs:
        lines.append(f"tokenizer: expected {ours}, found {theirs}")
    if lines:
        raise CheckpointError(f"{path} belongs to another run: " + "; ".join(lines))


def check_weights(path: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse weights of other names, shapes or number formats, listing what differs."""
    expected = model.state_dict()
    lines = [
        f"{name}: expected {describe(expected.get(name))}, found {describe(weights.get(name))}"
        for name in sorted(expected.keys() | weights.keys())
        if describe(expected.get(name)) != describe(weights.get(name))
    ]
    if lines:
        more = f"; and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise CheckpointError(f"{path} does not fit this model: " + "; ".join(lines[:10]) + more)


def describe(tensor: Tensor | None) -> str:
    """Shape and number format in words."""
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_finite(model: nn.Module) -> None:
    """Refuse to save NaN or infinity as if it were a model."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(f"{name} is not finite; nothing was saved, the last good checkpoint stands")
