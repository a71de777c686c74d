"""Walk a model in its own order, watch what its layers are given by some text, and round one stage after the other.

What is rounded already makes the inputs of what comes next, so that later layers mend errors of earlier ones too.

Dimensions: O width of a layer's output, I width of its input.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minillm import surgery
from minillm.compress.grid import Grid
from minillm.compress.packed_linear import quantize_model
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError, DataError
from minillm.surgery import ActivationRecorder, InputStatistics

SEQUENCES = ("block", "layer", "none")
Run = Callable[[nn.Module, object], object]


@dataclass(frozen=True)
class LayerReport:
    """How one layer was rounded.

    Attributes:
        name: of the layer.
        n_rows: positions that it was watched at.
        error: sum of squares by which its outputs change there, over that of the outputs.
        nearest: the same for rounding to nearest on the same grid.
        expected: what error / nearest should be by the closed form, or None if the method has none.
        damping: what the Hessian needed, or None.
        note: what did not go as planned; empty if all did.
    """

    name: str
    n_rows: int
    error: float
    nearest: float
    expected: float | None = None
    damping: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Error over that of rounding to nearest; 1 if that has none."""
        return self.error / self.nearest if self.nearest else 1.0


@dataclass
class Report:
    """How a model was rounded; printed, it is a table.

    Attributes:
        layers: in the order of the work.
        grids: of each layer.
        operation: whose `restore` gives the model its old layers back.
    """

    layers: list[LayerReport] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)
    operation: surgery.Operation | None = None

    def __str__(self) -> str:
        lines = [f"{'layer':36} {'error':>9} {'nearest':>9} {'ratio':>6} {'expected':>8}  notes"]
        for each in self.layers:
            expected = "" if each.expected is None else f"{each.expected:.3f}"
            figures = f"{each.error:9.2e} {each.nearest:9.2e} {each.ratio:6.3f} {expected:>8}"
            lines.append(f"{each.name:36} {figures}  {each.note}".rstrip())
        return "\n".join(lines)


def relative_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Sum of squares by which a layer's outputs change, over that of the outputs; 0 if there are none.

    Args:
        weight, rounded: (O, I).
        hessian: (I, I), X^T X.

    Example:
        >>> relative_error(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.eye(2))
        0.25
    """
    change = weight - rounded                                      # (O, I)
    changed = ((change @ hessian) * change).sum()
    whole = ((weight @ hessian) * weight).sum()
    return (changed / whole).item() if whole > 0 else 0.0


def stages_of(names: Sequence[str], sequence: str) -> list[list[str]]:
    """Layers that are watched in one pass and rounded together.

    Args:
        names: of the layers, in the model's order.
        sequence: "block": those of one block (its name ends with its number); "layer": each alone; "none": all.

    Raises:
        ConfigError: if there is no such sequence.

    Example:
        >>> stages_of(["blocks.0.up", "blocks.0.down", "blocks.1.up", "head"], "block")
        [['blocks.0.up', 'blocks.0.down'], ['blocks.1.up'], ['head']]
    """
    if sequence not in SEQUENCES:
        raise ConfigError(f"sequence={sequence!r} is unknown; there are {', '.join(SEQUENCES)}")
    stages: dict[str, list[str]] = {}
    for name in names:
        block = re.match(r".*?\.\d+(?=\.)", name)
        key = {"block": block[0] if block else name, "layer": name, "none": ""}[sequence]
        stages.setdefault(key, []).append(name)
    return list(stages.values())


class Enough(Exception):  # noqa: N818
    """All layers of a stage have been given their inputs: the rest of the model need not run."""


@contextmanager
def stopping(model: nn.Module, names: Iterable[str]) -> Iterator[set[str]]:
    """While open, a forward pass ends by `Enough` once all named layers were called; the set says which were."""
    seen: set[str] = set()
    wanted = set(names)

    def watch(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(layer: nn.Module, inputs: tuple) -> None:
            seen.add(name)
            if seen == wanted:
                raise Enough

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in sorted(wanted)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(
    model: nn.Module, names: Sequence[str], batches: Iterable[object], run: Run | None = None
) -> dict[str, InputStatistics]:
    """What layers are given while some text runs through the model, as far as needed; without dropout.

    Args:
        model: is not changed.
        names: of the layers.
        batches: the text.
        run: calls the model with one batch; None is `model(batch)`.

    Returns:
        name -> sums over all positions, with products.

    Raises:
        ShapeError: if an input is not finite; names the layer.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with ActivationRecorder(model, names) as recorder, stopping(model, names) as seen:
            for batch in batches:
                seen.clear()
                try:
                    model(batch) if run is None else run(model, batch)
                except Enough:
                    pass
    finally:
        for module, mode in training.items():
            module.training = mode
    return recorder.statistics


def roundable(model: nn.Module, targets: str | Iterable[str], exclude: str | Iterable[str]) -> dict[str, nn.Module]:
    """The linear layers that are meant.

    Raises:
        ConfigError: if there is none, or one is packed already.
    """
    found = surgery.find(model, targets, surgery.is_linear, exclude)
    for name, layer in found.items():
        if surgery.is_packed(layer):
            raise ConfigError(f"{name} is packed already; quantizing twice only adds errors: take the full model")
    return found


Rounding = tuple[LayerReport, Tensor, Grid]
RoundStage = Callable[[dict[str, nn.Module], dict[str, InputStatistics]], list[Rounding]]


def round_model(
    model: nn.Module,
    batches: Iterable[object],
    round_stage: RoundStage,
    targets: str | Iterable[str] = (),
    exclude: str | Iterable[str] = ("head",),
    sequence: str = "block",
    run: Run | None = None,
    progress: bool = False,
    packed: bool = True,
    touched: Iterable[nn.Parameter] = (),
) -> Report:
    """Round a model stage by stage and store its layers in few bits.

    Args:
        model: is changed; as before if anything fails.
        batches: some typical text, as the model takes it.
        round_stage: {name: layer}, {name: statistics} -> for each layer its report, rounded weight and grid. It may
            change the model before, if only the numbers in it and not what it computes.
        targets: which linear layers, as in `surgery.find`; none means all.
        exclude: layers to leave alone.
        sequence: see `stages_of`.
        run: as in `record`.
        progress: whether to show a bar.
        packed: whether to put a `QuantLinear` in each layer's place; otherwise the layers keep their form and have
            rounded weights.
        touched: parameters besides the layers' matrices that `round_stage` may change.

    Returns:
        the report.

    Raises:
        ConfigError: if a layer cannot be rounded.
        DataError: if there is no text, or no layer was reached by it.
    """
    batches, found = list(batches), roundable(model, targets, exclude)
    if not batches:
        raise DataError("there is no text to calibrate with; give some batches, about 100 positions for each input")
    old = {parameter: parameter.detach().clone() for parameter in (*touched, *(each.weight for each in found.values()))}
    report, full = Report(), {}
    try:
        with tqdm(total=len(found), desc="rounding", unit="layer", disable=not progress) as bar:
            for names in stages_of(list(found), sequence):
                statistics = record(model, names, batches, run)
                for each, weight, grid in round_stage({name: found[name] for name in names}, statistics):
                    full[each.name] = surgery.matrix_of(found[each.name]).detach().clone()
                    write(found[each.name], weight)
                    report.layers.append(each)
                    report.grids[each.name] = grid
                    bar.set_postfix_str(f"{each.name} {each.error:.1e}, nearest {each.nearest:.1e}")
                    bar.update()
        check_calibrated(report)
        if packed:
            report.operation = quantize_model(
                model, lambda name, layer: QuantLinear(layer, report.grids[name]), list(found), ()
            )
            for name, weight in full.items():
                write(found[name], weight)                         # the old layers, which `restore` would put back
    except BaseException:
        with torch.no_grad():
            for parameter, values in old.items():
                parameter.copy_(values)
        raise
    return report


@torch.no_grad()
def write(layer: nn.Module, weight: Tensor) -> None:
    """Give a layer another matrix (O, I), in its own number format."""
    surgery.matrix_of(layer).copy_(weight)


def check_calibrated(report: Report) -> None:
    """Warn if layers saw few positions.

    Raises:
        DataError: if none saw any.
    """
    if not any(each.n_rows for each in report.layers):
        raise DataError("no layer was reached by the text that calibrates; does `run` call this model?")
    if few := [each for each in report.layers if "positions" in each.note]:
        warnings.warn(
            f"too little text to calibrate {len(few)} of {len(report.layers)} layers, the first {few[0].name}: "
            f"{few[0].note}; they may have learned this text by heart",
            stacklevel=4,
        )
