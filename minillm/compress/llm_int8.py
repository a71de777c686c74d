"""LLM.int8(): products of matrices in integers, but for the few columns of activations that are far too large.

In large language models some dimensions of the hidden state are twenty times as large as the others, in every token.
One such number sets the scale of its whole vector, and the others are rounded to nothing. There are few of them: their
columns are multiplied in full precision, everything else in eight bits, and the two products are added.

Dimensions: N rows of activations (positions), I width of the input, O width of the output, K outlier columns.
"""

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress.activations import quantize_rows
from minillm.compress.packed_linear import PackedLinear
from minillm.errors import ConfigError, ShapeError

THRESHOLD = 6.0


def outlier_columns(x: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Which columns hold a number as large as the threshold, in any row.

    Args:
        x: (..., I).
        threshold: positive.

    Returns:
        (I,) bool.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339, section 3.2: magnitude at least alpha = 6.0.

    Example:
        >>> outlier_columns(torch.tensor([[1.0, -6.0, 2.0], [3.0, 0.0, 5.9]])).tolist()
        [False, True, False]
    """
    return (x.abs() >= threshold).flatten(0, -2).any(0)            # (I,)


def integer_product(x_codes: Tensor, weight_codes: Tensor) -> Tensor:
    """x W^T in whole numbers: 8 bits times 8 bits, summed in 32.

    A sum of I products is below 127^2 I, so that 32 bits are enough up to I = 133,000; 16 bits are not from I = 3 on.

    Args:
        x_codes: (..., I) int8 or uint8.
        weight_codes: (O, I) int8.

    Returns:
        (..., O) int32, exact.

    Raises:
        ShapeError: if the widths differ.

    Example:
        >>> codes = torch.tensor([[127, -127]], dtype=torch.int8)
        >>> integer_product(codes, codes)
        tensor([[32258]], dtype=torch.int32)
    """
    if x_codes.shape[-1] != weight_codes.shape[-1]:
        raise ShapeError(f"inputs have width {x_codes.shape[-1]}, the weights expect {weight_codes.shape[-1]}")
    return x_codes.int() @ weight_codes.int().T                    # (..., O)


def int8_product(x: Tensor, weight_codes: Tensor, weight_scale: Tensor) -> Tensor:
    """x W^T with x rounded row by row and W row by row: one scale for every pair of row and output.

    Args:
        x: (..., I) float.
        weight_codes: (O, I) int8.
        weight_scale: (O, 1), or () for one scale of the whole matrix.

    Returns:
        (..., O) in single or double precision.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339, section 3.1, equation 6. Their weights are (in, out) and scaled by
        column; ours are (out, in) and scaled by row, which is the same.

    Example:
        >>> weight_codes, weight_scale = quantize_rows(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        >>> int8_product(torch.tensor([[3.0, 1.0]]), weight_codes, weight_scale)
        tensor([[3.9921, 1.9843]])
    """
    x_codes, x_scale = quantize_rows(x)
    return integer_product(x_codes, weight_codes) * x_scale * weight_scale.squeeze(-1)


def mixed_product(x: Tensor, weight_codes: Tensor, weight_scale: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """x W^T, outlier columns in full precision and all others in integers.

    The rows' scales are found without the outliers: that is the point. Weights of the outlier columns are those that
    are stored, taken back from eight bits.

    Args:
        x: (..., I) float.
        weight_codes: (O, I) int8.
        weight_scale: (O, 1).
        threshold: see `outlier_columns`; infinite makes no column an outlier.

    Returns:
        (..., O) in the format of x.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339, section 3.2, equation 8.

    Example:
        >>> weight_codes, weight_scale = quantize_rows(torch.tensor([[127.0, -127.0]]))
        >>> x = torch.tensor([[0.01, 50.0]])
        >>> [round(mixed_product(x, weight_codes, weight_scale, t).item(), 2) for t in (6.0, torch.inf)]
        [-6348.73, -6350.0]
    """
    outliers = outlier_columns(x, threshold)                       # (I,)
    whole = int8_product(x.masked_fill(outliers, 0.0), weight_codes, weight_scale)  # (..., O)
    kept = weight_codes[:, outliers] * weight_scale                # (O, K)
    return whole.to(x.dtype) + x[..., outliers] @ kept.T.to(x.dtype)


class LLMInt8Linear(PackedLinear):
    """A linear layer with weights in eight bits, which multiplies in integers.

    Only its products without gradient are rounded on the side of the activations; with gradient it computes with the
    exact matrix of its weights.

    Args:
        layer: a linear layer, which is not changed.
        threshold: from which on a number makes its column an outlier; infinite for none.

    Attributes:
        codes: (O, I) int8.
        scale: (O, 1) fp32.

    Raises:
        ConfigError: if the layer is packed already, or the threshold is not positive.

    Example:
        >>> layer = LLMInt8Linear(nn.Linear(16, 4))
        >>> with torch.no_grad():
        ...     layer(torch.ones(3, 16)).shape
        torch.Size([3, 4])
    """

    def __init__(self, layer: nn.Module, threshold: float = THRESHOLD):
        if surgery.is_packed(layer):
            raise ConfigError(f"the layer is packed already ({layer.extra_repr()}); quantizing twice only adds errors")
        if not threshold > 0:
            raise ConfigError(f"threshold={threshold}: expected a positive number")
        super().__init__(layer)
        codes, scale = quantize_rows(surgery.matrix_of(layer).detach().float())
        self.threshold = threshold
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def settings(self) -> dict[str, object]:
        return {"threshold": self.threshold}

    @classmethod
    def empty(cls, layer: nn.Module, **settings: object) -> "LLMInt8Linear":
        return cls(layer, **settings)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """(O, I) float32."""
        return self.codes.float() * self.scale

    def multiply(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().multiply(x)
        return mixed_product(x, self.codes, self.scale, self.threshold)
