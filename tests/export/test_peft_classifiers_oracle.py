"""Classifiers with adapters of ours in `peft` on the exported body, and theirs here: equal answers."""

from dataclasses import replace

import pytest
import torch
from helpers.classifiers import CLASSES, IDS, N_CLASSES, answers, classifier

from minillm.adapt.adapted import adapt
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.lora import LoraConfig
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.export.hugging_face import save_hugging_face
from minillm.export.peft import load_peft, save_peft

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # theirs are not our concern
]
# theirs computes RMSNorm's scale and rotary angles, and ALiBi's slopes, in float32 in any case
NEAR = {"mixtral": 1e-5, "llama": 1e-5, "mistral": 1e-5, "bloom": 1e-5, "falcon": 1e-5}
METHODS = {
    "lora": LoraConfig(rank=2, heads=("head",)),
    "ia3": IA3Config(heads=("head",)),
    "prefix": PrefixConfig(n_virtual=3, heads=("head",)),
    "prompt": PromptConfig(n_virtual=3, heads=("head",)),
    "p-tuning": PTuningConfig(n_virtual=3, d_hidden=7, heads=("head",)),
}
THEIRS = {
    "lora": ("LoraConfig", {"r": 2}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
}
PROMPTS = ("prompt", "p-tuning")
NOT_THEIRS = {("mistral", "prefix"), ("albert text", "prefix")}  # a window; rows for each pass of the shared layer
CASES = [  # an encoder's classifier reads the prompt itself in theirs
    (kind, method)
    for kind in CLASSES
    for method in METHODS
    if not (" " in kind and method in PROMPTS) and (kind, method) not in NOT_THEIRS
]


@torch.no_grad()
def disturb(parameters, std=0.3):
    draw = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter += std * torch.randn(parameter.shape, generator=draw).to(parameter)


def opened(folder, kind):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"AutoModelFor{CLASSES[kind][1]}")
    labels = {} if kind == "roberta span" else {"num_labels": N_CLASSES}
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}  # their grouped experts have no float64
    model = made.from_pretrained(folder, dtype=torch.float64, **plain, **labels).eval()
    model.config.pad_token_id = 0                                  # which no text here has
    return model


@torch.no_grad()
def theirs(model, kind, ids=IDS):
    out = model(ids)
    return torch.stack((out.start_logits, out.end_logits)) if kind == "roberta span" else out.logits


def near(found, wanted, kind):
    tolerance = NEAR.get(kind, 1e-12)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * max(1.0, float(wanted.abs().max())))


@torch.no_grad()
def theirs_behind_prefix(peer, kind):
    """As their forward would, which with this transformers asks for an argument that has another name now."""
    model, rows = peer.base_model, peer.get_prompt(batch_size=len(IDS))
    mask = torch.ones(len(IDS), 3 + IDS.shape[1], dtype=torch.long)
    out = getattr(model, model.base_model_prefix)(IDS, attention_mask=mask, past_key_values=rows)
    last = out.last_hidden_state
    if " " not in kind:
        return model.score(last[:, -1])
    if kind == "bert text":
        return model.classifier(out.pooler_output)
    return model.qa_outputs(last).permute(2, 0, 1) if kind == "roberta span" else model.classifier(last)


def in_float64(call, *args):
    """peft makes its tables in the default number format."""
    torch.set_default_dtype(torch.float64)
    try:
        return call(*args)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind, method", CASES)
def test_ours_in_theirs(kind, method, tmp_path):
    peft = pytest.importorskip("peft")
    model = classifier(kind)
    save_hugging_face(model.body, tmp_path / "base")
    config = METHODS[method]
    if (kind, method) == ("mixtral", "ia3"):
        config = replace(config, inputs=("attention.output",))  # those of experts have no module of their own there
    adapted = adapt(model, config, generator=torch.Generator().manual_seed(0))
    disturb(adapted.trainable_parameters().values())
    folder = save_peft(adapted, tmp_path / "peft")
    peer = in_float64(peft.PeftModel.from_pretrained, opened(tmp_path / "base", kind), folder).eval()
    found = theirs_behind_prefix(peer, kind) if method == "prefix" else theirs(peer, kind)
    near(found, answers(model), kind)


@pytest.mark.parametrize("targets", ["down", ("gate", "up", "down"), ("down", "qkv")], ids=str)
def test_experts_in_theirs(targets, tmp_path):
    """transformers joins the experts' matrices into two tensors, and peft the adapters of our file into theirs."""
    peft = pytest.importorskip("peft")
    model = classifier("mixtral")
    save_hugging_face(model.body, tmp_path / "base")
    adapted = adapt(model, LoraConfig(rank=2, targets=targets), generator=torch.Generator().manual_seed(0))
    disturb(adapted.trainable_parameters().values())
    folder = save_peft(adapted, tmp_path / "peft")
    peer = in_float64(peft.PeftModel.from_pretrained, opened(tmp_path / "base", "mixtral"), folder).eval()
    near(theirs(peer, "mixtral"), answers(model), "mixtral")


@pytest.mark.parametrize("kind, method", [(kind, method) for kind, method in CASES if method in THEIRS])
def test_theirs_here(kind, method, tmp_path):
    peft = pytest.importorskip("peft")
    save_hugging_face(classifier(kind).body, tmp_path / "base")
    config, settings = THEIRS[method]
    if kind == "mixtral" and method == "lora":
        settings = settings | {"target_modules": ["q_proj", "v_proj"]}
    if kind == "albert text" and method == "lora":
        settings = settings | {"target_modules": ["query", "value"]}  # peft knows no usual ones
    task = {"TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS"}.get(CLASSES[kind][1], "SEQ_CLS")
    peer = opened(tmp_path / "base", kind)
    peer = in_float64(peft.get_peft_model, peer, getattr(peft, config)(task_type=task, **settings)).eval()
    disturb(parameter for parameter in peer.parameters() if parameter.requires_grad)
    peer.save_pretrained(tmp_path / "peft")
    model = classifier(kind)
    load_peft(model, tmp_path / "peft")
    wanted = theirs_behind_prefix(peer, kind) if method == "prefix" else theirs(peer, kind)
    near(answers(model), wanted, kind)
