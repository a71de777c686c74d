"""BERT, RoBERTa and ALBERT in `transformers`, each with the heads that it was pretrained with.

`BertForPreTraining` and `AlbertForPreTraining` fill in tokens and judge pairs, `RobertaForMaskedLM` fills in tokens.
"""

from collections.abc import Mapping
from typing import Any

from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.weights import Match, joined_rows, same
from minillm.models.bert import Bert, BertConfig, bert_config

SHAPE = ("vocab_size", "max_seq_len", "n_layers", "n_heads", "d_model", "d_ff", "n_segments", "norm_epsilon")
AT_THE_START = ("dropout", "std", "kernels")  # matter for training and speed, not for logits
ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}
THEIR_ACTIVATIONS = {"gelu_exact": "gelu", "gelu": "gelu_new"}
EMBEDDINGS = {
    "token_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "segment_embedding": "token_type_embeddings",
}
LAYER = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
ALBERT_LAYER = {
    "attention.output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward.up": "ffn",
    "feed_forward.down": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}
BERT_HEADS = {
    "head_map": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
    "pooler": "bert.pooler.dense",
    "pair_head": "cls.seq_relationship",
}
ROBERTA_HEADS = {"head_map": "lm_head.dense", "head_norm": "lm_head.layer_norm"}
ALBERT_HEADS = {
    "embedding_map": "albert.encoder.embedding_hidden_mapping_in",
    "head_map": "predictions.dense",
    "head_norm": "predictions.LayerNorm",
    "pooler": "albert.pooler",
    "pair_head": "sop_classifier.classifier",
}
ALBERT_PREFIX = "albert.encoder.albert_layer_groups.0.albert_layers.0"


def shape_from(theirs: Theirs, kind: str, n_unused: int = 0, **settings: Any) -> BertConfig:
    """Our config of an encoder of that kind; dropout, which matters for training only, stays 0."""
    check_settings(theirs, {"is_decoder": (False,), "add_cross_attention": (False,), "tie_word_embeddings": (True,)})
    check_settings(theirs, {"position_embedding_type": ("absolute",), "hidden_act": tuple(ACTIVATIONS)})
    default = THEIR_ACTIVATIONS[bert_config(kind, **TINY).feed_forward]
    return bert_config(
        kind,
        vocab_size=taken(theirs, "vocab_size"),
        max_seq_len=taken(theirs, "max_position_embeddings") - n_unused,
        n_layers=taken(theirs, "num_hidden_layers"),
        n_heads=taken(theirs, "num_attention_heads"),
        d_model=taken(theirs, "hidden_size"),
        d_ff=taken(theirs, "intermediate_size"),
        n_segments=taken(theirs, "type_vocab_size", 2),
        feed_forward=ACTIVATIONS[taken(theirs, "hidden_act", default)],
        norm_epsilon=taken(theirs, "layer_norm_eps", 1e-12),
        **settings,
    )


TINY = {"vocab_size": 1, "max_seq_len": 1, "n_layers": 1, "n_heads": 1, "d_model": 1}


def shape_to(config: BertConfig) -> dict[str, Any]:
    """The keys that all three classes have."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len + config.position_offset,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "type_vocab_size": config.n_segments,
        "hidden_act": THEIR_ACTIVATIONS[config.feed_forward],
        "layer_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": True,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def with_weight_and_bias(names: Mapping[str, str], ours: str = "", theirs: str = "") -> list[Match]:
    """Modules of ours under their names, each with weight and bias."""
    return [
        same(f"{ours}{mine}.{kind}", f"{theirs}{their}.{kind}")
        for mine, their in names.items()
        for kind in ("weight", "bias")
    ]


def attention_matches(config: BertConfig, ours: str, theirs: str) -> list[Match]:
    """Their three maps to queries, keys and values are one below the other in ours."""
    rows = (config.d_model,) * 3
    return [
        joined_rows(f"{ours}.{kind}", [f"{theirs}.{part}.{kind}" for part in ("query", "key", "value")], rows)
        for kind in ("weight", "bias")
    ]


def embedding_matches(theirs: str) -> list[Match]:
    """Token, position and segment vectors and their norm."""
    found = [same(f"{ours}.weight", f"{theirs}.{their}.weight") for ours, their in EMBEDDINGS.items()]
    return found + with_weight_and_bias({"embedding_norm": "LayerNorm"}, theirs=f"{theirs}.")


def layered_matches(config: BertConfig, body: str) -> list[Match]:
    """Embeddings and layers of BERT and RoBERTa."""
    found = embedding_matches(f"{body}.embeddings")
    for number in range(config.n_layers):
        ours, theirs = f"layers.{number}.", f"{body}.encoder.layer.{number}."
        found += attention_matches(config, f"{ours}attention.qkv", f"{theirs}attention.self")
        found += with_weight_and_bias(LAYER, ours, theirs)
    return found


def bert_matches(config: BertConfig) -> list[Match]:
    """Every parameter of a `BertForPreTraining`."""
    heads = [*with_weight_and_bias(BERT_HEADS), same("head_bias", "cls.predictions.bias")]
    return layered_matches(config, "bert") + heads


def roberta_matches(config: BertConfig) -> list[Match]:
    """Every parameter of a `RobertaForMaskedLM`."""
    heads = [*with_weight_and_bias(ROBERTA_HEADS), same("head_bias", "lm_head.bias")]
    return layered_matches(config, "roberta") + heads


def albert_matches(config: BertConfig) -> list[Match]:
    """Every parameter of an `AlbertForPreTraining`, whose one layer all share."""
    found = embedding_matches("albert.embeddings")
    found += attention_matches(config, "layers.0.attention.qkv", f"{ALBERT_PREFIX}.attention")
    found += with_weight_and_bias(ALBERT_LAYER, "layers.0.", f"{ALBERT_PREFIX}.")
    return [*found, *with_weight_and_bias(ALBERT_HEADS), same("head_bias", "predictions.bias")]


def roberta_from(theirs: Theirs) -> BertConfig:
    """Our config of a RoBERTa: positions begin behind the padding id. Its head has the exact GELU in any case."""
    check_settings(theirs, {"hidden_act": ("gelu",)})
    n_unused = taken(theirs, "pad_token_id", 1) + 1
    return shape_from(theirs, "roberta", n_unused, position_offset=n_unused)


def albert_from(theirs: Theirs) -> BertConfig:
    """Our config of an ALBERT with one layer."""
    check_settings(theirs, {"num_hidden_groups": (1,), "inner_group_num": (1,)})
    return shape_from(theirs, "albert", d_embedding=taken(theirs, "embedding_size", 128))


def bert_reasons(config: BertConfig) -> list[str]:
    """Which settings BERT does not have."""
    return differences(config, {"d_embedding": config.d_model}, {*SHAPE, *AT_THE_START, "feed_forward"})


def roberta_reasons(config: BertConfig) -> list[str]:
    """Which settings RoBERTa does not have; without an offset it is no RoBERTa."""
    needed = {"d_embedding": config.d_model, "pair_head": False, "position_offset": config.position_offset or 2}
    return differences(config, needed, {*SHAPE, *AT_THE_START})


def albert_reasons(config: BertConfig) -> list[str]:
    """Which settings ALBERT does not have; its class always maps embeddings to the width, ours where they differ."""
    found = differences(config, {"share_layers": True}, {*SHAPE, *AT_THE_START, "feed_forward", "d_embedding"})
    if config.d_embedding == config.d_model:
        found.append(f"d_embedding is {config.d_embedding} like d_model (needs another width)")
    return found


BERT = Family(
    name="bert",
    architecture="BertForPreTraining",
    config_type=BertConfig,
    make_model=Bert,
    config_from=lambda theirs: shape_from(theirs, "bert"),
    config_to=shape_to,
    matches=bert_matches,
    reasons_against=bert_reasons,
    aliases=lambda config: {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=(r"embeddings\.position_ids$",),
)
ROBERTA = Family(
    name="roberta",
    architecture="RobertaForMaskedLM",
    config_type=BertConfig,
    make_model=Bert,
    config_from=roberta_from,
    config_to=lambda config: shape_to(config) | {"pad_token_id": config.position_offset - 1},
    matches=roberta_matches,
    reasons_against=roberta_reasons,
    aliases=lambda config: {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=(r"embeddings\.position_ids$", r"^roberta\.pooler\."),  # old files hold a pooler that nothing taught
)
ALBERT = Family(
    name="albert",
    architecture="AlbertForPreTraining",
    config_type=BertConfig,
    make_model=Bert,
    config_from=albert_from,
    config_to=lambda config: shape_to(config) | {"embedding_size": config.d_embedding},
    matches=albert_matches,
    reasons_against=albert_reasons,
    aliases=lambda config: {
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    ignored=(r"embeddings\.position_ids$",),
)
FAMILIES = (BERT, ROBERTA, ALBERT)
