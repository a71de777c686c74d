"""Layers of which every rank has a part: linear maps cut by columns or rows of the product, an embedding by its ids.

A column-parallel map gives each rank some of the outputs; a row-parallel map takes some of the inputs on each rank and
adds the results up. One behind the other they need no exchange in between.

Dimensions: B batch, T positions, C width, V vocabulary, P ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.nn.embedding import Embedding, check_ids
from minillm.nn.linear import Linear
from minillm.parallel.comm import Comm
from minillm.parallel.layout import COLUMNS, ROWS, Split, slice_of
from minillm.parallel.regions import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    scatter_to_tensor_model_parallel_region,
)
from minillm.parallel.sequence import enter_sequence_products, sequence_product


def enter_products(x: Tensor, comm: Comm, sequence_parallel: bool) -> Tensor:
    """What column-parallel products read: f, or with sequence parallelism all positions from the ranks' shares."""
    return enter_sequence_products(x, comm) if sequence_parallel else copy_to_tensor_model_parallel_region(x, comm)


def leave_products(x: Tensor, comm: Comm, sequence_parallel: bool) -> Tensor:
    """What becomes of row-parallel products: g, or with sequence parallelism this rank's positions of the sum."""
    if sequence_parallel:
        return reduce_scatter_to_sequence_parallel_region(x, comm)
    return reduce_from_tensor_model_parallel_region(x, comm)


def own_part(parameter: nn.Parameter | None, split: Split | None, comm: Comm) -> nn.Parameter | None:
    """A new parameter with this rank's part of a whole one."""
    if parameter is None:
        return None
    part = slice_of(parameter.detach(), split, comm.rank, comm.size).clone()
    return nn.Parameter(part, parameter.requires_grad)


class ColumnParallelLinear(Linear):
    """A linear map whose outputs are shared out: each rank has some rows of the weight W, some columns of x W^T.

    Made from a whole layer, so that it starts with exactly its numbers; every rank must have the same whole layer.

    Args:
        whole: the layer.
        comm: the tensor-parallel ranks.
        split: of weight and bias, with sections if the layer makes several things at once.
        enter: whether its input enters the parallel region here; otherwise it has entered before, once for several
            layers that read the same.
        gather_output: whether all ranks get all outputs.
        sequence_parallel: whether what enters is this rank's positions.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> whole = Linear(2, 4)
        >>> whole.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
        >>> def columns(comm):
        ...     return ColumnParallelLinear(whole, comm)(torch.tensor([3.0, 5.0])).tolist()
        >>> launch_threads(columns, 2)
        [[3.0, 5.0], [8.0, 6.0]]
    """

    def __init__(
        self,
        whole: Linear,
        comm: Comm,
        split: Split = ROWS,
        enter: bool = True,
        gather_output: bool = False,
        sequence_parallel: bool = False,
    ):
        nn.Module.__init__(self)
        self.weight, self.bias = own_part(whole.weight, split, comm), own_part(whole.bias, split, comm)
        self.comm, self.sequence_parallel = comm, sequence_parallel
        self.enter, self.gather_output = enter, gather_output
        self.product = whole.product

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in), or with sequence parallelism (B, T / P, d_in), to (..., d_out / P) or (..., d_out)."""
        if self.enter:
            x = enter_products(x, self.comm, self.sequence_parallel)
        product = sequence_product if self.sequence_parallel else self.product
        y = product(x, self.weight, self.bias)
        return gather_from_tensor_model_parallel_region(y, self.comm) if self.gather_output else y


class RowParallelLinear(Linear):
    """A linear map whose inputs are shared out: each rank has some columns of the weight, and the results are added.

    The bias is added once, after the sum.

    Args:
        whole: the layer; every rank must have the same.
        comm: the tensor-parallel ranks.
        input_is_parallel: whether each rank comes with its part of the inputs; otherwise all come with the whole.
        sequence_parallel: whether each rank is to leave with its positions only.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> whole = Linear(4, 1)
        >>> whole.weight.data = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
        >>> def rows(comm):
        ...     layer = RowParallelLinear(whole, comm, input_is_parallel=False)
        ...     return layer(torch.tensor([1.0, 2.0, 3.0, 4.0])).item()
        >>> launch_threads(rows, 2)
        [4321.0, 4321.0]
    """

    def __init__(self, whole: Linear, comm: Comm, input_is_parallel: bool = True, sequence_parallel: bool = False):
        nn.Module.__init__(self)
        self.weight, self.bias = own_part(whole.weight, COLUMNS, comm), own_part(whole.bias, None, comm)
        self.comm, self.input_is_parallel, self.sequence_parallel = comm, input_is_parallel, sequence_parallel
        self.product = whole.product

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in / P) or (..., d_in) to (..., d_out), or with sequence parallelism to (B, T / P, d_out)."""
        if not self.input_is_parallel:
            x = scatter_to_tensor_model_parallel_region(x, self.comm)
        y = leave_products(self.product(x, self.weight), self.comm, self.sequence_parallel)
        return y if self.bias is None else y + self.bias


def own_ids(ids: Tensor, n_own: int, comm: Comm) -> tuple[Tensor, Tensor]:
    """Which ids are this rank's, and their rows in its part of a table or of the scores.

    Args:
        ids: (...) integers from 0 to V - 1.
        n_own: V / P; rank r has the ids from r * V / P.
        comm: the tensor-parallel ranks.

    Returns:
        (...) rows from 0 to V / P - 1, 0 for the ids of others; (...) bool, True for this rank's ids.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> rows, mine = launch_threads(lambda comm: own_ids(torch.tensor([3, 0, 2]), 2, comm), 2)[1]
        >>> rows.tolist(), mine.tolist()
        ([1, 0, 0], [True, False, True])
    """
    rows = ids - n_own * comm.rank
    mine = (rows >= 0) & (rows < n_own)
    return torch.where(mine, rows, 0), mine


class VocabParallelEmbedding(Embedding):
    """A table of vectors of which each rank has the rows of some ids; for the others it answers zero, and all add up.

    Args:
        whole: the table; every rank must have the same. P divides its number of rows V.
        comm: the tensor-parallel ranks.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053, section 3.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> whole = Embedding(4, 1)
        >>> whole.weight.data = torch.tensor([[10.0], [11.0], [12.0], [13.0]])
        >>> def vectors(comm):
        ...     return VocabParallelEmbedding(whole, comm)(torch.tensor([3, 0, 2])).flatten().tolist()
        >>> launch_threads(vectors, 2)
        [[13.0, 10.0, 12.0], [13.0, 10.0, 12.0]]
    """

    def __init__(self, whole: Embedding, comm: Comm):
        nn.Module.__init__(self)
        self.weight, self.comm = own_part(whole.weight, ROWS, comm), comm

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map (...) ids from 0 to V - 1 to (..., C) vectors.

        Raises:
            DataError: if an id is outside the whole vocabulary (not on a GPU).
        """
        n_rows = self.weight.shape[0]
        if not token_ids.is_cuda:
            check_ids(token_ids, n_rows * self.comm.size)
        rows, mine = own_ids(token_ids, n_rows, self.comm)
        vectors = F.embedding(rows, self.weight).masked_fill(~mine.unsqueeze(-1), 0.0)
        return reduce_from_tensor_model_parallel_region(vectors, self.comm)


class VocabParallelHead:
    """The scores by a head of which each rank has the rows of some ids; takes the place of a decoder's `logits`.

    Args:
        logits: the decoder's own method, which multiplies with the rows that are here.
        comm: the tensor-parallel ranks.
        gather_logits: whether all ranks get the scores of the whole vocabulary; may be changed at any time.
        sequence_parallel: whether what comes in is this rank's positions.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        comm: Comm,
        gather_logits: bool = False,
        sequence_parallel: bool = False,
    ):
        self.logits, self.comm = logits, comm
        self.gather_logits, self.sequence_parallel = gather_logits, sequence_parallel

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map (B, T, C), or this rank's (B, T / P, C), to logits (B, T, V / P) or (B, T, V)."""
        logits = self.logits(enter_products(hidden, self.comm, self.sequence_parallel))
        return gather_from_tensor_model_parallel_region(logits, self.comm) if self.gather_logits else logits
