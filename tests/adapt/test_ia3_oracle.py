"""Our (IA)^3 beside that of `peft`, on models that were exported to `transformers`: by its own settings."""

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from helpers.parity import assert_near

from minillm.adapt.adapted import adapt
from minillm.adapt.ia3 import PEFT_SETTINGS, IA3Config
from minillm.export.hugging_face import save_hugging_face

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # theirs are not our concern
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
# make, their class, how near (theirs computes RMSNorm's scale and rotary angles in float32), their modules by ours
MODELS = {
    "gpt2": (lambda: small_gpt(bias=True), "AutoModelForCausalLM", 1e-10),
    "llama": (lambda: small_gpt(**LLAMA), "AutoModelForCausalLM", 2e-6),
    "bert": (small_bert, "AutoModelForPreTraining", 1e-10),
    "t5": (small_t5, "AutoModelForSeq2SeqLM", 1e-5),
}
LAYERS = {"gpt2": "transformer.h.{}.", "llama": "model.layers.{}.", "bert": "bert.encoder.layer.{}."}
NAMES = {
    "gpt2": {"attn.c_attn": ("attention.qkv", ("query", "key", "value")), "mlp.c_proj": ("feed_forward.down", ())},
    "llama": {
        "self_attn.k_proj": ("attention.qkv", ("key",)),
        "self_attn.v_proj": ("attention.qkv", ("value",)),
        "mlp.down_proj": ("feed_forward.down", ()),
    },
    "bert": {
        "attention.self.key": ("attention.qkv", ("key",)),
        "attention.self.value": ("attention.qkv", ("value",)),
        "attention.output.dense": ("attention.output", ()),
        "output.dense": ("feed_forward.down", ()),
    },
}
IDS = ids_of((3, 9), 5)


def pairs(kind):
    """Name of their module -> (our layer, parts of it in their order; none for the inputs)."""
    found = {}
    for layer in range(2):
        if kind != "t5":
            block = "layers" if kind == "bert" else "blocks"
            found |= {LAYERS[kind].format(layer) + theirs: (f"{block}.{layer}.{ours}", parts)
                      for theirs, (ours, parts) in NAMES[kind].items()}  # fmt: skip
            continue
        for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
            for number, attention in enumerate(attentions):
                layer_of_ours = "attention.qkv" if number == 0 else "source_attention.key_value"
                for last, part in (("k", "key"), ("v", "value")):
                    theirs = f"{stack}.block.{layer}.layer.{number}.{attention}.{last}"
                    found[theirs] = (f"{stack}.{layer}.{layer_of_ours}", (part,))
            theirs = f"{stack}.block.{layer}.layer.{len(attentions)}.DenseReluDense.wo"
            found[theirs] = (f"{stack}.{layer}.feed_forward.down", ())
    return found


def our_logits(model):
    return model(IDS, IDS[:, :5]) if hasattr(model, "decoder") else model(IDS)


def their_logits(peer, kind):
    if kind == "t5":
        return peer(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
    out = peer(input_ids=IDS)
    return out.prediction_logits if "prediction_logits" in out else out.logits


def with_vectors(kind, folder):
    """Our model and theirs with the same vectors, which modules of theirs have them, and logits of the base."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    make, auto, near = MODELS[kind]
    model = make().eval()
    base = our_logits(model).detach()
    save_hugging_face(model, folder)
    plain = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float64)
    peer = peft.get_peft_model(plain, peft.IA3Config()).double().eval()
    theirs = {name.removeprefix("base_model.model.").removesuffix(".ia3_l.default"): parameter
              for name, parameter in peer.named_parameters() if parameter.requires_grad}  # fmt: skip
    adapted = adapt(model, IA3Config(**PEFT_SETTINGS[kind]))
    with torch.no_grad():
        for number, vector in enumerate(adapted.trainable_parameters().values()):
            vector.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(number))
        for name, parameter in theirs.items():
            parameter.copy_(ours_for(adapted, *pairs(kind)[name], lambda p: p).view(parameter.shape))
    return adapted, peer, theirs, near, base


def ours_for(adapted, layer, parts, take):
    named = adapted.trainable_parameters()
    return torch.cat([take(named[f"{layer}.ia3.{part}"]) for part in parts or ("input",)])


@pytest.mark.parametrize("kind", MODELS)
def test_same_logits_gradients_count_and_merged(kind, tmp_path):
    adapted, peer, theirs, near, base = with_vectors(kind, tmp_path / "hf")
    assert theirs.keys() == pairs(kind).keys()
    assert adapted.count().trainable == sum(parameter.numel() for parameter in theirs.values())
    ours, expected = our_logits(adapted.model), their_logits(peer, kind)
    assert_near(ours, expected, near, "logits")
    assert (ours - base).abs().max() > 0.03 * base.abs().max()     # the vectors do something
    for logits in (ours, expected):
        logits.square().mean().backward()
    for name, parameter in theirs.items():
        gradient = ours_for(adapted, *pairs(kind)[name], lambda p: p.grad)
        assert_near(gradient.view(parameter.shape), parameter.grad, 10 * near, name)
    adapted.merge()
    with torch.no_grad():
        assert_near(our_logits(adapted.model), their_logits(peer.merge_and_unload(), kind), near, "merged")


@torch.no_grad()
def test_ours_unmerges_exactly_and_theirs_does_not(tmp_path):
    adapted, peer, *_ = with_vectors("gpt2", tmp_path / "hf")
    theirs = peer.base_model.model.transformer.h[0].mlp.c_proj
    before, ours = theirs.get_base_layer().weight.clone(), adapted.model.blocks[0].feed_forward.down
    weight = ours.weight.clone()
    theirs.merge()
    theirs.unmerge()
    adapted.merge().unmerge()
    assert torch.equal(ours.weight, weight) and not torch.equal(theirs.get_base_layer().weight, before)


def test_settings_are_those_of_the_package():
    constants = pytest.importorskip("peft.utils.constants")
    mapped = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    fused = {kind for kind, settings in PEFT_SETTINGS.items() if "query" in settings.get("parts", ())}
    whole = {"c_attn", "query_key_value"}                          # names of maps that make queries, keys and values
    assert fused == {kind for kind in PEFT_SETTINGS if whole & set(mapped[kind])}
    both = {kind for kind, settings in PEFT_SETTINGS.items() if "attention.output" in settings.get("inputs", ())}
    assert both == {kind for kind in PEFT_SETTINGS if "output.dense" in mapped[kind]}
