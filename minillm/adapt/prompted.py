"""Models that read learned words before every text: methods laid over those of GPT, Bert and T5.

Dimensions: B batch, T positions of a text, S all positions including cached ones, P words in front, C width, V
vocabulary.
"""

import torch
from torch import Tensor, nn

from minillm.errors import ShapeError
from minillm.nn.cache import KVCache
from minillm.nn.embedding import check_ids
from minillm.nn.transformer_layers import DecoderCache


class WithNewWords:
    """Methods laid over `Embedding`: ids V to V + P - 1 mean the P learned words, in their order."""

    prompt: nn.Module

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map (B, T) ids to (B, T, C) vectors; a row has all new words or none."""
        n_words, n_new = self.weight.shape[0], self.prompt.n_virtual
        if not self.prompt.is_on or token_ids.shape[-1] < n_new:
            return super().forward(token_ids)
        is_new = (token_ids >= n_words) & (token_ids < n_words + n_new)  # (B, T)
        vectors = super().forward(token_ids.masked_fill(is_new, 0))  # (B, T, C)
        rows = self.prompt.rows().to(vectors.dtype)                # (P, C)
        return vectors.masked_scatter(is_new[..., None], rows.expand(len(vectors), *rows.shape))  # (B, T, C)


def insert(row: Tensor, x: Tensor, n_padding: Tensor | None = None) -> Tensor:
    """Put the same numbers into every row, behind its padding on the left.

    Args:
        row: (P,) numbers, of the dtype of x.
        x: (B, T).
        n_padding: (B,) how many places of each row come first; None means none.

    Returns:
        (B, P + T).

    Example:
        >>> insert(torch.tensor([8, 9]), torch.tensor([[1, 2], [0, 3]]), torch.tensor([0, 1])).tolist()
        [[8, 9, 1, 2], [0, 8, 9, 3]]
    """
    together = torch.cat((row.expand(len(x), -1), x), dim=1)       # (B, P + T)
    if n_padding is None:
        return together
    n_new = len(row)
    place = torch.arange(together.shape[1], device=x.device)       # (P + T,)
    since = place - n_padding[:, None]                             # (B, P + T)
    source = torch.where(since < 0, place + n_new, torch.where(since < n_new, since, place))  # (B, P + T)
    return together.gather(1, source)


def padding_on_the_left(mask: Tensor | None) -> Tensor | None:
    """How many places of each row come before its first token: (B, S) bool -> (B,), or None if there is no mask.

    Example:
        >>> padding_on_the_left(torch.tensor([[False, True], [True, False]])).tolist()
        [1, 0]
    """
    return None if mask is None else mask.int().argmax(dim=1)


def with_new_words(token_ids: Tensor, n_words: int, n_new: int, n_padding: Tensor | None = None) -> Tensor:
    """The ids of a text behind those of the new words: (B, T) -> (B, P + T).

    Raises:
        DataError: if an id of the text is outside the vocabulary (not on a GPU, which every step would wait for).
    """
    if not token_ids.is_cuda:
        check_ids(token_ids, n_words)
    new = torch.arange(n_words, n_words + n_new, device=token_ids.device, dtype=token_ids.dtype)  # (P,)
    return insert(new, token_ids, n_padding)


def with_room(mask: Tensor | None, n_new: int, n_padding: Tensor | None) -> Tensor | None:
    """A mask (B, S) over tokens that allows the new words too: (B, P + S)."""
    return None if mask is None else insert(mask.new_ones(n_new), mask, n_padding)


class CacheBehindPrompt:
    """A cache that counts the places of a text alone, although the new words before it have theirs as well.

    Args:
        inner: holds both.
        n_new: number of new words P.
    """

    def __init__(self, inner: KVCache, n_new: int):
        self.inner, self.n_new = inner, n_new

    @property
    def max_seq_len(self) -> int:
        """Room for tokens of the text."""
        return self.inner.max_seq_len - self.n_new

    @property
    def length(self) -> int:
        """Number of the text's tokens that it holds."""
        return max(0, self.inner.length - self.n_new)

    @length.setter
    def length(self, n_tokens: int) -> None:
        self.inner.length = n_tokens + self.n_new if n_tokens else 0

    @property
    def n_bytes(self) -> int:
        """Memory in bytes, that of the new words included."""
        return self.inner.n_bytes

    def check_rows(self, batch_size: int) -> None:
        """As `KVCache.check_rows`."""
        self.inner.check_rows(batch_size)

    def reset(self) -> None:
        """Forget everything, the new words too."""
        self.inner.reset()


class PromptedGPT:
    """Methods laid over `GPT`: texts, masks, positions and caches are the caller's; the words in front are added."""

    prompt: nn.Module

    def hidden(
        self,
        token_ids: Tensor,
        cache: CacheBehindPrompt | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """As `GPT.hidden`, for the text's own positions: (B, T, C)."""
        inner = inner_cache(cache, self.prompt.is_on)
        if not self.prompt.is_on:
            return super().hidden(token_ids, inner, mask, positions)
        n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
        super().check_input(token_ids, n_past, mask, positions)
        n_padding = padding_on_the_left(mask)
        mask = with_room(mask, n_new, n_padding)                   # (B, P + S)
        if positions is not None:
            positions = positions + n_new                          # (B, T)
        if n_past:
            return super().hidden(token_ids, inner, mask, positions)
        if positions is not None:
            new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)  # (P,)
            positions = insert(new, positions, n_padding)          # (B, P + T)
        if cache is not None:
            cache.reset()
        token_ids = with_new_words(token_ids, self.config.vocab_size, n_new, n_padding)  # (B, P + T)
        return super().hidden(token_ids, inner, mask, positions)[:, n_new:]

    def check_input(self, token_ids: Tensor, n_past: int, mask: Tensor | None, positions: Tensor | None) -> None:
        """Nothing more: `hidden` has checked what the caller gave, before it added anything."""
        if not self.prompt.is_on:
            super().check_input(token_ids, n_past, mask=mask, positions=positions)

    def make_cache(self, batch_size: int, max_seq_len: int = 0) -> KVCache | CacheBehindPrompt:
        """As `GPT.make_cache`, with room for the words in front."""
        if not self.prompt.is_on:
            return super().make_cache(batch_size, max_seq_len)
        n_new, room = self.prompt.n_virtual, max_seq_len or self.config.max_seq_len
        return CacheBehindPrompt(super().make_cache(batch_size, room + n_new), n_new)


def inner_cache(cache: KVCache | CacheBehindPrompt | None, is_on: bool) -> KVCache | None:
    """The cache that the model itself writes.

    Raises:
        ShapeError: if it was made for a model without, or with, words in front.
    """
    if cache is None:
        return None
    if isinstance(cache, CacheBehindPrompt) != is_on:
        raise ShapeError(
            f"the model has {'learned' if is_on else 'no'} words in front of the text and this {type(cache).__name__} "
            "was made for another; make it by the model's make_cache"
        )
    return cache.inner if is_on else cache


class PromptedBert:
    """Methods laid over `Bert`: the words in front are of the first segment and seen by all."""

    prompt: nn.Module

    def hidden(self, token_ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As `Bert.hidden`, for the text's own positions: (B, T, C)."""
        if not self.prompt.is_on:
            return super().hidden(token_ids, segments, mask)
        n_new = self.prompt.n_virtual
        check_room(token_ids, n_new, self.config.max_seq_len)
        token_ids = with_new_words(token_ids, self.config.vocab_size, n_new)  # (B, P + T)
        if segments is not None:
            segments = insert(segments.new_zeros(n_new), segments)  # (B, P + T)
        if mask is not None:
            mask = behind_new_words(mask, n_new)
        return super().hidden(token_ids, segments, mask)[:, n_new:]


def behind_new_words(mask: Tensor, n_new: int) -> Tensor:
    """A mask of `Bert` for the text behind new words, which all may see, and which see what the first token sees.

    Args:
        mask: (B, T) or (B, T, T) bool.
        n_new: number of new words P.

    Returns:
        (B, P + T) or (B, P + T, P + T).

    Example:
        >>> behind_new_words(torch.tensor([[[True, False], [True, True]]]), 1).int().tolist()
        [[[1, 1, 0], [1, 1, 0], [1, 1, 1]]]
    """
    mask = nn.functional.pad(mask, (n_new, 0), value=True)
    return mask if mask.dim() == 2 else torch.cat((mask[:, :1].expand(-1, n_new, -1), mask), dim=1)


def check_room(token_ids: Tensor, n_new: int, max_seq_len: int) -> None:
    """Check that a text fits behind the words in front.

    Raises:
        ShapeError: if it does not.
    """
    if token_ids.dim() == 2 and token_ids.shape[1] + n_new > max_seq_len:
        raise ShapeError(
            f"{token_ids.shape[1]} tokens behind {n_new} learned words do not fit into max_seq_len {max_seq_len}; "
            f"shorten the text to {max_seq_len - n_new}"
        )


class PromptedT5:
    """Methods laid over `T5`: the encoder reads the words in front, and the decoder sees what it makes of them."""

    prompt: nn.Module

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """As `T5.encode`, with the words in front: (B, P + S, C)."""
        if not self.prompt.is_on:
            return super().encode(source_ids, source_mask)
        n_new, n_padding = self.prompt.n_virtual, padding_on_the_left(source_mask)
        check_room(source_ids, n_new, self.config.max_seq_len)
        source_ids = with_new_words(source_ids, self.config.vocab_size, n_new, n_padding)  # (B, P + S)
        return super().encode(source_ids, with_room(source_mask, n_new, n_padding))

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor | None = None,
        source_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """As `T5.decode`; the mask is that of the source alone."""
        if self.prompt.is_on and not target_ids.is_cuda:
            check_ids(target_ids, self.config.vocab_size)
        return super().decode(target_ids, memory, self.seen(source_mask), cache)

    def make_cache(self, memory: Tensor, source_mask: Tensor | None = None, max_new_tokens: int = 0) -> DecoderCache:
        """As `T5.make_cache`; the mask is that of the source alone."""
        return super().make_cache(memory, self.seen(source_mask), max_new_tokens)

    def seen(self, source_mask: Tensor | None) -> Tensor | None:
        """The mask of the source with the words in front."""
        n_new = self.prompt.n_virtual if self.prompt.is_on else 0
        return with_room(source_mask, n_new, padding_on_the_left(source_mask))
