"""LoRA: beside each frozen matrix W a product of two thin ones, W x + scale * B (A x); only A and B are trained.

Dimensions: R rank, I width of a layer's input, O width of its output, V rows of a table, C width of a table.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.adapted import Delta
from minillm.errors import ConfigError

INITIAL = ("code", "paper")
WHOLE = "whole"  # the part of a layer that is all of it


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which layers get a low-rank branch, and how large and strong it is.

    Args:
        rank: R, the columns of B and rows of A.
        alpha: strength; the branch is multiplied by alpha / R.
        targets: linear layers and embeddings, by whole name, ending or regular expression (`surgery.find`).
        parts: of a fused layer (`qkv`, `key_value`, GPT-2's `c_attn`) these sections, each with its own A and B;
            none means the whole layer with one A and one B.
        dropout: chance of dropping a number of the branch's input while training.
        initial: A at the start: "code" is uniform in +-1 / sqrt(I) as in the authors' code, "paper" normal with std
            1 / R. B is zero. For embeddings A is zero and B normal with standard deviation 1.
        rank_stabilised: multiply by alpha / sqrt(R) instead, so that a large rank learns as fast as a small one.
        heads: modules, such as a new classifier, that are trained and saved whole.

    Raises:
        ConfigError: naming the first setting that is out of range.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1; initial values of the code: github.com/microsoft/LoRA;
        rank_stabilised: Kalajdzievski 2023, arXiv:2312.03732.
    """

    method: ClassVar[str] = "lora"
    several: ClassVar[bool] = True

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("qkv",)
    parts: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0
    initial: str = "code"
    rank_stabilised: bool = False
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("targets", "parts", "heads"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ConfigError(f"rank is {self.rank!r}, expected a whole number of at least 1")
        if not 0.0 < self.alpha < math.inf:
            raise ConfigError(f"alpha is {self.alpha}, expected a positive number")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.initial not in INITIAL:
            raise ConfigError(f"initial is {self.initial!r}, expected one of {INITIAL}")
        if unknown := set(self.parts) - {part for fused in surgery.FUSED.values() for part in fused}:
            raise ConfigError(f"unknown parts {sorted(unknown)}; known are query, key and value")
        if not self.targets:
            raise ConfigError("targets is empty: name the layers that get a branch, for example ('qkv',)")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by.

        Example:
            >>> LoraConfig(rank=4, alpha=8).scale, LoraConfig(rank=4, alpha=8, rank_stabilised=True).scale
            (2.0, 4.0)
        """
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> "LoraDelta":
        """Give every target a branch of this name."""
        return LoraDelta(model, self, name, generator)


def low_rank(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The change that a branch makes to its matrix: scale * B A.

    Args:
        a: (R, I).
        b: (O, R).
        scale: alpha / R.

    Returns:
        (O, I).

    Source:
        Hu et al. 2021, arXiv:2106.09685, equation 3.

    Example:
        >>> low_rank(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [5.0]]), 2.0).tolist()
        [[6.0, 12.0], [10.0, 20.0]]
    """
    return b @ a * scale


def initial_a(rank: int, d_in: int, initial: str, generator: torch.Generator | None) -> Tensor:
    """A at the start of training.

    Args:
        rank: R.
        d_in: width I of the layer's input.
        initial: "code" or "paper", see `LoraConfig`.
        generator: where the numbers come from; None is torch's own default generator.

    Returns:
        (R, I).
    """
    if initial == "paper":
        return torch.empty(rank, d_in).normal_(0.0, 1.0 / rank, generator=generator)
    bound = 1.0 / math.sqrt(d_in)
    return torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)


class Branch(nn.Module):
    """One part's A and B.

    Args:
        a: (R, I).
        b: (O, R).
        rows: of the layer's matrix that the branch changes, O of them.
    """

    def __init__(self, a: Tensor, b: Tensor, rows: slice):
        super().__init__()
        self.A, self.B, self.rows = nn.Parameter(a), nn.Parameter(b), rows


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
        changed = self.changed_weight()
        if surgery.is_packed(self.base):
            self.unmerged.append(self.base)
            self.base = self.base.unpacked(changed)
            return
        self.unmerged.append(self.base.weight)
        self.base.weight = nn.Parameter(changed, requires_grad=False)

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
        out = self.base(x)                                         # (..., O)
        if not self.in_use:
            return out
        a, b = self.matrices()
        x = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        narrow = F.linear(x, a.to(x.dtype)) * (self.config.scale * self.stretch)  # (..., R)
        rows = out.reshape(-1, out.shape[-1])                      # (N, O)
        added = torch.addmm(rows, narrow.reshape(-1, a.shape[0]).to(out.dtype), b.T.to(out.dtype))  # (N, O)
        return added.view(out.shape)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """One A and one B that do what all branches do.

        Returns:
            The branches' A below each other (R, I), and beside each other their B (O, R), with zeros in the rows that a
            branch does not change; R is the sum of their ranks.
        """
        branches, n_rows = self.in_use, self.n_rows
        if len(branches) == 1 and len(branches[0].B) == n_rows:
            return branches[0].A, branches[0].B
        wide = [F.pad(branch.B, (0, 0, branch.rows.start, n_rows - branch.rows.stop)) for branch in branches]
        return torch.cat([branch.A for branch in branches]), torch.cat(wide, dim=1)

    @property
    def stretch(self) -> float:
        """What a `StretchedLinear` multiplies its result by; a change of its weight is multiplied too."""
        return getattr(self.base, "stretch", 1.0)

    def change(self) -> Tensor:
        change = low_rank(*self.matrices(), self.config.scale)     # (O, I)
        return change.T if surgery.is_transposed(self.base) else change


class LoraEmbedding(LoraLayer):
    """A table with a branch: base(ids) + scale * B A[:, ids]."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map (...) ids to (..., C) vectors."""
        vectors = self.base(token_ids)                             # (..., C)
        for branch in self.in_use:
            narrow = F.embedding(token_ids, branch.A.T, getattr(self.base, "padding_idx", None))  # (..., R)
            vectors = vectors + F.linear(narrow * self.config.scale, branch.B).to(vectors.dtype)
        return vectors

    def change(self) -> Tensor:
        (branch,) = self.in_use
        return low_rank(branch.A, branch.B, self.config.scale).T


class LoraDelta(Delta):
    """The branches of one adapter in all layers of one model.

    Args:
        model: is changed; layers that have branches of other adapters get these beside them.
        config: what to put where.
        name: of the adapter.
        generator: where initial numbers come from; None is torch's own default generator.

    Raises:
        ConfigError: if nothing matches, or the rank is above a layer's width; the model is as it was then.
    """

    def __init__(self, model: nn.Module, config: LoraConfig, name: str, generator: torch.Generator | None = None):
        self.model, self.config, self.name = model, config, name
        found = surgery.find(model, config.targets, adaptable(model, config.heads))
        branches = {place: make_branches(model, place, config, generator) for place in found}
        surgery.wrap(model, [place for place, layer in found.items() if not isinstance(layer, LoraLayer)], wrapped)
        self.layers: dict[str, LoraLayer] = {place: model.get_submodule(place) for place in found}
        for place, layer in self.layers.items():
            layer.add(name, config, branches[place])

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {}
        for place, layer in self.layers.items():
            for part, branch in layer.branches[self.name].items():
                prefix = place if part == WHOLE else f"{place}.{part}"
                named |= {f"{prefix}.A": branch.A, f"{prefix}.B": branch.B}
        return named

    def switch(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.active = self.name if on else ""

    def merge(self) -> None:
        """Into the base's weights; warns if some are packed, because their layers are no longer small then."""
        if packed := [place for place, layer in self.layers.items() if surgery.is_packed(layer.base)]:
            warnings.warn(
                f"merging makes the full matrices of {len(packed)} packed layers anew ({packed[0]} ...), with all "
                "their bytes; packing the result again rounds the change as well: measure before you do",
                stacklevel=3,
            )
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        for layer in self.layers.values():
            layer.unmerge()

    def remove(self) -> None:
        for place, layer in self.layers.items():
            layer.drop(self.name)
            if not layer.branches:
                surgery.replace(self.model, place, layer.base)
        self.layers = {}


def adaptable(model: nn.Module, heads: Sequence[str]):
    """Which modules can get a branch: linear layers and tables, but not those inside a branched layer or a head."""
    inside = {id(m.base) for m in model.modules() if isinstance(m, LoraLayer)}
    for head in surgery.find(model, heads) if heads else ():
        inside |= {id(module) for module in model.get_submodule(head).modules()}

    def wanted(module: nn.Module) -> bool:
        kind = isinstance(module, LoraLayer) or surgery.is_linear(module) or surgery.is_embedding(module)
        return kind and id(module) not in inside

    return wanted


def wrapped(place: str, layer: nn.Module) -> LoraLayer:
    """A layer with room for branches."""
    return LoraEmbedding(layer) if surgery.is_embedding(layer) else LoraLinear(layer)


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
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        check_rank(config.rank, place, n_rows, d_out)
        b = torch.empty(d_out, config.rank).normal_(generator=generator)
        return {WHOLE: like_base(base, torch.zeros(config.rank, n_rows), b, slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        check_rank(config.rank, f"{place}.{part}", d_in, rows.stop - rows.start)
        a = initial_a(config.rank, d_in, config.initial, generator)
        branches[part] = like_base(base, a, torch.zeros(rows.stop - rows.start, config.rank), rows)
    return branches


def parts_of(model: nn.Module, place: str, parts: Sequence[str], n_rows: int) -> dict[str, slice]:
    """The sections of a layer that get a branch each, or the whole of a layer that is not fused.

    Raises:
        ConfigError: if the layer is fused and has none of the parts.
    """
    sections = surgery.sections_of(model, place)
    if not sections or not parts:
        return {WHOLE: slice(0, n_rows)}
    chosen = {part: rows for part, rows in sections.items() if part in parts}
    if not chosen:
        raise ConfigError(f"{place} has the parts {list(sections)}, none of {list(parts)}")
    return chosen


def check_rank(rank: int, place: str, d_in: int, d_out: int) -> None:
    """Refuse a rank that saves nothing.

    Raises:
        ConfigError: if it is above the smaller side of the matrix.
    """
    if rank > min(d_in, d_out):
        raise ConfigError(
            f"rank {rank} is above {min(d_in, d_out)}, the smaller side of {place} ({d_out} x {d_in}): no change of "
            "that matrix has a higher rank"
        )


def like_base(base: nn.Module, a: Tensor, b: Tensor, rows: slice) -> Branch:
    """A branch on the base's device; in its number format, but never in 16 bits, where small steps are lost."""
    weight = base.weight
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
    return Branch(a.to(weight.device, dtype), b.to(weight.device, dtype), rows)
