"""Muon over tensor-parallel ranks: momentum is kept in slices, but only a whole matrix can be made orthogonal.

AdamW works number by number, so a slice is as good as the whole. Muon's update mixes all rows and columns: each rank
moves its slice of the momentum, the slices are put together, every rank makes the whole direction orthogonal, and takes
its own slice of the result.

Dimensions: P ranks, R rows, C columns of a whole matrix.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from minillm.parallel.comm import Comm
from minillm.parallel.layout import Split, join_slices, slice_of
from minillm.train.muon import KIND_OPTIONS, momentum_update, muon_scale, orthogonal_updates, part_sizes
from minillm.train.optim import MuonAndAdamW, adamw_group_step, loss_of


def gather_slices(slices: Sequence[Tensor], splits: Sequence[Split | None], comm: Comm) -> list[Tensor]:
    """Whole tensors from the slices of all ranks, in one message per dtype.

    Args:
        slices: what this rank holds, in the same order on all ranks.
        splits: how each was cut; None is whole already.
        comm: the tensor-parallel group.

    Returns:
        the whole tensors, on all ranks.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> def gather(comm):
        ...     mine = torch.tensor([1.0, 2.0]) + 2 * comm.rank
        ...     return gather_slices([mine], [Split(0)], comm)[0].tolist()
        >>> launch_threads(gather, 2)
        [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    """
    wholes = list(slices)
    if comm.size == 1:
        return wholes
    cut = [place for place, split in enumerate(splits) if split is not None]
    for dtype in dict.fromkeys(slices[place].dtype for place in cut):
        places = [place for place in cut if slices[place].dtype == dtype]
        mine = torch.cat([slices[place].reshape(-1) for place in places])
        everyones = mine.new_empty(comm.size * mine.numel())
        comm.all_gather(everyones, mine)
        sizes = [slices[place].numel() for place in places]
        ranks = [part.split(sizes) for part in everyones.view(comm.size, -1)]
        for number, place in enumerate(places):
            parts = [rank[number].view(slices[place].shape) for rank in ranks]
            wholes[place] = join_slices(parts, splits[place])
    return wholes


class SlicedMuonAndAdamW(MuonAndAdamW):
    """`MuonAndAdamW` where each rank holds slices of the matrices; its weights are those of one process's optimizer.

    Args:
        groups: as there, with the slices as parameters; "split" of a group counts rows of the slices.
        splits: parameter -> how it was cut.
        comm: the tensor-parallel group.
    """

    def __init__(self, groups: list[dict], splits: Mapping[Tensor, Split | None], comm: Comm):
        super().__init__(groups)
        self.splits, self.comm = dict(splits), comm

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update each parameter that has a gradient; called by all ranks of the group."""
        loss = loss_of(closure)
        muon = [group for group in self.param_groups if group["use_muon"]]
        sliced_muon_step(muon, self.state, self.splits, self.comm)
        for group in self.param_groups:
            if not group["use_muon"]:
                adamw_group_step(group, self.state)
        return loss


def sliced_muon_step(groups: list[dict], state: dict, splits: Mapping[Tensor, Split | None], comm: Comm) -> None:
    """`muon_group_step` for slices: one all-gather of all directions (and of the small means of their rows)."""
    pairs = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
    for parameter, group in pairs:
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
    cuts = [splits[parameter] for parameter, _ in pairs]
    directions = gather_slices([momentum_update(parameter, group, state) for parameter, group in pairs], cuts, comm)
    squares = whole_mean_squares(pairs, state, cuts, comm)
    updates = [torch.zeros_like(direction) for direction in directions]
    same_kind: dict[tuple, list[tuple[Tensor, Tensor, Tensor | None, float]]] = {}
    for (_, group), cut, update, direction, square in zip(pairs, cuts, updates, directions, squares, strict=True):
        counts = whole_row_counts(group["split"], direction.shape[0], cut, comm.size)
        parts = [None] * len(counts) if square is None else square.split(counts)
        for target, part, part_square in zip(update.split(counts), direction.split(counts), parts, strict=True):
            length = group["lr"] * muon_scale(*part.shape, group["adjust_lr_fn"])
            kind = (part.shape, part.dtype, part.device, *(group[key] for key in KIND_OPTIONS))
            same_kind.setdefault(kind, []).append((target, part, part_square, length))
    orthogonal_updates(same_kind)
    for (parameter, _), cut, update, square in zip(pairs, cuts, updates, squares, strict=True):
        parameter.add_(slice_of(update, cut, comm.rank, comm.size))
        if square is not None:
            state[parameter]["neuron_mean_square"].copy_(slice_of(square, of_rows(cut), comm.rank, comm.size))


def whole_mean_squares(
    pairs: Sequence[tuple[Tensor, dict]], state: dict, cuts: Sequence[Split | None], comm: Comm
) -> list[Tensor | None]:
    """The running means (R, 1) of the rows of each whole matrix; None where its group has none.

    Ranks hold those of their own rows. A matrix cut by columns has all its rows on every rank.
    """
    with_means = [place for place, (_, group) in enumerate(pairs) if group["neuron_beta"]]
    for place in with_means:
        parameter = pairs[place][0]
        if "neuron_mean_square" not in state[parameter]:
            state[parameter]["neuron_mean_square"] = torch.zeros_like(parameter[:, :1])
    mine = [state[pairs[place][0]]["neuron_mean_square"] for place in with_means]
    wholes = gather_slices(mine, [of_rows(cuts[place]) for place in with_means], comm)
    found = dict(zip(with_means, wholes, strict=True))
    return [found[place].clone() if place in found else None for place in range(len(pairs))]


def of_rows(split: Split | None) -> Split | None:
    """How something with one number per row is cut."""
    return split if split is not None and split.dim == 0 else None


def whole_row_counts(split: int | tuple[int, ...], n_rows: int, cut: Split | None, size: int) -> list[int]:
    """Row counts of the parts of the whole matrix from a group's "split", which counts those of a slice.

    Example:
        >>> whole_row_counts((2, 1, 1), 8, Split(0, (4, 2, 2)), size=2), whole_row_counts(1, 8, Split(1), size=2)
        ([4, 2, 2], [8])
    """
    if not isinstance(split, int) and of_rows(cut) is not None:
        split = tuple(size * rows for rows in split)
    return part_sizes(n_rows, split)
