"""A hash table over sorted integer keys that looks up a whole array at once: faster than binary search by far.

Open addressing with linear probing: a key belongs into the slot that its hash names, or the next free one after it.
"""

import numpy as np

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: neighbouring keys land far apart (Knuth)


class HashIndex:
    """Slots that hold places in an array of keys; at most half of them are taken."""

    def __init__(self, keys: np.ndarray):
        """Index the keys.

        Args:
            keys: (n,) int64, all different.
        """
        n_bits = max(1, int(2 * len(keys)).bit_length())
        self.shift, self.mask = np.uint64(64 - n_bits), (1 << n_bits) - 1
        self.slots = np.full(1 << n_bits, -1, np.int32 if len(keys) < 1 << 31 else np.int64)
        pending = np.arange(len(keys))
        at = self._first_slots(keys)
        while len(pending):
            free = self.slots[at] < 0
            self.slots[at[free]] = pending[free]            # of several that want one slot, the last gets it
            homeless = self.slots[at] != pending
            pending, at = pending[homeless], (at[homeless] + 1) & self.mask

    def find(self, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Place of each wanted key, or -1; like `minillm.statistical.counts.find`.

        Args:
            keys: the keys that were indexed.
            wanted: (N,) int64.
        """
        if len(keys) == 0:
            return np.full(len(wanted), -1, np.int64)
        at = self._first_slots(wanted)
        places = self.slots[at].astype(np.int64)            # (N,); callers multiply them by large numbers
        missed = np.flatnonzero((places >= 0) & (keys[places] != wanted))
        at = at[missed]
        while len(missed):                                  # another key lives there: try the next slot
            at = (at + 1) & self.mask
            found = self.slots[at]
            places[missed] = found
            again = (found >= 0) & (keys[found] != wanted[missed])
            missed, at = missed[again], at[again]
        return places

    def _first_slots(self, keys: np.ndarray) -> np.ndarray:
        return ((keys.astype(np.uint64) * MULTIPLIER) >> self.shift).astype(np.int64)
