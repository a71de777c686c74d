"""LLaMA and Mistral in `transformers`: `LlamaForCausalLM`, and with a sliding window `MistralForCausalLM`."""

from typing import Any

from minillm.errors import CheckpointError
from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.gpt2 import AT_THE_START, SHAPE
from minillm.export.weights import Match, joined_rows, same
from minillm.models.gpt import GPT, GPTConfig
from minillm.nn.position import ntk_base

PREFIX = "model."
NEEDED = {"norm": "rms", "position": "rotary", "feed_forward": "swiglu"}
ROTARY = ("rotary_base", "rotary_scaling", "rotary_factor", "rotary_trained_len")
FREE = {*SHAPE, *AT_THE_START, *ROTARY, "norm_epsilon", "n_kv_heads"}
FEED_FORWARD = {"feed_forward.gate": "gate_proj", "feed_forward.up": "up_proj", "feed_forward.down": "down_proj"}
NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
TURNS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # between which "llama3" blends; others are not known here


def config_from(theirs: Theirs) -> GPTConfig:
    """Our config of a LLaMA or Mistral."""
    bias = taken(theirs, "attention_bias", False)
    check_settings(theirs, {"mlp_bias": (bias,)})
    return GPTConfig(**settings_from(theirs), bias=bias, window=taken(theirs, "sliding_window", 0))


def settings_from(theirs: Theirs) -> dict[str, Any]:
    """What LLaMA, Mistral and Mixtral have in common, as arguments of our config."""
    check_settings(theirs, {"hidden_act": ("silu", "swish")})
    n_heads, d_model = taken(theirs, "num_attention_heads"), taken(theirs, "hidden_size")
    check_settings(theirs, {"head_dim": (None, d_model // n_heads)})
    return NEEDED | {
        "vocab_size": taken(theirs, "vocab_size"),
        "max_seq_len": taken(theirs, "max_position_embeddings"),
        "n_layers": taken(theirs, "num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": taken(theirs, "num_key_value_heads", 0),
        "d_model": d_model,
        "d_ff": taken(theirs, "intermediate_size"),
        "tie_embeddings": taken(theirs, "tie_word_embeddings", False),
        "norm_epsilon": taken(theirs, "rms_norm_eps", 1e-6),
        **rotary_from(theirs),
    }


def rotary_from(theirs: Theirs) -> dict[str, Any]:
    """Their rotary settings: since version 5 all in `rope_parameters`, before in `rope_theta` and `rope_scaling`.

    Raises:
        CheckpointError: if the angles are scaled in a way that this library does not know.
    """
    rope = taken(theirs, "rope_parameters", {}) or taken(theirs, "rope_scaling", {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    settings = {"rotary_base": float(rope.get("rope_theta", taken(theirs, "rope_theta", 10000.0)))}
    if kind == "default":
        return settings
    if kind not in ("linear", "llama3") or (kind == "llama3" and any(rope.get(key) != TURNS[key] for key in TURNS)):
        raise CheckpointError(
            f"config.json asks for rotary angles {rope}; this library reads the types 'default', 'linear' and "
            f"'llama3' with {TURNS}"
        )
    settings |= {"rotary_scaling": kind, "rotary_factor": float(taken(rope, "factor"))}
    if kind == "llama3":
        settings["rotary_trained_len"] = taken(rope, "original_max_position_embeddings")
    return settings


def rotary_to(config: GPTConfig) -> dict[str, Any]:
    """Our rotary settings in the place of version 5 and in that of earlier ones; "ntk" is another base to them."""
    base, kind, scaling = config.rotary_base, config.rotary_scaling, {}
    if kind == "ntk":
        base = ntk_base(base, config.rotary_factor, config.d_head)
    elif kind != "none":
        scaling = {"rope_type": kind, "factor": config.rotary_factor}
        if kind == "llama3":
            scaling |= TURNS | {"original_max_position_embeddings": config.trained_len}
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": base} | scaling,
        "rope_theta": base,
        "rope_scaling": scaling or None,
    }


def config_to(config: GPTConfig) -> dict[str, Any]:
    """The keys of `LlamaConfig`."""
    return settings_to(config) | {"attention_bias": config.bias, "mlp_bias": config.bias}


def settings_to(config: GPTConfig) -> dict[str, Any]:
    """The keys that LLaMA, Mistral and Mixtral have in common."""
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
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        **rotary_to(config),
    }


def matches(config: GPTConfig) -> list[Match]:
    """Every parameter of a model with dense feed-forward layers."""
    found = matches_outside(config)
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"{PREFIX}layers.{layer}.mlp"
        for name, their in FEED_FORWARD.items():
            found += [same(f"{ours}.{name}.{kind}", f"{theirs}.{their}.{kind}") for kind in kinds(config)]
    return found


def matches_outside(config: GPTConfig) -> list[Match]:
    """Every parameter outside the feed-forward layers; queries, keys and values are three maps there and one here."""
    found = [
        same("token_embedding.weight", f"{PREFIX}embed_tokens.weight"),
        same("final_norm.weight", f"{PREFIX}norm.weight"),
    ]
    kv_rows = config.n_kv_heads * config.d_head
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"{PREFIX}layers.{layer}"
        found += [same(f"{ours}.{name}.weight", f"{theirs}.{their}.weight") for name, their in NORMS.items()]
        for kind in kinds(config):
            parts = [f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            found.append(joined_rows(f"{ours}.attention.qkv.{kind}", parts, (config.d_model, kv_rows, kv_rows)))
            found.append(same(f"{ours}.attention.output.{kind}", f"{theirs}.self_attn.o_proj.{kind}"))
    return found if config.tie_embeddings else [*found, same("head.weight", "lm_head.weight")]


def kinds(config: GPTConfig) -> list[str]:
    """What each linear map has: a weight, and a bias if the config says so."""
    return ["weight", "bias"] if config.bias else ["weight"]


def aliases(config: GPTConfig) -> dict[str, str]:
    """The head is the embedding if they are tied."""
    return {"lm_head.weight": f"{PREFIX}embed_tokens.weight"} if config.tie_embeddings else {}


SHARED = {
    "config_type": GPTConfig,
    "make_model": GPT,
    "prefix": PREFIX,
    "aliases": aliases,
    "ignored": (r"rotary_emb\.inv_freq$",),
}
FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=lambda config: differences(config, NEEDED, FREE | {"bias"}),
    **SHARED,
)
MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    config_from=config_from,
    config_to=lambda config: settings_to(config) | {"sliding_window": config.window or None},
    matches=matches,
    reasons_against=lambda config: differences(config, NEEDED, FREE | {"window"}),
    **SHARED,
)
