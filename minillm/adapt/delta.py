"""What a method of adaptation puts into a model, and the way out again: the class that every method fills in."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError


class Delta:
    """What one method has put into one model, and the way out again. Each method makes a subclass of it.

    A fresh delta is switched on. `adapt` freezes everything first and then lets `parameters()` be trained.
    """

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained: name, which names its tensor in the file too -> parameter."""
        raise NotImplementedError

    def switch(self, on: bool) -> None:
        """Off: the model computes what the base did, bit for bit. On: with the change again."""
        raise NotImplementedError

    def remove(self) -> None:
        """Take the method's parts out; the base's modules and numbers are as they were."""
        raise NotImplementedError

    def keep(self) -> None:
        """Take the method's parts out after `merge`, and leave the numbers with the change in them."""
        self.remove()                                              # which does not unmerge

    def tensors(self) -> dict[str, Tensor]:
        """What is saved; whatever the switch says. The trained parameters, if a method has nothing else."""
        return {name: parameter.detach() for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved tensors, whose names and sizes have been compared with those of `tensors()`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def merge(self) -> None:
        """Write the change into the base's weights."""
        raise ConfigError(f"{type(self).__name__}: this method cannot be merged into the base's weights")

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""
        raise ConfigError(f"{type(self).__name__}: this method cannot be merged into the base's weights")


class MethodConfig(Protocol):
    """What `adapt` needs to know of a method's config, a frozen dataclass."""

    method: ClassVar[str]
    heads: tuple[str, ...]

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> Delta: ...


class TrainedInPlace(Delta):
    """Parameters of the base itself, trained where they stand; their old numbers are kept beside them.

    Args:
        model: holds the parameters.
        names: of them; tied names mean one parameter.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]):
        named = dict(model.named_parameters(remove_duplicate=False))
        first = {id(named[name]): name for name in reversed(list(names))}
        self.trained = {name: named[name] for name in names if first[id(named[name])] == name}
        self.other = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.on = True

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.trained)

    def switch(self, on: bool) -> None:
        """Exchange the trained numbers and the old ones; the parameters, which an optimizer knows, stay the same."""
        if on != self.on:
            for name, parameter in self.trained.items():
                here = parameter.data
                parameter.data = self.other[name].to(here.device, here.dtype)
                self.other[name] = here
        self.on = on

    def remove(self) -> None:
        self.switch(False)

    def keep(self) -> None:
        pass                                                       # the trained numbers are the model's own already

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() if self.on else self.other[name] for name, p in self.trained.items()}


class Several(Delta):
    """Deltas that are one: a method, and the heads that are trained and saved beside it."""

    def __init__(self, deltas: Sequence[Delta]):
        self.deltas = list(deltas)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for delta in self.deltas for name, parameter in delta.parameters().items()}

    def switch(self, on: bool) -> None:
        for delta in self.deltas:
            delta.switch(on)

    def remove(self) -> None:
        for delta in reversed(self.deltas):
            delta.remove()

    def keep(self) -> None:
        for delta in reversed(self.deltas):
            delta.keep()

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for delta in self.deltas for name, tensor in delta.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for delta in self.deltas:
            delta.load(tensors)

    def merge(self) -> None:
        self.deltas[0].merge()                                     # heads are in the model already

    def unmerge(self) -> None:
        self.deltas[0].unmerge()
