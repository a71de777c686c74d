"""Where each parameter of a model stands between input and output, and learning rates that fall towards the input."""

import re

from torch import nn

from minillm.errors import ConfigError
from minillm.train.grouping import decay_groups

BOTTOM = re.compile(r"embed|(^|\.)(wte|wpe|shared)\.|distances|share_of_previous")  # read before the first layer
BEHIND_ENCODER = re.compile(r"(^|\.)encoder(_norm|\.final_layer_norm)\.")
OF_BODY = re.compile(r"body\.(head|head_map|head_norm|head_bias|pooler|pair_head)\b")  # not used under a task's head


def stacks(model: nn.Module) -> dict[str, int]:
    """The lists of layers of a model, in the order in which it holds them.

    Args:
        model: any whose layers are in `nn.ModuleList`s; lists inside a layer, such as experts, are not meant.

    Returns:
        name of the list -> number of its layers.

    Raises:
        ConfigError: if there is none.

    Example:
        >>> stacks(nn.ModuleDict({"embedding": nn.Embedding(5, 2), "blocks": nn.ModuleList([nn.Linear(2, 2)])}))
        {'blocks': 1}
    """
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[name] = len(module)
    if not found:
        raise ConfigError(f"{type(model).__name__} has no nn.ModuleList of layers, so there is no order of layers")
    return found


def depths(model: nn.Module) -> dict[str, int]:
    """How far from the input each parameter stands.

    Args:
        model: as in `stacks`.

    Returns:
        each name, those of tied parameters included -> 0 for what turns ids into vectors, 1 to L for the layers (those
        of an encoder before those of its decoder), L + 1 for what follows them. A tied parameter stands where the first
        of its uses is.

    Example:
        >>> model = nn.ModuleDict({"embedding": nn.Embedding(5, 2), "blocks": nn.ModuleList([nn.Linear(2, 2, False)])})
        >>> model["head"] = nn.Linear(2, 5, False)
        >>> depths(model)
        {'embedding.weight': 0, 'blocks.0.weight': 1, 'head.weight': 2}
    """
    lists = stacks(model)
    named = list(model.named_parameters(remove_duplicate=False))
    lowest: dict[int, int] = {}
    for name, parameter in named:
        depth = depth_of(name, lists)
        lowest[id(parameter)] = min(depth, lowest.get(id(parameter), depth))
    return {name: lowest[id(parameter)] for name, parameter in named}


def depth_of(name: str, lists: dict[str, int]) -> int:
    """The depth of one name, given `stacks`."""
    below = 0
    for stack, n_layers in lists.items():
        if name.startswith(f"{stack}."):
            return below + 1 + int(name[len(stack) + 1 :].partition(".")[0])
        below += n_layers
        if BEHIND_ENCODER.search(name) and "encoder" in stack:
            return below
    return 0 if BOTTOM.search(name) else below + 1


def layer_groups(
    model: nn.Module, learning_rate: float, decay: float = 1 / 2.6, weight_decay: float = 0.0
) -> list[dict]:
    """Groups for an optimizer in which each layer learns more slowly than the one above it.

    What is near the input is of use for every text, what is near the output for the old task: so the lower a layer, the
    less it should move. A parameter at depth d of L + 1 (see `depths`) has the rate learning_rate * decay^(L + 1 - d).

    Args:
        model: its trainable parameters are grouped.
        learning_rate: of what follows the last layer, such as a new head.
        decay: rate of a layer over that of the layer above it, above 0 and at most 1; 1 gives all the same rate.
        weight_decay: of matrices; vectors have none, as in `decay_groups`.

    Returns:
        groups from the top down, with "params" as (name, parameter) pairs, "lr" and "weight_decay". A schedule of the
        training loop that gives one factor multiplies all these rates.

    Raises:
        ConfigError: if a number is out of range.

    Source:
        Howard and Ruder 2018, arXiv:1801.06146, section 3.2; 2.6 there.

    Example:
        >>> model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2, False) for _ in range(2)])})
        >>> [(group["params"][0][0], group["lr"]) for group in layer_groups(model, 0.8, decay=0.5)]
        [('blocks.1.weight', 0.4), ('blocks.0.weight', 0.2)]
    """
    if not (learning_rate >= 0 and 0 < decay <= 1 and weight_decay >= 0):
        raise ConfigError(
            f"learning_rate {learning_rate}, decay {decay}, weight_decay {weight_decay}: expected at least 0, "
            "0 < decay <= 1, at least 0"
        )
    depth, top = depths(model), sum(stacks(model).values()) + 1
    groups = []
    for group in decay_groups(model, weight_decay):
        for level in range(top, -1, -1):
            pairs = [(name, parameter) for name, parameter in group["params"] if depth[name] == level]
            rate = learning_rate * decay ** (top - level)
            groups.append({"params": pairs, "lr": rate, "weight_decay": group["weight_decay"]})
    return sorted([group for group in groups if group["params"]], key=lambda group: -group["lr"])
