"""The small functions a language model is made of, written so that each can be read in one breath.

The modules of this package compute the same values with the library's fused kernels (`kernels="torch"`), or call these
very functions (`kernels="naive"`); tests prove both equal in value and gradient.
"""

import math

import torch
from torch import Tensor

from minillm.errors import ConfigError

KERNELS = ("torch", "naive", "tiled")


def check_kernels(kernels: str) -> None:
    """Check the name of the implementation that a module is asked to use.

    Args:
        kernels: "torch" for the library's fused kernels, "naive" for the readable functions of this package, "tiled"
            for our own attention in tiles, with the library's kernels for everything else.

    Raises:
        ConfigError: for any other name.
    """
    if kernels not in KERNELS:
        raise ConfigError(f"kernels is {kernels!r}, expected one of {KERNELS}")


def softmax(x: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last dimension, without overflow: the largest entry is subtracted first.

    Args:
        x: (..., N) scores; -inf means "never". A row of nothing but -inf gives zeros.

    Returns:
        (..., N), each row sums to 1 (or is all zeros).

    Example:
        >>> softmax(torch.tensor([2.0, 2.0])).tolist()
        [0.5, 0.5]
        >>> softmax(torch.tensor([-math.inf, -math.inf])).tolist()
        [0.0, 0.0]
    """
    if x.shape[-1] == 0:
        return x
    largest = x.detach().amax(dim=-1, keepdim=True)                # (..., 1)
    largest = largest.masked_fill(largest == -math.inf, 0.0)       # (..., 1)
    weights = (x - largest).exp()                                  # (..., N)
    total = weights.sum(dim=-1, keepdim=True)                      # (..., 1)
    return weights / total.masked_fill(total == 0, 1.0)            # (..., N)


def log_softmax(x: Tensor) -> Tensor:
    """The logarithm of softmax over the last dimension, exact where softmax itself would round to 0 or 1.

    Args:
        x: (..., N) finite scores.

    Returns:
        (..., N) log-probabilities in nats.

    Example:
        >>> log_softmax(torch.tensor([1000.0, 0.0])).tolist()
        [0.0, -1000.0]
    """
    shifted = x - x.detach().amax(dim=-1, keepdim=True)            # (..., N)
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()  # (..., N)


def gelu(x: Tensor) -> Tensor:
    """x times the probability that a standard normal number is below x: x * Phi(x).

    Args:
        x: any shape.

    Returns:
        The same shape.

    Source:
        Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.

    Example:
        >>> round(gelu(torch.tensor(1.0)).item(), 4)
        0.8413
    """
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU by tanh that GPT-2 was trained with: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).

    Args:
        x: any shape.

    Returns:
        The same shape, within 0.0005 of `gelu`.

    Source:
        Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.

    Example:
        >>> round(gelu_tanh(torch.tensor(1.0)).item(), 4)
        0.8412
    """
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), the smooth gate of SwiGLU; also called swish.

    Args:
        x: any shape.

    Returns:
        The same shape.

    Source:
        Elfwing, Uchibe and Doya 2017, arXiv:1702.03118, eq. (5).

    Example:
        >>> round(silu(torch.tensor(1.0)).item(), 4)
        0.7311
    """
    return x * torch.sigmoid(x)


def relu(x: Tensor) -> Tensor:
    """The positive part: max(x, 0).

    Args:
        x: any shape.

    Returns:
        The same shape.

    Source:
        Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines", ICML.

    Example:
        >>> relu(torch.tensor([-1.0, 3.0])).tolist()
        [0.0, 3.0]
    """
    return torch.where(x > 0, x, 0.0)


def relu2(x: Tensor) -> Tensor:
    """The square of the positive part: max(x, 0)^2.

    Args:
        x: any shape.

    Returns:
        The same shape.

    Source:
        So et al. 2021, arXiv:2109.08668, section 3.

    Example:
        >>> relu2(torch.tensor([-1.0, 3.0])).tolist()
        [0.0, 9.0]
    """
    return relu(x).square()


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Shift and scale each vector to mean 0 and variance 1, then apply a learned scale and shift.

    Args:
        x: (..., C).
        weight: (C,) learned scale, or None for 1.
        bias: (C,) learned shift, or None for 0.
        epsilon: added to the variance (the one that divides by C) so that a constant vector gives zeros.

    Returns:
        (..., C).

    Source:
        Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. (4).

    Example:
        >>> layer_norm(torch.tensor([1.0, 3.0]), epsilon=0.0).tolist()
        [-1.0, 1.0]
    """
    centred = x - x.mean(dim=-1, keepdim=True)                     # (..., C)
    variance = centred.square().mean(dim=-1, keepdim=True)         # (..., 1)
    normed = centred / torch.sqrt(variance + epsilon)              # (..., C)
    if weight is not None:
        normed = normed * weight                                   # (..., C)
    return normed if bias is None else normed + bias               # (..., C)


def rms_norm(x: Tensor, weight: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Scale each vector to a root mean square of 1, then apply a learned scale.

    Args:
        x: (..., C).
        weight: (C,) learned scale, or None for 1.
        epsilon: added to the mean square so that a zero vector stays zero.

    Returns:
        (..., C).

    Source:
        Zhang and Sennrich 2019, arXiv:1910.07467, eq. (4).

    Example:
        >>> rms_norm(torch.tensor([1.0, 7.0]), epsilon=0.0).tolist()
        [0.20000000298023224, 1.399999976158142]
    """
    mean_square = x.square().mean(dim=-1, keepdim=True)            # (..., 1)
    normed = x * torch.rsqrt(mean_square + epsilon)                # (..., C)
    return normed if weight is None else normed * weight           # (..., C)


def dropout(x: Tensor, probability: float, training: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Set each entry to zero with the given probability and scale the others up so that the mean stays.

    Args:
        x: any shape.
        probability: chance of dropping an entry, from 0 up to but not including 1.
        training: False returns x unchanged.
        generator: where the random numbers come from; None is torch's own default generator.

    Returns:
        The same shape; entries are 0 or x / (1 - probability).

    Raises:
        ConfigError: if the probability is outside [0, 1).

    Source:
        Srivastava et al. 2014, Journal of Machine Learning Research 15; scaled at training time.
    """
    if not 0.0 <= probability < 1.0:
        raise ConfigError(f"dropout probability is {probability}, expected 0 <= probability < 1")
    if not training or probability == 0.0:
        return x
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= probability
    return x * kept / (1.0 - probability)


def cap_logits(logits: Tensor, cap: float) -> Tensor:
    """Squeeze scores smoothly into (-cap, cap): cap * tanh(logits / cap); small scores hardly change.

    Args:
        logits: any shape.
        cap: the bound, positive; 0 means no cap.

    Returns:
        The same shape.

    Source:
        Gemma Team 2024, arXiv:2408.00118, section 2 (soft-capping).

    Example:
        >>> round(cap_logits(torch.tensor(30.0), 15.0).item(), 3)
        14.46
    """
    return logits if cap == 0.0 else cap * torch.tanh(logits / cap)
