"""Exact attention in memory that grows with the length, not with its square: scores exist one tile at a time.

Forward, each block of queries walks over the keys and keeps a running maximum, a running sum and a running mixture of
values; nothing but the result and one number per query (the logarithm of its sum of exponentials) is kept. Backward,
that number turns recomputed scores into weights at once.

Dimensions: B batch, H query heads, G key/value heads, T queries, S keys, D head width; N = B * G, R = H / G times the
rows of a tile (query heads that share keys stand below each other), K keys of a tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.errors import ConfigError, ShapeError
from minillm.nn.relative_position import alibi_bias, relative_distances

N_ROWS, N_COLUMNS = 256, 512  # of a tile: half a MiB in float32, of which a core's cache holds two
# Scores are counted in powers of two: exp of numbers too small for float32 takes a CPU fifteen times as long, exp2 not.
LOG2_E = math.log2(math.e)


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    window: int = 0,
    slopes: Tensor | None = None,
    tile: tuple[int, int] = (N_ROWS, N_COLUMNS),
) -> Tensor:
    """`minillm.nn.attention.attention` tile by tile: equal values and gradients, without a (T, S) tensor of scores.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D), where G divides H.
        value: (B, G, S, D).
        mask: bool, broadcastable to (B, H, T, S), True where attention is allowed; tiles without any True are skipped.
            A query that may see no key gives zeros.
        causal: hide keys that are later than the query; the queries are the last T of the S positions.
        bias: numbers added to the scores, broadcastable to (B, H, T, S), or None; it gets a gradient if it wants one.
        window: each query sees at most this many keys up to itself; 0 does not limit them. Implies causal.
        slopes: (H,) ALiBi slopes; their bias is made tile by tile, without gradient.
        tile: queries and keys of a tile.

    Returns:
        (B, H, T, D), in the dtype of `query`; it can be differentiated once.

    Raises:
        ShapeError: if G does not divide H, or with `causal` or a window there are more queries than keys.
        ConfigError: if the tile is empty.

    Source:
        Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3 (running softmax); Dao et al. 2022, arXiv:2205.14135,
        algorithms 1 and 4 (tiles, recomputation); Dao 2023, arXiv:2307.08691, section 3.1 (one logarithm per query).

    Example:
        >>> x = torch.tensor([[[[1.0], [3.0], [5.0]]]])
        >>> tiled_attention(torch.zeros(1, 1, 3, 1), x, x, causal=True, tile=(2, 1)).flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    n_heads, n_kv_heads, n_queries, n_keys = query.shape[1], key.shape[1], query.shape[2], key.shape[2]
    if n_kv_heads == 0 or n_heads % n_kv_heads:
        raise ShapeError(f"{n_heads} query heads cannot share {n_kv_heads} key/value heads evenly")
    if (causal or window) and n_queries > n_keys:
        raise ShapeError(f"{n_queries} queries cannot be the last of only {n_keys} keys")
    if min(tile) < 1:
        raise ConfigError(f"the tile is {tile}, expected at least one query and one key")
    sight = Sight(n_queries, n_keys, *tile, causal or window > 0, window, four_dimensions(mask), slopes)
    return TiledAttention.apply(query, key, value, four_dimensions(bias), sight)


def four_dimensions(x: Tensor | None) -> Tensor | None:
    """The same numbers with ones in front, until there are four dimensions."""
    return x if x is None or x.dim() >= 4 else x[(None,) * (4 - x.dim())]


@dataclass(frozen=True)
class Sight:
    """Who may see whom, answered for one tile at a time.

    Args:
        n_queries: T.
        n_keys: S.
        n_rows: queries of a tile.
        n_columns: keys of a tile.
        causal: whether later keys are hidden.
        window: how many keys up to itself a query sees; 0 for all.
        mask: (B or 1, H or 1, T or 1, S or 1) bool, or None.
        slopes: (H,) of ALiBi, or None.
    """

    n_queries: int
    n_keys: int
    n_rows: int
    n_columns: int
    causal: bool
    window: int
    mask: Tensor | None
    slopes: Tensor | None

    def part(self, rows: slice, heads: slice) -> "Sight":
        """The answers for some rows of the batch and some query heads."""
        slopes = None if self.slopes is None else self.slopes[heads]
        return replace(self, mask=part_of(self.mask, rows, heads), slopes=slopes)

    def row_blocks(self) -> Iterator[slice]:
        """The queries, block by block."""
        for start in range(0, self.n_queries, self.n_rows):
            yield slice(start, min(start + self.n_rows, self.n_queries))

    def column_blocks(self, rows: slice) -> Iterator[slice]:
        """The blocks of keys that the queries of `rows` must visit.

        Counted from the first key that any of them may see (key 0, or where the first query's window begins) to the
        last (the last query's own position if causal, else the last of all), `n_columns` keys in a block and in the
        last one what is left. Blocks that the mask hides from all these queries are left out; it can be `cut`.

        Args:
            rows: positions among the queries, which are the last `n_queries` of the `n_keys` positions.

        Yields:
            Slices of the keys.

        Example:
            >>> sight = Sight(6, 8, n_rows=2, n_columns=3, causal=True, window=5, mask=None, slopes=None)
            >>> list(sight.column_blocks(slice(2, 4)))  # the queries stand at positions 4 and 5
            [slice(0, 3, None), slice(3, 6, None)]
        """
        past = self.n_keys - self.n_queries
        end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
        first = max(0, rows.start + past + 1 - self.window) if self.window else 0
        for start in range(first, end, self.n_columns):
            columns = slice(start, min(start + self.n_columns, end))
            if self.mask is None or bool(cut(self.mask, rows, columns).any()):
                yield columns

    def adjust(self, scores: Tensor, rows: slice, columns: slice, bias: Tensor | None) -> None:
        """Add the biases to scores (B, H, T, S) of a tile and set hidden ones to minus infinity, in place.

        Scores are in units of ln 2 here, biases come in natural ones.
        """
        if bias is not None:
            scores.add_(cut(bias, rows, columns), alpha=LOG2_E)
        if self.slopes is not None:
            distances = self.distances(rows, columns, scores.device)
            scores.add_(alibi_bias(distances, self.slopes.to(scores.dtype)), alpha=LOG2_E)
        if self.mask is not None:
            scores.masked_fill_(~cut(self.mask, rows, columns), -math.inf)
        if self.causal:
            self.hide_edges(scores, rows, columns)

    def hide_edges(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Hide later keys and those before the window; only the ends of a tile can hold any."""
        n_rows, first = rows.stop - rows.start, rows.start + self.n_keys - self.n_queries
        n_sure = max(0, first + 1 - columns.start)                 # keys that are not later than the first query
        if n_sure < scores.shape[-1]:
            later = scores[..., n_sure:]                           # (B, H, T, E)
            corner = torch.ones(later.shape[-2:], dtype=torch.bool, device=scores.device)  # (T, E)
            later.masked_fill_(corner.triu(first + 1 - columns.start - n_sure), -math.inf)
        n_far = first + n_rows - self.window - columns.start       # keys that are too far back for the last query
        if self.window and n_far > 0:
            farther = scores[..., :n_far]                          # (B, H, T, W)
            corner = torch.ones(farther.shape[-2:], dtype=torch.bool, device=scores.device)  # (T, W)
            farther.masked_fill_(corner.tril(first - self.window - columns.start), -math.inf)

    def distances(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        """Key position minus query position, (T, S) of the tile."""
        past = self.n_keys - self.n_queries
        query_positions = torch.arange(rows.start + past, rows.stop + past, device=device)
        return relative_distances(query_positions, torch.arange(columns.start, columns.stop, device=device))


def part_of(x: Tensor | None, rows: slice, heads: slice) -> Tensor | None:
    """What of x (B or 1, H or 1, ...) belongs to some rows of the batch and some heads."""
    if x is None:
        return None
    return x[slice(None) if x.shape[0] == 1 else rows, slice(None) if x.shape[1] == 1 else heads]


def cut(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """The part of x (..., T or 1, S or 1) that belongs to a tile; a dimension of size 1 serves every tile."""
    rows = slice(None) if x.shape[-2] == 1 else rows
    return x[..., rows, slice(None) if x.shape[-1] == 1 else columns]


def running_softmax(
    scores: Tensor, value: Tensor, highest: Tensor, total: Tensor, mixed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of softmax(ln 2 * all scores) @ values, given only some of the keys at a time.

    What earlier keys left is divided by 2^(new maximum - old maximum), so that all powers have the same shift.
    After the last step mixed / total is the result, and highest + log2(total) the logarithm of the sum of powers.

    Args:
        scores: (N, R, K) of these keys, divided by ln 2, minus infinity where hidden; overwritten.
        value: (N, K, D) of these keys.
        highest: (N, R, 1) the largest score so far; the dtype's lowest finite number before the first step, from which
            minus infinity can be told apart.
        total: (N, R, 1) the sum of 2^(score - highest) so far; zero before the first step.
        mixed: (N, R, D) the sum of 2^(score - highest) * value so far; zero before the first step; overwritten.

    Returns:
        highest, total and mixed with these keys included.

    Source:
        Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3; Dao et al. 2022, arXiv:2205.14135, section 3.1.

    Example:
        >>> none, two = torch.zeros(1, 1, 1), torch.tensor([[[4.0], [6.0]]])
        >>> highest, total, mixed = running_softmax(torch.zeros(1, 1, 2), two, none - 1e30, none, none.clone())
        >>> highest.item(), total.item(), mixed.item()
        (0.0, 2.0, 10.0)
    """
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))  # (N, R, 1)
    weights = scores.sub_(new_highest).exp2_()                     # (N, R, K)
    kept = (highest - new_highest).exp2_()                         # (N, R, 1)
    total = torch.addcmul(weights.sum(dim=-1, keepdim=True), total, kept)  # (N, R, 1)
    return new_highest, total, mixed.mul_(kept).baddbmm_(weights, value)


class TiledAttention(torch.autograd.Function):
    """The pair of passes behind `tiled_attention`; heads go through them a few at a time, as many as fit the caches."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, sight: Sight) -> Tensor:
        output = torch.empty_like(query)
        log_sums = wide(query[..., :1]).new_empty(*query.shape[:3], 1)
        with torch.autocast(query.device.type, enabled=False):
            for row, heads, groups in head_parts(query, key):
                inputs = query[row, heads], key[row, groups], value[row, groups], part_of(bias, row, heads)
                output[row, heads], log_sums[row, heads] = forward_tiles(*inputs, sight.part(row, heads))
        ctx.save_for_backward(query, key, value, bias, output, log_sums)
        ctx.sight = sight
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, output, log_sums = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (query, key, value)]
        bias_gradient = torch.zeros_like(wide(bias)) if ctx.needs_input_grad[3] else None
        with torch.autocast(gradient.device.type, enabled=False):
            for row, heads, groups in head_parts(query, key):
                inputs = query[row, heads], key[row, groups], value[row, groups], part_of(bias, row, heads)
                results = output[row, heads], log_sums[row, heads], gradient[row, heads]
                place = part_of(bias_gradient, row, heads)
                found = backward_tiles(*inputs, *results, ctx.sight.part(row, heads), place)
                for whole, some, part in zip(gradients, (heads, groups, groups), found, strict=True):
                    whole[row, some] = part
        return *gradients, bias_gradient if bias_gradient is None else bias_gradient.to(bias.dtype), None


def head_parts(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """One row of the batch and some heads at a time: one for each thread, or those that share keys.

    Yields:
        The row, the query heads, and the key/value heads that these share.
    """
    n_groups = key.shape[1]
    n_sharing = query.shape[1] // n_groups
    n_at_once = max(1, torch.get_num_threads() // n_sharing)
    for row in range(query.shape[0]):
        for first in range(0, n_groups, n_at_once):
            last = min(first + n_at_once, n_groups)
            yield slice(row, row + 1), slice(first * n_sharing, last * n_sharing), slice(first, last)


def forward_tiles(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, sight: Sight
) -> tuple[Tensor, Tensor]:
    """The result and the logarithm, in base 2, of each query's sum of exponentials.

    Args:
        query: (1, H, T, D), one row of the batch.
        key: (1, G, S, D).
        value: (1, G, S, D).
        bias: (1, H or 1, T or 1, S or 1), or None.
        sight: who may see whom.

    Returns:
        (1, H, T, D) and (1, H, T, 1), float32 or float64; both 0 for queries that see nothing.
    """
    queries, keys, values = grouped(query, key), flat(key), flat(value)
    output, log_sums = torch.empty_like(queries), queries.new_zeros(*queries.shape[:3], 1)
    room = room_for_a_tile(queries, sight)
    for rows in sight.row_blocks():
        wanted = tile_of(queries, rows) * (LOG2_E / math.sqrt(query.shape[-1]))  # (N, R, D)
        row_output, row_log_sums = mix_rows(wanted, keys, values, bias, sight, rows, room)
        put(output, rows, row_output)
        put(log_sums, rows, row_log_sums)
    return output.view(query.shape), log_sums.view(*query.shape[:3], 1)


def mix_rows(
    wanted: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, sight: Sight, rows: slice, room: Tensor
) -> tuple[Tensor, Tensor]:
    """A block of queries walks over the keys that it may see, tile by tile, with a `running_softmax`.

    The walk begins with the lowest finite number as the highest score (`torch.finfo`), and with two zeros.

    Args:
        wanted: (N, R, D) the queries of these rows times log2(e) / sqrt(D): products with keys are scores over ln 2.
        keys: (N, S, D), all of them.
        values: (N, S, D).
        bias: for `sight.adjust`, or None.
        sight: `sight.column_blocks(rows)` says which slices of the keys to visit, and `sight.adjust(scores, rows,
            columns, bias)` adds biases to scores and hides some, in place; it wants them `per_head`.
        rows: which queries these are.
        room: for the `product` of a tile.

    Returns:
        (N, R, D) the mixed values and (N, R, 1) the logarithm, in base 2, of each query's sum of powers; both 0 for
        queries that see nothing.

    Source:
        Dao et al. 2022, arXiv:2205.14135, algorithm 1, with the loop over queries outside; Dao 2023, arXiv:2307.08691,
        section 3.1.
    """
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)  # (N, R, 1)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)        # (N, R, K)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    nothing = total == 0.0                                         # (N, R, 1)
    total = total.masked_fill(nothing, 1.0)                        # (N, R, 1)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


def backward_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    output: Tensor,
    log_sums: Tensor,
    gradient: Tensor,
    sight: Sight,
    bias_gradient: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and that of the bias where it is wanted.

    With weights w, values v and upstream gradient g, a score's gradient is w * (g . v - g . output): the last product
    is the same for all keys of a query, and is computed once.

    Args:
        query: (1, H, T, D), one row of the batch.
        key: (1, G, S, D).
        value: (1, G, S, D).
        bias: (1, H or 1, T or 1, S or 1), or None.
        output: (1, H, T, D) from `forward_tiles`.
        log_sums: (1, H, T, 1) from `forward_tiles`.
        gradient: (1, H, T, D).
        sight: who may see whom.
        bias_gradient: like the bias; what is found is added to it. None if nobody wants it.

    Returns:
        Three gradients in the shapes of their tensors.

    Source:
        Dao et al. 2022, arXiv:2205.14135, appendix B.2.
    """
    queries, keys, values = grouped(query, key), flat(key), flat(value)
    upstream = grouped(gradient, key)
    common = (upstream * grouped(output, key)).sum(dim=-1, keepdim=True)
    log_sums = grouped(log_sums, key)
    query_gradient, key_gradient, value_gradient = (torch.zeros_like(x) for x in (queries, keys, values))
    scale = 1.0 / math.sqrt(query.shape[-1])
    room, more_room = room_for_a_tile(queries, sight), room_for_a_tile(queries, sight)
    for rows in sight.row_blocks():
        wanted, row_upstream = tile_of(queries, rows) * (LOG2_E * scale), tile_of(upstream, rows)  # both (N, R, D)
        row_common, row_log_sums = tile_of(common, rows), tile_of(log_sums, rows)  # both (N, R, 1)
        row_gradient = torch.zeros_like(wanted)                    # (N, R, D)
        for columns in sight.column_blocks(rows):
            column_keys, column_values = keys[:, columns], values[:, columns]  # both (N, K, D)
            scores = product(wanted, column_keys.mT, room)         # (N, R, K)
            sight.adjust(per_head(scores, rows), rows, columns, bias)
            of_rows = row_upstream, row_log_sums, row_common
            found = tile_gradients(scores, wanted, column_keys, column_values, *of_rows, more_room)
            for_scores, for_query, for_key, for_value = found
            row_gradient.add_(for_query, alpha=scale)
            key_gradient[:, columns] += for_key
            value_gradient[:, columns] += for_value
            if bias_gradient is not None:
                place = cut(bias_gradient, rows, columns)
                place += per_head(for_scores, rows).sum_to_size(place.shape)
        put(query_gradient, rows, row_gradient)
    key_gradient /= LOG2_E
    return query_gradient.view(query.shape), key_gradient.view(key.shape), value_gradient.view(key.shape)


def tile_gradients(
    scores: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    upstream: Tensor,
    log_sums: Tensor,
    common: Tensor,
    room: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What one tile adds to the gradients: its weights are 2^(score - log_sum), without a second softmax.

    Upstream times values is the gradient of the weights; less what is common to the whole row, and times the weights,
    it is that of the scores; the other three follow from the products in which scores, weights and values took part.

    Args:
        scores: (N, R, K) query @ key^T of this tile, over ln 2, minus infinity where hidden; overwritten.
        query: (N, R, D) as multiplied with the keys.
        key: (N, K, D).
        value: (N, K, D).
        upstream: (N, R, D) gradient of the attention's result.
        log_sums: (N, R, 1) logarithm, in base 2, of each query's sum of powers over all keys.
        common: (N, R, 1) sum of upstream * result over D: what softmax takes from the gradient of every weight.
        room: for the `product` of a tile that is not `scores`.

    Returns:
        Gradient of the scores in natural units (N, R, K); its products with key (N, R, D) and query (N, K, D); gradient
        of value (N, K, D). They are valid until `scores` and `room` are used again.

    Source:
        Dao et al. 2022, arXiv:2205.14135, algorithm 4 (the inner loop); `common` is its D.
    """
    weights = scores.sub_(log_sums).exp2_()                        # (N, R, K)
    value_gradient = weights.mT @ upstream                         # (N, K, D)
    weight_gradient = product(upstream, value.mT, room)            # (N, R, K)
    score_gradient = weights.mul_(weight_gradient.sub_(common))    # (N, R, K)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, value_gradient


def wide(x: Tensor) -> Tensor:
    """x in at least float32, in which sums of many 16-bit numbers stay right."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flat(x: Tensor) -> Tensor:
    """Keys or values (B, G, S, D) as (N, S, D), in at least float32."""
    return wide(x.flatten(0, 1))


def grouped(x: Tensor, key: Tensor) -> Tensor:
    """(B, H, T, D) as (N, H / G, T, D): query heads that share a key head are side by side; in at least float32."""
    return wide(x.unflatten(1, (key.shape[1], -1)).flatten(0, 1))


def room_for_a_tile(queries: Tensor, sight: Sight) -> Tensor:
    """Memory for the scores of one tile, used again and again: fresh pages for each would cost as much as a product."""
    n_rows, n_columns = min(sight.n_rows, sight.n_queries), min(sight.n_columns, sight.n_keys)
    return queries.new_empty(queries.shape[0] * queries.shape[1] * n_rows * n_columns)


def product(left: Tensor, right: Tensor, room: Tensor) -> Tensor:
    """left @ right, (N, R, D) and (N, D, K), written into `room`: valid until the next product there."""
    shape = (*left.shape[:2], right.shape[2])
    return torch.bmm(left, right, out=room[: math.prod(shape)].view(shape))


def tile_of(x: Tensor, rows: slice) -> Tensor:
    """Some queries of (N, H / G, T, D), those of all heads of a group below each other: (N, R, D)."""
    return x[:, :, rows].flatten(1, 2)


def put(x: Tensor, rows: slice, part: Tensor) -> None:
    """Write (N, R, D) back to where `tile_of` reads it."""
    x[:, :, rows] = part.view(x[:, :, rows].shape)


def per_head(scores: Tensor, rows: slice) -> Tensor:
    """Scores (N, R, K) of a tile, of one row of the batch, seen as (1, H, T, S) of the tile, without a copy."""
    return scores.view(1, -1, rows.stop - rows.start, scores.shape[-1])
