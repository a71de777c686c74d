"""Chapter 14, Text to text: fill in the holes (14 points).

`minillm course test 14` tests this file, `minillm course test 14 14.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from minillm.data.corruption import MEAN_LENGTH, RATE, span_counts
from minillm.errors import ConfigError, DataError


def random_lengths(n_tokens: int, n_spans: int, generator: np.random.Generator) -> np.ndarray:
    """Cut `n_tokens` into `n_spans` spans of at least one token; all ways to do so are equally likely.

    Args:
        n_tokens: how many tokens, at least `n_spans`.
        n_spans: how many spans, at least 1.
        generator: where the cuts come from.

    Returns:
        (n_spans,) lengths of at least 1 whose sum is `n_tokens`.

    Raises:
        ConfigError: if the tokens do not suffice.

    Example:
        >>> random_lengths(3, 3, np.random.default_rng(0)).tolist()
        [1, 1, 1]
    """
    # TASK 14.1 (2 points)
    # Put the tokens in a row. There are n - 1 gaps between them, and a way to cut them into k spans is a choice
    # of k - 1 different gaps. Draw that choice, sort it, put 0 before and n behind, and the lengths are the
    # differences of neighbours. Drawing each length by itself and correcting the sum makes some ways likelier
    # than others.
    raise NotImplementedError("task 14.1")


def random_spans(
    n_tokens: int, generator: np.random.Generator, rate: float = RATE, mean_length: float = MEAN_LENGTH
) -> np.ndarray:
    """Choose spans to hide: exactly as many tokens and spans as `span_counts` says, never two spans side by side.

    Kept and hidden spans take turns, beginning with a kept one, as in the authors' code: the first token is never
    hidden, and the last one always is.

    Args:
        n_tokens: length T of the text, at least 2.
        generator: where the lengths come from.
        rate: share of the tokens to hide.
        mean_length: mean length of a span.

    Returns:
        (T,) bool, True where a token is hidden.

    Raises:
        ConfigError: as `span_counts`.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.1.4; every way to cut is equally likely, as in their code.

    Example:
        >>> random_spans(4, np.random.default_rng(0), rate=0.5, mean_length=1).tolist()
        [False, True, False, True]
    """
    # TASK 14.2 (2 points)
    # `span_counts` says how many tokens are hidden and in how many spans; `random_lengths` cuts the kept tokens
    # into as many spans, and the hidden ones. They take turns, a kept span first. `np.repeat` writes each of a
    # list of marks as often as a list of lengths says.
    raise NotImplementedError("task 14.2")


def hide_spans(
    token_ids: Sequence[int] | np.ndarray, hidden: np.ndarray, sentinel_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Write one sentinel in the place of each hidden span; the target lists what each sentinel stands for.

    Args:
        token_ids: (T,) ids; none of them a sentinel.
        hidden: (T,) bool, True where a token is hidden; each run of them is one span.
        sentinel_ids: one id per span and one more, in the order of their use.

    Returns:
        inputs: the kept tokens with a sentinel for each span; targets: each sentinel with its span's tokens behind it,
        and one more sentinel, which marks the end.

    Raises:
        DataError: if the shapes differ, the sentinels do not suffice, or the text contains one.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.1.4, figure 2.

    Example:
        >>> inputs, targets = hide_spans([1, 2, 3, 4, 5, 6], np.array([0, 0, 1, 1, 0, 1], bool), [97, 98, 99])
        >>> inputs.tolist(), targets.tolist()
        ([1, 2, 97, 5, 98], [97, 3, 4, 98, 6, 99])
    """
    # TASK 14.3 (3 points)
    # A span begins where a token is hidden and the one before it is not; the first token has none before it. The
    # running sum of the beginnings says for each hidden token which span it is in. Inputs keep what is not hidden
    # and one sentinel for each beginning; targets are each sentinel with its span behind it, and one more
    # sentinel. Check shapes, dtype and sentinels first.
    raise NotImplementedError("task 14.3")


def infill_spans(token_ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, mask_id: int) -> np.ndarray:
    """Text infilling: one mask in the place of each span; for a span of length 0 a mask is put in.

    Args:
        token_ids: (T,) ids.
        starts: (K,) where the spans begin, never falling.
        lengths: (K,) how many tokens each replaces.
        mask_id: the id of the mask.

    Returns:
        (T - sum of lengths + K,) ids.

    Example:
        >>> infill_spans(np.array([5, 6, 7, 8]), np.array([1, 4]), np.array([2, 0]), mask_id=0).tolist()
        [5, 0, 8, 0]
    """
    # TASK 14.4 (2 points)
    # Walk from span to span: what stands between the end of the last one and the start of this one is kept, then
    # comes one mask. A span of length 0 is no exception: it ends where it starts. Do not forget what stands
    # behind the last span.
    raise NotImplementedError("task 14.4")


def prefix_mask(n_prefix: Sequence[int] | np.ndarray, n_positions: int) -> np.ndarray:
    """Who sees whom in a prefix language model: the prefix all of itself, the rest everything up to its own place.

    Args:
        n_prefix: (B,) lengths of the prefixes.
        n_positions: length T of the rows.

    Returns:
        (B, T, T) bool, True where the query (second dimension) may see the key (third).

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.2.1, figure 3 ("causal with prefix").

    Example:
        >>> prefix_mask([2], 3).astype(int).tolist()
        [[[1, 1, 0], [1, 1, 0], [1, 1, 1]]]
    """
    # TASK 14.5 (2 points)
    # Two reasons to be allowed, joined by "or": the key is not later than the query, or the key is in the prefix.
    # The first is one table for all rows, the second one number per row; give the prefixes two more dimensions of
    # size 1.
    raise NotImplementedError("task 14.5")


def mixing_rates(sizes: Mapping[str, int], limit: float = math.inf, temperature: float = 1.0) -> dict[str, float]:
    """How often each task is drawn: in proportion to min(its examples, limit)^(1 / temperature).

    Temperature 1 is in proportion to the examples, so that none is seen more often than another; infinity draws all
    tasks equally often. A limit keeps one very large task from drowning the others.

    Args:
        sizes: task -> number of its examples, at least 1.
        limit: a task with more examples counts as if it had so many; above 0.
        temperature: above 0; infinity is allowed.

    Returns:
        task -> rate, in the order of `sizes`; the rates sum to 1.

    Raises:
        ConfigError: if there is no task, or a number is out of range.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.5.2 (their K is our limit).

    Example:
        >>> mixing_rates({"translate": 300, "sort": 100})
        {'translate': 0.75, 'sort': 0.25}
        >>> mixing_rates({"translate": 900, "sort": 100}, temperature=2)
        {'translate': 0.75, 'sort': 0.25}
    """
    # TASK 14.6 (3 points)
    # Three steps in this order: cut the sizes off at the limit, take the power 1 / temperature, divide by the
    # sum. A power of a large number can be too large for a float, and the power of a ratio of at most 1 cannot;
    # dividing all sizes by the same number changes no rate.
    raise NotImplementedError("task 14.6")
