"""What one layer keeps for its backward pass: bytes by formula, and the layer that the formulas speak of.

Dimensions: B batch, T positions, C width, H heads, D head width, F = 4 C feed-forward width, P tensor-parallel ranks.
Numbers have 2 bytes, dropout masks 1. In the paper's letters b, s, h, a, t for B, T, C, H, P.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.nn.attention import merge_heads, split_heads
from minillm.nn.linear import Linear
from minillm.nn.norm import LayerNorm
from minillm.parallel.comm import Comm
from minillm.parallel.layout import Split
from minillm.parallel.sequence import enter_sequence_products
from minillm.parallel.tensor import ColumnParallelLinear, RowParallelLinear
from minillm.train.recompute import kept_bytes, recompute

RECOMPUTE = ("none", "selective", "full")


def activation_terms(
    batch_size: int,
    n_positions: int,
    d_model: int,
    n_heads: int,
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    recompute: str = "none",
) -> dict[str, int]:
    """Everything that one rank keeps of one layer, in bytes, in the order in which it is made.

    Tensor parallelism divides what lies between two cut products; sequence parallelism also what lies outside, where
    each rank has its share of the positions; selective recomputation drops all that grows with the square of T; full
    recomputation keeps the layer's input only.

    Args:
        batch_size: rows B.
        n_positions: length T.
        d_model: width C.
        n_heads: number of heads H.
        tensor_parallel: number of ranks P.
        sequence_parallel: see above.
        recompute: "none", "selective" or "full".

    Raises:
        ConfigError: if P does not divide heads, width or (for sequence parallelism) positions, or the word is unknown.

    Source:
        Korthikanti et al. 2022, arXiv:2205.05198, section 4 and table 2.

    Example:
        >>> terms = activation_terms(1, 2, 4, n_heads=2)
        >>> terms["queries, keys and values"], terms["attention weights"], sum(terms.values())
        (48, 16, 312)
    """
    if recompute not in RECOMPUTE:
        raise ConfigError(f"recompute is {recompute!r}, expected one of {RECOMPUTE}")
    p = tensor_parallel
    if p < 1 or n_heads % p or d_model % n_heads or (sequence_parallel and n_positions % p):
        raise ConfigError(
            f"{n_heads} heads of together {d_model} numbers and {n_positions} positions cannot be cut over {p} ranks"
        )
    outside = p if sequence_parallel else 1                        # what norms, dropout and residuals see
    vectors, scores = batch_size * n_positions * d_model, batch_size * n_heads * n_positions**2
    if recompute == "full":
        return {"input": 2 * vectors // outside}
    terms = {
        "input of the first norm": 2 * vectors // outside,
        "input of attention": 2 * vectors // outside,
        "queries, keys and values": 6 * vectors // p,
        "attention weights": 2 * scores // p,
        "their dropout mask": scores // p,
        "attention weights after dropout": 2 * scores // p,
        "mixed values": 2 * vectors // p,
        "first dropout mask": vectors // outside,
        "input of the second norm": 2 * vectors // outside,
        "input of feed-forward": 2 * vectors // outside,
        "before the curve": 8 * vectors // p,
        "after the curve": 8 * vectors // p,
        "second dropout mask": vectors // outside,
    }
    if recompute == "selective":
        for name in ("attention weights", "their dropout mask", "attention weights after dropout"):
            del terms[name]
    return terms


def activation_bytes(
    batch_size: int,
    n_positions: int,
    d_model: int,
    n_heads: int,
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    recompute: str = "none",
) -> int:
    """The sum of `activation_terms`: s b h (34 + 5 a s / h) without any of it, in the paper's letters.

    | | bytes |
    | --- | --- |
    | nothing | s b h (34 + 5 a s / h) |
    | tensor parallel | s b h (10 + 24 / t + 5 a s / (h t)) |
    | and sequence parallel | s b h / t (34 + 5 a s / h) |
    | and selective recomputation | 34 s b h / t |
    | full recomputation | 2 s b h |

    Example:
        >>> sum(activation_bytes(1, 2, 4, 2, tensor_parallel=2, sequence_parallel=True) for rank in range(2))
        312
    """
    settings = batch_size, n_positions, d_model, n_heads, tensor_parallel, sequence_parallel, recompute
    return sum(activation_terms(*settings).values())


def norm_statistics_bytes(batch_size: int, n_positions: int, shares: int = 1, n_bytes: int = 2) -> int:
    """What the formulas leave out: mean and inverse deviation of each position in both norms.

    Args:
        batch_size: rows B.
        n_positions: length T.
        shares: among how many ranks the positions are divided where the norms are.
        n_bytes: of a statistic; 2 on a processor for 16-bit numbers, 4 on a GPU.

    Example:
        >>> norm_statistics_bytes(2, 64)
        1024
    """
    return 2 * 2 * batch_size * n_positions // shares * n_bytes


class ReferenceLayer(nn.Module):
    """The layer of the formulas, GPT-2's with biases and dropout in three places, whole or as one rank's part.

    Dropout draws from torch's own generator: tensor-parallel ranks must draw the same outside of the cut products.

    Args:
        d_model: width C.
        n_heads: number of heads H.
        dropout: chance.
        generator: where the initial weights come from.
        comm: the tensor-parallel ranks, with generators in the same state, or None.
        sequence_parallel: whether each rank has its share of the positions outside of the products.
        recompute: "none", "selective" (softmax, dropout and mixing of attention are done again) or "full".
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        generator: torch.Generator | None = None,
        comm: Comm | None = None,
        sequence_parallel: bool = False,
        recompute: str = "none",
    ):
        super().__init__()
        self.n_heads, self.dropout, self.recompute = n_heads, dropout, recompute
        self.comm, self.sequence_parallel = comm, sequence_parallel
        self.attention_norm, self.feed_forward_norm = LayerNorm(d_model, bias=True), LayerNorm(d_model, bias=True)
        self.qkv = Linear(d_model, 3 * d_model, True, generator=generator)
        self.output = Linear(d_model, d_model, True, generator=generator)
        self.up = Linear(d_model, 4 * d_model, True, generator=generator)
        self.down = Linear(4 * d_model, d_model, True, generator=generator)
        if comm is not None:
            settings = {"enter": not sequence_parallel, "sequence_parallel": sequence_parallel}
            self.n_heads = n_heads // comm.size
            self.qkv = ColumnParallelLinear(self.qkv, comm, Split(0, 3 * (d_model,)), **settings)
            self.up = ColumnParallelLinear(self.up, comm, **settings)
            self.output = RowParallelLinear(self.output, comm, sequence_parallel=sequence_parallel)
            self.down = RowParallelLinear(self.down, comm, sequence_parallel=sequence_parallel)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C), or this rank's (B, T / P, C), to the same."""
        return recompute(self.layer, x, list(self.parameters())) if self.recompute == "full" else self.layer(x)

    def layer(self, x: Tensor) -> Tensor:
        """The layer itself."""
        x = x + self.drop(self.attend(self.enter(self.attention_norm(x))))
        hidden = F.gelu(self.up(self.enter(self.feed_forward_norm(x))), approximate="tanh")
        return x + self.drop(self.down(hidden))

    def enter(self, x: Tensor) -> Tensor:
        """What the products read: with sequence parallelism the positions of all ranks."""
        return enter_sequence_products(x, self.comm) if self.sequence_parallel else x

    def attend(self, x: Tensor) -> Tensor:
        """Causal attention with dropout of its weights."""
        qkv = self.qkv(x)
        mixed = recompute(self.mix, qkv) if self.recompute == "selective" else self.mix(qkv)
        return self.output(mixed)

    def mix(self, qkv: Tensor) -> Tensor:
        """The part without weights: (B, T, 3 C) to (B, T, C), or of this rank's heads."""
        query, key, value = (split_heads(x, self.n_heads) for x in qkv.chunk(3, dim=-1))
        scores = query / math.sqrt(query.shape[-1]) @ key.mT
        future = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
        weights = self.drop((scores + future).softmax(dim=-1))     # a sum keeps nothing, a mask would
        return merge_heads(weights @ value)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout whose mask has one byte per number; that of `F.dropout` has two here, the numbers' own."""
        return torch.native_dropout(x, self.dropout, True)[0] if self.dropout else x


def saved_activation_bytes(layer: nn.Module, x: Tensor) -> int:
    """What `layer(x)` really keeps for its backward pass: each memory once, parameters left out.

    Args:
        layer: any module of one tensor.
        x: its input, which counts if it is kept.

    Example:
        >>> saved_activation_bytes(nn.Linear(4, 3), torch.ones(5, 4))  # a product keeps its input: 20 numbers
        80
    """
    return kept_bytes(lambda: layer(x), layer.parameters())
