"""Checkpoints in the Hugging Face layout without that library: there and back, refusals, nothing half-written."""

import dataclasses
import json

import pytest
import torch
from helpers.parity import randomized
from safetensors.torch import load_file, save_file

from minillm.errors import CheckpointError, ConfigError, TokenizerError
from minillm.export import folder as layout
from minillm.export import hugging_face
from minillm.export.hugging_face import load_hugging_face, load_weights, save_hugging_face
from minillm.export.tokenizer import read_tokenizer
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.chars import CharTokenizer

SETTINGS = {
    "gpt2": [{}, {"tie_embeddings": False, "d_ff": 24}],
    "bloom": [{}, {"tie_embeddings": False}],
    "llama": [
        {"n_kv_heads": 1, "rotary_base": 300.0},
        {"bias": True, "tie_embeddings": True},
        {"rotary_scaling": "linear", "rotary_factor": 2.0},
        {"rotary_scaling": "llama3", "rotary_factor": 4.0, "rotary_trained_len": 5},
    ],
    "mistral": [{"window": 3}],
    "mixtral": [{"n_experts": 3}],
    "falcon": [{}, {"n_kv_heads": 2, "bias": True, "tie_embeddings": False, "d_ff": 24}],
}
CASES = [(family, settings) for family, choices in SETTINGS.items() for settings in choices]


def small(family="gpt2", seed=0, **settings):
    config = model_config(family, "nano", 13, 9, n_layers=1, d_model=16, **settings)
    return randomized(GPT(config, torch.Generator().manual_seed(seed)), seed)


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def saved(tmp_path):
    return save_hugging_face(small(), tmp_path / "saved")


@pytest.mark.parametrize("family, settings", CASES)
@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_there_and_back_is_the_same_model(family, settings, shard_bytes, tmp_path):
    model = small(family, **settings)
    back = load_hugging_face(save_hugging_face(model, tmp_path / "saved", shard_bytes=shard_bytes))
    assert back.config == model.config and not back.training
    assert {name: value.tolist() for name, value in back.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) == 1) == (shard_bytes > 3000)


def test_number_formats_are_kept_on_disk_and_chosen_when_loading(tmp_path):
    save_hugging_face(small().bfloat16(), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(tmp_path / "saved" / "model.safetensors")["transformer.wte.weight"].dtype == torch.bfloat16
    assert load_hugging_face(tmp_path / "saved", dtype=torch.float64).token_embedding.weight.dtype == torch.float64


def test_modern_has_no_class_there(tmp_path):
    with pytest.raises(CheckpointError, match="no class.*nearest is llama.*qk_norm is True.*token_shift is True"):
        save_hugging_face(small("modern"), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"norm": "rms"}, {"bias": False}, {"n_kv_heads": 1}, {"logit_cap": 9.0}])
def test_a_setting_that_no_class_has_is_named(settings, tmp_path):
    with pytest.raises(CheckpointError, match=f"{next(iter(settings))} is"):
        save_hugging_face(small("gpt2", **settings), tmp_path / "saved")


def test_another_kind_of_model_is_refused(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.config = "none"
    with pytest.raises(CheckpointError, match="no class of transformers is known for a str"):
        save_hugging_face(model, tmp_path / "saved")


def test_missing_and_unexpected_names_are_listed_and_nothing_changes(saved):
    def rename(tensors):
        tensors["transformer.h.0.attn.extra"] = tensors.pop("transformer.h.0.ln_1.bias")

    change_tensors(saved, rename)
    model = small(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = r"missing: transformer\.h\.0\.ln_1\.bias; unexpected: transformer\.h\.0\.attn\.extra"
    with pytest.raises(CheckpointError, match=parts):
        load_weights(model, saved)
    with pytest.raises(CheckpointError, match=parts):
        load_hugging_face(saved)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sizes_that_do_not_fit_are_expected_and_found(saved):
    model = small(seed=1, d_ff=20)
    before = model.blocks[0].feed_forward.up.weight.clone()
    with pytest.raises(CheckpointError, match=r"c_fc\.weight expected \(16, 20\), found \(16, 64\)"):
        load_weights(model, saved)
    assert torch.equal(model.blocks[0].feed_forward.up.weight, before)


def test_names_without_the_prefix_and_old_buffers_are_read(saved):
    model = load_hugging_face(saved)

    def old_names(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 9, 9)

    change_tensors(saved, old_names)
    back = load_hugging_face(saved)
    assert torch.equal(back.blocks[0].attention.qkv.weight, model.blocks[0].attention.qkv.weight)


def test_a_tied_head_may_be_in_the_file_but_not_be_another(saved):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    change_tensors(saved, add_head)
    assert load_hugging_face(saved).head is None
    change_tensors(saved, lambda tensors: tensors["lm_head.weight"].add_(1.0))
    with pytest.raises(CheckpointError, match="lm_head.weight is transformer.wte.weight, but the two differ"):
        load_hugging_face(saved)


@pytest.mark.parametrize(
    "family, keys, message",
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"n_embd": None}, "lacks 'n_embd'"),
        ("gpt2", {"model_type": "gptj"}, "holds a 'gptj' model; known are gpt2, "),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary angles .*'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 2.0}}, "rotary angles .*'llama3'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ("llama", {"head_dim": 5}, "head_dim = 5"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok = 1"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("falcon", {"alibi": True}, "alibi = True"),
        ("falcon", {"new_decoder_architecture": True}, "new_decoder_architecture = True"),
        ("falcon", {"parallel_attn": False}, "parallel_attn = False"),
        ("falcon", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "scaled angles .*'linear'"),
    ],
)
def test_settings_that_we_do_not_have_are_named(family, keys, message, tmp_path):
    saved = save_hugging_face(small(family), tmp_path / "saved")
    change_config(saved, **keys)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(saved)


def test_sizes_that_contradict_each_other_are_named(saved):
    change_config(saved, n_head=3)
    with pytest.raises(ConfigError, match="d_model 16 is not a multiple of n_heads 3"):
        load_hugging_face(saved)


def test_a_model_of_another_family_takes_no_weights(saved):
    with pytest.raises(CheckpointError, match="holds a gpt2, which the model is not: .*norm is 'rms'"):
        load_weights(small("llama"), saved)
    with pytest.raises(CheckpointError, match="holds a gpt2, the model is a"):
        model = torch.nn.Linear(2, 2)
        model.config = None
        load_weights(model, saved)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", None, "cannot be read"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "holds a list"),
        ("model.safetensors", None, "has no weights"),
        ("model.safetensors", "PK..", "a zip archive"),
        ("model.safetensors", "", "empty"),
    ],
)
def test_damaged_files_are_named(saved, name, content, message):
    (saved / name).unlink()
    if content is not None:
        (saved / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(saved)


def test_pickles_are_not_opened(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle, which could run code"):
        load_hugging_face(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda files: {"weight_map": "all"}, "no weight_map"),
        (lambda files: {"weight_map": {name: f"../{file}" for name, file in files.items()}}, "in the folder itself"),
        (lambda files: {"weight_map": files | {"more": max(files.values())}}, "disagree about more"),
        (lambda files: {"weight_map": files | {"more": "lost.safetensors"}}, "lost.safetensors"),
    ],
)
def test_an_index_that_is_wrong_is_refused(change, message, tmp_path):
    saved = save_hugging_face(small(), tmp_path / "saved", shard_bytes=3000)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps(change(json.loads(index.read_text())["weight_map"])))
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(saved)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(folder, tensors, shard_bytes):
        layout.write_file(folder / "model.safetensors", [b"half"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hugging_face, "write_tensors", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_hugging_face(small(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_overwritten(saved):
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="is there already"):
        save_hugging_face(small(seed=1), saved)
    assert (saved / "model.safetensors").read_bytes() == before


TEXT = "the cat and the hat sat on the mat; the café was closed"
TOKENIZERS = [BPETokenizer.train(TEXT * 3, 270), ByteTokenizer(), CharTokenizer.train(TEXT)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
def test_the_tokenizer_goes_along(tokenizer, tmp_path):
    config = model_config("gpt2", "nano", tokenizer.vocab_size, 9, n_layers=1)
    saved = save_hugging_face(GPT(config), tmp_path / "saved", tokenizer)
    back = read_tokenizer(saved)
    assert back.encode(TEXT) == tokenizer.encode(TEXT) and back.decode(back.encode(TEXT)) == TEXT
    assert back.special_tokens == tokenizer.special_tokens
    end = tokenizer.special_tokens["<|endoftext|>"]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((saved / name).read_text())["eos_token_id"] == end


def test_gpt2s_own_two_files_are_read(tmp_path):
    tokenizer = TOKENIZERS[0]
    content = json.loads((save_hugging_face(small(), tmp_path / "saved", tokenizer) / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in content["model"]["merges"]))
    assert read_tokenizer(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


def test_a_folder_without_tokenizer_says_so(saved):
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        read_tokenizer(saved)


def test_one_active_expert_has_no_counterpart_there(tmp_path):
    with pytest.raises(CheckpointError, match="nearest is mixtral, but n_active_experts is 1"):
        save_hugging_face(small("mixtral", n_active_experts=1), tmp_path / "saved")


def test_groups_of_heads_are_not_the_form_of_falcon_7b(tmp_path):
    with pytest.raises(CheckpointError, match=r"nearest is falcon, but n_kv_heads is 2 \(needs 1 or 4\)"):
        save_hugging_face(small("falcon", n_heads=4, n_kv_heads=2), tmp_path / "saved")


def test_old_config_files_of_falcon_leave_out_what_their_class_takes(tmp_path):
    saved = save_hugging_face(small("falcon"), tmp_path / "saved")
    left_out = ("max_position_embeddings", "ffn_hidden_size", "activation", "rope_parameters", "tie_word_embeddings")
    path = saved / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in left_out}
    path.write_text(json.dumps(kept))
    assert load_hugging_face(saved).config == dataclasses.replace(small("falcon").config, max_seq_len=2048)
