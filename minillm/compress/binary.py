"""One bit and one and a half: weights of one size with a sign, with or without zero, and how the two are related.

Each row of a matrix has one size alpha, the best for its signs in the sense of least squares. A ternary row is exactly
the sum of two binary ones, which is how BinaryBERT gets binary weights that begin as good as ternary ones.

Dimensions: I weights of a row, N weights.
"""

import torch
from torch import Tensor

from minillm.errors import DataError, ShapeError

THRESHOLD = 0.7  # of the mean absolute weight; smaller weights become 0
TRITS = 5  # values of -1, 0, 1 in a byte: 3^5 = 243 of its 256 values


def binarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The best alpha * sign(w) for every row: alpha is the mean of |w|; a weight of 0 counts as positive.

    Args:
        weight: (..., I) float.

    Returns:
        signs (..., I), -1 or 1 in the weight's number format, and alpha (..., 1), not negative.

    Source:
        Rastegari et al. 2016, arXiv:1603.05279, equations 4 and 6.

    Example:
        >>> signs, alpha = binarize(torch.tensor([3.0, -1.0, 0.0]))
        >>> signs.tolist(), round(alpha.item(), 4)
        ([1.0, -1.0, 1.0], 1.3333)
    """
    alpha = weight.abs().mean(-1, keepdim=True)                    # (..., 1)
    return torch.where(weight < 0, -torch.ones_like(weight), 1.0), alpha


def ternarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary weights by a rule of thumb: what is not above 0.7 mean|w| becomes 0; alpha is the mean |w| of the rest.

    Args:
        weight: (..., I) float.

    Returns:
        signs (..., I), -1, 0 or 1 in the weight's number format, and alpha (..., 1); 0 for a row of zeros.

    Source:
        Li, Zhang and Liu 2016, arXiv:1605.04711, section 2.

    Example:
        >>> signs, alpha = ternarize(torch.tensor([3.0, -1.0, 0.2]))  # the threshold is 0.98
        >>> signs.tolist(), alpha.tolist()
        ([1.0, -1.0, 0.0], [2.0])
    """
    size = weight.abs()
    kept = size > THRESHOLD * size.mean(-1, keepdim=True)
    total, n_kept = (size * kept).sum(-1, keepdim=True), kept.sum(-1, keepdim=True)  # (..., 1), (..., 1)
    return torch.where(kept, weight.sign(), 0.0), total / n_kept.clamp(min=1)


def best_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The ternary weights with the least squared error: the k largest are kept, for the k with the largest S_k^2 / k.

    S_k is the sum of the k largest |w| of a row. With alpha = S_k / k the squared error is sum w^2 - S_k^2 / k.

    Args:
        weight: (..., I) float.

    Returns:
        signs (..., I), -1, 0 or 1 in the weight's number format, and alpha (..., 1).

    Example:
        >>> signs, alpha = best_ternary(torch.tensor([3.0, -1.0, 0.2]))  # 9, 8 and 5.88 for k = 1, 2, 3
        >>> signs.tolist(), alpha.tolist()
        ([1.0, 0.0, 0.0], [3.0])
    """
    size = weight.abs()
    falling = size.sort(-1, descending=True).values                # (..., I)
    k = torch.arange(1, weight.shape[-1] + 1, device=weight.device)  # (I,)
    sums = falling.cumsum(-1)                                      # (..., I)
    best = (sums.square() / k).argmax(-1, keepdim=True)            # (..., 1)
    kept = size >= falling.gather(-1, best)                        # (..., I)
    return torch.where(kept, weight.sign(), 0.0), sums.gather(-1, best) / k[best]


def split_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices that add up to the weight, and whose binary forms add up to its ternary form (`ternarize`).

    A weight that stays is shared out, a w and (1 - a) w. One that becomes 0 is moved apart by b, so that its two signs
    cancel: w + b and -b if it is positive, b and w - b if not. For each row a makes the two mean sizes equal, and b
    makes them half of the ternary alpha.

    Args:
        weight: (..., I) float.

    Returns:
        (..., I) and (..., I).

    Raises:
        DataError: if a row's small weights are so large and so one-sided that a is not between 0 and 1.

    Source:
        Bai et al. 2020, arXiv:2012.15701, section 3.2; a and b follow from the two conditions on the mean sizes.

    Example:
        >>> weight = torch.tensor([3.0, -1.0, 0.2])
        >>> first, second = split_ternary(weight)
        >>> [round(w, 3) for w in first.tolist()], [round(w, 3) for w in second.tolist()]
        ([1.425, -0.475, 1.1], [1.575, -0.525, -0.9])
        >>> [round(w, 4) for w in sum(signs * alpha for signs, alpha in map(binarize, (first, second))).tolist()]
        [2.0, -2.0, 0.0]
    """
    signs, alpha = ternarize(weight)
    size, kept = weight.abs(), signs != 0
    n_kept = kept.sum(-1, keepdim=True)                            # (..., 1)
    of_kept = n_kept * alpha                                       # (..., 1)
    lopsided = (weight * ~kept).sum(-1, keepdim=True)              # (..., 1)
    share = 0.5 - 0.5 * lopsided / torch.where(of_kept == 0, 1.0, of_kept)  # (..., 1)
    if not bool(((share > 0) & (share < 1)).all()):
        raise DataError("the small weights of a row, added up with their signs, outweigh its large ones, so that no "
                        "split has the right signs; take the row's mean out, or leave it ternary")  # fmt: skip
    n_zero = weight.shape[-1] - n_kept                             # (..., 1), where it is 0 no weight takes the shift
    shift = (weight.shape[-1] * alpha - size.sum(-1, keepdim=True)) / (2 * n_zero)  # (..., 1)
    first = torch.where(kept, share * weight, torch.where(weight > 0, weight + shift, shift))  # (..., I)
    return first, weight - first


def pack_trits(signs: Tensor) -> Tensor:
    """Five values of -1, 0, 1 to a byte: digits 0, 1, 2 of a number in base three, the first being the ones.

    So a weight takes 1.6 bits; log2(3) = 1.585 is the least there is. What is missing in the last byte is 0.

    Args:
        signs: (N,) of -1, 0 and 1.

    Returns:
        (ceil(N / 5),) uint8, 0 to 242.

    Example:
        >>> pack_trits(torch.tensor([1, -1, 0, 0, 0, -1])).tolist()  # 2 + 0 + 9 + 27 + 81, and 0 + 3 + 9 + 27 + 81
        [119, 120]
    """
    digits = torch.nn.functional.pad(signs.int() + 1, (0, -len(signs) % TRITS), value=1).view(-1, TRITS)
    return (digits * 3 ** torch.arange(TRITS, device=digits.device)).sum(-1).to(torch.uint8)


def unpack_trits(packed: Tensor, n_weights: int) -> Tensor:
    """The other way: (ceil(N / 5),) bytes to (N,) of -1, 0 and 1, int8.

    Raises:
        ShapeError: if the bytes are not those of so many weights.

    Example:
        >>> unpack_trits(torch.tensor([119, 120], dtype=torch.uint8), 6).tolist()
        [1, -1, 0, 0, 0, -1]
    """
    if packed.numel() != (expected := -(-n_weights // TRITS)):
        raise ShapeError(f"{packed.numel()} bytes were given; {n_weights} weights, five to a byte, take {expected}")
    digits = packed.int()[:, None] // 3 ** torch.arange(TRITS, device=packed.device) % 3
    return (digits - 1).to(torch.int8).view(-1)[:n_weights]
