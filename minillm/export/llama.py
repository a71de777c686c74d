"""LLaMA in `transformers`: `LlamaForCausalLM`; Mistral without a sliding window has the same names and is read too."""

from typing import Any

from minillm.errors import CheckpointError
from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.gpt2 import AT_THE_START, SHAPE
from minillm.export.weights import Match, joined_rows, same
from minillm.models.gpt import GPT, GPTConfig

PREFIX = "model."
FREE = {*SHAPE, *AT_THE_START, "norm_epsilon", "n_kv_heads", "rotary_base", "bias"}
NEEDED = {"norm": "rms", "position": "rotary", "feed_forward": "swiglu"}
MODULES = {
    "attention.output": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}


def config_from(theirs: Theirs) -> GPTConfig:
    """Our config of a LLaMA."""
    bias = taken(theirs, "attention_bias", False)
    check_settings(theirs, {"hidden_act": ("silu", "swish"), "mlp_bias": (bias,), "sliding_window": (None,)})
    n_heads, d_model = taken(theirs, "num_attention_heads"), taken(theirs, "hidden_size")
    check_settings(theirs, {"head_dim": (None, d_model // n_heads)})
    return GPTConfig(
        vocab_size=taken(theirs, "vocab_size"),
        max_seq_len=taken(theirs, "max_position_embeddings"),
        n_layers=taken(theirs, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=taken(theirs, "num_key_value_heads", 0),
        d_model=d_model,
        d_ff=taken(theirs, "intermediate_size"),
        bias=bias,
        tie_embeddings=taken(theirs, "tie_word_embeddings", False),
        norm_epsilon=taken(theirs, "rms_norm_eps", 1e-6),
        rotary_base=rotary_base(theirs),
        **NEEDED,
    )


def rotary_base(theirs: Theirs) -> float:
    """Their `rope_theta`, in config.json itself or, since version 5, in its `rope_parameters`.

    Raises:
        CheckpointError: if the angles are scaled for longer texts.
    """
    rope = taken(theirs, "rope_parameters", {}) or taken(theirs, "rope_scaling", {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"config.json asks for rotary angles of type {kind!r}; this library reads 'default' only")
    return float(rope.get("rope_theta", taken(theirs, "rope_theta", 10000.0)))


def config_to(config: GPTConfig) -> dict[str, Any]:
    """The keys of `LlamaConfig`, the rotary base in the place of version 5 and in that of earlier ones."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
    }


def matches(config: GPTConfig) -> list[Match]:
    """Every parameter; queries, keys and values are three maps there and one here."""
    found = [same("token_embedding.weight", f"{PREFIX}embed_tokens.weight")]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"{PREFIX}layers.{layer}"
        found += attention_matches(config, ours, theirs)
        found += [same(f"{ours}.{name}.weight", f"{theirs}.{their}.weight") for name, their in NORMS.items()]
        found += [
            same(f"{ours}.{name}.{kind}", f"{theirs}.{their}.{kind}")
            for name, their in MODULES.items()
            for kind in kinds(config)
        ]
    found.append(same("final_norm.weight", f"{PREFIX}norm.weight"))
    return found if config.tie_embeddings else [*found, same("head.weight", "lm_head.weight")]


def attention_matches(config: GPTConfig, ours: str, theirs: str) -> list[Match]:
    """The fused map of one block to queries, keys and values."""
    kv_rows = config.n_kv_heads * config.d_head
    return [
        joined_rows(
            f"{ours}.attention.qkv.{kind}",
            [f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv"],
            (config.d_model, kv_rows, kv_rows),
        )
        for kind in kinds(config)
    ]


def kinds(config: GPTConfig) -> list[str]:
    """What each linear map has: a weight, and a bias if the config says so."""
    return ["weight", "bias"] if config.bias else ["weight"]


def reasons_against(config: GPTConfig) -> list[str]:
    """Which settings LLaMA does not have."""
    return differences(config, NEEDED, FREE)


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    config_type=GPTConfig,
    make_model=GPT,
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=reasons_against,
    prefix=PREFIX,
    aliases=lambda config: {"lm_head.weight": f"{PREFIX}embed_tokens.weight"} if config.tie_embeddings else {},
    ignored=(r"rotary_emb\.inv_freq$",),
)
