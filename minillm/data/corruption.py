"""Texts with holes and what was in them: span corruption (T5), prefixes to go on from, and a mixture of both (UL2).

Dimensions: T tokens of a text, N hidden tokens, B texts of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minillm.data.batches import NOT_COUNTED
from minillm.errors import ConfigError, DataError

RATE, MEAN_LENGTH = 0.15, 3.0  # of T5: 15 % of the tokens, in spans of three on average


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
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError(f"{n_tokens} tokens cannot be cut into {n_spans} spans of at least one token")
    cuts = np.sort(generator.choice(n_tokens - 1, n_spans - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [n_tokens])))


def span_counts(n_tokens: int, rate: float = RATE, mean_length: float = MEAN_LENGTH) -> tuple[int, int]:
    """How many tokens are hidden, and in how many spans.

    Args:
        n_tokens: length T of the text, at least 2.
        rate: share of the tokens to hide, between 0 and 1, both excluded.
        mean_length: mean length of a span, at least 1.

    Returns:
        `rate * T` rounded, at least 1 and at most T - 1; and that by `mean_length` rounded, at least 1 and at most
        the number of tokens that stay: one of them stands before each span.

    Raises:
        ConfigError: if a number is out of range.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.1.4 and 3.3.4.

    Example:
        >>> span_counts(100), span_counts(512), span_counts(2)
        ((15, 5), (77, 26), (1, 1))
    """
    if n_tokens < 2 or not 0 < rate < 1 or not mean_length >= 1:
        raise ConfigError(
            f"{n_tokens} tokens, rate {rate}, mean length {mean_length}: expected at least 2 tokens, 0 < rate < 1, and "
            "a mean of at least 1"
        )
    n_hidden = min(max(round(n_tokens * rate), 1), n_tokens - 1)
    return n_hidden, min(max(round(n_hidden / mean_length), 1), n_tokens - n_hidden)


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
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[0::2] = random_lengths(n_tokens - n_hidden, n_spans, generator)
    lengths[1::2] = random_lengths(n_hidden, n_spans, generator)
    return np.repeat(np.arange(2 * n_spans) % 2 == 1, lengths)


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
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError(f"{ids.shape} ids with {hidden.shape} {hidden.dtype} marks; expected (T,) ids and (T,) bool")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError(
            f"{n_spans} spans need {n_spans + 1} sentinels that the text does not contain; there are {len(sentinels)}: "
            "reserve more ids for them"
        )
    inputs, targets = np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], []
    for sentinel, start in zip(sentinels, np.flatnonzero(begins), strict=False):
        length = int(np.argmin(np.append(hidden[start:], False)))
        targets += [sentinel, *ids[start : start + length]]
    return inputs, np.array([*targets, sentinels[n_spans]], np.int64)


def corrupt_spans(
    token_ids: Sequence[int] | np.ndarray,
    sentinel_ids: Sequence[int],
    generator: np.random.Generator,
    rate: float = RATE,
    mean_length: float = MEAN_LENGTH,
) -> tuple[np.ndarray, np.ndarray]:
    """T5's objective for one text: `hide_spans` of `random_spans`; arguments, results and errors as theirs."""
    return hide_spans(token_ids, random_spans(len(token_ids), generator, rate, mean_length), sentinel_ids)


def restore_spans(inputs: np.ndarray, targets: np.ndarray, sentinel_ids: Sequence[int]) -> np.ndarray:
    """Undo `hide_spans`: put each span of the targets where its sentinel stands in the inputs.

    A sentinel that the targets do not mention, as an untrained model's might not, is left out with its span.

    Args:
        inputs: kept tokens and sentinels.
        targets: each sentinel with its span's tokens behind it; tokens before the first sentinel are ignored.
        sentinel_ids: the ids that are sentinels.

    Returns:
        The text.

    Example:
        >>> restore_spans(np.array([1, 2, 97, 5, 98]), np.array([97, 3, 4, 98, 6, 99]), [97, 98, 99]).tolist()
        [1, 2, 3, 4, 5, 6]
    """
    sentinels = {int(sentinel) for sentinel in sentinel_ids}
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token_id in map(int, targets):
        if token_id in sentinels:
            current = spans.setdefault(token_id, [])
        else:
            current.append(token_id)
    pieces = [spans.get(token_id, []) if token_id in sentinels else [token_id] for token_id in map(int, inputs)]
    return np.array([token_id for piece in pieces for token_id in piece], np.int64)


def split_prefix(
    token_ids: Sequence[int] | np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text in two at a random place: a prefix to read and the rest to write.

    Args:
        token_ids: (T,) ids, at least 2.
        generator: chooses the place; each of the T - 1 is equally likely.

    Returns:
        prefix and rest, each with at least one id; joined they are the text.

    Raises:
        DataError: if there are fewer than two ids.

    Source:
        Raffel et al. 2019, arXiv:1910.10683, section 3.2.3 (prefix language modelling).
    """
    if len(token_ids) < 2:
        raise DataError(f"a text of {len(token_ids)} ids cannot be cut in two; give at least 2")
    n_prefix = int(generator.integers(1, len(token_ids)))
    ids = np.asarray(token_ids, np.int64)
    return ids[:n_prefix], ids[n_prefix:]


def prefix_example(prefix: Sequence[int], rest: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Prefix and rest as one row for a model without a separate encoder; only the rest is to be predicted.

    Args:
        prefix: at least one id.
        rest: at least one id.

    Returns:
        inputs: all ids but the last; targets: the id after each input, `NOT_COUNTED` where that is of the prefix.

    Example:
        >>> inputs, targets = prefix_example([1, 2], [3, 4])
        >>> inputs.tolist(), targets.tolist()
        ([1, 2, 3], [-100, 3, 4])
    """
    ids = np.concatenate((prefix, rest)).astype(np.int64)
    hidden = np.arange(1, len(ids)) < len(prefix)
    return ids[:-1], np.where(hidden, NOT_COUNTED, ids[1:])


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
    key = np.arange(n_positions)
    return (key <= key[:, None]) | (key < np.asarray(n_prefix)[:, None, None])


@dataclass(frozen=True)
class Denoiser:
    """One of UL2's ways to make holes.

    Args:
        mode: "R" regular: short spans and few, as T5; "X" extreme: long spans or many; "S" sequential: the end of
            the text is one span, so that the model goes on from a prefix.
        rate: share of the tokens that is hidden.
        mean_length: of the spans in tokens; not used by "S", which has one.

    Raises:
        ConfigError: if the mode is unknown.
    """

    mode: str
    rate: float
    mean_length: float = MEAN_LENGTH

    def __post_init__(self):
        if self.mode not in MODES:
            raise ConfigError(f"mode is {self.mode!r}, expected one of {MODES}")

    def hidden(self, n_tokens: int, generator: np.random.Generator) -> np.ndarray:
        """Which tokens of a text are hidden: (T,) bool."""
        if self.mode == "S":
            n_hidden, _ = span_counts(n_tokens, self.rate)
            return np.arange(n_tokens) >= n_tokens - n_hidden
        return random_spans(n_tokens, generator, self.rate, self.mean_length)


MODES = ("R", "S", "X")
# Table 1 of Tay et al. 2022: each is drawn equally often.
UL2_DENOISERS = (
    Denoiser("R", 0.15, 3.0),
    Denoiser("R", 0.15, 8.0),
    Denoiser("S", 0.25),
    Denoiser("X", 0.5, 3.0),
    Denoiser("X", 0.5, 8.0),
    Denoiser("X", 0.15, 64.0),
    Denoiser("X", 0.5, 64.0),
)


def corrupt_by_mixture(
    token_ids: Sequence[int] | np.ndarray,
    mode_ids: Mapping[str, int],
    sentinel_ids: Sequence[int],
    generator: np.random.Generator,
    denoisers: Sequence[Denoiser] = UL2_DENOISERS,
) -> tuple[np.ndarray, np.ndarray]:
    """UL2's objective for one text: a denoiser is drawn, and its mode's token at the front says which kind it was.

    Our spans come from `random_spans`, so that counts are exact; the paper draws each length.

    Args:
        token_ids: (T,) ids, at least 2.
        mode_ids: mode -> the id that announces it.
        sentinel_ids: as in `hide_spans`; T / 6 + 2 suffice for all of `UL2_DENOISERS`.
        generator: where all choices come from.
        denoisers: each is equally likely.

    Returns:
        inputs with the mode's id in front, and targets.

    Raises:
        ConfigError, DataError: as `hide_spans` and `span_counts`, or if a mode has no id.

    Source:
        Tay et al. 2022, arXiv:2205.05131, section 3.1 and table 1.
    """
    denoiser = denoisers[int(generator.integers(len(denoisers)))]
    if denoiser.mode not in mode_ids:
        raise ConfigError(f"mode {denoiser.mode!r} has no id; mode_ids has {sorted(mode_ids)}")
    inputs, targets = hide_spans(token_ids, denoiser.hidden(len(token_ids), generator), sentinel_ids)
    return np.concatenate(([mode_ids[denoiser.mode]], inputs)), targets
