"""`minillm export` and `minillm generate --hf`: a run as others' folder, which continues texts as the run does."""

import json

import pytest

from minillm.cli import main
from minillm.export.gguf_file import read_gguf
from minillm.train.mixture import MixtureLoss

DRAW = ["--prompt", "Anna sees", "--max-new-tokens", "15", "--temperature", "0.9", "--seed", "3"]


@pytest.fixture(scope="session")
def llama_run(train_small, tmp_path_factory):
    """A llama of 15 steps that tests only read."""
    out = tmp_path_factory.mktemp("runs") / "llama"
    assert train_small(out, "--model", "llama", "--steps", "15") == 0
    return out


@pytest.fixture(scope="session")
def exported(llama_run, tmp_path_factory):
    """That run in the Hugging Face layout."""
    folder = tmp_path_factory.mktemp("exported") / "llama"
    assert main(["export", "--to", "hf", str(llama_run), str(folder)]) == 0
    return folder


def test_a_run_continues_texts_from_its_exported_folder_as_before(llama_run, exported, capsys):
    capsys.readouterr()
    assert main(["generate", str(llama_run), *DRAW]) == 0
    expected = capsys.readouterr().out
    assert main(["generate", "--hf", str(exported), *DRAW]) == 0
    assert capsys.readouterr().out == expected and len(expected) > 20


def test_the_folder_is_beside_the_run_if_none_is_given(llama_run, capsys):
    assert main(["export", str(llama_run), "--precision", "bf16"]) == 0
    folder = llama_run / "hf"
    shown = capsys.readouterr().out
    assert f"{folder}: llama, " in shown and f"minillm generate --hf {folder}" in shown
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_model_without_a_class_there_is_refused_with_the_reason(trained, tmp_path, refuses):
    refuses(["export", trained, tmp_path / "hf"], "no class", "qk_norm is True", "token_shift is True")
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_is_there_is_not_overwritten(llama_run, exported, refuses):
    refuses(["export", llama_run, exported], exported, "is there already")


def test_a_folder_that_is_no_model_says_how_to_get_one(tmp_path, refuses):
    refuses(["generate", "--hf", "someone/model"], "someone/model", "on this disk", "network", "hf download")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(exported, refuses, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][0]["id"] = content["model"]["vocab"]["<|endoftext|>"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refuses(["generate", "--hf", folder], folder, "ids up to 300", "257 ids")


@pytest.mark.parametrize("value, parts", [([0, 256], None), ("end", ["'end'"]), ([True], ["True"])])
def test_ids_at_which_a_text_ends_may_be_several(exported, refuses, tmp_path, value, parts, capsys):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": value}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    if parts:
        refuses(["generate", "--hf", folder], folder, *parts)
    else:
        assert main(["generate", "--hf", str(folder), *DRAW]) == 0


def test_a_mixture_is_trained_with_its_router_watched_and_exported(train_small, tmp_path, monkeypatch):
    extra = []

    class Watched(MixtureLoss):
        def __call__(self, model, inputs, targets):
            loss = super().__call__(model, inputs, targets)
            extra.append((loss - self.loss_sum(model, inputs, targets)).item() / targets.numel())
            return loss

    monkeypatch.setattr("minillm.verbs.training.MixtureLoss", Watched)
    out = tmp_path / "mixtral"
    assert train_small(out, "--model", "mixtral", "--steps", "3") == 0
    assert len(extra) == 3 and all(0.02 < value < 0.05 for value in extra)  # two layers of 0.01 and 0.001 * log(8)^2
    assert main(["export", str(out), str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["num_local_experts"] == 8


def test_a_run_becomes_a_gguf_file_beside_it_and_says_what_fell_back(llama_run, capsys):
    capsys.readouterr()
    assert main(["export", "--to", "gguf", "--type", "q4_k", str(llama_run)]) == 0
    shown = capsys.readouterr().out
    assert "wanted q4_k and took q5_0" in shown and "bits a weight" in shown and "llama-completion" in shown
    metadata, tensors = read_gguf(llama_run / "model.gguf")
    assert metadata["general.architecture"] == "llama" and "blk.0.attn_q.weight" in tensors
    assert main(["export", "--to", "gguf", str(llama_run)]) != 0
    assert "there already" in capsys.readouterr().err
