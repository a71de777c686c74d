"""Linear maps packed for generation on a CPU, where reading the weights takes nearly all of the time.

One new token is the product of one row with each weight. The general matrix product reads a weight at about 10 GB/s on
the two AVX-512 cores where this was measured, oneDNN's packed product at twice that, near what a plain sum reaches.
"""

import torch
from torch import Tensor, nn

from minillm.models.gpt import GPT
from minillm.nn.linear import Linear

PACKED_TYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """A linear map that can only be applied: its weight lies in the order in which oneDNN reads it.

    Args:
        linear: the map to copy; on the CPU, in float32 or bfloat16.
    """

    def __init__(self, linear: Linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out), without gradients."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


@torch.no_grad()
def pack_linears(model: GPT) -> int:
    """Replace the linear maps of all blocks by packed ones, as far as this machine has the kernel and gets it right.

    The model can only generate afterwards: its blocks have no weights that could be saved or trained.

    Args:
        model: changed in place.

    Returns:
        How many maps were packed; 0 on a GPU, in other number types and where torch lacks the kernel.

    Example:
        >>> from minillm.models.registry import model_config
        >>> pack_linears(GPT(model_config("gpt2", "nano", vocab_size=5, max_seq_len=8)).double())
        0
    """
    parents = [module for module in model.blocks.modules() if not isinstance(module, Linear)]
    places = [(parent, name, child) for parent in parents for name, child in parent.named_children()]
    linears = [place for place in places if isinstance(place[2], Linear)]
    if not linears or not all(kernel_works_for(linear) for _, _, linear in linears):
        return 0
    for parent, name, linear in linears:
        setattr(parent, name, PackedLinear(linear))
    return len(linears)


def kernel_works_for(linear: Linear) -> bool:
    """Whether torch has the packed product here, which is no public interface, and it agrees with the plain one."""
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype not in PACKED_TYPES or not torch.backends.mkldnn.is_available():
        return False
    probe = torch.linspace(-1.0, 1.0, weight.shape[1], dtype=weight.dtype)[None]  # (1, d_in)
    expected = linear(probe).float()                               # (1, d_out)
    try:
        difference = PackedLinear(linear)(probe).float() - expected  # (1, d_out)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return bool(difference.norm() <= 0.02 * expected.norm())
