"""Byte-pair encoding, fast: the merges and ids of `bpe_naive`, without looking at anything twice.

Both keep a chain of tokens in lists: `symbols[i]` is the id of the token that begins at place i, `before[i]` is where
the token to its left begins. Joining two neighbours then costs the same wherever they stand.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise, repeat

import numpy as np

from minillm.tokenizers.bpe_naive import Pair, PairIds, encode_by_rank

# An id no token has: the place between two pieces, and a place whose token was joined to the one on its left.
NOTHING = -1
# Pieces of up to this many bytes are encoded by looking for the smallest rank again and again: quadratic, but in C.
SHORT_PIECE_BYTES = 128


class PairIndex:
    """Where in a corpus each pair of tokens stands, and how often it occurs; kept up to date through merges.

    Attributes:
        counts: pair of ids -> occurrences in the corpus, each place weighted by how often its piece occurs.
        places: pair -> the places where its left token begins, ascending; may hold places where it stands no more.
    """

    def __init__(self, piece_counts: Mapping[bytes, int]) -> None:
        """Lay all pieces out in one chain, one place per byte, with an empty place after each piece."""
        widths = np.array([len(piece) + 1 for piece in piece_counts], dtype=np.int64)
        symbols = np.frombuffer(b"".join(piece + b"\0" for piece in piece_counts), dtype=np.uint8).astype(np.int64)
        symbols[np.cumsum(widths) - 1] = NOTHING
        self.symbols: list[int] = symbols.tolist()
        self.weights: list[int] = np.repeat(np.array([*piece_counts.values()], dtype=np.int64), widths).tolist()
        self.widths = [1] * 256                            # id -> bytes, so a token's right neighbour needs no list
        self.before = list(range(-1, len(symbols) - 1))    # the place before 0 is the empty place at the end, -1
        self.places = places_of_pairs(symbols)
        self.counts = {pair: sum(map(self.weights.__getitem__, places)) for pair, places in self.places.items()}

    def merge(self, pair: PairIds, new_id: int) -> list[PairIds]:
        """Join every occurrence of `pair` into `new_id`, from left to right.

        Args:
            pair: a pair that occurs.
            new_id: the next unused id; the first call gets 256.

        Returns:
            The pairs that this created: all of them contain `new_id`. Counts of other pairs have only gone down.
        """
        left_id, right_id = pair
        symbols, before = self.symbols, self.before
        left_width, right_width = self.widths[left_id], self.widths[right_id]
        self.widths.append(left_width + right_width)
        to_left: dict[int, list[int]] = defaultdict(list)  # token left of the new one -> its places
        to_right: dict[int, list[int]] = defaultdict(list)  # token right of the new one -> places of the new one
        for left in self.places.pop(pair):
            right = left + left_width
            if symbols[left] != left_id or symbols[right] != right_id:
                continue                                   # joined into something else meanwhile
            previous, following = before[left], right + right_width
            symbols[left], symbols[right] = new_id, NOTHING
            before[following] = left
            to_left[symbols[previous]].append(previous)
            to_right[symbols[following]].append(left)
        created = [(new_id, neighbour) for neighbour in to_right if neighbour != NOTHING]
        for grown in created:
            self._replace((right_id, grown[1]), grown, to_right[grown[1]])
        for neighbour in to_left:
            if neighbour != NOTHING:
                created.append((neighbour, new_id))
                self._replace((neighbour, left_id), (neighbour, new_id), to_left[neighbour])
        del self.counts[pair]
        return created

    def _replace(self, lost: PairIds, grown: PairIds, places: list[int]) -> None:
        """At these places, all of those of `grown`, that pair stands now instead of `lost`."""
        count = sum(map(self.weights.__getitem__, places))
        self.counts[lost] -= count
        self.counts[grown] = count
        self.places[grown] = places


def places_of_pairs(symbols: np.ndarray) -> dict[PairIds, list[int]]:
    """Where each two bytes stand side by side.

    Args:
        symbols: (n,) bytes 0 .. 255, or `NOTHING` between two pieces.

    Returns:
        pair of bytes -> places of the left one, ascending.

    Example:
        >>> places_of_pairs(np.array([97, 98, NOTHING, 97, 98, 98, NOTHING]))
        {(97, 98): [0, 3], (98, 98): [4]}
    """
    left, right = symbols[:-1], symbols[1:]
    places = np.flatnonzero((left != NOTHING) & (right != NOTHING))
    codes = left[places] * 256 + right[places]
    places = places[np.argsort(codes, kind="stable")].tolist()
    codes, sizes = np.unique(codes, return_counts=True)
    ends = np.cumsum(sizes).tolist()
    pairs = map(divmod, codes.tolist(), repeat(256))
    return {pair: places[end - size : end] for pair, size, end in zip(pairs, sizes.tolist(), ends, strict=True)}


class PairsByCount:
    """Pairs in one list per count, the highest count first to hand."""

    def __init__(self) -> None:
        self._pairs: dict[int, list[PairIds]] = {}
        self._heap: list[int] = []                         # the counts, negative because heapq gives the smallest first

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, pair: PairIds, count: int) -> None:
        """Keep a pair; one that no longer occurs is dropped."""
        if count in self._pairs:
            self._pairs[count].append(pair)
        elif count > 0:
            self._pairs[count] = [pair]
            heappush(self._heap, -count)

    def take_highest(self) -> tuple[int, list[PairIds]]:
        """Remove and return the highest count and its pairs, in no particular order."""
        count = -heappop(self._heap)
        return count, self._pairs.pop(count)


def train_merges(piece_counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Learn merges as `bpe_naive.train_merges` does: same arguments, same result, ties included.

    Pairs wait in one list per count. A pair's count only falls after the merge that created it, so a list is
    complete once all lists of higher counts are empty; a pair that has fallen moves to its true list when it is met.

    Args:
        piece_counts: piece of text (UTF-8) -> how often it occurs.
        n_merges: how many merges to learn, at least 0.

    Returns:
        The pairs in the order in which they were joined; fewer than `n_merges` when no pair is left.

    Example:
        >>> train_merges({b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 3)
        [(b's', b't'), (b'e', b'st'), (b'o', b'w')]
    """
    tokens = [bytes([byte]) for byte in range(256)]
    index, waiting = PairIndex(piece_counts), PairsByCount()
    for pair, count in index.counts.items():
        waiting.add(pair, count)
    merges: list[Pair] = []
    while waiting and len(merges) < n_merges:
        highest, pairs = waiting.take_highest()
        tied = sorted((tokens[left], tokens[right], (left, right)) for left, right in pairs)
        while tied and len(merges) < n_merges:
            left, right, pair = tied.pop()
            if index.counts[pair] < highest:
                waiting.add(pair, index.counts[pair])
                continue
            merges.append((left, right))
            tokens.append(left + right)
            for grown in index.merge(pair, len(tokens) - 1):
                if index.counts[grown] == highest:
                    insort(tied, (tokens[grown[0]], tokens[grown[1]], grown))
                else:
                    waiting.add(grown, index.counts[grown])
    return merges


def merge_ids(ids: list[int], ranks: Mapping[PairIds, int], products: list[int]) -> list[int]:
    """Apply learned merges to the ids of single bytes, as `bpe_naive.encode_piece` does.

    Args:
        ids: the ids of the piece's bytes; is changed.
        ranks: pair of ids -> place in the order in which merges were learned.
        products: rank -> id of the joined token.

    Returns:
        The ids of the tokens.
    """
    return encode_by_rank(ids, ranks, products) if len(ids) <= SHORT_PIECE_BYTES else merge_long(ids, ranks, products)


def merge_long(ids: list[int], ranks: Mapping[PairIds, int], products: list[int]) -> list[int]:
    """`merge_ids` for many ids, in near-linear time: join all places of the smallest rank, then of the next.

    A pair with the new token has a higher rank than the merge that made it, so ranks are met in ascending order.
    """
    symbols = [*ids, NOTHING]                              # the empty place is the last and, as -1, before the first
    after = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    places: dict[int, list[int]] = defaultdict(list)       # rank -> places of the pair, ascending
    for place, pair in enumerate(pairwise(ids)):
        if (rank := ranks.get(pair)) is not None:
            places[rank].append(place)
    waiting = list(places)
    heapify(waiting)
    while waiting:
        rank = heappop(waiting)
        new_id = products[rank]
        for left in places.pop(rank):
            right = after[left]
            if ranks.get((symbols[left], symbols[right])) != rank:
                continue
            following, previous = after[right], before[left]
            symbols[left], symbols[right] = new_id, NOTHING
            after[left], before[following] = following, left
            for place, grown in ((previous, (symbols[previous], new_id)), (left, (new_id, symbols[following]))):
                if (grown_rank := ranks.get(grown)) is not None:
                    if grown_rank not in places:
                        heappush(waiting, grown_rank)
                    places[grown_rank].append(place)
    return [symbol for symbol in symbols if symbol != NOTHING]
