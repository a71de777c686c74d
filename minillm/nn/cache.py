"""The key/value cache: what earlier tokens offered to attention, kept so that each new token is computed once.

`KVCache` keeps all of them, `RingCache` the last few, for layers that see no others.
"""

import torch
from torch import Tensor

from minillm.errors import ShapeError


class KVCache:
    """Room for the keys and values of every layer, allocated once.

    All rows of the batch share one length: prompts of unequal length are padded on the left, and the model is given
    a mask that hides the padding.

    Args:
        n_layers: number of layers L.
        batch_size: number of rows B.
        n_kv_heads: number of key/value heads G.
        max_seq_len: number of positions there is room for.
        d_head: head width D.
        dtype: of the stored numbers; that of the model's weights.
        device: where to keep them.

    Raises:
        ShapeError: if a size is negative.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_kv_heads: int,
        max_seq_len: int,
        d_head: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        shape = (n_layers, batch_size, n_kv_heads, max_seq_len, d_head)
        if min(shape) < 0:
            raise ShapeError(f"cache sizes (L, B, G, S, D) are {shape}, none may be negative")
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_seq_len = max_seq_len
        self.length = 0
        self.last_vector: Tensor | None = None  # the last token's (B, 1, C), for models that mix it into the next

    @property
    def n_bytes(self) -> int:
        """Memory of the cache in bytes: 2 * L * B * G * S * D numbers."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def check_room(self, n_positions: int) -> None:
        """Check that `n_positions` more tokens fit.

        Raises:
            ShapeError: if they do not; nothing has been written then.
        """
        if self.length + n_positions > self.max_seq_len:
            raise ShapeError(
                f"the cache holds {self.length} of {self.max_seq_len} positions, {n_positions} more do not fit; "
                "make it larger or start again with fewer tokens"
            )

    def check_rows(self, batch_size: int) -> None:
        """Check that a batch has as many rows as the cache was made for.

        Raises:
            ShapeError: if it has not.
        """
        n_rows = self.keys.shape[1]
        if batch_size != n_rows:
            raise ShapeError(
                f"the cache was made for {n_rows} rows and cannot serve {batch_size}; make one for each batch, or "
                "reset it before another batch of the same size"
            )

    def check_new(self, key: Tensor, value: Tensor) -> None:
        """Check new keys and values before any of them is written.

        Raises:
            ShapeError: if there is no room for them or another part of their shape is not the cache's.
        """
        self.check_room(key.shape[2])
        stored = self.keys.shape[1:]
        if key.shape[:2] != stored[:2] or key.shape[3] != stored[3] or key.shape != value.shape:
            raise ShapeError(
                f"key {tuple(key.shape)} and value {tuple(value.shape)} do not fit a cache of (B, G, S, D) = "
                f"{tuple(stored)}"
            )

    def check_window(self, window: int) -> None:
        """Check that the cache keeps all that a layer wants to see; this one keeps everything.

        Args:
            window: how many keys up to itself a query of the layer sees; 0 does not limit them.
        """

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of one layer after the stored ones; `advance` then counts them, once per step.

        Args:
            layer: index of the layer.
            key: (B, G, T, D).
            value: (B, G, T, D).

        Returns:
            Views (B, G, S, D) of all keys and all values so far, S = length + T.

        Raises:
            ShapeError: if there is no room or another part of the shape differs.
        """
        self.check_new(key, value)
        layer_keys, layer_values = self.keys[layer], self.values[layer]
        end = self.length + key.shape[2]
        layer_keys[:, :, self.length : end] = key
        layer_values[:, :, self.length : end] = value
        return layer_keys[:, :, :end], layer_values[:, :, :end]

    def advance(self, n_positions: int) -> None:
        """Count the positions that every layer has written."""
        self.check_room(n_positions)
        self.length += n_positions

    def reset(self) -> None:
        """Forget everything; the memory is used again."""
        self.length, self.last_vector = 0, None


class RingCache(KVCache):
    """A cache for layers with a sliding window: memory for `window` positions, however long the text becomes.

    Position p is kept in slot p % window, where it takes the place of position p - window, which no later query may
    see. What was overwritten is gone: setting `length` back does not bring it back.

    Args:
        sizes: n_layers, batch_size, n_kv_heads, max_seq_len and d_head as for `KVCache`; max_seq_len bounds how many
            positions may be written in all, not the memory.
        window: how many keys up to itself a query sees, at least 1.
        dtype: of the stored numbers.
        device: where to keep them.

    Raises:
        ShapeError: if a size is negative or the window is empty.

    Source:
        Jiang et al. 2023, arXiv:2310.06825, section 2 ("rolling buffer cache").

    Example:
        >>> cache = RingCache(1, 1, 1, 100, 1, window=3)
        >>> for position in range(5):
        ...     new = torch.full((1, 1, 1, 1), float(position))
        ...     seen, _ = cache.update(0, new, new)
        ...     cache.advance(1)
        >>> seen.flatten().tolist(), cache.keys.flatten().tolist()
        ([2.0, 3.0, 4.0], [3.0, 4.0, 2.0])
    """

    def __init__(
        self,
        *sizes: int,
        window: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        if window < 1:
            raise ShapeError(f"the window is {window}, expected at least 1")
        n_layers, batch_size, n_kv_heads, max_seq_len, d_head = sizes
        super().__init__(n_layers, batch_size, n_kv_heads, min(window, max_seq_len), d_head, dtype, device)
        self.window, self.max_seq_len = window, max_seq_len

    def check_window(self, window: int) -> None:
        """Check that a layer wants to see no more than the cache keeps.

        Args:
            window: how many keys up to itself a query of the layer sees; 0 does not limit them.

        Raises:
            ShapeError: if some of them may be gone.
        """
        if not 1 <= window <= self.window:
            wanted = f"{window} positions" if window else "all positions"
            raise ShapeError(f"the cache keeps the last {self.window} positions, a layer wants to see {wanted}")

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of one layer over those that no later query sees.

        The first of several new queries still sees old ones that the last of the new ones will overwrite, so these are
        read before anything is written.

        Args:
            layer: index of the layer.
            key: (B, G, T, D).
            value: (B, G, T, D).

        Returns:
            Copies (B, G, S, D) of the last keys and values in the order of their positions: of those before the new
            ones the last `window` - 1, or all if there are fewer, then all T new ones.

        Raises:
            ShapeError: as `KVCache.update`; nothing has been written then.
        """
        self.check_new(key, value)
        n_slots, end = self.keys.shape[3], self.length + key.shape[2]
        past = torch.arange(max(0, self.length + 1 - n_slots), self.length, device=key.device) % n_slots  # (P,)
        kept = torch.arange(max(self.length, end - n_slots), end, device=key.device)  # (N,)
        seen = []
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            whole = torch.cat((stored[:, :, past], new), dim=2)    # (B, G, S, D)
            seen.append(whole)
            stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
        return seen[0], seen[1]
