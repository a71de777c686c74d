"""Which positions of a long sequence are whose, so that causal attention gives all ranks the same to do.

In equal shares one after another, the first rank sees only itself and the last one everything. Cut into 2 P pieces, and
with one piece from the front and one from the back each, every rank has the same number of scores in every round.

Dimensions: B batch, T positions of all ranks, W = T / P those of one, P ranks.
"""

import torch
from torch import Tensor

from minillm.errors import ShapeError


def pieces_of(rank: int, size: int, zigzag: bool = True) -> list[int]:
    """Which pieces of the sequence a rank has, of P or, zigzag, of 2 P equal ones.

    Args:
        rank: which one.
        size: number of ranks P.
        zigzag: whether it has the piece number `rank` from the front and that from the back.

    Source:
        Llama Team 2024, arXiv:2407.21783, section 3.3.2 (two pieces per rank, the i-th and the (2 P - 1 - i)-th).

    Example:
        >>> [pieces_of(rank, 3) for rank in range(3)]
        [[0, 5], [1, 4], [2, 3]]
        >>> [pieces_of(rank, 3, zigzag=False) for rank in range(3)]
        [[0], [1], [2]]
    """
    return [rank, 2 * size - 1 - rank] if zigzag else [rank]


def positions_of(rank: int, size: int, n_positions: int, zigzag: bool = True) -> Tensor:
    """Where in the sequence the positions of a rank's share are.

    Args:
        rank: which one.
        size: number of ranks P.
        n_positions: length T of the sequence.
        zigzag: see `pieces_of`.

    Returns:
        (W,) integers, increasing.

    Raises:
        ShapeError: if the sequence cannot be cut into equal pieces.

    Example:
        >>> positions_of(1, 2, 8).tolist(), positions_of(1, 2, 8, zigzag=False).tolist()
        ([2, 3, 4, 5], [4, 5, 6, 7])
    """
    n_pieces = 2 * size if zigzag else size
    if n_positions < n_pieces or n_positions % n_pieces:
        raise ShapeError(
            f"{n_positions} positions cannot be cut into {n_pieces} equal pieces for {size} ranks; take a multiple of "
            f"{n_pieces} positions"
        )
    every = torch.arange(n_positions).view(n_pieces, -1)
    return every[pieces_of(rank, size, zigzag)].flatten()


def cut_sequence(x: Tensor, rank: int, size: int, zigzag: bool = True, dim: int = 1) -> Tensor:
    """A rank's share of tokens, targets or vectors.

    Args:
        x: (B, T, ...), or T in dimension `dim`.
        rank: which one.
        size: number of ranks P.
        zigzag: see `pieces_of`.
        dim: which dimension is cut.

    Returns:
        (B, W, ...), a copy.
    """
    return x.index_select(dim, positions_of(rank, size, x.shape[dim], zigzag).to(x.device))


def join_sequence(shares: list[Tensor], zigzag: bool = True, dim: int = 1) -> Tensor:
    """The whole sequence from the shares of all ranks, in rank order: undoes `cut_sequence`.

    Example:
        >>> join_sequence([torch.tensor([0, 3]), torch.tensor([1, 2])], dim=0).tolist()
        [0, 1, 2, 3]
    """
    size, whole = len(shares), torch.cat(shares, dim)
    n_positions = whole.shape[dim]
    order = torch.cat([positions_of(rank, size, n_positions, zigzag) for rank in range(size)])
    return whole.index_select(dim, order.argsort().to(whole.device))


def visible_pairs(queries: list[int], keys: list[int], causal: bool = True) -> list[tuple[int, int, bool]]:
    """Which pieces of queries must look at which visiting pieces of keys.

    Args:
        queries: the pieces of the rank that asks, as numbers from the front of the sequence.
        keys: those of the visitor.
        causal: whether later keys are hidden.

    Returns:
        (place among `queries`, place among `keys`, whether it is the same piece, of which only the past is seen).

    Example:
        >>> visible_pairs([1, 2], [0, 3])
        [(0, 0, False), (1, 0, False)]
        >>> visible_pairs([1, 2], [1, 2])
        [(0, 0, True), (1, 0, False), (1, 1, True)]
    """
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, causal and queries[i] == keys[j]) for i, j in pairs if not causal or keys[j] <= queries[i]]


def scores_per_round(size: int, n_positions: int, causal: bool = True, zigzag: bool = True) -> list[list[int]]:
    """How many scores (products of a query and a key that it sees) each rank has to compute in each round.

    Args:
        size: number of ranks P.
        n_positions: length T.
        causal: whether later keys are hidden.
        zigzag: see `pieces_of`.

    Returns:
        [[round 0, round 1, ...] of rank 0, ...], for one head.

    Example:
        >>> scores_per_round(2, 8, zigzag=False), scores_per_round(2, 8)
        ([[10, 0], [10, 16]], [[10, 8], [10, 8]])
    """
    n = len(positions_of(0, size, n_positions, zigzag)) // len(pieces_of(0, size, zigzag))

    def scores(rank: int, source: int) -> int:
        pairs = visible_pairs(pieces_of(rank, size, zigzag), pieces_of(source, size, zigzag), causal)
        return sum(n * (n + 1) // 2 if own else n * n for _, _, own in pairs)

    return [[scores(rank, (rank - step) % size) for step in range(size)] for rank in range(size)]
