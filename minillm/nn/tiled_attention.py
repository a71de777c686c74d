"""Exact attention in memory that grows with the length, not with its square: scores exist one tile at a time.

Forward, each block of queries walks over the keys and keeps a running maximum, a running sum and a running mixture of
values; nothing but the result and one number per query (the logarithm of its sum of exponentials) is kept. Backward,
that number turns recomputed scores into weights at once.

Dimensions: B batch, H query heads, G key/value heads, T queries, S keys, D head width; N = B * G, R = H / G times the
rows of a tile (query heads that share keys stand below each other), K keys of a tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.errors import ConfigError, ShapeError
from minillm.nn.relative_position import alibi_bias, relative_distances

N_ROWS, N_COLUMNS = 128, 512  # of a tile: 8 heads of it are 2 MiB in float32, which a core's cache holds


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

    def row_blocks(self) -> Iterator[slice]:
        """The queries, block by block."""
        for start in range(0, self.n_queries, self.n_rows):
            yield slice(start, min(start + self.n_rows, self.n_queries))

    def column_blocks(self, rows: slice) -> Iterator[tuple[slice, Tensor | None]]:
        """The blocks of keys of which some query of `rows` may see some key.

        Yields:
            The keys, and which pairs may see each other (broadcastable to (B, H, T, S) of the tile); None is all.
        """
        past = self.n_keys - self.n_queries
        end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
        first = max(0, rows.start + past + 1 - self.window) if self.window else 0
        diagonal = max(first, rows.start + past) if self.causal else end
        inside = max(first, min(rows.stop + past - self.window, diagonal)) if self.window else first
        for begin, stop in ((first, inside), (inside, diagonal), (diagonal, end)):  # edges apart: only they need a mask
            for start in range(begin, stop, self.n_columns):
                columns = slice(start, min(start + self.n_columns, stop))
                visible = self.visible(rows, columns)
                if self.mask is None or bool(visible.any()):
                    yield columns, visible

    def visible(self, rows: slice, columns: slice) -> Tensor | None:
        """Which queries of `rows` may see which keys of `columns`; None is all of them."""
        past = self.n_keys - self.n_queries
        visible = None if self.mask is None else cut(self.mask, rows, columns)
        later = self.causal and columns.stop > rows.start + past + 1
        farther = self.window and columns.start <= rows.stop - 1 + past - self.window
        if not (later or farther):
            return visible
        distances = self.distances(rows, columns, None if visible is None else visible.device)
        near = (distances <= 0) & (distances > -self.window) if self.window else distances <= 0
        return near if visible is None else visible & near

    def distances(self, rows: slice, columns: slice, device: torch.device | None) -> Tensor:
        """Key position minus query position, (T, S) of the tile."""
        past = self.n_keys - self.n_queries
        query_positions = torch.arange(rows.start + past, rows.stop + past, device=device)
        return relative_distances(query_positions, torch.arange(columns.start, columns.stop, device=device))

    def adjust(self, scores: Tensor, rows: slice, columns: slice, visible: Tensor | None, bias: Tensor | None) -> None:
        """Add the biases to scores (B, H, T, S) of a tile and set hidden ones to minus infinity, in place."""
        if bias is not None:
            scores += cut(bias, rows, columns)
        if self.slopes is not None:
            scores += alibi_bias(self.distances(rows, columns, scores.device), self.slopes.to(scores.dtype))
        if visible is not None:
            scores.masked_fill_(~visible.to(scores.device), -math.inf)


def cut(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """The part of x (..., T or 1, S or 1) that belongs to a tile; a dimension of size 1 serves every tile."""
    rows = slice(None) if x.shape[-2] == 1 else rows
    return x[..., rows, slice(None) if x.shape[-1] == 1 else columns]


def running_softmax(
    scores: Tensor, value: Tensor, highest: Tensor, total: Tensor, mixed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of softmax(all scores) @ values, given only some of the keys at a time.

    What earlier keys left is divided by exp(new maximum - old maximum), so that all exponentials have the same shift.
    After the last step mixed / total is the result, and highest + log(total) the logarithm of the sum of exponentials.

    Args:
        scores: (N, R, K) of these keys, minus infinity where hidden; overwritten.
        value: (N, K, D) of these keys.
        highest: (N, R, 1) the largest score so far; minus infinity before the first step.
        total: (N, R, 1) the sum of exp(score - highest) so far; zero before the first step.
        mixed: (N, R, D) the sum of exp(score - highest) * value so far; zero before the first step.

    Returns:
        highest, total and mixed with these keys included.

    Source:
        Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3; Dao et al. 2022, arXiv:2205.14135, section 3.1.

    Example:
        >>> none, two = torch.zeros(1, 1, 1), torch.tensor([[[4.0], [6.0]]])
        >>> highest, total, mixed = running_softmax(torch.zeros(1, 1, 2), two, none - math.inf, none, none)
        >>> highest.item(), total.item(), mixed.item()
        (0.0, 2.0, 10.0)
    """
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))  # (N, R, 1)
    shift = new_highest.masked_fill(new_highest == -math.inf, 0.0)  # (N, R, 1)
    weights = scores.sub_(shift).exp_()                            # (N, R, K)
    kept = (highest - shift).exp_()                                # (N, R, 1)
    total = total * kept + weights.sum(dim=-1, keepdim=True)       # (N, R, 1)
    return new_highest, total, torch.baddbmm(mixed * kept, weights, value)


class TiledAttention(torch.autograd.Function):
    """The pair of passes behind `tiled_attention`."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, sight: Sight) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            output, log_sums = forward_tiles(query, key, value, bias, sight)
        ctx.save_for_backward(query, key, value, bias, output, log_sums)
        ctx.sight = sight
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            return *backward_tiles(*ctx.saved_tensors, gradient, ctx.sight, ctx.needs_input_grad[3]), None


def forward_tiles(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, sight: Sight
) -> tuple[Tensor, Tensor]:
    """The result and the logarithm of each query's sum of exponentials.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D).
        value: (B, G, S, D).
        bias: (B or 1, H or 1, T or 1, S or 1), or None.
        sight: who may see whom.

    Returns:
        (B, H, T, D) in the dtype of query, and (N, H / G, T, 1) float32 or float64, 0 for queries that see nothing.
    """
    queries, keys, values = grouped(query, key), flat(key), flat(value)
    output, log_sums = torch.empty_like(queries), queries.new_zeros(*queries.shape[:3], 1)
    room = room_for_a_tile(queries, sight)
    for rows in sight.row_blocks():
        wanted = tile_of(queries, rows) / math.sqrt(query.shape[-1])  # (N, R, D)
        highest = wanted.new_full((*wanted.shape[:2], 1), -math.inf)  # (N, R, 1)
        total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
        for columns, visible in sight.column_blocks(rows):
            scores = product(wanted, keys[:, columns].mT, room)    # (N, R, K)
            sight.adjust(per_head(scores, query, rows), rows, columns, visible, bias)
            highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
        nothing = total == 0.0                                     # (N, R, 1)
        total = total.masked_fill(nothing, 1.0)                    # (N, R, 1)
        put(output, rows, mixed / total)
        put(log_sums, rows, highest.masked_fill(nothing, 0.0) + total.log())
    return output.view(query.shape).to(query.dtype), log_sums


def backward_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    output: Tensor,
    log_sums: Tensor,
    gradient: Tensor,
    sight: Sight,
    bias_wanted: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value and bias.

    With weights w, values v and upstream gradient g, a score's gradient is w * (g . v - g . output): the last product
    is the same for all keys of a query, and is computed once.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D).
        value: (B, G, S, D).
        bias: (B or 1, H or 1, T or 1, S or 1), or None.
        output: (B, H, T, D) from `forward_tiles`.
        log_sums: (N, H / G, T, 1) from `forward_tiles`.
        gradient: (B, H, T, D).
        sight: who may see whom.
        bias_wanted: whether the bias needs a gradient.

    Returns:
        Four gradients in the shapes and dtypes of their tensors; None for a bias that needs none.

    Source:
        Dao et al. 2022, arXiv:2205.14135, appendix B.2.
    """
    queries, keys, values = grouped(query, key), flat(key), flat(value)
    upstream = grouped(gradient, key)
    common = (upstream * grouped(output, key)).sum(dim=-1, keepdim=True)
    query_gradient, key_gradient, value_gradient = (torch.zeros_like(x) for x in (queries, keys, values))
    bias_gradient = bias.new_zeros(bias.shape, dtype=queries.dtype) if bias_wanted else None
    scale = 1.0 / math.sqrt(query.shape[-1])
    room, more_room = room_for_a_tile(queries, sight), room_for_a_tile(queries, sight)
    for rows in sight.row_blocks():
        wanted, row_upstream = tile_of(queries, rows) * scale, tile_of(upstream, rows)  # both (N, R, D)
        row_common, row_log_sums = tile_of(common, rows), tile_of(log_sums, rows)  # both (N, R, 1)
        row_gradient = torch.zeros_like(wanted)                    # (N, R, D)
        for columns, visible in sight.column_blocks(rows):
            weights = product(wanted, keys[:, columns].mT, room)   # (N, R, K)
            sight.adjust(per_head(weights, query, rows), rows, columns, visible, bias)
            weights.sub_(row_log_sums).exp_()
            value_gradient[:, columns] += weights.mT @ row_upstream
            weights *= product(row_upstream, values[:, columns].mT, more_room).sub_(row_common)
            row_gradient.baddbmm_(weights, keys[:, columns], alpha=scale)
            key_gradient[:, columns] += weights.mT @ wanted
            if bias_wanted:
                place = cut(bias_gradient, rows, columns)
                place += per_head(weights, query, rows).sum_to_size(place.shape)
        put(query_gradient, rows, row_gradient)
    gradients = [query_gradient.view(query.shape).to(query.dtype)]
    gradients += [x.view(key.shape).to(key.dtype) for x in (key_gradient, value_gradient)]
    return *gradients, bias_gradient if bias_gradient is None else bias_gradient.to(bias.dtype)


def flat(x: Tensor) -> Tensor:
    """Keys or values (B, G, S, D) as (N, S, D), in at least float32."""
    return x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))


def grouped(x: Tensor, key: Tensor) -> Tensor:
    """(B, H, T, D) as (N, H / G, T, D): query heads that share a key head are side by side; in at least float32."""
    return x.unflatten(1, (key.shape[1], -1)).flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))


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


def per_head(scores: Tensor, query: Tensor, rows: slice) -> Tensor:
    """Scores (N, R, K) of a tile seen as (B, H, T, S) of the tile, without a copy."""
    return scores.view(*query.shape[:2], rows.stop - rows.start, scores.shape[-1])
