"""One interface for every way to adapt a finished model: change it from outside, train a little, save only the change.

    adapted = adapt(model, LoraConfig(rank=4))
    ...                                     # train adapted.trainable_parameters().values()
    with adapted.disable(): ...             # the base model, bit for bit
    adapted.save(folder)                    # a few KB: adapter.json and adapter.safetensors
    adapted = load_delta(same_base, folder)

A method is a frozen config dataclass with a class variable `method` (its name in `METHODS`), a field `heads`, and
`inject(model, name, generator) -> Delta`, which puts the method's parts into the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.delta import Delta, MethodConfig, Several, TrainedInPlace
from minillm.adapt.delta_file import SETTINGS, TENSORS, SavedDelta, read_delta, write_delta
from minillm.adapt.fingerprint import fingerprint, state_of
from minillm.adapt.heads import head_parameters
from minillm.errors import CheckpointError, ConfigError

__all__ = ["Adapted", "Delta", "MethodConfig", "TrainedInPlace", "adapt", "load_delta"]


class Adapted:
    """A model and the adapters on it, one of which is in use. Made by `adapt` or `load_delta`.

    Attributes:
        model: the adapted model itself.
        configs: adapter's name -> its config.
        name: of the adapter in use.
        merged: whether the one in use is written into the base's weights.
    """

    def __init__(self, model: nn.Module):
        self.model, self.name, self.merged = model, "", False
        self.configs: dict[str, MethodConfig] = {}
        self.deltas: dict[str, Delta] = {}
        self.fingerprints: dict[str, str] = {}
        self.was_trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self.base = state_of(model)

    @property
    def config(self) -> MethodConfig:
        """Config of the adapter in use."""
        return self.configs[self.name]

    @property
    def delta(self) -> Delta:
        """The adapter in use."""
        return self.deltas[self.name]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer is to be given: name -> parameter of the adapter in use."""
        return self.delta.parameters()

    def count(self) -> surgery.Count:
        """How many numbers are trained, of how many in the base and in the adapter in use together."""
        trained = list(self.trainable_parameters().values())
        both = {id(parameter): parameter for parameter in [*trained, *(parameter for parameter, _ in self.was_trained)]}
        return surgery.Count(sum(p.numel() for p in both.values()), sum(p.numel() for p in trained))

    def add(self, config: MethodConfig, name: str, generator: torch.Generator | None = None) -> "Adapted":
        """Put another adapter on the model, and use it.

        Args:
            config: of a method that can stand beside itself on one model (LoRA).
            name: a new one.
            generator: where initial numbers come from; None is torch's own default generator.

        Raises:
            ConfigError: if the name is taken, the method cannot do it, or the adapter in use is merged.
        """
        check_name(name)
        if name in self.configs:
            raise ConfigError(f"the model has an adapter {name!r} already; choose another name or remove() it")
        if self.configs and not (type(config) is type(self.config) and getattr(config, "several", False)):
            raise ConfigError(
                f"the model is adapted already, by {sorted(self.configs)}, and {config.method} cannot be put beside "
                f"{self.config.method}; remove() that first"
            )
        self.refuse_if_merged("another adapter can be added")
        if self.configs:
            self.delta.switch(False)
        try:
            base = fingerprint(self.model, heads_of(config), self.base)
            delta = inject(self.model, config, name, generator)
        except BaseException:
            if self.configs:
                self.delta.switch(True)
            raise
        self.configs[name], self.deltas[name], self.fingerprints[name] = config, delta, base
        self.activate(name)
        return self

    def use(self, name: str) -> "Adapted":
        """Switch to another adapter; only its parameters are trained from now on.

        Raises:
            ConfigError: if there is none of that name, or the one in use is merged.
        """
        if name not in self.deltas:
            raise ConfigError(f"there is no adapter {name!r}; the model has {sorted(self.deltas)}")
        self.refuse_if_merged("adapters can be switched")
        self.delta.switch(False)
        self.deltas[name].switch(True)
        self.activate(name)
        return self

    def activate(self, name: str) -> None:
        """Let the parameters of this adapter be trained and no others."""
        self.name = name
        surgery.freeze(self.model)
        for delta in self.deltas.values():
            for parameter in delta.parameters().values():
                parameter.requires_grad_(False)
        for parameter in self.delta.parameters().values():
            parameter.requires_grad_(True)

    @contextmanager
    def disable(self) -> Iterator[nn.Module]:
        """While open, the model is the base bit for bit, its old heads included; a merged adapter is taken out."""
        was_merged = self.merged
        if was_merged:
            self.unmerge()
        self.delta.switch(False)
        try:
            yield self.model
        finally:
            self.delta.switch(True)
            if was_merged:
                self.merge()

    def merge(self) -> "Adapted":
        """Write the change into the base's weights: no cost is left when the model runs. For training, `unmerge`.

        Raises:
            ConfigError: if it is merged already (a second time would add the change twice), or the method cannot.
        """
        self.refuse_if_merged("it can be merged again")
        self.delta.merge()
        self.merged = True
        return self

    def unmerge(self) -> "Adapted":
        """Undo `merge`; the base's weights are what they were, bit for bit.

        Raises:
            ConfigError: if nothing is merged.
        """
        if not self.merged:
            raise ConfigError(f"the adapter {self.name!r} is not merged; there is nothing to undo")
        self.delta.unmerge()
        self.merged = False
        return self

    def refuse_if_merged(self, what: str) -> None:
        """Raise a ConfigError if the adapter in use is merged."""
        if self.merged:
            raise ConfigError(f"the adapter {self.name!r} is merged; unmerge() before {what}")

    def remove(self) -> nn.Module:
        """Take all adapters out: modules, numbers and what was trained are as before `adapt`.

        Returns:
            the base model.
        """
        if self.merged:
            self.unmerge()
        if self.deltas:
            self.delta.switch(False)
        for delta in reversed(self.deltas.values()):
            delta.remove()
        self.configs, self.deltas = {}, {}
        for parameter, was_trained in self.was_trained:
            parameter.requires_grad_(was_trained)
        self.model.__dict__.pop(HANDLE, None)
        return self.model

    def bake(self) -> nn.Module:
        """Merge for good: the adapter in use stays in the weights, and all adapters, this one too, are taken out.

        What is left is a plain model, trainable where it was before `adapt`: it can be saved, exported, and adapted
        again. It is another base now, which delta files of the old one do not fit. Packed layers become ordinary ones
        with all their bytes, and a warning says so, as with `merge`.

        Returns:
            the model, changed in place.

        Raises:
            ConfigError: if the method in use cannot be merged; the model is as it was then.
        """
        if not self.merged:
            self.merge()
        was_trained = {id(parameter): flag for parameter, flag in self.was_trained}
        by_name = {name: was_trained.get(id(old), True) for name, old in self.base.items()}
        for name, delta in reversed(self.deltas.items()):
            delta.keep() if name == self.name else delta.remove()
        self.configs, self.deltas, self.merged = {}, {}, False
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(by_name.get(name, True))
        self.model.__dict__.pop(HANDLE, None)
        return self.model

    def drop(self, name: str) -> None:
        """Take one adapter out; with the last one, everything."""
        if name not in self.deltas:
            raise ConfigError(f"there is no adapter {name!r}; the model has {sorted(self.deltas)}")
        if len(self.deltas) == 1:
            self.remove()
            return
        self.refuse_if_merged("one can be taken out")
        if name == self.name:
            self.use(next(other for other in reversed(self.deltas) if other != name))
        self.deltas.pop(name).remove()
        self.configs.pop(name)

    def save(self, folder: str | Path, name: str = "") -> Path:
        """Write one adapter and what it needs to be put back: never the base.

        Args:
            folder: is made; an adapter in it is replaced.
            name: which adapter; the one in use if empty.

        Returns:
            the folder.
        """
        name, folder = name or self.name, Path(folder)
        if name not in self.deltas:
            raise ConfigError(f"there is no adapter {name!r}; the model has {sorted(self.deltas)}")
        saved = SavedDelta(
            name, self.configs[name], type(self.model).__name__, self.fingerprints[name], self.deltas[name].tensors()
        )
        write_delta(folder, saved)
        return folder


HANDLE = "adapted_by"  # attribute of an adapted model that holds its handle, so that it is not adapted twice unawares


def adapt(
    model: nn.Module, config: MethodConfig, name: str = "default", generator: torch.Generator | None = None
) -> Adapted:
    """Change a model from outside so that few of its numbers need to be trained; everything else is frozen.

    Args:
        model: is changed in place; `remove` gives it back.
        config: of a method, such as `LoraConfig`.
        name: of the adapter, for models that get several.
        generator: where initial numbers come from; None is torch's own default generator.

    Returns:
        the handle.

    Raises:
        ConfigError: if the model is adapted already, or the method finds nothing to change.
    """
    if HANDLE in model.__dict__:
        raise ConfigError(
            f"the model is adapted already, by {sorted(model.__dict__[HANDLE].configs)}; use the handle's add(), or "
            "remove() it first"
        )
    adapted = Adapted(model).add(config, name, generator)
    model.__dict__[HANDLE] = adapted
    return adapted


def check_name(name: str) -> None:
    """Refuse names that cannot be part of a parameter's name.

    Raises:
        ConfigError: for those.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"an adapter's name must be of letters, digits and _ (and not a word of torch's): {name!r}")


def heads_of(config: MethodConfig) -> tuple[str, ...]:
    """Names of the modules that are trained and saved whole beside the method."""
    return tuple(getattr(config, "heads", ()))


def inject(model: nn.Module, config: MethodConfig, name: str, generator: torch.Generator | None) -> Delta:
    """The method's delta, with the heads that are trained beside it; all or nothing."""
    named = head_parameters(model, heads_of(config))
    delta = config.inject(model, name, generator)
    if not named:
        return delta
    if both := named & delta.parameters().keys():
        delta.remove()
        raise ConfigError(f"{sorted(both)[0]} belongs to a head and is trained by the method already")
    return Several([delta, TrainedInPlace(model, sorted(named))])


def load_delta(model: nn.Module, folder: str | Path, name: str = "") -> Adapted:
    """Put a saved adapter on the base that it was trained on.

    Args:
        model: the base; one that is adapted already gets it as a further adapter, if the method allows it.
        folder: as `Adapted.save` wrote it.
        name: of the adapter; the one it had if empty.

    Returns:
        the handle.

    Raises:
        CheckpointError: if the folder holds no adapter, a damaged one, or one of another base.
        ConfigError: as `adapt`.
    """
    saved = read_delta(Path(folder))
    handle: Adapted | None = model.__dict__.get(HANDLE)
    name, seed = name or saved.name, torch.Generator().manual_seed(0)  # the initial numbers are overwritten
    adapted = adapt(model, saved.config, name, seed) if handle is None else handle.add(saved.config, name, seed)
    try:
        check_base(folder, saved, adapted, name)
        check_tensors(folder, saved.tensors, adapted.deltas[name].tensors())
        adapted.deltas[name].load(saved.tensors)
    except CheckpointError:
        adapted.drop(name)
        raise
    return adapted


def check_base(folder: str | Path, saved: SavedDelta, adapted: Adapted, name: str) -> None:
    """Compare fingerprints.

    Raises:
        CheckpointError: if the adapter was trained on another base: its numbers mean nothing here.
    """
    if saved.fingerprint != adapted.fingerprints[name]:
        raise CheckpointError(
            f"{folder} was trained on another base ({saved.model} {saved.fingerprint[:12]}; this one is "
            f"{type(adapted.model).__name__} {adapted.fingerprints[name][:12]}); load the base that it was trained on"
        )


def check_tensors(folder: str | Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and sizes.

    Raises:
        CheckpointError: naming the first that differ.
    """
    if wrong := sorted(found.keys() ^ expected.keys()):
        kind = "lacks" if wrong[0] in expected else "has besides"
        raise CheckpointError(f"{Path(folder) / TENSORS} {kind} {wrong[0]}; it does not fit {SETTINGS}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{Path(folder) / TENSORS}: {name} has size {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            )
