"""Chapter 11, Efficient attention: fill in the holes (15 points).

`minillm course test 11` tests this file, `minillm course test 11 11.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.errors import ShapeError
from minillm.models.gpt import GPTConfig
from minillm.nn.cache import KVCache
from minillm.nn.relative_position import alibi_bias, relative_distances
from minillm.nn.tiled_attention import LOG2_E, cut, part_of, per_head, product


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
    # TASK 11.1 (3 points)
    # First the new maximum: of the old one and of these keys' scores. The powers of these keys are taken with it.
    # What was summed before had another shift, and one factor per query, 2^(old maximum - new maximum), repairs
    # both the total and the mixture.
    raise NotImplementedError("task 11.1")


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
        # TASK 11.2 (2 points)
        # Query t stands at position t + n_keys - n_queries. Where does the first key of all these queries stand,
        # where the last? With `range` from the one to the other in steps of n_columns the blocks are there, and the
        # last one must not go too far.
        raise NotImplementedError("task 11.2")

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
    # TASK 11.3 (3 points)
    # One pass of the loop: the product of the queries with the keys of a block, `sight.adjust`,
    # `running_softmax`. The division comes once, after the loop. A query that saw nothing has a total of 0: make
    # it 1 before you divide and take the logarithm. What does its maximum say, and what should it say?
    raise NotImplementedError("task 11.3")


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
    # TASK 11.4 (3 points)
    # Three products of the forward pass have six factors; the gradient of a factor is the gradient of the product
    # times the other factor, transposed where the shapes ask for it. The weights come first, then the gradient of
    # the values and that of the weights, then the scores', and from these the last two. Mind what is overwritten
    # while it is still needed.
    raise NotImplementedError("task 11.4")


class RingCache(KVCache):
    """A cache for layers with a sliding window: memory for `window` positions, however long the text becomes.

    Position p is kept in slot p % window, where it takes the place of position p - window, which no later query may
    see. What was overwritten is gone: setting `length` back does not bring it back.

    Args:
        sizes: n_layers, batch_size, n_kv_heads, max_seq_len and d_head as for `KVCache`; max_seq_len bounds how many
            positions may be written in all, not the memory.
        window: how many keys up to itself a query sees, at least 1.
        dtype: of the stored numbers.
        device: where to keep them.

    Raises:
        ShapeError: if a size is negative or the window is empty.

    Source:
        Jiang et al. 2023, arXiv:2310.06825, section 2 ("rolling buffer cache").

    Example:
        >>> cache = RingCache(1, 1, 1, 100, 1, window=3)
        >>> for position in range(5):
        ...     new = torch.full((1, 1, 1, 1), float(position))
        ...     seen, _ = cache.update(0, new, new)
        ...     cache.advance(1)
        >>> seen.flatten().tolist(), cache.keys.flatten().tolist()
        ([2.0, 3.0, 4.0], [3.0, 4.0, 2.0])
    """

    def __init__(
        self,
        *sizes: int,
        window: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        if window < 1:
            raise ShapeError(f"the window is {window}, expected at least 1")
        n_layers, batch_size, n_kv_heads, max_seq_len, d_head = sizes
        super().__init__(n_layers, batch_size, n_kv_heads, min(window, max_seq_len), d_head, dtype, device)
        self.window, self.max_seq_len = window, max_seq_len

    def check_window(self, window: int) -> None:
        """Check that a layer wants to see no more than the cache keeps.

        Args:
            window: how many keys up to itself a query of the layer sees; 0 does not limit them.

        Raises:
            ShapeError: if some of them may be gone.
        """
        if not 1 <= window <= self.window:
            wanted = f"{window} positions" if window else "all positions"
            raise ShapeError(f"the cache keeps the last {self.window} positions, a layer wants to see {wanted}")

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of one layer over those that no later query sees.

        The first of several new queries still sees old ones that the last of the new ones will overwrite, so these are
        read before anything is written.

        Args:
            layer: index of the layer.
            key: (B, G, T, D).
            value: (B, G, T, D).

        Returns:
            Copies (B, G, S, D) of the last keys and values in the order of their positions: of those before the new
            ones the last `window` - 1, or all if there are fewer, then all T new ones.

        Raises:
            ShapeError: as `KVCache.update`; nothing has been written then.
        """
        # TASK 11.5 (3 points)
        # Positions before the new ones: from `length` - window + 1 (or 0) to `length` - 1, each modulo the number of
        # slots. Positions to be kept: the last ones of all, as many as there are slots, of those that are new. Read
        # before you write, and check before both (`check_new`).
        raise NotImplementedError("task 11.5")


def cache_bytes(config: GPTConfig, batch_size: int, seq_len: int = 0, bytes_per_number: int = 2) -> int:
    """What the keys and values take that decoding keeps: two numbers per layer, key/value head, channel and position.

    Args:
        config: the shape; with a window no more positions are kept than it holds.
        batch_size: texts at a time B.
        seq_len: tokens of each text so far S; 0 means max_seq_len.
        bytes_per_number: 2 for bf16, 4 for fp32.

    Returns:
        Bytes; the same as the `n_bytes` of the model's cache for such texts.

    Source:
        Shazeer 2019, arXiv:1911.02150 (one head of keys and values for all query heads).

    Example:
        >>> llama = model_config("llama", "tiny", 32000, 4096, n_layers=32, n_heads=32, d_model=4096)
        >>> cache_bytes(llama, batch_size=1, seq_len=1), cache_bytes(llama, batch_size=8) // 2**30
        (524288, 16)
    """
    # TASK 11.6 (1 point)
    # Keys and values, for each layer, each of the G heads of width D, and each position that is kept: with a
    # window no more than it holds.
    raise NotImplementedError("task 11.6")
