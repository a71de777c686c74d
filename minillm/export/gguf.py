"""Models of the kinds GPT-2 and LLaMA as a GGUF file, which llama.cpp and its many relatives run.

Only here are llama.cpp's names of settings and tensors. Weights are encoded first, row by row, and rows are sorted
after: what llama.cpp wants in another order are whole rows, so that a matrix that is stored in blocks keeps its bytes.

Dimensions: O rows, b bytes of a row, H heads, D width of a head.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from minillm.compress import ggml
from minillm.compress.ggml_linear import GGMLLinear
from minillm.errors import CheckpointError, ConfigError, TokenizerError
from minillm.export import gpt2, llama
from minillm.export.gguf_file import StoredTensor, Value, write_gguf
from minillm.models.gpt import GPT, GPTConfig
from minillm.nn.position import ntk_base
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.byte_strings import printable
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

SPLITS = {"gpt2": "gpt-2", "gpt4": "dbrx"}  # their names of the split patterns
NORMAL, CONTROL, UNUSED = 1, 3, 5  # their types of tokens
QUANTIZATION_VERSION = 2  # of ggml's block formats
MODULES = {  # of a block, ours -> theirs; queries, keys and values of a LLaMA are three there
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
OUTSIDE = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
}


@dataclass(frozen=True)
class Written:
    """What a file holds.

    Attributes:
        path: the file.
        types: tensor -> its block type.
        instead: tensor -> the block type that was wanted, where its rows are no whole number of such blocks.
        n_bytes: of the tensors; `bits_per_weight` counts them all.
        n_weights: numbers in the tensors.
    """

    path: Path
    types: dict[str, str]
    instead: dict[str, str]
    n_bytes: int
    n_weights: int

    @property
    def bits_per_weight(self) -> float:
        """Of the whole file's tensors, norms and embeddings included."""
        return 8 * self.n_bytes / self.n_weights

    def summary(self) -> str:
        """How many tensors of each type there are, and what fell back to which."""
        counts = ", ".join(f"{n} {kind}" for kind, n in Counter(self.types.values()).items())
        pairs = Counter((wanted, self.types[name]) for name, wanted in self.instead.items())
        fallen = "".join(f"; {n} wanted {wanted} and took {took}" for (wanted, took), n in pairs.items())
        return f"{counts}{fallen}; {self.bits_per_weight:.2f} bits a weight"


def architecture_of(config: GPTConfig) -> str:
    """Which of llama.cpp's graphs computes the same as a model of ours: "gpt2" or "llama".

    Raises:
        CheckpointError: if neither does, with what stands against the nearer one.
    """
    reasons = {"gpt2": gpt2.FAMILY.reasons_against(config), "llama": llama.FAMILY.reasons_against(config)}
    if config.bias:
        reasons["llama"].append("bias is True (needs False)")
    if config.rotary_scaling == "llama3":
        reasons["llama"].append("rotary_scaling is 'llama3' (needs 'none', 'linear' or 'ntk')")
    nearest = min(reasons, key=lambda name: len(reasons[name]))
    if reasons[nearest]:
        raise CheckpointError(
            f"a GGUF file of this library is a gpt2 or a llama; the nearest is {nearest}, but "
            f"{', '.join(reasons[nearest])}. Train the family gpt2 or llama to export it"
        )
    return nearest


def save_gguf(
    model: GPT, path: str | Path, tokenizer: Tokenizer | None = None, block_type: str = "q8_0", outside: str = "q8_0"
) -> Written:
    """Write a model, and its tokenizer, as one GGUF file.

    Args:
        model: a GPT-2 or a LLaMA; its layers may be packed. One that is stored in the same block type already keeps
            its bytes.
        path: the file, not there yet.
        tokenizer: BPE or bytes; None writes none, and llama.cpp then opens the file for its vectors only.
        block_type: of the linear maps of the blocks.
        outside: of token embedding and head, which lose more by rounding than anything else; `block_type` if that
            has more bits. Norms, biases and position vectors stay in fp32.

    Returns:
        what was written, fallbacks included.

    Raises:
        CheckpointError: if llama.cpp has no such model, or the file cannot be written.
        ConfigError: if there is no such block type.
        TokenizerError: if the tokenizer is of another kind.
        DataError: if a weight is not finite or too large for the type.
    """
    config, architecture = model.config, architecture_of(model.config)
    if ggml.block_type(block_type).bits_per_weight > ggml.block_type(outside).bits_per_weight:
        outside = block_type
    metadata = settings_of(config, architecture, block_type) | tokenizer_settings(tokenizer, config.vocab_size)
    tensors, instead = {}, {}
    for ours, theirs in names_of(config):
        tensor, wanted = stored(model, ours, outside if ours.startswith(("token_embedding", "head")) else block_type)
        parts = llama_parts(theirs, tensor, config) if architecture == "llama" else {theirs: tensor}
        tensors |= parts
        instead |= {name: wanted for name in parts if wanted != tensor.block_type}
    n_weights = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    n_bytes = sum(tensor.data.nbytes for tensor in tensors.values())
    types = {name: tensor.block_type for name, tensor in tensors.items()}
    return Written(write_gguf(path, metadata, tensors), types, instead, n_bytes, n_weights)


def names_of(config: GPTConfig) -> Iterator[tuple[str, str]]:
    """Every tensor of ours with llama.cpp's name: ("blocks.0.attention.output.weight", "blk.0.attn_output.weight").

    A head that shares the embedding's weights is not written twice: both graphs fall back to the embedding.
    """
    gated = config.feed_forward == "swiglu"
    for ours, theirs in OUTSIDE.items():
        if ours == "position_embedding" and config.position != "learned" or ours == "head" and config.tie_embeddings:
            continue
        yield from ((f"{ours}.{kind}", f"{theirs}.{kind}") for kind in kinds_of(ours, config))
    for layer in range(config.n_layers):
        for ours, theirs in MODULES.items():
            if ours != "feed_forward.gate" or gated:
                names = f"blocks.{layer}.{ours}", f"blk.{layer}.{theirs}"
                yield from ((f"{names[0]}.{kind}", f"{names[1]}.{kind}") for kind in kinds_of(ours, config))


def kinds_of(module: str, config: GPTConfig) -> tuple[str, ...]:
    """Weight, and with `bias` a bias of every norm and every linear map in the blocks."""
    return ("weight",) if not config.bias or module in ("token_embedding", "position_embedding", "head") else (
        "weight",
        "bias",
    )


def stored(model: nn.Module, name: str, block_type: str) -> tuple[StoredTensor, str]:
    """A tensor of ours in a block type, in fp32 if it is a norm, a bias or a position vector; and the type wanted."""
    module_name, _, kind = name.rpartition(".")
    module = model.get_submodule(module_name)
    if isinstance(module, GGMLLinear) and kind == "weight" and module.wanted == block_type:
        data = module.blocks.cpu().numpy()                         # (O, b)
        return StoredTensor((module.d_out, module.d_in), module.block_type, data), block_type
    tensor: Tensor = getattr(module, kind).detach().float().cpu()
    if tensor.ndim == 1 or "norm" in name or name.startswith("position"):
        block_type = "f32"
    taken = ggml.fitting_type(block_type, tensor.shape[-1])
    rows = tensor.numpy().reshape(-1, tensor.shape[-1])
    return StoredTensor(tuple(tensor.shape), taken, ggml.encode(rows, taken)), block_type


def llama_parts(name: str, tensor: StoredTensor, config: GPTConfig) -> dict[str, StoredTensor]:
    """The one map to queries, keys and values as llama.cpp's three, with their rows in its order; others unchanged."""
    if not name.endswith("attn_qkv.weight"):
        return {name: tensor}
    n_rows = [config.d_model, config.n_kv_heads * config.d_head]
    query, key, value = np.split(tensor.data, np.cumsum([n_rows[0], n_rows[1]]))
    if config.rotary_layout == "halves":
        query, key = pairs_together(query, config.n_heads), pairs_together(key, config.n_kv_heads)
    return {
        name.replace("qkv", part): StoredTensor((len(rows), tensor.shape[1]), tensor.block_type, rows)
        for part, rows in {"q": query, "k": key, "v": value}.items()
    }


def pairs_together(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Sort the rows of each head so that numbers that turn together are neighbours.

    Our rotary angles, as those of `transformers`, turn number i of a head with number i + D/2; llama.cpp's graph of a
    LLaMA turns 2i with 2i + 1. Row r of D/2 + r goes to 2r, 2r + 1; scores between queries and keys do not change.

    Args:
        rows: (H D, b).
        n_heads: H.

    Returns:
        (H D, b).

    Source:
        llama.cpp, convert_hf_to_gguf.py, `permute` (read); run by llama.cpp and by transformers' reader in the tests.

    Example:
        >>> pairs_together(np.arange(8)[:, None], 2)[:, 0].tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    halves = rows.reshape(n_heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def settings_of(config: GPTConfig, architecture: str, block_type: str) -> dict[str, Value]:
    """What llama.cpp must know to build the graph."""
    settings: dict[str, Any] = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_heads,
    }
    if architecture == "gpt2":
        settings["attention.layer_norm_epsilon"] = config.norm_epsilon
    else:
        is_ntk, is_linear = config.rotary_scaling == "ntk", config.rotary_scaling == "linear"
        base = ntk_base(config.rotary_base, config.rotary_factor, config.d_head) if is_ntk else config.rotary_base
        settings |= {
            "attention.head_count_kv": config.n_kv_heads,
            "attention.layer_norm_rms_epsilon": config.norm_epsilon,
            "rope.dimension_count": config.d_head,
            "rope.freq_base": float(base),
            "vocab_size": config.vocab_size,
        }
        if is_linear:
            settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rotary_factor)}
    general = {"general.architecture": architecture, "general.name": f"minillm {architecture} {block_type}"}
    general["general.quantization_version"] = QUANTIZATION_VERSION
    return general | {f"{architecture}.{key}": value for key, value in settings.items()}


def tokenizer_settings(tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Value]:
    """A byte-level BPE tokenizer as llama.cpp's kind "gpt2"; bytes alone are BPE without merges.

    Ids of the model that the tokenizer does not have are filled with tokens that are never used. A text begins with the
    end-of-text token, as in `minillm generate`.

    Raises:
        TokenizerError: for another kind of tokenizer, a split pattern that llama.cpp has no name for, or more ids than
            the model has.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    if isinstance(tokenizer, ByteTokenizer):
        tokenizer = BPETokenizer(tokenizer.vocab, [], tokenizer.special_tokens)
    if not isinstance(tokenizer, BPETokenizer) or tokenizer.pattern not in SPLITS:
        kind = f"pattern {tokenizer.pattern!r}" if isinstance(tokenizer, BPETokenizer) else type(tokenizer).__name__
        raise TokenizerError(f"{kind}: llama.cpp reads byte-level BPE with the patterns {', '.join(SPLITS)}")
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}: not the same run's")
    names = {number: printable(token) for number, token in tokenizer.ordinary_vocab().items()}
    special = {number: text for text, number in tokenizer.special_tokens.items()}
    ids = range(vocab_size)
    settings: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": SPLITS[tokenizer.pattern],
        "tokenizer.ggml.tokens": [special.get(i, names.get(i, f"[UNUSED{i}]")) for i in ids],
        "tokenizer.ggml.token_type": [CONTROL if i in special else NORMAL if i in names else UNUSED for i in ids],
        "tokenizer.ggml.merges": [f"{printable(left)} {printable(right)}" for left, right in tokenizer.merges],
    }
    if (end := tokenizer.special_tokens.get(END_OF_TEXT)) is not None:
        ends = {f"tokenizer.ggml.{name}_token_id": end for name in ("bos", "eos", "unknown", "padding")}
        settings |= ends | {"tokenizer.ggml.add_bos_token": True}
    return settings
