"""From counts to probabilities: nine ways to keep something for what was never seen.

Each method gives every seen n-gram its share of its context, and every context a weight for what it leaves to the
shorter context. Interpolated methods add the shorter context's opinion to the seen n-grams as well:

    p(x | h) = share(h, x) + backoff(h) * p(x | h without its first id)

Katz's method asks the shorter context about the unseen only. In both, the shortest context (none) asks the uniform
distribution over the vocabulary, so that every id is possible and the probabilities of all V ids sum to 1.

Dimensions: V vocabulary, N ids of a text, n n-grams of one level, K levels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from minillm.errors import ConfigError, DataError
from minillm.statistical.backoff import BackoffModel
from minillm.statistical.counts import (
    NGramCounts,
    NGramLevel,
    adjusted_counts,
    checked_ids,
    count_ngrams,
    count_of_counts,
    find,
    suffix_places,
)
from minillm.statistical.ngram import GoodTuringModel, NGramModel, choose_add_k

KATZ_LARGEST = 5
STUPID_BACKOFF = 0.4
FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # of counts 0, 1, 2, 3 and more; those of KenLM's --discount_fallback
CANDIDATE_K = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
EM_STEPS = 20

Shares = tuple[np.ndarray, np.ndarray]  # ((n,) share of each n-gram, (n_contexts,) weight of what each context leaves)


def absolute_discount(n_with: np.ndarray) -> float:
    """What to take from every count: D = n1 / (n1 + 2 n2), between 0 and 1.

    Args:
        n_with: (3,) or longer; n_with[r] is how many n-grams were seen exactly r times.

    Returns:
        D; 0.5 if n1 is 0, where the formula would leave nothing to the unseen.

    Source:
        Ney, Essen and Kneser 1994, "On structuring probabilistic dependences in stochastic language modelling".

    Example:
        >>> absolute_discount(np.array([0, 6, 2]))
        0.6
    """
    n1, n2 = int(n_with[1]), int(n_with[2])
    return n1 / (n1 + 2 * n2) if n1 > 0 else 0.5


def modified_discounts(n_with: np.ndarray) -> np.ndarray:
    """What to take from a count of 1, of 2, and of 3 or more.

    With Y = n1 / (n1 + 2 n2):

        D1 = 1 - 2 Y n2 / n1,   D2 = 2 - 3 Y n3 / n2,   D3+ = 3 - 4 Y n4 / n3

    Args:
        n_with: (5,) or longer; n_with[r] is how many n-grams were seen exactly r times.

    Returns:
        (4,) float64: 0, D1, D2, D3+. If n1, n2 or n3 is 0, or one of the three comes out below 0, there is too little
        text for the formula and the result is 0, 0.5, 1, 1.5.

    Source:
        Chen and Goodman 1998, "An empirical study of smoothing techniques for language modeling", equation 26; the
        values for too little text are those of KenLM's --discount_fallback.

    Example:
        >>> modified_discounts(np.array([0, 8, 4, 2, 1])).tolist()
        [0.0, 0.5, 1.25, 2.0]
    """
    n1, n2, n3, n4 = n_with[1:5].tolist()
    if min(n1, n2, n3) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return discounts if discounts.min() >= 0 else np.array(FALLBACK_DISCOUNTS)


def discounted_shares(counts: np.ndarray, contexts: np.ndarray, n_contexts: int, discounts: np.ndarray) -> Shares:
    """Take a discount from every count, and see what is left of each context.

        share(h, x) = (c - D(c)) / sum of h's counts,   backoff(h) = (sum of h's discounts) / sum of h's counts

    A count smaller than its discount loses all it has and no more.

    Args:
        counts: (n,) integers of at least 0, of the n-grams of one length.
        contexts: (n,) integers 0 .. n_contexts - 1: which context each n-gram has.
        n_contexts: how many contexts there are.
        discounts: (R + 1,) float64: what to take from a count of 0, 1, .. R; greater counts lose as much as R.

    Returns:
        (n,) float64 shares and (n_contexts,) float64 weights; the shares of a context and its weight sum to 1. A
        context whose counts sum to 0 has shares 0 and weight 1: it knows nothing.

    Source:
        Ney, Essen and Kneser 1994; Chen and Goodman 1998, equations 24 and 25.

    Example:
        >>> discounted_shares(np.array([3, 1, 2]), np.array([0, 0, 1]), 2, np.array([0, 0.5]))
        (array([0.625, 0.125, 0.75 ]), array([0.25, 0.25]))
    """
    taken = np.minimum(counts, discounts[np.minimum(counts, len(discounts) - 1)])          # (n,)
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    freed = np.bincount(contexts, weights=taken, minlength=n_contexts)
    known = totals > 0
    divisors = np.where(known, totals, 1.0)
    return (counts - taken) / divisors[contexts], np.where(known, freed / divisors, 1.0)


def witten_bell_shares(counts: np.ndarray, contexts: np.ndarray, n_contexts: int) -> Shares:
    """How often something new came after a context tells how likely something new is next.

        share(h, x) = c / (C + T),   backoff(h) = T / (C + T)

    where C is the sum of h's counts and T the number of different ids that were seen after h.

    Args:
        counts: (n,) integers of at least 0, of the n-grams of one length; those of 0 are not counted in T.
        contexts: (n,) integers 0 .. n_contexts - 1: which context each n-gram has.
        n_contexts: how many contexts there are.

    Returns:
        (n,) float64 shares and (n_contexts,) float64 weights. A context without counts has weight 1.

    Source:
        Witten and Bell 1991, "The zero-frequency problem", method C; Chen and Goodman 1998, section 2.6.

    Example:
        >>> witten_bell_shares(np.array([3, 1, 2]), np.array([0, 0, 1]), 2)[1].tolist()
        [0.3333333333333333, 0.3333333333333333]
    """
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    n_different = np.bincount(contexts, weights=counts > 0, minlength=n_contexts)
    divisors = np.maximum(totals + n_different, 1)
    return counts / divisors[contexts], np.where(totals > 0, n_different / divisors, 1.0)


def katz_discounts(n_with: np.ndarray) -> np.ndarray:
    """Which part of a count Katz keeps: Good-Turing's for small counts, all of a great one.

    For 1 <= r <= R, with r* = (r+1) n_{r+1} / n_r and what is lost on greater counts given back,

        d_r = (r*/r - A) / (1 - A),   A = (R+1) n_{R+1} / n_1.

    Args:
        n_with: (R + 2,) integers; n_with[r] is how many n-grams were seen exactly r times, for r = 0 .. R+1; R >= 1.

    Returns:
        (R + 1,) float64: d_r for r = 0 .. R; d_0 = 1. If a d_r is not strictly between 0 and 1 the same is tried with
        R - 1, R - 2, .. 2 in the place of R, and d = 1 above it; if that fails too, each count loses a half:
        d_r = 1 - 0.5/r for all r from 1 to R.

    Source:
        Katz 1987, "Estimation of probabilities from sparse data", equation 9 ff.; the retreat is ours.

    Example:
        >>> katz_discounts(np.array([0, 8, 3, 1, 0])).round(4).tolist()
        [1.0, 0.6, 0.2, 1.0]
    """
    kept = np.ones(len(n_with) - 1)
    for largest in range(len(n_with) - 2, 1, -1):
        r = np.arange(1, largest + 1)
        if n_with[1 : largest + 1].min() == 0:
            continue
        ratios = (r + 1) * n_with[2 : largest + 2] / (n_with[1 : largest + 1] * r)
        lost = (largest + 1) * n_with[largest + 1] / n_with[1]
        if lost < 1 and np.all((ratios > lost) & (ratios < 1)):
            kept[1 : largest + 1] = (ratios - lost) / (1 - lost)
            return kept
    kept[1:] = 1 - 0.5 / np.arange(1, len(kept))
    return kept


def em_step(weights: np.ndarray, probabilities: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One round of expectation and maximisation for the weights of Jelinek and Mercer.

    Levels 1 .. K are contexts of 0 .. K-1 ids; the longest is asked first. Level m answers with probability weight_m;
    if it does not, the next shorter one is asked, and level 0, the uniform distribution, always answers. A level that
    does not know the context never answers. So

        p(x) = sum over m of  weight_m * (1 - weight_{m+1}) * .. * (1 - weight_K) * p_m(x)

    over the levels that know. Expectation: which level answered, given x? Maximisation: the new weight of level m is
    how often it answered, out of the times it was asked and knew.

    Args:
        weights: (K,) float64 between 0 and 1, of levels 1 .. K: weight_m is weights[m - 1].
        probabilities: (N, K+1) float64: for each id of a held-out text, column m is what level m alone says of it.
            Column 0 is above 0, the others may be 0.
        known: (N, K) bool: whether level m knows the context of this id; level m is column m - 1 here.

    Returns:
        (K,) float64, the new weights; a level that was never asked keeps its weight. The held-out text is never less
        likely with them.

    Source:
        Jelinek and Mercer 1980, "Interpolated estimation of Markov source parameters from sparse data"; Dempster, Laird
        and Rubin 1977.

    Example:
        >>> em_step(np.array([0.5]), np.array([[0.25, 0.75], [0.25, 0.25]]), np.array([[True], [True]])).tolist()
        [0.625]
    """
    answers = np.where(known, weights, 0.0)                                                # (N, K)
    passed_on = np.cumprod((1 - answers)[:, ::-1], axis=1)[:, ::-1]                        # nobody from m up answered
    asked = np.concatenate([passed_on, np.ones((len(known), 1))], axis=1)                  # (N, K+1)
    joint = asked * np.concatenate([np.ones((len(known), 1)), answers], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)                                      # (N, K+1)
    reached = np.cumsum(shares, axis=1)[:, 1:]                                             # level m was asked
    answered, times = (shares[:, 1:] * known).sum(axis=0), (reached * known).sum(axis=0)
    return np.divide(answered, times, out=weights.astype(float), where=times > 0)


def interpolated_model(
    counts: NGramCounts, shares: Sequence[Shares], suffixes: Sequence[np.ndarray] | None = None
) -> BackoffModel:
    """The model whose levels add what the shorter context says to their own shares.

    Args:
        counts: order at least 1.
        shares: one pair per level.
        suffixes: `suffix_places(counts)`, if they are there already.
    """
    suffixes = suffix_places(counts) if suffixes is None else suffixes
    uniform = 1 / counts.vocab_size
    lower = np.full(1, uniform)
    probabilities = []
    for level, (share, backoff), shorter in zip(counts.levels, shares, suffixes, strict=True):
        lower = share + backoff[level.keys // counts.vocab_size] * lower[shorter]
        probabilities.append(lower)
    backoffs = [backoff for _, backoff in shares]
    return BackoffModel.from_probabilities(counts, probabilities, backoffs[1:], float(backoffs[0][0]) * uniform)


def maximum_likelihood(counts: NGramCounts) -> BackoffModel:
    """p(x | h) = c(h, x) / c(h): nothing is kept for the unseen, which is impossible (infinitely many bits).

    A context that was never seen has no such fraction; the longest tail of it that was seen is asked.
    """
    return interpolated_model(counts, [_relative(level, counts.vocab_size, 0.0) for level in counts.levels])


def jelinek_mercer(counts: NGramCounts, weights: Sequence[float]) -> BackoffModel:
    """A fixed mixture of the orders: share = weight c/C, backoff = 1 - weight.

    Args:
        counts: order at least 1.
        weights: one per level, the shortest context first, each at least 0 and below 1 for the first, at most 1 for
            the others; `jelinek_mercer_weights` finds good ones.
    """
    weights = [float(weight) for weight in weights]
    if len(weights) != counts.order or not all(0 <= weight <= 1 for weight in weights):
        raise ConfigError(f"expected {counts.order} weights between 0 and 1, not {weights}")
    levels = zip(counts.levels, weights, strict=True)
    return interpolated_model(counts, [_relative(level, counts.vocab_size, 1 - weight) for level, weight in levels])


def jelinek_mercer_weights(
    counts: NGramCounts, held_out_ids: Sequence[int] | np.ndarray, n_steps: int = EM_STEPS
) -> np.ndarray:
    """The weights that make a held-out text most likely, by `n_steps` of `em_step` from 0.5.

    The text gets one more id, after a context that every level knows, that nobody has ever seen there: so no weight
    becomes 1, and something is left to the uniform distribution everywhere.

    Args:
        counts: of other text; order at least 1.
        held_out_ids: (N,) integers, at least one.

    Returns:
        (K,) float64, the shortest context first.
    """
    ids = checked_ids(held_out_ids, counts.vocab_size)
    if len(ids) == 0:
        raise DataError("weights cannot be found on an empty held-out text; expected at least one id")
    probabilities = np.zeros((len(ids) + 1, counts.order + 1))
    known = np.zeros((len(ids) + 1, counts.order), bool)
    probabilities[:, 0] = 1 / counts.vocab_size
    known[-1] = True
    nodes = np.zeros(len(ids) + 1, np.int64)
    for length, level in enumerate(counts.levels[: len(ids)], start=1):
        contexts = nodes[:-1]
        nodes = find(level.keys, contexts * counts.vocab_size + ids[length - 1 :])
        totals = level.context_counts[contexts]
        known[length - 1 : -1, length - 1] = totals > 0
        probabilities[length - 1 : -1, length] = level.counts[nodes] / np.maximum(totals, 1)
    weights = np.full(counts.order, 0.5)
    for _ in range(n_steps):
        weights = em_step(weights, probabilities, known)
    return weights


def witten_bell(counts: NGramCounts) -> BackoffModel:
    """Interpolated Witten-Bell smoothing; see `witten_bell_shares`."""
    return interpolated_model(
        counts,
        [
            witten_bell_shares(level.counts[:-1], level.keys // counts.vocab_size, len(level.context_counts) - 1)
            for level in counts.levels
        ],
    )


def absolute_discounting(counts: NGramCounts) -> BackoffModel:
    """Interpolated absolute discounting: occurrences on every level, one discount per level (`absolute_discount`)."""
    return _discounted(counts, False, _one_discount)


def kneser_ney(counts: NGramCounts) -> BackoffModel:
    """Interpolated Kneser-Ney: absolute discounting on `adjusted_counts`, where shorter n-grams count continuations."""
    return _discounted(counts, True, _one_discount)


def modified_kneser_ney(counts: NGramCounts) -> BackoffModel:
    """Interpolated Kneser-Ney with three discounts per level (`modified_discounts`)."""
    return _discounted(counts, True, lambda values: modified_discounts(count_of_counts(values, 4)))


def katz(counts: NGramCounts) -> BackoffModel:
    """Katz back-off: counts keep their part (`katz_discounts`), the unseen share the rest as the shorter context says.

    A context of great counts only would leave nothing to the unseen; its total is then raised by one. One that was
    followed by every id keeps nothing for others.
    """
    lower, probabilities, backoffs = np.full(1, 1 / counts.vocab_size), [], []
    for level, suffixes in zip(counts.levels, suffix_places(counts), strict=True):
        contexts, n_contexts = level.keys // counts.vocab_size, len(level.context_counts) - 1
        occurrences = level.counts[:-1]
        kept = katz_discounts(count_of_counts(occurrences, KATZ_LARGEST + 1))
        small = occurrences <= KATZ_LARGEST
        kept_counts = occurrences * np.where(small, kept[np.minimum(occurrences, KATZ_LARGEST)], 1)
        totals = np.maximum(level.context_counts[:-1], 1).astype(float)
        sums = np.bincount(contexts, weights=kept_counts, minlength=n_contexts)
        full = np.bincount(contexts, minlength=n_contexts) == counts.vocab_size
        totals = np.where(full, sums, np.where(sums >= totals, totals + 1, totals))
        shares = kept_counts / totals[contexts]
        unseen = 1 - np.bincount(contexts, weights=lower[suffixes], minlength=n_contexts)
        backoffs.append(np.where(full, 0.0, (1 - sums / totals) / np.where(full, 1.0, unseen)))
        probabilities.append(shares)
        lower = shares
    return BackoffModel.from_probabilities(
        counts, probabilities, backoffs[1:], float(backoffs[0][0]) / counts.vocab_size
    )


def stupid_backoff(counts: NGramCounts, weight: float = STUPID_BACKOFF) -> BackoffModel:
    """Scores that are not probabilities: c(h, x) / c(h) if (h, x) was seen, else 0.4 times the shorter context's score.

    They do not sum to 1, so perplexities made of them mean nothing. An id that never occurred scores 0.

    Source:
        Brants et al. 2007, "Large language models in machine translation", equation 5.
    """
    relative = [_relative(level, counts.vocab_size, 0.0)[0] for level in counts.levels]
    backoffs = [np.full(len(level.keys), weight) for level in counts.levels[:-1]]
    return BackoffModel.from_probabilities(counts, relative, backoffs, 0.0, unseen_backoff=weight)


METHODS: dict[str, Callable[[NGramCounts], BackoffModel]] = {
    "mle": maximum_likelihood,
    "katz": katz,
    "witten-bell": witten_bell,
    "absolute": absolute_discounting,
    "kneser-ney": kneser_ney,
    "modified-kneser-ney": modified_kneser_ney,
    "stupid-backoff": stupid_backoff,
}
HELD_OUT_METHODS = ("add-k", "jelinek-mercer")
ALL_METHODS = ("mle", "add-k", "good-turing", "katz", "jelinek-mercer", *list(METHODS)[2:])


def fit_ngram(
    method: str,
    ids: Sequence[int] | np.ndarray,
    order: int,
    vocab_size: int,
    boundary: int | None = None,
    held_out_fraction: float = 0.1,
) -> NGramModel | BackoffModel:
    """Count a text and smooth the counts.

    Args:
        method: one of `ALL_METHODS`.
        ids: (N,) integers.
        order: at least 1.
        vocab_size: V.
        boundary: the id that parts documents; see `count_ngrams`.
        held_out_fraction: for "add-k" and "jelinek-mercer": so much of the end of the text chooses k, or the weights,
            with the counts of the rest; then all is counted.

    Returns:
        A model with `log_probabilities(ids)`, `distribution(context)`, `n_entries` and `n_bytes`.

    Raises:
        ConfigError: if the method is unknown or the order below 1.
        DataError: if there are too few ids.
    """
    if method not in ALL_METHODS:
        raise ConfigError(f"there is no smoothing method {method!r}; there are {', '.join(ALL_METHODS)}")
    if order < 1:
        raise ConfigError(f"smoothing needs an order of at least 1, not {order}")
    ids = checked_ids(ids, vocab_size)
    counts = count_ngrams(ids, order, vocab_size, boundary)
    if method in METHODS:
        return METHODS[method](counts)
    if method == "good-turing":
        return GoodTuringModel(order, vocab_size).fit_counts(counts)
    n_held_out = max(1, int(held_out_fraction * len(ids)))
    if len(ids) <= n_held_out:
        raise DataError(f"{method} chooses on a held-out part; {len(ids)} ids are too few")
    part, held_out = count_ngrams(ids[:-n_held_out], order, vocab_size, boundary), ids[-n_held_out:]
    if method == "jelinek-mercer":
        return jelinek_mercer(counts, jelinek_mercer_weights(part, held_out))
    chosen = choose_add_k(NGramModel(order, vocab_size).fit_counts(part), held_out, CANDIDATE_K)
    return NGramModel(order, vocab_size, chosen.add_k).fit_counts(counts)


def _one_discount(counts: np.ndarray) -> np.ndarray:
    return np.array([0.0, absolute_discount(count_of_counts(counts, 2))])


def _discounted(
    counts: NGramCounts, continuations: bool, discounts: Callable[[np.ndarray], np.ndarray]
) -> BackoffModel:
    """Interpolated discounting of occurrences or of `adjusted_counts`, with the discounts that fit each level."""
    suffixes, shares = suffix_places(counts), []
    occurrences = [level.counts[:-1] for level in counts.levels]
    adjusted = adjusted_counts(counts, suffixes) if continuations else occurrences
    for level, values in zip(counts.levels, adjusted, strict=True):
        contexts, n_contexts = level.keys // counts.vocab_size, len(level.context_counts) - 1
        shares.append(discounted_shares(values, contexts, n_contexts, discounts(values)))
    return interpolated_model(counts, shares, suffixes)


def _relative(level: NGramLevel, vocab_size: int, backoff: float) -> Shares:
    """(1 - backoff) c/C for every n-gram; `backoff` for every context that is followed by anything, else 1."""
    totals = level.context_counts[:-1]
    shares = (1 - backoff) * level.counts[:-1] / np.maximum(totals, 1)[level.keys // vocab_size]
    return shares, np.where(totals > 0, backoff, 1.0)
