"""Training with the rounding in it: weights are rounded in the forward pass, and learn as if they were not.

Rounding is flat almost everywhere, so its gradient is zero and nothing could be learned through it. The
straight-through estimator puts the gradient of the identity in its place. Around every linear layer stands a
`FakeQuantLinear`, which keeps the weights in full precision and hands rounded ones to the product; `convert` stores
what was rounded in few bits.

Dimensions: O rows of a weight matrix, I columns, n groups in a row.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm import surgery
from minillm.compress.grid import Grid, QuantSpec, check_weights, find_grid, groups_of, spread, stored, usable
from minillm.compress.packed_linear import PackedLinear
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in the forward pass; in the backward pass the gradient goes on to `values`, unchanged.

    Args:
        values: any size, finite.
        rounded: of the same size; gets no gradient.

    Returns:
        exactly `rounded`, as numbers.

    Source:
        Bengio et al. 2013, arXiv:1308.3432, section 4, who credit a lecture of Hinton's of 2012.

    Example:
        >>> values = torch.tensor([0.2, 1.7], requires_grad=True)
        >>> out = straight_through(values, values.round())
        >>> out.tolist(), torch.autograd.grad(out, values, torch.tensor([3.0, 5.0]))[0].tolist()
        ([0.0, 2.0], [3.0, 5.0])
    """
    return rounded.detach() + (values - values.detach())


def fake_quantize(values: Tensor, scale: Tensor, zero: Tensor, n_levels: int) -> Tensor:
    """Round to the grid scale (q - zero) of codes q = 0 .. n_levels - 1, and stay in float; halves go to the even step.

    The gradient by a value is 1 where its code is on the grid and 0 where it was cut off. By the scale it is
    round(v / scale) - v / scale on the grid, and q - zero at the end where v was cut off.

    Args:
        values: any size, float.
        scale: of a size that fits, not 0.
        zero: likewise, whole numbers: the code that means 0.
        n_levels: codes that there are.

    Returns:
        the size of the values.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 3; the gradient as in torch's `fake_quantize_per_tensor_affine`.

    Example:
        >>> values = torch.tensor([-3.0, 0.6, 1.7], requires_grad=True)
        >>> out = fake_quantize(values, torch.tensor(0.5), torch.tensor(1.0), 4)
        >>> out.tolist(), torch.autograd.grad(out.sum(), values)[0].tolist()
        ([-0.5, 0.5, 1.0], [0.0, 1.0, 0.0])
    """
    steps = values / scale
    codes = straight_through(steps, steps.round()) + zero
    return scale * (codes.clamp(0, n_levels - 1) - zero)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same number, with its gradient multiplied by a factor.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> scale_gradient(x, 0.25).item(), torch.autograd.grad(scale_gradient(x, 0.25), x)[0].item()
        (3.0, 0.25)
    """
    return x.detach() + factor * (x - x.detach())


def lsq_quantize(values: Tensor, step: Tensor, n_below: int, n_above: int, n_sharing: int) -> Tensor:
    """Round to whole multiples of a step that is learned: cut off v / step to -n_below .. n_above, round, times step.

    The gradient by a value is 1 inside the range and 0 outside. By the step it is round(v / step) - v / step inside,
    -n_below under and n_above over the range; and all of that times 1 / sqrt(n_sharing n_above), so that the step
    learns at the pace of the weights.

    Args:
        values: any size, float.
        step: of a size that fits, positive.
        n_below, n_above: multiples below and above zero: 2^(b-1) and 2^(b-1) - 1 for b bits.
        n_sharing: values that share one step.

    Returns:
        the size of the values.

    Source:
        Esser et al. 2019, arXiv:1902.08153, equations 1 to 3 and section 2.2.

    Example:
        >>> step = torch.tensor(0.5, requires_grad=True)
        >>> out = lsq_quantize(torch.tensor([-3.0, 0.3, 1.7]), step, 2, 1, n_sharing=3)
        >>> out.tolist(), round(torch.autograd.grad(out.sum(), step)[0].item(), 4)  # -2 + 0.4 + 1, over sqrt(3)
        ([-1.0, 0.5, 0.5], -0.3464)
    """
    step = scale_gradient(step, (n_sharing * n_above) ** -0.5)
    steps = (values / step).clamp(-n_below, n_above)
    return straight_through(steps, steps.round()) * step


def initial_step(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Where a learned step begins: 2 mean|w| / sqrt(2^(b-1) - 1) of every group.

    Args:
        weight: (O, I) float, finite.
        spec: bits and group size.

    Returns:
        (O, n) float, positive.

    Source:
        Esser et al. 2019, arXiv:1902.08153, section 2.1.

    Example:
        >>> initial_step(torch.tensor([[1.0, -3.0], [0.0, 0.0]]), QuantSpec(bits=2, symmetric=True)).tolist()
        [[4.0], [1.0]]
    """
    check_weights(weight)
    sums = groups_of(weight, spec).abs().sum(-1)                   # (n_rows, n)
    mean = sums / members(weight, spec)                            # (n_rows, n)
    return usable(2 * mean / (2 ** (spec.bits - 1) - 1) ** 0.5).expand(len(weight), -1).contiguous()


def members(weight: Tensor, spec: QuantSpec) -> Tensor:
    """How many weights each group really has, where the last of a row may be shorter: (1, n)."""
    return groups_of(torch.ones_like(weight[:1] if spec.group_size != -1 else weight), spec).sum(-1)


class Rounding(nn.Module):
    """A way to round a weight matrix while it is trained, and to store it afterwards."""

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) to (O, I), rounded; with a gradient by what is to be learned."""
        raise NotImplementedError

    def packed(self, layer: nn.Module) -> PackedLinear:
        """The layer with its matrix as `forward` rounds it, stored in few bits."""
        raise NotImplementedError


class RangeRounding(Rounding):
    """Rounding to a grid that `find_grid` finds anew from the weights at every call; nothing is learned of it.

    Scales are rounded to 16 bits, as they are stored, so that training sees what will be used.

    Args:
        spec: how to round.
    """

    def __init__(self, spec: QuantSpec):
        super().__init__()
        self.spec = spec

    def grid(self, weight: Tensor) -> Grid:
        """The grid of a matrix (O, I)."""
        return stored(find_grid(weight.detach(), self.spec))

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero = spread(self.grid(weight), weight.shape[1])   # (O, I), (O, I)
        return fake_quantize(weight.to(scale.dtype), scale, zero, self.spec.n_levels).to(weight.dtype)

    def packed(self, layer: nn.Module) -> PackedLinear:
        return QuantLinear(layer, self.grid(surgery.matrix_of(layer)))

    def extra_repr(self) -> str:
        return f"{self.spec}"


class LearnedStep(Rounding):
    """Rounding with learned steps (LSQ): whole multiples from -2^(b-1) to 2^(b-1) - 1 of a step for each group.

    Args:
        weight: (O, I), for the first steps; not kept.
        spec: bits and group size of a symmetric grid.

    Attributes:
        step: (O, n), learned. Its absolute value is used, rounded to 16 bits as it is stored.

    Raises:
        ConfigError: if the grid is not symmetric, or the whole matrix would share a step, which is stored by rows.

    Source:
        Esser et al. 2019, arXiv:1902.08153.
    """

    def __init__(self, weight: Tensor, spec: QuantSpec):
        super().__init__()
        if not spec.symmetric or spec.group_size < 0:
            raise ConfigError(f"{spec}: a learned step is that of a symmetric grid by rows or groups of them; give "
                              "symmetric=True and group_size >= 0")  # fmt: skip
        self.spec = spec
        self.step = nn.Parameter(initial_step(weight.detach(), spec))

    def grid(self) -> Grid:
        """The grid that the steps make now."""
        zero = torch.full_like(self.step.detach(), 2 ** (self.spec.bits - 1))  # (O, n)
        return stored(Grid(self.step.detach().abs(), zero, self.spec))

    def forward(self, weight: Tensor) -> Tensor:
        n_above = 2 ** (self.spec.bits - 1) - 1
        grid = self.grid()
        step = straight_through(self.step.abs(), grid.scale)       # (O, n)
        step, _ = spread(dataclasses.replace(grid, scale=step), weight.shape[1])  # (O, I), (O, I)
        width = self.spec.width(weight.shape[1])
        return lsq_quantize(weight.to(step.dtype), step, n_above + 1, n_above, width).to(weight.dtype)

    def packed(self, layer: nn.Module) -> PackedLinear:
        return QuantLinear(layer, self.grid())

    def extra_repr(self) -> str:
        return f"{self.spec}"


class FakeQuantLinear(nn.Module):
    """A linear layer that multiplies by a rounded matrix, while the full one underneath is trained.

    Args:
        base: a linear layer; its own weight gets the gradients.
        rounding: how its weight is rounded.

    Raises:
        ConfigError: if the layer is none, or is packed.

    Example:
        >>> layer = FakeQuantLinear(nn.Linear(8, 3), RangeRounding(QuantSpec(bits=2)))
        >>> layer(torch.ones(5, 8)).shape, layer.weight[0].unique().numel() <= 4
        (torch.Size([5, 3]), True)
    """

    def __init__(self, base: nn.Module, rounding: Rounding):
        super().__init__()
        surgery.matrix_of(base)
        if surgery.is_packed(base):
            raise ConfigError(f"the layer is packed already ({base.extra_repr()}), no weight of it can be trained")
        self.base, self.rounding = base, rounding

    @property
    def weight(self) -> Tensor:
        """The rounded matrix (O, I), with its gradients."""
        return self.rounding(surgery.matrix_of(self.base))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        out = F.linear(x, self.weight, self.base.bias)             # (..., O)
        stretch = getattr(self.base, "stretch", 1.0)
        return out if stretch == 1.0 else out * stretch

    def packed(self) -> PackedLinear:
        """The layer with the rounded matrix in few bits."""
        return self.rounding.packed(self.base)


def prepare_qat(
    model: nn.Module,
    how: QuantSpec | Callable[[Tensor], Rounding],
    targets: str | Iterable[str] = (),
    exclude: str | Iterable[str] = ("head",),
) -> surgery.Operation:
    """Let the linear layers of a model round their weights from now on; train it then as before.

    Embeddings, norms and biases stay as they are. Make the optimizer afterwards: learned steps are new parameters.

    Args:
        model: is changed.
        how: a spec, for grids found anew at every step; or what makes the rounding of a weight (O, I), for example
            `lambda weight: LearnedStep(weight, spec)`.
        targets: which linear layers, as in `surgery.find`; none means all.
        exclude: layers to leave alone.

    Returns:
        the operation; its `restore` gives the model its layers back, with what their weights have learned.

    Raises:
        ConfigError: if no layer is meant, one rounds already, is packed, or shares its matrix with another module,
            which would not be rounded. The model is as it was then.
    """
    if any(isinstance(module, FakeQuantLinear) for module in model.modules()):
        raise ConfigError("the model rounds its weights already; restore or convert it before it is prepared again")
    found = surgery.find(model, targets, surgery.is_linear, exclude)
    shared = {name for group in surgery.tied(model) for name in group}
    for name in found:
        if f"{name}.weight" in shared:
            raise ConfigError(f"{name} shares its matrix with another module, which would not be rounded; exclude it")
    make = (lambda _: RangeRounding(how)) if isinstance(how, QuantSpec) else how
    return surgery.wrap(model, found, lambda _, layer: FakeQuantLinear(layer, make(surgery.matrix_of(layer))))


def convert(model: nn.Module) -> surgery.Operation:
    """Store the rounded matrices in few bits; the full ones are no part of the model any more.

    Args:
        model: one that `prepare_qat` has changed; is changed.

    Returns:
        the operation; forget it to give the memory of the full matrices back.

    Raises:
        ConfigError: if no layer rounds its weights. The model is as it was then.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)]
    if not names:
        raise ConfigError("no layer of the model rounds its weights: call prepare_qat before training, convert after")
    return surgery.wrap(model, names, lambda _, layer: layer.packed())
