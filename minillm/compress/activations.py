"""Activations in eight bits: a range known before (static), or one found anew for every vector (dynamic).

Weights lie still, so that their range is known. What flows through a layer changes with the text. *Static*: some text
is run once, the range is kept, and later values outside are cut. *Dynamic*: each token's vector brings its own scale,
which costs a look at its largest number, and nothing is ever cut.

Dimensions: N rows (positions), I width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError, DataError


@dataclass(frozen=True)
class AffineRange:
    """Codes of a range of real numbers: a code q means scale (q - zero).

    Attributes:
        scale: positive.
        zero: the code that means 0 exactly, 0 to 2^bits - 1.
        bits: 2 to 8.
    """

    scale: float
    zero: int
    bits: int = 8

    def codes(self, x: Tensor) -> Tensor:
        """uint8 codes of any size; halves go to the even step, what lies outside to the ends."""
        return ((x / self.scale).round() + self.zero).clamp(0, 2**self.bits - 1).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """What the codes mean, float32."""
        return self.scale * (codes.float() - self.zero)

    def rounded(self, x: Tensor) -> Tensor:
        """x as it comes back from its codes."""
        return self.values(self.codes(x)).to(x.dtype)


def affine_range(low: float, high: float, bits: int = 8) -> AffineRange:
    """The range from low to high as codes, widened so that zero is one of them.

    Padding, masks and what a ReLU cuts are exactly zero; were zero no code, each would bring the same small error, and
    a sum over thousands of them a large one. Widening comes first: then the zero that is rounded lies within the codes.

    Args:
        low, high: finite, low <= high.
        bits: 2 to 8.

    Returns:
        its scale and zero; scale 1 and zero 0 if both ends are zero.

    Raises:
        ConfigError: if the range or the bits are none.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 2.1 and equation 1.

    Example:
        >>> affine_range(-1.0, 6.5, bits=4), affine_range(3.0, 7.5, bits=4)
        (AffineRange(scale=0.5, zero=2, bits=4), AffineRange(scale=0.5, zero=0, bits=4))
    """
    if not (-torch.inf < low <= high < torch.inf) or not 2 <= bits <= 8:
        raise ConfigError(f"from {low} to {high} in {bits} bits: expected finite numbers in order, and 2 to 8 bits")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return AffineRange(scale, round(-low / scale), bits) if scale > 0 else AffineRange(1.0, 0, bits)


def quantize_rows(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Dynamic: each row divided by its own largest absolute value, symmetric, so that the zero needs no code.

    Args:
        x: (..., I) float, finite; in 16 bits it is taken as fp32, in which steps can be told apart.
        bits: 2 to 8.

    Returns:
        codes (..., I) int8 from -(2^(bits-1) - 1) to 2^(bits-1) - 1, and scales (..., 1); a row of zeros has scale 1.

    Raises:
        DataError: if a number is not finite.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339, section 2 (absmax) and section 3.1 (one scale per row).

    Example:
        >>> codes, scale = quantize_rows(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
        >>> codes.tolist(), [round(s, 4) for s in scale.flatten().tolist()]
        ([[64, -127], [0, 0]], [0.0157, 1.0])
    """
    if not bool(torch.isfinite(x).all()):
        raise DataError("an activation is NaN or infinite; look at the layers before")
    x = x if x.dtype == torch.float64 else x.float()               # (..., I)
    n_steps = 2 ** (bits - 1) - 1
    largest = x.abs().amax(-1, keepdim=True)                       # (..., 1)
    scale = torch.where(largest > 0, largest / n_steps, 1.0).clamp(min=torch.finfo(x.dtype).tiny)  # (..., 1)
    return (x / scale).round().clamp(-n_steps, n_steps).to(torch.int8), scale


@torch.no_grad()
def record_ranges(
    model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], coverage: float = 1.0
) -> dict[str, tuple[float, float]]:
    """Static: between which numbers a layer's inputs lie while some text runs through the model.

    Args:
        model: is not changed; in evaluation mode.
        names: of the layers.
        batches: what the model is called with, one by one.
        coverage: the share of the numbers that the range must hold. Below 1, (1 - coverage) / 2 are left out at either
            end, batch by batch, and the ends are averaged: a few large numbers then do not make all steps coarse.

    Returns:
        name -> (low, high).

    Raises:
        ConfigError: if the coverage is no share.
        DataError: if there is no text.
    """
    if not 0.0 < coverage <= 1.0:
        raise ConfigError(f"coverage={coverage}: expected a share, above 0 and at most 1")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def watcher(name: str):
        def watch(layer: nn.Module, inputs: tuple) -> None:
            seen[name].append(ends_of(inputs[0], coverage))

        return watch

    handles = [model.get_submodule(name).register_forward_pre_hook(watcher(name)) for name in names]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not all(seen.values()):
        raise DataError("no text reached the layers; give some batches of it")
    if coverage == 1.0:
        return {name: (min(low for low, _ in ends), max(high for _, high in ends)) for name, ends in seen.items()}
    return {
        name: (sum(low for low, _ in ends) / len(ends), sum(high for _, high in ends) / len(ends))
        for name, ends in seen.items()
    }


def ends_of(x: Tensor, coverage: float) -> tuple[float, float]:
    """The smallest and the largest number of x, without the outermost (1 - coverage) / 2 at either end.

    Example:
        >>> ends_of(torch.arange(101.0), 1.0), ends_of(torch.arange(101.0), 0.9)
        ((0.0, 100.0), (5.0, 95.0))
    """
    ordered = x.detach().float().flatten().sort().values
    cut = round((1 - coverage) / 2 * (len(ordered) - 1))
    return ordered[cut].item(), ordered[len(ordered) - 1 - cut].item()
