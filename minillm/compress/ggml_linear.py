"""A linear layer stored in one of GGML's block types.

Dimensions: O width of the output, I width of the input.
"""

import numpy as np
import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress import ggml
from minillm.compress.packed_linear import PackedLinear
from minillm.errors import ConfigError


class GGMLLinear(PackedLinear):
    """A linear layer whose matrix is the bytes of a block type.

    Args:
        layer: a linear layer, which is not changed.
        block_type: the format wanted; rows that are no whole number of its blocks take `ggml.fitting_type`'s.

    Attributes:
        blocks: (O, row bytes) uint8.
        block_type: the format taken, which `repr` shows beside the one wanted.

    Raises:
        ConfigError: if the layer is packed already, or there is no such format.
        DataError: if a weight is not finite or too large.

    Example:
        >>> layer = GGMLLinear(nn.Linear(96, 8, bias=False), "q4_k")
        >>> layer.block_type, layer(torch.zeros(2, 96)).shape
        ('q5_0', torch.Size([2, 8]))
    """

    def __init__(self, layer: nn.Module, block_type: str = "q4_k"):
        if surgery.is_packed(layer):
            raise ConfigError(f"the layer is packed already ({layer.extra_repr()}); quantizing twice only adds errors")
        super().__init__(layer)
        self.wanted, self.block_type = block_type, ggml.fitting_type(block_type, self.d_in)
        matrix = surgery.matrix_of(layer).detach().float().cpu().numpy()  # (O, I)
        self.register_buffer("blocks", torch.from_numpy(ggml.encode(matrix, self.block_type)))

    def settings(self) -> dict[str, object]:
        return {"block_type": self.wanted}

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """(O, I) float32, decoded by numpy on the CPU, moved to where the bytes are."""
        decoded = ggml.decode(self.blocks.cpu().numpy(), self.block_type)
        return torch.from_numpy(np.ascontiguousarray(decoded)).to(self.blocks.device)

    def extra_repr(self) -> str:
        instead = "" if self.block_type == self.wanted else f" instead of {self.wanted}"
        return f"{super().extra_repr()}, block_type={self.block_type}{instead}"
