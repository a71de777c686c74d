"""(IA)^3 files between this library and `peft`: equal logits on the exported model, in both directions."""

import pytest
import torch
from helpers.ia3_models import IDS, MODELS, disturbed, run
from helpers.parity import assert_near

from minillm.adapt.ia3 import PEFT_SETTINGS, IA3Config
from minillm.export.hugging_face import save_hugging_face
from minillm.export.peft_ia3 import load_peft_ia3, save_peft_ia3

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # theirs are not our concern
AUTO = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForPreTraining"}
NEAR = {"gpt2": 1e-10, "bert": 1e-10, "bloom": 4e-6, "llama": 4e-6, "t5": 1e-5}  # float32 within theirs


def exported(kind, folder):
    transformers = pytest.importorskip("transformers")
    save_hugging_face(MODELS[kind](), folder)
    auto = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM"))
    return auto.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")


def their_logits(peer, kind):
    if kind == "t5":
        return peer(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
    out = peer(input_ids=IDS)
    return out.prediction_logits if "prediction_logits" in out else out.logits


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("settings", ["paper", "peft"])
@torch.no_grad()
def test_ours_opens_there(kind, settings, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = disturbed(kind, IA3Config(**(PEFT_SETTINGS[kind] if settings == "peft" else {})))
    folder = save_peft_ia3(adapted, tmp_path / "peft")
    peer = peft.PeftModel.from_pretrained(exported(kind, tmp_path / "hf"), folder).double().eval()
    assert_near(run(adapted.model), their_logits(peer, kind), NEAR[kind])
    base = run(MODELS[kind]())
    assert (run(adapted.model) - base).abs().max() > 0.02 * base.abs().max()


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_theirs_opens_here(kind, tmp_path):
    peft = pytest.importorskip("peft")
    peer = peft.get_peft_model(exported(kind, tmp_path / "hf"), peft.IA3Config()).double().eval()
    for number, parameter in enumerate(p for name, p in peer.named_parameters() if "ia3_l" in name):
        parameter.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(number))
    peer.save_pretrained(tmp_path / "peft")
    adapted = load_peft_ia3(MODELS[kind](), tmp_path / "peft")
    assert_near(run(adapted.model), their_logits(peer, kind), NEAR[kind])
    n_theirs = sum(p.numel() for name, p in peer.named_parameters() if "ia3_l" in name)
    assert adapted.count().trainable == n_theirs
    again = save_peft_ia3(adapted, tmp_path / "again")
    assert load_peft_ia3(MODELS[kind](), again).config == adapted.config
