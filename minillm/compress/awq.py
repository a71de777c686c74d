"""AWQ: inputs that are large matter more, so make their weights larger before rounding, and the inputs smaller.

If column j of a matrix is multiplied by s_j and input j divided by it, the layer computes the same; but the rounding
error of that column, which is about the same whatever its size, now counts for 1 / s_j of what it did. The division is
folded into what makes the input: a norm, the values of attention, the layer before. Nothing is left to do at run time.

Dimensions: O rows of a weight matrix, I columns, H query heads, G key/value heads, D head width.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress.calibration import LayerReport, Report, Rounding, Run, relative_error, round_model
from minillm.compress.grid import Grid, QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.hessian import products_of
from minillm.compress.obq import output_error
from minillm.surgery import InputStatistics

N_STEPS = 20  # of alpha from 0 to 1
SMALLEST = 1e-4  # scale of an input that is always 0
LINEAR_IN_UP = ("swiglu", "geglu", "relu")  # feed-forward layers whose hidden numbers follow `up` if it is stretched


def input_scales(size: Tensor, alpha: float) -> Tensor:
    """Scales that grow with the inputs: size^alpha, with largest times smallest equal to 1.

    Args:
        size: (I,), mean absolute value of each input.
        alpha: 0 scales nothing, 1 makes all inputs alike.

    Returns:
        (I,), positive.

    Source:
        Lin et al. 2023, arXiv:2306.00978, eq. (5); the normalisation is that of the authors' program.

    Example:
        >>> input_scales(torch.tensor([1.0, 4.0, 16.0]), 0.5).tolist()
        [0.5, 1.0, 2.0]
    """
    scales = size.pow(alpha).clamp(min=SMALLEST)                   # (I,)
    return scales / (scales.max() * scales.min()).sqrt()


def scaled_rounding(weight: Tensor, scales: Tensor, spec: QuantSpec) -> Tensor:
    """Weights that are multiplied by scales, rounded to nearest, and divided again.

    Args:
        weight: (O, I).
        scales: (I,).
        spec: the grid of the multiplied weights.

    Returns:
        (O, I).

    Example:
        >>> weight, spec = torch.tensor([[1.0, 0.375, -2.0]]), QuantSpec(2)
        >>> [scaled_rounding(weight, torch.tensor([1.0, s, 1.0]), spec).tolist() for s in (1.0, 2.0)]
        [[[1.0, 0.0, -2.0]], [[1.0, 0.5, -2.0]]]
    """
    stretched = weight * scales                                    # (O, I)
    return round_to_grid(stretched, stored(find_grid(stretched, spec))) / scales


def best_scales(
    weight: Tensor, size: Tensor, hessian: Tensor, spec: QuantSpec, n_steps: int = N_STEPS
) -> tuple[Tensor, float]:
    """The scales among those of alpha = 0, 1/n, ... 1 with which rounding changes the outputs least.

    Args:
        weight: (O, I); all matrices that read this input, one below the other.
        size: (I,), from which `input_scales` makes scales.
        hessian: (I, I), X^T X.
        spec: the grid.
        n_steps: n.

    Returns:
        the scales (I,), and alpha; 0 if no other is better.

    Source:
        Lin et al. 2023, arXiv:2306.00978, eq. (4) and (5). The authors' program compares outputs of the whole part of
        the block, for alpha below 1; here it is the outputs of the matrices themselves.
    """
    best = (math.inf, torch.ones_like(size), 0.0)
    for step in range(n_steps + 1):
        scales = input_scales(size, step / n_steps)                # (I,)
        error = output_error(scaled_rounding(weight, scales, spec) - weight, hessian).sum().item()
        if error < best[0]:
            best = (error, scales, step / n_steps)
    return best[1], best[2]


@dataclass(frozen=True)
class Fold:
    """Layers that read one input, and the parameters of what makes it, which can be divided instead of the input.

    Attributes:
        readers: names of the layers.
        makers: parameters whose first dimension is I, or I / repeats; divided by the scales to the power.
        repeats: H / G where query heads share values: so many inputs are made by each row, and share a scale.
        d_head: D there, else I.
        power: 1/2 where what is made is the square of what the parameters make.
    """

    readers: tuple[str, ...]
    makers: tuple[Tensor, ...]
    repeats: int = 1
    d_head: int = 1
    power: float = 1.0

    def shared(self, values: Tensor) -> Tensor:
        """The mean (I / repeats,) of values (I,) over inputs that share a scale."""
        return values.view(-1, self.repeats, self.d_head).mean(1).flatten()

    def spread(self, scales: Tensor) -> Tensor:
        """Scales (I / repeats,) for every input (I,)."""
        return scales.view(-1, 1, self.d_head).expand(-1, self.repeats, -1).flatten()


@torch.no_grad()
def fold(found: Fold, layers: dict[str, nn.Module], scales: Tensor) -> None:
    """Multiply the columns of the layers by scales, and divide what makes their input: the model computes the same.

    Args:
        found: layers and makers.
        layers: by name; their weights are changed.
        scales: (I / repeats,), positive.
    """
    for name in found.readers:
        surgery.matrix_of(layers[name]).mul_(found.spread(scales))
    for made in found.makers:
        made.div_(scales.pow(found.power).view(-1, *[1] * (made.dim() - 1)))


def folds_of(model: nn.Module) -> list[Fold]:
    """Where the blocks of this library's decoders can be folded.

    Norms with a weight into what reads them; values into the output of attention; `up` into `down` where stretching
    the one stretches the other. GELU does not pass a factor on, so that `down` behind it is left alone, and so are
    mixtures of experts, whose router reads the norm too.

    Args:
        model: a `GPT`, or anything with its blocks inside.

    Returns:
        in the model's order.
    """
    found = []
    for name, block in blocks_of(model).items():
        attention, forward = block.attention, block.feed_forward
        inner = [f"{name}.feed_forward.{part}" for part in ("gate", "up") if getattr(forward, part, None) is not None]
        if block.feed_forward_norm is None:
            found += norm_fold(block.attention_norm, [f"{name}.attention.qkv", *inner] if inner else [])
        else:
            found += norm_fold(block.attention_norm, [f"{name}.attention.qkv"])
            found += norm_fold(block.feed_forward_norm, inner)
        rows = slice(sum(attention.sections[:2]), None)
        sizes = (attention.n_heads // attention.n_kv_heads, attention.sections[2] // attention.n_kv_heads)
        found.append(Fold((f"{name}.attention.output",), rows_of(attention.qkv, rows), *sizes))
        kind = getattr(forward, "kind", "")
        if kind in LINEAR_IN_UP or kind == "relu2":
            power = 0.5 if kind == "relu2" else 1.0
            found.append(Fold((f"{name}.feed_forward.down",), rows_of(forward.up, slice(None)), power=power))
    return found


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of decoders in a model, by name."""
    named = model.named_modules()
    return {name: part for name, part in named if hasattr(part, "attention_norm") and hasattr(part, "feed_forward")}


def norm_fold(norm: nn.Module, readers: list[str]) -> list[Fold]:
    """The fold of a norm, if it has a weight and readers that are linear."""
    if getattr(norm, "weight", None) is None or not readers:
        return []
    made = (norm.weight, getattr(norm, "bias", None))
    return [Fold(tuple(readers), tuple(each.data for each in made if each is not None))]


def rows_of(layer: nn.Module, rows: slice) -> tuple[Tensor, ...]:
    """Some rows of a layer's matrix and of its bias, as views."""
    return tuple(each.data[rows] for each in (layer.weight, layer.bias) if each is not None)


def scale_stage(
    folds: list[Fold], layers: dict[str, nn.Module], statistics: dict[str, InputStatistics], spec: QuantSpec
) -> dict[str, tuple[Tensor, float]]:
    """Find scales for all that can be folded in a stage, and fold.

    Args:
        folds: of the model.
        layers: of the stage; their weights and makers are changed.
        statistics: of their inputs.
        spec: the grid.

    Returns:
        for each layer that was scaled, scales (I,) and alpha.
    """
    found = {}
    for each in folds:
        if not all(name in layers and statistics[name].n_rows for name in each.readers):
            continue
        watched, weights = statistics[each.readers[0]], [surgery.matrix_of(layers[name]) for name in each.readers]
        size = each.spread(each.shared(watched.sums / watched.n_rows))  # (I,)
        hessian = products_of(watched, each.readers[0])            # (I, I)
        scales, alpha = best_scales(torch.cat(weights).to(hessian.dtype), size, hessian, spec)
        fold(each, layers, each.shared(scales).to(weights[0].dtype))
        found |= {name: (scales, alpha) for name in each.readers}
    return found


def nearest_layer(
    name: str, layer: nn.Module, statistics: InputStatistics, spec: QuantSpec
) -> tuple[LayerReport, Tensor, Grid]:
    """Round a layer to nearest, with the error that this makes; (O, I) and the grid, whose scales have 16 bits."""
    weight = surgery.matrix_of(layer).detach()                     # (O, I)
    grid = stored(find_grid(weight, spec))
    rounded = round_to_grid(weight, grid)                          # (O, I)
    if not statistics.n_rows:
        return LayerReport(name, 0, 0.0, 0.0, note="saw no positions"), rounded, grid
    hessian = products_of(statistics, name)                        # (I, I)
    error = relative_error(weight.to(hessian.dtype), rounded.to(hessian.dtype), hessian)
    few = "" if statistics.n_rows >= len(hessian) else f"{statistics.n_rows} positions for {len(hessian)} inputs"
    return LayerReport(name, statistics.n_rows, error, error, note=few), rounded, grid


def awq_model(
    model: nn.Module,
    batches: Iterable[object],
    spec: QuantSpec | None = None,
    targets: str | Iterable[str] = (),
    exclude: str | Iterable[str] = ("head",),
    run: Run | None = None,
    progress: bool = False,
    packed: bool = True,
) -> Report:
    """Scale the inputs of a model's layers by AWQ, round to nearest, and store the layers in few bits.

    Norms and biases change too, and take up the scales; `operation.restore` of the report gives layers back that
    compute the same as before with these. Layers that no fold reaches are rounded as they are; the report says so.

    Args:
        model: one with the blocks of this library's decoders; is changed, as before if anything fails.
        batches, targets, exclude, run, progress, packed: as in `minillm.compress.calibration.round_model`.
        spec: the grid; None is four bits, asymmetric, one grid a row.

    Returns:
        the report.

    Raises:
        ConfigError: if a layer cannot be rounded.
        DataError: if there is no text, or a number is not finite.

    Source:
        Lin et al. 2023, arXiv:2306.00978, section 3; without their search for smaller grids (clipping).
    """
    spec, folds = spec or QuantSpec(), folds_of(model)

    def round_stage(layers: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> list[Rounding]:
        before = {name: nearest_layer(name, layer, statistics[name], spec)[0] for name, layer in layers.items()}
        scaled, rounded = scale_stage(folds, layers, statistics, spec), []
        for name, layer in layers.items():
            if name in scaled:
                scales = scaled[name][0]                           # (I,)
                statistics[name].products /= torch.outer(scales, scales)
            after, weight, grid = nearest_layer(name, layer, statistics[name], spec)
            note = f"alpha {scaled[name][1]:.2f}" if name in scaled else "not scaled"
            note = f"{after.note}, {note}" if after.note else note
            report = dataclasses.replace(after, nearest=before[name].error, note=note)
            rounded.append((report, weight, grid))
        return rounded

    touched = list(dict.fromkeys(parameter for block in blocks_of(model).values() for parameter in block.parameters()))
    return round_model(model, batches, round_stage, targets, exclude, "block", run, progress, packed, touched)
