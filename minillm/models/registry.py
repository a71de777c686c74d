"""Named model families and sizes, and what a model of a given shape costs before it is made."""

from dataclasses import dataclass

from minillm.errors import ConfigError
from minillm.models.gpt import GPTConfig
from minillm.nn.feedforward import GATED

LLAMA = {"norm": "rms", "position": "rotary", "feed_forward": "swiglu", "tie_embeddings": False}
FAMILIES = {
    "gpt2": {"bias": True},
    "bloom": {"bias": True, "position": "alibi", "embedding_norm": True},
    "llama": LLAMA,
    "mistral": LLAMA | {"n_kv_heads": 2, "window": 4096},
    "mixtral": LLAMA | {"n_experts": 8, "n_active_experts": 2},
    "falcon": {
        "norm_bias": True,
        "position": "rotary",
        "feed_forward": "gelu_exact",
        "n_kv_heads": 1,
        "parallel_block": True,
    },
    "modern": {
        "norm": "rms",
        "norm_weight": False,
        "position": "rotary",
        "feed_forward": "relu2",
        "qk_norm": True,
        "max_score": 12.0,
        "token_shift": True,
        "tie_embeddings": False,
        "logit_cap": 15.0,
        "embedding_std": 0.25,
        "zero_outputs": True,
    },
}
# Widths from `small` up are multiples of 256: block formats of quantized weights need it.
SIZES = {
    "nano": {"n_layers": 2, "n_heads": 2, "d_model": 64},
    "mini": {"n_layers": 3, "n_heads": 2, "d_model": 128},         # few wide heads: they learn to look things up sooner
    "tiny": {"n_layers": 4, "n_heads": 4, "d_model": 128},
    "small": {"n_layers": 4, "n_heads": 4, "d_model": 256},
    "medium": {"n_layers": 6, "n_heads": 8, "d_model": 512},
    "base": {"n_layers": 12, "n_heads": 12, "d_model": 768},       # the shape of GPT-2 small
    "large": {"n_layers": 24, "n_heads": 16, "d_model": 1024},     # the shape of GPT-2 medium
}


def families() -> tuple[str, ...]:
    """The names of the model families."""
    return tuple(FAMILIES)


def sizes() -> tuple[str, ...]:
    """The names of the model sizes, smallest first."""
    return tuple(SIZES)


def model_config(family: str, size: str, vocab_size: int, max_seq_len: int, **overrides) -> GPTConfig:
    """The config of a named model.

    Args:
        family: "gpt2" (learned positions, LayerNorm, GELU, biases, tied embedding), "bloom" (the same with ALiBi and a
            norm after the embedding), "llama" (rotary positions, RMSNorm, SwiGLU, no biases, untied head), "mistral"
            (llama with two key/value heads and a window of 4,096 tokens), "mixtral" (llama with 8 experts in each
            block, of which a token visits 2, each half as wide as llama's one layer), "falcon" (rotary positions, one
            LayerNorm for attention and feed-forward layer side by side, one key/value head, exact GELU, no biases but
            the norms', tied embedding) or "modern" (rotary positions, RMSNorm without weights, query/key norm with
            scores up to 12, token shift, ReLU^2, outputs zero at first, untied head, logits capped at 15, token vectors
            of size 0.25 at first).
        size: one of `sizes()`.
        vocab_size: number of token ids V.
        max_seq_len: context in tokens.
        overrides: any field of `GPTConfig` that should differ from the named model.

    Returns:
        The checked config.

    Raises:
        ConfigError: if a name is unknown, or a value out of range.

    Example:
        >>> config = model_config("modern", "tiny", vocab_size=65, max_seq_len=64, n_kv_heads=2)
        >>> config.n_layers, config.n_heads, config.n_kv_heads, config.d_model
        (4, 4, 2, 128)
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown model family {family!r}; known are {families()}")
    if size not in SIZES:
        raise ConfigError(f"unknown model size {size!r}; known are {sizes()}")
    known = set(GPTConfig.__dataclass_fields__)
    if unknown := sorted(set(overrides) - known):
        raise ConfigError(f"unknown model settings {unknown}; known are {sorted(known)}")
    settings = FAMILIES[family] | SIZES[size] | {"vocab_size": vocab_size, "max_seq_len": max_seq_len} | overrides
    return GPTConfig(**settings)


def parameters(config: GPTConfig) -> int:
    """How many learned numbers a model of this shape has, exactly.

    Args:
        config: the shape.

    Returns:
        The same as `GPT(config).n_parameters()`, without making the model.

    Example:
        >>> parameters(model_config("gpt2", "base", vocab_size=50257, max_seq_len=1024))
        124439808
    """
    return sum(parameters_by_part(config).values()) + mixture_parameters(config) + other_norms(config)


def other_norms(config: GPTConfig) -> int:
    """What `norm_bias` adds to the norms that `parameters_by_part` counts, and `parallel_block` takes away.

    Args:
        config: the shape.

    Returns:
        The difference, which may be negative; 0 where both settings are off.

    Example:
        >>> falcon = model_config("falcon", "nano", vocab_size=100, max_seq_len=32)
        >>> parameters_by_part(falcon)["norms"], other_norms(falcon)  # 5 norms of 64 scales; 3 with as many shifts
        (320, 64)
    """
    n_norms = (1 if config.parallel_block else 2) * config.n_layers + 1 + config.embedding_norm
    shifts = config.norm == "layer" and (config.bias or config.norm_bias)
    return n_norms * config.d_model * (config.norm_weight + shifts) - parameters_by_part(config)["norms"]


def mixture_parameters(config: GPTConfig) -> int:
    """What a mixture has beyond the one feed-forward layer per block that `parameters_by_part` counts.

    Args:
        config: the shape.

    Returns:
        E - 1 further layers and a router (C to E, no bias) in each block; 0 without experts.

    Example:
        >>> dense, sparse = (model_config(family, "nano", 100, 32, d_ff=64) for family in ("llama", "mixtral"))
        >>> parameters_by_part(dense)["feed-forward"], mixture_parameters(sparse)  # 7 times as many, and 2 (64 x 8)
        (24576, 173056)
    """
    if not config.n_experts:
        return 0
    others = (config.n_experts - 1) * parameters_by_part(config)["feed-forward"]
    return others + config.n_layers * config.d_model * config.n_experts


def active_parameters(config: GPTConfig) -> int:
    """How many learned numbers work on one token: all but the experts that it does not visit.

    Args:
        config: the shape.

    Example:
        >>> sparse = model_config("mixtral", "base", vocab_size=32000, max_seq_len=1024)
        >>> f"{parameters(sparse):,} {active_parameters(sparse):,}"
        '304,048,896 134,179,584'
    """
    n_idle = config.n_experts - config.n_active_experts
    return parameters(config) - n_idle * parameters_by_part(config)["feed-forward"]


def parameters_by_part(config: GPTConfig) -> dict[str, int]:
    """Where the learned numbers of a decoder are.

    A linear map from d_in to d_out has d_in * d_out weights, and d_out biases where `config.bias` asks for them.

    Args:
        config: the shape.

    Returns:
        The numbers of each part, all layers together, under seven names:
        "token embedding": one vector of width C per id.
        "position embedding": one vector per place up to max_seq_len if positions are learned, else 0.
        "token shift": one number per channel if `config.token_shift`, else 0.
        "attention": the map to queries (C numbers), keys and values (G heads of width D each), and the map that mixes
            the heads (C to C). Normalised queries and keys learn nothing.
        "feed-forward": up (C to F) and down (F to C); "swiglu" and "geglu" have a gate (C to F) besides.
        "norms": two per layer, one at the end, and one more if `config.embedding_norm`; each with C scales if
            `config.norm_weight`, and, if it is a "layer" norm and `config.bias`, with C shifts; an "rms" norm has none.
        "head": one vector per id, unless `config.tie_embeddings` uses those of the token embedding; no bias.

    Example:
        >>> parameters_by_part(model_config("gpt2", "nano", vocab_size=100, max_seq_len=32))["attention"]  # 2 layers
        33280
    """
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


def config_differences(first: GPTConfig, second: GPTConfig) -> dict[str, tuple[object, object]]:
    """What one model's settings changed of another's.

    Args:
        first: the earlier one.
        second: the later one.

    Returns:
        Setting -> its two values, for those that differ, in the order of `GPTConfig`; last "parameters", and "active
        parameters" where one has experts, if these differ.

    Example:
        >>> gpt2, bloom = (model_config(family, "base", 50257, 1024) for family in ("gpt2", "bloom"))
        >>> config_differences(gpt2, bloom)
        {'position': ('learned', 'alibi'), 'embedding_norm': (False, True), 'parameters': (124439808, 123654912)}
    """
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in GPTConfig.__dataclass_fields__}
    pairs["parameters"] = (parameters(first), parameters(second))
    if first.n_experts or second.n_experts:
        pairs["active parameters"] = (active_parameters(first), active_parameters(second))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def difference_table(
    first: GPTConfig, second: GPTConfig, first_name: str = "first", second_name: str = "second"
) -> str:
    """`config_differences` as lines of three columns, to be printed.

    Args:
        first: the earlier one.
        second: the later one.
        first_name: heads its column.
        second_name: heads the other.

    Returns:
        A line of names and one for each setting that differs; whole numbers with separators.

    Example:
        >>> gpt2, bloom = (model_config(family, "base", 50257, 1024) for family in ("gpt2", "bloom"))
        >>> print(difference_table(gpt2, bloom, "gpt2", "bloom"))
        setting         gpt2         bloom
        position        learned      alibi
        embedding_norm  no           yes
        parameters      124,439,808  123,654,912
    """
    rows = [("setting", first_name, second_name)]
    for name, pair in config_differences(first, second).items():
        rows.append((name, *map(written, pair)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:{widths[0]}}  {one:{widths[1]}}  {other}" for name, one, other in rows)


def written(value: object) -> str:
    """A setting for people: yes or no, whole numbers with separators, everything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value}"


def block_products(config: GPTConfig) -> list[tuple[int, int]]:
    """(d_in, d_out) of each linear map of one block that a token meets.

    They are qkv, output, up, down, and the gate if there is one; with experts these last three once for each that the
    token visits, and the router's map.
    """
    width, hidden = config.d_model, config.d_ff
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    gate = [(width, hidden)] if config.feed_forward in GATED else []
    router = [(width, config.n_experts)] if config.n_experts else []
    visited = max(1, config.n_active_experts) * [(width, hidden), (hidden, width), *gate]
    return [(width, d_qkv), (width, width), *visited, *router]


def product_weights(config: GPTConfig) -> int:
    """Number of weights in the matrix products of one block that a token meets."""
    return sum(d_in * d_out for d_in, d_out in block_products(config))


def flops_per_token(config: GPTConfig, seq_len: int = 0) -> int:
    """Floating-point operations to train on one token: 6 N + 12 L C T.

    N counts the weights of matrix products (blocks and head; looking up an embedding costs nothing, and of the experts
    only those count that a token visits). Each weight is multiplied and added once forward and twice backward: 2 + 4
    operations. Attention's two products, scores and mixing, have 2 C T multiplications and additions each per layer
    forward, and twice that backward: 12 C T. As is usual, the causal half that a kernel may skip is counted.

    Args:
        config: the shape.
        seq_len: tokens per training sequence T; 0 means max_seq_len.

    Returns:
        Operations per token, forward and backward.

    Source:
        Kaplan et al. 2020, arXiv:2001.08361, section 2.1; attention term as in Chowdhery et al. 2022, arXiv:2204.02311,
        appendix B.

    Example:
        >>> flops_per_token(model_config("gpt2", "tiny", vocab_size=65, max_seq_len=64))
        5161728
    """
    n_positions = seq_len or config.max_seq_len
    n_weights = config.n_layers * product_weights(config) + config.vocab_size * config.d_model
    return 6 * n_weights + 12 * config.n_layers * config.d_model * n_positions


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training needs, by purpose."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


def memory_bytes(config: GPTConfig, batch_size: int, seq_len: int = 0, bytes_per_activation: int = 4) -> MemoryEstimate:
    """An estimate of the memory that training with Adam takes.

    Weights, gradients and Adam's two moments are kept in float32 (4, 4 and 8 bytes a parameter). Activations that the
    backward pass needs are counted per token and layer: inputs of the norms and of every product, queries, keys and
    values, the hidden numbers before and after the nonlinearity; and at the end the logits and their probabilities.
    Attention scores are not kept by fused kernels; the naive ones keep H T numbers per token and layer twice.

    Args:
        config: the shape.
        batch_size: sequences per step B.
        seq_len: tokens per sequence T; 0 means max_seq_len.
        bytes_per_activation: 4 for fp32, 2 for bf16.

    Returns:
        The parts in bytes; real use differs by allocator and kernels, typically within a third.
    """
    n_parameters, n_positions = parameters(config), seq_len or config.max_seq_len
    n_hidden = 3 if config.feed_forward in GATED else 2
    d_qkv = block_products(config)[0][1]
    per_layer = 5 * config.d_model + d_qkv + n_hidden * config.d_ff * max(1, config.n_active_experts)
    if config.kernels == "naive":
        per_layer += 2 * config.n_heads * n_positions
    per_token = config.n_layers * per_layer + 2 * config.d_model + 2 * config.vocab_size
    activations = batch_size * n_positions * per_token * bytes_per_activation
    return MemoryEstimate(4 * n_parameters, 4 * n_parameters, 8 * n_parameters, activations)


def cache_bytes(config: GPTConfig, batch_size: int, seq_len: int = 0, bytes_per_number: int = 2) -> int:
    """What the keys and values take that decoding keeps: two numbers per layer, key/value head, channel and position.

    Args:
        config: the shape; with a window no more positions are kept than it holds.
        batch_size: texts at a time B.
        seq_len: tokens of each text so far S; 0 means max_seq_len.
        bytes_per_number: 2 for bf16, 4 for fp32.

    Returns:
        Bytes; the same as the `n_bytes` of the model's cache for such texts.

    Source:
        Shazeer 2019, arXiv:1911.02150 (one head of keys and values for all query heads).

    Example:
        >>> llama = model_config("llama", "tiny", 32000, 4096, n_layers=32, n_heads=32, d_model=4096)
        >>> cache_bytes(llama, batch_size=1, seq_len=1), cache_bytes(llama, batch_size=8) // 2**30
        (524288, 16)
    """
    n_positions = seq_len or config.max_seq_len
    n_kept = min(n_positions, config.window) if config.window else n_positions
    n_numbers = 2 * config.n_layers * config.n_kv_heads * config.d_head
    return batch_size * n_kept * n_numbers * bytes_per_number
