"""What prefixes and prompts share: learned vectors stand in front of a text and take places of the model's context.

Dimensions: B batch, T positions of the text, P learned vectors in front of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from minillm.adapt.adapted import Delta
from minillm.errors import ConfigError
from minillm.models.bert import Bert
from minillm.models.gpt import GPT, check_count
from minillm.models.t5 import T5

Host = GPT | Bert | T5


def host_of(model: nn.Module) -> Host:
    """The language model within a model: itself, or the body under a task's head.

    Raises:
        ConfigError: if there is none.
    """
    for module in model.modules():
        if isinstance(module, Host):
            return module
    raise ConfigError(f"a {type(model).__name__} holds no GPT, Bert or T5, in front of which vectors could be learned")


def check_in_front(host: Host, n_virtual: int, name: str) -> None:
    """Check that there is room for P vectors and at least one token, and that nothing stands there yet.

    Raises:
        ConfigError: if there is not.
    """
    check_count("n_virtual", n_virtual, at_least=1)
    if n_virtual >= host.config.max_seq_len:
        raise ConfigError(
            f"{n_virtual} vectors in front leave no room for text in a context of {host.config.max_seq_len}; take fewer"
        )
    if hasattr(host, name):
        raise ConfigError(f"this {type(host).__name__} has a {name} already; remove it first")


class InFront(Delta):
    """A module that makes vectors to stand in front of a text, as the only part that is trained.

    Subclasses lay methods over the host's that read the module, which is the host's child `name`.

    Args:
        host: is changed.
        name: of the module in the host.
        module: with the methods `folded` and `fold`, and the attribute `is_on`.
        config: the host's config while the module is on.
    """

    def __init__(self, host: Host, name: str, module: nn.Module, config: object):
        self.host, self.name, self.module = host, name, module
        self.config_of_base, self.config_with = host.config, config
        self.overlays: list = []
        host.add_module(name, module)
        host.config = config

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{self.name}.{name}": parameter for name, parameter in self.module.named_parameters()}

    def switch(self, on: bool) -> None:
        self.module.is_on = on
        self.host.config = self.config_with if on else self.config_of_base

    def remove(self) -> None:
        self.switch(False)
        while self.overlays:
            self.overlays.pop().remove()
        if self.name in self.host._modules:
            delattr(self.host, self.name)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors themselves; what made them is not needed once it has been trained."""
        return {f"{self.name}.table": self.module.folded()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.module.fold(tensors[f"{self.name}.table"])

    def fold(self) -> None:
        """Discard what makes the vectors and keep them: same outputs, fewer numbers; an optimizer must be made anew."""
        self.module.fold(self.module.folded())


class Table(nn.Module):
    """A table of P learned rows, which perhaps a network makes until it has been trained; a base class.

    A subclass has the attribute `table`, the rows or None, and the method `made`, the rows that its network makes.

    Attributes:
        is_on: whether the rows stand in front of texts.
    """

    table: nn.Parameter | None

    def __init__(self):
        super().__init__()
        self.is_on = True

    def made(self) -> Tensor:
        """The rows as the network makes them, with a gradient."""
        raise NotImplementedError

    def rows(self) -> Tensor:
        """All rows, (P, ...), with a gradient."""
        return self.made() if self.table is None else self.table

    @torch.no_grad()
    def folded(self) -> Tensor:
        """The rows as numbers."""
        return self.rows().detach().clone()

    @torch.no_grad()
    def fold(self, table: Tensor) -> None:
        """Keep these rows, and no network."""
        old = next(self.parameters())
        if self.table is not None:
            self.table.copy_(table)
            return
        for name in list(self._modules):
            delattr(self, name)
        for name in list(self._parameters):
            delattr(self, name)
        self.table = nn.Parameter(table.to(old.device, old.dtype, copy=True), requires_grad=old.requires_grad)


def shorter_context(host: Host, n_virtual: int) -> object:
    """The host's config with the places taken away that the vectors need, where its context is a table of places."""
    if isinstance(host, GPT):
        return replace(host.config, max_seq_len=host.config.max_seq_len - n_virtual)
    return host.config


def repeated(token_ids: Sequence[int], n_virtual: int) -> list[int]:
    """P ids: the first ones, or all again and again.

    Example:
        >>> repeated([7, 8], 5), repeated([7, 8, 9], 2)
        ([7, 8, 7, 8, 7], [7, 8])
    """
    return [token_ids[index % len(token_ids)] for index in range(n_virtual)]
