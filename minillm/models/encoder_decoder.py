"""What every encoder-decoder does, whatever its layers are: read the source once, write step by step with a cache.

Dimensions: B batch, S positions of the source, T positions of the target, C width, V vocabulary, H heads.
"""

import torch
from torch import Tensor, nn

from minillm.errors import ShapeError
from minillm.models.gpt import what_each_may_see
from minillm.nn.transformer_layers import DecoderCache
from minillm.shapes import check_shape


class EncoderDecoder(nn.Module):
    """A source and the beginning of a target in, scores of the next target token out.

    A subclass makes `config` (with max_seq_len, d_model and dropout), `encoder` and `decoder` (lists of layers),
    `encoder_norm` and `decoder_norm`, and has the methods `embed` and `logits`; `encoder_bias` and `decoder_bias` where
    order is told to the scores.
    """

    def forward(self, source_ids: Tensor, target_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Score every possible next token after each position of the target, given the true ones before it.

        Args:
            source_ids: (B, S) integers from 0 to V - 1.
            target_ids: (B, T) what the decoder reads: a start token and the target without its last token (teacher
                forcing). Padding belongs on the right, where no real position sees it.
            source_mask: (B, S) bool, True where a token of the source is real; None if all are.

        Returns:
            (B, T, V) logits.

        Raises:
            ShapeError: if shapes disagree or a sequence is longer than max_seq_len.
            DataError: if an id is outside the vocabulary.
        """
        return self.decode(target_ids, self.encode(source_ids, source_mask), source_mask)

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Read a source; arguments as in `forward`.

        Returns:
            (B, S, C).
        """
        sizes = check_sequence("source_ids", source_ids, self.config.max_seq_len)
        mask = key_mask("source_mask", source_mask, {"B": sizes["B"], "S": sizes["T"]})
        x, bias = self.embed(source_ids), self.encoder_bias(sizes["T"])
        for layer in self.encoder:
            x = layer(x, mask, bias)                               # (B, S, C)
        return self.drop(self.encoder_norm(x))

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor | None = None,
        source_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Score every possible next token after each position of the target.

        Args:
            target_ids: (B, T); with a cache only the new ones.
            memory: (B, S, C) what `encode` gave; not used with a cache.
            source_mask: (B, S) bool, as in `forward`; not used with a cache.
            cache: what is remembered of the source and of the ids before; the new ones are added.

        Returns:
            (B, T, V) logits.
        """
        written = None if cache is None else cache.written
        n_past = 0 if written is None else written.length
        sizes = check_sequence("target_ids", target_ids, self.config.max_seq_len, n_past)
        if cache is None:
            check_shape("memory", memory, "B S C", known := {"B": sizes["B"], "C": self.config.d_model})
            sources, seen = self.sources(memory), key_mask("source_mask", source_mask, known)
        else:
            sources, seen = cache.sources, cache.source_mask
        n_new = sizes["T"]
        mask, causal = what_each_may_see(n_new, n_past + n_new, None, target_ids.device)
        x, bias = self.embed(target_ids, n_past), self.decoder_bias(n_past, n_new)
        for number, layer in enumerate(self.decoder):
            x = layer(x, sources[number], seen, mask, causal, written, number, bias)  # (B, T, C)
        if written is not None:
            written.advance(n_new)
        return self.logits(self.drop(self.decoder_norm(x)))

    def embed(self, token_ids: Tensor, n_past: int = 0) -> Tensor:
        """The first vectors of ids that follow `n_past` others: (B, T) -> (B, T, C)."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token from the last vectors: (..., C) -> (..., V)."""
        raise NotImplementedError

    def encoder_bias(self, n_positions: int) -> Tensor | None:
        """Numbers (H, S, S) added to the scores of the encoder's attention, the same in all layers; None for none."""
        return None

    def decoder_bias(self, n_past: int, n_new: int) -> Tensor | None:
        """Numbers (H, T, n_past + T) added to the scores of the decoder's self-attention; None for none."""
        return None

    def drop(self, x: Tensor) -> Tensor:
        """What happens behind the last norm; nothing unless a model says otherwise."""
        return x

    def sources(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the source for each decoder layer; memory as `encode` gave it."""
        return [layer.source_attention.keys_values(memory) for layer in self.decoder]

    def make_cache(
        self, memory: Tensor, source_mask: Tensor | None = None, max_new_tokens: int = 0
    ) -> DecoderCache:
        """A cache for generation.

        Args:
            memory: (B, S, C) what `encode` gave.
            source_mask: (B, S) bool, as in `forward`.
            max_new_tokens: room for so many decoder inputs; 0 means max_seq_len.
        """
        mask = key_mask("source_mask", source_mask, {"B": memory.shape[0], "S": memory.shape[1]})
        return DecoderCache(self.sources(memory), mask, max_new_tokens or self.config.max_seq_len)

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def check_sequence(name: str, token_ids: Tensor, max_seq_len: int, n_past: int = 0) -> dict[str, int]:
    """Check ids (B, T) that follow `n_past` others.

    Returns:
        The sizes {"B": ..., "T": ...}.

    Raises:
        ShapeError: if they have another number of dimensions or are too many.
    """
    sizes: dict[str, int] = {}
    check_shape(name, token_ids, "B T", sizes)
    if n_past + sizes["T"] > max_seq_len:
        raise ShapeError(f"{name} has {n_past + sizes['T']} positions, more than max_seq_len {max_seq_len}; shorten it")
    return sizes


def key_mask(name: str, mask: Tensor | None, sizes: dict[str, int]) -> Tensor | None:
    """A mask (B, S) over keys in the shape that attention broadcasts: (B, 1, 1, S).

    Raises:
        ShapeError: if it is not bool or has other sizes.
    """
    if mask is None:
        return None
    check_shape(name, mask, "B S", dict(sizes))
    if mask.dtype != torch.bool:
        raise ShapeError(f"{name} has dtype {mask.dtype}, expected bool with True where a token is real")
    return mask[:, None, None, :]
