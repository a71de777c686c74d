"""Prefixes and prompts of ours read by `peft` on the exported model, and theirs by us: equal logits."""

import pytest
import torch
from helpers.parity import randomized

from minillm.adapt.adapted import adapt
from minillm.adapt.lora import LoraConfig
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.errors import CheckpointError
from minillm.export.hugging_face import save_hugging_face
from minillm.export.peft_prompts import load_peft_prompt, save_peft_prompt
from minillm.models.bert import Bert, bert_config
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.models.t5 import T5, t5_config

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # theirs are not our concern
]
P, N_LAYERS = 3, 2
SIZES = {"vocab_size": 31, "max_seq_len": 24, "n_layers": N_LAYERS, "n_heads": 4, "d_model": 32}
IDS = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(5))
RIGHT = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
LEFT = RIGHT.flip(1)


def decoder(family, **settings):
    return GPT(model_config(family, "nano", **SIZES | settings), torch.Generator().manual_seed(1))


MODELS = {
    "gpt2": (lambda: decoder("gpt2"), "AutoModelForCausalLM", "CAUSAL_LM"),
    "llama": (lambda: decoder("llama", n_kv_heads=2), "AutoModelForCausalLM", "CAUSAL_LM"),
    "bloom": (lambda: decoder("bloom"), "AutoModelForCausalLM", "CAUSAL_LM"),
    "bert": (lambda: Bert(bert_config("bert", **SIZES)), "AutoModelForPreTraining", "FEATURE_EXTRACTION"),
    "t5": (lambda: T5(t5_config("1.1", **SIZES)), "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
}
# theirs computes RMSNorm's scale and rotary angles, and ALiBi's slopes, in float32
EXACT = {"gpt2": 1e-12, "llama": 1e-6, "bloom": 1e-6, "bert": 1e-12, "t5": 1e-6}
NOISE = {"t5": 0.1}  # its scores are not divided by √d_head: at 0.2 a rounding grows six times as much as elsewhere
CONFIGS = {
    "prefix": PrefixConfig(n_virtual=P),
    "prefix network": PrefixConfig(n_virtual=P, reparametrised=True, d_hidden=7),
    "prompt": PromptConfig(n_virtual=P),
    "ptuning mlp": PTuningConfig(n_virtual=P, d_hidden=7),
    "ptuning lstm": PTuningConfig(n_virtual=P, encoder="lstm", d_hidden=7),
}
THEIRS = {
    "prefix": ("PrefixTuningConfig", {}),
    "prefix network": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 7}),
    "prompt": ("PromptTuningConfig", {}),
    "ptuning mlp": ("PromptEncoderConfig", {"encoder_hidden_size": 7}),
    "ptuning lstm": (
        "PromptEncoderConfig",
        {"encoder_hidden_size": 7, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2},
    ),
}
CASES = [(f, m) for f in MODELS for m in CONFIGS if not (f == "t5" and "prefix" in m)]


def small(family, dtype):
    return randomized(MODELS[family][0](), 2, NOISE.get(family, 0.2)).to(dtype).eval()


def opened(folder, family, dtype):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, MODELS[family][1])
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def with_adapter(peft, peer, folder, dtype):
    """peft makes its tables in the default number format, whatever the file's."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return peft.PeftModel.from_pretrained(peer, folder).eval()
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def ours(model, mask=None):
    if isinstance(model, T5):
        return model(IDS, IDS[:, :4], mask)
    return model(IDS, mask=mask)


@torch.no_grad()
def theirs(model, family, mask=None):
    mask = {} if mask is None else {"attention_mask": mask.long()}
    out = model(IDS, decoder_input_ids=IDS[:, :4], **mask) if family == "t5" else model(IDS, **mask)
    logits = out.prediction_logits if family == "bert" else out.logits
    return logits[:, -(4 if family == "t5" else 9) :]


def near(found, wanted, family, dtype):
    tolerance = EXACT[family] if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found, wanted, rtol=10 * tolerance, atol=10 * tolerance * float(wanted.abs().max()))


@torch.no_grad()
def disturb(parameters, std=0.5):
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter += torch.empty_like(parameter).normal_(0.0, std, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family, method", CASES)
def test_ours_in_theirs(family, method, dtype, tmp_path):
    peft = pytest.importorskip("peft")
    model = small(family, dtype)
    save_hugging_face(model, tmp_path / "base")
    before = ours(model)
    adapted = adapt(model, CONFIGS[method], generator=torch.Generator().manual_seed(4))
    disturb(adapted.trainable_parameters().values())
    assert (ours(model) - before).abs().max() > 1e-2
    save_peft_prompt(adapted, tmp_path / "adapter")
    peer = with_adapter(peft, opened(tmp_path / "base", family, dtype), tmp_path / "adapter", dtype)
    near(ours(model), theirs(peer, family), family, dtype)
    if family != "bloom":
        real = RIGHT if family != "t5" else torch.ones(2, 4, dtype=torch.bool)
        near(ours(model, RIGHT)[real], theirs(peer, family, RIGHT)[real], family, dtype)


@pytest.mark.parametrize("family, method", CASES)
def test_theirs_in_ours(family, method, tmp_path):
    peft = pytest.importorskip("peft")
    model, dtype = small(family, torch.float32), torch.float32
    save_hugging_face(model, tmp_path / "base")
    kind, settings = THEIRS[method]
    config = getattr(peft, kind)(task_type=MODELS[family][2], num_virtual_tokens=P, **settings)
    peer = peft.get_peft_model(opened(tmp_path / "base", family, dtype), config).eval()
    disturb(p for p in peer.parameters() if p.requires_grad)
    peer.save_pretrained(tmp_path / "adapter")
    adapted = load_peft_prompt(model, tmp_path / "adapter")
    near(ours(model), theirs(peer, family), family, dtype)
    fresh = adapt(small(family, dtype), adapted.config)
    n_theirs = peer.get_nb_trainable_parameters()[0]
    if family == "t5":
        n_theirs -= P * 32                                         # rows that nothing reads
    assert fresh.count().trainable == n_theirs


def test_their_prefix_of_a_t5_is_in_the_decoder_and_shares_rows(tmp_path):
    """Chunks of 4 cut from the doubled 2 L rows: an even number of layers uses half of them twice, an odd one all."""
    peft = pytest.importorskip("peft")
    for n_layers in (2, 3):
        model = randomized(T5(t5_config("1.1", **SIZES | {"n_layers": n_layers})), 2).double()
        folder = save_hugging_face(model, tmp_path / f"base{n_layers}")
        config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=P)
        peer = peft.get_peft_model(opened(folder, "t5", torch.float64), config).double().eval()
        disturb(p for p in peer.parameters() if p.requires_grad)
        rows = peer.get_prompt_embedding_to_save("default").unflatten(1, (2 * n_layers, -1)).repeat(1, 2, 1)
        adapted = adapt(model, PrefixConfig(n_virtual=P, places=("decoder",)))
        assert adapted.count().trainable == peer.get_nb_trainable_parameters()[0]
        layers = [rows[:, 4 * layer : 4 * layer + 2] for layer in range(n_layers)]
        adapted.delta.load({"prefix.table": torch.cat(layers, dim=1).flatten(1)})
        near(ours(model), theirs(peer, "t5"), "t5", torch.float64)
        assert torch.equal(layers[0], layers[1]) == (n_layers == 2)
        with pytest.raises(CheckpointError, match="peft's prefix for a T5 is another one"):
            save_peft_prompt(adapted, tmp_path / "adapter")


def test_padding_on_the_left(tmp_path):
    peft = pytest.importorskip("peft")
    model = small("llama", torch.float64)
    folder = save_hugging_face(model, tmp_path / "base")
    adapted = adapt(model, CONFIGS["prefix"])
    disturb(adapted.trainable_parameters().values())
    save_peft_prompt(adapted, tmp_path / "adapter")
    peer = with_adapter(peft, opened(folder, "llama", torch.float64), tmp_path / "adapter", torch.float64)
    positions = (LEFT.long().cumsum(1) - 1).clamp(min=0)
    prompt = peer.get_prompt(2)
    mask = torch.cat((torch.ones(2, P), LEFT), dim=1).long()
    with torch.no_grad():                                          # peft drops position_ids: the model itself is asked
        wanted = peer.base_model(IDS, attention_mask=mask, position_ids=positions + P, past_key_values=prompt).logits
        found = model(IDS, None, LEFT, positions)
    near(found[LEFT], wanted[LEFT], "llama", torch.float64)


def test_other_methods_are_refused(tmp_path):
    adapted = adapt(small("gpt2", torch.float32), LoraConfig(rank=2, targets=("qkv",)))
    with pytest.raises(CheckpointError, match="lora"):
        save_peft_prompt(adapted, tmp_path / "adapter")
