"""Our adapters beside those of the `adapters` package, on models that were exported to `transformers`.

The package fits an older `transformers` than this library's other oracles, so it has an environment of its own:
pip install adapters (which takes transformers 4.57).
"""

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from helpers.parity import assert_near

from minillm.adapt.adapted import adapt
from minillm.adapt.adapter import AdapterConfig
from minillm.export.hugging_face import save_hugging_face

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not our concern
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
# make, their class, how near: theirs computes RMSNorm's scale and rotary angles in float32
MODELS = {
    "gpt2": (lambda: small_gpt(bias=True), "AutoModelForCausalLM", 1e-10),
    "llama": (lambda: small_gpt(**LLAMA), "AutoModelForCausalLM", 1e-6),
    "bert": (small_bert, "AutoModelForPreTraining", 1e-10),
    "t5": (small_t5, "AutoModelForSeq2SeqLM", 1e-6),
}
IDS = ids_of((3, 9), 5)


def our_logits(model):
    return model(IDS, IDS[:, :5]) if hasattr(model, "decoder") else model(IDS)


def their_logits(peer):
    if peer.config.is_encoder_decoder:
        return peer(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
    out = peer(input_ids=IDS)
    return out.prediction_logits if "prediction_logits" in out else out.logits


@torch.no_grad()
def with_adapters(kind, placement, folder):
    """Our model and theirs with the same adapters, and how near they should be; and the logits of the base."""
    adapters, transformers = pytest.importorskip("adapters"), pytest.importorskip("transformers")
    make, auto, near = MODELS[kind]
    model = make().eval()
    base = our_logits(model)
    peer = getattr(transformers, auto).from_pretrained(save_hugging_face(model, folder), dtype=torch.float64)
    adapters.init(peer)
    config = {"houlsby": adapters.DoubleSeqBnConfig, "pfeiffer": adapters.SeqBnConfig}[placement]
    cross = kind == "t5" and placement == "houlsby"                # ours stand behind the attention to the source too
    settings = {"reduction_factor": model.config.d_model / 4, "non_linearity": "relu", "cross_adapter": cross}
    peer.add_adapter("a", config=config(**settings))
    peer.train_adapter("a")
    adapted = adapt(model, AdapterConfig(bottleneck=4, placement=placement, activation="relu"))
    theirs = [parameter for name, parameter in peer.named_parameters() if ".adapters.a." in name]
    for ours, parameter in zip(adapted.trainable_parameters().values(), theirs, strict=True):
        ours.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(ours.numel()))
        parameter.data = ours.detach().clone()                     # both go through layers and parts in the same order
    return adapted, peer.double().eval(), theirs, near, base


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_same_logits_gradients_and_count(kind, placement, tmp_path):
    adapted, peer, theirs, near, base = with_adapters(kind, placement, tmp_path / "hf")
    ours, expected = our_logits(adapted.model), their_logits(peer)
    assert_near(ours, expected, near, "logits")
    assert (ours - base).abs().max() > 0.05 * base.abs().max()     # the adapters do something
    for logits in (ours, expected):
        logits.square().mean().backward()
    for (name, parameter), other in zip(adapted.trainable_parameters().items(), theirs, strict=True):
        assert_near(parameter.grad, other.grad, 10 * near, name)
    assert adapted.count().trainable == sum(parameter.numel() for parameter in theirs)
