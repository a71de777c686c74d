"""The ids before each id of a text, for models that look back a fixed number of places, and batches of them.

Dimensions: N ids of a packed text, T ids of context, B examples of a batch.
"""

import numpy as np

from minillm.data.batches import NOT_COUNTED
from minillm.data.packing import PackedTokens
from minillm.errors import ConfigError, DataError


def contexts_before(token_ids: np.ndarray, n_before: int, end_of_text_id: int) -> np.ndarray:
    """For each id of a packed text, the `n_before` ids before it, the nearest last.

    Documents follow one another, each with the end-of-text id behind it, and none looks into the one before: places
    before the beginning of the id's own document hold the end-of-text id. The end-of-text id itself is the last id of
    its document, with that document's ids before it.

    Args:
        token_ids: (N,) integers; N may be 0.
        n_before: T, at least 0.
        end_of_text_id: what stands behind each document; the last one may lack it.

    Returns:
        (N, T) int64.

    Raises:
        DataError: if the ids are not a single sequence of integers.
        ConfigError: if n_before is negative.

    Example:
        >>> contexts_before(np.array([5, 6, 7, 0, 8]), 2, end_of_text_id=0).tolist()
        [[0, 0], [0, 5], [5, 6], [6, 7], [0, 0]]
    """
    check_sequence(token_ids, n_before)
    begins = np.flatnonzero(token_ids[:-1] == end_of_text_id) + 1
    first = np.zeros((len(token_ids), 1), np.int64)                # (N, 1)
    first[begins] = begins[:, None]
    first = np.maximum.accumulate(first)                           # (N, 1)
    before = np.arange(len(token_ids))[:, None] - np.arange(n_before, 0, -1)  # (N, T)
    ids = token_ids[np.maximum(before, first)]                     # (N, T)
    return np.where(before >= first, ids, end_of_text_id).astype(np.int64)  # (N, T)


def check_sequence(token_ids: np.ndarray, n_before: int) -> None:
    """Check the arguments of `contexts_before`; its errors."""
    if token_ids.ndim != 1 or token_ids.dtype.kind not in "iu":
        raise DataError(
            f"token ids are an array of shape {token_ids.shape} and {token_ids.dtype}, expected one sequence of "
            "integers; pack the documents first"
        )
    if n_before < 0:
        raise ConfigError(f"n_before is {n_before}, expected 0 or more ids of context")


class ContextBatches:
    """Every id of a packed text exactly once in each epoch, with its context, in an order shuffled anew each time.

    Any step can be asked for at any time. Epochs follow one another without a break: a batch may hold the last examples
    of one and the first of the next.
    """

    def __init__(
        self, token_ids: PackedTokens | np.ndarray, n_before: int, end_of_text_id: int, batch_size: int, seed: int
    ):
        """Cut the text.

        Args:
            token_ids: (N,) ids, at least one, each document followed by the end-of-text id.
            n_before: T, at least 1.
            end_of_text_id: what separates documents.
            batch_size: examples B, at least 1.
            seed: orders them; at least 0.

        Raises:
            ConfigError: if a size or the seed is out of range.
            DataError: if there is no id.
        """
        for name, value, least in (("n_before", n_before, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{name} is {value}, expected {least} or more")
        self.token_ids = np.asarray(token_ids[:])
        if len(self.token_ids) == 0:
            raise DataError("there is nothing to predict in an empty text; expected at least one id")
        self.contexts = contexts_before(self.token_ids, n_before, end_of_text_id)  # (N, T)
        self.batch_size, self.seed = batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches after which every id has been predicted, N / B rounded up."""
        return -(-len(self.token_ids) // self.batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of batch number `step`.

        Args:
            step: counted from 0 over all epochs.

        Returns:
            contexts and targets, both (B, T) int64, as the training loop wants them: only the last target of a row
            counts, the others are `NOT_COUNTED`.

        Raises:
            DataError: if the step is negative.
        """
        if step < 0:
            raise DataError(f"step must be at least 0, not {step}")
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(numbers, len(self.token_ids))
        chosen = np.concatenate([self._order(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)])
        contexts = self.contexts[chosen]                           # (B, T)
        targets = np.full_like(contexts, NOT_COUNTED)              # (B, T)
        targets[:, -1] = self.token_ids[chosen]
        return contexts, targets

    def _order(self, epoch: int) -> np.ndarray:
        """The order of an epoch's examples; the last two epochs are kept."""
        if epoch not in self._orders:
            self._orders = {known: kept for known, kept in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.token_ids))
        return self._orders[epoch]
