"""A decoder that reads one long sequence on several ranks: its attention becomes ring attention, from outside.

Everything else in it works position by position, and needs to know only where its positions are.

Dimensions: B batch, W positions of this rank, C width.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPT
from minillm.nn.attention import SelfAttention, merge_heads
from minillm.parallel.comm import Comm
from minillm.parallel.ring_attention import ring_attention
from minillm.parallel.zigzag import positions_of


def use_ring_attention(model: GPT, comm: Comm, zigzag: bool = True) -> None:
    """From now on the model gets this rank's share of the tokens, and scores what follows each of them.

    Tokens and targets are cut by `cut_sequence`. Each rank's loss must be divided by the number of targets of all ranks
    and the gradients of the weights added up over the ranks, as in data parallel training.

    Args:
        model: changed in place; names and weights stay what they are.
        comm: the ranks that share a sequence; all have the same weights.
        zigzag: see `minillm.parallel.zigzag.pieces_of`.

    Raises:
        ConfigError: if the model looks at its neighbours in some other way than by full attention.
    """
    config = model.config
    for name, wrong in (
        ("position='alibi'", config.position == "alibi"),
        ("a window", config.window > 0),
        ("token_shift", config.token_shift),
        ("a capacity_factor", config.capacity_factor > 0),
    ):
        if wrong:
            raise ConfigError(f"a model with {name} depends on its neighbours in the row: ring attention cannot cut it")
    for block in model.blocks:
        block.attention.forward = partial(ring_forward, block.attention, comm, zigzag)
    model.hidden = partial(hidden_of_share, model.hidden, comm, zigzag)


def hidden_of_share(
    hidden: Callable[..., Tensor],
    comm: Comm,
    zigzag: bool,
    token_ids: Tensor,
    cache: None = None,
    mask: None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """`GPT.hidden` of this rank's tokens (B, W), told where in the sequence they are: (B, W, C)."""
    check_plain(cache=cache, mask=mask)
    if positions is None:
        n_positions = token_ids.shape[1] * comm.size
        positions = positions_of(comm.rank, comm.size, n_positions, zigzag).to(token_ids.device).expand_as(token_ids)
    return hidden(token_ids, None, None, positions)


def ring_forward(
    attention: SelfAttention,
    comm: Comm,
    zigzag: bool,
    x: Tensor,
    mask: None = None,
    causal: bool = False,
    rotation: tuple[Tensor, Tensor] | None = None,
    cache: None = None,
    layer: int = 0,
    bias: None = None,
) -> Tensor:
    """`SelfAttention.forward` of this rank's vectors (B, W, C), which look at those of all ranks: (B, W, C)."""
    check_plain(mask=mask, cache=cache, bias=bias)
    query, key, value = attention.queries_keys_values(x, rotation)
    return attention.output(merge_heads(ring_attention(query, key, value, comm, causal, zigzag)))


def check_plain(**given: object) -> None:
    """Refuse what ring attention does not know.

    Raises:
        ShapeError: naming the argument.
    """
    for name, value in given.items():
        if value is not None:
            raise ShapeError(f"ring attention takes no {name}: give it full rows without padding, and no cache")
