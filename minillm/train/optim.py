"""SGD, AdamW and Muon, by hand: the update of one tensor as a pure function, and optimizers that do it fast for many.

The optimizers are real `torch.optim.Optimizer`s with torch's argument names and state format.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from minillm.errors import CheckpointError, ConfigError, ShapeError
from minillm.train.muon import check_muon_group, muon_group_step

SLICE_SIZE = 1 << 18  # elements updated at a time: gradient, both moments and scratch (4 MiB in fp32) stay in the cache


def sgd_step(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """One step of gradient descent with momentum for one tensor.

    g = gradient + weight_decay * parameter;  b = momentum * b + (1 - dampening) * g, and b = g in the first step;
    parameter - lr * (g + momentum * b with nesterov, b without, g when momentum is 0).

    Args:
        parameter: any shape.
        gradient: same shape.
        momentum_buffer: same shape, None before the first step.
        lr: learning rate.
        momentum: 0 <= momentum < 1; 0 keeps no buffer.
        weight_decay: factor of the L2 penalty's gradient.
        nesterov: look one momentum step ahead.
        dampening: share of the gradient that does not enter the buffer.

    Returns:
        the new parameter and the new buffer (None when momentum is 0); the arguments are not changed.

    Source:
        Sutskever et al. 2013, ICML, eqs. (1) to (4); the learning rate outside of the buffer as in torch.

    Example:
        >>> sgd_step(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0), lr=0.5, momentum=0.5)
        (tensor(-1.), tensor(4.))
    """
    gradient = gradient + weight_decay * parameter
    if momentum == 0:
        return parameter - lr * gradient, None
    if momentum_buffer is None:
        momentum_buffer = gradient
    else:
        momentum_buffer = momentum * momentum_buffer + (1 - dampening) * gradient
    direction = gradient + momentum * momentum_buffer if nesterov else momentum_buffer
    return parameter - lr * direction, momentum_buffer


def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW for one tensor: a running mean of the gradient over the root of a running mean of its square.

    m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g^2; both start at 0 and are too small by
    1 - beta^step, which is divided out:  parameter * (1 - lr * weight_decay) - lr * m_hat / (sqrt(v_hat) + eps).

    Args:
        parameter: any shape.
        gradient: same shape.
        exp_avg: the mean of the gradient m, same shape, 0 before the first step.
        exp_avg_sq: the mean of the squared gradient v, same shape, 0 before the first step.
        step: the number of this step, 1 for the first.
        lr: learning rate.
        betas: how much of the old means is kept, each in [0, 1).
        eps: added to the root, after the division by 1 - beta2^step.
        weight_decay: share of the parameter, times lr, that is taken away beside the gradient step.

    Returns:
        the new parameter, m and v; the arguments are not changed.

    Source:
        Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.

    Example:
        >>> new, _, _ = adamw_step(torch.tensor(1.0), torch.tensor(0.2), torch.tensor(0.0), torch.tensor(0.0), 1,
        ...                        lr=0.1, weight_decay=0.0)
        >>> new  # the first step has length lr, whatever the gradient
        tensor(0.9000)
    """
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    corrected_mean = exp_avg / (1 - beta1**step)
    corrected_square = exp_avg_sq / (1 - beta2**step)
    update = corrected_mean / (corrected_square.sqrt() + eps)
    return parameter * (1 - lr * weight_decay) - lr * update, exp_avg, exp_avg_sq


class SGD(Optimizer):
    """Gradient descent with momentum; each step is `sgd_step` for each parameter.

    Args:
        params: parameters, named parameters, or groups with their own settings, as torch takes them.
        lr: learning rate, 0 or more.
        momentum: 0 <= momentum < 1.
        weight_decay: 0 or more.
        nesterov: look one momentum step ahead; needs momentum and no dampening.
        dampening: share of the gradient that does not enter the buffer, in [0, 1).

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            check_at_least_zero(group, ("lr", "weight_decay"))
            check_fraction("momentum", group["momentum"])
            check_fraction("dampening", group["dampening"])
            if group["nesterov"] and (group["momentum"] == 0 or group["dampening"]):
                raise ConfigError("nesterov=True needs momentum above 0 and no dampening")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update each parameter that has a gradient; return the closure's loss, if there is a closure."""
        loss = loss_of(closure)
        for group in self.param_groups:
            sgd_group_step(group, self.state)
        return loss


class AdamW(Optimizer):
    """Adam with decoupled weight decay; each step is `adamw_step` for each parameter.

    Args:
        params: parameters, named parameters, or groups with their own settings, as torch takes them.
        lr: learning rate, 0 or more.
        betas: how much of the old means is kept, each in [0, 1).
        eps: above or equal 0.
        weight_decay: 0 or more.
        fused: let torch's fused kernel do the same arithmetic in one pass over memory (CPU and CUDA).

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        fused: bool = False,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": fused})
        for group in self.param_groups:
            check_adamw_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update each parameter that has a gradient; return the closure's loss, if there is a closure."""
        loss = loss_of(closure)
        for group in self.param_groups:
            adamw_group_step(group, self.state)
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Load own state or that of `torch.optim.AdamW` (without amsgrad and maximize, which are not built here)."""
        load_adamw_state(self, super().load_state_dict, state_dict)


class Muon(Optimizer):
    """Momentum whose update is made orthogonal; for weight matrices only (see `minillm.train.muon`).

    Args:
        params: matrices (parameters of two dimensions), or groups of them with their own settings.
        lr: learning rate, 0 or more; about 0.02 with `adjust_lr_fn="original"`.
        momentum: 0 <= momentum < 1.
        weight_decay: decoupled, 0 or more.
        nesterov: look one momentum step ahead.
        ns_steps: number of Newton-Schulz steps, 1 or more.
        adjust_lr_fn: "original" or "match_rms_adamw", see `muon_scale`.
        split: 1, or the number of equal parts of rows that are made orthogonal apart (3 for a fused query/key/value
            weight), or a tuple of the parts' row counts (unequal parts: grouped heads).
        ns_dtype: "fp32" or "bf16": number format of the Newton-Schulz products.
        neuron_beta: 0, or how much of the running mean is kept that gives every neuron's update the same length (see
            `minillm.train.muon.equalize_neurons`); 0.95 in the paper.

    Raises:
        ConfigError: if a setting is out of range or a parameter is not a matrix.
    """

    def __init__(
        self,
        params,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "original",
        split: int | tuple[int, ...] = 1,
        ns_dtype: str = "fp32",
        neuron_beta: float = 0.0,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "split": split,
            "ns_dtype": ns_dtype,
            "neuron_beta": neuron_beta,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            check_at_least_zero(group, ("lr", "weight_decay"))
            check_fraction("momentum", group["momentum"])
            check_muon_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update each matrix that has a gradient; return the closure's loss, if there is a closure."""
        loss = loss_of(closure)
        muon_group_step(self.param_groups, self.state)
        return loss


class MuonAndAdamW(Optimizer):
    """One optimizer, two rules: groups with `use_muon=True` get Muon's update, all others AdamW's.

    One object, so that schedule, checkpoint and loop need not know. `muon_and_adamw(model, ...)` makes the groups.

    Args:
        groups: dictionaries as torch takes them, each with "params", "use_muon" and all settings of its rule.

    Raises:
        ConfigError: if a setting is out of range or a parameter of a Muon group is not a matrix.
    """

    def __init__(self, groups: list[dict]):
        super().__init__(groups, {})
        for group in self.param_groups:
            check_at_least_zero(group, ("lr", "weight_decay"))
            check_muon_group(group) if group["use_muon"] else check_adamw_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update each parameter that has a gradient; return the closure's loss, if there is a closure."""
        loss = loss_of(closure)
        muon_group_step([group for group in self.param_groups if group["use_muon"]], self.state)
        for group in self.param_groups:
            if not group["use_muon"]:
                adamw_group_step(group, self.state)
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Load state that an optimizer with the same groups gave."""
        load_adamw_state(self, super().load_state_dict, state_dict)


def sgd_group_step(group: dict, state: dict) -> None:
    """`sgd_step` in place for each parameter of a group."""
    momentum, weight_decay = group["momentum"], group["weight_decay"]
    for parameter in with_gradient(group):
        gradient = parameter.grad
        if weight_decay:
            gradient = gradient.add(parameter, alpha=weight_decay)
        if momentum:
            buffer = state[parameter].get("momentum_buffer")
            if buffer is None:
                buffer = state[parameter]["momentum_buffer"] = gradient.clone()
            else:
                buffer.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
            gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        parameter.add_(gradient, alpha=-group["lr"])


def adamw_group_step(group: dict, state: dict) -> None:
    """`adamw_step` in place for each parameter of a group; parameters of the same age go together."""
    same_age: dict[int, list[Tensor]] = {}
    for parameter in with_gradient(group):
        moments = state[parameter]
        if not moments:
            moments["step"] = 0
            moments["exp_avg"] = torch.zeros_like(parameter)
            moments["exp_avg_sq"] = torch.zeros_like(parameter)
        moments["step"] += 1
        same_age.setdefault(moments["step"], []).append(parameter)
    update = adamw_fused if group.get("fused") else adamw_in_slices
    for step, parameters in same_age.items():
        tensors = [[p, p.grad, state[p]["exp_avg"], state[p]["exp_avg_sq"]] for p in parameters]
        update(tensors, step, group)


def adamw_in_slices(tensors: list[list[Tensor]], step: int, group: dict) -> None:
    """Several passes over a slice that stays in the cache are cheaper than several passes over all of the memory."""
    for parameter, *others in tensors:
        if not all(tensor.is_contiguous() for tensor in (parameter, *others)):
            adamw_slice(parameter, *others, torch.empty_like(parameter), step, group)
            continue
        flat = [tensor.view(-1) for tensor in (parameter, *others)]
        n_elements = parameter.numel()
        scratch = torch.empty(min(n_elements, SLICE_SIZE), dtype=parameter.dtype, device=parameter.device)
        for start in range(0, n_elements, SLICE_SIZE):
            slices = [tensor[start : start + SLICE_SIZE] for tensor in flat]
            adamw_slice(*slices, scratch[: n_elements - start], step, group)


def adamw_slice(
    parameter: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scratch: Tensor, step: int, group: dict
) -> None:
    """`adamw_step` in place, in seven passes: the corrections of both means are one factor and a larger eps."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    root_correction = (1 - beta2**step) ** 0.5
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    torch.sqrt(exp_avg_sq, out=scratch).add_(group["eps"] * root_correction)
    if group["weight_decay"]:
        parameter.mul_(1 - lr * group["weight_decay"])
    parameter.addcdiv_(exp_avg, scratch, value=-lr * root_correction / (1 - beta1**step))


def adamw_fused(tensors: list[list[Tensor]], step: int, group: dict) -> None:
    """The same through torch's kernel, which reads and writes each number once."""
    by_home: dict[tuple, list[list[Tensor]]] = {}
    for row in tensors:
        by_home.setdefault((row[0].device, row[0].dtype), []).append(row)
    for (device, _), rows in by_home.items():
        parameters, gradients, exp_avgs, exp_avg_sqs = (list(column) for column in zip(*rows, strict=True))
        steps = [torch.tensor(float(step), device=device)] * len(rows)
        torch._fused_adamw_(
            parameters, gradients, exp_avgs, exp_avg_sqs, [], steps, amsgrad=False, maximize=False, lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip


def with_gradient(group: dict) -> list[Tensor]:
    """The parameters of a group that have a gradient; sparse gradients are refused."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    for parameter in parameters:
        if parameter.grad.is_sparse:
            raise ShapeError("a gradient is sparse; these optimizers take dense ones: use nn.Embedding(sparse=False)")
    return parameters


def loss_of(closure: Callable[[], Tensor] | None) -> Tensor | None:
    """Call the closure with gradients on, as torch's optimizers do."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def load_adamw_state(optimizer: Optimizer, load: Callable[[dict], None], state_dict: dict) -> None:
    """Load through torch's own checks; refuse what is not built here; make torch's step tensors plain numbers."""
    for group in state_dict["param_groups"]:
        if group.get("amsgrad") or group.get("maximize"):
            raise CheckpointError("the saved optimizer used amsgrad or maximize, which this AdamW does not have")
    load(state_dict)
    for moments in optimizer.state.values():
        if "step" in moments:
            moments["step"] = int(moments["step"])


def check_adamw_group(group: dict) -> None:
    """Refuse AdamW settings out of range."""
    check_at_least_zero(group, ("lr", "eps", "weight_decay"))
    for name, beta in zip(("betas[0]", "betas[1]"), group["betas"], strict=True):
        check_fraction(name, beta)


def check_at_least_zero(group: dict, names: Iterable[str]) -> None:
    """Refuse negative or NaN settings."""
    for name in names:
        if not group[name] >= 0:
            raise ConfigError(f"{name} is {group[name]}, expected a number of 0 or more")


def check_fraction(name: str, value: float) -> None:
    """Refuse what is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}, expected 0 <= {name} < 1")
