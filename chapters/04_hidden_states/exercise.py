"""Chapter 04, Hidden states: fill in the holes (14 points).

`minillm course test 04` tests this file, `minillm course test 04 4.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def reflect(words: Sequence[str], reflections: Mapping[str, str]) -> list[str]:
    """The words as the other one would say them: "i am", "my" become "you are", "your".

    From left to right: the longest phrase of the table that stands here is replaced, and what was put in its place is
    not looked at again; a word that begins no phrase stays as it is.

    Args:
        words: (n,) in lower case.
        reflections: a word or several, separated by single spaces -> what takes its place, likewise.

    Returns:
        The new list, one word an entry; it may be longer or shorter than the old.

    Source:
        Weizenbaum 1966, who wrote these substitutions into his rules; the order is ours.

    Example:
        >>> reflect("i am sure you took my hat".split(), {"i am": "you are", "i": "you", "you": "i", "my": "your"})
        ['you', 'are', 'sure', 'i', 'took', 'your', 'hat']
    """
    # TASK 4.1 (1 point)
    # Walk through the words with a place that you move on yourself. At each place try the longest phrase first:
    # all the words that are left, joined by spaces, then all but the last, and so on. Move on behind what you
    # have replaced, or by one word.
    raise NotImplementedError("task 4.1")


def decompose(pattern: Sequence[str], words: Sequence[str]) -> list[list[str]] | None:
    """Take a sentence apart: what does each "*" of a pattern stand for?

    Args:
        pattern: entries are "*", which stands for any number of words, none included, or words, of which alternatives
            are parted by "|": "hat|cap" stands for one word, hat or cap.
        words: of the sentence; the pattern has to cover all of them.

    Returns:
        One list of words for each "*", in order; None if the pattern does not fit. Where it fits in several ways the
        first "*" is as short as possible, then the second, and so on.

    Source:
        Weizenbaum 1966, "decomposition rules"; his 0 is our "*".

    Example:
        >>> decompose(["*", "lost|mislaid", "my", "*"], "i think i lost my red hat".split())
        [['i', 'think', 'i'], ['red', 'hat']]
        >>> decompose(["*", "found", "*"], ["i", "lost", "it"]) is None
        True
    """
    # TASK 4.2 (2 points)
    # Let the function call itself with the rest of the pattern. A word of the pattern takes one word of the
    # sentence or fails. A "*" tries to take none, then one, then two words ..., and is content with the first for
    # which the rest of the pattern fits. Mind the difference between None (it does not fit) and [] (it fits, and
    # there is no "*").
    raise NotImplementedError("task 4.2")


def inside(
    lexical: np.ndarray, parents: np.ndarray, lefts: np.ndarray, rights: np.ndarray, probabilities: np.ndarray
) -> np.ndarray:
    """The probability that each symbol becomes each stretch of a sentence, short stretches first (CKY).

        chart[i, j, a] = sum over rules a -> b c, and over i < m < j, of  p(a -> b c) chart[i, m, b] chart[m, j, c]

    for stretches of at least two words; for one word, chart[i, i+1, a] = lexical[i, a].

    Args:
        lexical: (T, M) float64: probability that symbol a becomes word i; T at least 1.
        parents: (R,) int64: the symbol a of each rule a -> b c; R may be 0.
        lefts: (R,) int64: b.
        rights: (R,) int64: c.
        probabilities: (R,) float64.

    Returns:
        (T, T + 1, M) float64: entry [i, j, a] is the probability that symbol a becomes words i .. j-1; 0 where j <= i.

    Source:
        Baker 1979, "Trainable grammars for speech recognition"; the order of work is that of Cocke, Kasami and Younger
        (Younger 1967).

    Example:
        >>> one = np.array([0])                                           # S -> S S [0.5] | a [0.5]; a sentence a a a
        >>> inside(np.full((3, 1), 0.5), one, one, one, np.array([0.5]))[0, :, 0].tolist()
        [0.0, 0.5, 0.125, 0.0625]
    """
    # TASK 4.3 (3 points)
    # Fill in one-word stretches first. A longer stretch needs all shorter ones inside it: go through the starts
    # from the last to the first, or through the widths from 2 on. For one stretch, the left parts are
    # chart[start, start+1:stop] and the right parts chart[start+1:stop, stop]. Several rules of one symbol add
    # up: `np.bincount` with `weights` does that.
    raise NotImplementedError("task 4.3")


def log_forward(log_initial: np.ndarray, log_transitions: np.ndarray, log_scores: np.ndarray) -> np.ndarray:
    """The log-probability of the ids so far and of being in each state now, for every place of a sequence.

        forward[t, j] = log p(x_1, .., x_t, s_t = j) = log sum over i of exp(forward[t-1, i] + log_transitions[i, j])
                        + log_scores[t, j],   and for the first place log_initial[j] + log_scores[0, j]

    The log-sum of the last row is the log-probability of the whole sequence.

    Args:
        log_initial: (K,) float64, log-probability of each state at the first place; -inf for an impossible one.
        log_transitions: (K, K) float64, log-probability of going from state i (row) to state j (column).
        log_scores: (T, K) float64, log-probability of the id at place t if the state there is j; T at least 1.

    Returns:
        (T, K) float64 nats, -inf where there is no way; no argument is changed.

    Source:
        Rabiner 1989, "A tutorial on hidden Markov models", equations 19 to 21, in logarithms.

    Example:
        >>> half = np.log([0.5, 0.5])
        >>> forward = log_forward(half, np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.5, 0.25], [1.0, 1.0]]))
        >>> np.exp(forward).round(9).tolist()
        [[0.25, 0.125], [0.1875, 0.1875]]
    """
    # TASK 4.4 (2 points)
    # `np.logaddexp.reduce(table)` adds up probabilities along the first axis of a table of logarithms, and knows
    # what to do with -inf. Which axis of forward[t-1] and the transitions is the state that one comes from?
    raise NotImplementedError("task 4.4")


def viterbi(
    log_initial: np.ndarray, log_transitions: np.ndarray, log_scores: np.ndarray
) -> tuple[np.ndarray, float]:
    """The one most probable sequence of states.

    As `log_forward`, with a maximum in place of the sum; each state remembers which state it was best reached from, and
    the way is read off backwards from the best state at the end.

    Args:
        log_initial: (K,) float64, of each state at the first place.
        log_transitions: (K, K) float64, from state i (row) to state j (column).
        log_scores: (T, K) float64, of the id at place t if the state there is j; T at least 1.

    Returns:
        (T,) int64 states, and the log-probability of these states and the ids together. Of equally good states the one
        with the smallest number is taken, at the end as well as in every backward step.

    Source:
        Viterbi 1967, "Error bounds for convolutional codes and an asymptotically optimum decoding algorithm";
        Rabiner 1989, equations 32 to 35.

    Example:
        >>> stay, scores = np.log([[0.9, 0.1], [0.1, 0.9]]), np.log([[0.2, 0.8], [0.5, 0.5]])
        >>> path, score = viterbi(np.log([0.5, 0.5]), stay, scores)
        >>> path.tolist(), round(float(np.exp(score)), 12)
        ([1, 1], 0.18)
    """
    # TASK 4.5 (3 points)
    # Keep two things for each place: how good the best way to each state is, and from which state it came.
    # `argmax` takes the first of equal ones. At the end begin with the best last state and look up, place by
    # place, where it came from.
    raise NotImplementedError("task 4.5")


def expected_transitions(
    forward: np.ndarray, backward: np.ndarray, log_transitions: np.ndarray, log_scores: np.ndarray
) -> np.ndarray:
    """How often each step from state to state was taken, on average over all ways, each counted by its probability.

        p(s_t = i, s_t+1 = j | ids) = exp(forward[t, i] + log_transitions[i, j] + log_scores[t+1, j] + backward[t+1, j])
                                      / p(ids),   and its sum over t

    Args:
        forward: (T, K) float64, `log_forward` of the sequence, T at least 1; its last row is not all -inf.
        backward: (T, K) float64, `log_backward` of the sequence.
        log_transitions: (K, K) float64, from state i (row) to state j (column).
        log_scores: (T, K) float64, of the id at place t if the state there is j.

    Returns:
        (K, K) float64 counts of steps from i (row) to j (column); they sum to T - 1.

    Source:
        Baum, Petrie, Soules and Weiss 1970, "A maximization technique occurring in the statistical analysis of
        probabilistic functions of Markov chains"; Rabiner 1989, equation 37.

    Example:
        >>> sure = np.log([[0.5, 0.5], [0.5, 0.5]])
        >>> scores = np.log([[1.0, 1.0], [0.75, 0.25]])
        >>> forward = log_forward(np.log([0.5, 0.5]), sure, scores)
        >>> expected_transitions(forward, log_backward(sure, scores), sure, scores).round(9).tolist()
        [[0.375, 0.125], [0.375, 0.125]]
    """
    # TASK 4.6 (3 points)
    # For one t the four logarithms make a table of K times K: shape forward[t] as a column, what arrives as a
    # row. Subtract the log-probability of the whole sequence, which is the log-sum of the last row of `forward`,
    # before you take exp, not after.
    raise NotImplementedError("task 4.6")
