"""The parameters of one part of a model, cut over the ranks: whole while that part computes, a shard else.

Dimensions: P ranks, N numbers of the unit's parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError
from minillm.parallel.comm import Comm, Pending
from minillm.parallel.flat import FlatLayout, FlatPiece, GradientScatter

Wrap = Sequence[type[nn.Module]] | Callable[[str, nn.Module], bool]


class ShardedBuffer:
    """Parameters of one dtype, all trained or all frozen, of which this rank keeps an even share.

    At rest each parameter's `.data` is this rank's piece of it, one dimension, perhaps of no numbers. That is what an
    optimizer sees. While the unit computes it is the whole, in `compute_dtype`, a view of one buffer. Autograd
    remembers the whole ones by the buffer's memory: it is given back and taken again, and filled with the same numbers.

    Args:
        parameters: with the whole numbers, the same on all ranks.
        comm: the ranks that share them.
        compute_dtype: of the whole parameters of a floating dtype; None is their own.
        reduce_dtype: of the gradients that are sent; None is that of the whole parameters.

    Attributes:
        shard: (shard_numbers,) what this rank keeps, in the dtype that the parameters had.
        full: (padded numbers,) the whole, without memory at rest.
        scatter: the gradients on their way; None if frozen.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        comm: Comm,
        compute_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
    ):
        self.parameters, self.comm = list(parameters), comm
        self.layout = FlatLayout([parameter.shape for parameter in parameters], comm.size)
        whole = parameters[0].detach().new_zeros(self.layout.padded_numbers)
        for view, parameter in zip(self.layout.views(whole), self.parameters, strict=True):
            view.copy_(parameter.detach())
        self.shard = whole[self.layout.owned(comm.rank)].clone()
        self.places = {place.index: place for place in self.layout.pieces(comm.rank)}
        nowhere = FlatPiece(-1, 0, 0, 0)
        self.pieces = [self.shard[self.places.get(i, nowhere).within] for i in range(len(self.parameters))]
        dtype = compute_dtype if compute_dtype and whole.is_floating_point() else whole.dtype
        self.full = whole if dtype == whole.dtype else whole.to(dtype)
        self.views = self.layout.views(self.full)
        self.scatter: GradientScatter | None = None
        if parameters[0].requires_grad:
            self.scatter = GradientScatter(self.parameters, self.layout, comm, reduce_dtype or dtype)
        self.earlier: list[Tensor | None] = [None] * len(self.parameters)
        self.pending: Pending | None = None
        self.is_whole = True
        self.free()

    @torch.no_grad()
    def begin_gather(self) -> None:
        """Begin to fetch the whole parameters, unless they are here or on their way."""
        if self.is_whole or self.pending is not None:
            return
        self.full.untyped_storage().resize_(self.full.nbytes)
        shard = self.shard
        if shard.dtype != self.full.dtype:
            shard = self.full[self.layout.owned(self.comm.rank)].copy_(shard)
        self.pending = self.comm.all_gather(self.full, shard, async_op=True)

    def gather(self) -> None:
        """Have the whole parameters."""
        self.begin_gather()
        if self.pending is not None:
            self.pending.wait()
            self.pending, self.is_whole = None, True
        self.show(self.views)

    def rest(self) -> None:
        """Show the pieces, but keep the whole ones, which autograd remembers, for backward."""
        self.show(self.pieces)

    def free(self) -> None:
        """Give the whole parameters' memory back."""
        if self.pending is not None:
            self.gather()
        if self.is_whole:
            self.rest()
            self.full.untyped_storage().resize_(0)
            self.is_whole = False

    def show(self, tensors: Sequence[Tensor]) -> None:
        """Let the parameters be these tensors."""
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor

    def gathered_copy(self) -> list[Tensor]:
        """The whole parameters in the number format in which they are kept, in memory of their own."""
        whole = self.shard.new_empty(self.layout.padded_numbers)
        self.comm.all_gather(whole, self.shard)
        return self.layout.views(whole)

    def set_gradients_aside(self) -> None:
        """Before backward: this rank's part of the sums of earlier passes must not meet the whole gradients of this."""
        for place, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.earlier[place], parameter.grad = parameter.grad, None

    @torch.no_grad()
    def finish_gradients(self, scale: float, is_used: Sequence[bool]) -> None:
        """Wait for the sums; `.grad` is this rank's part of them, added to that of earlier passes."""
        part = self.scatter.finish(scale).to(self.shard.dtype)
        self.set_gradients_aside()
        for index, place in self.places.items():
            gradient = self.earlier[index]
            if is_used[index]:
                gradient = part[place.within] if gradient is None else gradient.add_(part[place.within])
            self.parameters[index].grad = gradient
        self.earlier = [None] * len(self.parameters)


class ShardedUnit:
    """A module whose own parameters come and go together.

    Args:
        name: of the module in the whole model; the root's is empty.
        module: whose forward needs them.
        parameters: name -> those that belong to this unit.
        comm: the ranks that share them.
        compute_dtype: see `ShardedBuffer`.
        reduce_dtype: see `ShardedBuffer`.

    Attributes:
        n_calls: how often the module was called, with gradients, since the last synchronization.
        is_in_backward: whether backward has come to it and has not left it yet.
        is_sent: whether its gradients have been sent off.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        parameters: dict[str, nn.Parameter],
        comm: Comm,
        compute_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype | None,
    ):
        self.name, self.module, self.names = name, module, {p: key for key, p in parameters.items()}
        kinds: dict[tuple, list[nn.Parameter]] = {}
        for parameter in parameters.values():
            kinds.setdefault((parameter.dtype, parameter.requires_grad), []).append(parameter)
        self.buffers = [ShardedBuffer(kind, comm, compute_dtype, reduce_dtype) for kind in kinds.values()]
        self.trained = [buffer for buffer in self.buffers if buffer.scatter is not None]
        self.n_calls, self.is_in_backward, self.is_sent = 0, False, False

    def contains(self, other: "ShardedUnit") -> bool:
        """Whether the other unit is a part of this one."""
        return not self.name or other.name.startswith(f"{self.name}.")

    def begin_gather(self) -> None:
        """Begin to fetch what is not here."""
        for buffer in self.buffers:
            buffer.begin_gather()

    def gather(self) -> None:
        """Have the whole parameters."""
        self.begin_gather()
        for buffer in self.buffers:
            buffer.gather()

    def rest(self) -> None:
        """Show the pieces, but keep the whole parameters for backward."""
        for buffer in self.buffers:
            buffer.rest()

    def free(self) -> None:
        """Keep this rank's shard only."""
        for buffer in self.buffers:
            buffer.free()

    def enter_backward(self) -> None:
        """Have the whole parameters, and room for whole gradients."""
        self.is_in_backward = True
        self.gather()
        for buffer in self.trained:
            buffer.set_gradients_aside()

    def send_gradients(self) -> None:
        """Send the gradients off, unless that is done."""
        if not self.is_sent:
            self.is_sent = True
            for buffer in self.trained:
                buffer.scatter.launch()

    def free_gradients(self) -> None:
        """Give back the memory of the whole gradients, as soon as they have arrived."""
        for buffer in self.trained:
            buffer.scatter.free()


def chosen_names(module: nn.Module, wrap: Wrap) -> list[str]:
    """Names of the modules that `wrap` chooses, without the root.

    Raises:
        ConfigError: if it chooses nothing, or a container that is never called.
    """
    is_chosen = wrap if callable(wrap) else lambda _, part: isinstance(part, tuple(wrap))
    chosen = {name: part for name, part in module.named_modules() if name and is_chosen(name, part)}
    if not chosen and (callable(wrap) or len(wrap)):
        kinds = sorted({type(part).__name__ for part in module.modules()})
        raise ConfigError(f"wrap chooses no part of {type(module).__name__}; it is made of {', '.join(kinds)}")
    for name, part in chosen.items():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            raise ConfigError(
                f"wrap chooses {name}, a {type(part).__name__}, which is never called; choose its entries"
            )
    return list(chosen)


def unit_parameters(module: nn.Module, chosen: Sequence[str]) -> dict[str, dict[str, nn.Parameter]]:
    """Share the parameters out among units: each belongs to the innermost, a tied one of several to the root.

    Args:
        module: the whole model.
        chosen: names of the units besides the root.

    Returns:
        unit name -> {parameter name: parameter}; the root, "", first.

    Example:
        >>> pair = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2, bias=False)))
        >>> pair[1][0].weight = pair[0].weight
        >>> {unit: list(parameters) for unit, parameters in unit_parameters(pair, ["0", "1"]).items()}
        {'': ['0.weight'], '0': ['0.bias'], '1': []}
    """
    owner: dict[nn.Parameter, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        around = [name for name in chosen if path == name or path.startswith(f"{name}.")]
        unit = max(around, key=len, default="")
        for parameter in part.parameters(recurse=False):
            owner[parameter] = unit if owner.get(parameter, unit) == unit else ""
    units: dict[str, dict[str, nn.Parameter]] = {name: {} for name in ("", *chosen)}
    for name, parameter in module.named_parameters():
        units[owner[parameter]][name] = parameter
    return units
