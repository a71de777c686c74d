"""Chapter 15, LLaMA and mixtures of experts: fill in the holes (13 points).

`minillm course test 15` tests this file, `minillm course test 15 15.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.errors import ShapeError
from minillm.nn import functional
from minillm.nn.linear import linear


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
    # TASK 15.1 (2 points)
    # The root mean square of (1, 7) is the root of (1 + 49) / 2, which is 5. Nothing is subtracted: this is not a
    # standard deviation. Epsilon belongs under the root, and the mean must keep its dimension so that every
    # vector is divided by its own.
    raise NotImplementedError("task 15.1")


def swiglu_feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down @ (silu(gate @ x) * (up @ x)): one half of the hidden numbers decides how much of the other passes.

    Args:
        x: (..., C).
        gate: (F, C) weight.
        up: (F, C) weight.
        down: (C, F) weight.

    Returns:
        (..., C).

    Source:
        Shazeer 2020, arXiv:2002.05202, eq. (6).

    Example:
        >>> one = torch.ones(1, 1)
        >>> round(swiglu_feed_forward(torch.tensor([2.0]), one, 3 * one, one).item(), 3)
        10.57
    """
    # TASK 15.2 (2 points)
    # Two maps go up and one comes down. Only the one named gate passes through `functional.silu`; what it gives
    # is multiplied with the other, number by number, before the third map brings the product back. `linear(x,
    # weight)` is x times the transposed weight.
    raise NotImplementedError("task 15.2")


def choose_experts(logits: Tensor, n_active: int) -> tuple[Tensor, Tensor]:
    """The likeliest experts of each token, and how much each one's output counts.

    One expert alone counts with its probability: were it always 1, no gradient would reach the router. Several count
    with their probabilities divided by the sum of these.

    Args:
        logits: (N, E) scores of the router.
        n_active: K, from 1 to E.

    Returns:
        (N, K) int64 indices of experts, the likeliest first, and (N, K) weights.

    Raises:
        ShapeError: if K is out of range.

    Source:
        K = 1: Fedus et al. 2021, arXiv:2101.03961, eq. (1) and (2); K > 1: Lepikhin et al. 2020, arXiv:2006.16668,
        algorithm 1, and Jiang et al. 2024, arXiv:2401.04088, section 2.1.

    Example:
        >>> chosen, weights = choose_experts(torch.tensor([[0.6, 0.1, 0.3]]).log(), 2)
        >>> chosen.tolist(), weights
        ([[0, 2]], tensor([[0.6667, 0.3333]]))
    """
    # TASK 15.3 (3 points)
    # Probabilities first, over all experts, then the K largest of them. With one expert its probability is the
    # weight as it stands: divide it by itself and the router would never get a gradient. With several, divide by
    # the sum of the K of the same token.
    raise NotImplementedError("task 15.3")


def within_capacity(chosen: Tensor, n_experts: int, capacity: int) -> Tensor:
    """Which choices find room: every expert takes the first `capacity` tokens that want it.

    First choices of all tokens go before second choices; among equals, earlier tokens before later ones.

    Args:
        chosen: (N, K) indices of experts.
        n_experts: E.
        capacity: the most tokens per expert.

    Returns:
        (N, K) bool, False where the token is dropped: that expert adds nothing to it.

    Source:
        Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1 (first choices first).

    Example:
        >>> within_capacity(torch.tensor([[0, 1], [1, 0], [0, 1]]), n_experts=2, capacity=2).tolist()
        [[True, True], [True, False], [True, False]]
    """
    # TASK 15.4 (3 points)
    # Think of one queue in which everybody stands: the first choices of all tokens, in order, then the second
    # choices of all tokens. Which place does a visit have among those that want the same expert? A running sum
    # down the columns of a table of visits and experts (`F.one_hot`) counts it. Do not forget to bring the answer
    # back from the order of the queue to (N, K).
    raise NotImplementedError("task 15.4")


def load_balancing_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """How unevenly the experts are used: E times the sum over experts of (share of visits) * (mean probability).

    It is 1 when both are even, and grows up to E as one expert takes all. Only the probabilities carry a gradient,
    which is why the two are multiplied.

    Args:
        logits: (N, E) scores of the router.
        chosen: (N, K) indices of the experts chosen, dropped ones included.

    Returns:
        a scalar.

    Source:
        Fedus et al. 2021, arXiv:2101.03961, eq. (4) to (6); for K > 1 the visits are counted, divided by N K.

    Example:
        >>> load_balancing_loss(torch.zeros(4, 2), torch.tensor([[0], [1], [0], [1]]))
        tensor(1.)
    """
    # TASK 15.5 (2 points)
    # Two vectors of E numbers: the share of all N K visits that each expert got, a count without a slope, and the
    # mean of its probability over the tokens, which has one. An expert that nobody chose must still be in the
    # first. The factor E makes an even router cost 1.
    raise NotImplementedError("task 15.5")


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean square of log(sum(exp(logits))): keeps the router's scores small, where 16-bit rounding does not turn them.

    Args:
        logits: (N, E) scores of the router.

    Returns:
        a scalar.

    Source:
        Zoph et al. 2022, arXiv:2202.08906, eq. (5).

    Example:
        >>> router_z_loss(torch.zeros(3, 2))
        tensor(0.4805)
    """
    # TASK 15.6 (1 point)
    # One number per token: the logarithm of the sum of the exponentials of its E scores. Square it, then take the
    # mean. Written out, a score of 1000 overflows; torch has a function that does the three steps in one.
    raise NotImplementedError("task 15.6")
