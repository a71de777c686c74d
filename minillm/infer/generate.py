"""Generation: choose a token, append it, ask the model again; with a cache each token is computed once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minillm.errors import SamplingError
from minillm.infer.sampling import SamplingConfig, sample, seen_tokens
from minillm.models.gpt import GPT
from minillm.nn.cache import KVCache


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    stop_ids: Sequence[int] = (),
    stop_sequences: Sequence[Sequence[int]] = (),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    keep_last: bool = False,
) -> list[list[int]]:
    """Continue every prompt; each row gets what it would get alone (greedy; sampled rows share one generator).

    When a text outgrows the model's context, the model sees its last max_seq_len tokens, counted from position 0,
    recomputed for every new token: correct for every kind of position, but slow.

    Args:
        model: the model.
        prompts: B lists of ids, of any lengths of at least 1.
        max_new_tokens: the most tokens to add to each.
        sampling: how tokens are chosen; None is plain sampling at temperature 1.
        stop_ids: a row ends at any of these ids.
        stop_sequences: a row ends at any of these runs of ids.
        generator: where the random numbers come from; None is torch's own default generator.
        use_cache: False recomputes everything for each token (the slow definition of what generation means).
        keep_last: allow prompts longer than the context; the model sees their last max_seq_len tokens.

    Returns:
        B lists of the new ids, without the id or run that ended them.

    Raises:
        SamplingError: if a prompt is empty or too long, or a setting is out of range.
        DataError: if a prompt's id is outside the vocabulary.
    """
    stops = check_stops(stop_ids, stop_sequences)
    new_ids = [[] for _ in prompts]
    ends: list[int | None] = [None for _ in prompts]
    steps = token_steps(model, prompts, max_new_tokens, sampling, generator, use_cache, keep_last)
    for ids in steps:
        for row, token_id in enumerate(ids):
            if ends[row] is None:
                new_ids[row].append(token_id)
                ends[row] = end_of(new_ids[row], stops)
        if None not in ends:
            break
    return [ids[:end] for ids, end in zip(new_ids, ends, strict=True)]


def generate_stream(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    stop_ids: Sequence[int] = (),
    stop_sequences: Sequence[Sequence[int]] = (),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    keep_last: bool = False,
) -> Iterator[int]:
    """Continue one prompt and hand out each id as soon as it is certain not to begin a stop sequence.

    Args:
        model: the model.
        prompt: ids, at least one.
        max_new_tokens: the most tokens to add.
        sampling: as in `generate`, like all further arguments.

    Yields:
        The ids that `generate` returns for this prompt.

    Raises:
        SamplingError: as in `generate`, at the first id asked for.
    """
    stops = check_stops(stop_ids, stop_sequences)
    new_ids, n_given = [], 0
    for (token_id,) in token_steps(model, [prompt], max_new_tokens, sampling, generator, use_cache, keep_last):
        new_ids.append(token_id)
        end = end_of(new_ids, stops)
        certain = len(new_ids) - n_held_back(new_ids, stops) if end is None else end
        yield from new_ids[n_given:certain]
        n_given = max(n_given, certain)
        if end is not None:
            return
    yield from new_ids[n_given:]


def check_stops(stop_ids: Sequence[int], stop_sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """All stop rules as runs of ids.

    Raises:
        SamplingError: if a sequence is empty: it would stop everywhere.
    """
    stops = [[token_id] for token_id in stop_ids] + [list(sequence) for sequence in stop_sequences]
    if [] in stops:
        raise SamplingError("a stop sequence is empty; leave it out, or give the ids at which to stop")
    return stops


def end_of(ids: list[int], stops: list[list[int]]) -> int | None:
    """Where the text ends if its last ids are one of the stops: the index of that stop's first id, else None.

    Example:
        >>> end_of([7, 8, 9], [[8, 9], [5]]), end_of([7, 8], [[8, 9]])
        (1, None)
    """
    starts = [len(ids) - len(stop) for stop in stops if ids[-len(stop) :] == stop]
    return min(starts, default=None)


def n_held_back(ids: list[int], stops: list[list[int]]) -> int:
    """How many of the last ids could still become the beginning of a stop.

    Example:
        >>> n_held_back([7, 8], [[8, 9]]), n_held_back([7, 8], [[7, 9]])
        (1, 0)
    """
    lengths = [n for stop in stops for n in range(1, len(stop)) if ids[-n:] == stop[:n]]
    return max(lengths, default=0)


def token_steps(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    keep_last: bool = False,
) -> Iterator[list[int]]:
    """The next token of every row, again and again, without regard to stop rules; arguments as in `generate`.

    Yields:
        B ids, `max_new_tokens` times.
    """
    sampling = sampling or SamplingConfig()
    check_prompts(prompts, max_new_tokens, model.config.max_seq_len, keep_last)
    was_training = model.training
    model.eval()
    try:
        texts = GrowingTexts(model, prompts, max_new_tokens, use_cache)
        for _ in range(max_new_tokens if prompts else 0):
            ids = texts.grow(sampling, generator)
            yield ids
    finally:
        model.train(was_training)


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int, keep_last: bool) -> None:
    """Check what `generate` was given.

    Raises:
        SamplingError: if a prompt is empty, or longer than the context without `keep_last`, or the count is negative.
    """
    if max_new_tokens < 0:
        raise SamplingError(f"max_new_tokens is {max_new_tokens}, expected at least 0")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise SamplingError(f"prompt {row} is empty; begin with at least one token, such as the end-of-text token")
        if len(prompt) > max_seq_len and not keep_last:
            raise SamplingError(
                f"prompt {row} has {len(prompt)} tokens, the model's context is {max_seq_len}; "
                "shorten it, or pass keep_last=True to continue its last part"
            )


class GrowingTexts:
    """Texts of unequal length that grow by one token per step, with what the model remembers of them.

    Args:
        model: the model.
        prompts: B lists of at least one id.
        max_new_tokens: how far the texts may grow; decides the size of the cache.
        use_cache: False recomputes everything at each step.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, use_cache: bool):
        self.model = model
        self.rows = [list(prompt) for prompt in prompts]
        longest = max(map(len, self.rows), default=0)
        room = min(longest + max_new_tokens, model.config.max_seq_len)
        self.cache = model.make_cache(len(self.rows), room) if use_cache and self.rows else None

    @torch.inference_mode()
    def grow(self, sampling: SamplingConfig, generator: torch.Generator | None) -> list[int]:
        """Choose and append the next token of every row; returns the B ids."""
        logits = self.next_logits()                                # (B, V)
        penalized = sampling.repetition_penalty != 1.0
        seen = seen_tokens(self.rows, logits.shape[-1], logits.device) if penalized else None
        ids = sample(logits, sampling, generator, seen).tolist()
        for row, token_id in zip(self.rows, ids, strict=True):
            row.append(token_id)
        return ids

    def next_logits(self) -> Tensor:
        """Scores (B, V) of the token after each row, from the cache as long as the longest row fits into it."""
        if self.cache is not None and max(map(len, self.rows)) <= self.cache.max_seq_len:
            return logits_after(self.model, self.rows, self.cache)
        max_seq_len = self.model.config.max_seq_len
        return logits_after(self.model, [row[-max_seq_len:] for row in self.rows])


def logits_after(model: GPT, rows: Sequence[list[int]], cache: KVCache | None = None) -> Tensor:
    """The model's scores of the token after each row.

    Rows are padded on the left to equal length (with any id); a mask hides the padding, and positions count from each
    row's first token. With a cache only the places that it does not hold yet go through the model, and they see all
    places: their token ids and positions are cut to the new ones, the mask is not.

    Args:
        model: the model; `model.hidden` takes token ids (B, T), cache, mask (B, S) and positions (B, T) and gives the
            last vectors (B, T, C), `model.logits` turns vectors (..., C) into scores (..., V).
        rows: B lists of at least one id, none longer than the model's context.
        cache: what the model remembers of the same rows when they were shorter, `cache.length` padded places; the new
            ones are added to it. None computes everything.

    Returns:
        (B, V): each row's scores are those it would get alone and without a cache.
    """
    n_past = 0 if cache is None else cache.length
    device = model.token_embedding.weight.device
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    missing = [([0] * n + row)[n_past:] for n, row in zip(n_padding, rows, strict=True)]
    token_ids = torch.tensor(missing, device=device)               # (B, T)
    mask = positions = None
    if any(n_padding):
        mask, positions = token_places(n_padding, longest, device)
        positions = positions[:, n_past:]                          # (B, T)
    return model.logits(model.hidden(token_ids, cache, mask, positions)[:, -1])


def token_places(
    n_padding: Sequence[int], n_positions: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Which places of rows that are padded on the left hold a token, and where each token stands in its own row.

    Args:
        n_padding: B numbers of padding places before the first token.
        n_positions: length S of the padded rows.
        device: where to put the results.

    Returns:
        (B, S) bool, True for tokens, and (B, S) int64, counted from 0 at each row's first token; padding has 0.

    Example:
        >>> mask, positions = token_places([1, 0], 3)
        >>> mask.tolist(), positions.tolist()
        ([[False, True, True], [True, True, True]], [[0, 0, 1], [0, 1, 2]])
    """
    index = torch.arange(n_positions, device=device) - torch.tensor(n_padding, device=device)[:, None]  # (B, S)
    return index >= 0, index.clamp(min=0)
