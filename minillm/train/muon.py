"""Muon: momentum for a weight matrix, with the update replaced by the nearest orthogonal matrix.

A gradient's singular values differ by orders of magnitude; a few directions take all of the step. Setting all of
them to (about) 1 lets every direction learn. Newton-Schulz steps do it with matrix products alone, without an SVD.

Dimensions: N matrices of one shape, R rows, C columns.
"""

import math

import torch
from torch import Tensor

from minillm.errors import ConfigError

# p(s) = a s + b s^3 + c s^5 sends every s in (0, 1] towards 1 quickly (slope a at 0) at the price of stopping near 1,
# not at 1: five times over, singular values of 0.003 and more end within about 0.68 .. 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
NS_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KIND_OPTIONS = ("ns_steps", "ns_dtype", "neuron_beta")
SCALES = ("original", "match_rms_adamw")


def orthogonalize(matrices: Tensor, n_steps: int = 5, dtype: torch.dtype | None = None, eps: float = 1e-7) -> Tensor:
    """Set the singular values of each matrix to about 1 and keep its singular vectors: U S V^T becomes nearly U V^T.

    X = M / |M|, then n_steps times  A = X X^T;  X = a X + (b A + c A A) X.
    The polynomial acts on the singular values alone.

    Args:
        matrices: (..., R, C), any number of matrices of one shape.
        n_steps: number of Newton-Schulz steps.
        dtype: number format of the products; None keeps that of `matrices`. bf16 is exact enough.
        eps: smallest Frobenius norm to divide by, so that a matrix of zeros stays one.

    Returns:
        (..., R, C) in the dtype of `matrices`; singular values within about 0.68 .. 1.2 where they were at least
        0.003 of the Frobenius norm.

    Source:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
        kellerjordan.github.io/posts/muon; the iteration: Bernstein and Newhouse 2024, arXiv:2409.20325, appendix.

    Example:
        >>> orthogonalize(torch.tensor([[3.0, 0.0], [0.0, 0.1]]))
        tensor([[0.6970, 0.0000],
                [0.0000, 1.1288]])
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    update = (matrices.mT if tall else matrices).to(dtype or matrices.dtype)
    shape = update.shape
    update = update.reshape(-1, *shape[-2:])
    norms = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)
    update = update / norms.clamp(min=eps)
    for _ in range(n_steps):
        gram = torch.bmm(update, update.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        update = torch.baddbmm(update, polynomial, update, beta=a)
    update = update.view(shape).to(matrices.dtype)
    return update.mT if tall else update


def muon_scale(n_rows: int, n_columns: int, adjust_lr_fn: str = "original") -> float:
    """The factor on the learning rate that makes one rate fit matrices of different shapes.

    "original" is sqrt(max(1, R / C)): the output of a layer changes by the same size whatever its shape;
    "match_rms_adamw" is 0.2 * sqrt(max(R, C)): each weight changes as much as with AdamW, whose rates can be kept.

    Args:
        n_rows: R, the output width of the (out, in) weight.
        n_columns: C, its input width.
        adjust_lr_fn: "original" or "match_rms_adamw".

    Returns:
        the factor.

    Raises:
        ConfigError: if the rule is unknown.

    Source:
        Jordan et al. 2024 (as above); Liu et al. 2025, arXiv:2502.16982, section 2.2.

    Example:
        >>> muon_scale(512, 128), muon_scale(128, 512)
        (2.0, 1.0)
    """
    if adjust_lr_fn == "original":
        return math.sqrt(max(1.0, n_rows / n_columns))
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(n_rows, n_columns))
    raise ConfigError(f"adjust_lr_fn {adjust_lr_fn!r} is unknown; known are {', '.join(SCALES)}")


def equalize_neurons(update: Tensor, mean_square: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Give every neuron (row) of an orthogonalized update about the same length, judged over the last steps.

    The rows of U V^T differ in length when a matrix is taller than wide, and Newton-Schulz steps add differences of
    their own: some neurons learn faster than others for no reason.
    s = beta * s + (1 - beta) * mean of update^2 over the columns;  update / sqrt(s), scaled back to the norm it had.

    Args:
        update: (..., R, C), orthogonalized.
        mean_square: (..., R, 1), the running mean s; 0 before the first step.
        beta: how much of the running mean is kept, in [0, 1).

    Returns:
        the new update, whose Frobenius norm is that of the old one, and the new running mean; the arguments are not
        changed. A row of zeros stays one.

    Source:
        Li et al. 2025, "NorMuon", arXiv:2510.05491, algorithm 1; scaled back to the update's own norm, not a fixed one.

    Example:
        >>> new, _ = equalize_neurons(torch.tensor([[4.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1), 0.95)
        >>> [[round(value, 4) for value in row] for row in new.tolist()]  # both rows 5 / sqrt(2) long
        [[3.5355, 0.0], [0.0, 3.5355]]
    """
    mean_square = beta * mean_square + (1 - beta) * update.square().mean(dim=-1, keepdim=True)  # (..., R, 1)
    equal = update * mean_square.clamp(min=1e-20).rsqrt()          # (..., R, C)
    norm = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)  # (..., 1, 1)
    equal_norm = torch.linalg.vector_norm(equal, dim=(-2, -1), keepdim=True)  # (..., 1, 1)
    return equal * (norm / equal_norm.clamp(min=1e-20)), mean_square


def muon_step(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr_fn: str = "original",
) -> tuple[Tensor, Tensor]:
    """One step of Muon for one matrix.

    b = momentum * b + (1 - momentum) * g;  u = (1 - momentum) * g + momentum * b with nesterov, b without;
    parameter * (1 - lr * weight_decay) - lr * muon_scale(R, C) * orthogonalize(u).

    Args:
        parameter: (R, C).
        gradient: (R, C).
        momentum_buffer: (R, C), 0 before the first step.
        lr: learning rate.
        momentum: how much of the buffer is kept, in [0, 1).
        weight_decay: share of the parameter, times lr, that is taken away.
        nesterov: look one momentum step ahead.
        ns_steps: number of Newton-Schulz steps.
        adjust_lr_fn: rule of `muon_scale`.

    Returns:
        the new parameter and the new buffer; the arguments are not changed.

    Source:
        Jordan et al. 2024 (as `orthogonalize`).
    """
    momentum_buffer = momentum * momentum_buffer + (1 - momentum) * gradient
    update = (1 - momentum) * gradient + momentum * momentum_buffer if nesterov else momentum_buffer
    scale = muon_scale(*parameter.shape, adjust_lr_fn)
    new_parameter = parameter * (1 - lr * weight_decay) - lr * scale * orthogonalize(update, ns_steps)
    return new_parameter, momentum_buffer


def muon_group_step(groups: list[dict], state: dict) -> None:
    """`muon_step` in place for the matrices of all groups: parts of one shape are made orthogonal in one batch."""
    same_kind: dict[tuple, list[tuple[Tensor, Tensor, Tensor | None, float]]] = {}
    for group in groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            row_counts = part_sizes(parameter.shape[0], group["split"])
            update = momentum_update(parameter, group, state).split(row_counts)
            mean_square = neuron_mean_square(parameter, group, state, row_counts)
            for target, part, square in zip(parameter.split(row_counts), update, mean_square, strict=True):
                length = group["lr"] * muon_scale(*part.shape, group["adjust_lr_fn"])
                kind = (part.shape, part.dtype, part.device, *(group[key] for key in KIND_OPTIONS))
                same_kind.setdefault(kind, []).append((target, part, square, length))
    orthogonal_updates(same_kind)


def orthogonal_updates(same_kind: dict[tuple, list[tuple[Tensor, Tensor, Tensor | None, float]]]) -> None:
    """Take from each target its direction, made orthogonal and `length` long, with those of one kind in one batch.

    Args:
        same_kind: (anything ..., ns_steps, ns_dtype, neuron_beta) -> (target, direction, running mean square of its
            rows or None, length) of matrices of one shape; targets and mean squares are changed in place.
    """
    for (*_, ns_steps, ns_dtype, neuron_beta), members in same_kind.items():
        updates = torch.stack([part for _, part, _, _ in members])  # (N, R, C)
        updates = orthogonalize(updates, ns_steps, None if ns_dtype == "fp32" else NS_DTYPES[ns_dtype])  # (N, R, C)
        if neuron_beta:
            before = torch.stack([square for _, _, square, _ in members])  # (N, R, 1)
            updates, after = equalize_neurons(updates, before, neuron_beta)
            for (_, _, square, _), new in zip(members, after.unbind(), strict=True):
                square.copy_(new)
        for (target, _, _, length), update in zip(members, updates.unbind(), strict=True):
            target.add_(update, alpha=-length)


def momentum_update(parameter: Tensor, group: dict, state: dict) -> Tensor:
    """Move the buffer towards the gradient and return the direction to be made orthogonal."""
    buffer = state[parameter].get("momentum_buffer")
    if buffer is None:
        buffer = state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    buffer.lerp_(parameter.grad, 1 - group["momentum"])
    return parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def neuron_mean_square(parameter: Tensor, group: dict, state: dict, row_counts: list[int]) -> tuple[Tensor | None, ...]:
    """The running means of `equalize_neurons` for a matrix's parts, as views of one (R, 1) tensor; None without."""
    if not group["neuron_beta"]:
        return (None,) * len(row_counts)
    if "neuron_mean_square" not in state[parameter]:
        state[parameter]["neuron_mean_square"] = torch.zeros_like(parameter[:, :1])
    return state[parameter]["neuron_mean_square"].split(row_counts)


def part_sizes(n_rows: int, split: int | tuple[int, ...]) -> list[int]:
    """Row counts of the parts of a matrix that are made orthogonal apart.

    Args:
        n_rows: rows of the matrix.
        split: a number of equal parts, or the row counts themselves.

    Returns:
        row counts that add up to `n_rows`.

    Raises:
        ConfigError: if they do not.

    Example:
        >>> part_sizes(6, 3), part_sizes(6, (4, 1, 1))
        ([2, 2, 2], [4, 1, 1])
    """
    sizes = [n_rows // split] * split if isinstance(split, int) and split > 0 else split
    if isinstance(sizes, int) or sum(sizes) != n_rows or min(sizes) < 1:
        raise ConfigError(f"{n_rows} rows cannot be split by {split}; give a divisor or row counts that add up")
    return list(sizes)


def check_muon_group(group: dict) -> None:
    """Refuse Muon settings out of range and parameters that are not matrices."""
    if group["ns_steps"] < 1:
        raise ConfigError(f"ns_steps is {group['ns_steps']}, expected 1 or more")
    if group["ns_dtype"] not in NS_DTYPES:
        raise ConfigError(f"ns_dtype {group['ns_dtype']!r} is unknown; known are {', '.join(NS_DTYPES)}")
    if not 0 <= group["momentum"] < 1:
        raise ConfigError(f"momentum is {group['momentum']}, expected 0 <= momentum < 1")
    if not 0 <= group["neuron_beta"] < 1:
        raise ConfigError(f"neuron_beta is {group['neuron_beta']}, expected 0 <= neuron_beta < 1 (0: plain Muon)")
    for parameter in group["params"]:
        if parameter.dim() != 2:
            raise ConfigError(f"Muon takes matrices only, got shape {tuple(parameter.shape)}; give it to AdamW")
        part_sizes(parameter.shape[0], group["split"])
        muon_scale(*parameter.shape, group["adjust_lr_fn"])
