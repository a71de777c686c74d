"""Modules that are trained and saved whole beside a method: a new classifier, or the head that the base had."""

from collections.abc import Sequence

from torch import nn

from minillm import surgery
from minillm.errors import ConfigError


def head_modules(model: nn.Module, heads: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that are meant as heads.

    Args:
        model: holds them.
        heads: as targets of `surgery.find`, but a whole name means that module alone: beside the "head" of a task, the
            "body.head" of the language model under it is not meant.

    Returns:
        name -> module.

    Raises:
        ConfigError: if one is not there.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {head: modules[head] for head in heads if head in modules}
    if rest := [head for head in heads if head not in modules]:
        found |= surgery.find(model, rest)
    return found


def head_parameters(model: nn.Module, heads: Sequence[str]) -> set[str]:
    """Names of all parameters of the modules that are trained and saved whole; a module with several names under each.

    Raises:
        ConfigError: if a module is not there, has no parameters, or one that belongs to another module too.
    """
    wanted = {id(module) for module in head_modules(model, heads).values()}
    named = {
        f"{name}.{last}"
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in wanted
        for last, _ in module.named_parameters(remove_duplicate=False)
    }
    if heads and not named:
        raise ConfigError(f"the heads {list(heads)} have no parameters that could be trained")
    for group in surgery.tied(model):
        if (inside := named & set(group)) and not set(group) <= named:
            raise ConfigError(f"{sorted(inside)[0]} is tied with {group}: as a head it would change the base too")
    return named
