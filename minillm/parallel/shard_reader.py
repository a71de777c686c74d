"""Read a sharded checkpoint as any other number of ranks, in any other mesh, or as one process.

A reader asks for a part of a tensor; where the writers cut it does not matter. At most one whole tensor is in memory at
a time beside what was asked for, and files without a number of the part are not opened.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minillm.errors import CheckpointError
from minillm.parallel.pieces import Piece, cut_piece, may_overlap, piece_from_json, put_piece
from minillm.parallel.sharded_checkpoint import INDEX, SHARDED_FORMAT
from minillm.train.checkpoint import read_json, verify_checkpoint
from minillm.train.tensor_file import DTYPE_CODES

DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


class ShardReader:
    """One sharded checkpoint, opened for reading. Needs no other rank: each reads what it wants.

    Args:
        path: the folder step-N.
        verify: compare all files with their checksums first; `ShardedCheckpoints.newest_valid` has done it already.

    Attributes:
        step: number of steps made.
        state: of the run, as rank 0 gave it.
        rank_states: of the ranks that wrote it, in their order.

    Raises:
        CheckpointError: if it is damaged or none at all.
    """

    def __init__(self, path: str | Path, verify: bool = False):
        self.path = Path(path)
        if verify:
            verify_checkpoint(self.path, (INDEX,))
        index = read_json(self.path / INDEX)
        if index.get("format") != SHARDED_FORMAT:
            raise CheckpointError(
                f"{self.path}: sharded format {index.get('format')!r}, this version reads format {SHARDED_FORMAT}"
            )
        self.step: int = index["step"]
        self.state: dict = index["state"]
        self.rank_states: list[dict] = index["ranks"]
        self.table: dict[str, dict] = index["tensors"]

    def names(self, start: str = "") -> list[str]:
        """Names of the tensors that begin with `start`, in alphabetical order."""
        return sorted(name for name in self.table if name.startswith(start))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self.entry(name)["shape"])

    def entry(self, name: str) -> dict:
        """What the index says of a tensor.

        Raises:
            CheckpointError: if it is not there.
        """
        if name not in self.table:
            near = [known for known in self.names() if known.rsplit("/")[-1] == name.rsplit("/")[-1]][:3]
            raise CheckpointError(f"{self.path} has no tensor {name!r}; {len(self.table)} others, such as {near}")
        return self.table[name]

    def read(self, name: str, piece: Piece | None = None) -> Tensor:
        """A tensor, or a part of it.

        Args:
            name: of the tensor.
            piece: which part; None: the whole.

        Returns:
            a tensor of shape `piece.part_shape` on the CPU, with memory of its own.

        Raises:
            CheckpointError: if there is no such tensor, it has another shape, or numbers of the part are in no file.
        """
        entry = self.entry(name)
        wanted = piece if piece is not None else Piece(self.shape(name))
        if wanted.shape != self.shape(name):
            raise CheckpointError(f"{name} has shape {self.shape(name)} in {self.path}, expected {wanted.shape}")
        parts = {}
        for part in entry["parts"]:
            held = piece_from_json([entry["shape"], part["dim"], part["ranges"], part["flat"]])
            if may_overlap(held, wanted):
                parts[held] = part["file"]
        if wanted in parts:
            return self.load(parts[wanted], name, wanted)
        return self.assemble(name, parts, wanted, DTYPES[entry["dtype"]])

    def assemble(self, name: str, parts: Mapping[Piece, str], wanted: Piece, dtype: torch.dtype) -> Tensor:
        """Put parts that were cut otherwise to their places in the whole, and cut out of it what is wanted."""
        whole = torch.empty(wanted.shape, dtype=dtype)
        is_there = torch.zeros(wanted.shape, dtype=torch.bool)
        for held, file in parts.items():
            put_piece(whole, self.load(file, name, held), held)
            put_piece(is_there, torch.ones(held.part_shape, dtype=torch.bool), held)
        n_missing = int((~cut_piece(is_there, wanted)).sum())
        if n_missing:
            raise CheckpointError(f"{n_missing} numbers of {name} are in no file of {self.path}")
        return cut_piece(whole, wanted).clone()

    def load(self, file: str, name: str, held: Piece) -> Tensor:
        """One tensor of one file."""
        if Path(file).name != file:
            raise CheckpointError(f"{self.path} names {file!r}, which is not a file of the checkpoint")
        try:
            with safe_open(self.path / file, "pt") as opened:
                tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / file} has no tensor {name!r} that can be read ({error})") from error
        if tuple(tensor.shape) != held.part_shape:
            raise CheckpointError(f"{name} in {file} has shape {tuple(tensor.shape)}, the index says {held.part_shape}")
        return tensor.clone()


def read_whole(path: str | Path, start: str = "", verify: bool = True) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, or those whose name begins with `start`, whole and on the CPU.

    Args:
        path: the folder step-N.
        start: for example "model/".
        verify: compare the files with their checksums first.

    Returns:
        {name without `start`: tensor}.

    Raises:
        CheckpointError: as `ShardReader`.
    """
    reader = ShardReader(path, verify)
    return {name.removeprefix(start): reader.read(name) for name in reader.names(start)}
