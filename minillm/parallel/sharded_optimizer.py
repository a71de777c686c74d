"""The sharded optimizer: every rank keeps the optimizer's state for some of the parameters, and steps those only.

Whole parameters go to ranks, so any optimizer works, also one that needs whole matrices (Muon). `minillm.parallel.zero`
cuts evenly instead.

Dimensions: P ranks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from minillm.errors import CheckpointError, ConfigError
from minillm.parallel.comm import Comm
from minillm.parallel.owned import to_cpu


def assign_owners(sizes: Sequence[int], n_ranks: int) -> list[int]:
    """Give each parameter to a rank: the largest first, each to the rank that has least so far.

    Args:
        sizes: numbers in each parameter.
        n_ranks: P.

    Returns:
        the owner of each parameter.

    Raises:
        ConfigError: if there are no ranks.

    Source:
        Graham 1969, "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17 (longest first: the
        fullest rank has at most 4/3 - 1/(3P) times the least possible).

    Example:
        >>> assign_owners([3, 9, 4, 4, 1], n_ranks=2)
        [1, 0, 1, 1, 0]
    """
    if n_ranks < 1:
        raise ConfigError(f"n_ranks is {n_ranks}, expected 1 or more")
    owners, loads = [0] * len(sizes), [0] * n_ranks
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = min(range(n_ranks), key=loads.__getitem__)
        loads[owners[index]] += sizes[index]
    return owners


class ShardedOptimizer(Optimizer):
    """Wraps any torch optimizer class; each rank has state for its share of the parameters.

    All ranks must come to `step` with the same gradients, for example from `DistributedDataParallel`; each updates what
    it owns and tells the others. The learning rates and other settings in `param_groups` may be changed between steps.

    Args:
        params: parameters, named parameters, or groups of them, as torch takes them; the same on all ranks.
        optimizer_class: for example `torch.optim.AdamW` or `minillm.train.optim.Muon`.
        comm: the ranks that have copies of the parameters.
        kwargs: settings of the optimizer.

    Attributes:
        owner: parameter -> rank of `comm`.
        local: the wrapped optimizer over what this rank owns.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> def train(comm):
        ...     weights = [torch.nn.Parameter(torch.ones(n)) for n in (3, 2)]
        ...     optimizer = ShardedOptimizer(weights, torch.optim.SGD, comm, lr=0.5)
        ...     for weight in weights:
        ...         weight.grad = torch.ones_like(weight)
        ...     optimizer.step()
        ...     return [weight[0].item() for weight in weights], len(optimizer.local.param_groups[0]["params"])
        >>> launch_threads(train, 2)
        [([0.5, 0.5], 1), ([0.5, 0.5], 1)]
    """

    def __init__(self, params: Iterable, optimizer_class: Callable[..., Optimizer], comm: Comm, **kwargs: Any):
        self.comm, self.optimizer_class, self.settings = comm, optimizer_class, kwargs
        self.owner: dict[Tensor, int] = {}
        self.local: Optimizer | None = None
        self.is_built = False
        super().__init__(params, kwargs)
        self.is_built = True
        self.assign()

    def assign(self) -> None:
        """Share the parameters out, and make the optimizer of this rank's."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        owners = assign_owners([parameter.numel() for parameter in parameters], self.comm.size)
        self.owner = dict(zip(parameters, owners, strict=True))
        self.local = self.optimizer_class([self.local_group(group) for group in self.param_groups], **self.settings)
        for group, local_group in zip(self.param_groups, self.local.param_groups, strict=True):
            for name, value in local_group.items():
                group.setdefault(name, value)  # the wrapped optimizer's defaults

    def local_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group without the parameters of other ranks."""
        settings = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        return {**settings, "params": [p for p in group["params"] if self.owner[p] == self.comm.rank]}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, all of which the rank with least owns from now on; called by all ranks."""
        super().add_param_group(param_group)
        if not self.is_built:
            return
        group = self.param_groups[-1]
        loads = [sum(p.numel() for p, owner in self.owner.items() if owner == r) for r in range(self.comm.size)]
        for parameter in group["params"]:
            self.owner[parameter] = min(range(self.comm.size), key=loads.__getitem__)
            loads[self.owner[parameter]] += parameter.numel()
        self.local.add_param_group(self.local_group(group))
        for name, value in self.local.param_groups[-1].items():
            group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step what this rank owns, then give it to the others; returns the closure's loss."""
        for group, local_group in zip(self.param_groups, self.local.param_groups, strict=True):
            local_group.update({name: group[name] for name in local_group if name not in ("params", "param_names")})
        loss = self.local.step() if closure is None else self.local.step(closure)
        self.broadcast_parameters()
        return loss

    @torch.no_grad()
    def broadcast_parameters(self) -> None:
        """One message of each owner (and dtype), all of them under way at once."""
        parts: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        for parameter, owner in self.owner.items():
            parts.setdefault((owner, parameter.dtype), []).append(parameter)
        sent = []
        for (owner, _), parameters in sorted(parts.items(), key=lambda part: (part[0][0], str(part[0][1]))):
            flat = torch.cat([parameter.flatten() for parameter in parameters])
            sent.append((owner, parameters, flat, self.comm.broadcast(flat, owner, async_op=True)))
        for owner, parameters, flat, pending in sent:
            pending.wait()
            if owner == self.comm.rank:
                continue
            for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.copy_(part.view_as(parameter))

    def full_state_dict(self) -> dict[str, Any]:
        """The state of all ranks as the wrapped class itself would have it on one; on every rank. Called by all.

        It is collected by pickling: a few times slower than tensors, for small models and single files.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        index = {parameter: number for number, parameter in enumerate(parameters)}
        mine = {index[p]: {k: to_cpu(v) for k, v in state.items()} for p, state in self.local.state.items()}
        state = {number: entry for part in self.comm.all_objects(mine) for number, entry in part.items()}
        groups = [{**group, "params": [index[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_full_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what this rank owns from a state that one process, or any number of ranks, has written.

        Raises:
            CheckpointError: if the groups have other numbers of parameters.
        """
        given = [len(group["params"]) for group in state_dict["param_groups"]]
        mine = [len(group["params"]) for group in self.param_groups]
        if given != mine:
            raise CheckpointError(f"optimizer state for groups of {given} parameters, these groups have {mine}")
        chosen: dict[int, Any] = {}
        groups, number = [], 0
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            local_numbers = []
            for parameter, saved_number in zip(group["params"], saved["params"], strict=True):
                if self.owner[parameter] == self.comm.rank:
                    local_numbers.append(number)
                    if saved_number in state_dict["state"]:
                        chosen[number] = state_dict["state"][saved_number]
                    number += 1
            settings = {name: value for name, value in saved.items() if name not in ("params", "param_names")}
            group.update(settings)
            groups.append({**settings, "params": local_numbers})
        self.local.load_state_dict({"state": chosen, "param_groups": groups})
