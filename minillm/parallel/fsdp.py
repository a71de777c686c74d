"""Fully sharded data parallel (ZeRO stage 3): each rank keeps a share of parameters, gradients and optimizer state.

The model is cut into units, for example its layers. A unit's parameters are gathered just before it computes and freed
right after, in forward and again in backward; its gradients are scattered to their owners when backward has left it. So
no rank ever holds more whole parameters than the root's and those of two units: the one that computes and the next.

Dimensions: P ranks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CheckpointError, CommError
from minillm.parallel.clip import clip_global_gradients
from minillm.parallel.comm import Comm
from minillm.parallel.data_parallel import broadcast_module
from minillm.parallel.flat import any_rank
from minillm.parallel.owned import OwnedPiece, full_state_by_name, load_full_state_by_name
from minillm.parallel.sharded_unit import ShardedUnit, Wrap, chosen_names, unit_parameters


class FullyShardedDataParallel(nn.Module):
    """Wraps a module so that every rank keeps 1 / P of it.

    The module's parameters stay the same objects. Between steps each is this rank's piece, in one dimension (in the
    number format that it had: the masters, if `compute_dtype` is another), with its gradient. So an optimizer over
    `module.parameters()` needs no wrapping, if it treats every number alike (SGD, AdamW); groups that look at shapes,
    as `train.grouping.decay_groups` does, must be made before the module is wrapped.

    A training step is: forward (of the wrapper or the module), backward, `finish_gradient_synchronization`,
    `clip_gradients`, the optimizer's step and zero_grad. Gradients of several passes add up, each pass with its own
    `finish_gradient_synchronization`. Forward and backward are collectives: every rank must take part in each.

    Args:
        module: any module; all ranks take rank 0's parameters and buffers. A parameter that belongs to two units (a
            tied one) is kept with the outermost module, whose parameters are whole from the beginning of the pass to
            its end.
        comm: the data-parallel group.
        wrap: the modules that become units of their own: their classes, or a function (name, module) -> bool. What is
            left belongs to the root's unit.
        reshard_after_forward: True frees each unit after its forward, the root too, and gathers it again in backward:
            half as much traffic again. False keeps all of them. None: frees all but the root, which backward needs
            first.
        compute_dtype: number format of whole parameters, floating inputs and products, for example `torch.bfloat16`.
        reduce_dtype: of the gradients that are sent and summed; None is that of the whole parameters.
        prefetch: fetch the next unit's parameters while this one computes.
        find_unused: leave `.grad` None where no rank has one, as on one device; one small message per step.

    Attributes:
        module: the model itself.
        units: the root first, then in the module's order.
        order: the units as they were called in the first forward.

    Raises:
        ConfigError: if `wrap` matches nothing, or a list of modules, which is never called.

    Source:
        Rajbhandari et al. 2020, arXiv:1910.02054, section 5.3 (P_os+g+p); Zhao et al. 2023, arXiv:2304.11277, section
        3.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Comm,
        wrap: Wrap = (),
        reshard_after_forward: bool | None = None,
        compute_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
        prefetch: bool = True,
        find_unused: bool = True,
    ):
        super().__init__()
        self.module, self.comm = module, comm
        self.reshard_after_forward, self.compute_dtype = reshard_after_forward, compute_dtype
        self.prefetch, self.find_unused, self.is_gathered = prefetch, find_unused, False
        owners = unit_parameters(module, chosen_names(module, wrap))
        broadcast_module(module, comm)
        self.units = [
            ShardedUnit(name, module.get_submodule(name), parameters, comm, compute_dtype, reduce_dtype)
            for name, parameters in owners.items()
        ]
        self.root = self.units[0]
        self.order: list[ShardedUnit] = []
        for unit in self.units:
            unit.module.register_forward_pre_hook(partial(self.before_forward, unit), prepend=True, with_kwargs=True)
            unit.module.register_forward_hook(partial(self.after_forward, unit))
            for buffer in unit.trained:
                for place, parameter in enumerate(buffer.parameters):
                    collect = partial(buffer.scatter.collect, place)
                    parameter.register_post_accumulate_grad_hook(lambda _, collect=collect: collect())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes."""
        return self.module(*args, **kwargs)

    def before_forward(self, unit: ShardedUnit, module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """Gather this unit's parameters, and begin with the next one's."""
        if self.is_gathered or unit.is_in_backward:  # in backward: activations computed once more
            return None
        if unit.is_sent and torch.is_grad_enabled():
            raise CommError(
                f"forward of {unit.name} after its gradients were sent: call finish_gradient_synchronization() after "
                "each backward pass"
            )
        if unit is self.root:
            self.free_all()  # what an unfinished pass has left
        if torch.is_grad_enabled():
            unit.n_calls += 1
        unit.gather()
        if unit not in self.order:
            self.order.append(unit)
        self.begin_next(unit, +1)
        if unit is self.root and self.compute_dtype is not None:
            return cast_floating((args, kwargs), self.compute_dtype)
        return None

    def after_forward(self, unit: ShardedUnit, module: nn.Module, args: tuple, output: Any) -> None:
        """Free the unit, and notice when backward comes to it."""
        if self.is_gathered or unit.is_in_backward:
            return
        is_kept = self.reshard_after_forward is False or (self.reshard_after_forward is None and unit is self.root)
        if torch.is_grad_enabled():
            for tensor in tensors_in(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: self.before_backward(unit))
        if is_kept and torch.is_grad_enabled():
            unit.rest()
        else:
            unit.free()

    def before_backward(self, unit: ShardedUnit) -> None:
        """Backward comes to a unit, and so has left those that it was in before."""
        if unit.is_in_backward or unit.is_sent:
            return
        left = [other for other in self.units if other.is_in_backward and other.n_calls == 1]
        left = [other for other in left if not other.contains(unit) and not unit.contains(other)]
        for other in left:
            other.send_gradients()
            other.is_in_backward = False
            other.free()
        unit.enter_backward()
        self.begin_next(unit, -1)
        for other in self.units:
            if other.is_sent and other not in left:
                other.free_gradients()

    def begin_next(self, unit: ShardedUnit, step: int) -> None:
        """Fetch what will be needed after this unit (step 1), or in backward (step -1), if the order is known."""
        place = self.order.index(unit) + step
        if self.prefetch and 0 <= place < len(self.order) and not self.order[place].is_sent:
            self.order[place].begin_gather()

    def free_all(self) -> None:
        """Free all units that backward is not in."""
        for unit in self.units:
            if not unit.is_in_backward:
                unit.free()

    def finish_gradient_synchronization(self, scale: float | None = None) -> None:
        """After backward: leave in each `.grad` this rank's part of the sum over the ranks, times `scale`.

        Called by all ranks.

        Args:
            scale: as in `DataParallel.finish_gradient_synchronization`: None is 1 / P.
        """
        buffers = [buffer for unit in reversed(self.units) for buffer in unit.trained]
        flags = [i not in b.scatter.missing for b in buffers for i in range(len(b.parameters))]
        for unit in reversed(self.units):
            unit.send_gradients()
            unit.is_in_backward = False
        self.free_all()
        used = iter(any_rank(flags, self.comm) if self.find_unused else [True] * len(flags))
        for buffer in buffers:
            is_used = [next(used) for _ in buffer.parameters]
            buffer.finish_gradients(1.0 / self.comm.size if scale is None else scale, is_used)
        for unit in self.units:
            unit.n_calls, unit.is_sent = 0, False

    def clip_gradients(self, max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
        """Shorten the gradient if all ranks' parts together are longer than `max_norm`; returns the norm before."""
        return clip_global_gradients(
            self.module.parameters(), max_norm, [self.comm], error_if_nonfinite=error_if_nonfinite
        )

    @property
    def owned(self) -> list[OwnedPiece]:
        """What this rank keeps, piece by piece: together with the other ranks' every number exactly once."""
        return [
            OwnedPiece(unit.names[p], buffer.layout.shapes[index], place.begin, place.end, p)
            for unit in self.units
            for buffer in unit.buffers
            for index, place in buffer.places.items()
            for p in (buffer.parameters[index],)
        ]

    @contextmanager
    def gather_full_parameters(self) -> Iterator[nn.Module]:
        """Inside, the module has whole parameters as they are kept, to be read or run; what is changed there is lost.

        Called by all ranks; each needs memory for the whole model. No backward in here.
        """
        self.free_all()
        buffers = [buffer for unit in self.units for buffer in unit.buffers]
        for buffer in buffers:
            buffer.show(buffer.gathered_copy())
        self.is_gathered = True
        try:
            yield self.module
        finally:
            self.is_gathered = False
            for buffer in buffers:
                buffer.show(buffer.pieces)

    def full_state_dict(self) -> dict[str, Tensor]:
        """Whole tensors under the module's own names, copies, on every rank; called by all of them."""
        with self.gather_full_parameters() as module:
            return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def load_full(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take this rank's pieces from whole tensors, as `full_state_dict` or the bare module's `state_dict` gives
        them.

        Raises:
            CheckpointError: if names or shapes are not the module's; nothing is changed then.
        """
        shapes = {piece: shape for unit in self.units for b in unit.buffers
                  for piece, shape in zip(b.parameters, b.layout.shapes, strict=True)}  # fmt: skip
        targets = self.module.state_dict(keep_vars=True)
        if set(targets) != set(state_dict):
            missing, unknown = sorted(set(targets) - set(state_dict)), sorted(set(state_dict) - set(targets))
            raise CheckpointError(f"weights of another model: missing {missing[:5]}, not known here {unknown[:5]}")
        for name, target in targets.items():
            expected = shapes.get(target, tuple(target.shape))
            if tuple(state_dict[name].shape) != expected:
                raise CheckpointError(f"{name}: expected shape {expected}, found {tuple(state_dict[name].shape)}")
        self.free_all()
        for unit in self.units:
            for buffer in unit.buffers:
                for index, place in buffer.places.items():
                    whole = state_dict[unit.names[buffer.parameters[index]]].reshape(-1)
                    buffer.pieces[index].copy_(whole[place.begin : place.end])
        for name, target in targets.items():
            if target not in shapes:
                target.copy_(state_dict[name])

    def full_state_by_name(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer over the module, of whole parameters; see `ZeroOptimizer.full_state_by_name`."""
        return full_state_by_name(self.owned, optimizer, self.comm)

    def load_full_state_by_name(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        """Take this rank's part of such a state, from any number of ranks or one process."""
        load_full_state_by_name(self.owned, optimizer, saved)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def cast_floating(value: Any, dtype: torch.dtype) -> Any:
    """The same nested tuples, lists and dictionaries with floating tensors in another number format."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) is dict:
        return {key: cast_floating(part, dtype) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(cast_floating(part, dtype) for part in value)
    return value
