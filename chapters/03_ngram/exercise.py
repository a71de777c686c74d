"""Chapter 03, N-grams: fill in the holes (15 points).

`minillm course test 03` tests this file, `minillm course test 03 3.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import numpy as np

from minillm.statistical.smoothing import FALLBACK_DISCOUNTS, Shares


def good_turing_counts(n_with: np.ndarray) -> np.ndarray:
    """How often what was seen r times will be seen in another text as long: r* = (r+1) n_{r+1} / n_r.

    Args:
        n_with: (R + 2,) integers; n_with[r] is how many n-grams were seen exactly r times, for r = 0 .. R+1. The entry
            for r = 0 is not looked at.

    Returns:
        (R + 1,) float64: r* for r = 0 .. R. Entry 0 is 0 (what the unseen get depends on how many there are). Where the
        estimate cannot be used, r* = r: where n_r or n_{r+1} is 0, and where it would raise a count instead of lowering
        it.

    Source:
        Good 1953, equation 2 (there r* = (r+1) E(n_{r+1}) / E(n_r)); the exceptions are ours.

    Example:
        >>> good_turing_counts(np.array([0, 10, 4, 3])).tolist()
        [0.0, 0.8, 2.0]
    """
    # TASK 3.1 (2 points)
    # The whole line of estimates is one expression: r + 1 times the entries from the second on, divided by the
    # entries before them. Then decide for each r whether it may be used; where it may not, the count stays what
    # it is. Divide by something harmless where n_r is 0.
    raise NotImplementedError("task 3.1")


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
    # TASK 3.2 (4 points)
    # Write the probability of each "who answered" as a column: the chance that nobody above answered, times the
    # chance that this level answers, times what it says. A level that does not know the context has weight 0 for
    # that id only. Divide each row by its sum. Level m was asked whenever it or somebody below it answered; count
    # only the ids whose context it knows.
    raise NotImplementedError("task 3.2")


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
    # TASK 3.3 (2 points)
    # `np.bincount` with `weights` adds up whatever you give it, context by context; with `minlength` it also has
    # an entry for the contexts that have no n-gram at all. How many different ids came: add up 1 for every count
    # above 0.
    raise NotImplementedError("task 3.3")


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
    # TASK 3.4 (3 points)
    # First how much each n-gram loses: look its count up in the table of discounts, counts beyond the table like
    # the last entry, and never more than it has. What the n-grams of a context lose together is what the context
    # leaves to others. A context whose counts are all 0 must not divide by 0.
    raise NotImplementedError("task 3.4")


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
    # TASK 3.5 (2 points)
    # Write the three formulas down as they stand, and before them the one case, after them the other, in which
    # they cannot be used.
    raise NotImplementedError("task 3.5")


def continuation_counts(n_ngrams: int, longer_suffixes: np.ndarray) -> np.ndarray:
    """Before how many different ids an n-gram was seen: in how many longer n-grams it is the tail.

    "Francisco" may occur often, but only after "San": its count is large and its continuation count is 1.

    Args:
        n_ngrams: how many distinct n-grams this length has.
        longer_suffixes: (n_longer,) integers 0 .. n_ngrams - 1: for every distinct n-gram that is one id longer, which
            n-gram it becomes when its first id is taken away.

    Returns:
        (n_ngrams,) int64.

    Source:
        Kneser and Ney 1995, "Improved backing-off for m-gram language modeling".

    Example:
        >>> continuation_counts(3, np.array([0, 2, 2, 0, 2])).tolist()
        [2, 0, 3]
    """
    # TASK 3.6 (1 point)
    # Every longer n-gram is listed once, whatever its own count. So count how often each number appears in the
    # list; an n-gram that is in nobody's tail has 0.
    raise NotImplementedError("task 3.6")


def choose_longest(
    places: np.ndarray, stored: np.ndarray, log_backoffs: np.ndarray, shorter: np.ndarray
) -> np.ndarray:
    """log p for each id of a text: what is stored for its n-gram, or else the back-off weight and the shorter n-gram's.

    Args:
        places: (N,) integers: where each id's n-gram is stored, or -1 if it is not.
        stored: (n,) float64, log-probabilities of the n-grams; n may be 0.
        log_backoffs: (N,) float64, of each id's context; -inf for a context that leaves nothing to others.
        shorter: (N,) float64, log-probability of each id after the context without its first id.

    Returns:
        (N,) float64; none of the arguments is changed.

    Example:
        >>> choose_longest(np.array([1, -1]), np.array([-3.0, -2.0]), np.array([-0.5, -0.5]), np.array([-1.0, -1.0]))
        array([-2. , -1.5])
    """
    # TASK 3.7 (1 point)
    # NumPy takes place -1 for the last entry, so looking up first and choosing afterwards is safe, unless nothing
    # is stored at all.
    raise NotImplementedError("task 3.7")
