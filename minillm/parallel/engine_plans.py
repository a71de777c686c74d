"""What PyTorch's engines are told about a decoder: which modules are cut, along which dimension, in what order.

Dimensions: B batch, T positions, C width, V vocabulary, P ranks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minillm.models.gpt import GPT, GPTConfig
from minillm.nn.attention import SelfAttention
from minillm.nn.embedding import Embedding
from minillm.nn.functional import cap_logits
from minillm.nn.linear import Linear
from minillm.parallel.layout import qkv_sections
from minillm.parallel.mesh import Mesh
from minillm.parallel.stages import PipelineStage


def to_fsdp2(model: GPT, mesh: Mesh, device_type: str = "cpu") -> GPT:
    """Let fully_shard cut every block, and what is left, over the data-parallel ranks; in place.

    Args:
        model: the same whole model on all ranks.
        mesh: its dp axis is used.
        device_type: "cpu" or "cuda".
    """
    from torch.distributed.fsdp import fully_shard

    devices = mesh.to_device_mesh(device_type)["dp"]
    for block in model.blocks:
        fully_shard(block, mesh=devices)
    return fully_shard(model, mesh=devices)


class HeadedGPT(GPT):
    """The decoder with its head called as a module, also where its weights are the embedding's: torch can hook it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, (B, T, C) -> (B, T, V)."""
        return cap_logits(self.head(hidden), self.config.logit_cap)


def to_tensor_parallel(model: GPT, mesh: Mesh, device_type: str = "cpu") -> GPT:
    """Let parallelize_module cut every layer over the tensor-parallel ranks; in place.

    torch cuts rows in order. So those of the fused queries, keys and values are put first into the order in which
    contiguous shares hold whole heads of each (`qkv_order`). With dp above 1, fully_shard cuts the slices once more.

    Args:
        model: the same whole model on all ranks.
        mesh: its axes tp and dp are used.
        device_type: "cpu" or "cuda".
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    is_tied, tp = model.head is None, mesh.tp.size
    order = qkv_order(model.config, tp)
    for attention in (block.attention for block in model.blocks):
        for parameter in attention.qkv.parameters():
            parameter.data = parameter.data[order.to(parameter.device)]
        localise_heads(attention, mesh)
    with_torch_layers(model)
    devices = mesh.to_device_mesh(device_type)
    column, row = ColwiseParallel(), RowwiseParallel()
    plan = {
        "token_embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
        "blocks.*.attention.qkv": column,
        "blocks.*.attention.output": row,
        "blocks.*.feed_forward.up": column,
        "blocks.*.feed_forward.gate": column,
        "blocks.*.feed_forward.down": row,
    }
    names = {name for name, _ in model.named_modules()}
    if "blocks.0.feed_forward.gate" not in names:
        del plan["blocks.*.feed_forward.gate"]
    parallelize_module(model, devices["tp"], plan)
    if is_tied:
        model.head.weight = model.token_embedding.weight
    if mesh.dp.size > 1:
        for block in model.blocks:
            fully_shard(block, mesh=devices["dp"])
        fully_shard(model, mesh=devices["dp"])
    return model


def with_torch_layers(model: GPT) -> None:
    """Put torch's Linear and Embedding, which its plans are for, in the place of ours, with the same parameters."""
    if model.head is None:
        model.head = Linear(1, 1)
        model.head.weight = model.token_embedding.weight
    model.__class__ = HeadedGPT
    for name, module in list(model.named_modules()):
        if not isinstance(module, Linear | Embedding):
            continue
        shape = module.weight.shape
        if isinstance(module, Linear):
            twin: nn.Module = nn.Linear(shape[1], shape[0], bias=module.bias is not None, device="meta")
            twin.bias = module.bias
        else:
            if name == "position_embedding":
                continue                                           # its weight is read by slices, not called
            twin = nn.Embedding(*shape, device="meta")
        twin.weight = module.weight
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, twin)


def localise_heads(attention: SelfAttention, mesh: Mesh) -> None:
    """Tell an attention layer that it will get this rank's heads only (their norm has no weights that all share)."""
    size, rank = mesh.tp.size, mesh.tp.rank
    attention.n_heads //= size
    attention.n_kv_heads //= size
    attention.sections = tuple(rows // size for rows in attention.sections)
    if attention.slopes is not None:
        attention.slopes = attention.slopes.chunk(size)[rank]


def qkv_order(config: GPTConfig, size: int) -> Tensor:
    """Which row of the fused matrix comes where, so that P contiguous shares hold equal parts of each section.

    Args:
        config: of the model.
        size: number of ranks P.

    Returns:
        (rows,) indices; `qkv[order]` is the matrix to be cut, `argsort` of it the way back.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=1, n_heads=2, d_model=4)
        >>> qkv_order(config, 2).tolist()  # head 0 of queries, keys, values, then head 1
        [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    """
    sections = torch.arange(sum(qkv_sections(config))).split(qkv_sections(config))
    return torch.cat([section.chunk(size)[rank] for rank in range(size) for section in sections])


def torch_schedule(stage: PipelineStage, mesh: Mesh, n_microbatches: int, loss: Callable) -> Any:
    """torch's 1F1B over the stages of this pipeline; GPipe where there are fewer micro-batches than stages."""
    from torch.distributed.pipelining import PipelineStage as TorchStage
    from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

    pp, device = mesh.pp, next(stage.parameters()).device
    torch_stage = TorchStage(stage, pp.rank, pp.size, device, group=pp.group)
    kind = Schedule1F1B if n_microbatches >= pp.size else ScheduleGPipe
    return kind(torch_stage, n_microbatches, loss_fn=loss, scale_grads=False)
