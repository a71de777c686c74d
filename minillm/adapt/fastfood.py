"""Fastfood: a large random matrix that is never written down, H G Pi H B, and is multiplied with in n log n steps.

Random signs B, a Walsh-Hadamard transform H, a random order Pi, normal numbers G, and H once more; its first d columns
and D rows are used.

Dimensions: D rows, d columns, n the next power of two from D on.
"""

import math

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError, ShapeError


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x without H: sums and differences of halves, then of quarters, and so on; n log n additions.

    Args:
        x: (..., n) with n a power of two.

    Returns:
        (..., n); twice applied it is n times x.

    Raises:
        ShapeError: if n is no power of two.

    Source:
        Le, Sarlos and Smola 2013, Fastfood, section 3; H is not divided by the root of n.

    Example:
        >>> walsh_hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
        [10.0, -2.0, -4.0, 0.0]
    """
    size = size_of(x)
    half, shape = size // 2, x.shape
    while half:
        upper, lower = x.reshape(-1, size // (2 * half), 2, half).unbind(2)
        x = torch.stack([upper + lower, upper - lower], dim=2)
        half //= 2
    return x.reshape(shape)


def fast_walsh_hadamard(x: Tensor) -> Tensor:
    """`walsh_hadamard` by small matrices: H of 16^k numbers is a product of k steps, each with the H of 16 numbers.

    Fewer passes through memory: a quarter of the time for four million numbers.

    Args:
        x: (..., n) with n a power of two.

    Returns:
        (..., n).

    Raises:
        ShapeError: if n is no power of two.

    Example:
        >>> fast_walsh_hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
        [10.0, -2.0, -4.0, 0.0]
    """
    small = walsh_hadamard(torch.eye(16, dtype=x.dtype, device=x.device))
    size, shape, done = size_of(x), x.shape, 1
    while done < size:
        step = min(16, size // done)
        x = small[:step, :step] @ x.reshape(-1, step, done)
        done *= step
    return x.reshape(shape)


def size_of(x: Tensor) -> int:
    """The last dimension of x, which must be a power of two.

    Raises:
        ShapeError: if it is none.
    """
    size = x.shape[-1]
    if size & (size - 1) or size == 0:
        raise ShapeError(f"the last dimension is {size}, expected a power of two; fill up with zeros")
    return size


def power_of_two(n: int) -> int:
    """The next power of two from n on.

    Example:
        >>> power_of_two(5), power_of_two(8)
        (8, 8)
    """
    return 1 << (n - 1).bit_length()


class Fastfood(nn.Module):
    """A random matrix P (D, d) that is never written down, times a vector, and its transpose times one.

    On average over P, |P x| = |x|, and the columns are nearly at right angles.

    Args:
        n_out: D.
        n_in: d, at most D.
        seed: of signs, order and normal numbers, which are the same on every device and in every number format.

    Raises:
        ConfigError: if d is above D: no more directions are there.

    Source:
        Le, Sarlos and Smola 2013; as a projection of models: Li et al. 2018, arXiv:1804.08838, section S7.

    Example:
        >>> projection = Fastfood(6, 2, seed=0)
        >>> projection(torch.ones(2)).shape, projection.transposed(torch.ones(6)).shape
        (torch.Size([6]), torch.Size([2]))
    """

    def __init__(self, n_out: int, n_in: int, seed: int):
        super().__init__()
        if n_in > n_out:
            raise ConfigError(f"{n_in} dimensions were asked for; only {n_out} numbers are there to be moved")
        self.n_out, self.n_in = n_out, n_in
        n, n_short = power_of_two(n_out), power_of_two(n_in)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (n_short,), generator=generator).float() * 2 - 1
        normal = torch.randn(n, generator=generator)
        scale = 1.0 / math.sqrt(n_out * float(normal.double().square().sum()))
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("order", torch.randperm(n, generator=generator), persistent=False)
        self.register_buffer("normal", normal * scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """P x.

        A vector that is zero but for its first numbers has a transform that repeats, so the first H is a short one.

        Args:
            x: (d,).

        Returns:
            (D,).
        """
        signed = nn.functional.pad(x, (0, len(self.signs) - self.n_in)) * self.signs
        mixed = fast_walsh_hadamard(signed).repeat(len(self.order) // len(signed))[self.order]  # (n,)
        return fast_walsh_hadamard(mixed * self.normal)[: self.n_out]

    def transposed(self, y: Tensor) -> Tensor:
        """P^T y: the same steps backwards; what the gradient by P x becomes by x.

        Args:
            y: (D,).

        Returns:
            (d,).
        """
        mixed = fast_walsh_hadamard(nn.functional.pad(y, (0, len(self.order) - self.n_out))) * self.normal
        sorted_again = torch.empty_like(mixed).index_copy_(0, self.order, mixed)
        short = sorted_again.view(-1, len(self.signs)).sum(0)
        return (fast_walsh_hadamard(short) * self.signs)[: self.n_in]
