"""SmoothQuant: move large columns of activations into the weights before both are rounded.

A column of activations that is large is hard to round, and the row of scales that would help (one scale per column)
cannot be taken out of a product of integers. But it can be taken out before: divide column j of X by s_j, multiply
column j of W by it, and X W^T is the same. What makes X, a norm with a weight, absorbs the division for nothing.

Dimensions: I width of a layer's input, O width of its output.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress import awq, calibration
from minillm.errors import ConfigError, DataError, ShapeError


def smoothing_scales(largest_inputs: Tensor, largest_weights: Tensor, alpha: float = 0.5) -> Tensor:
    """By how much each column of the activations is divided and of the weights multiplied.

    Args:
        largest_inputs: (I,) largest absolute activation of each column.
        largest_weights: (I,) largest absolute weight of each column, over all layers that read these activations.
        alpha: 0 leaves the difficulty with the activations, 1 moves all of it into the weights; at 1/2 the largest
            numbers of a column become equal on both sides.

    Returns:
        (I,) positive; 1 for a column that is zero on either side.

    Raises:
        ConfigError: if alpha is not between 0 and 1.
        ShapeError: if the sizes differ.

    Source:
        Xiao et al. 2022, arXiv:2211.10438, equation 4.

    Example:
        >>> smoothing_scales(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 2.0])).tolist()
        [4.0, 0.5, 1.0]
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha={alpha}: expected a share between 0 and 1")
    if largest_inputs.shape != largest_weights.shape:
        raise ShapeError(f"{tuple(largest_inputs.shape)} columns of inputs, {tuple(largest_weights.shape)} of weights")
    dead = (largest_inputs == 0) | (largest_weights == 0)          # (I,)
    scales = largest_inputs.pow(alpha) / largest_weights.pow(1 - alpha)
    return torch.where(dead, 1.0, scales)                          # (I,)


@torch.no_grad()
def smooth_model(
    model: nn.Module, batches: Iterable[Tensor], alpha: float = 0.5, norms_only: bool = True
) -> dict[str, Tensor]:
    """Smooth the inputs of the layers of a decoder; it computes the same as before, up to rounding of floats.

    Args:
        model: a decoder of this library; weights and norms are changed.
        batches: token ids (B, T) of typical text, for the largest activations.
        alpha: see `smoothing_scales`.
        norms_only: smooth only what a norm makes, as the paper does; otherwise also the inputs of attention's output
            and of `down`, where the layer before can absorb the division.

    Returns:
        layer -> scales (I,).

    Raises:
        DataError: if there is no text.
        ConfigError: if nothing can be smoothed: the norms have no weight.
    """
    if not (batches := list(batches)):
        raise DataError("there is no text to find the largest activations with; give some batches of token ids")
    names = [name for found in awq.folds_of(model) for name in found.readers]
    statistics = calibration.record(model, names, batches)
    found = {}
    for fold in awq.folds_of(model):
        if norms_only and fold.readers[0].endswith(("output", "down")):
            continue
        layers = {name: model.get_submodule(name) for name in fold.readers}
        columns = torch.stack([surgery.matrix_of(layer).abs().amax(0) for layer in layers.values()])
        scales = smoothing_scales(statistics[fold.readers[0]].largest, columns.amax(0).float(), alpha)  # (I,)
        awq.fold(fold, layers, fold.shared(scales))
        found |= dict.fromkeys(fold.readers, fold.spread(fold.shared(scales)))
    if not found:
        raise ConfigError("nothing can be smoothed: the norms of this model have no weight to divide")
    return found
