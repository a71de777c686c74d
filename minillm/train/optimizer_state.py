"""Optimizer state by parameter name: it survives another order of parameters or groups, and a later split over ranks.

PyTorch's own state_dict numbers the parameters; the numbers mean nothing to a model that was put together differently.
"""

import json
from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError

NOT_OPTIONS = ("params", "param_names")


def parameter_names(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """The model's names of the parameters in each group of the optimizer.

    Args:
        optimizer: holds parameters of `model` only.
        model: a tied parameter has its first name.

    Returns:
        one list of names per group, in the optimizer's order.

    Raises:
        CheckpointError: if the optimizer holds a parameter that the model does not have.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise CheckpointError(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not one of the model; "
                    "make the optimizer after the model has its final parameters"
                )
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def optimizer_state_by_name(optimizer: Optimizer, model: nn.Module) -> dict:
    """The optimizer's state with names instead of numbers.

    Args:
        optimizer: any torch optimizer over parameters of `model`.
        model: gives the names.

    Returns:
        {"state": {parameter name: {key: tensor or number}}, "groups": [{"names": [...], "options": {...}}]};
        the tensors are the optimizer's own, not copies.

    Raises:
        CheckpointError: as `parameter_names`.
    """
    names = parameter_names(optimizer, model)
    state, groups = {}, []
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        for parameter, name in zip(group["params"], group_names, strict=True):
            state[name] = dict(optimizer.state.get(parameter, {}))
        options = {key: value for key, value in group.items() if key not in NOT_OPTIONS}
        groups.append({"names": group_names, "options": options})
    return {"state": state, "groups": groups}


def load_optimizer_state_by_name(optimizer: Optimizer, model: nn.Module, saved: dict) -> None:
    """Load what `optimizer_state_by_name` gave, into an optimizer with any order of parameters and groups.

    Everything is checked before anything changes. Parameters that share a group here must have shared one there.

    Args:
        optimizer: of the same kind, over the same parameter names.
        model: gives the names.
        saved: names -> state.

    Raises:
        CheckpointError: if names or shapes differ, or a group here mixes parameters of several saved groups.
    """
    names = parameter_names(optimizer, model)
    check_optimizer_state(optimizer, names, saved)
    group_of = {name: group["options"] for group in saved["groups"] for name in group["names"]}
    ordered = [name for group_names in names for name in group_names]
    number = {name: index for index, name in enumerate(ordered)}
    groups = []
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        options = group_of[group_names[0]] if group_names else {}
        kept = {key: value for key, value in group.items() if key not in ("params", *options)}
        groups.append({**kept, **options, "params": [number[name] for name in group_names]})
    state = {number[name]: dict(entries) for name, entries in saved["state"].items() if entries}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def check_optimizer_state(optimizer: Optimizer, names: list[list[str]], saved: dict) -> None:
    """Refuse saved state whose names, shapes or groups do not fit."""
    expected = {name for group_names in names for name in group_names}
    found = {name for group in saved["groups"] for name in group["names"]}
    if expected != found:
        raise CheckpointError(
            f"optimizer state for other parameters: missing {sorted(expected - found)[:5]}, "
            f"not known here {sorted(found - expected)[:5]}"
        )
    home = {name: index for index, group in enumerate(saved["groups"]) for name in group["names"]}
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        if len({home[name] for name in group_names}) > 1:
            raise CheckpointError(f"parameters {group_names[:5]} share a group here, but were saved in several groups")
        for parameter, name in zip(group["params"], group_names, strict=True):
            for key, value in saved["state"].get(name, {}).items():
                if isinstance(value, Tensor) and value.dim() and not fits(value, parameter):
                    raise CheckpointError(
                        f"optimizer state {key} of {name}: expected shape {tuple(parameter.shape)}, "
                        f"found {tuple(value.shape)}"
                    )


def fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether state has a number for each number, row (R, 1) or column (1, C) of its parameter."""
    pairs = zip(value.shape, parameter.shape, strict=False)
    return value.dim() == parameter.dim() and all(size in (1, full) for size, full in pairs)


def split_tensors(saved: dict) -> tuple[dict[str, Tensor], dict]:
    """Take named state apart into tensors (for safetensors) and the rest (for JSON).

    Args:
        saved: what `optimizer_state_by_name` gave.

    Returns:
        {"name/key": tensor} and {"state": {name: {key: number}}, "groups": [...]}.
    """
    tensors, numbers = {}, {}
    for name, entries in saved["state"].items():
        tensors |= {f"{name}/{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
        numbers[name] = {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
    return tensors, {"state": numbers, "groups": saved["groups"]}


def join_tensors(tensors: dict[str, Tensor], rest: dict) -> dict:
    """The inverse of `split_tensors`; lists that JSON made of tuples become tuples again."""
    state = {name: dict(entries) for name, entries in rest["state"].items()}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        state.setdefault(name, {})[key] = tensor
    groups = [
        {
            "names": group["names"],
            "options": {key: tuple(v) if isinstance(v, list) else v for key, v in group["options"].items()},
        }
        for group in rest["groups"]
    ]
    return {"state": state, "groups": groups}


def merge_rests(rests: Iterable[dict]) -> dict:
    """What is not a tensor, of several optimizers over parts of one model: groups with equal options become one.

    Args:
        rests: {"state": {name: {key: number}}, "groups": [{"names", "options"}]} of each part, as `split_tensors` gives
            it; a name may be in several.

    Returns:
        the same for the whole, without empty groups.

    Example:
        >>> stages = [{"state": {}, "groups": [{"names": [name], "options": {"lr": 0.1}}]} for name in "ab"]
        >>> merge_rests(stages)["groups"]
        [{'names': ['a', 'b'], 'options': {'lr': 0.1}}]
    """
    state: dict[str, dict] = {}
    groups: dict[str, dict] = {}
    for rest in rests:
        state.update(rest["state"])
        for group in rest["groups"]:
            key = json.dumps(group["options"], sort_keys=True)
            merged = groups.setdefault(key, {"names": [], "options": group["options"]})
            merged["names"] += [name for name in group["names"] if name not in merged["names"]]
    return {"state": state, "groups": [group for group in groups.values() if group["names"]]}
