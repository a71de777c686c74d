"""BLOOM in `transformers`: `BloomForCausalLM`."""

from typing import Any

from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.gpt2 import AT_THE_START, SHAPE
from minillm.export.weights import Match, interleaved_rows, same
from minillm.models.gpt import GPT, GPTConfig

PREFIX = "transformer."
NEEDED = {"bias": True, "position": "alibi", "embedding_norm": True}
DEFAULT_LENGTH = 2048  # alibi sets no limit, and newer config.json files name none
MODULES = {
    "attention_norm": "input_layernorm",
    "attention.output": "self_attention.dense",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.up": "mlp.dense_h_to_4h",
    "feed_forward.down": "mlp.dense_4h_to_h",
}


def config_from(theirs: Theirs) -> GPTConfig:
    """Our config of a BLOOM."""
    d_model = taken(theirs, "hidden_size", theirs.get("n_embed"))
    check_settings(
        theirs, {"apply_residual_connection_post_layernorm": (False,), "n_inner": (None, 4 * (d_model or 0))}
    )
    return GPTConfig(
        vocab_size=taken(theirs, "vocab_size"),
        max_seq_len=taken(theirs, "seq_length", DEFAULT_LENGTH),
        n_layers=taken(theirs, "n_layer"),
        n_heads=taken(theirs, "n_head", theirs.get("num_attention_heads")),
        d_model=d_model,
        norm_epsilon=taken(theirs, "layer_norm_epsilon", 1e-5),
        tie_embeddings=taken(theirs, "tie_word_embeddings", True),
        **NEEDED,
    )


def config_to(config: GPTConfig) -> dict[str, Any]:
    """The keys of `BloomConfig`, and the length, which it does not need and we do."""
    return {
        "vocab_size": config.vocab_size,
        "seq_length": config.max_seq_len,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "hidden_size": config.d_model,
        "layer_norm_epsilon": config.norm_epsilon,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": config.dropout,
        "attention_dropout": 0.0,
    }


def matches(config: GPTConfig) -> list[Match]:
    """Every parameter; the rows of queries, keys and values lie head by head there."""
    found = [same("token_embedding.weight", f"{PREFIX}word_embeddings.weight")]
    for kind in ("weight", "bias"):
        found.append(same(f"embedding_norm.{kind}", f"{PREFIX}word_embeddings_layernorm.{kind}"))
        found.append(same(f"final_norm.{kind}", f"{PREFIX}ln_f.{kind}"))
        for layer in range(config.n_layers):
            ours, theirs = f"blocks.{layer}", f"{PREFIX}h.{layer}"
            qkv = f"{ours}.attention.qkv.{kind}", f"{theirs}.self_attention.query_key_value.{kind}"
            found.append(interleaved_rows(*qkv, n_parts=3, n_groups=config.n_heads))
            found += [same(f"{ours}.{name}.{kind}", f"{theirs}.{their}.{kind}") for name, their in MODULES.items()]
    return found if config.tie_embeddings else [*found, same("head.weight", "lm_head.weight")]


def reasons_against(config: GPTConfig) -> list[str]:
    """Which settings BLOOM does not have."""
    needed = NEEDED | {"n_kv_heads": config.n_heads, "d_ff": 4 * config.d_model}
    return differences(config, needed, ({*SHAPE, *AT_THE_START} - {"d_ff"}) | {"norm_epsilon", "rotary_base"})


FAMILY = Family(
    name="bloom",
    architecture="BloomForCausalLM",
    config_type=GPTConfig,
    make_model=GPT,
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=reasons_against,
    prefix=PREFIX,
    aliases=lambda config: {"lm_head.weight": f"{PREFIX}word_embeddings.weight"} if config.tie_embeddings else {},
)
