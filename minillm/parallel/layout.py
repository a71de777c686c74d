"""Who holds which part of each parameter when a decoder is cut over tensor-parallel ranks: a table, and two functions.

A parameter is cut along one dimension, or all ranks hold the whole of it. Attention is cut by heads, the feed-forward
layer by hidden numbers, embedding and head by the vocabulary: between the two matrices of each pair every rank works
alone on its own heads or hidden numbers.

Dimensions: P ranks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class Split:
    """How a parameter is cut over the ranks: along `dim`, each of its `sections` on its own.

    Args:
        dim: the dimension that is cut.
        sections: sizes along `dim` of parts that were put into one tensor, such as queries, keys and values: every rank
            gets its share of each of them. Empty: the whole is one section.
    """

    dim: int
    sections: tuple[int, ...] = ()


def slice_of(full: Tensor, split: Split | None, index: int, size: int) -> Tensor:
    """What rank `index` of `size` holds of a tensor.

    Args:
        full: the whole tensor.
        split: how it is cut; None: not at all.
        index: which part.
        size: number of parts P.

    Returns:
        The part, a tensor of its own; the whole itself if it is not cut.

    Raises:
        ShapeError: if the sections are not the tensor's, or P does not divide one of them.

    Example:
        >>> rows = torch.arange(8)  # four rows of queries, two of keys, two of values
        >>> slice_of(rows, Split(0, (4, 2, 2)), index=1, size=2).tolist()
        [2, 3, 5, 7]
    """
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    return torch.cat([part.chunk(size, split.dim)[index] for part in full.split(sections, split.dim)], split.dim)


def join_slices(parts: Sequence[Tensor], split: Split | None) -> Tensor:
    """The whole tensor from the parts of all ranks; `slice_of` backwards.

    Args:
        parts: of ranks 0 .. P - 1, in this order.
        split: how it was cut; None: all ranks have the whole, the first is taken.

    Returns:
        The whole.

    Raises:
        ShapeError: if the parts' sections do not make up the whole's.

    Example:
        >>> join_slices([torch.tensor([0, 1, 4, 6]), torch.tensor([2, 3, 5, 7])], Split(0, (4, 2, 2))).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if split is None:
        return parts[0]
    size = len(parts)
    sections = split.sections or (size * parts[0].shape[split.dim],)
    for part in parts:
        if size * part.shape[split.dim] != sum(sections) or any(section % size for section in sections):
            raise ShapeError(
                f"a part {tuple(part.shape)} is not one of {size} equal shares of sections {sections} along dimension "
                f"{split.dim}; give the parts of all ranks"
            )
    shares = [part.split([section // size for section in sections], split.dim) for part in parts]
    return torch.cat([share[i] for i in range(len(sections)) for share in shares], split.dim)


def check_sections(full: Tensor, split: Split, sections: Sequence[int], size: int) -> None:
    """Refuse a tensor that cannot be cut as asked.

    Raises:
        ShapeError: if the sections are not the tensor's, or P does not divide one of them.
    """
    if sum(sections) != full.shape[split.dim]:
        raise ShapeError(
            f"sections {tuple(sections)} make {sum(sections)}, dimension {split.dim} of {tuple(full.shape)} has "
            f"{full.shape[split.dim]}"
        )
    if any(section % size for section in sections):
        raise ShapeError(f"sections {tuple(sections)} of dimension {split.dim} cannot be cut into {size} equal parts")


ROWS, COLUMNS = Split(0), Split(1)
QKV = "queries, keys and values"  # rows, in three sections that depend on the config

Plan = tuple[tuple[str, Split | str | None], ...]  # pattern of a full name -> how it is cut; the first that fits counts

GPT_PLAN: Plan = (
    (r"token_embedding\.weight", ROWS),
    (r"head\.weight", ROWS),
    (r"blocks\.\d+\.attention\.qkv\.(weight|bias)", QKV),
    (r"blocks\.\d+\.attention\.slopes", ROWS),
    (r"blocks\.\d+\.attention\.output\.weight", COLUMNS),
    (r"blocks\.\d+\.attention\.output\.bias", None),
    (r"blocks\.\d+\.attention\.qk_norm\.weight", None),
    (r"blocks\.\d+\.feed_forward\.(gate|up)\.(weight|bias)", ROWS),
    (r"blocks\.\d+\.feed_forward\.down\.weight", COLUMNS),
    (r"blocks\.\d+\.feed_forward\.down\.bias", None),
    (r"(blocks\.\d+\.)?(attention|feed_forward|embedding|final)_norm\.(weight|bias)", None),
    (r"position_embedding\.weight", None),
    (r"share_of_previous", None),
)


def tensor_layout(model_or_config: nn.Module | GPTConfig, plan: Plan = GPT_PLAN) -> dict[str, Split | None]:
    """How each parameter of a decoder is cut over tensor-parallel ranks, read from a table.

    Args:
        model_or_config: a GPT or a part of one with the same parameter names and a `config` (whole or already cut: only
            names are read), or the config of a GPT.
        plan: the table.

    Returns:
        Split, or None for what all ranks hold whole, by parameter name in the model's order.

    Raises:
        ConfigError: if there is a parameter that the plan does not know, as in a mixture of experts.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=1, n_heads=2, d_model=4, n_kv_heads=1)
        >>> layout = tensor_layout(config)
        >>> layout["blocks.0.attention.qkv.weight"], layout["blocks.0.feed_forward.down.weight"]
        (Split(dim=0, sections=(4, 2, 2)), Split(dim=1, sections=()))
    """
    if isinstance(model_or_config, GPTConfig):
        with torch.device("meta"):                                 # shapes and names without memory or random numbers
            model_or_config = GPT(model_or_config)
    names = (name for name, _ in model_or_config.named_parameters())
    return plan_layout(names, model_or_config.config, plan)


def plan_layout(names: Iterable[str], config: GPTConfig, plan: Plan = GPT_PLAN) -> dict[str, Split | None]:
    """The plan's entry for each name; see `tensor_layout`."""
    if config.n_experts:
        raise ConfigError(
            f"a mixture of {config.n_experts} experts cannot be cut over tensor-parallel ranks here: its tokens go to "
            "experts, not to heads and hidden numbers; use data or pipeline parallelism (dp=N, pp=N)"
        )
    return {name: planned(name, config, plan) for name in names}


def planned(name: str, config: GPTConfig, plan: Plan = GPT_PLAN) -> Split | None:
    """The plan's entry for one name.

    Raises:
        ConfigError: if there is none.
    """
    for pattern, split in plan:
        if re.fullmatch(pattern, name):
            return Split(0, qkv_sections(config)) if split == QKV else split
    raise ConfigError(f"the tensor-parallel plan does not know the parameter {name!r}; it is made for GPT")


def qkv_sections(config: GPTConfig) -> tuple[int, int, int]:
    """Rows of queries, keys and values in the fused matrix."""
    return config.n_heads * config.d_head, config.n_kv_heads * config.d_head, config.n_kv_heads * config.d_head


def check_tensor_parallel(config: GPTConfig, size: int) -> None:
    """Refuse a number of tensor-parallel ranks that does not divide what is cut.

    Args:
        config: the decoder's settings.
        size: number of ranks P.

    Raises:
        ConfigError: naming what does not divide, and why it must.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=1, n_heads=4, d_model=8, n_kv_heads=2)
        >>> check_tensor_parallel(config, 2)
        >>> check_tensor_parallel(config, 4)
        Traceback (most recent call last):
        minillm.errors.ConfigError: tp=4 does not divide n_kv_heads 2: ...
    """
    reasons = {
        "n_heads": "each rank works on whole query heads",
        "n_kv_heads": "each rank works on whole key/value heads, those of its query heads",
        "d_ff": "each rank works on an equal share of the hidden numbers",
        "vocab_size": "each rank holds an equal share of the vocabulary; pad it",
    }
    for name, reason in reasons.items():
        if (count := getattr(config, name)) % size:
            raise ConfigError(f"tp={size} does not divide {name} {count}: {reason}, or choose another tp")
