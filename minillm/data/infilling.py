"""The five corruptions of BART: the model reads a damaged text and writes the whole one.

The text to write is always the original, so a corruption here gives the damaged ids alone. Each is split into a random
choice and a function of that choice, which can be followed by hand.

Dimensions: T tokens of a text, K spans.
"""

from collections.abc import Sequence

import numpy as np

from minillm.errors import ConfigError, DataError

MEAN_LENGTH = 3.0  # of the spans, Poisson


def random_choice(n_tokens: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """(T,) bool: `rate * T` rounded of the tokens, any of them equally likely.

    Raises:
        ConfigError: if the rate is not between 0 and 1.
    """
    _check_rate(rate)
    chosen = np.zeros(n_tokens, bool)
    chosen[generator.choice(n_tokens, round(rate * n_tokens), replace=False)] = True
    return chosen


def mask_chosen(token_ids: np.ndarray, chosen: np.ndarray, mask_id: int) -> np.ndarray:
    """Token masking: the mask in the place of each chosen token.

    Source:
        Lewis et al. 2019, arXiv:1910.13461, section 2.2, as for the other corruptions of this module.

    Example:
        >>> mask_chosen(np.array([5, 6, 7]), np.array([False, True, False]), 0).tolist()
        [5, 0, 7]
    """
    return np.where(chosen, mask_id, token_ids)


def delete_chosen(token_ids: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Token deletion: the chosen tokens are gone, and the model has to find out where something is missing.

    Example:
        >>> delete_chosen(np.array([5, 6, 7]), np.array([False, True, False])).tolist()
        [5, 7]
    """
    return token_ids[~chosen]


def poisson_lengths(n_hidden: int, mean_length: float, generator: np.random.Generator) -> np.ndarray:
    """Draw span lengths from a Poisson distribution until they hide `n_hidden` tokens; the last one is cut to fit.

    Args:
        n_hidden: how many tokens the spans have together.
        mean_length: mean of the distribution, above 0.
        generator: where the lengths come from.

    Returns:
        (K,) lengths, 0 among them, whose sum is `n_hidden`; the last is at least 1. None if `n_hidden` is 0.

    Raises:
        ConfigError: if the mean is not positive or the number negative.
    """
    if n_hidden < 0 or not 0 < mean_length < np.inf:
        raise ConfigError(f"n_hidden is {n_hidden} and mean_length {mean_length}, expected at least 0 and above 0")
    lengths: list[int] = []
    n_left = n_hidden
    while n_left > 0:
        lengths.append(min(int(generator.poisson(mean_length)), n_left))
        n_left -= lengths[-1]
    return np.array(lengths, np.int64)


def place_spans(lengths: np.ndarray, n_tokens: int, generator: np.random.Generator) -> np.ndarray:
    """Where spans of these lengths begin, in this order; they never overlap, and all places are equally likely.

    The kept tokens and the spans are put in a row; which of the places in it are spans is drawn.

    Args:
        lengths: (K,) lengths, 0 allowed, together at most `n_tokens`.
        n_tokens: length T of the text.
        generator: where the places come from.

    Returns:
        (K,) starts in the text, never falling; a span of length 0 at start s stands before token s.

    Raises:
        ConfigError: if the spans are longer than the text.

    Example:
        >>> place_spans(np.array([2, 0, 1]), 3, np.random.default_rng(0)).tolist()  # nothing is kept: one way
        [0, 2, 2]
    """
    n_kept = n_tokens - int(lengths.sum())
    if n_kept < 0:
        raise ConfigError(f"spans of together {lengths.sum()} tokens do not fit into a text of {n_tokens}")
    places = np.sort(generator.choice(n_kept + len(lengths), len(lengths), replace=False))
    n_kept_before = places - np.arange(len(lengths))
    return n_kept_before + np.concatenate(([0], np.cumsum(lengths)[:-1]))[: len(lengths)]


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
    pieces, end = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [token_ids[end:start], [mask_id]]
        end = start + length
    return np.concatenate([*pieces, token_ids[end:]]).astype(np.int64)


def infill(
    token_ids: Sequence[int] | np.ndarray,
    mask_id: int,
    generator: np.random.Generator,
    rate: float = 0.3,
    mean_length: float = MEAN_LENGTH,
) -> np.ndarray:
    """Text infilling with random spans: exactly `rate * T` tokens, rounded, are hidden.

    Args:
        token_ids: (T,) ids.
        mask_id: the id of the mask.
        generator: where lengths and places come from.
        rate: share of the tokens that is hidden; the paper's final model has 0.3.
        mean_length: mean of the Poisson distribution of the lengths.

    Returns:
        The damaged ids; with many spans of length 0 they may be more than T.

    Raises:
        ConfigError: if a number is out of range.
    """
    _check_rate(rate)
    ids = np.asarray(token_ids, np.int64)
    lengths = poisson_lengths(round(rate * len(ids)), mean_length, generator)
    return infill_spans(ids, place_spans(lengths, len(ids), generator), lengths, mask_id)


def fill_in(token_ids: np.ndarray, spans: Sequence[Sequence[int]], mask_id: int) -> np.ndarray:
    """Undo `infill_spans`: each mask in turn makes way for the tokens of its span.

    Raises:
        DataError: if there are not as many masks as spans.

    Example:
        >>> fill_in(np.array([5, 0, 8, 0]), [[6, 7], []], mask_id=0).tolist()
        [5, 6, 7, 8]
    """
    masks = np.flatnonzero(token_ids == mask_id)
    if len(masks) != len(spans):
        raise DataError(f"{len(masks)} masks for {len(spans)} spans; expected as many")
    pieces = np.split(token_ids, np.repeat(masks, 2) + np.tile([0, 1], len(masks)))
    pieces[1::2] = [np.asarray(span, np.int64) for span in spans]
    return np.concatenate(pieces).astype(np.int64)


def split_sentences(token_ids: np.ndarray, end_ids: Sequence[int]) -> list[np.ndarray]:
    """Cut behind each id that ends a sentence; what follows the last one is a sentence, too.

    Example:
        >>> [sentence.tolist() for sentence in split_sentences(np.array([5, 6, 1, 7, 1, 8]), [1])]
        [[5, 6, 1], [7, 1], [8]]
    """
    sentences = np.split(token_ids, np.flatnonzero(np.isin(token_ids, end_ids)) + 1)
    return [sentence for sentence in sentences if len(sentence)]


def permute_sentences(
    token_ids: Sequence[int] | np.ndarray, end_ids: Sequence[int], generator: np.random.Generator
) -> np.ndarray:
    """Sentence permutation: the sentences in random order, each whole.

    Args:
        token_ids: (T,) ids.
        end_ids: ids behind which a sentence ends (a full stop).
        generator: where the order comes from.

    Returns:
        (T,) the same ids.
    """
    sentences = split_sentences(np.asarray(token_ids, np.int64), end_ids)
    order = generator.permutation(len(sentences))
    return np.concatenate([*(sentences[number] for number in order), np.zeros(0, np.int64)])


def rotate_document(token_ids: Sequence[int] | np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Document rotation: the text begins at a random token and goes on from its end with its beginning.

    Args:
        token_ids: (T,) ids.
        generator: where the first token comes from; each is equally likely.

    Returns:
        (T,) the same ids.
    """
    ids = np.asarray(token_ids, np.int64)
    return np.roll(ids, -int(generator.integers(len(ids)))) if len(ids) else ids


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate is {rate}, expected a share from 0 to 1")
