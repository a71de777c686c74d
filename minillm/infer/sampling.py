"""Choosing the next token: pure functions that reshape the scores (B, V), then one draw per row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.errors import SamplingError
from minillm.shapes import check_shape


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen; checked when made. The filters apply in the order of the fields.

    Args:
        repetition_penalty: above 1 makes tokens that already occurred less likely; 1 is off.
        temperature: below 1 favours likely tokens, above 1 evens out; 0 always takes the likeliest (greedy).
        top_k: keep only the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities reach this sum, in (0, 1]; 1 keeps all.
        min_p: drop tokens less likely than this times the likeliest one, in [0, 1]; 0 keeps all.

    Raises:
        SamplingError: naming the first setting that is out of range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if not 0.0 < self.repetition_penalty < math.inf:
            raise SamplingError(f"repetition_penalty is {self.repetition_penalty}, expected a number above 0; 1 is off")
        if not 0.0 <= self.temperature < math.inf:
            raise SamplingError(f"temperature is {self.temperature}, expected a number of at least 0; 0 is greedy")
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k!r}, expected a whole number of at least 1, or 0 to keep all")
        if not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p is {self.top_p}, expected 0 < top_p <= 1; 1 keeps all")
        if not 0.0 <= self.min_p <= 1.0:
            raise SamplingError(f"min_p is {self.min_p}, expected 0 <= min_p <= 1; 0 keeps all")


GREEDY = SamplingConfig(temperature=0.0)


def seen_tokens(rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Which tokens of the vocabulary occur in each row.

    Args:
        rows: B lists of ids, of any length.
        vocab_size: V.
        device: where to put the result.

    Returns:
        (B, V) bool.

    Example:
        >>> seen_tokens([[0, 2, 2], []], vocab_size=3).tolist()
        [[True, False, True], [False, False, False]]
    """
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)  # (B, V)
    for row, ids in enumerate(rows):
        seen[row, list(ids)] = True
    return seen


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores of seen tokens by the penalty and multiply their negative ones.

    Args:
        logits: (B, V).
        seen: (B, V) bool, tokens that already occurred.
        penalty: above 1 makes them less likely.

    Returns:
        (B, V).

    Source:
        Keskar et al. 2019, arXiv:1909.05858, section 4.1 (there only division; both signs as in later practice).

    Example:
        >>> penalize_repetition(torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[True, True, False]]), 2.0).tolist()
        [[1.0, -4.0, 2.0]]
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)  # (B, V)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all scores but the k largest of each row to -inf; scores equal to the k-th stay.

    Args:
        logits: (B, V).
        k: from 1 to V.

    Returns:
        (B, V).

    Raises:
        SamplingError: if k is out of range.

    Source:
        Fan, Lewis and Dauphin 2018, arXiv:1805.04833, section 5.4.

    Example:
        >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist()
        [[-inf, 3.0, 2.0]]
    """
    if not 1 <= k <= logits.shape[-1]:
        raise SamplingError(f"top_k is {k}, expected 1 to {logits.shape[-1]}, the size of the vocabulary")
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]        # (B, 1)
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p; the others become -inf.

    Args:
        logits: (..., V); -inf is allowed.
        p: in (0, 1]; the likeliest token always stays.

    Returns:
        (..., V), a new tensor; kept scores are as they were. Of equally likely tokens those with the smaller ids stay.

    Source:
        Holtzman et al. 2019, arXiv:1904.09751, section 3.1 (nucleus sampling).

    Example:
        >>> logits = torch.tensor([[0.5, 0.2, 0.3]]).log()
        >>> keep_top_p(logits, 0.7).isfinite().tolist()
        [[True, False, True]]
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)                          # (..., V)
    sum_before = probability.cumsum(dim=-1) - probability          # (..., V)
    dropped = sum_before >= p                                      # (..., V), never the likeliest: nothing is before it
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Drop tokens whose probability is below p times that of the likeliest token of the row.

    Args:
        logits: (B, V).
        p: in [0, 1]; 1 keeps only the likeliest.

    Returns:
        (B, V).

    Source:
        Nguyen et al. 2024, arXiv:2407.01082, section 3.

    Example:
        >>> keep_min_p(torch.tensor([[0.5, 0.1, 0.4]]).log(), 0.5).isfinite().tolist()
        [[True, False, True]]
    """
    smallest_kept = logits.amax(dim=-1, keepdim=True) + (math.log(p) if p > 0.0 else -math.inf)  # (B, 1)
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def filter_logits(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Apply every filter that the config asks for, in the order of its fields; temperature 0 divides by nothing.

    A setting that is off (see `SamplingConfig`) changes no score. Each filter works on what the one before it left:
    top-p sums the probabilities of the tokens that top-k kept, at the temperature asked for.

    Args:
        logits: (B, V) scores; they are not changed.
        config: the settings.
        seen: (B, V) bool, tokens that already occurred; needed for a repetition penalty other than 1.

    Returns:
        (B, V) scores; softmax of them is the distribution to draw from.

    Raises:
        SamplingError: if top_k exceeds V, or seen tokens are needed and missing.
    """
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("a repetition_penalty needs the tokens seen so far; pass seen=seen_tokens(...)")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)  # (B, V)
    if config.temperature not in (0.0, 1.0):
        logits = logits / config.temperature                       # (B, V)
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)                  # (B, V)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)                  # (B, V)
    return keep_min_p(logits, config.min_p) if config.min_p else logits


def sample(
    logits: Tensor, config: SamplingConfig, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """Choose one token per row.

    Args:
        logits: (B, V) scores of the next token.
        config: the settings; temperature 0 takes the largest score, the first of equals.
        generator: where the random numbers come from; None is torch's own default generator.
        seen: (B, V) bool, tokens that already occurred; needed for a repetition penalty.

    Returns:
        (B,) int64 ids from 0 to V - 1.

    Raises:
        SamplingError: if a row has NaN or +inf scores or nothing but -inf, or a setting does not fit V.

    Example:
        >>> sample(torch.tensor([[0.0, 2.0, 1.0]]), GREEDY).tolist()
        [1]
    """
    check_shape("logits", logits, "B V", {})
    logits = filter_logits(check_scores(logits.float()), config, seen)  # (B, V)
    if config.temperature == 0.0 or logits.shape[0] == 0:
        return logits.argmax(dim=-1)                               # (B,)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]  # (B,)


def check_scores(logits: Tensor) -> Tensor:
    """Check that each row leaves something to choose from.

    Args:
        logits: (B, V).

    Returns:
        The same tensor.

    Raises:
        SamplingError: naming the first row whose scores hold NaN or +inf, or nothing but -inf.
    """
    if logits.shape[-1] == 0:
        raise SamplingError("there are no scores to choose from: the vocabulary is empty")
    usable = logits.amax(dim=-1).isfinite()                        # (B,)
    if not usable.all():
        row = int((~usable).nonzero()[0, 0])
        raise SamplingError(
            f"row {row} has NaN, +inf or nothing but -inf among its scores; "
            "the model diverged, or a filter removed every token"
        )
    return logits
