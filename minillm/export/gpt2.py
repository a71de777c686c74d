"""GPT-2 in `transformers`: `GPT2LMHeadModel`."""

from typing import Any

from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.weights import Match, same, transposed
from minillm.models.gpt import GPT, GPTConfig

PREFIX = "transformer."
SHAPE = ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model", "d_ff", "tie_embeddings")
AT_THE_START = ("dropout", "embedding_std", "zero_outputs", "kernels")  # matter for training and speed, not for logits
# module of ours -> (theirs, whether it is a matrix that they keep transposed)
MODULES = {
    "attention_norm": ("ln_1", False),
    "attention.qkv": ("attn.c_attn", True),
    "attention.output": ("attn.c_proj", True),
    "feed_forward_norm": ("ln_2", False),
    "feed_forward.up": ("mlp.c_fc", True),
    "feed_forward.down": ("mlp.c_proj", True),
}


def config_from(theirs: Theirs) -> GPTConfig:
    """Our config of a GPT-2; dropout, which matters for training only, stays 0."""
    check_settings(
        theirs,
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    )
    return GPTConfig(
        vocab_size=taken(theirs, "vocab_size"),
        max_seq_len=taken(theirs, "n_positions"),
        n_layers=taken(theirs, "n_layer"),
        n_heads=taken(theirs, "n_head"),
        d_model=taken(theirs, "n_embd"),
        d_ff=taken(theirs, "n_inner", 0),
        bias=True,
        tie_embeddings=taken(theirs, "tie_word_embeddings", True),
        norm_epsilon=taken(theirs, "layer_norm_epsilon", 1e-5),
    )


def config_to(config: GPTConfig) -> dict[str, Any]:
    """The keys of `GPT2Config`."""
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def matches(config: GPTConfig) -> list[Match]:
    """Every parameter; their linear maps keep (in, out)."""
    found = [
        same("token_embedding.weight", f"{PREFIX}wte.weight"),
        same("position_embedding.weight", f"{PREFIX}wpe.weight"),
    ]
    for layer in range(config.n_layers):
        for ours, (theirs, is_transposed) in MODULES.items():
            names = f"blocks.{layer}.{ours}", f"{PREFIX}h.{layer}.{theirs}"
            found.append((transposed if is_transposed else same)(*(f"{name}.weight" for name in names)))
            found.append(same(*(f"{name}.bias" for name in names)))
    found += [same(f"final_norm.{kind}", f"{PREFIX}ln_f.{kind}") for kind in ("weight", "bias")]
    return found if config.tie_embeddings else [*found, same("head.weight", "lm_head.weight")]


def reasons_against(config: GPTConfig) -> list[str]:
    """Which settings GPT-2 does not have."""
    needed = {"bias": True, "n_kv_heads": config.n_heads}
    return differences(config, needed, {*SHAPE, *AT_THE_START, "norm_epsilon", "rotary_base"})


FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    config_type=GPTConfig,
    make_model=GPT,
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=reasons_against,
    prefix=PREFIX,
    aliases=lambda config: {"lm_head.weight": f"{PREFIX}wte.weight"} if config.tie_embeddings else {},
    ignored=(r"\.attn\.(masked_)?bias$",),
)
