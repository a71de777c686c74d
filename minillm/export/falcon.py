"""Falcon in `transformers`: `FalconForCausalLM` in the form of Falcon-7B, with attention and feed-forward side by side.

Their LayerNorms always have biases, whatever `bias` says of the linear maps. Falcon-40B and 180B (two norms in a block,
groups of heads) are another form, which this library does not have.
"""

from typing import Any

from minillm.errors import CheckpointError
from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.gpt2 import AT_THE_START, SHAPE
from minillm.export.llama import rotary_from, rotary_to
from minillm.export.weights import Match, interleaved_rows, same
from minillm.models.gpt import GPT, GPTConfig

PREFIX = "transformer."
NEEDED = {"norm_bias": True, "position": "rotary", "feed_forward": "gelu_exact", "parallel_block": True}
FREE = {*SHAPE, *AT_THE_START, "norm_epsilon", "bias", "rotary_base", "n_kv_heads"}
DEFAULT_LENGTH = 2048  # old config.json files name none
MAPS = {
    "attention.output": "self_attention.dense",
    "feed_forward.up": "mlp.dense_h_to_4h",
    "feed_forward.down": "mlp.dense_4h_to_h",
}


def config_from(theirs: Theirs) -> GPTConfig:
    """Our config of a Falcon-7B."""
    understood = {
        "alibi": (False,),
        "new_decoder_architecture": (False, None),
        "parallel_attn": (True,),
        "activation": ("gelu",),
        "multi_query": (True, False),
    }
    check_settings(theirs, understood)
    settings = rotary_from(theirs)
    if settings.keys() != {"rotary_base"}:
        raise CheckpointError(f"config.json of this 'falcon' model asks for scaled angles {settings} (expected none)")
    n_heads, d_model = taken(theirs, "num_attention_heads"), taken(theirs, "hidden_size")
    return GPTConfig(
        vocab_size=taken(theirs, "vocab_size"),
        max_seq_len=taken(theirs, "max_position_embeddings", DEFAULT_LENGTH),
        n_layers=taken(theirs, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=1 if taken(theirs, "multi_query", True) else n_heads,
        d_model=d_model,
        d_ff=taken(theirs, "ffn_hidden_size", 4 * d_model),
        bias=taken(theirs, "bias", False),
        norm_epsilon=taken(theirs, "layer_norm_epsilon", 1e-5),
        tie_embeddings=taken(theirs, "tie_word_embeddings", True),
        **NEEDED | settings,
    )


def config_to(config: GPTConfig) -> dict[str, Any]:
    """The keys of `FalconConfig`."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "hidden_size": config.d_model,
        "ffn_hidden_size": config.d_ff,
        "activation": "gelu",
        "layer_norm_epsilon": config.norm_epsilon,
        "alibi": False,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "multi_query": config.n_kv_heads == 1,
        "bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": config.dropout,
        "attention_dropout": 0.0,
        **rotary_to(config),
    }


def matches(config: GPTConfig) -> list[Match]:
    """Every parameter; without shared keys and values the rows of the three lie head by head there, as in BLOOM."""
    found = [same("token_embedding.weight", f"{PREFIX}word_embeddings.weight")]
    found += [same(f"final_norm.{kind}", f"{PREFIX}ln_f.{kind}") for kind in ("weight", "bias")]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"{PREFIX}h.{layer}"
        norm = f"{ours}.attention_norm", f"{theirs}.input_layernorm"
        found += [same(*(f"{name}.{kind}" for name in norm)) for kind in ("weight", "bias")]
        for kind in ("weight", "bias") if config.bias else ("weight",):
            found.append(qkv(config, f"{ours}.attention.qkv.{kind}", f"{theirs}.self_attention.query_key_value.{kind}"))
            found += [same(f"{ours}.{name}.{kind}", f"{theirs}.{their}.{kind}") for name, their in MAPS.items()]
    return found if config.tie_embeddings else [*found, same("head.weight", "lm_head.weight")]


def qkv(config: GPTConfig, ours: str, theirs: str) -> Match:
    """Queries, keys and values: one below the other if all heads share the last two, else head by head."""
    if config.n_kv_heads == 1:
        return same(ours, theirs)
    return interleaved_rows(ours, theirs, n_parts=3, n_groups=config.n_heads)


def reasons_against(config: GPTConfig) -> list[str]:
    """Which settings Falcon-7B does not have."""
    reasons = differences(config, NEEDED, FREE)
    if config.n_kv_heads not in (1, config.n_heads):
        reasons.append(f"n_kv_heads is {config.n_kv_heads} (needs 1 or {config.n_heads})")
    return reasons


FAMILY = Family(
    name="falcon",
    architecture="FalconForCausalLM",
    config_type=GPTConfig,
    make_model=GPT,
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=reasons_against,
    prefix=PREFIX,
    aliases=lambda config: {"lm_head.weight": f"{PREFIX}word_embeddings.weight"} if config.tie_embeddings else {},
)
