"""A rank's model and optimizer as shards with names, and back from a checkpoint that other ranks may have written.

Names: "model/<name>" for parameters and buffers, "optimizer/<parameter name>/<key>" for the optimizer's tensors. The
names are those of the whole model: a pipeline stage that holds blocks 4 to 7 calls them so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.layout import check_tensor_parallel, tensor_layout
from minillm.parallel.owned import OwnedPiece
from minillm.parallel.pieces import Piece, piece_of_slice
from minillm.parallel.shard_reader import ShardReader
from minillm.parallel.sharded_checkpoint import Shard
from minillm.train.optimizer_state import (
    join_tensors,
    load_optimizer_state_by_name,
    merge_rests,
    optimizer_state_by_name,
    split_tensors,
)
from minillm.train.tensor_file import untie

MODEL, OPTIMIZER = "model/", "optimizer/"
Pieces = Mapping[str, Piece]


def tensor_parallel_pieces(config: GPTConfig, index: int, size: int) -> dict[str, Piece]:
    """What rank `index` of a tensor-parallel group of `size` holds of each parameter of a decoder.

    Args:
        config: of the whole model.
        index: rank in the group.
        size: ranks in the group.

    Raises:
        ConfigError: if the model cannot be cut so.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=1, n_heads=2, d_model=4)
        >>> tensor_parallel_pieces(config, index=1, size=2)["blocks.0.feed_forward.down.weight"]
        Piece(shape=(4, 16), dim=1, ranges=((8, 16),), flat=None)
    """
    check_tensor_parallel(config, size)
    with torch.device("meta"):
        whole = GPT(config)
    layout = tensor_layout(config)
    return {name: piece_of_slice(p.shape, layout[name], index, size) for name, p in whole.named_parameters()}


class OwnedParameters(nn.Module):
    """What a rank owns under ZeRO or FSDP, as a module whose parameters are flat parts of the real ones.

    It goes wherever a model goes in this file, with its `pieces`: shards of it are saved, and it is restored in place.

    Args:
        owned: `ZeroOptimizer.owned`, or that of a fully sharded module.
        pieces: of the parameters before they were flattened, under tensor parallelism; None: they were whole.
    """

    def __init__(self, owned: Sequence[OwnedPiece], pieces: Pieces | None = None):
        super().__init__()
        self.owned = {part.name: part.parameter for part in owned}
        self.pieces = {
            part.name: replace((pieces or {}).get(part.name, Piece(tuple(part.shape))), flat=(part.begin, part.end))
            for part in owned
        }

    def named_parameters(self, *_: object, **__: object) -> Iterator[tuple[str, nn.Parameter]]:
        """Names of the whole parameters, with the numbers that are owned here."""
        return iter(self.owned.items())

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:
        """The same without gradients."""
        return {name: parameter.detach() for name, parameter in self.owned.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], *_: object, **__: object) -> None:
        """Take these numbers, in place."""
        for name, parameter in self.owned.items():
            parameter.detach().copy_(state[name])


def model_shards(model: nn.Module, pieces: Pieces | None = None) -> dict[str, Shard]:
    """What this rank holds of the model.

    Args:
        model: its part, with the names of the whole model.
        pieces: which part each tensor is; one that is not named is whole.

    Returns:
        {"model/<name>": shard}; a tensor with two names comes once.

    Raises:
        ShapeError: if a piece has another shape than its tensor.
    """
    tensors, _ = untie(model.state_dict())
    return {MODEL + name: Shard(tensor, piece_for(name, tensor, pieces)) for name, tensor in tensors.items()}


def optimizer_shards(
    optimizer: Optimizer, model: nn.Module, pieces: Pieces | None = None
) -> tuple[dict[str, Shard], dict]:
    """What this rank holds of the optimizer.

    A tensor of the shape of its parameter is cut as that is; one number is whole.

    Args:
        optimizer: over parameters of `model`.
        model: this rank's part, with the names of the whole model.
        pieces: as in `model_shards`.

    Returns:
        {"optimizer/<parameter name>/<key>": shard}, and groups and plain numbers for the checkpoint's `rank_state`.

    Raises:
        CheckpointError: if there is a tensor of another shape whose parameter is cut: how, nobody can know.
    """
    tensors, rest = split_tensors(optimizer_state_by_name(optimizer, model))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    shards = {}
    for path, tensor in tensors.items():
        name = path.rpartition("/")[0]
        if tensor.dim() == 0:
            piece = Piece(())
        elif tensor.shape == shapes[name]:
            piece = piece_for(name, tensor, pieces)
        elif piece_for(name, torch.empty(shapes[name], device="meta"), pieces) == Piece(tuple(shapes[name])):
            piece = Piece(tuple(tensor.shape))
        else:
            raise CheckpointError(
                f"optimizer tensor {path} has shape {tuple(tensor.shape)} and its parameter {tuple(shapes[name])} is "
                "cut over ranks; an optimizer with one number per weight (AdamW, SGD) can be saved so"
            )
        shards[OPTIMIZER + path] = Shard(tensor, piece)
    return shards, rest


def piece_for(name: str, tensor: Tensor, pieces: Pieces | None) -> Piece:
    """The piece of that name, or the whole."""
    return pieces[name] if pieces is not None and name in pieces else Piece(tuple(tensor.shape))


def restore_model(model: nn.Module, reader: ShardReader, pieces: Pieces | None = None) -> None:
    """Bring this rank's part of the model into the state of a checkpoint. All is read before anything changes.

    Args:
        model: its part, with the names of the whole model.
        reader: of the checkpoint.
        pieces: as in `model_shards`.

    Raises:
        CheckpointError: if a tensor is not there or has another shape.
    """
    tensors, tied = untie(model.state_dict())
    read = {name: reader.read(MODEL + name, piece_for(name, tensor, pieces)) for name, tensor in tensors.items()}
    model.load_state_dict(read | {name: read[kept] for name, kept in tied.items()})


def restore_optimizer(
    optimizer: Optimizer, model: nn.Module, reader: ShardReader, pieces: Pieces | None = None
) -> None:
    """Bring this rank's part of the optimizer into the state of a checkpoint that `optimizer_shards` went into.

    Args:
        optimizer: of the same kind.
        model: this rank's part, with the names of the whole model.
        reader: of the checkpoint.
        pieces: as in `model_shards`.

    Raises:
        CheckpointError: if the checkpoint has no optimizer, or one for other parameters.
    """
    saved = join_tensors({}, merge_rests(state["optimizer"] for state in reader.rank_states if "optimizer" in state))
    if not saved["groups"]:
        raise CheckpointError(f"{reader.path} holds weights only, no optimizer")
    mine = dict(model.named_parameters())
    state = {name: dict(entries) for name, entries in saved["state"].items() if name in mine}
    for path in reader.names(OPTIMIZER):
        name, _, key = path.removeprefix(OPTIMIZER).rpartition("/")
        if name in mine:
            piece = piece_for(name, mine[name], pieces)
            is_cut_alike = reader.shape(path) == piece.shape
            state.setdefault(name, {})[key] = reader.read(path, piece if is_cut_alike else None)
    groups = [{**group, "names": [name for name in group["names"] if name in mine]} for group in saved["groups"]]
    load_optimizer_state_by_name(optimizer, model, {"state": state, "groups": groups})
