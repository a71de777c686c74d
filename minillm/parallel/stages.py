"""Cutting a decoder across its depth: which blocks go to which rank of a pipeline, and the part that a rank holds.

A part keeps the whole model's parameter names, so checkpoints, optimizers and layouts need not know that it is one.

Dimensions: B batch, T positions, C width, V vocabulary, P ranks, v chunks on each rank.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError
from minillm.models.gpt import GPT, GPTConfig, what_each_may_see
from minillm.nn.feedforward import GATED

TIED = "token_embedding.weight"


def partition_layers(n_layers: int, n_stages: int, first_cost: float = 0.0, last_cost: float = 0.0) -> list[range]:
    """Cut the blocks into runs of consecutive ones, so that the stage with most work has as little as possible.

    The slowest stage sets the pace of a pipeline. Every stage gets one block; each block that is left goes to the stage
    that has least work so far, the first of those that are equal.

    Args:
        n_layers: number of blocks L.
        n_stages: number of stages, 1 to L.
        first_cost: work of the first stage beside its blocks (the embedding), in blocks.
        last_cost: that of the last stage (the head).

    Returns:
        the block numbers of each stage, in order, all of L together.

    Raises:
        ConfigError: if there are fewer blocks than stages.

    Example:
        >>> partition_layers(6, 4)
        [range(0, 2), range(2, 4), range(4, 5), range(5, 6)]
        >>> [len(stage) for stage in partition_layers(8, 2, last_cost=2.0)]  # 5 blocks; 3 and a head worth 2
        [5, 3]
    """
    if not 1 <= n_stages <= n_layers:
        raise ConfigError(
            f"{n_layers} layers cannot be cut into {n_stages} stages: each stage needs a layer; choose pp (times "
            "chunks) from 1 to the number of layers"
        )
    n_blocks = [1] * n_stages
    work = [1.0] * n_stages
    work[0] += first_cost
    work[-1] += last_cost
    for _ in range(n_layers - n_stages):
        least = work.index(min(work))
        n_blocks[least] += 1
        work[least] += 1.0
    ends = [sum(n_blocks[: stage + 1]) for stage in range(n_stages)]
    return [range(end - count, end) for count, end in zip(n_blocks, ends, strict=True)]


def end_costs(config: GPTConfig) -> tuple[float, float]:
    """Work of embedding and head in multiplications per token, as multiples of one block's.

    Args:
        config: the decoder's settings; a lookup multiplies nothing, the head is a product of V times C.

    Returns:
        (0.0, V C / multiplications of the matrices of a block).

    Example:
        >>> end_costs(GPTConfig(vocab_size=96, max_seq_len=8, n_layers=2, n_heads=2, d_model=8, d_ff=32))
        (0.0, 1.0)
    """
    attention = 2 * config.d_model * (config.n_heads + config.n_kv_heads) * config.d_head
    feed_forward = (3 if config.feed_forward in GATED else 2) * config.d_model * config.d_ff
    return 0.0, config.vocab_size * config.d_model / (attention + feed_forward)


@dataclass(frozen=True)
class Chunk:
    """One stage of the model as its rank holds it: consecutive blocks, with the embedding or the head at the ends.

    Args:
        layers: global numbers of the blocks.
        is_first: token ids come in.
        is_last: logits go out.
    """

    layers: range
    is_first: bool
    is_last: bool


def chunks_of_rank(config: GPTConfig, rank: int, n_ranks: int, n_chunks: int = 1) -> list[Chunk]:
    """What rank `rank` of a pipeline holds: the stages rank, P + rank, 2 P + rank, ...

    Args:
        config: the decoder's settings.
        rank: 0 to P - 1.
        n_ranks: P.
        n_chunks: v.

    Returns:
        v chunks in the order of the model.

    Raises:
        ConfigError: if there are too few layers, or the model cannot be cut.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=4, n_heads=2, d_model=8)
        >>> chunks_of_rank(config, rank=0, n_ranks=2, n_chunks=2)  # doctest: +NORMALIZE_WHITESPACE
        [Chunk(layers=range(0, 1), is_first=True, is_last=False),
         Chunk(layers=range(2, 3), is_first=False, is_last=False)]
    """
    check_pipeline(config, n_ranks, n_chunks)
    n_stages = n_ranks * n_chunks
    stages = partition_layers(config.n_layers, n_stages, *end_costs(config))
    numbers = range(rank, n_stages, n_ranks)
    return [Chunk(stages[number], number == 0, number == n_stages - 1) for number in numbers]


def check_pipeline(config: GPTConfig, n_ranks: int, n_chunks: int = 1) -> None:
    """Refuse a pipeline that this decoder cannot be cut into.

    Raises:
        ConfigError: naming what does not fit, and why it must.
    """
    if n_chunks > 1 and n_ranks == 1:
        raise ConfigError(f"{n_chunks} chunks on one rank hand everything to themselves; take 1 chunk, or pp=2")
    if n_ranks * n_chunks > config.n_layers:
        raise ConfigError(
            f"pp={n_ranks} with {n_chunks} chunk(s) per rank needs {n_ranks * n_chunks} layers or more, the model has "
            f"n_layers {config.n_layers}: each stage needs a layer"
        )
    if config.n_experts and n_ranks > 1:
        raise ConfigError(
            f"a mixture of {config.n_experts} experts cannot be cut into stages here: its balancing loss reads the "
            "routers of all layers at once; use data parallelism (dp=N)"
        )


class PipelineStage(GPT):
    """A rank's part of a decoder: its chunks' blocks, and at the ends of the model embedding or final norm and head.

    Every method of GPT that looks only at what is here works unchanged. With tied embeddings the last rank has a copy
    of the table (`holds_tied_copy`), which is to be kept equal to the first rank's: see `sync_tied_gradients`.

    Args:
        model: the whole decoder, or what is left of it after it was cut over tensor-parallel ranks; the part takes its
            modules over, the rest can be thrown away.
        rank: place in the pipeline, 0 to P - 1.
        n_ranks: P.
        n_chunks: stages v on each rank.

    Attributes:
        chunks: what is here, in the order of the model.
        n_shares: among how many ranks the positions between the products are shared out; more than 1 only under
            sequence parallelism, where a stage gets and gives (B, T / n_shares, C).

    Raises:
        ConfigError: as `chunks_of_rank`.

    Example:
        >>> config = GPTConfig(vocab_size=9, max_seq_len=8, n_layers=2, n_heads=2, d_model=4, position="rotary")
        >>> whole = GPT(config, torch.Generator().manual_seed(0))
        >>> first, last = (PipelineStage(whole, rank, 2) for rank in range(2))
        >>> [name for name, _ in last.named_parameters()][:3]
        ['token_embedding.weight', 'blocks.1.attention_norm.weight', 'blocks.1.attention.qkv.weight']
        >>> token_ids = torch.tensor([[1, 2, 3]])
        >>> torch.equal(last(first(token_ids)), whole(token_ids))
        True
    """

    def __init__(self, model: GPT, rank: int, n_ranks: int, n_chunks: int = 1):
        chunks = chunks_of_rank(model.config, rank, n_ranks, n_chunks)
        nn.Module.__init__(self)
        self.config, self.chunks, self.product = model.config, chunks, model.product
        self.rank, self.n_ranks, self.n_shares = rank, n_ranks, 1
        has_first, has_last = chunks[0].is_first, chunks[-1].is_last
        self.holds_tied_copy = has_last and not has_first and model.head is None
        table = copy.deepcopy(model.token_embedding) if self.holds_tied_copy else model.token_embedding
        self.token_embedding = table if has_first or self.holds_tied_copy else None
        self.position_embedding = model.position_embedding if has_first else None
        self.share_of_previous = model.share_of_previous if has_first else None
        self.embedding_norm = model.embedding_norm if has_first else None
        layers = [layer for chunk in chunks for layer in chunk.layers]
        self.blocks = nn.ModuleDict({str(layer): model.blocks[layer] for layer in layers})
        self.final_norm = model.final_norm if has_last else None
        self.head = model.head if has_last else None
        for name, table in model.named_buffers(recurse=False):
            self.register_buffer(name, table.clone(), persistent=False)
        self.train(model.training)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of what goes from stage to stage."""
        return next(self.parameters()).dtype

    def boundary_shape(self, n_rows: int, n_positions: int) -> tuple[int, ...]:
        """Shape (B, T, C), or with shared positions (B, T / n_shares, C), of what goes on to the next stage."""
        return n_rows, n_positions // self.n_shares, self.config.d_model

    def forward(self, x: Tensor, chunk: int = 0) -> Tensor:
        """Take a micro-batch through one of the chunks.

        Args:
            x: (B, T) token ids for the first stage of the model, else the vectors (B, T, C) that the one before gave.
            chunk: which of this rank's chunks.

        Returns:
            (B, T, V) logits from the last stage of the model, else (B, T, C).

        Raises:
            ShapeError, DataError: as `GPT.forward`.
        """
        part = self.chunks[chunk]
        n_positions = x.shape[1] if part.is_first else x.shape[1] * self.n_shares
        if part.is_first:
            self.check_input(x, 0, None, None)
            x, rotation = self.embed(x, 0, None)
        else:
            rotation = self.rotation(slice(0, n_positions))
        mask, causal = what_each_may_see(n_positions, n_positions, None, x.device)
        for layer in part.layers:
            x = self.blocks[str(layer)](x, mask, causal, rotation)
        return self.logits(self.final_norm(x)) if part.is_last else x


def stage_of_parameter(name: str, stages: Sequence[range], is_tied: bool) -> list[int]:
    """Numbers of the stages that hold a parameter of the whole model.

    Args:
        name: for example "blocks.3.attention.qkv.weight".
        stages: block numbers of each stage, see `partition_layers`.
        is_tied: whether the head uses the token embedding's weights.

    Returns:
        one number; two for the table of tied embeddings of a pipeline, the one that counts first.

    Example:
        >>> stages = partition_layers(4, 2)
        >>> [stage_of_parameter(name, stages, True) for name in ("blocks.3.x", "final_norm.weight", TIED)]
        [[1], [1], [0, 1]]
    """
    last = len(stages) - 1
    if name.startswith("blocks."):
        layer = int(name.split(".")[1])
        return [stage for stage, layers in enumerate(stages) if layer in layers]
    if name == TIED and is_tied and last:
        return [0, last]
    return [last] if name.startswith(("final_norm.", "head.")) else [0]
