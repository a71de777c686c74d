"""The two ends of a decoder in few bits: the table of token vectors, and the head that makes scores.

In a small model they are most of it: with V = 50,000 and C = 64 the table is 3.2 million numbers, and a block 50,000. A
head that shares the table keeps sharing it: its scores are products with the rows as they are stored.

Dimensions: V vocabulary, C width.
"""

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress.grid import Grid, QuantSpec
from minillm.compress.packed_linear import PackedLinear
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError
from minillm.models.gpt import GPT
from minillm.nn.embedding import Embedding, check_ids
from minillm.nn.functional import cap_logits


class QuantEmbedding(Embedding):
    """A table of vectors stored as codes on grids; a row is made when its id comes.

    Args:
        embedding: the table, which is not changed.
        grid: as in `QuantLinear`; groups lie within a row.

    Attributes:
        table: the rows (V, C), as a layer from C to V numbers.

    Raises:
        ConfigError: if the table is packed already.

    Example:
        >>> packed = QuantEmbedding(nn.Embedding(10, 8), QuantSpec(bits=8))
        >>> packed(torch.tensor([[1, 9]])).shape, torch.equal(packed(torch.tensor(3)), packed.weight[3])
        (torch.Size([1, 2, 8]), True)
    """

    def __init__(self, embedding: nn.Module, grid: QuantSpec | Grid):
        nn.Module.__init__(self)
        if isinstance(embedding, QuantEmbedding):
            raise ConfigError("the embedding is packed already; quantizing twice only adds errors")
        with torch.device("meta"):
            rows = nn.Linear(1, 1, bias=False)
        rows.weight = embedding.weight
        self.table = QuantLinear(rows, grid)

    @property
    def weight(self) -> Tensor:
        """The table (V, C), made anew at every access."""
        return self.table.weight

    def settings(self) -> dict[str, object]:
        """As of packed layers."""
        return self.table.settings()

    @classmethod
    def empty(cls, embedding: nn.Module, **settings: object) -> "QuantEmbedding":
        """As of packed layers."""
        return cls(embedding, QuantSpec(**settings))

    def forward(self, token_ids: Tensor) -> Tensor:
        """(...) ids to (..., C) vectors."""
        check_ids(token_ids, self.table.d_out)
        rows = self.table.matrix(token_ids.reshape(-1))            # (N, C)
        return rows.to(self.table.like.dtype).view(*token_ids.shape, -1)

    def extra_repr(self) -> str:
        return f"n_rows={self.table.d_out}, d_model={self.table.d_in}"


class PackedScores:
    """How a decoder makes scores when its head, or the table in its place, is a packed layer; laid over it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        head = packed_head(self)
        return super().logits(hidden) if head is None else cap_logits(head(hidden), self.config.logit_cap)


def pack_embedding(model: GPT, grid: QuantSpec) -> surgery.Operation:
    """Store a decoder's table of token vectors in few bits, and with it the head if that is the same.

    Args:
        model: is changed.
        grid: how to round; vectors are sensitive, and take 8 bits or small groups.

    Returns:
        the operation. Its `restore` gives the table back.

    Raises:
        ConfigError: if the model is no decoder of this library, or its table is packed already.

    Example:
        >>> from minillm.models.registry import model_config
        >>> model = GPT(model_config("gpt2", "nano", vocab_size=5, max_seq_len=8), torch.Generator().manual_seed(0))
        >>> _ = pack_embedding(model, QuantSpec(bits=8))
        >>> model(torch.tensor([[1, 2]])).shape
        torch.Size([1, 2, 5])
    """
    if not isinstance(model, GPT):
        raise ConfigError(f"{type(model).__name__} is no decoder of this library; only those have their table packed")
    operation = surgery.wrap(model, ["token_embedding"], lambda _, table: QuantEmbedding(table, grid))
    score_by_packed(model)
    return operation


def score_by_packed(model: nn.Module) -> None:
    """Let a decoder whose head or table is packed make its scores by it, without making the whole matrix first."""
    if isinstance(model, GPT) and not isinstance(model, PackedScores) and packed_head(model) is not None:
        surgery.overlay(model, PackedScores)


def packed_head(model: GPT) -> PackedLinear | None:
    """The packed layer that makes a decoder's scores, if it is one."""
    head = getattr(model.token_embedding, "table", None) if model.head is None else model.head
    return head if isinstance(head, PackedLinear) else None
