"""What a rank owns of parameters that are cut evenly over the ranks, and the optimizer's state of all ranks as one.

Dimensions: P ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError
from minillm.parallel.comm import Comm


@dataclass(frozen=True)
class OwnedPiece:
    """Numbers `begin` to `end` of a flattened parameter, which this rank owns.

    Args:
        name: of the whole parameter in the module.
        shape: of the whole parameter.
        begin: first number of the piece.
        end: the number after its last.
        parameter: what the optimizer steps: `end - begin` numbers, with its gradient in `.grad`.
    """

    name: str
    shape: tuple[int, ...]
    begin: int
    end: int
    parameter: nn.Parameter


def full_state_by_name(owned: Sequence[OwnedPiece], optimizer: Optimizer, comm: Comm) -> dict[str, Any]:
    """Put the optimizer's state of all ranks' pieces together; on every rank, called by all of them.

    Args:
        owned: this rank's pieces.
        optimizer: over them.
        comm: the ranks that own all of it.

    Returns:
        as `train.optimizer_state.optimizer_state_by_name`: numbers per number of a parameter are put together to its
        shape, what a piece has only one of (a step count) is the first piece's.
    """
    group_of = {p: index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    mine = []
    for piece in owned:
        state = {key: to_cpu(value) for key, value in optimizer.state[piece.parameter].items()}
        mine.append((piece.name, piece.shape, piece.begin, group_of[piece.parameter], state))
    everyones = [piece for part in comm.all_objects(mine) for piece in part]
    pieces = sorted(everyones, key=lambda piece: (piece[0], piece[2]))
    by_name: dict[str, list] = {}
    for piece in pieces:
        by_name.setdefault(piece[0], []).append(piece)
    state = {name: joined_state(parts) for name, parts in by_name.items()}
    groups = [
        {
            "names": [name for name, parts in by_name.items() if parts[0][3] == index],
            "options": {key: value for key, value in group.items() if key not in ("params", "param_names")},
        }
        for index, group in enumerate(optimizer.param_groups)
    ]
    return {"state": state, "groups": groups}


def joined_state(parts: Sequence[tuple]) -> dict[str, Any]:
    """The state of one parameter from its pieces (name, shape, begin, group, state), in order."""
    _, shape, _, _, first = parts[0]
    joined: dict[str, Any] = {}
    for key, value in first.items():
        whole = isinstance(value, Tensor) and value.dim() > 0
        joined[key] = torch.cat([part[4][key] for part in parts]).view(shape) if whole else value
    return joined


def load_full_state_by_name(owned: Sequence[OwnedPiece], optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load each piece's part of whole state, as `full_state_by_name` or one process has it.

    Args:
        owned: this rank's pieces.
        optimizer: over them, of the same kind.
        saved: names -> state of whole parameters.

    Raises:
        CheckpointError: if a parameter is missing in it or has another shape; nothing is changed then.
    """
    piece_of = {piece.parameter: piece for piece in owned}
    options = {name: group["options"] for group in saved["groups"] for name in group["names"]}
    if missing := sorted({piece.name for piece in owned} - set(options)):
        raise CheckpointError(f"optimizer state for other parameters: missing {missing[:5]}")
    state: dict[int, dict[str, Any]] = {}
    groups, number = [], 0
    for group in optimizer.param_groups:
        names = [piece_of[parameter].name for parameter in group["params"] if parameter in piece_of]
        for place, parameter in enumerate(group["params"]):
            piece = piece_of.get(parameter)
            if piece is not None and saved["state"].get(piece.name):
                state[number + place] = state_of_piece(piece, saved["state"][piece.name])
        kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        chosen = options[names[0]] if names else {}
        groups.append({**kept, **chosen, "params": list(range(number, number + len(group["params"])))})
        number += len(group["params"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def state_of_piece(piece: OwnedPiece, state: dict[str, Any]) -> dict[str, Any]:
    """The piece's numbers of a whole parameter's state; what there is one of for all numbers stays as it is."""
    cut: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            cut[key] = to_cpu(value)
        elif tuple(value.shape) == piece.shape:
            cut[key] = value.reshape(-1)[piece.begin : piece.end].clone()
        else:
            raise CheckpointError(
                f"optimizer state {key} of {piece.name}: expected shape {piece.shape}, found {tuple(value.shape)}"
            )
    return cut


def to_cpu(value: Any) -> Any:
    """A tensor's copy in main memory; anything else as it is."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
