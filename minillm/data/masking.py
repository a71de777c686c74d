"""Masked language modelling: hide some tokens of a text and ask for them, once for all or anew each time.

Dimensions: T tokens of a text, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minillm.data.batches import NOT_COUNTED
from minillm.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How many tokens are asked for and what stands in their place.

    Args:
        vocab_size: number of token ids V; random tokens are drawn from it.
        mask_id: the id of the mask token.
        special_ids: ids that are never hidden and never drawn; the mask's own is among them without being named.
        rate: share of the other tokens that is asked for.
        mask_share: share of those that becomes the mask.
        random_share: share of those that becomes a random token; the rest stays as it is.
        longest_ngram: 1 hides single tokens (or words); N hides runs of 1 to N of them, see `ngram_groups`.

    Raises:
        ConfigError: if an id is outside the vocabulary or a number out of range.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1 (15 %, of which 80 % masked, 10 % random, 10 % unchanged);
        Lan et al. 2019, arXiv:1909.11942, section 4.1 (runs of up to three words).
    """

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...] = ()
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    longest_ngram: int = 1

    def __post_init__(self):
        object.__setattr__(self, "special_ids", tuple(sorted({*self.special_ids, self.mask_id})))
        if self.special_ids[0] < 0 or self.special_ids[-1] >= self.vocab_size:
            raise ConfigError(f"special ids {self.special_ids}, expected ids from 0 to {self.vocab_size - 1}")
        if len(self.special_ids) == self.vocab_size:
            raise ConfigError(f"all {self.vocab_size} ids are special: no random token can be drawn")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate is {self.rate}, expected a number above 0 and up to 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"mask_share {self.mask_share} and random_share {self.random_share}: expected shares whose sum is at "
                "most 1"
            )
        if self.longest_ngram < 1:
            raise ConfigError(f"longest_ngram is {self.longest_ngram}, expected at least 1")

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """All ids that are not special, from the smallest up."""
        return np.setdiff1d(np.arange(self.vocab_size), self.special_ids)


def choose_tokens(
    allowed: np.ndarray,
    rate: float,
    generator: np.random.Generator,
    continues_word: np.ndarray | None = None,
    longest_ngram: int = 1,
) -> np.ndarray:
    """Choose which tokens are asked for: exactly `rate` of those allowed, rounded, and at least one.

    With `continues_word` whole words are chosen in random order; one that would make it too many is passed over, so
    that it may come out fewer, and a text whose every word is too long gives none. With `longest_ngram` it is the same
    with runs of words.

    Args:
        allowed: (T,) bool, True for tokens that may be chosen.
        rate: share of the allowed tokens.
        generator: where the choice comes from.
        continues_word: (T,) bool, True for tokens that belong to the word of the token before; None chooses single
            tokens. A token that is not allowed ends a word.
        longest_ngram: 1, or the most words of the runs that are chosen whole, see `ngram_groups`.

    Returns:
        (T,) bool; none is chosen where none is allowed.

    Raises:
        DataError: if the two arrays differ in shape or are not bool.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1; whole words: the README of the authors' code, 31 May 2019.

    Example:
        >>> choose_tokens(np.array([False, True, True, False]), 1.0, np.random.default_rng(0)).tolist()
        [False, True, True, False]
    """
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups)):
        if len(groups[number]) <= n_left:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


def word_groups(allowed: np.ndarray, continues_word: np.ndarray) -> list[np.ndarray]:
    """The places of each word, in order.

    Args:
        allowed: (T,) bool, False where a token belongs to no word.
        continues_word: (T,) bool, True for tokens that belong to the word of the token before.

    Returns:
        One array of places per word; a token that is not allowed is in none of them.

    Raises:
        DataError: if the two arrays differ in shape or are not bool.

    Example:
        >>> groups = word_groups(np.array([False, True, True, True]), np.array([False, False, True, False]))
        >>> [group.tolist() for group in groups]
        [[1, 2], [3]]
    """
    bools = allowed.dtype == continues_word.dtype == bool
    if not bools or allowed.ndim != 1 or allowed.shape != continues_word.shape:
        raise DataError(
            f"allowed is {allowed.dtype} of shape {allowed.shape}, continues_word {continues_word.dtype} of shape "
            f"{continues_word.shape}; expected two bool arrays of one shape (T,)"
        )
    places = np.flatnonzero(allowed)
    follows = np.diff(places, prepend=-2) == 1
    starts = np.flatnonzero(~(continues_word[places] & follows))
    return np.split(places, starts[1:]) if len(places) else []


def ngram_groups(words: Sequence[np.ndarray], longest_ngram: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Cut a text into runs of words whose lengths are random, n with a probability proportional to 1 / n.

    A run ends early where the words do not touch, or where there are no more. ALBERT's code draws the length of a run
    when it comes to hide it, and takes a shorter one where it does not fit; here all is cut beforehand, so that runs
    can be chosen like words.

    Args:
        words: places of each word, as `word_groups` gives them.
        longest_ngram: the most words N of a run, at least 1; 1 gives the words as they are and draws nothing.
        generator: where lengths come from.

    Returns:
        One array of places per run; each word is in one of them.

    Source:
        Lan et al. 2019, arXiv:1909.11942, section 4.1: p(n) = (1 / n) / (1 + 1 / 2 + ... + 1 / N).

    Example:
        >>> words = [np.array([1]), np.array([2, 3]), np.array([7])]
        >>> [run.tolist() for run in ngram_groups(words, 3, np.random.default_rng(0))]
        [[1, 2, 3], [7]]
    """
    if longest_ngram == 1:
        return list(words)
    shares = 1 / np.arange(1, longest_ngram + 1)
    lengths = generator.choice(longest_ngram, size=len(words), p=shares / shares.sum()) + 1
    runs: list[list[np.ndarray]] = []
    wanted = 0
    for word, length in zip(words, lengths, strict=True):
        if runs and len(runs[-1]) < wanted and runs[-1][-1][-1] + 1 == word[0]:
            runs[-1].append(word)
        else:
            runs.append([word])
            wanted = length
    return [np.concatenate(run) for run in runs]


def mask_tokens(
    token_ids: Sequence[int] | np.ndarray,
    config: MaskingConfig,
    generator: np.random.Generator,
    continues_word: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide some tokens and ask for them.

    Each chosen token becomes the mask with probability `mask_share`, a random token that is not special with
    `random_share` (which may be the same one), and stays otherwise. The model cannot know whether a token that it sees
    was left alone or is a guess to be corrected, so it must have an opinion about every one.

    Args:
        token_ids: (T,) ids of one text.
        config: how many and what for.
        generator: where choices come from.
        continues_word: (V,) bool, True for ids that continue the word before ("##ing"): whole words are chosen then;
            None chooses single tokens.

    Returns:
        inputs (T,) int64, and targets (T,) int64: the original id where a token was chosen, `NOT_COUNTED` elsewhere.

    Raises:
        DataError: if an id is outside the vocabulary.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1.

    Example:
        >>> config = MaskingConfig(vocab_size=9, mask_id=8, special_ids=(0,), rate=0.5, mask_share=1, random_share=0)
        >>> inputs, targets = mask_tokens([0, 5, 5, 0], config, np.random.default_rng(0))
        >>> sorted(inputs.tolist()), sorted(targets.tolist())
        ([0, 0, 5, 8], [-100, -100, -100, 5])
    """
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


def random_tokens(n_tokens: int, config: MaskingConfig, generator: np.random.Generator) -> np.ndarray:
    """(n_tokens,) ids, each equally likely any that is not special."""
    return generator.choice(config.ordinary_ids, size=n_tokens)


def unmask_tokens(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Undo `mask_tokens`: what was asked for, and the inputs where nothing was.

    Example:
        >>> unmask_tokens(np.array([0, 8, 5]), np.array([-100, 5, -100])).tolist()
        [0, 5, 5]
    """
    return np.where(targets == NOT_COUNTED, inputs, targets)


def check_token_ids(token_ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids of one text as an int64 array.

    Raises:
        DataError: if it is not one sequence of whole numbers, or an id is outside 0 .. vocab_size - 1.
    """
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise DataError(f"token ids are {ids.dtype} of shape {ids.shape}, expected whole numbers of shape (T,)")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(f"token ids run from {ids.min()} to {ids.max()}, the vocabulary has ids 0 to {vocab_size - 1}")
    return ids.astype(np.int64)
