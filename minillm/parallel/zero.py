"""ZeRO stages 1 and 2: each rank keeps the optimizer's state, then also the gradients, of an even share of the model.

Every rank still has all parameters. After backward a reduce-scatter leaves each rank with the summed gradient of what
it owns; it steps that; an all-gather brings the new parameters to everyone. The two together send as much as the
all-reduce that they replace.

Dimensions: P ranks, N numbers of all trained parameters together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import CommError, ConfigError
from minillm.parallel.buckets import assign_buckets
from minillm.parallel.clip import clip_global_gradients
from minillm.parallel.comm import Comm
from minillm.parallel.data_parallel import DEFAULT_BUCKET_BYTES, broadcast_module
from minillm.parallel.flat import FlatLayout, FlatPiece, GradientScatter, any_rank
from minillm.parallel.owned import OwnedPiece, full_state_by_name, load_full_state_by_name


class ZeroBucket:
    """Some parameters in one flat buffer, of which each rank owns an equal part.

    Args:
        parameters: of one dtype and device; they become views of the buffer.
        comm: the ranks that share them.
        stage: 1 keeps all gradients, 2 this rank's part of them.
        master_dtype: the number format that the optimizer works in; None takes the parameters' own.

    Attributes:
        flat: (padded numbers,) all parameters.
        own: this rank's part of it.
        places: the pieces of parameters in it.
        pieces: the same as parameters that share memory with `own`; their `.grad` is the summed gradient.
        masters: what the optimizer steps: the pieces, or copies in `master_dtype`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], comm: Comm, stage: int, master_dtype: torch.dtype | None):
        self.parameters, self.comm = list(parameters), comm
        self.layout = FlatLayout([parameter.shape for parameter in parameters], comm.size)
        self.flat = parameters[0].detach().new_zeros(self.layout.padded_numbers)
        for parameter, view in zip(self.parameters, self.layout.views(self.flat), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.own = self.flat[self.layout.owned(comm.rank)]
        self.places: list[FlatPiece] = self.layout.pieces(comm.rank)
        self.pieces = [nn.Parameter(self.own[place.within]) for place in self.places]
        self.masters = self.pieces
        if master_dtype not in (None, self.flat.dtype):
            self.masters = [nn.Parameter(piece.detach().to(master_dtype)) for piece in self.pieces]
        self.scatter = GradientScatter(self.parameters, self.layout, comm, is_kept=stage == 1)
        self.is_reduced = False

    def finish(self, scale: float, is_used: Sequence[bool]) -> None:
        """Wait for this rank's part of the gradients' sum; without `is_used` a gradient stays None."""
        part = self.scatter.finish(scale)
        self.is_reduced = True
        for piece, place in zip(self.pieces, self.places, strict=True):
            gradient = part[place.within]
            if not is_used[place.index]:
                continue
            if piece.grad is None or self.scatter.is_kept:
                piece.grad = gradient
            else:
                piece.grad.add_(gradient)

    @torch.no_grad()
    def give_masters_gradients(self) -> None:
        """Before the step, where masters are copies: the gradients in their number format."""
        if self.masters is not self.pieces:
            for master, piece in zip(self.masters, self.pieces, strict=True):
                master.grad = None if piece.grad is None else piece.grad.to(master.dtype)

    @torch.no_grad()
    def take_masters_values(self) -> None:
        """After the step, where masters are copies: round them into the parameters."""
        if self.masters is not self.pieces:
            for master, piece in zip(self.masters, self.pieces, strict=True):
                master.grad = None
                piece.copy_(master)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for tensor in (*self.parameters, *self.pieces):
            tensor.grad = None
        self.is_reduced = False


class ZeroOptimizer:
    """Wraps any torch optimizer class that treats every number alike; each rank steps the numbers that it owns.

    A training step is: forward and backward on the module itself, `finish_gradient_synchronization`, `clip_gradients`,
    `step`, `zero_grad`. Between the second and the last the gradients are those of the optimizer's pieces; the
    parameters' own `.grad` is local, and wholly so only where the piece is this rank's (stage 1), or None (stage 2).

    Args:
        module: any module; takes the parameters and buffers of rank 0 at the start. Frozen parameters are left alone.
        optimizer_class: for example `torch.optim.AdamW`.
        comm: the data-parallel group.
        stage: 1: only the optimizer's state is divided; 2: the gradients as well, each sent off and freed in backward.
        groups: of parameters with their own settings, as `train.grouping.decay_groups` makes them; None is one group.
        master_dtype: number format of the optimizer's copy, `torch.float32` for a module in bfloat16; None: no copy.
        bucket_bytes: gradients are sent in pieces of about this size.
        find_unused: leave parameters alone that no rank has used; one small message per step.
        kwargs: settings of the optimizer.

    Attributes:
        optimizer: the wrapped one, over this rank's pieces.
        buckets: the flat buffers.

    Raises:
        ConfigError: if the stage is unknown, nothing is trained, or the groups are not the module's trained parameters.

    Source:
        Rajbhandari et al. 2020, arXiv:1910.02054, sections 5 and 7 (P_os and P_os+g).
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer_class: Callable[..., Optimizer],
        comm: Comm,
        stage: int = 1,
        groups: Iterable[dict[str, Any]] | None = None,
        master_dtype: torch.dtype | None = None,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        find_unused: bool = True,
        **kwargs: Any,
    ):
        if stage not in (1, 2):
            raise ConfigError(f"stage is {stage}, expected 1 or 2; stage 3 is FullyShardedDataParallel")
        self.module, self.comm, self.stage, self.find_unused = module, comm, stage, find_unused
        self.names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        if not self.names:
            raise ConfigError("the module has no trained parameter; there is nothing to divide")
        groups = checked_groups(groups, self.names)
        broadcast_module(module, comm)
        self.buckets = self.make_buckets(bucket_bytes, master_dtype)
        self.places = {p: (b, i) for b in self.buckets for i, p in enumerate(b.parameters)}
        masters: dict[nn.Parameter, list[nn.Parameter]] = {}
        for bucket in self.buckets:
            for place, master in zip(bucket.places, bucket.masters, strict=True):
                masters.setdefault(bucket.parameters[place.index], []).append(master)
        local = [{**group, "params": [m for p in group["params"] for m in masters.get(p, [])]} for group in groups]
        self.optimizer = optimizer_class(local, **kwargs)
        self.is_sending, self.n_launched = True, 0
        for parameter in self.names:
            parameter.register_post_accumulate_grad_hook(self.gradient_is_there)

    def make_buckets(self, bucket_bytes: int, master_dtype: torch.dtype | None) -> list[ZeroBucket]:
        """Cut the parameters, last ones first, into flat buffers of one dtype and device each."""
        kinds: dict[tuple, list[nn.Parameter]] = {}
        for parameter in self.names:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        return [
            ZeroBucket([group[index] for index in indices], self.comm, self.stage, master_dtype)
            for group in kinds.values()
            for indices in assign_buckets([parameter.nbytes for parameter in group], bucket_bytes)
        ]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups: change their learning rates here."""
        return self.optimizer.param_groups

    @property
    def pieces(self) -> list[nn.Parameter]:
        """What this rank owns, in the parameters' number format, with the summed gradients in `.grad`."""
        return [piece for bucket in self.buckets for piece in bucket.pieces]

    @property
    def owned(self) -> list[OwnedPiece]:
        """What this rank owns, piece by piece: together with the other ranks' every number exactly once."""
        return [
            OwnedPiece(self.names[bucket.parameters[p.index]], bucket.layout.shapes[p.index], p.begin, p.end, master)
            for bucket in self.buckets
            for p, master in zip(bucket.places, bucket.masters, strict=True)
        ]

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here add up whole gradients on this rank; the next one outside sends all of it."""
        before, self.is_sending = self.is_sending, False
        try:
            yield
        finally:
            self.is_sending = before

    def gradient_is_there(self, parameter: Tensor) -> None:
        """Called by autograd during backward: put the gradient into its buffer, send off what is full and in turn."""
        bucket, place = self.places[parameter]
        if bucket.is_reduced and parameter.grad is not None and self.stage == 1 and bucket.scatter.views:
            if parameter.grad is bucket.scatter.views[place]:
                raise CommError(
                    "backward would add to gradients that are already summed over the ranks: call zero_grad() after "
                    "the step, or put all but the last of several backward passes into no_sync()"
                )
        if self.is_sending:
            bucket.scatter.collect(place)
            while self.n_launched < len(self.buckets) and not self.buckets[self.n_launched].scatter.missing:
                self.launch()

    def launch(self) -> None:
        """Send off the next buffer, and give back the memory of the one before the last."""
        self.buckets[self.n_launched].scatter.launch()
        if self.n_launched >= 1:
            self.buckets[self.n_launched - 1].scatter.free()
        self.n_launched += 1

    def finish_gradient_synchronization(self, scale: float | None = None) -> None:
        """After backward: this rank's part of the gradients summed over the ranks, times `scale`. Called by all ranks.

        Args:
            scale: as in `DataParallel.finish_gradient_synchronization`: None is 1 / P.
        """
        for parameter, (bucket, place) in self.places.items():
            if place in bucket.scatter.missing and parameter.grad is not None:
                bucket.scatter.collect(place)
        flags = [place not in bucket.scatter.missing for bucket, place in self.places.values()]
        while self.n_launched < len(self.buckets):
            self.launch()
        used = any_rank(flags, self.comm) if self.find_unused else [True] * len(flags)
        is_used = dict(zip(self.places, used, strict=True))
        for bucket in self.buckets:
            bucket.finish(1.0 / self.comm.size if scale is None else scale, [is_used[p] for p in bucket.parameters])
        self.n_launched = 0

    def clip_gradients(self, max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
        """Shorten the gradient if all ranks' parts together are longer than `max_norm`; returns the norm before."""
        return clip_global_gradients(self.pieces, max_norm, [self.comm], error_if_nonfinite=error_if_nonfinite)

    @torch.no_grad()
    def step(self) -> None:
        """Step what this rank owns, and gather all parameters from their owners."""
        for bucket in self.buckets:
            bucket.give_masters_gradients()
        self.optimizer.step()
        self.gather_parameters()

    @torch.no_grad()
    def gather_parameters(self) -> None:
        """Bring what each rank owns to all of them: after a step, or after pieces were loaded from a checkpoint."""
        for bucket in self.buckets:
            bucket.take_masters_values()
        pending = [self.comm.all_gather(bucket.flat, bucket.own, async_op=True) for bucket in self.buckets]
        for transfer in pending:
            transfer.wait()

    @torch.no_grad()
    def refresh_masters(self) -> None:
        """Take the masters from the parameters, whose values were changed from outside (a state_dict was loaded)."""
        for bucket in self.buckets:
            for master, piece in zip(bucket.masters, bucket.pieces, strict=True):
                master.copy_(piece)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients; stage 2 gives their memory back."""
        for bucket in self.buckets:
            bucket.zero_grad()

    def full_state_by_name(self) -> dict[str, Any]:
        """The optimizer's state of whole parameters, as `train.optimizer_state.optimizer_state_by_name` has it.

        Called by all ranks; on each of them. Collected by pickling: for single files of small models.
        """
        return full_state_by_name(self.owned, self.optimizer, self.comm)

    def load_full_state_by_name(self, saved: dict[str, Any]) -> None:
        """Take this rank's part of what `full_state_by_name` gave on any number of ranks, or in one process."""
        load_full_state_by_name(self.owned, self.optimizer, saved)


def checked_groups(groups: Iterable[dict[str, Any]] | None, names: dict[nn.Parameter, str]) -> list[dict[str, Any]]:
    """Groups of tensors without names; all trained parameters of the module, each once.

    Raises:
        ConfigError: naming a parameter that is missing, or saying that there is a foreign one.
    """
    if groups is None:
        return [{"params": list(names)}]
    plain = []
    for group in groups:
        parameters = [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]
        plain.append({**group, "params": parameters})
    given = [parameter for group in plain for parameter in group["params"]]
    if missing := [name for parameter, name in names.items() if parameter not in set(given)]:
        raise ConfigError(f"trained parameters in no group: {missing[:5]}; freeze them or give them a group")
    if len(given) != len(names):
        raise ConfigError(f"the groups have {len(given)} parameters, the module trains {len(names)}, each once")
    return plain
