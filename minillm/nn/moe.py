"""Mixture of experts: several feed-forward layers side by side, of which each token visits one or a few.

A router gives every token a probability for every expert; the K likeliest experts work on it, and their outputs are
added up with weights from those probabilities. The model has the parameters of all experts, a token costs those of K.

Dimensions: N tokens (all positions of all rows), C width, E experts, K experts per token, M = N K visits.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.nn import functional
from minillm.nn.feedforward import FeedForward
from minillm.nn.linear import normal_weight


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
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError(f"{n_active} experts per token, expected 1 to {logits.shape[-1]}, the number of experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(n_active, dim=-1)
    weights = likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True)  # (N, K)
    return chosen, weights


def expert_capacity(n_tokens: int, n_experts: int, n_active: int, capacity_factor: float) -> int:
    """How many tokens one expert takes: its even share times a factor, rounded up.

    Args:
        n_tokens: N.
        n_experts: E.
        n_active: K.
        capacity_factor: 1 leaves no room for uneven routing.

    Source:
        Fedus et al. 2021, arXiv:2101.03961, eq. (3).

    Example:
        >>> expert_capacity(n_tokens=10, n_experts=4, n_active=1, capacity_factor=1.25)
        4
    """
    return math.ceil(capacity_factor * n_active * n_tokens / n_experts)


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
    queue = chosen.T.flatten()                                     # (M,)
    wanted = F.one_hot(queue, n_experts)                           # (M, E)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=1)             # (M,)
    return (place <= capacity).view(chosen.shape[::-1]).T


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
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten(), minlength=n_experts).to(logits.dtype)  # (E,)
    probability = logits.softmax(dim=-1).mean(dim=0)               # (E,)
    return n_experts * (visits / chosen.numel() * probability).sum()


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
    return logits.logsumexp(dim=-1).square().mean()


@dataclass(frozen=True)
class Routing:
    """Where the tokens of one layer went.

    Attributes:
        logits: (N, E) scores, float32 or wider.
        chosen: (N, K) indices of experts, the likeliest first.
        weights: (N, K) how much each counts.
        kept: (N, K) bool, False where an expert was full and the token dropped; None if none was.
    """

    logits: Tensor
    chosen: Tensor
    weights: Tensor
    kept: Tensor | None = None

    @property
    def n_dropped(self) -> int:
        """Number of visits that found no room."""
        return 0 if self.kept is None else int((~self.kept).sum())

    def destinations(self) -> Tensor:
        """(N, K) indices of experts; E, which is none, where the token was dropped."""
        n_experts = self.logits.shape[-1]
        return self.chosen if self.kept is None else self.chosen.masked_fill(~self.kept, n_experts)


class Router(nn.Module):
    """Chooses the experts of each token; its scores are computed in at least 32 bits.

    Args:
        d_model: width C.
        n_experts: E.
        n_active: K, experts per token.
        capacity_factor: while training, an expert takes this times its even share of tokens and drops the rest; 0 has
            no limit. Nothing is dropped in evaluation mode.
        std: standard deviation of the initial weights.
        generator: where the initial weights come from; None is torch's own default generator.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        n_active: int,
        capacity_factor: float = 0.0,
        std: float = 0.02,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_experts(n_experts, n_active, capacity_factor)
        self.n_active, self.capacity_factor = n_active, capacity_factor
        self.weight = nn.Parameter(normal_weight(n_experts, d_model, std, generator))

    def forward(self, x: Tensor) -> Routing:
        """Map (N, C) to the routing of N tokens."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(wide), self.weight.to(wide))    # (N, E)
        chosen, weights = choose_experts(logits, self.n_active)
        return Routing(logits, chosen, weights, self.kept(chosen) if self.training and self.capacity_factor else None)

    def kept(self, chosen: Tensor) -> Tensor:
        """Which of (N, K) choices find room."""
        n_experts = len(self.weight)
        capacity = expert_capacity(len(chosen), n_experts, self.n_active, self.capacity_factor)
        return within_capacity(chosen, n_experts, capacity)


def mix_one_by_one(x: Tensor, routing: Routing, experts: Sequence[nn.Module]) -> Tensor:
    """Each expert in turn works on the tokens that come to it: the definition.

    Args:
        x: (N, C).
        routing: of the same N tokens.
        experts: E modules that map (..., C) to (..., C).

    Returns:
        (N, C), per token the weighted sum of its experts' outputs; zeros where all its visits were dropped.
    """
    mixed, destinations = torch.zeros_like(x), routing.destinations()
    for index, expert in enumerate(experts):
        tokens, choices = (destinations == index).nonzero(as_tuple=True)
        weights = routing.weights[tokens, choices, None].to(x.dtype)  # (n_visits, 1)
        mixed = mixed.index_put((tokens,), weights * expert(x[tokens]), accumulate=True)  # (N, C)
    return mixed


def mix_grouped(x: Tensor, routing: Routing, experts: Sequence[nn.Module]) -> Tensor:
    """The same with the visits sorted by expert: one gathering, one block per expert, one adding up at the end.

    Args:
        x: as all arguments, those of `mix_one_by_one`.
        routing: likewise.
        experts: likewise.

    Returns:
        (N, C).
    """
    n_experts, n_choices = len(experts), routing.chosen.shape[1]
    destinations = routing.destinations().flatten()                # (M,)
    order = destinations.argsort(stable=True)                      # (M,)
    sizes = torch.bincount(destinations, minlength=n_experts + 1).tolist()
    order = order[: len(order) - sizes[n_experts]]                 # (n_kept,)
    tokens = order // n_choices                                    # (n_kept,)
    blocks = x.index_select(0, tokens).split(sizes[:n_experts])
    outputs = torch.cat([expert(block) for expert, block in zip(experts, blocks, strict=True)])  # (n_kept, C)
    weights = routing.weights.flatten().index_select(0, order)     # (n_kept,)
    return torch.zeros_like(x).index_add(0, tokens, (outputs * weights[:, None]).to(x.dtype))


MIXES = {"naive": mix_one_by_one, "torch": mix_grouped, "tiled": mix_grouped}


class MixtureOfExperts(nn.Module):
    """A router and E feed-forward layers, of which each token visits K; takes the place of one feed-forward layer.

    Tokens are taken row by row, so with a capacity a token may be dropped because of tokens before it in its row or in
    rows above; a second choice may also lose its place to the first choice of a later token.

    Args:
        d_model: width C of input and output.
        d_ff: hidden width F of each expert.
        n_experts: E.
        n_active: K, experts per token.
        capacity_factor: see `Router`.
        kind: as all that follow, an argument of `FeedForward`.
        bias: whether the experts' linear maps have biases; the router has none.
        std: standard deviation of the initial weights, the router's too.
        output_std: that of the maps that write into the residual stream.
        kernels: "torch" sorts the visits by expert, "naive" goes through the experts one by one.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961.

    Example:
        >>> layer = MixtureOfExperts(4, 8, n_experts=3, n_active=2, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(2, 5, 4)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        n_experts: int,
        n_active: int,
        capacity_factor: float = 0.0,
        kind: str = "swiglu",
        bias: bool = False,
        std: float = 0.02,
        output_std: float = 0.02,
        kernels: str = "torch",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        functional.check_kernels(kernels)
        self.router = Router(d_model, n_experts, n_active, capacity_factor, std, generator)
        self.experts = nn.ModuleList(
            FeedForward(d_model, d_ff, kind, bias, std, output_std, kernels, generator) for _ in range(n_experts)
        )
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        tokens = x.reshape(-1, x.shape[-1])                        # (N, C)
        return MIXES[self.kernels](tokens, self.router(tokens), self.experts).view(x.shape)


def check_experts(n_experts: int, n_active: int, capacity_factor: float) -> None:
    """Check the numbers of a mixture.

    Raises:
        ConfigError: if there is no expert, more are active than there are, or the factor is negative or not finite.
    """
    if n_experts < 1 or not 1 <= n_active <= n_experts:
        raise ConfigError(f"{n_active} of {n_experts} experts are active, expected 1 to all of at least 1")
    if not 0.0 <= capacity_factor < math.inf:
        raise ConfigError(f"capacity_factor is {capacity_factor}, expected a positive number, or 0 for no limit")


@contextmanager
def recorded_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """What every router of a model decides while the block runs, in the order of their work.

    The model knows nothing of it: losses on the routing, counts of dropped tokens and pictures are made from outside.

    Args:
        model: any module; without a mixture inside, the list stays empty.

    Yields:
        the list that fills; its tensors carry gradients where the model's do.

    Example:
        >>> layer = MixtureOfExperts(4, 8, n_experts=3, n_active=1)
        >>> with recorded_routing(layer) as routings:
        ...     _ = layer(torch.ones(2, 5, 4))
        >>> routings[0].chosen.shape
        torch.Size([10, 1])
    """
    routings: list[Routing] = []
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(lambda _, inputs, routing: routings.append(routing)) for router in routers]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()
