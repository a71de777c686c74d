"""Linear layers on grids of 2 to 8 bits: codes in as many bits, scales in 16, and products by the CPU's own kernels.

By default ("dequant") a layer makes its matrix anew for each product, some rows at a time: exact, readable and small,
but slower than the full matrix, for unpacking reads and writes more than the product does. What makes few bits fast is
a kernel that unpacks in registers; torch has three, which `minillm.compress.kernels` describes.

Dimensions: O width of the output, I width of the input, n groups in a row, K bytes of a row of codes, R rows at a time.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm import surgery
from minillm.compress import kernels
from minillm.compress.grid import Grid, QuantSpec, dequantize, find_grid, quantize, stored
from minillm.compress.packed_linear import PackedLinear
from minillm.compress.packing import pack, unpack
from minillm.errors import ConfigError, ShapeError

BACKENDS = ("dequant", *kernels.KERNELS, "auto")
AT_ONCE = 1 << 22  # weights that are unpacked at a time: 16 MiB in fp32


class QuantLinear(PackedLinear):
    """A linear layer whose matrix is stored as codes on grids.

    Args:
        layer: a linear layer, which is not changed.
        grid: how to round (grids are then found here), or the grids to round to, for example those by which GPTQ or
            training has chosen the weights; weights that lie on their grid keep their values.
        backend: see `choose_backend`.

    Attributes:
        packed: (O, K) uint8.
        scales: (O, n) fp16; (1, 1) if all weights share one.
        zeros: (O, n) codes, packed as the weights are; None for symmetric grids, whose zero is always 2^(b-1).
        spec: how it was rounded.
        backend: that of products without gradient.

    Raises:
        ConfigError: if the layer is none, or is packed already.
        DataError: if a weight is not finite, or a scale too large for 16 bits.
        ShapeError: if the grids are those of another shape.

    Example:
        >>> from minillm.compress.packed_linear import stored_bytes
        >>> layer = QuantLinear(nn.Linear(128, 64, bias=False), QuantSpec(bits=4, group_size=32, symmetric=True))
        >>> layer(torch.zeros(2, 128)).shape, 8 * stored_bytes(layer) / (64 * 128)
        (torch.Size([2, 64]), 4.5)
    """

    def __init__(self, layer: nn.Module, grid: QuantSpec | Grid, backend: str = "dequant"):
        if surgery.is_packed(layer):
            raise ConfigError(f"the layer is packed already ({layer.extra_repr()}); quantizing twice only adds errors")
        super().__init__(layer)
        weight = surgery.matrix_of(layer).detach()                 # (O, I)
        grid = stored(find_grid(weight, grid) if isinstance(grid, QuantSpec) else grid)
        check_zeros(grid)
        self.spec = grid.spec
        kept = slice(1) if self.spec.group_size == -1 else slice(None)
        self.register_buffer("packed", pack(quantize(weight, grid), self.spec.bits))
        self.register_buffer("scales", grid.scale[kept].half())
        zeros = None if self.spec.symmetric else pack(grid.zero[kept].to(torch.uint8), self.spec.bits)
        self.register_buffer("zeros", zeros)
        self.choose_backend(backend)

    def settings(self) -> dict[str, object]:
        return dataclasses.asdict(self.spec)

    @classmethod
    def empty(cls, layer: nn.Module, **settings: object) -> "QuantLinear":
        return cls(layer, QuantSpec(**settings))

    def choose_backend(self, backend: str) -> bool:
        """Set what computes products without gradient, of few rows, on the CPU.

        "dequant" is the exact matrix. "torch" keeps the weights exact up to the rounding of scales and inputs to bf16.
        "dynamic" also rounds each input to 7 bits. "auto" is "torch" where it works, and "dequant" elsewhere. A kernel
        has the codes in an order of its own, beside those that are stored.

        Args:
            backend: one of the four.

        Returns:
            whether a kernel is used.

        Raises:
            ConfigError: if there is no such backend, or a kernel was demanded which does not exist for this layer
                here, or computes something else than the exact matrix does.
        """
        if backend not in BACKENDS:
            raise ConfigError(f"backend={backend!r} is unknown; there are {', '.join(BACKENDS)}")
        self.backend, self.kernel = backend, None
        if backend == "dequant":
            return False
        self.kernel = kernels.sound_kernel(self, "torch" if backend == "auto" else backend)
        if self.kernel is None and backend != "auto":
            self.backend = "dequant"
            raise ConfigError(f"no kernel {backend!r} for {self.extra_repr()} on this machine; \"auto\" does without")
        return self.kernel is not None

    def grid(self, rows: slice | Tensor = slice(None)) -> Grid:
        """The grids, of all rows or of those of a slice or of indices (R,)."""
        n_groups = self.scales.shape[1]
        if self.spec.symmetric:
            zeros = torch.full_like(self.scales, 2 ** (self.spec.bits - 1))
        else:
            zeros = unpack(self.zeros, self.spec.bits, n_groups)
        n_rows = len(rows) if isinstance(rows, Tensor) else len(range(self.d_out)[rows])
        kept = slice(None) if len(self.scales) < self.d_out else rows
        scale, zero = (values[kept].float().expand(n_rows, -1) for values in (self.scales, zeros))
        return Grid(scale, zero, self.spec)

    def codes(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """(R, I) uint8, likewise."""
        return unpack(self.packed[rows], self.spec.bits, self.d_in)

    @torch.no_grad()
    def matrix(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """(R, I) float32, likewise."""
        return dequantize(self.codes(rows), self.grid(rows))

    def row_blocks(self) -> list[slice]:
        """The rows, cut so that not more than AT_ONCE weights are unpacked at a time."""
        n_rows = max(1, AT_ONCE // self.d_in)
        return [slice(start, min(start + n_rows, self.d_out)) for start in range(0, self.d_out, n_rows)]

    def multiply(self, x: Tensor) -> Tensor:
        if self.kernel is not None and not x.requires_grad and kernels.suits(x):
            return self.kernel.multiply(x).to(x.dtype)             # (..., O)
        parts = [F.linear(x, self.matrix(rows).to(x.dtype)) for rows in self.row_blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # (..., O)

    def multiply_back(self, gradient: Tensor) -> Tensor:
        parts = (gradient[..., rows] @ self.matrix(rows).to(gradient.dtype) for rows in self.row_blocks())
        total = next(parts)                                        # (..., I)
        for part in parts:
            total += part
        return total

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.packed.device.type != "cpu":
            self.kernel = None
        return self

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        if self.kernel is not None:
            self.choose_backend(self.backend)

    def extra_repr(self) -> str:
        spec = self.spec
        kind = f"symmetric ({spec.convention})" if spec.symmetric else "asymmetric"
        return f"{super().extra_repr()}, bits={spec.bits}, group_size={spec.group_size}, {kind}, backend={self.backend}"


def check_zeros(grid: Grid) -> None:
    """Refuse zeros that cannot be stored: they must be codes, and of symmetric grids the one in the middle.

    Raises:
        ShapeError: if there is one that cannot.
    """
    middle, zero = 2 ** (grid.spec.bits - 1), grid.zero
    bad = (zero != middle) if grid.spec.symmetric else (zero != zero.round().clamp(0, grid.spec.n_levels - 1))
    if bool(bad.any()):
        expected = f"{middle} everywhere" if grid.spec.symmetric else f"0, 1, ... {grid.spec.n_levels - 1}"
        raise ShapeError(f"the zero {zero[bad][0].item():g} of a grid cannot be stored; expected {expected}")


def use_backend(model: nn.Module, backend: str = "auto") -> int:
    """Set the backend of all layers on grids; one that cannot have it keeps to the exact matrix.

    Args:
        model: is changed.
        backend: see `QuantLinear.choose_backend`.

    Returns:
        how many layers use a kernel now.

    Example:
        >>> model = nn.Sequential(QuantLinear(nn.Linear(8, 3), QuantSpec(bits=3)))
        >>> use_backend(model, "dequant")
        0
    """
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    n_fast = 0
    for layer in layers:
        try:
            n_fast += layer.choose_backend(backend)
        except ConfigError:
            if backend not in BACKENDS:
                raise
    return n_fast
