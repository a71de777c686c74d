"""A model that keeps a probability for every n-gram it has seen and asks a shorter context about the others.

    p(x | h) = probability stored for (h, x)              if it is stored
             = backoff(h) * p(x | h without its first id)   otherwise; backoff(h) is 1 where h is not stored

All methods of `minillm.statistical.smoothing` can be written so, which makes scoring the same few lookups for each of
them, and it is what the ARPA file format holds.

Dimensions: V vocabulary, N ids of a text, n n-grams of one level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from minillm.errors import CheckpointError, DataError
from minillm.statistical.counts import NGramCounts, check_sizes, checked_ids, find
from minillm.statistical.hashing import HashIndex
from minillm.statistical.storage import keys_fit, load_arrays, save_arrays

FORMAT = "minillm n-gram model 1"
INDEX_IDS = 10_000  # a text of so many ids is worth a hash table


@dataclass(frozen=True)
class BackoffLevel:
    """The n-grams of one length m. Place -1 stands for "not stored": `log_backoffs` ends with an entry for it.

    Attributes:
        keys: (n,) int64, sorted: place of the first m-1 ids in the level below, times V, plus the last id. Level 1 has
            all V ids, so that places and ids are the same there.
        log_probabilities: (n,) float64 nats, of the last id after the others; -inf where it is impossible.
        log_backoffs: (n + 1,) float64 nats, of the n-gram as a context; zeros for the longest.
    """

    keys: np.ndarray
    log_probabilities: np.ndarray
    log_backoffs: np.ndarray


class BackoffModel:
    """Stored probabilities of n-grams and back-off weights of contexts; ready to score, not to be fitted further."""

    def __init__(self, vocab_size: int, levels: Sequence[BackoffLevel], boundary: int | None = None):
        """A model of these levels, at least one.

        Args:
            vocab_size: V.
            levels: one per length, the shortest first.
            boundary: the id that parts documents, if no n-gram reaches across it (`count_ngrams`).
        """
        check_sizes(len(levels), vocab_size, boundary)
        self.vocab_size, self.levels, self.boundary = vocab_size, tuple(levels), boundary
        self._indexes: list[HashIndex] | None = None

    @classmethod
    def from_probabilities(
        cls,
        counts: NGramCounts,
        probabilities: Sequence[np.ndarray],
        backoffs: Sequence[np.ndarray],
        unseen_unigram: float,
        unseen_backoff: float = 1.0,
    ) -> Self:
        """The model that stores these probabilities for the n-grams of a count table.

        Args:
            counts: whose n-grams they are.
            probabilities: one (n,) array per length 1 .. order, in the order of the counts.
            backoffs: one (n,) array per length 1 .. order - 1.
            unseen_unigram: probability of an id that never occurred, with an empty context.
            unseen_backoff: weight of a context that is not stored.
        """
        known = counts.levels[0].keys
        levels = []
        for length, level in enumerate(counts.levels, start=1):
            stored, backoff = probabilities[length - 1], np.ones(len(level.keys))
            if length < counts.order:
                backoff = backoffs[length - 1]
            keys = level.keys
            if length == 1:
                keys = np.arange(counts.vocab_size)
                stored = _spread(known, stored, unseen_unigram, counts.vocab_size)
                backoff = _spread(known, backoff, unseen_backoff, counts.vocab_size)
            if length == 2:
                context, last = np.divmod(keys, counts.vocab_size)
                keys = known[context] * counts.vocab_size + last
            with np.errstate(divide="ignore"):
                levels.append(BackoffLevel(keys, np.log(stored), np.log(np.append(backoff, unseen_backoff))))
        return cls(counts.vocab_size, levels, counts.boundary)

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.levels)

    @property
    def n_entries(self) -> int:
        """How many n-grams of all lengths the model keeps."""
        return sum(len(level.keys) for level in self.levels)

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays, without the hash tables that the first long text makes (4 to 8 bytes an n-gram)."""
        return sum(array.nbytes for level in self.levels for array in vars(level).values())

    def memory_report(self) -> str:
        """A line per length: n-grams, megabytes, and what part of all V^m possible n-grams that is."""
        lines = [f"{'length':>6}  {'n-grams':>12}  {'megabytes':>10}  part of all possible"]
        for length, level in enumerate(self.levels, start=1):
            n_bytes = sum(array.nbytes for array in vars(level).values())
            part = len(level.keys) / float(self.vocab_size) ** length
            lines.append(f"{length:>6}  {len(level.keys):>12,}  {n_bytes / 1e6:>10.2f}  {part:.2g}")
        lines.append(f"{'all':>6}  {self.n_entries:>12,}  {self.n_bytes / 1e6:>10.2f}")
        return "\n".join(lines)

    def log_probabilities(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """log p(id | the ids before it) for every id of a text; the first ones have shorter contexts.

        Args:
            ids: (N,) integers 0 .. V-1; N may be 0.

        Returns:
            (N,) float64 nats; -inf for what the model holds impossible.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        ids = checked_ids(ids, self.vocab_size)
        indexes = self._indexes_for(len(ids))
        log_probabilities = self.levels[0].log_probabilities[ids]     # (N,)
        nodes = ids                                                   # place of the n-gram that ends here, or -1
        for length, level in enumerate(self.levels[1 : len(ids)], start=2):
            contexts = nodes[:-1]
            wanted = contexts * self.vocab_size + ids[length - 1 :]   # below 0, so never found, behind a place of -1
            nodes = find(level.keys, wanted) if indexes is None else indexes[length - 2].find(level.keys, wanted)
            backoffs = self.levels[length - 2].log_backoffs[contexts]
            log_probabilities[length - 1 :] = choose_longest(
                nodes, level.log_probabilities, backoffs, log_probabilities[length - 1 :]
            )
        return log_probabilities

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """p(x | context) for every id x.

        Args:
            context: (T,) integers; the last order - 1 of them count.

        Returns:
            (V,) float64; it sums to 1 unless the method is not a distribution (stupid backoff).

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        context = checked_ids(context, self.vocab_size)
        probabilities = np.exp(self.levels[0].log_probabilities)      # (V,)
        for length in range(1, min(self.order - 1, len(context)) + 1):
            node = self._place(context[len(context) - length :])
            probabilities *= np.exp(self.levels[length - 1].log_backoffs[node])
            if node >= 0:
                longer = self.levels[length]
                start, end = np.searchsorted(longer.keys, [node * self.vocab_size, (node + 1) * self.vocab_size])
                last = longer.keys[start:end] - node * self.vocab_size
                probabilities[last] = np.exp(longer.log_probabilities[start:end])
        return probabilities

    def _place(self, ngram: np.ndarray) -> int:
        """Where this n-gram is stored in the level of its length, or -1."""
        node = ngram[:1]
        for level, token_id in zip(self.levels[1:], ngram[1:], strict=False):
            node = find(level.keys, node * self.vocab_size + token_id)
        return int(node[0])

    def _indexes_for(self, n_ids: int) -> list[HashIndex] | None:
        """Hash tables of levels 2 and up, made when a text is long enough to be worth it, and kept."""
        if self._indexes is None and n_ids >= max(INDEX_IDS, self.n_entries // 10):
            self._indexes = [HashIndex(level.keys) for level in self.levels[1:]]
        return self._indexes

    def save(self, path: str | Path) -> None:
        """Write one file: NumPy arrays and a JSON header, no pickle; an old file is replaced by a whole one."""
        arrays = {
            f"{name}_{length}": array
            for length, level in enumerate(self.levels, start=1)
            for name, array in vars(level).items()
        }
        header = {"format": FORMAT, "vocab_size": self.vocab_size, "order": self.order, "boundary": self.boundary}
        save_arrays(Path(path), header, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that was saved.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        header, arrays = load_arrays(Path(path), FORMAT)
        try:
            levels = [
                BackoffLevel(*(arrays[f"{name}_{length}"] for name in ("keys", "log_probabilities", "log_backoffs")))
                for length in range(1, header["order"] + 1)
            ]
            model = cls(header["vocab_size"], levels, header["boundary"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} lacks a part of an n-gram model ({error}); save the model again") from None
        _check_levels(path, model)
        return model


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
    if len(stored) == 0:
        return log_backoffs + shorter
    return np.where(places >= 0, stored[places], log_backoffs + shorter)


def sample_ids(
    model,
    n_ids: int,
    generator: np.random.Generator,
    context: Sequence[int] = (),
    temperature: float = 1.0,
    stop: int | None = None,
) -> list[int]:
    """Continue a context by drawing id after id from the model's own predictions.

    Args:
        model: anything with `distribution(context) -> (V,)`.
        n_ids: the most ids to draw.
        generator: where the randomness comes from; one number is drawn for each id.
        context: ids before the first one.
        temperature: above 0; p^(1/temperature) is drawn from, below 1 the likely becomes likelier.
        stop: an id behind which nothing more is drawn; it is the last one returned.

    Returns:
        At most n_ids ids, the context not among them.

    Raises:
        DataError: if the temperature is not above 0, or the model leaves nothing to choose from.
    """
    if not 0 < temperature < float("inf"):
        raise DataError(f"temperature must be above 0, not {temperature}")
    ids = list(context)
    for _ in range(n_ids):
        probabilities = model.distribution(ids[max(0, len(ids) - max(0, model.order - 1)) :])
        largest = probabilities.max()
        if not largest > 0:
            raise DataError("the model holds every id impossible here; choose a smoothed one")
        cumulative = np.cumsum((probabilities / largest) ** (1 / temperature))
        drawn = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
        ids.append(min(int(drawn), len(cumulative) - 1))
        if ids[-1] == stop:
            break
    return ids[len(context) :]


def _spread(known: np.ndarray, values: np.ndarray, other: float, vocab_size: int) -> np.ndarray:
    """(V,): the values at the known ids, `other` elsewhere."""
    everywhere = np.full(vocab_size, float(other))
    everywhere[known] = values
    return everywhere


def _check_levels(path: str | Path, model: BackoffModel) -> None:
    """Raise a CheckpointError unless the arrays fit together."""
    n_below = 1
    for level in model.levels:
        n = len(level.keys)
        shapes = [array.shape for array in vars(level).values()]
        kinds = [array.dtype.kind for array in vars(level).values()]
        fitting = shapes == [(n,), (n,), (n + 1,)] and kinds == ["i", "f", "f"]
        if not fitting or not keys_fit(level.keys, n_below * model.vocab_size):
            raise CheckpointError(f"the arrays of {path} contradict one another; save the model again")
        n_below = n
    if len(model.levels[0].keys) != model.vocab_size:
        raise CheckpointError(f"{path} has not all {model.vocab_size} ids; save the model again")
