"""GPTQ over a whole model: block after block, each with the inputs that the rounded blocks before it give it.

Dimensions: O width of a layer's output, I width of its input.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress.calibration import LayerReport, Report, Run, relative_error, round_model
from minillm.compress.gptq import GPTQConfig, gptq, grid_of
from minillm.compress.grid import Grid, QuantSpec, round_to_grid
from minillm.compress.hessian import check_products
from minillm.errors import DataError
from minillm.surgery import InputStatistics

STORED = GPTQConfig(half_scales=True)


def gptq_layer(
    name: str, layer: nn.Module, statistics: InputStatistics, spec: QuantSpec, config: GPTQConfig
) -> tuple[LayerReport, Tensor, Grid]:
    """Round one layer by GPTQ, or to nearest where that cannot be done, and say how it went.

    Args:
        name: of the layer.
        layer: is not changed.
        statistics: of its inputs.
        spec: the grid.
        config: see `GPTQConfig`.

    Returns:
        the report, the rounded weight (O, I), its grid.

    Raises:
        DataError: if a weight or a product of inputs is not finite.
    """
    weight = surgery.matrix_of(layer).detach()                     # (O, I)
    weight = weight if weight.dtype == torch.float64 else weight.float()  # (O, I)
    grid = grid_of(weight, spec, config)
    nearest = round_to_grid(weight, grid)                          # (O, I)
    if statistics.n_rows == 0:
        note = "saw no positions: rounded to nearest"
        return LayerReport(name, 0, 0.0, 0.0, note=note), nearest, grid
    hessian = statistics.products.to(weight.dtype)                 # (I, I)
    check_products(hessian, name)
    simple = relative_error(weight, nearest, hessian)
    try:
        found = gptq(weight, hessian, spec, config)
    except DataError as error:
        note = f"rounded to nearest: {error}"
        return LayerReport(name, statistics.n_rows, simple, simple, note=note), nearest, grid
    notes = []
    if statistics.n_rows < len(hessian):
        notes.append(f"{statistics.n_rows} positions for {len(hessian)} inputs")
    if found.damping != config.damping:
        notes.append(f"damping raised from {config.damping:g} to {found.damping:g}")
    report = LayerReport(
        name,
        statistics.n_rows,
        relative_error(weight, found.weight, hessian),
        simple,
        found.expected,
        found.damping,
        ", ".join(notes),
    )
    return report, found.weight, found.grid


def gptq_model(
    model: nn.Module,
    batches: Iterable[object],
    spec: QuantSpec | None = None,
    config: GPTQConfig = STORED,
    targets: str | Iterable[str] = (),
    exclude: str | Iterable[str] = ("head",),
    sequence: str = "block",
    run: Run | None = None,
    progress: bool = False,
    packed: bool = True,
) -> Report:
    """Round a model by GPTQ, and store its layers in few bits.

    Args:
        model: is changed; as before if anything fails.
        batches: some typical text as the model takes it, for example token ids (B, T); about 100 positions for each
            input of the widest layer are plenty.
        spec: the grid; None is four bits, asymmetric, one grid a row.
        config: how GPTQ works; packed layers keep scales in 16 bits, so that `half_scales` should stay on.
        targets, exclude, sequence, run, progress, packed: as in `minillm.compress.calibration.round_model`.

    Returns:
        the report: for each layer its error, that of rounding to nearest, and what the closed form expects.

    Raises:
        ConfigError: if a layer cannot be rounded.
        DataError: if there is no text, or a number is not finite.

    Source:
        Frantar et al. 2023, arXiv:2210.17323, section 3.3 and the authors' program, which goes block by block.
    """
    spec = spec or QuantSpec()

    def round_stage(
        layers: dict[str, nn.Module], statistics: dict[str, InputStatistics]
    ) -> list[tuple[LayerReport, Tensor, Grid]]:
        return [gptq_layer(name, layer, statistics[name], spec, config) for name, layer in layers.items()]

    return round_model(model, batches, round_stage, targets, exclude, sequence, run, progress, packed)
