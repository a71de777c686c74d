"""Generation with a state: each new token costs the same, however long the text is."""

from collections.abc import Iterator, Sequence

import torch

from minillm.errors import SamplingError
from minillm.infer.sampling import SamplingConfig, sample, seen_tokens
from minillm.models.lstm import RecurrentLM


def generate_recurrent(
    model: RecurrentLM,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    stop_id: int | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Continue a document from its beginning.

    Args:
        model: the model; left in the mode it was in.
        prompt: ids of the document so far; none begins a new one.
        max_new_tokens: the most ids to add.
        sampling: how ids are chosen; None is plain sampling at temperature 1.
        stop_id: an id at which to stop; it is not returned. None: go on to the end.
        generator: where the random numbers come from; None is torch's own default generator.

    Returns:
        The new ids.

    Raises:
        SamplingError: if the count is negative.
        DataError: if an id of the prompt is outside the vocabulary.
    """
    if max_new_tokens < 0:
        raise SamplingError(f"max_new_tokens is {max_new_tokens}, expected at least 0")
    new_ids: list[int] = []
    steps = state_steps(model, prompt, sampling or SamplingConfig(), generator)
    while len(new_ids) < max_new_tokens:
        token_id = next(steps)
        if token_id == stop_id:
            break
        new_ids.append(token_id)
    return new_ids


def state_steps(
    model: RecurrentLM, prompt: Sequence[int], sampling: SamplingConfig, generator: torch.Generator | None = None
) -> Iterator[int]:
    """The next id, again and again; arguments as in `generate_recurrent`. Only the last id and the state are read."""
    device = model.token_embedding.weight.device
    read, seen_ids, state = [model.config.end_of_text_id, *prompt], list(prompt), None
    while True:
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                logits, state = model(torch.tensor([read], device=device), state)
        finally:
            model.train(was_training)
        scores = logits[:, -1]                                     # (1, V)
        penalized = sampling.repetition_penalty != 1.0
        seen = seen_tokens([seen_ids], scores.shape[-1], device) if penalized else None
        token_id = int(sample(scores, sampling, generator, seen))
        read = [token_id]
        seen_ids.append(token_id)
        yield token_id
