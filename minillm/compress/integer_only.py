"""A linear layer in whole numbers alone: 8 bits times 8 bits summed in 32, and back to 8 without a float.

This is fixed-point arithmetic, and the only form of quantization for which that word is right. A real number r is
S (q - Z). With r3 = sum r1 r2, the codes of the output are q3 = Z3 + M sum (q1 - Z1) q2, where M = S1 S2 / S3 is the
only number that is not whole. It becomes a whole mantissa and a shift, M = m 2^-(31 + shift), found once.

Dimensions: N rows, I width of the input, O width of the output.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.compress.activations import AffineRange, quantize_rows
from minillm.compress.llm_int8 import integer_product
from minillm.errors import ConfigError, DataError


def fixed_point(multiplier: float) -> tuple[int, int]:
    """A positive number as mantissa and shift: multiplier = mantissa 2^-(31 + shift).

    Args:
        multiplier: positive, finite; below 2^31.

    Returns:
        the mantissa, 2^30 to 2^31 - 1, so that it has 31 bits however small the number is; and the shift.

    Raises:
        ConfigError: if the multiplier is not such a number.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 2.2, equation 6: M = 2^-n M0, M0 in [0.5, 1).

    Example:
        >>> fixed_point(0.25), fixed_point(0.75), fixed_point(3.0)
        ((1073741824, 1), (1610612736, 0), (1610612736, -2))
    """
    if not 0.0 < multiplier < 2.0**31:
        raise ConfigError(f"multiplier={multiplier}: expected a positive number below 2^31")
    fraction, exponent = math.frexp(multiplier)
    mantissa = round(fraction * 2**31)
    return (mantissa, -exponent) if mantissa < 2**31 else (2**30, -exponent - 1)


def scale_down(sums: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """sums mantissa 2^-(31 + shift), rounded to whole numbers, halves up: one product, one addition, one shift.

    Args:
        sums: (..., O) int32.
        mantissa, shift: (O,) int64, as `fixed_point` gives them; a shift of at least -30.

    Returns:
        (..., O) int64.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 2.2; theirs rounds twice (once per product and shift) and may
        therefore differ by one.

    Example:
        >>> scale_down(torch.tensor([6, 7, -6, -7]), torch.tensor(2**30), torch.tensor(1)).tolist()
        [2, 2, -1, -2]
    """
    places = 31 + shift
    half = torch.ones_like(places) << (places - 1)
    return (sums.long() * mantissa + half) >> places               # (..., O)


@dataclass(frozen=True)
class IntegerLinear:
    """A linear layer whose every number is whole.

    Attributes:
        codes: (O, I) int8, the weights, symmetric, one scale per row.
        bias: (O,) int32, in units of the sums: the real bias over S1 S2, less what the input's zero adds to each sum.
        mantissa, shift: (O,) int64, of S1 S2 / S3.
        in_zero, out_zero: codes that mean 0.
        n_codes: of the output, 256 for 8 bits.
    """

    codes: Tensor
    bias: Tensor
    mantissa: Tensor
    shift: Tensor
    in_zero: int
    out_zero: int
    n_codes: int = 256

    def __call__(self, x_codes: Tensor) -> Tensor:
        """(..., I) uint8 codes to (..., O) uint8 codes, without a float.

        Source:
            Jacob et al. 2018, arXiv:1712.05877, equation 7: sum (q1 - Z1) q2 = sum q1 q2 - Z1 sum q2, of which the
            second part is in the bias.
        """
        sums = integer_product(x_codes, self.codes) + self.bias    # (..., O)
        scaled = scale_down(sums, self.mantissa, self.shift)       # (..., O)
        return (scaled + self.out_zero).clamp(0, self.n_codes - 1).to(torch.uint8)


def integer_linear(weight: Tensor, bias: Tensor | None, inputs: AffineRange, outputs: AffineRange) -> IntegerLinear:
    """A layer in floats as a layer in whole numbers.

    Args:
        weight: (O, I) float, finite.
        bias: (O,) float, or None.
        inputs, outputs: the ranges of what comes in and goes out, found by running typical text.

    Returns:
        the layer.

    Raises:
        DataError: if a weight is not finite, or a bias too large for 32 bits.
    """
    codes, scale = quantize_rows(weight.double())
    unit = inputs.scale * scale.squeeze(-1)                        # (O,)
    whole_bias = (torch.zeros_like(unit) if bias is None else bias.double() / unit).round()  # (O,)
    shifted = whole_bias - inputs.zero * codes.double().sum(-1)    # (O,)
    largest = shifted.abs().max().item() + 255 * 127 * weight.shape[1]
    if not largest < 2.0**31:
        raise DataError(f"with its bias a sum may reach {largest:.3g}, above 32 bits; is the bias that large?")
    points = [fixed_point(each) for each in (unit / outputs.scale).tolist()]
    mantissa, shift = torch.tensor(points).T
    return IntegerLinear(codes, shifted.int(), mantissa, shift, inputs.zero, outputs.zero, 2**outputs.bits)
