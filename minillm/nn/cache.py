"""The key/value cache: what earlier tokens offered to attention, kept so that each new token is computed once."""

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
        n_positions = key.shape[2]
        self.check_room(n_positions)
        layer_keys, layer_values = self.keys[layer], self.values[layer]
        if key.shape[:2] != layer_keys.shape[:2] or key.shape[3] != layer_keys.shape[3] or key.shape != value.shape:
            raise ShapeError(
                f"key {tuple(key.shape)} and value {tuple(value.shape)} do not fit a cache of (B, G, S, D) = "
                f"{tuple(layer_keys.shape)}"
            )
        end = self.length + n_positions
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
