"""Chapter 01, Corpus: fill in the holes (13 points).

`minillm course test 01` tests this file, `minillm course test 01 1.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections import Counter
from itertools import combinations

import numpy as np

from minillm.data.outliers import MAD_OF_A_NORMAL, check_values
from minillm.data.series import known_numbers
from minillm.data.shingles import words_of
from minillm.errors import ConfigError


def robust_z_scores(values: np.ndarray) -> np.ndarray:
    """Scores by the median and the median distance from it, which half of the values could not move.

    r_i = 0.6745 (x_i - median) / MAD, where MAD is the median of |x_i - median|. The factor makes the scores of normal
    numbers agree with z-scores. If more than half of the values are equal, MAD is 0: then the values at the median
    score 0 and all others plus or minus infinity.

    Args:
        values: (n,) finite numbers, n >= 1.

    Returns:
        (n,) float64.

    Raises:
        DataError: if there is no value, or one is not finite.

    Source:
        Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers"; they call a value with |r| > 3.5 an outlier.

    Example:
        >>> robust_z_scores([1.0, 2.0, 3.0, 4.0, 100.0]).round(3).tolist()
        [-1.349, -0.674, 0.0, 0.674, 65.426]
    """
    # TASK 1.1 (2 points)
    # Two medians: first that of the values, then that of their distances from it, without signs. Then think of a
    # list in which more than half of the values are equal: what would you divide by?
    raise NotImplementedError("task 1.1")


def interpolate_missing(values: np.ndarray) -> np.ndarray:
    """The values with each hole bridged by a straight line between its two known neighbours.

    Between known values at places a < b, place i gets x_a + (x_b - x_a) (i - a) / (b - a). Before the first known value
    and after the last there is no line: these places get the nearest known value.

    Args:
        values: (n,) numbers or NaN, in an order that means something (time, place in a file).

    Returns:
        (n,) float64; the input stays as it is.

    Raises:
        DataError: if no value is known.

    Example:
        >>> interpolate_missing([np.nan, 1.0, np.nan, np.nan, 4.0]).tolist()
        [1.0, 1.0, 2.0, 3.0, 4.0]
    """
    # TASK 1.2 (2 points)
    # `np.interp` draws straight lines between known points; what it needs is the places of the holes, the places
    # of the known values, and these values. Work on a copy: `known_numbers` makes one and says where values are
    # known.
    raise NotImplementedError("task 1.2")


def top_ngram_share(text: str, n_words: int) -> float:
    """Characters that belong to the most frequent run of `n_words` words, as a share of the characters of all words.

    A run that is there only once counts nothing. Of runs that are equally frequent the longest counts. Runs that
    overlap count each, up to a share of 1.

    Args:
        text: any text; words are what stands between white space.
        n_words: 1 or more.

    Returns:
        Between 0 and 1.

    Source:
        Rae et al. 2021, arXiv:2112.11446, table A1.

    Example:
        >>> top_ngram_share("buy it buy it now", 2)
        0.7692307692307693
    """
    # TASK 1.3 (2 points)
    # Count the runs, take those with the highest count, and of these the one with most letters. Its letters times
    # its count, over the letters of all words. A run that is there only once is no repetition.
    raise NotImplementedError("task 1.3")


def shingles(text: str, n_words: int = 5) -> set[tuple[str, ...]]:
    """Every run of `n_words` neighbouring words, as a set. A shorter text is one shingle, a text without words none.

    Args:
        text: any text.
        n_words: 1 or more. Long runs see the order of words and only copied passages; with 1 the order does not count.

    Raises:
        ConfigError: if n_words is below 1.

    Example:
        >>> sorted(shingles("to be or not to be", 2))
        [('be', 'or'), ('not', 'to'), ('or', 'not'), ('to', 'be')]
    """
    # TASK 1.4 (1 point)
    # Slice the list of words at every place where a whole run still fits. How many places are there, and what if
    # not even one run fits?
    raise NotImplementedError("task 1.4")


def signature(hashes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The MinHash signature of one text: for every hash function its least value over the shingles.

    s[k] = min over x of (a_k x + b_k mod 2^64) div 2^32. Unsigned 64-bit numbers are taken modulo 2^64 by themselves.

    Args:
        hashes: (n,) uint64, the text's shingles; repeated ones change nothing.
        a: (K,) uint64.
        b: (K,) uint64.

    Returns:
        (K,) uint32; 2^32 - 1 everywhere if there is no shingle.

    Source:
        Broder 1997; multiply-shift hashing: Dietzfelbinger et al. 1997.

    Example:
        >>> x, a, b = (np.array(row, dtype=np.uint64) for row in ([3 << 32, 1 << 33], [1, 3], [0, 1 << 32]))
        >>> signature(x, a, b).tolist()
        [2, 7]
    """
    # TASK 1.5 (3 points)
    # Make a table with a row per hash function and a column per shingle, by broadcasting; everything stays
    # uint64, so that overflow is the modulo that you want. Shift, then take the least of each row. What if the
    # table has no columns?
    raise NotImplementedError("task 1.5")


def band_pairs(signatures: np.ndarray, n_bands: int) -> set[tuple[int, int]]:
    """The pairs of texts that agree in all places of at least one band.

    A signature of K places is cut into `n_bands` bands of K / n_bands neighbouring places. Texts that are equal in the
    same band share a bucket, and all pairs of a bucket are candidates. `lsh_candidates` does the same for many texts.

    Args:
        signatures: (n, K) integers.
        n_bands: divides K.

    Returns:
        Pairs (i, j) of text numbers with i < j.

    Raises:
        ConfigError: if n_bands is below 1 or does not divide K.

    Example:
        >>> sorted(band_pairs(np.array([[1, 2, 3, 4], [1, 2, 0, 0], [9, 9, 3, 4]]), n_bands=2))
        [(0, 1), (0, 2)]
    """
    # TASK 1.6 (3 points)
    # For each band a dictionary of its own from the band's numbers to the texts that have them: the same numbers
    # in another band mean nothing. Lists and arrays cannot be keys, tuples can.
    raise NotImplementedError("task 1.6")
