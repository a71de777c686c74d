"""Chapter 24, LoRA: fill in the holes (16 points).

`minillm course test 24` tests this file, `minillm course test 24 24.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.adapted import HANDLE, adapt, check_name, heads_of, inject
from minillm.adapt.delta import Delta, MethodConfig
from minillm.adapt.delta_file import SavedDelta, write_delta
from minillm.adapt.fastfood import fast_walsh_hadamard, power_of_two, size_of
from minillm.adapt.fingerprint import fingerprint, state_of
from minillm.adapt.lora import (
    WHOLE,
    Branch,
    LoraConfig,
    LoraEmbedding,
    check_rank,
    initial_a,
    like_base,
    low_rank,
    parts_of,
)
from minillm.compress.nf4 import normal_quantiles
from minillm.compress.packed_linear import NF4Linear
from minillm.errors import ConfigError
from minillm.models.gpt import GPT
from minillm.nn.attention import StretchedLinear
from minillm.nn.linear import Linear
from minillm.surgery import trainable


def make_branches(
    model: nn.Module, place: str, config: LoraConfig, generator: torch.Generator | None
) -> dict[str, Branch]:
    """Part's name -> a fresh branch that changes nothing yet, for one layer.

    Args:
        model: holds the layer.
        place: its name.
        config: rank, parts and initial values.
        generator: as in `LoraDelta`.

    Raises:
        ConfigError: if the rank is above the width of the layer, or it has none of the parts.
    """
    # TASK 24.1 (2 points)
    # `surgery.unwrapped(model.get_submodule(place))` is the layer itself, `surgery.matrix_of` its matrix (O, I),
    # whichever way it is stored. `parts_of` says which rows each part has, `initial_a` draws an A, `check_rank`
    # refuses, `like_base` makes the branch. A table is the other way round: A, with a column for each row of the
    # table, is zero, and B is drawn.
    raise NotImplementedError("task 24.1")


class LoraLayer(nn.Module):
    """What stands in a layer's place: the layer itself and, by adapter, the branches beside it.

    `weight` and `bias` are those that the layer as a whole has, for models that use them without calling the layer (a
    tied head does): with the change of the adapter in use, through which gradients flow.

    Args:
        base: the layer; frozen by `adapt`.

    Attributes:
        branches: adapter's name -> part's name -> `Branch`.
        configs: adapter's name -> its config.
        active: name of the adapter that counts, or "" for none.
        unmerged: while the change is merged, the base's own weight, or all of a packed base; else empty.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base, self.branches, self.active = base, nn.ModuleDict(), ""
        self.configs: dict[str, LoraConfig] = {}
        self.unmerged: list[nn.Parameter | nn.Module] = []

    def add(self, name: str, config: LoraConfig, branches: dict[str, Branch]) -> None:
        """Take the branches of one adapter, and use them."""
        self.branches[name], self.configs[name], self.active = nn.ModuleDict(branches), config, name

    def drop(self, name: str) -> None:
        """Forget one adapter."""
        del self.branches[name], self.configs[name]
        self.active = "" if self.active == name else self.active

    @property
    def in_use(self) -> list[Branch]:
        """The branches that have to be added to what the base gives."""
        return [*self.branches[self.active].values()] if self.active and not self.unmerged else []

    @property
    def config(self) -> LoraConfig:
        """Of the adapter in use."""
        return self.configs[self.active]

    @property
    def weight(self) -> Tensor:
        """The base's weight with the change, stored as the base stores it."""
        return self.changed_weight() if self.in_use else self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return getattr(self.base, "bias", None)

    def change(self) -> Tensor:
        """The change of the weight as the base stores it."""
        raise NotImplementedError

    def changed_weight(self) -> Tensor:
        """The base's weight plus the change; a new tensor."""
        return self.base.weight + self.change().to(self.base.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Give the base a new weight with the change in it. The old one is kept, so the way back is exact; and where
        another layer has the same weight (a tied head), that layer keeps the old one meanwhile. A packed base cannot
        take the change in its few bits: an ordinary layer with all its bytes stands in for it meanwhile."""
        # TASK 24.2 (2 points)
        # `self.changed_weight()` is a new tensor. Do not add into the old weight: it must come back bit for bit, so
        # keep the parameter itself in `self.unmerged` and give the base a new one. A packed base
        # (`surgery.is_packed`) cannot take the change at all: keep the whole layer, and let
        # `self.base.unpacked(changed)` stand in for it.
        raise NotImplementedError("task 24.2")

    def unmerge(self) -> None:
        """Give the base its own weight again, or its place to the packed one."""
        kept = self.unmerged.pop()
        if isinstance(kept, nn.Module):
            self.base = kept
        else:
            self.base.weight = kept


class LoraLinear(LoraLayer):
    """A linear layer with branches: base(x) + scale * B (A dropout(x)), each branch into its own rows."""

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.n_rows = surgery.matrix_of(base).shape[0]             # O

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O); all branches by two products, the second of which adds to what the base gave."""
        # TASK 24.3 (3 points)
        # The frozen layer first, on x as it is. `self.in_use` is empty when there is nothing to add.
        # `self.matrices()` gives one A (R, I) and one B (O, R) for all branches. Dropout, `F.dropout(x, chance,
        # self.training)`, belongs to the branch alone; `self.config` has `dropout` and `scale`, and `self.stretch`
        # multiplies a change too. A and B may have more bits than x or than what the layer gives: the sum is in the
        # format that the layer gave.
        raise NotImplementedError("task 24.3")

    def matrices(self) -> tuple[Tensor, Tensor]:
        """One A and one B that do what all branches do.

        Returns:
            The branches' A below each other (R, I), and beside each other their B (O, R), with zeros in the rows that a
            branch does not change; R is the sum of their ranks.
        """
        # TASK 24.4 (2 points)
        # Two branches that read the same x: A_1 x and A_2 x below each other are one product. Then B must send the
        # first R numbers only to the rows of the first part. `F.pad(b, (0, 0, above, below))` puts rows of zeros
        # around a matrix; `branch.rows` is a slice, `self.n_rows` is O. A single branch for the whole layer needs
        # none of this.
        raise NotImplementedError("task 24.4")

    @property
    def stretch(self) -> float:
        """What a `StretchedLinear` multiplies its result by; a change of its weight is multiplied too."""
        return getattr(self.base, "stretch", 1.0)

    def change(self) -> Tensor:
        change = low_rank(*self.matrices(), self.config.scale)     # (O, I)
        return change.T if surgery.is_transposed(self.base) else change


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
        # TASK 24.5 (1 point)
        # Three groups of parameters: the base's, those of the adapters that rest, those of the adapter in use.
        # `surgery.freeze` knows only what is in the model; `delta.parameters()` of each of `self.deltas` is a
        # dictionary.
        raise NotImplementedError("task 24.5")

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


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x without H: sums and differences of halves, then of quarters, and so on; n log n additions.

    Args:
        x: (..., n) with n a power of two.

    Returns:
        (..., n); twice applied it is n times x.

    Raises:
        ShapeError: if n is no power of two.

    Source:
        Le, Sarlos and Smola 2013, Fastfood, section 3; H is not divided by the root of n.

    Example:
        >>> walsh_hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
        [10.0, -2.0, -4.0, 0.0]
    """
    # TASK 24.6 (2 points)
    # View the n numbers as (groups, 2, half): the sum and the difference of the two halves take their places.
    # Begin with half = n / 2 and go on with half of it until 1. `size_of(x)` checks n. Numbers before the last
    # dimension are a batch.
    raise NotImplementedError("task 24.6")


class Fastfood(nn.Module):
    """A random matrix P (D, d) that is never written down, times a vector, and its transpose times one.

    On average over P, |P x| = |x|, and the columns are nearly at right angles.

    Args:
        n_out: D.
        n_in: d, at most D.
        seed: of signs, order and normal numbers, which are the same on every device and in every number format.

    Raises:
        ConfigError: if d is above D: no more directions are there.

    Source:
        Le, Sarlos and Smola 2013; as a projection of models: Li et al. 2018, arXiv:1804.08838, section S7.

    Example:
        >>> projection = Fastfood(6, 2, seed=0)
        >>> projection(torch.ones(2)).shape, projection.transposed(torch.ones(6)).shape
        (torch.Size([6]), torch.Size([2]))
    """

    def __init__(self, n_out: int, n_in: int, seed: int):
        super().__init__()
        if n_in > n_out:
            raise ConfigError(f"{n_in} dimensions were asked for; only {n_out} numbers are there to be moved")
        self.n_out, self.n_in = n_out, n_in
        n, n_short = power_of_two(n_out), power_of_two(n_in)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (n_short,), generator=generator).float() * 2 - 1
        normal = torch.randn(n, generator=generator)
        scale = 1.0 / math.sqrt(n_out * float(normal.double().square().sum()))
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("order", torch.randperm(n, generator=generator), persistent=False)
        self.register_buffer("normal", normal * scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """P x.

        A vector that is zero but for its first numbers has a transform that repeats, so the first H is a short one.

        Args:
            x: (d,).

        Returns:
            (D,).
        """
        # TASK 24.7 (2 points)
        # From right to left: zeros behind x up to the length of `self.signs`; signs; a transform; as many copies of
        # it as make n numbers (why is that H of the padded vector?); their random order, `[self.order]`; normal
        # numbers; a transform; the first D.
        raise NotImplementedError("task 24.7")

    def transposed(self, y: Tensor) -> Tensor:
        """P^T y: the same steps backwards; what the gradient by P x becomes by x.

        Args:
            y: (D,).

        Returns:
            (d,).
        """
        mixed = fast_walsh_hadamard(nn.functional.pad(y, (0, len(self.order) - self.n_out))) * self.normal
        sorted_again = torch.empty_like(mixed).index_copy_(0, self.order, mixed)
        short = sorted_again.view(-1, len(self.signs)).sum(0)
        return (fast_walsh_hadamard(short) * self.signs)[: self.n_in]


def nf4_code() -> Tensor:
    """The sixteen levels: eight above zero, zero, and seven below, divided by the largest.

    Returns:
        (16,) float, rising from -1 to 1; index 7 is exactly zero.

    Source:
        Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.

    Example:
        >>> [round(level, 3) for level in nf4_code().tolist()[5:10]]
        [-0.185, -0.091, 0.0, 0.08, 0.161]
    """
    # TASK 24.8 (2 points)
    # `normal_quantiles(n)` gives n positive levels of one side. Eight of them, zero, and seven on the other side
    # make sixteen. Sort, then divide so that the largest is 1.
    raise NotImplementedError("task 24.8")
