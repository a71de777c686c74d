"""Exact attention over one sequence that is cut over ranks: keys and values travel round a ring, queries stay at home.

In each round a rank mixes the values that are visiting it while the next ones are already on their way; what it has
found so far and what a visit adds are put together by their logarithms of sums (`merge_parts`). Backward, the same
visitors come again and carry their gradients home. No rank ever holds the whole sequence.

With causal attention consecutive shares are unfair: the last rank sees everything, the first only itself. So each rank
gets an early and a late piece of the sequence ("zigzag"), and all have the same to do in every round.

Dimensions: B batch, H query heads, G key/value heads, T positions of all ranks, W = T / P those of one, D head width,
P ranks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.errors import ShapeError
from minillm.nn.tiled_attention import N_COLUMNS, N_ROWS, Sight, backward_tiles, forward_tiles, head_parts, wide
from minillm.parallel.comm import Comm
from minillm.parallel.zigzag import pieces_of, visible_pairs
from minillm.shapes import check_shape

VISITORS, GRADIENTS = 1, 2  # tags of what is sent


def merge_parts(output: Tensor, log_sum: Tensor, other: Tensor, other_log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from the attention over each: the weighted mean of the two results.

    The weights are the shares of the sum of powers that each has; their logarithms are all that must be known of it.

    Args:
        output: (..., D) mixed values of some keys.
        log_sum: (..., 1) base-2 logarithm of the sum of 2^score over these keys, scores over ln 2.
        other: (..., D) those of other keys.
        other_log_sum: (..., 1); minus infinity stands for no keys at all (not on both sides).

    Returns:
        (..., D) and (..., 1), those of all keys.

    Source:
        Rabe and Staats 2021, arXiv:2112.05682, section 2; Dao 2023, arXiv:2307.08691, section 3.1.

    Example:
        >>> one_key, three_keys = torch.tensor([8.0]), torch.tensor([4.0])
        >>> output, log_sum = merge_parts(one_key, torch.tensor([0.0]), three_keys, torch.tensor([3.0]).log2())
        >>> output.item(), log_sum.item()
        (5.0, 2.0)
    """
    total = torch.logaddexp2(log_sum, other_log_sum)
    return output * (log_sum - total).exp2() + other * (other_log_sum - total).exp2(), total


def ring_attention_bytes(size: int, n_bytes: int, n_gradient_bytes: int) -> tuple[int, int]:
    """What each rank sends: its visitors P - 1 times forward, and again backward, when gradients go P times.

    Args:
        size: number of ranks P.
        n_bytes: keys and values of one rank's share: 2 B G W D times the bytes of a number.
        n_gradient_bytes: their gradients, which are added up in at least float32.

    Returns:
        forward, backward.

    Example:
        >>> ring_attention_bytes(4, 1000, 1000), ring_attention_bytes(1, 1000, 1000)
        ((3000, 7000), (0, 0))
    """
    forward = (size - 1) * n_bytes
    return forward, forward + size * n_gradient_bytes if size > 1 else 0


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, comm: Comm, causal: bool = True, zigzag: bool = True
) -> Tensor:
    """This rank's rows of `attention` over the sequence of all ranks.

    All ranks call it with shares of one shape, cut as `cut_sequence` does; so they do its backward.

    Args:
        query: (B, H, W, D).
        key: (B, G, W, D), where G divides H.
        value: (B, G, W, D).
        comm: the ranks of the ring.
        causal: hide keys that are later in the sequence than the query.
        zigzag: see `pieces_of`.

    Returns:
        (B, H, W, D), in the dtype of `query`; it can be differentiated once.

    Raises:
        ShapeError: if shapes disagree, G does not divide H, or zigzag shares have no two halves.

    Source:
        Li et al. 2021, arXiv:2105.13120, section 3.2 (keys and values travel round a ring; all scores of a rank's
        queries are kept); Liu et al. 2023, arXiv:2310.01889, algorithm 1 (with a running softmax, so that none are).

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> from minillm.parallel.zigzag import cut_sequence
        >>> whole = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 4, 1)
        >>> def means_so_far(comm):
        ...     share = cut_sequence(whole, comm.rank, comm.size, dim=2)
        ...     return ring_attention(torch.zeros_like(share), share, share, comm).flatten().tolist()
        >>> launch_threads(means_so_far, 2)
        [[1.0, 4.0], [2.0, 3.0]]
    """
    sizes: dict[str, int] = {}
    for name, x, heads in (("query", query, "H"), ("key", key, "G"), ("value", value, "G")):
        check_shape(name, x, f"B {heads} W D", sizes)
    if sizes["G"] == 0 or sizes["H"] % sizes["G"]:
        raise ShapeError(f"{sizes['H']} query heads cannot share {sizes['G']} key/value heads evenly")
    if sizes["W"] == 0 or (zigzag and sizes["W"] % 2):
        raise ShapeError(f"a share of {sizes['W']} positions, expected two equal pieces of at least one (or one piece)")
    return RingAttention.apply(query, key, value, comm, causal, zigzag)


class Visit:
    """One visitor at this rank: which parts of it the queries here may see.

    Args:
        comm: the ring.
        step: the round, from 0, when each rank is its own visitor.
        causal: whether later keys are hidden.
        zigzag: see `pieces_of`.
    """

    def __init__(self, comm: Comm, step: int, causal: bool, zigzag: bool):
        mine, theirs = (pieces_of(rank % comm.size, comm.size, zigzag) for rank in (comm.rank, comm.rank - step))
        self.n_pieces, self.pairs = len(mine), visible_pairs(mine, theirs, causal)

    def parts(self, n_positions: int) -> Iterator[tuple[slice, slice, Sight]]:
        """Positions of queries and of visiting keys, of W each, and who of them sees whom."""
        n = n_positions // self.n_pieces
        for i, j, is_same in self.pairs:
            sight = Sight(n, n, N_ROWS, N_COLUMNS, is_same, 0, None, None)
            yield slice(i * n, (i + 1) * n), slice(j * n, (j + 1) * n), sight


class Passing:
    """A tensor on its way to the next rank, while that of the rank before comes here.

    Args:
        tensor: contiguous; not to be changed before `wait` is over.
        comm: the ring.
        tag: one for each kind of thing that travels at the same time.
    """

    def __init__(self, tensor: Tensor, comm: Comm, tag: int):
        self.incoming = torch.empty_like(tensor)
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self.pending = comm.exchange(tensor, after, self.incoming, before, tag, async_op=True)

    def wait(self) -> Tensor:
        """What has come."""
        self.pending.wait()
        return self.incoming


class RingAttention(torch.autograd.Function):
    """The two trips behind `ring_attention`; between them a rank keeps its own share and one number per query."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, comm: Comm, causal: bool, zigzag: bool) -> Tensor:
        output = torch.zeros_like(wide(query), memory_format=torch.contiguous_format)
        log_sums = torch.full_like(output[..., :1], -torch.inf)
        visitor = torch.stack((key, value))
        for step in range(comm.size):
            passing = Passing(visitor, comm, VISITORS) if step < comm.size - 1 else None
            for rows, columns, sight in Visit(comm, step, causal, zigzag).parts(query.shape[2]):
                part = attend(query[:, :, rows], *visitor[..., columns, :], sight)
                merged = merge_parts(output[:, :, rows], log_sums[:, :, rows], *part)
                output[:, :, rows], log_sums[:, :, rows] = merged
            visitor = passing.wait() if passing else visitor
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.settings = comm, causal, zigzag
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        comm, causal, zigzag = ctx.settings
        query_gradient = torch.zeros_like(wide(query))
        visitor, luggage = torch.stack((key, value)), None
        for step in range(comm.size):
            passing = Passing(visitor, comm, VISITORS) if step < comm.size - 1 else None
            found = torch.zeros_like(wide(visitor))
            for rows, columns, sight in Visit(comm, step, causal, zigzag).parts(query.shape[2]):
                of_rows = (x[:, :, rows] for x in (query, output, log_sums, gradient))
                parts = attend_backward(*of_rows, *visitor[..., columns, :], sight)
                query_gradient[:, :, rows] += parts[0]
                found[0, :, :, columns] += parts[1]
                found[1, :, :, columns] += parts[2]
            if luggage is not None:
                found += luggage.wait()                            # what the ranks visited before have found
            luggage = Passing(found, comm, GRADIENTS) if comm.size > 1 else None
            visitor = passing.wait() if passing else visitor
        if luggage is not None:
            found = luggage.wait()                                 # home again
        key_gradient, value_gradient = found.to(key.dtype)
        return query_gradient.to(query.dtype), key_gradient, value_gradient, None, None, None


def attend(query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """Attention to some keys, tile by tile.

    Args:
        query: (B, H, N, D).
        key: (B, G, N, D).
        value: (B, G, N, D).
        sight: who sees whom.

    Returns:
        (B, H, N, D) and the base-2 logarithms of the sums of powers (B, H, N, 1), in at least float32.
    """
    output = torch.empty_like(wide(query), memory_format=torch.contiguous_format)
    log_sums = torch.empty_like(output[..., :1])
    with torch.autocast(query.device.type, enabled=False):
        for row, heads, groups in head_parts(query, key):
            found = forward_tiles(query[row, heads], key[row, groups], value[row, groups], None, sight)
            output[row, heads], log_sums[row, heads] = found
    return output, log_sums


def attend_backward(
    query: Tensor,
    output: Tensor,
    log_sums: Tensor,
    gradient: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
) -> tuple[Tensor, Tensor, Tensor]:
    """What some keys add to the gradients of the queries, and what they themselves and their values get.

    Args:
        query: (B, H, N, D).
        output: (B, H, N, D) over all keys.
        log_sums: (B, H, N, 1) over all keys: with them a score is a weight at once, without the other keys.
        gradient: (B, H, N, D).
        key: (B, G, N, D).
        value: (B, G, N, D).
        sight: who sees whom.

    Returns:
        gradients of query, key and value, in at least float32.
    """
    found = [torch.empty_like(wide(x), memory_format=torch.contiguous_format) for x in (query, key, value)]
    with torch.autocast(gradient.device.type, enabled=False):
        for row, heads, groups in head_parts(query, key):
            inputs = query[row, heads], key[row, groups], value[row, groups], None
            results = output[row, heads], log_sums[row, heads], gradient[row, heads]
            parts = backward_tiles(*inputs, *results, sight, None)
            for whole, some, part in zip(found, (heads, groups, groups), parts, strict=True):
                whole[row, some] = part
    return tuple(found)
