"""Batches of (inputs, targets) as pure functions of (seed, step): any step can be asked for, in any order, at any time.

Dimensions: B batch size of one rank, T sequence length, P ranks, N tokens. The global batch of P * B rows is made once;
rank r takes the rows r * B to (r + 1) * B, so P ranks with B rows see what one rank with P * B rows sees.
"""

from collections.abc import Sequence

import numpy as np

from minillm.data.packing import PackedTokens
from minillm.errors import ConfigError, DataError

Tokens = PackedTokens | np.ndarray
NOT_COUNTED = -100  # a target that losses leave out


class SequentialBatches:
    """Every window of every epoch exactly once, in an order shuffled anew for each epoch.

    The tokens are cut into (N - 1) // T windows of T inputs that do not overlap; the target of an input is the next
    token. Shuffled epochs also shift all cuts by a random offset, as far as the tokens left over at the end allow;
    without shuffling the windows come in order with offset 0. Epochs follow one another without a break: where the
    number of windows is not a multiple of the global batch, a batch holds the last windows of one epoch and the first
    of the next. Nothing is left out, nothing comes twice within an epoch.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        """Check the sizes.

        Args:
            tokens: (N,) ids, at least T + 1 of them.
            batch_size: rows B of this rank's batch.
            seq_len: window length T.
            seed: orders the windows; at least 0.
            rank: which part of the global batch, 0 .. world_size - 1.
            world_size: number of ranks P.
            shuffle: False keeps the order of the text.

        Raises:
            ConfigError: if a size, the seed or the rank is out of range.
            DataError: if there are too few tokens for one window.
        """
        _check_sizes(tokens, batch_size, seq_len, seed, rank, world_size)
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.n_windows = (len(tokens) - 1) // seq_len
        self._epochs: dict[int, np.ndarray] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches after which every window has been seen: n_windows / (P * B), rounded up."""
        return -(-self.n_windows // (self.world_size * self.batch_size))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of global batch number `step`.

        Args:
            step: counted from 0 over all epochs.

        Returns:
            (inputs, targets), each (B, T) int64; targets are the inputs one token later.

        Raises:
            DataError: if the step is negative.
        """
        first = _first_row(step, self.batch_size, self.rank, self.world_size)
        rows = range(first, first + self.batch_size)
        starts = [int(self._epoch_starts(row // self.n_windows)[row % self.n_windows]) for row in rows]
        return _read_windows(self.tokens, starts, self.seq_len)

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        """Where each window of an epoch starts, in reading order; the last two epochs are kept."""
        if epoch not in self._epochs:
            starts = np.arange(self.n_windows) * self.seq_len
            if self.shuffle:
                generator = np.random.default_rng([self.seed, epoch])
                n_left_over = len(self.tokens) - 1 - self.n_windows * self.seq_len
                starts = generator.permutation(starts) + generator.integers(n_left_over + 1)
            self._epochs = {known: kept for known, kept in self._epochs.items() if known == epoch - 1}
            self._epochs[epoch] = starts
        return self._epochs[epoch]


class RandomWindows:
    """Windows that start anywhere: each of the N - T possible starts is equally likely, the last one included."""

    def __init__(
        self, tokens: Tokens, batch_size: int, seq_len: int, seed: int, rank: int = 0, world_size: int = 1
    ):
        """Check the sizes.

        Args:
            tokens: (N,) ids, at least T + 1 of them.
            batch_size: rows B of this rank's batch.
            seq_len: window length T.
            seed: with the step it decides the starts; at least 0.
            rank: which part of the global batch, 0 .. world_size - 1.
            world_size: number of ranks P.

        Raises:
            ConfigError: if a size, the seed or the rank is out of range.
            DataError: if there are too few tokens for one window.
        """
        _check_sizes(tokens, batch_size, seq_len, seed, rank, world_size)
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.rank, self.world_size = rank, world_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of global batch number `step`.

        Args:
            step: counted from 0.

        Returns:
            (inputs, targets), each (B, T) int64; targets are the inputs one token later.

        Raises:
            DataError: if the step is negative.
        """
        _first_row(step, self.batch_size, self.rank, self.world_size)
        generator = np.random.default_rng([self.seed, step])
        n_starts = len(self.tokens) - self.seq_len
        starts = generator.integers(n_starts, size=self.world_size * self.batch_size)  # (P*B,)
        mine = starts[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]  # (B,)
        return _read_windows(self.tokens, mine.tolist(), self.seq_len)


class DocumentBatches:
    """Each row is one document from its beginning, for texts of many short documents that should be seen whole.

    The first input is the end-of-text id, the last target the document's own end. Rows are as long as the longest of
    the batch; behind the end of a shorter one the targets are `NOT_COUNTED`. A document of more than T tokens becomes
    several rows. Epochs are shuffled and follow one another as in `SequentialBatches`.
    """

    def __init__(
        self,
        tokens: Tokens,
        end_of_text_id: int,
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Find the documents.

        Args:
            tokens: (N,) ids, each document followed by the end-of-text id.
            end_of_text_id: what separates documents.
            batch_size: rows B of this rank's batch.
            seq_len: the longest row T.
            seed: orders the rows; at least 0.
            rank: which part of the global batch, 0 .. world_size - 1.
            world_size: number of ranks P.

        Raises:
            ConfigError: if a size, the seed or the rank is out of range.
            DataError: if the tokens do not end with the end of a document.
        """
        _check_numbers(batch_size, seq_len, seed, rank, world_size)
        self.tokens, self.end_of_text_id = tokens[:], end_of_text_id
        if len(self.tokens) == 0 or self.tokens[-1] != end_of_text_id:
            raise DataError(
                f"{len(self.tokens)} tokens that do not end with the end-of-text id {end_of_text_id}; pack documents"
            )
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.rank, self.world_size = rank, world_size
        ends = np.flatnonzero(self.tokens == end_of_text_id) + 1
        starts = np.concatenate(([0], ends[:-1]))
        self.rows = [
            (first, min(first + seq_len, end))
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for first in range(start, end, seq_len)
        ]
        self._orders: dict[int, np.ndarray] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches after which every row has been seen, rounded up."""
        return -(-len(self.rows) // (self.world_size * self.batch_size))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of global batch number `step`.

        Args:
            step: counted from 0 over all epochs.

        Returns:
            (inputs, targets), each (B, longest) int64 with longest <= T.

        Raises:
            DataError: if the step is negative.
        """
        first = _first_row(step, self.batch_size, self.rank, self.world_size)
        numbers = range(first, first + self.batch_size)
        chosen = [self.rows[self._order(n // len(self.rows))[n % len(self.rows)]] for n in numbers]
        longest = max(stop - start for start, stop in chosen)
        inputs = np.full((self.batch_size, longest), self.end_of_text_id, np.int64)
        targets = np.full((self.batch_size, longest), NOT_COUNTED, np.int64)
        for row, (start, stop) in enumerate(chosen):
            targets[row, : stop - start] = self.tokens[start:stop]
            inputs[row, 1 : stop - start] = self.tokens[start : stop - 1]
            inputs[row, 0] = self.tokens[start - 1] if start else self.end_of_text_id
        return inputs, targets

    def _order(self, epoch: int) -> np.ndarray:
        """The order of an epoch's rows; the last two epochs are kept."""
        if epoch not in self._orders:
            self._orders = {known: kept for known, kept in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return self._orders[epoch]


class StreamBatches:
    """The text as B long streams read side by side, so that a model may carry its state from batch to batch.

    The tokens are cut into P * B streams of (N - 1) // (P * B) inputs, and batch number s holds the s-th T inputs of
    each: row b of a batch goes on where row b of the batch before stopped. The last batch of an epoch is shorter where
    T does not divide the streams; of the text only what does not divide by P * B is left out, at its end. Nothing is
    shuffled: order is the point.
    """

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, rank: int = 0, world_size: int = 1):
        """Cut the text.

        Args:
            tokens: (N,) ids, at least P * B + 1 of them.
            batch_size: streams B of this rank.
            seq_len: inputs per batch and stream T.
            rank: which part of the global batch, 0 .. world_size - 1.
            world_size: number of ranks P.

        Raises:
            ConfigError: if a size or the rank is out of range.
            DataError: if there is less than one input for each stream.
        """
        _check_sizes(tokens, batch_size, 1, 0, rank, world_size)
        _check_numbers(batch_size, seq_len, 0, rank, world_size)
        self.tokens, self.batch_size, self.seq_len = tokens, batch_size, seq_len
        self.stream_len = (len(tokens) - 1) // (world_size * batch_size)
        if self.stream_len == 0:
            raise DataError(f"{len(tokens)} tokens are too few for {world_size * batch_size} streams; use fewer")
        self.first_starts = [(rank * batch_size + row) * self.stream_len for row in range(batch_size)]

    @property
    def batches_per_epoch(self) -> int:
        """Batches after which every stream has been read to its end: its inputs / T, rounded up."""
        return -(-self.stream_len // self.seq_len)

    def begins_anew(self, step: int) -> bool:
        """Whether batch number `step` holds the beginnings of the streams, so that no state may be carried into it."""
        return step % self.batches_per_epoch == 0

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of global batch number `step`.

        Args:
            step: counted from 0 over all epochs.

        Returns:
            (inputs, targets), each (B, T) int64, T smaller in the last batch of an epoch; targets are the inputs one
            token later.

        Raises:
            DataError: if the step is negative.
        """
        _first_row(step, self.batch_size, 0, 1)
        first = step % self.batches_per_epoch * self.seq_len
        n_inputs = min(self.seq_len, self.stream_len - first)
        return _read_windows(self.tokens, [start + first for start in self.first_starts], n_inputs)


def _first_row(step: int, batch_size: int, rank: int, world_size: int) -> int:
    if step < 0:
        raise DataError(f"step must be at least 0, not {step}")
    return (step * world_size + rank) * batch_size


def _read_windows(tokens: Tokens, starts: Sequence[int], seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    windows = np.stack([tokens[start : start + seq_len + 1] for start in starts]).astype(np.int64)  # (B, T+1)
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def _check_numbers(batch_size: int, seq_len: int, seed: int, rank: int, world_size: int) -> None:
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len), ("world_size", world_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must lie between 0 and {world_size - 1} for {world_size} rank(s), not {rank}")


def _check_sizes(tokens: Tokens, batch_size: int, seq_len: int, seed: int, rank: int, world_size: int) -> None:
    _check_numbers(batch_size, seq_len, seed, rank, world_size)
    if getattr(tokens, "ndim", 1) != 1:
        raise DataError(f"tokens must be one long sequence, not an array of shape {tokens.shape}")
    if len(tokens) < seq_len + 1:
        raise DataError(
            f"the corpus has {len(tokens)} tokens, but one window of context {seq_len} needs {seq_len + 1} "
            "(its inputs and the last target); use a longer text or a shorter context"
        )
