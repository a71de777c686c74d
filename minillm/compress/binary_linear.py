"""Linear layers with binary, ternary and twice binary weights: how they are rounded in training, and stored after it.

Dimensions: O rows of a weight matrix, I columns, N = O I weights.
"""

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress.binary import best_ternary, binarize, pack_trits, split_ternary, ternarize, unpack_trits
from minillm.compress.packed_linear import PackedLinear
from minillm.compress.packing import pack, unpack
from minillm.compress.qat import FakeQuantLinear, Rounding, straight_through
from minillm.errors import ConfigError


class BinaryLinear(PackedLinear):
    """A linear layer with weights alpha * -1 or 1: one bit a weight and 16 for the alpha of each row.

    Args:
        layer: a linear layer, which is not changed.

    Attributes:
        packed: (O, ceil(I / 8)) uint8.
        alpha: (O,) fp16.

    Example:
        >>> from minillm.compress.packed_linear import stored_bytes
        >>> layer = BinaryLinear(nn.Linear(512, 64, bias=False))
        >>> 8 * stored_bytes(layer) / (64 * 512)
        1.03125
    """

    def __init__(self, layer: nn.Module):
        refuse_packed(layer)
        super().__init__(layer)
        signs, alpha = binarize(surgery.matrix_of(layer).detach())
        self.register_buffer("packed", pack((signs > 0).to(torch.uint8), bits=1))
        self.register_buffer("alpha", alpha[:, 0].half())

    def matrix(self) -> Tensor:
        signs = 2.0 * unpack(self.packed, 1, self.d_in) - 1.0      # (O, I)
        return signs * self.alpha.float()[:, None]


class TernaryLinear(PackedLinear):
    """A linear layer with weights alpha * -1, 0 or 1: 1.6 bits a weight and 16 for the alpha of each row.

    Args:
        layer: a linear layer, which is not changed.
        best: whether the zeros are those of the least error, or by the rule of thumb.

    Attributes:
        packed: (ceil(N / 5),) uint8.
        alpha: (O,) fp16.
    """

    def __init__(self, layer: nn.Module, best: bool = False):
        refuse_packed(layer)
        super().__init__(layer)
        self.best = best
        signs, alpha = (best_ternary if best else ternarize)(surgery.matrix_of(layer).detach())
        self.register_buffer("packed", pack_trits(signs.reshape(-1)))
        self.register_buffer("alpha", alpha[:, 0].half())

    def settings(self) -> dict[str, object]:
        return {"best": self.best}

    def matrix(self) -> Tensor:
        signs = unpack_trits(self.packed, self.d_out * self.d_in).view(self.d_out, self.d_in)  # (O, I)
        return signs * self.alpha.float()[:, None]


class TwiceBinaryLinear(PackedLinear):
    """A linear layer whose matrix is the sum of two binary ones: two bits a weight, 32 for the alphas of each row.

    Args:
        layer: a linear layer, which is not changed. The first matrix comes from its weight, if there is a second.
        second: (O, I); without it the layer's weight is split into two, see `split_ternary`.

    Attributes:
        packed: (2, O, ceil(I / 8)) uint8.
        alpha: (2, O) fp16.
    """

    def __init__(self, layer: nn.Module, second: Tensor | None = None):
        refuse_packed(layer)
        super().__init__(layer)
        first = surgery.matrix_of(layer).detach()                  # (O, I)
        halves = split_ternary(first) if second is None else (first, second)
        signs, alpha = binarize(torch.stack(halves))
        self.register_buffer("packed", pack((signs > 0).to(torch.uint8), bits=1))
        self.register_buffer("alpha", alpha[..., 0].half())

    def matrix(self) -> Tensor:
        signs = 2.0 * unpack(self.packed, 1, self.d_in) - 1.0
        return (signs * self.alpha.float()[..., None]).sum(0)


def refuse_packed(layer: nn.Module) -> None:
    """Refuse a layer that is in few bits already."""
    if surgery.is_packed(layer):
        raise ConfigError(f"the layer is packed already ({layer.extra_repr()}); quantizing twice only adds errors")


class BinaryRounding(Rounding):
    """alpha * sign(w) for each row, alpha rounded to 16 bits as it is stored; straight through to every weight."""

    def forward(self, weight: Tensor) -> Tensor:
        signs, alpha = binarize(weight.detach())
        return straight_through(weight, signs * alpha.half().to(weight.dtype))

    def packed(self, layer: nn.Module) -> PackedLinear:
        return BinaryLinear(layer)


class TernaryRounding(Rounding):
    """alpha * -1, 0 or 1 for each row, alpha rounded to 16 bits as it is stored; straight through to every weight.

    Args:
        best: whether the zeros are those of the least error, or by the rule of thumb.
    """

    def __init__(self, best: bool = False):
        super().__init__()
        self.best = best

    def forward(self, weight: Tensor) -> Tensor:
        signs, alpha = (best_ternary if self.best else ternarize)(weight.detach())
        return straight_through(weight, signs * alpha.half().to(weight.dtype))

    def packed(self, layer: nn.Module) -> PackedLinear:
        return TernaryLinear(layer, self.best)


class TwiceBinaryRounding(Rounding):
    """The sum of two binary matrices, of the layer's weight and of a second one that is learned as well.

    Args:
        second: (O, I).
    """

    def __init__(self, second: Tensor):
        super().__init__()
        self.second = nn.Parameter(second)
        self.binary = BinaryRounding()

    def forward(self, weight: Tensor) -> Tensor:
        return self.binary(weight) + self.binary(self.second)

    def packed(self, layer: nn.Module) -> PackedLinear:
        return TwiceBinaryLinear(layer, self.second.detach())


@torch.no_grad()
def split_layers(model: nn.Module) -> int:
    """Ternary weight splitting: every layer that rounds to ternary weights becomes the sum of two binary ones.

    The model computes the same as before, up to rounding, and has twice as many weights to go on learning with. Make
    the optimizer anew.

    Args:
        model: prepared with `TernaryRounding` by the rule of thumb; is changed, and its ternary form is not kept.

    Returns:
        how many layers were split.

    Raises:
        ConfigError: if there is none.
        DataError: if one cannot be split, see `split_ternary`. The model is as it was then.

    Source:
        Bai et al. 2020, arXiv:2012.15701, section 3.2.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, FakeQuantLinear)]
    layers = [layer for layer in layers if isinstance(layer.rounding, TernaryRounding) and not layer.rounding.best]
    if not layers:
        raise ConfigError("no layer rounds to ternary weights by the rule of thumb; prepare_qat(model, lambda _: "
                          "TernaryRounding()) before training, split_layers after it")  # fmt: skip
    halves = [split_ternary(surgery.matrix_of(layer.base)) for layer in layers]
    for layer, (first, second) in zip(layers, halves, strict=True):
        surgery.matrix_of(layer.base).copy_(first)
        layer.rounding = TwiceBinaryRounding(second)
    return len(layers)
