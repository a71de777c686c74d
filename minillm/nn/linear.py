"""The linear layer: a matrix product with a weight stored as (out, in), and a bias only when asked for."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ShapeError


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias on the last dimension.

    Args:
        x: (..., d_in).
        weight: (d_out, d_in).
        bias: (d_out,) or None.

    Returns:
        (..., d_out).

    Raises:
        ShapeError: if the last dimension of x is not d_in.

    Example:
        >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])).tolist()
        [1.0, 3.0, 6.0]
    """
    if x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"input has width {x.shape[-1]}, the weight {tuple(weight.shape)} expects {weight.shape[1]}")
    product = x @ weight.T                                         # (..., d_out)
    return product if bias is None else product + bias             # (..., d_out)


class Linear(nn.Module):
    """A learned linear map from `d_in` to `d_out` numbers.

    `product` is what multiplies; `minillm.nn.onednn_linear.use_onednn` puts a faster one in its place.

    Args:
        d_in: width of the input.
        d_out: width of the output.
        bias: whether to add a learned vector (zero at first).
        std: standard deviation of the normal initial weights; 0 starts the layer at zero.
        generator: where the initial weights come from; None is torch's own default generator.
    """

    product = staticmethod(F.linear)

    def __init__(
        self,
        d_in: int,
        d_out: int,
        bias: bool = False,
        std: float = 0.02,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(normal_weight(d_out, d_in, std, generator))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        return self.product(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        d_out, d_in = self.weight.shape
        return f"d_in={d_in}, d_out={d_out}, bias={self.bias is not None}"


def normal_weight(n_rows: int, n_columns: int, std: float, generator: torch.Generator | None) -> Tensor:
    """A matrix of independent normal numbers with mean 0.

    Args:
        n_rows: number of rows.
        n_columns: number of columns.
        std: standard deviation; 0 gives zeros and draws nothing.
        generator: where the numbers come from; None is torch's own default generator.

    Returns:
        (n_rows, n_columns) float.
    """
    weight = torch.zeros(n_rows, n_columns)
    return weight if std == 0.0 else weight.normal_(0.0, std, generator=generator)
