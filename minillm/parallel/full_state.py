"""The whole model and the whole optimizer from the parts that the ranks of a grid hold, and the way back.

What comes out has the names and shapes of one process, so whatever reads a checkpoint of one process reads it, and a
run that began on one grid goes on on another. All ranks call these functions together.

Dimensions: P ranks along one axis of the grid.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from minillm.errors import CheckpointError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.comm import Comm
from minillm.parallel.layout import Split, slice_of, tensor_layout
from minillm.parallel.mesh import Mesh
from minillm.parallel.muon import gather_slices
from minillm.parallel.pipeline import counts_once
from minillm.parallel.stages import PipelineStage
from minillm.train.optimizer_state import (
    join_tensors,
    load_optimizer_state_by_name,
    merge_rests,
    optimizer_state_by_name,
    split_tensors,
)

Layout = Mapping[str, Split | None]


def gather_full_state(part: PipelineStage, mesh: Mesh, everywhere: bool = True) -> dict[str, Tensor]:
    """The whole model's weights, as the `state_dict` of one process has them.

    Args:
        part: this rank's part.
        mesh: the grid.
        everywhere: False leaves the whole to rank 0 of the world alone.

    Returns:
        copies in the model's order; on the other ranks empty, if not `everywhere`.
    """
    if not everywhere and mesh.place["dp"]:
        return {}
    mine = {name: p.detach() for name, p in part.named_parameters() if counts_once(part, name)}
    layout = layout_of(part, mesh)
    splits = [layout.get(name) for name in mine]
    wholes = dict(zip(mine, gather_slices(list(mine.values()), splits, mesh.tp), strict=True))
    found = collect(wholes, mesh.pp, everywhere)
    if not everywhere and mesh.world.rank:
        return {}
    return {name: found[name] for name in model_names(part.config)}


def load_full_state(part: PipelineStage, mesh: Mesh, state: Mapping[str, Tensor]) -> None:
    """Take this rank's slices of the whole model's weights. Everything is checked before anything changes.

    Args:
        part: this rank's part.
        mesh: the grid; not necessarily the one on which the weights were gathered.
        state: whole tensors by name.

    Raises:
        CheckpointError: if a parameter is missing or has another shape.
    """
    layout, slices = layout_of(part, mesh), {}
    for name, parameter in part.named_parameters():
        if name not in state:
            raise CheckpointError(f"the state has no parameter {name}; it is that of another model")
        check_whole(name, state[name], parameter, layout.get(name), mesh.tp.size)
        slices[name] = slice_of(state[name], layout.get(name), mesh.tp.rank, mesh.tp.size)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            parameter.copy_(slices[name])


def gather_optimizer_state(
    optimizer: Optimizer, part: PipelineStage, mesh: Mesh, everywhere: bool = True
) -> dict:
    """The whole model's optimizer state by full parameter names, as `optimizer_state_by_name` of one process gives it.

    Groups with equal options become one. Row counts of a Muon group ("split") are those of whole matrices.

    Args:
        optimizer: over the part's parameters; its state has the parameter's shape, a number per row or column, or is
            one number.
        part: this rank's part.
        mesh: the grid.
        everywhere: False leaves the whole to rank 0 of the world alone.

    Returns:
        {"state": {name: {key: tensor or number}}, "groups": [{"names", "options"}]}, copies; empty on the other ranks,
        if not `everywhere`.
    """
    if not everywhere and mesh.place["dp"]:
        return {"state": {}, "groups": []}
    layout, shapes = layout_of(part, mesh), {name: p.shape for name, p in part.named_parameters()}
    tensors, rest = split_tensors(counted_state(optimizer_state_by_name(optimizer, part), part))
    splits = [split_of_state(tensor, shapes[name], layout.get(name)) for name, tensor in by_parameter(tensors)]
    wholes = dict(zip(tensors, gather_slices(list(tensors.values()), splits, mesh.tp), strict=True))
    found = collect(wholes, mesh.pp, everywhere)
    rests = mesh.pp.all_objects({**rest, "groups": scaled_groups(rest["groups"], layout, mesh.tp.size)})
    if not everywhere and mesh.world.rank:
        return {"state": {}, "groups": []}
    return in_model_order(join_tensors(found, merge_rests(rests)), model_names(part.config))


def load_full_optimizer_state(optimizer: Optimizer, part: PipelineStage, mesh: Mesh, saved: dict) -> None:
    """Take this rank's slices of the whole model's optimizer state, gathered on any grid or saved by one process.

    Args:
        optimizer: of the same kind, over the part's parameters.
        part: this rank's part.
        mesh: the grid.
        saved: whole tensors and options by name.

    Raises:
        CheckpointError: as `load_optimizer_state_by_name`.
    """
    layout, shapes = layout_of(part, mesh), {name: p.shape for name, p in part.named_parameters()}
    tensors, rest = split_tensors({**saved, "state": {n: s for n, s in saved["state"].items() if n in shapes}})
    mine = {}
    for (name, tensor), path in zip(by_parameter(tensors), tensors, strict=True):
        split = layout.get(name)
        whole = [size * (mesh.tp.size if split and split.dim == d else 1) for d, size in enumerate(shapes[name])]
        cut = split_of_state(tensor, whole, split)
        mine[path] = slice_of(tensor, cut, mesh.tp.rank, mesh.tp.size).clone()
    groups = [{**group, "names": [name for name in group["names"] if name in shapes]} for group in rest["groups"]]
    groups = scaled_groups([group for group in groups if group["names"]], layout, 1, mesh.tp.size)
    load_optimizer_state_by_name(optimizer, part, join_tensors(mine, {**rest, "groups": groups}))


def layout_of(part: PipelineStage, mesh: Mesh) -> Layout:
    """How each parameter of the part is cut over the tensor-parallel ranks; empty where there is one only."""
    return tensor_layout(part) if mesh.tp.size > 1 else {}


def model_names(config: GPTConfig) -> list[str]:
    """Parameter names of the whole model, in its order."""
    with torch.device("meta"):                                     # names without memory or random numbers
        return [name for name, _ in GPT(config).named_parameters()]


def collect(mine: Mapping[str, Tensor], comm: Comm, everywhere: bool) -> dict[str, Tensor]:
    """The tensors of all ranks of a pipeline, on each of them or on its first rank.

    Args:
        mine: this rank's by name; no name is on two ranks.
        comm: the ranks of the pipeline.
        everywhere: False: only its rank 0 gets all.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> def gather(comm):
        ...     return collect({"ab"[comm.rank]: torch.tensor([comm.rank])}, comm, everywhere=True)
        >>> launch_threads(gather, 2)[1]
        {'a': tensor([0]), 'b': tensor([1])}
    """
    described = comm.all_objects({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()})
    found = {}
    for source, names in enumerate(described):
        for name, (shape, dtype) in names.items():
            if source == comm.rank:
                tensor = mine[name].clone(memory_format=torch.contiguous_format)
            else:
                tensor = torch.empty(shape, dtype=dtype, device=comm.device)
            deliver(tensor, comm, source, everywhere)
            if everywhere or comm.rank == 0:
                found[name] = tensor
    return found


def deliver(tensor: Tensor, comm: Comm, source: int, everywhere: bool) -> None:
    """Give one rank's tensor to all, or to rank 0."""
    if comm.size == 1:
        return
    if everywhere:
        comm.broadcast(tensor, source)
    elif source and comm.rank == source:
        comm.send(tensor, 0)
    elif source and comm.rank == 0:
        comm.recv(tensor, source)


def check_whole(name: str, tensor: Tensor, parameter: Tensor, split: Split | None, size: int) -> None:
    """Refuse a whole tensor of which the parameter cannot be the slice."""
    expected = [n * (size if split is not None and d == split.dim else 1) for d, n in enumerate(parameter.shape)]
    if list(tensor.shape) != expected:
        raise CheckpointError(f"parameter {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def split_of_state(tensor: Tensor, shape: Iterable[int], split: Split | None) -> Split | None:
    """How a tensor of the optimizer is cut: as its parameter, unless it has one number for all of that dimension."""
    shape = tuple(shape)
    if split is None or tensor.dim() != len(shape) or tensor.shape[split.dim] != shape[split.dim]:
        return None
    return split


def by_parameter(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """(parameter name, tensor) for paths "name/key"."""
    return [(path.rpartition("/")[0], tensor) for path, tensor in tensors.items()]


def counted_state(saved: dict, part: PipelineStage) -> dict:
    """Without the copy of a tied table, which its first stage gives."""
    state = {name: entries for name, entries in saved["state"].items() if counts_once(part, name)}
    groups = [{**g, "names": [name for name in g["names"] if counts_once(part, name)]} for g in saved["groups"]]
    return {"state": state, "groups": groups}


def scaled_groups(groups: list[dict], layout: Layout, times: int, over: int = 1) -> list[dict]:
    """Groups whose row counts ("split") are multiplied and divided, where their matrices are cut by rows."""
    scaled = []
    for group in groups:
        options = dict(group["options"])
        rows = options.get("split")
        cuts = [layout.get(name) for name in group["names"]]
        if isinstance(rows, tuple | list) and any(cut is not None and cut.dim == 0 for cut in cuts):
            options["split"] = tuple(count * times // over for count in rows)
        scaled.append({"names": group["names"], "options": options})
    return scaled


def in_model_order(saved: dict, names: list[str]) -> dict:
    """State and the names of each group in the order of the whole model."""
    place = {name: number for number, name in enumerate(names)}
    groups = [{**group, "names": sorted(group["names"], key=place.__getitem__)} for group in saved["groups"]]
    return {"state": {name: saved["state"][name] for name in names if name in saved["state"]}, "groups": groups}
