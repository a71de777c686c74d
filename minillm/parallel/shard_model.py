"""A decoder becomes one rank's part of it: in place, by a table, from outside; the model's code stays what it is.

Dimensions: B batch, T positions, C width, V vocabulary, P ranks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError
from minillm.models.gpt import GPT
from minillm.nn.attention import SelfAttention
from minillm.nn.cache import KVCache
from minillm.nn.embedding import Embedding
from minillm.nn.linear import Linear
from minillm.parallel.comm import Comm
from minillm.parallel.layout import (
    COLUMNS,
    Plan,
    Split,
    check_tensor_parallel,
    planned,
    slice_of,
    tensor_layout,
)
from minillm.parallel.mesh import Mesh
from minillm.parallel.regions import scatter_to_sequence_parallel_region
from minillm.parallel.sequence import sequence_product
from minillm.parallel.tensor import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
    enter_products,
)

ENTRANCES = r"blocks\.\d+\.(attention|feed_forward)"  # modules whose products all read one input: it enters once


@dataclass(frozen=True)
class TensorSharding:
    """What `shard_model` did to a model.

    Attributes:
        comm: the tensor-parallel ranks.
        layout: how each parameter was cut, by name; None: whole on all ranks.
        partial: names of those whole on all ranks whose gradients come in parts, see `finish_tensor_gradients`.
        sequence_parallel: whether ranks keep only their share of the positions between the products.
        head: makes the logits; its `gather_logits` may be changed at any time. None in a part without a head.
    """

    comm: Comm
    layout: dict[str, Split | None]
    partial: frozenset[str]
    sequence_parallel: bool
    head: VocabParallelHead | None = field(default=None, repr=False)

    def is_counted(self, name: str) -> bool:
        """Whether this rank counts the parameter in a sum over all: its own parts, and on rank 0 what all have."""
        return self.layout[name] is not None or self.comm.rank == 0


def shard_model(
    model: GPT,
    plan: Plan,
    comm: Comm | Mesh,
    sequence_parallel: bool = False,
    gather_logits: bool = False,
) -> TensorSharding:
    """Turn a decoder, the same whole one on all ranks, into this rank's part of it, in place.

    Its `forward` is called as before and returns this rank's part of the logits, (B, T, V / P), for
    `vocab_parallel_cross_entropy`, or all of them. Names of parameters stay; the parameters are new ones, slices of the
    old, so an optimizer is made afterwards. After the backward passes of a step comes `finish_tensor_gradients`.

    With dropout, let all ranks draw the same random numbers. With all logits on all ranks it generates text as before;
    `make_cache` makes room for this rank's heads.

    Args:
        model: a GPT or a part of one with the same names.
        plan: which parameter is cut how, `GPT_PLAN`.
        comm: the tensor-parallel ranks, or a mesh with them as "tp".
        sequence_parallel: between the products keep only this rank's share of the positions, whose number P must
            divide; `model.hidden` returns this share.
        gather_logits: whether all ranks get all logits.

    Returns:
        what was done.

    Raises:
        ConfigError: if P does not divide heads, key/value heads, hidden numbers and vocabulary, if the plan does not
            know a parameter, or if the model has been cut before.
    """
    comm = comm.tp if isinstance(comm, Mesh) else comm
    check_tensor_parallel(model.config, comm.size)
    if any(isinstance(module, ColumnParallelLinear) for module in model.modules()):
        raise ConfigError("the model has been cut before: a second cut would cut parts; build it anew")
    layout = tensor_layout(model, plan)
    for name, module in list(model.named_modules()):
        replace_layers(model, name, module, plan, comm, sequence_parallel)
        if isinstance(module, SelfAttention):
            cut_heads(module, comm)
        if re.fullmatch(ENTRANCES, name):
            module.register_forward_pre_hook(Entrance(comm, sequence_parallel))
        if sequence_parallel and name == "blocks.0":
            module.register_forward_pre_hook(scatter_positions(comm))
    model.make_cache = partial(make_cache_of_part, model, comm.size)
    head = None
    if getattr(model, "final_norm", None) is not None:
        head = model.logits = VocabParallelHead(model.logits, comm, gather_logits, sequence_parallel)
        model.product = sequence_product if sequence_parallel else model.product
    in_parts = frozenset(name for name in layout if is_partial(name, layout[name], sequence_parallel))
    return TensorSharding(comm, layout, in_parts, sequence_parallel, head)


def is_partial(name: str, split: Split | None, sequence_parallel: bool) -> bool:
    """Whether all ranks hold a parameter whole while each sees only a part of what it does: gradients to be added.

    The ranks see different things in two places: behind the entrances, each its own heads and hidden numbers; and with
    sequence parallelism each its own positions, from the entrance of the first block to the final norm.

    Args:
        name: of the parameter in the decoder, as in `layout.GPT_PLAN`.
        split: how it is cut; what is cut has its own gradient on each rank.
        sequence_parallel: whether ranks keep only their share of the positions between the products.

    Returns:
        True for a norm of queries and keys, which every rank uses for its heads; with sequence parallelism also for
        what comes after the sum of a block's products (their biases) and for the norms of blocks and of the end. False
        for what acts on all positions before the first block.

    Example:
        >>> is_partial("final_norm.weight", None, sequence_parallel=False)
        False
        >>> is_partial("final_norm.weight", None, sequence_parallel=True)
        True
    """
    if split is not None:
        return False
    if ".qk_norm." in name:
        return True
    return sequence_parallel and name.startswith(("blocks.", "final_norm."))


def replace_layers(
    model: nn.Module, name: str, module: nn.Module, plan: Plan, comm: Comm, sequence_parallel: bool
) -> None:
    """Put the parallel layer in the place of a whole one, as the plan cuts its weight."""
    if not isinstance(module, Linear | Embedding):
        return
    split = planned(f"{name}.weight", model.config, plan)
    if split is None:
        return
    if isinstance(module, Embedding):
        layer: nn.Module = VocabParallelEmbedding(module, comm)
    elif split == COLUMNS:
        layer = RowParallelLinear(module, comm, sequence_parallel=sequence_parallel)
    else:
        layer = ColumnParallelLinear(module, comm, split, enter=False, sequence_parallel=sequence_parallel)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def cut_heads(attention: SelfAttention, comm: Comm) -> None:
    """Tell an attention layer that it has this rank's heads only."""
    attention.n_heads //= comm.size
    attention.n_kv_heads //= comm.size
    attention.sections = tuple(section // comm.size for section in attention.sections)
    if attention.slopes is not None:
        attention.slopes = slice_of(attention.slopes, Split(0), comm.rank, comm.size).clone()


def make_cache_of_part(model: GPT, size: int, batch_size: int, max_seq_len: int = 0) -> KVCache:
    """`GPT.make_cache` for one of `size` ranks' heads."""
    config = model.config
    widths = {name: getattr(config, name) // size for name in ("d_model", "n_heads", "n_kv_heads")}
    part = SimpleNamespace(config=replace(config, **widths), token_embedding=model.token_embedding)
    return GPT.make_cache(part, batch_size, max_seq_len)


class Entrance:
    """Before a module whose products are cut: f, or with sequence parallelism all positions from the ranks' shares."""

    def __init__(self, comm: Comm, sequence_parallel: bool):
        self.comm, self.sequence_parallel = comm, sequence_parallel

    def __call__(self, module: nn.Module, inputs: tuple) -> tuple:
        return enter_products(inputs[0], self.comm, self.sequence_parallel), *inputs[1:]


def scatter_positions(comm: Comm):
    """Before the first block: this rank goes on with its share of the positions."""
    return lambda module, inputs: (scatter_to_sequence_parallel_region(inputs[0], comm), *inputs[1:])


def finish_tensor_gradients(model: nn.Module, sharding: TensorSharding) -> None:
    """Add up over the ranks the gradients that came in parts; called by all ranks after the backward pass.

    A parameter that all ranks hold whole has the same gradient on all of them as long as all see the same numbers. A
    norm of which each rank sees its own positions has not, nor has a bias added to them: forgetting the sum leaves
    losses that look right and copies that drift apart. All of them travel in one tensor.

    Args:
        model: after `shard_model` and all backward passes of a step: a second sum of the same gradients is wrong.
        sharding: what `shard_model` returned.

    Source:
        Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2.
    """
    if not sharding.partial or sharding.comm.size == 1:
        return
    in_parts = [p for name, p in model.named_parameters() if name in sharding.partial and p.requires_grad]
    for gradients in by_dtype(in_parts):
        flat = flattened(gradients)
        sharding.comm.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def by_dtype(parameters: list[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Their gradients, those of one dtype together; zeros where there was none, so that all ranks send as many."""
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = parameter.new_zeros(parameter.shape)
        groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    yield from groups.values()


def flattened(tensors: list[Tensor]) -> Tensor:
    """All numbers one after another, a copy."""
    return torch.cat([tensor.flatten() for tensor in tensors])
