"""Adapters of ours loaded by `peft` on the exported model, and adapters of `peft` loaded by us: equal logits."""

import pytest
import torch
from helpers.parity import randomized

from minillm.adapt.adapted import adapt
from minillm.adapt.lora import LoraConfig
from minillm.export.hugging_face import load_hugging_face, save_hugging_face
from minillm.export.peft_lora import load_peft_lora, save_peft_lora
from minillm.models.bert import Bert, bert_config
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.models.t5 import T5, t5_config

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # theirs are not our concern
]
LAYERS = ("qkv", "attention.output", "up", "down")
IDS = torch.randint(3, 31, (2, 9), generator=torch.Generator().manual_seed(5))
SIZES = {"vocab_size": 31, "max_seq_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}


def decoder(family, **settings):
    return GPT(model_config(family, "nano", **SIZES | settings), torch.Generator().manual_seed(1))


MODELS = {  # our targets; their class; their targets
    "gpt2": (lambda: decoder("gpt2"), LAYERS, "AutoModelForCausalLM", ["c_attn", "c_proj", "c_fc"]),
    "gpt2 with head": (
        lambda: decoder("gpt2", tie_embeddings=False), ("qkv", "head", "token_embedding"), "AutoModelForCausalLM",
        ["c_attn", "lm_head", "wte"],
    ),
    "llama": (
        lambda: decoder("llama", n_kv_heads=2), (*LAYERS, "gate"), "AutoModelForCausalLM",
        ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "mistral": (
        lambda: decoder("mistral", n_kv_heads=2, window=5), (*LAYERS, "gate"), "AutoModelForCausalLM",
        ["q_proj", "v_proj", "down_proj"],
    ),
    "mixtral": (
        lambda: decoder("mixtral", n_kv_heads=2), (*LAYERS, "gate"), "AutoModelForCausalLM",
        ["q_proj", "k_proj", "o_proj"],
    ),
    "falcon": (
        lambda: decoder("falcon", n_kv_heads=4, bias=True), LAYERS, "AutoModelForCausalLM",
        ["query_key_value", "dense_4h_to_h"],
    ),
    "bloom": (lambda: decoder("bloom"), LAYERS, "AutoModelForCausalLM", ["query_key_value", "dense_h_to_4h"]),
    "bert": (
        lambda: Bert(bert_config("bert", **SIZES)), LAYERS, "AutoModelForPreTraining",
        ["query", "value", "attention.output.dense"],
    ),
    "roberta": (
        lambda: Bert(bert_config("roberta", **SIZES)), LAYERS, "AutoModelForMaskedLM", ["query", "value"],
    ),
    "albert": (
        lambda: Bert(bert_config("albert", d_embedding=8, **SIZES)), LAYERS, "AutoModelForPreTraining",
        ["query", "value", "ffn"],
    ),
    "t5": (
        lambda: T5(t5_config("1.1", **SIZES)), (*LAYERS, "query", "key_value"), "AutoModelForSeq2SeqLM",
        ["q", "v", "wo"],
    ),
}  # fmt: skip
# in float64; theirs computes RMSNorm's scale and rotary angles, ALiBi's slopes and routers in float32 nevertheless
EXACT = {family: 4e-6 for family in ("llama", "mistral", "falcon", "bloom")} | {"mixtral": 1e-5, "t5": 1e-5}
DOUBLE_PRECISION = 1e-12
SINGLE_PRECISION = 4e-6  # of the largest logit; up to 1.1e-6 was seen
SINGLE = {"t5": 1e-5, "mixtral": 1e-5}  # theirs softmax too; the two bases differ by about as much without any adapter
NOISE = {"t5": 0.1}  # its scores are not divided by √d_head: at 0.2 a rounding grows six times as much as elsewhere
DTYPES = (torch.float64, torch.float32)


def ours(model):
    with torch.no_grad():
        return model(IDS, IDS[:, :4]) if isinstance(model, T5) else model(IDS)


def theirs(model, family):
    with torch.no_grad():
        out = model(IDS, decoder_input_ids=IDS[:, :4]) if family == "t5" else model(IDS)
    return out.prediction_logits if family in ("bert", "albert") else out.logits


def near(found, wanted, family, dtype):
    if dtype == torch.float64:
        tolerance = EXACT.get(family, DOUBLE_PRECISION)
    else:
        tolerance = SINGLE.get(family, SINGLE_PRECISION)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=tolerance * max(1.0, float(wanted.abs().max())))


@torch.no_grad()
def disturb(parameters, std=0.1):
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter += torch.empty_like(parameter).normal_(0.0, std, generator=generator)


def opened(folder, family, dtype):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, MODELS[family][2])
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}  # their grouped experts have no float64
    return kind.from_pretrained(folder, dtype=dtype, **plain).eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [("query", "value"), ()], ids=str)
@pytest.mark.parametrize("family", MODELS)
def test_ours_opens_in_peft(family, parts, dtype, tmp_path):
    peft = pytest.importorskip("peft")
    make, targets, *_ = MODELS[family]
    model = randomized(make(), 3, NOISE.get(family, 0.2)).to(dtype).eval()
    base = ours(model)
    save_hugging_face(model, tmp_path / "base")
    config = LoraConfig(rank=3, alpha=5.0, targets=targets, parts=parts, rank_stabilised=not parts)
    adapted = adapt(model, config, generator=torch.Generator().manual_seed(2))
    disturb(adapted.trainable_parameters().values())
    save_peft_lora(adapted, tmp_path / "delta")
    hosted = peft.PeftModel.from_pretrained(opened(tmp_path / "base", family, dtype), tmp_path / "delta").eval()
    assert (ours(model) - base).abs().max() > 1e-3
    near(theirs(hosted, family), ours(model), family, dtype)
    with hosted.disable_adapter():
        near(theirs(hosted, family), base, family, dtype)
    merged = hosted.merge_and_unload()
    near(theirs(merged, family), ours(adapted.merge().model), family, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_theirs_opens_here(family, rslora, dtype, tmp_path):
    peft = pytest.importorskip("peft")
    make, _, _, targets = MODELS[family]
    save_hugging_face(randomized(make(), 3, NOISE.get(family, 0.2)).to(dtype), tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=targets, use_rslora=rslora)
    hosted = peft.get_peft_model(opened(tmp_path / "base", family, dtype), config).eval()
    disturb(p for p in hosted.parameters() if p.requires_grad)
    hosted.save_pretrained(tmp_path / "delta")
    model = load_hugging_face(tmp_path / "base", dtype=dtype)
    base = ours(model)
    adapted = load_peft_lora(model, tmp_path / "delta")
    near(ours(model), theirs(hosted, family), family, dtype)
    assert adapted.count().trainable == sum(p.numel() for p in hosted.parameters() if p.requires_grad)
    with adapted.disable():
        assert torch.equal(ours(model), base)


def test_our_file_has_their_names_sizes_and_count(tmp_path):
    """For the same layers of a LLaMA, our file and theirs hold the same names with the same sizes."""
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    model = randomized(decoder("llama", n_kv_heads=2), 3)
    save_hugging_face(model, tmp_path / "base")
    save_peft_lora(adapt(model, LoraConfig(rank=4, targets=("qkv", "down"))), tmp_path / "ours")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(opened(tmp_path / "base", "llama", torch.float32), config).save_pretrained(tmp_path / "theirs")
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / side / "adapter_model.safetensors").items()}
        for side in ("ours", "theirs")
    ]
    assert shapes[0] == shapes[1]


def test_whole_modules_travel_both_ways(tmp_path):
    peft = pytest.importorskip("peft")
    model = randomized(decoder("gpt2", tie_embeddings=False), 3).double().eval()
    save_hugging_face(model, tmp_path / "base")
    adapted = adapt(model, LoraConfig(rank=3, heads=("head",)), generator=torch.Generator().manual_seed(2))
    disturb(adapted.trainable_parameters().values())
    save_peft_lora(adapted, tmp_path / "delta")
    hosted = peft.PeftModel.from_pretrained(opened(tmp_path / "base", "gpt2", torch.float64), tmp_path / "delta").eval()
    near(theirs(hosted, "gpt2"), ours(model), "gpt2", torch.float64)
    hosted.save_pretrained(tmp_path / "again")
    other = load_hugging_face(tmp_path / "base", dtype=torch.float64)
    load_peft_lora(other, tmp_path / "again")
    near(ours(other), ours(model), "gpt2", torch.float64)
