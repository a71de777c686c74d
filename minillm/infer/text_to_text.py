"""Writing a text about a source: greedily, or by beam search.

Dimensions: B sources, S positions of a source, N rows, V vocabulary.
"""

import torch
from torch import Tensor

from minillm.errors import SamplingError
from minillm.infer.beam import BeamConfig, Hypothesis, beam_search
from minillm.models.encoder_decoder import EncoderDecoder


@torch.inference_mode()
def write_greedily(
    model: EncoderDecoder,
    source_ids: Tensor,
    source_mask: Tensor | None = None,
    *,
    start_id: int,
    end_id: int,
    max_new_tokens: int,
    use_cache: bool = True,
) -> list[list[int]]:
    """Take the most probable token again and again, until the end.

    Args:
        model: used in evaluation mode; left in the mode it was in.
        source_ids: (B, S).
        source_mask: (B, S) bool, True where a token is real; None if all are.
        start_id: what the decoder reads first.
        end_id: where a text ends.
        max_new_tokens: the most ids to write, the end among them.
        use_cache: False computes everything anew at each step, with the same result.

    Returns:
        B lists of ids, without start and end.

    Raises:
        SamplingError: if `max_new_tokens` is negative.
    """
    if max_new_tokens < 0:
        raise SamplingError(f"max_new_tokens is {max_new_tokens}, expected at least 0")
    was_training = model.training
    model.eval()
    try:
        memory = model.encode(source_ids, source_mask)             # (B, S, C)
        step = NextToken(model, memory, source_mask, max_new_tokens, use_cache)
        ids = torch.full((len(source_ids), 1), start_id, device=source_ids.device)
        for _ in range(max_new_tokens):
            ids = torch.cat((ids, step.logits(ids).argmax(dim=-1, keepdim=True)), dim=1)  # (B, N)
            if (ids[:, 1:] == end_id).any(dim=1).all():
                break
    finally:
        model.train(was_training)
    return [before_end(row, end_id) for row in ids[:, 1:].tolist()]


@torch.inference_mode()
def write_by_beams(
    model: EncoderDecoder,
    source_ids: Tensor,
    source_mask: Tensor | None = None,
    *,
    start_id: int,
    config: BeamConfig,
    use_cache: bool = True,
) -> list[list[Hypothesis]]:
    """The texts with the best scores that a beam search finds; arguments as in `write_greedily` and `beam_search`.

    Returns:
        For each source up to K hypotheses, the best first.
    """
    was_training, device = model.training, source_ids.device
    model.eval()
    try:
        rows = torch.arange(len(source_ids), device=device).repeat_interleave(config.n_beams)
        memory = model.encode(source_ids, source_mask)[rows]
        mask = None if source_mask is None else source_mask[rows]
        step = NextToken(model, memory, mask, max(1, config.max_new_tokens), use_cache)
        return beam_search(step, torch.full((len(source_ids), 1), start_id, device=device), config)
    finally:
        model.train(was_training)


class NextToken:
    """The step function of `beam_search` for an encoder-decoder.

    Args:
        model: in evaluation mode.
        memory: (N, S, C) what it made of the source of each row.
        source_mask: (N, S) bool or None.
        max_new_tokens: room in the cache.
        use_cache: False computes everything anew.
    """

    def __init__(
        self, model: EncoderDecoder, memory: Tensor, source_mask: Tensor | None, max_new_tokens: int, use_cache: bool
    ):
        self.model, self.memory, self.source_mask = model, memory, source_mask
        self.cache = model.make_cache(memory, source_mask, max_new_tokens) if use_cache else None

    def __call__(self, ids: Tensor, parents: Tensor) -> Tensor:
        """Log-probabilities (N, V) after ids (N, T), whose beginnings were rows `parents` (N,) of the last call."""
        if self.cache is not None and self.cache.written.length:
            self.cache.select(parents)
        return self.logits(ids).log_softmax(dim=-1)

    def logits(self, ids: Tensor) -> Tensor:
        """Scores (N, V) of the token after ids (N, T), of which the cache knows all but the last."""
        if self.cache is None:
            return self.model.decode(ids, self.memory, self.source_mask)[:, -1]
        return self.model.decode(ids[:, self.cache.written.length :], cache=self.cache)[:, -1]


def before_end(ids: list[int], end_id: int) -> list[int]:
    """The ids before the first end.

    Example:
        >>> before_end([5, 6, 1, 7], end_id=1)
        [5, 6]
    """
    return ids[: ids.index(end_id)] if end_id in ids else ids
