"""Checkpoints that every rank writes its own part of, and that exist for all of them or not at all.

    folder/step-000123/   rank-00000.safetensors ...   the tensors, or parts of tensors, that this rank wrote
                          index.json                   which part of which tensor is in which file; the run's state
                          SHA256SUMS                   of all of them

All ranks write into one `.tmp-...` folder and vote: written, with this checksum, or failed. Only if all votes are yes
does rank 0 write the index and rename the folder (two-phase commit). A rank that dies or fails before that leaves
a folder that nobody reads; the checkpoint before it stays the newest.

Dimensions: P ranks.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import __version__
from minillm.errors import CheckpointError, ConfigError, ShapeError
from minillm.parallel.comm import Comm
from minillm.parallel.pieces import Piece
from minillm.train.checkpoint import (
    SUMS,
    checkpoint_steps,
    json_chunks,
    newest_valid_checkpoint,
    prune_checkpoints,
    remove_damaged,
    remove_leftovers,
    save_failure,
    sync_folder,
    write_file,
)
from minillm.train.tensor_file import DTYPE_CODES, tensor_file_chunks

INDEX = "index.json"
SHARDED_FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A tensor that this rank holds, and which part of the whole it is.

    Args:
        tensor: of shape `piece.part_shape`.
        piece: where it belongs.

    Raises:
        ShapeError: if the two do not fit.
    """

    tensor: Tensor
    piece: Piece

    def __post_init__(self):
        if tuple(self.tensor.shape) != self.piece.part_shape:
            raise ShapeError(f"a tensor {tuple(self.tensor.shape)} for a piece of shape {self.piece.part_shape}")


@dataclass(frozen=True)
class Claim:
    """What a rank says about a tensor before anyone writes: which part it holds, in which number format."""

    piece: Piece
    dtype: str
    n_bytes: int


class ShardedCheckpoints:
    """The sharded checkpoints of one run, newest last. Opening it removes what a killed run left half-written.

    Every method is called by all ranks. The folder must be the same for all of them: on several machines, a shared one.

    Args:
        folder: made if missing.
        comm: all ranks that save.
        keep_last: how many to keep, 2 or more.

    Raises:
        ConfigError: if `keep_last` is below 2.
        CheckpointError: if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, comm: Comm, keep_last: int = 3):
        if keep_last < 2:
            raise ConfigError(f"keep_last is {keep_last}, expected 2 or more: the newest may turn out damaged")
        self.folder, self.comm, self.keep_last = Path(folder), comm, keep_last
        all_or_none(comm, self.open if comm.rank == 0 else nothing)

    def open(self) -> None:
        """Make the folder and sweep it, as rank 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    def path(self, step: int) -> Path:
        """Where the checkpoint of that step is, or would be."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; whether it is sound is not looked at."""
        return checkpoint_steps(self.folder)

    def save(
        self,
        step: int,
        shards: Mapping[str, Shard],
        state: Mapping[str, object] | None = None,
        rank_state: Mapping[str, object] | None = None,
    ) -> Path:
        """Write the checkpoint of that step, then delete the oldest beyond `keep_last`.

        What several ranks hold alike is written by one of them, so that all write about equally much.

        Args:
            step: number of steps made so far.
            shards: what this rank holds, by the tensor's name in the whole model.
            state: of the run, as JSON can hold it; rank 0's is saved.
            rank_state: of this rank, likewise; each rank's is saved.

        Returns:
            the folder of the checkpoint, complete and on the disk.

        Raises:
            CheckpointError: on every rank, if one of them failed (disk full, numbers that are not finite, a part that
                nobody holds), naming it. Earlier checkpoints are untouched and nothing half-written stays.
            CommError: if a rank died or hung meanwhile; what it left is removed by the next one who opens the folder.
        """
        temporary = self.folder / f".tmp-step-{step:06d}"
        try:
            claims = all_or_none(self.comm, lambda: self.prepare(step, temporary, shards))
            mine = assign_writers(claims)[self.comm.rank]
            write = lambda: self.write(temporary, {name: shards[name] for name in mine}, rank_state)  # noqa: E731
            votes = all_or_none(self.comm, write)
            commit = lambda: self.commit(step, temporary, votes, dict(state or {}))  # noqa: E731
            all_or_none(self.comm, commit if self.comm.rank == 0 else nothing)
        except CheckpointError:
            if self.comm.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return self.path(step)

    def prepare(self, step: int, temporary: Path, shards: Mapping[str, Shard]) -> dict[str, Claim]:
        """Check what this rank holds and say it; rank 0 makes the temporary folder."""
        for name, shard in shards.items():
            if shard.tensor.dtype not in DTYPE_CODES:
                raise CheckpointError(f"{name} has dtype {shard.tensor.dtype}, which cannot be saved; convert it first")
            if shard.tensor.is_floating_point() and not torch.isfinite(shard.tensor).all():
                raise CheckpointError(f"{name} is not finite at step {step}; go back to the checkpoint before")
        if self.comm.rank == 0:
            if self.path(step).exists():
                remove_damaged(self.path(step), (INDEX,))
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        return {name: claim_of(shard) for name, shard in shards.items()}

    def write(self, temporary: Path, shards: Mapping[str, Shard], rank_state: Mapping[str, object] | None) -> dict:
        """Write this rank's file and bring it to the disk; what is returned is the vote."""
        name = f"rank-{self.comm.rank:05d}.safetensors"
        tensors = {each: shard.tensor for each, shard in shards.items()}
        try:
            checksum = write_file(temporary / name, tensor_file_chunks(tensors, {"format": "pt"}))
        except OSError as error:
            raise CheckpointError(save_failure(temporary, error)) from error
        pieces = {each: [DTYPE_CODES[s.tensor.dtype], *s.piece.to_json()] for each, s in shards.items()}
        n_bytes = (temporary / name).stat().st_size
        return {"file": name, "sha256": checksum, "n_bytes": n_bytes, "pieces": pieces, "state": dict(rank_state or {})}

    def commit(self, step: int, temporary: Path, votes: Sequence[dict], state: dict) -> None:
        """All have written: write down who wrote what, and let one rename make it exist."""
        sums = {vote["file"]: vote["sha256"] for vote in votes}
        for vote in votes:
            path = temporary / vote["file"]
            if not path.exists() or path.stat().st_size != vote["n_bytes"]:
                raise CheckpointError(
                    f"{vote['file']} was written, but rank 0 does not see it in {temporary}: all ranks need one shared "
                    "folder"
                )
        index = {
            "format": SHARDED_FORMAT,
            "step": step,
            "world_size": len(votes),
            "state": state,
            "ranks": [vote["state"] for vote in votes],
            "tensors": table_of_contents(votes),
            "versions": {"minillm": __version__, "torch": str(torch.__version__)},
        }
        try:
            sums[INDEX] = write_file(temporary / INDEX, json_chunks(index))
            lines = "".join(f"{value}  {name}\n" for name, value in sums.items())
            write_file(temporary / SUMS, (lines.encode("ascii"),))
            sync_folder(temporary)
            os.rename(temporary, self.path(step))
            sync_folder(self.folder)
        except OSError as error:
            raise CheckpointError(save_failure(self.path(step), error)) from error
        prune_checkpoints(self.folder, self.keep_last)

    def newest_valid(self) -> Path | None:
        """The newest checkpoint whose checksums agree, as rank 0 finds it; None in a folder without checkpoints.

        Raises:
            CheckpointError: on every rank, if there are checkpoints and all are damaged.
        """
        look = (lambda: newest_valid_checkpoint(self.folder, (INDEX,))) if self.comm.rank == 0 else nothing
        return all_or_none(self.comm, look)[0]


def all_or_none(comm: Comm, action: Callable[[], Any]) -> list[Any]:
    """Let every rank do something that may fail on some of them, so that it has succeeded on all or failed on all.

    A rank that simply raised its error would leave the others waiting for it at their next collective. So each rank
    first tries, then all tell each other how it went, and only then does anyone go on.

    Args:
        comm: the ranks; all of them call this.
        action: what this rank does; may raise.

    Returns:
        the results of all ranks, in rank order, on each of them.

    Raises:
        Exception: on a rank whose action failed, its own error.
        CheckpointError: on the ranks whose action did not fail while another's did, naming those and their errors.

    Source:
        the first half of two-phase commit: J. Gray, Notes on Data Base Operating Systems, 1978.
    """
    own_error, result = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    failure = None if own_error is None else f"{type(own_error).__name__}: {own_error}"
    votes = comm.all_objects((failure, result))
    if own_error is not None:
        raise own_error
    failed = [f"rank {rank} failed with {text}" for rank, (text, _) in enumerate(votes) if text is not None]
    if failed:
        raise CheckpointError(f"nothing was done, because {'; '.join(failed)}")
    return [value for _, value in votes]


def nothing() -> None:
    """The action of a rank that has nothing to do."""


def claim_of(shard: Shard) -> Claim:
    """What a rank says of one of its tensors."""
    return Claim(shard.piece, DTYPE_CODES[shard.tensor.dtype], shard.tensor.nbytes)


def assign_writers(claims: Sequence[Mapping[str, Claim]]) -> list[list[str]]:
    """Who writes what: each distinct part of each tensor once, by a rank that holds it.

    The parts are given out in the order in which they first come in the claims, rank 0's first: each to that one of its
    holders who has fewest bytes to write so far, the lowest of several such ranks.

    Args:
        claims: of all ranks, in rank order: name -> what it holds of the tensor.

    Returns:
        the names that each rank writes, in rank order; every rank computes the same.

    Raises:
        CheckpointError: if ranks differ about a tensor's shape or format, or hold only a part of it together.
    """
    holders: dict[tuple[str, Piece], list[int]] = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written, load = [[] for _ in claims], [0] * len(claims)
    for (name, _), ranks in holders.items():
        rank = min(ranks, key=lambda each: (load[each], each))
        written[rank].append(name)
        load[rank] += claims[rank][name].n_bytes
    return written


def check_claims(claims: Sequence[Mapping[str, Claim]]) -> None:
    """Refuse tensors about which the ranks differ, and such of which a part would be missing."""
    seen: dict[str, tuple] = {}
    pieces: dict[str, set[Piece]] = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            kind = (claim.dtype, claim.piece.shape)
            first, other = seen.setdefault(name, (rank, kind))
            if other != kind:
                raise CheckpointError(f"{name} is {other} on rank {first} and {kind} on rank {rank}; expected the same")
            pieces.setdefault(name, set()).add(claim.piece)
    for name, found in pieces.items():
        held, whole = sum(piece.n_numbers for piece in found), Piece(next(iter(found)).shape).n_numbers
        if held < whole:
            raise CheckpointError(f"the ranks together hold {held} of the {whole} numbers of {name}; all are needed")


def table_of_contents(votes: Sequence[dict]) -> dict[str, dict]:
    """Name -> number format, shape, and the parts with their files."""
    contents: dict[str, dict] = {}
    for vote in votes:
        for name, (dtype, shape, dim, ranges, flat) in vote["pieces"].items():
            entry = contents.setdefault(name, {"dtype": dtype, "shape": shape, "parts": []})
            entry["parts"].append({"file": vote["file"], "dim": dim, "ranges": ranges, "flat": flat})
    return contents
