"""What tells one base model from another, so that an adapter is not put on a model that it was not trained on."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from minillm.adapt.heads import head_modules


def fingerprint(model: nn.Module, heads: Sequence[str] = (), base: Mapping[str, Tensor] | None = None) -> str:
    """What tells one base from another: its names, sizes and numbers, not its heads.

    Numbers are compared as bfloat16, so that the same model in another number format is the same base.

    Args:
        model: the base, or one whose adapters are switched off.
        heads: modules that do not count, since every task brings its own.
        base: `state_of` the model before its names were changed; None takes them as they are.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> ones = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.ones_(ones.weight)
        >>> fingerprint(ones) == fingerprint(ones.double()), fingerprint(nn.Linear(2, 2)) == fingerprint(ones)
        (True, False)
    """
    base = state_of(model) if base is None else base
    left_out = {id(parameter) for head in head_modules(model, heads).values() for parameter in head.parameters()}
    digest = hashlib.sha256()
    for name, tensor in sorted(base.items()):
        if id(tensor) not in left_out:
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(numbers_of(tensor))
    return digest.hexdigest()


def numbers_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, rounded to bfloat16 if they are numbers with a point."""
    tensor = tensor.detach().cpu()
    tensor = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All numbers of a model by name: the parameters themselves, tied ones under each name, and saved buffers."""
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
