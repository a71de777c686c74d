"""T5 in `transformers`: `T5ForConditionalGeneration`, versions 1.0 and 1.1."""

from typing import Any

from minillm.export.family import REQUIRED, Family, Theirs, check_settings, differences, taken
from minillm.export.weights import Match, joined_rows, same
from minillm.models.t5 import T5, T5Config

FEED_FORWARDS = {"relu": "relu", "gated-gelu": "geglu"}
SETTINGS = {
    "vocab_size": "vocab_size",
    "n_layers": "num_layers",
    "n_decoder_layers": "num_decoder_layers",
    "n_heads": "num_heads",
    "d_model": "d_model",
    "d_head": "d_kv",
    "d_ff": "d_ff",
    "n_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
}
DEFAULTS = {"n_decoder_layers": 0, "n_buckets": 32, "max_distance": 128, "norm_epsilon": 1e-6}


def config_from(theirs: Theirs) -> T5Config:
    """Our config of a T5; dropout, which matters for training only, stays 0.

    Version 1.1 says tie_word_embeddings = false: its head is its own, and its last vectors are not divided by sqrt(C).
    Written by transformers 5 it says true, and scale_decoder_outputs = false.
    """
    tied = taken(theirs, "tie_word_embeddings", True) and taken(theirs, "scale_decoder_outputs", True)
    check_settings(theirs, {"feed_forward_proj": tuple(FEED_FORWARDS), "is_encoder_decoder": (True,)})
    settings = {ours: taken(theirs, name, DEFAULTS.get(ours, REQUIRED)) for ours, name in SETTINGS.items()}
    return T5Config(
        max_seq_len=taken(theirs, "n_positions", 512),
        feed_forward=FEED_FORWARDS[taken(theirs, "feed_forward_proj", "relu")],
        tie_embeddings=tied,
        **settings,
    )


def config_to(config: T5Config) -> dict[str, Any]:
    """The keys of `T5Config`; texts begin with the padding id there, which is 0."""
    kinds = {ours: theirs for theirs, ours in FEED_FORWARDS.items()}
    return {name: getattr(config, ours) for ours, name in SETTINGS.items()} | {
        "n_positions": config.max_seq_len,
        "feed_forward_proj": kinds[config.feed_forward],
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.tie_embeddings,
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def matches(config: T5Config) -> list[Match]:
    """Every parameter; the numbers for distances are kept in the first layer there."""
    found = [same("token_embedding.weight", "shared.weight")]
    for side, n_layers in (("encoder", config.n_layers), ("decoder", config.n_decoder_layers)):
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += [
            same(f"{side}_distances.weight", first),
            same(f"{side}_norm.weight", f"{side}.final_layer_norm.weight"),
        ]
        for number in range(n_layers):
            found += layer_matches(config, f"{side}.{number}", f"{side}.block.{number}.layer", side == "decoder")
    return found if config.tie_embeddings else [*found, same("head.weight", "lm_head.weight")]


def layer_matches(config: T5Config, ours: str, theirs: str, has_source: bool) -> list[Match]:
    """The parameters of one layer; their parts are numbered."""
    width = config.n_heads * config.d_head
    attention, last = f"{theirs}.0.SelfAttention", 2 if has_source else 1
    found = [
        joined_rows(f"{ours}.attention.qkv.weight", [f"{attention}.{part}.weight" for part in "qkv"], (width,) * 3),
        same(f"{ours}.attention.output.weight", f"{attention}.o.weight"),
        same(f"{ours}.attention_norm.weight", f"{theirs}.0.layer_norm.weight"),
        same(f"{ours}.feed_forward_norm.weight", f"{theirs}.{last}.layer_norm.weight"),
        same(f"{ours}.feed_forward.down.weight", f"{theirs}.{last}.DenseReluDense.wo.weight"),
    ]
    gated = config.feed_forward == "geglu"
    for mine, their in {"gate": "wi_0", "up": "wi_1"}.items() if gated else {"up": "wi"}.items():
        found.append(same(f"{ours}.feed_forward.{mine}.weight", f"{theirs}.{last}.DenseReluDense.{their}.weight"))
    if has_source:
        source = f"{theirs}.1.EncDecAttention"
        key_value = [f"{source}.{part}.weight" for part in "kv"]
        found += [
            same(f"{ours}.source_attention.query.weight", f"{source}.q.weight"),
            joined_rows(f"{ours}.source_attention.key_value.weight", key_value, (width,) * 2),
            same(f"{ours}.source_attention.output.weight", f"{source}.o.weight"),
            same(f"{ours}.source_norm.weight", f"{theirs}.1.layer_norm.weight"),
        ]
    return found


def aliases(config: T5Config) -> dict[str, str]:
    """Both embeddings are the shared one, and so is a tied head."""
    names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    return dict.fromkeys(names + ["lm_head.weight"] * config.tie_embeddings, "shared.weight")


FAMILY = Family(
    name="t5",
    architecture="T5ForConditionalGeneration",
    config_type=T5Config,
    make_model=T5,
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=lambda config: differences(
        config, {}, {*SETTINGS, "max_seq_len", "feed_forward", "tie_embeddings", "dropout", "kernels"}
    ),
    aliases=aliases,
    # version 1.0 files hold numbers for distances to the source, which were never used
    ignored=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
)
