"""What an encoder puts in the place of hidden tokens, and how it writes without a decoder.

Dimensions: B texts, T positions, V vocabulary.
"""

import torch
from torch import Tensor

from minillm.errors import DataError, SamplingError
from minillm.models.bert import Bert


@torch.inference_mode()
def mask_candidates(
    model: Bert, token_ids: list[int], mask_id: int, n_best: int = 5, segments: list[int] | None = None
) -> list[list[tuple[int, float]]]:
    """The most probable tokens for each mask of a text, each judged with all masks still there.

    Args:
        model: used in evaluation mode; left in the mode it was in.
        token_ids: T ids, some of them the mask.
        mask_id: the id of the mask.
        n_best: how many candidates, at least 1.
        segments: T segment numbers; None means the first.

    Returns:
        For each mask, from left to right, (id, probability) pairs, the most probable first.

    Raises:
        DataError: if there is no mask.
        SamplingError: if `n_best` is below 1.
    """
    if mask_id not in token_ids:
        raise DataError(f"there is no mask (id {mask_id}) among the {len(token_ids)} ids")
    if n_best < 1:
        raise SamplingError(f"n_best is {n_best}, expected at least 1")
    device = model.token_embedding.weight.device
    ids = torch.tensor([token_ids], device=device)
    kinds = None if segments is None else torch.tensor([segments], device=device)
    probabilities = probabilities_of(model, ids, kinds)[0][ids[0] == mask_id]
    best = probabilities.topk(min(n_best, probabilities.shape[-1]))
    return [
        list(zip(row_ids, row_values, strict=True))
        for row_ids, row_values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def fill_masks(
    model: Bert,
    token_ids: Tensor,
    mask_id: int,
    forbidden_ids: tuple[int, ...] = (),
    surest_first: bool = True,
) -> tuple[Tensor, Tensor]:
    """Fill one mask after the other, each in sight of those already filled: an encoder that generates.

    Filling all masks at once would choose each without knowing the others: two masks for a name of two characters may
    then get the first of one name and the second of another.

    Args:
        model: used in evaluation mode; left in the mode it was in.
        token_ids: (B, T) ids, some of them the mask, without padding.
        mask_id: the id of the mask; it is never put in.
        forbidden_ids: other ids that are never put in.
        surest_first: fill the mask with the most probable candidate of all first; False goes from left to right.

    Returns:
        (B, T) ids without masks, and (B,) the log-probability of what was put in: the sum over the steps.

    Raises:
        SamplingError: if every id is forbidden.

    Source:
        Wang and Cho 2019, arXiv:1902.04094 (BERT as a generator); the surest first: Ghazvininejad et al. 2019,
        arXiv:1904.09324, with one token per step.
    """
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError(f"all {model.config.vocab_size} ids are forbidden: nothing is left to put in")
    ids, total = token_ids.clone(), torch.zeros(len(token_ids), device=token_ids.device)
    while (ids == mask_id).any():
        open_places = ids == mask_id                               # (B, T)
        probabilities = probabilities_of(model, ids)               # (B, T, V)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)                   # (B, T)
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1)                              # (B,)
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log()
    return ids, total


@torch.inference_mode()
def pseudo_log_likelihood(model: Bert, token_ids: list[int], mask_id: int, kept_ids: tuple[int, ...] = ()) -> float:
    """How natural an encoder finds a text: each token's log-probability when it alone is hidden, summed.

    It is no probability of the text (the tokens' conditions overlap), but it ranks texts of one length well.

    Args:
        model: used in evaluation mode; left in the mode it was in.
        token_ids: T ids.
        mask_id: the id of the mask.
        kept_ids: ids that are not asked for, such as class and separator.

    Returns:
        nats, at most 0.

    Raises:
        DataError: if no token is left to be asked for.

    Source:
        Salazar et al. 2019, arXiv:1910.14659, eq. (2).
    """
    places = [place for place, token_id in enumerate(token_ids) if token_id not in kept_ids]
    if not places:
        raise DataError(f"none of the {len(token_ids)} ids is left to be asked for; kept are {kept_ids}")
    device = model.token_embedding.weight.device
    rows = torch.arange(len(places), device=device)
    ids = torch.tensor([token_ids], device=device).repeat(len(places), 1)  # (B, T)
    asked = ids[rows, places].clone()                              # (B,)
    ids[rows, places] = mask_id
    return probabilities_of(model, ids)[rows, places, asked].log().sum().item()


def probabilities_of(model: Bert, token_ids: Tensor, segments: Tensor | None = None) -> Tensor:
    """What belongs at each position: (B, T) -> (B, T, V) probabilities, in float64, without dropout."""
    was_training = model.training
    model.eval()
    try:
        return model(token_ids, segments).double().softmax(dim=-1)
    finally:
        model.train(was_training)
