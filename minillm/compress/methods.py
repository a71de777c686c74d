"""Every way to store a finished model in few bits, by a short name, with one report for all.

    rtn                     each weight to the nearest code of its grid
    gptq                    the same grids; what rounding breaks is mended by the weights that are still to be rounded
    awq                     inputs that matter are stretched before rounding to nearest
    nf4                     sixteen levels at the quantiles of a normal distribution, scales in eight bits
    q8_0 q6_k q5_1 q5_0 q4_1 q4_0 q4_k    the blocks of GGML

Dimensions: O width of a layer's output, I width of its input.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from tqdm import tqdm

from minillm import surgery
from minillm.compress import calibration, ggml
from minillm.compress.awq import awq_model
from minillm.compress.calibration import LayerReport, Report
from minillm.compress.ggml_linear import GGMLLinear
from minillm.compress.gptq_model import gptq_model
from minillm.compress.grid import QuantSpec
from minillm.compress.hessian import products_of
from minillm.compress.packed_linear import NF4Linear, PackedLinear, quantize_model
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError, DataError

ON_GRIDS = ("rtn", "gptq", "awq")
BLOCKS = tuple(name for name, kind in ggml.TYPES.items() if kind.bits_per_weight < 16)
METHODS = (*ON_GRIDS, "nf4", *BLOCKS)


def quantize_by(
    method: str,
    model: nn.Module,
    batches: Iterable[Tensor],
    spec: QuantSpec | None = None,
    exclude: str | Iterable[str] = ("head",),
    progress: bool = False,
) -> Report:
    """Store the linear layers of a model in few bits by the method of that name.

    Args:
        method: one of `METHODS`.
        model: is changed; as before if anything fails.
        batches: token ids (B, T) of typical text. "gptq" and "awq" learn from it, the others only report their errors.
        spec: the grids of "rtn", "gptq" and "awq"; None is four bits in groups of 32. Others have a form of their own.
        exclude: layers to leave alone.
        progress: whether to show a bar.

    Returns:
        the error of each layer, beside that of rounding to nearest.

    Raises:
        ConfigError: if there is no such method, or a layer cannot be stored so.
        DataError: if there is no text, or a number is not finite.
    """
    spec, batches = spec or QuantSpec(4, 32), list(batches)
    if method == "gptq":
        return gptq_model(model, batches, spec, exclude=exclude, progress=progress)
    if method == "awq":
        return awq_model(model, batches, spec, exclude=exclude, progress=progress)
    return store_model(model, batches, form_by_name(method, spec), exclude, progress)


def form_by_name(method: str, spec: QuantSpec) -> Callable[[nn.Module], PackedLinear]:
    """What stores a single layer, by a method that looks at nothing else.

    Raises:
        ConfigError: if there is no such method.
    """
    if method == "rtn":
        return lambda layer: QuantLinear(layer, spec)
    if method == "nf4":
        return NF4Linear
    if method in BLOCKS:
        return lambda layer: GGMLLinear(layer, method)
    raise ConfigError(f"method={method!r} is unknown; there are {', '.join(METHODS)}")


def store_model(
    model: nn.Module,
    batches: Iterable[Tensor],
    form: Callable[[nn.Module], PackedLinear],
    exclude: str | Iterable[str] = ("head",),
    progress: bool = False,
) -> Report:
    """Store each layer in a form that looks at nothing else, and measure what that does to its outputs.

    Args:
        model: is changed; as before if anything fails.
        batches: typical text for the errors.
        form: layer -> packed layer.
        exclude: layers to leave alone.
        progress: whether to show a bar.

    Returns:
        the report; a layer's "nearest" is its own error.
    """
    if not (batches := list(batches)):
        raise DataError("there is no text to measure errors with; give some batches of token ids")
    found = calibration.roundable(model, (), exclude)
    report = Report(operation=surgery.Operation(model))
    try:
        with tqdm(total=len(found), desc="rounding", unit="layer", disable=not progress) as bar:
            for names in calibration.stages_of(list(found), "block"):
                statistics = calibration.record(model, names, batches)
                stage = quantize_model(model, lambda _, layer: form(layer), names, ())
                report.operation.replaced += stage.replaced
                for name in names:
                    each = layer_report(name, found[name], model.get_submodule(name), statistics[name])
                    report.layers.append(each)
                    bar.set_postfix_str(f"{name} {each.error:.1e}")
                    bar.update()
    except BaseException:
        report.operation.restore()
        raise
    return report


def layer_report(
    name: str, layer: nn.Module, packed: PackedLinear, statistics: surgery.InputStatistics
) -> LayerReport:
    """By how much a layer's outputs change when it is stored."""
    note = f"{packed.block_type} instead" if getattr(packed, "block_type", "") != getattr(packed, "wanted", "") else ""
    if not statistics.n_rows:
        return LayerReport(name, 0, 0.0, 0.0, note=f"saw no positions {note}".strip())
    hessian = products_of(statistics, name)
    weight = surgery.matrix_of(layer).detach().to(hessian.dtype)
    error = calibration.relative_error(weight, packed.matrix().to(hessian.dtype), hessian)
    return LayerReport(name, statistics.n_rows, error, error, note=note)
