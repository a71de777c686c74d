"""Our adapters and those of the `adapters` package on one model; writes tests/adapt/frozen_adapters.json, its logits.

The package needs an older `transformers` than our other oracles. To run it: a fresh environment with torch,
`pip install adapters` (1.3.0 takes transformers 4.57), and there python tests/helpers/freeze_adapters.py
"""

import json
import tempfile
from pathlib import Path

import torch

from minillm.adapt.adapted import adapt
from minillm.adapt.adapter import AdapterConfig
from minillm.models.bert import Bert, bert_config
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.t5 import T5, t5_config

FILE = Path(__file__).parents[1] / "adapt" / "frozen_adapters.json"
PLACEMENTS = ("houlsby", "pfeiffer")
SIZES = {"vocab_size": 23, "max_seq_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 16}
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
# make, their class, how near: theirs computes RMSNorm's scale and rotary angles in float32
MODELS = {
    "gpt2": (lambda: GPT(GPTConfig(**SIZES, bias=True)), "AutoModelForCausalLM", 1e-10),
    "llama": (lambda: GPT(GPTConfig(**SIZES, **LLAMA)), "AutoModelForCausalLM", 2e-6),
    "bert": (lambda: Bert(bert_config(**SIZES)), "AutoModelForPreTraining", 1e-10),
    "t5": (lambda: T5(t5_config(**SIZES)), "AutoModelForSeq2SeqLM", 3e-6),
}
IDS = torch.arange(27).view(3, 9) * 7 % 23


@torch.no_grad()
def fill(parameters, scale):
    """Numbers between -scale and scale that any machine can compute again; norms' scales lie around 1."""
    for number, (name, parameter) in enumerate(parameters):
        index = torch.arange(parameter.numel(), dtype=torch.int64) + 1000 * number
        values = ((index + 1) * 2654435761 % 2**20 - 2**19).double() / 2**19 * scale
        is_scale = "norm" in name and name.endswith("weight")
        parameter.copy_(values.view(parameter.shape) + (1.0 if is_scale else 0.0))


def ours(kind, placement):
    """Our model with adapters of fixed numbers, and the logits of the base."""
    model = MODELS[kind][0]().double().eval()
    fill(model.named_parameters(), 0.3)
    base = logits_of(model).detach()
    adapted = adapt(model, AdapterConfig(bottleneck=4, placement=placement, activation="relu"))
    fill(adapted.trainable_parameters().items(), 0.5)
    return adapted, base


def logits_of(model):
    return model(IDS, IDS[:, :5]) if hasattr(model, "decoder") else model(IDS)


def theirs(adapted, base_folder, kind, placement):
    """The package's adapters with the same numbers on the same base, from its files; and their parameters in order.

    Both go through layers, parts and matrices in the same order.
    """
    import adapters
    import transformers

    peer = getattr(transformers, MODELS[kind][1]).from_pretrained(base_folder, dtype=torch.float64)
    adapters.init(peer)
    config = {"houlsby": adapters.DoubleSeqBnConfig, "pfeiffer": adapters.SeqBnConfig}[placement]
    settings = {"reduction_factor": SIZES["d_model"] / 4, "non_linearity": "relu"}
    # ours stand behind a decoder's attention to its source too
    peer.add_adapter("a", config=config(**settings, cross_adapter=kind == "t5" and placement == "houlsby"))
    peer.train_adapter("a")
    parameters = [parameter for name, parameter in peer.named_parameters() if ".adapters.a." in name]
    for own, parameter in zip(adapted.trainable_parameters().values(), parameters, strict=True):
        assert own.shape == parameter.shape
        parameter.data = own.detach().clone()
    return peer.double().eval(), parameters


def their_logits(peer):
    if peer.config.is_encoder_decoder:
        return peer(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
    out = peer(input_ids=IDS)
    return out.prediction_logits if "prediction_logits" in out else out.logits


def both(kind, placement):
    """Our adapted model, logits of its base, their peer and its trained parameters."""
    from minillm.export.hugging_face import save_hugging_face

    adapted, base = ours(kind, placement)
    with tempfile.TemporaryDirectory() as folder:
        plain = MODELS[kind][0]().double()
        plain.load_state_dict(adapted.base)
        save_hugging_face(plain, Path(folder) / "hf")
        peer, parameters = theirs(adapted, Path(folder) / "hf", kind, placement)
    return adapted, base, peer, parameters


if __name__ == "__main__":
    frozen = {}
    for kind in MODELS:
        for placement in PLACEMENTS:
            _, _, peer, parameters = both(kind, placement)
            last = their_logits(peer)[:, -1].detach()              # of each row's last position
            frozen[f"{kind} {placement}"] = {
                "parameters": sum(parameter.numel() for parameter in parameters),
                "logits": [[float(f"{value:.13g}") for value in row] for row in last.tolist()],
            }
    FILE.write_text(json.dumps(frozen, indent=1) + "\n", encoding="utf-8")
