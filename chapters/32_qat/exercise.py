"""Chapter 32, Quantization-aware training: fill in the holes (17 points).

`minillm course test 32` tests this file, `minillm course test 32 32.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.compress.binary import TRITS, ternarize
from minillm.compress.qat import FakeQuantLinear, LearnedStep, RangeRounding, prepare_qat, scale_gradient
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models.gpt import GPT
from minillm.nn.linear import Linear
from minillm.train.accumulation import accumulate_gradients
from minillm.train.optim import AdamW


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in the forward pass; in the backward pass the gradient goes on to `values`, unchanged.

    Args:
        values: any size, finite.
        rounded: of the same size; gets no gradient.

    Returns:
        exactly `rounded`, as numbers.

    Source:
        Bengio et al. 2013, arXiv:1308.3432, section 4, who credit a lecture of Hinton's of 2012.

    Example:
        >>> values = torch.tensor([0.2, 1.7], requires_grad=True)
        >>> out = straight_through(values, values.round())
        >>> out.tolist(), torch.autograd.grad(out, values, torch.tensor([3.0, 5.0]))[0].tolist()
        ([0.0, 2.0], [3.0, 5.0])
    """
    # TASK 32.1 (1 point)
    # What is x - x.detach() as a number, and what is its gradient? The result must be `rounded` to the last bit,
    # so look at what is added to what.
    raise NotImplementedError("task 32.1")


def fake_quantize(values: Tensor, scale: Tensor, zero: Tensor, n_levels: int) -> Tensor:
    """Round to the grid scale (q - zero) of codes q = 0 .. n_levels - 1, and stay in float; halves go to the even step.

    The gradient by a value is 1 where its code is on the grid and 0 where it was cut off. By the scale it is
    round(v / scale) - v / scale on the grid, and q - zero at the end where v was cut off.

    Args:
        values: any size, float.
        scale: of a size that fits, not 0.
        zero: likewise, whole numbers: the code that means 0.
        n_levels: codes that there are.

    Returns:
        the size of the values.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 3; the gradient as in torch's `fake_quantize_per_tensor_affine`.

    Example:
        >>> values = torch.tensor([-3.0, 0.6, 1.7], requires_grad=True)
        >>> out = fake_quantize(values, torch.tensor(0.5), torch.tensor(1.0), 4)
        >>> out.tolist(), torch.autograd.grad(out.sum(), values)[0].tolist()
        ([-0.5, 0.5, 1.0], [0.0, 1.0, 0.0])
    """
    # TASK 32.2 (3 points)
    # Divide, round straight through, add the zero, cut off at both ends of the grid, and go back. Where the cut
    # is made by torch's clamp, its gradient is right by itself. Write down the four values of the chapter's table
    # before you begin.
    raise NotImplementedError("task 32.2")


def lsq_quantize(values: Tensor, step: Tensor, n_below: int, n_above: int, n_sharing: int) -> Tensor:
    """Round to whole multiples of a step that is learned: cut off v / step to -n_below .. n_above, round, times step.

    The gradient by a value is 1 inside the range and 0 outside. By the step it is round(v / step) - v / step inside,
    -n_below under and n_above over the range; and all of that times 1 / sqrt(n_sharing n_above), so that the step
    learns at the pace of the weights.

    Args:
        values: any size, float.
        step: of a size that fits, positive.
        n_below, n_above: multiples below and above zero: 2^(b-1) and 2^(b-1) - 1 for b bits.
        n_sharing: values that share one step.

    Returns:
        the size of the values.

    Source:
        Esser et al. 2019, arXiv:1902.08153, equations 1 to 3 and section 2.2.

    Example:
        >>> step = torch.tensor(0.5, requires_grad=True)
        >>> out = lsq_quantize(torch.tensor([-3.0, 0.3, 1.7]), step, 2, 1, n_sharing=3)
        >>> out.tolist(), round(torch.autograd.grad(out.sum(), step)[0].item(), 4)  # -2 + 0.4 + 1, over sqrt(3)
        ([-1.0, 0.5, 0.5], -0.3464)
    """
    # TASK 32.3 (3 points)
    # Here the cut comes before the rounding. scale_gradient changes nothing but the gradient: give it the step
    # before anything else is done with it. How many weights share the step, and what is the root of that number
    # times n_above?
    raise NotImplementedError("task 32.3")


def soft_target_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the divergence KL(teacher || student) of the distributions softmax(logits / T), in nats.

    With the factor T^2 the gradient by the logits is T (student's - teacher's probabilities), whose size hardly depends
    on T; without it a high temperature would switch the loss off.

    Args:
        logits: (..., V) of the student, finite.
        teacher_logits: (..., V); gets no gradient.
        temperature: T, above 0; a high one shows what the teacher thinks of the unlikely tokens.

    Returns:
        (...), one loss for each position, not negative; float32 when the logits are of 16 bits.

    Raises:
        ShapeError: if the two differ in shape.
        ConfigError: if the temperature is not positive.

    Source:
        Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    Example:
        >>> round(soft_target_loss(torch.zeros(2), torch.tensor([2.0, 0.0]), temperature=2.0).item(), 4)
        0.4438
    """
    # TASK 32.4 (2 points)
    # Both distributions are softened by T, and both logarithms are best taken by log_softmax. The teacher's
    # probability stands before the difference of the logarithms. Which gradients may reach the teacher?
    raise NotImplementedError("task 32.4")


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
    # TASK 32.5 (1 point)
    # One alpha for each row, kept as a dimension of size 1. torch.sign(0) is 0, which is no binary weight.
    raise NotImplementedError("task 32.5")


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
    # TASK 32.6 (2 points)
    # Sort the sizes downwards and add them up as you go; S_k^2 / k tells for each k how much of the square sum is
    # explained. The k-th largest size is the threshold of the best k.
    raise NotImplementedError("task 32.6")


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
    # TASK 32.7 (3 points)
    # ternarize tells what stays and what alpha is. Then a and b for each row from the chapter's two equations; a
    # row in which nothing becomes 0, and one of zeros, divide by 0 if you let them. Test the identity, not the
    # formula.
    raise NotImplementedError("task 32.7")


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
    # TASK 32.8 (2 points)
    # Make the digits 0, 1, 2; fill up to a multiple of five with the digit that means 0; five columns times 1, 3,
    # 9, 27, 81. A byte overflows on the way if you compute in bytes.
    raise NotImplementedError("task 32.8")
