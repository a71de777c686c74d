"""torch's products with few-bit weights on the CPU: they unpack in registers, so that fewer bytes are read.

One new token is a product of one row with every weight, and takes the time of reading the weights. A kernel that reads
4 bits a weight instead of 32 can be up to eight times as fast; one that unpacks to memory first is slower than none.
The three used here are no public interface, so each is looked for, and held against the exact matrix before it is used.

    int4     `_weight_int4pack_mm_for_cpu`: up to 4 bits, groups of 32, 64, 128 or 256; inputs and scales in bf16
    int8     `_weight_int8pack_mm`: one scale a row; inputs and scales in bf16
    dynamic  `quantized::linear_dynamic` (FBGEMM, oneDNN): one scale a row; each input is rounded to 7 bits and the
             product is one of integers; the fastest for several rows

`_int_mm`, int8 times int8, is not among them: without the processor's own instruction for it (VNNI) it took five times
as long as fp32.

Dimensions: O width of the output, I width of the input, n groups in a row.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minillm.compress.quant_linear import QuantLinear

KERNELS = ("torch", "dynamic")
INT4_GROUPS = (256, 128, 64, 32)
MAX_ROWS = 32  # above, unpacking once and multiplying in fp32 is faster
TOLERANCE = 0.03  # of the norm: bf16 has eight bits, and inputs of 7 bits are off by about 0.01


@dataclass(frozen=True)
class Kernel:
    """A product with the weights of one layer, in the kernel's own order.

    Attributes:
        multiply: (..., I) to (..., O) in fp32.
        n_bytes: of that order; they come on top of what the layer stores.
    """

    multiply: Callable[[Tensor], Tensor]
    n_bytes: int


def suits(x: Tensor) -> bool:
    """Whether a product with x is one for a kernel: on the CPU, and of few rows."""
    return x.device.type == "cpu" and 0 < x.numel() <= MAX_ROWS * x.shape[-1]


@torch.no_grad()
def sound_kernel(layer: "QuantLinear", name: str) -> Kernel | None:
    """The kernel of a layer, if it exists here and agrees with the exact matrix.

    Args:
        layer: on the CPU.
        name: "torch" or "dynamic".

    Returns:
        the kernel, or None.
    """
    if layer.packed.device.type != "cpu":
        return None
    makers = [dynamic_kernel] if name == "dynamic" else [int4_kernel, int8_kernel]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(3, layer.d_in, generator=generator)        # (3, I)
    exact = probe @ layer.matrix().T                               # (3, O)
    for make in makers:
        try:
            kernel = make(layer)
            if kernel is not None and bool((kernel.multiply(probe) - exact).norm() <= TOLERANCE * exact.norm()):
                return kernel
        except (AttributeError, NotImplementedError, RuntimeError):
            continue
    return None


def int4_kernel(layer: "QuantLinear") -> Kernel | None:
    """Up to four bits in groups; a scale for a whole row is repeated for each of its groups."""
    width = layer.spec.width(layer.d_in)
    if layer.spec.n_groups(layer.d_in) == 1:
        width = next((group for group in INT4_GROUPS if layer.d_in % group == 0), 0)
    if layer.spec.bits > 4 or width not in INT4_GROUPS or layer.d_in % width:
        return None
    grid, raised = layer.grid(), 8 - 2 ** (layer.spec.bits - 1)  # to where code 8 is the middle: bf16 rounds the rest
    packed = torch._convert_weight_to_int4pack_for_cpu(layer.codes().int() + raised, 1)
    pair = torch.stack([grid.scale, (8 - raised - grid.zero) * grid.scale], dim=-1)  # (O, n, 2)
    pair = pair.transpose(0, 1).expand(layer.d_in // width, -1, -1).bfloat16().contiguous()  # (n, O, 2)

    return Kernel(
        lambda x: in_rows(x, lambda rows: torch._weight_int4pack_mm_for_cpu(rows, packed, width, pair)),
        packed.nbytes + pair.nbytes,
    )


def int8_kernel(layer: "QuantLinear") -> Kernel | None:
    """Up to eight bits with one scale a row; what a zero that is not in the middle adds is added for all columns."""
    if layer.spec.n_groups(layer.d_in) > 1:
        return None
    grid, (codes, zero) = layer.grid(), signed_codes(layer)
    scale, shift = grid.scale[:, 0].bfloat16(), -zero * grid.scale[:, 0]  # (O,), (O,)
    shifted = bool(shift.any())

    def multiply(x: Tensor) -> Tensor:
        out = in_rows(x, lambda rows: torch._weight_int8pack_mm(rows, codes, scale))
        return out + x.float().sum(-1, True) * shift if shifted else out

    return Kernel(multiply, codes.nbytes + scale.nbytes + shift.nbytes)


def in_rows(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """A product that takes a matrix in bf16, for any (..., I) and with a result in fp32."""
    return product(x.bfloat16().reshape(-1, x.shape[-1])).float().view(*x.shape[:-1], -1)


def dynamic_kernel(layer: "QuantLinear") -> Kernel | None:
    """Up to eight bits with one scale a row, times inputs that are rounded with one scale and zero for all."""
    if layer.spec.n_groups(layer.d_in) > 1:
        return None
    codes, zero = signed_codes(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # torch will drop this kernel one day
        weight = torch._make_per_channel_quantized_tensor(codes, layer.grid().scale[:, 0].double(), zero.long(), 0)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    seven_bits = True  # with eight, sums of two products overflow their 16 bits on older processors
    return Kernel(lambda x: torch.ops.quantized.linear_dynamic(x.float(), packed, seven_bits), codes.nbytes)


def signed_codes(layer: "QuantLinear") -> tuple[Tensor, Tensor]:
    """Codes with the middle code at 0, and the zero of each row as such a code.

    Returns:
        (O, I) int8, and (O,) float.
    """
    middle = 2 ** (layer.spec.bits - 1)
    codes = (layer.codes() ^ 128).view(torch.int8) + (128 - middle)  # (O, I)
    return codes, layer.grid().zero[:, 0] - middle
