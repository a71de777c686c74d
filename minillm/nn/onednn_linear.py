"""Linear maps for training on a CPU by oneDNN's matrix product instead of the one that torch takes for fp32.

On AMD processors torch's own (MKL) does not use the widest vector instructions: measured on a core of an EPYC with
AVX-512, oneDNN's product takes half the time. On one with AVX2 alone it is the slower one (a whole training step took
1.14 to 1.29 times as long, `benchmarks/products.py`), so `use_onednn` leaves such machines to MKL. The values agree but
for rounding, so a model trained this way is as good as the other and not the same to the last bit.

Dimensions: N rows (all leading dimensions together).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SMALLEST = 1 << 23  # multiplications below which the call costs more than the faster product saves (measured)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias, without a derivative; (N, d_in), (d_out, d_in) and (d_out,) to (N, d_out), fp32."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def packed_product(weight: Tensor, n_rows: int) -> Callable[[Tensor], Tensor]:
    """`product` with one weight, made for many calls: the weight is put in oneDNN's own order first.

    Args:
        weight: (d_out, d_in), fp32.
        n_rows: N of the calls.

    Returns:
        a function from (N, d_in) to (N, d_out).
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, n_rows)
    return lambda x: product(x, packed)


class OneDNNLinear(torch.autograd.Function):
    """`minillm.nn.linear.linear` on rows. With y = x W^T + b and the gradient g by y: by x it is g W, by W it is
    g^T x, and by b the sum of the rows of g."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_needs, weight_needs, bias_needs = ctx.needs_input_grad
        by_x = product(gradient, weight.T.contiguous()) if x_needs else None  # (N, d_in)
        by_weight = product(gradient.T, x.T) if weight_needs else None  # (d_out, d_in)
        return by_x, by_weight, gradient.sum(dim=0) if bias_needs else None


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias on the last dimension, by oneDNN for fp32 on a CPU and by torch's choice otherwise.

    Args:
        x: (..., d_in).
        weight: (d_out, d_in).
        bias: (d_out,) or None.

    Returns:
        (..., d_out).
    """
    if torch.is_autocast_enabled(x.device.type) or not fits_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])                              # (N, d_in)
    return OneDNNLinear.apply(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])  # (..., d_out)


def fits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether both are fp32 on the CPU, and there is enough to multiply."""
    enough = x.numel() > 0 and x.numel() * weight.shape[0] >= SMALLEST
    return enough and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"


def use_onednn(model: nn.Module, anyway: bool = False) -> int:
    """Let all linear maps of a model, those of recurrent layers and its head too, multiply by oneDNN, if it is faster.

    Args:
        model: changed in place; weights, names and checkpoints stay what they are. Maps in other number types or on a
            GPU go on as before.
        anyway: also on processors where torch's own product is the faster one.

    Returns:
        How many maps were changed; 0 where torch lacks the product, or it is wrong or slower.

    Example:
        >>> from minillm.nn.linear import Linear
        >>> use_onednn(nn.Sequential(Linear(2, 3), nn.Tanh())) <= 1
        True
    """
    if not (anyway or onednn_is_faster()) or not onednn_works():
        return 0
    found = [module for module in model.modules() if hasattr(module, "product")]
    for module in found:
        module.product = onednn_linear
    return len(found)


def onednn_is_faster() -> bool:
    """Whether the processor has the instructions with which it is: AVX-512. Not measured anew for each run, so that a
    run that is resumed multiplies as before."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def onednn_works() -> bool:
    """Whether torch has the product here, which is no public interface, and it and its gradients agree with torch's."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1.0, 1.0, 12).view(3, 4).requires_grad_()  # (N, d_in)
    weight = torch.linspace(2.0, -1.0, 20).view(5, 4).requires_grad_()  # (d_out, d_in)
    try:
        outputs = OneDNNLinear.apply(x, weight, None), F.linear(x, weight)
        results = [torch.autograd.grad(each.square().sum(), (x, weight)) for each in outputs]
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(*results, strict=True))
