"""Bad input through the command line: exit code 2, one clear line, nothing left behind that is half of something."""

import shutil

import pytest
import torch

from minillm.cli import main
from minillm.verbs.run_folder import open_run

NANO = ["--size", "nano", "--precision", "fp32", "--steps", "1", "--batch-size", "2"]


@pytest.fixture
def train_refuses(refuses, tmp_path):
    """train_refuses(data, words, *parts): refused, and the run's folder was not made."""

    def check(data, words, *parts):
        refuses(["train", "--data", data, *NANO, "--out", tmp_path / "run", *words], *parts)
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize("content", [b"", b" \n\n \n"], ids=["empty", "blank"])
def test_a_file_without_text(train_refuses, tmp_path, content):
    (tmp_path / "no.txt").write_bytes(content)
    train_refuses(tmp_path / "no.txt", [], "no.txt", f"{len(content)} bytes")


def test_a_missing_file(train_refuses, tmp_path):
    train_refuses(tmp_path / "missing.txt", [], tmp_path / "missing.txt", "does not exist")


def test_a_folder_without_texts(train_refuses, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"x")
    train_refuses(tmp_path / "pictures", [], tmp_path / "pictures", ".txt")


def test_an_unknown_corpus(train_refuses):
    train_refuses("shakespear", [], "shakespear", "tinyshakespeare", "stories-en")


def test_bytes_that_are_no_utf8_with_their_offset(train_refuses, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"first line\ncaf\xe9 au lait\n" * 3)
    train_refuses(tmp_path / "latin.txt", [], "latin.txt", "0xe9", "offset 14", "UTF-8")


def test_a_text_shorter_than_the_context_names_both_lengths(train_refuses, tmp_path, refuses):
    (tmp_path / "tiny.txt").write_text("To be or not to be,\nthat is it.\n", encoding="utf-8")  # 20 + 12 bytes
    words = ["--tokenizer", "bytes", "--max-seq-len", "64", "--validation-fraction", "0.4"]
    train_refuses(tmp_path / "tiny.txt", words, "21 tokens", "64")
    words[3] = "16"
    assert main(["train", "--data", str(tmp_path / "tiny.txt"), *NANO, "--out", str(tmp_path / "run"), *words]) == 0


def test_what_was_in_the_folder_before_stays(refuses, text_file, tmp_path):
    """A tokenizer kept in the folder of the run to come is not taken away when that run is refused."""
    out = tmp_path / "run"
    out.mkdir()
    tokenizer = out / "tokenizer.json"
    assert main(["tokenize", "--data", str(text_file), "--kind", "bytes", "--out", str(tokenizer)]) == 0
    words = ["train", "--data", text_file, *NANO, "--out", out, "--tokenizer", tokenizer]
    refuses([*words, "--max-seq-len", "9999"], "10000")
    assert list(out.iterdir()) == [tokenizer]
    assert main([str(word) for word in [*words, "--max-seq-len", "16"]]) == 0


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--vocab-size", "256"], ["256", "257"]),
        (["--tokenizer", "no-such-file.json"], ["no-such-file.json"]),
        (["--tokenizer", "bytes", "--dropout", "1.5"], ["dropout", "1.5"]),
        (["--tokenizer", "bytes", "--keep-last", "1"], ["keep_last", "1"]),
        (["--tokenizer", "bytes", "--log-every", "0"], ["log_every", "0"]),
        (["--tokenizer", "bytes", "--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["--tokenizer", "bytes", "--validation-fraction", "1.0"], ["validation_fraction", "1.0"]),
        (["--tokenizer", "bytes", "--seed", "-1"], ["seed", "-1"]),
        (["--batch-size", "0"], ["batch_size", "0", "at least 1"]),
        (["--steps", "-1"], ["steps", "-1"]),
        (["--batch-size", "2", "--microbatches", "3"], ["microbatches", "3", "2"]),
        (["--size", "huge"], ["huge", "nano"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--device", "gpu"], ["gpu", "cuda"]),
    ],
    ids=lambda value: "" if isinstance(value[0], list) else " ".join(value[:4]),
)
def test_a_setting_out_of_range(train_refuses, text_file, words, parts):
    train_refuses(text_file, words, *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA card")
def test_a_card_that_is_not_there(train_refuses, refuses, text_file, trained):
    train_refuses(text_file, ["--device", "cuda"], "cuda", "--device cpu")
    refuses(["generate", trained, "--device", "cuda:3"], "cuda:3", "--device cpu")


def test_a_folder_that_cannot_be_made(refuses, text_file, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    out = tmp_path / "file" / "run"
    refuses(["train", "--data", text_file, *NANO, "--out", out], out, "--out")


@pytest.mark.parametrize("verb", ["generate", "chat", "evaluate"])
def test_a_folder_that_is_no_run(verb, refuses, tmp_path):
    refuses([verb, tmp_path], tmp_path, "not a run")


def test_plot_without_a_run_or_of_a_folder_that_is_none(refuses, tmp_path):
    refuses(["plot"], "no run")
    refuses(["plot", tmp_path, "--out", tmp_path / "p.png"], tmp_path, "metrics")
    assert not (tmp_path / "p.png").exists()


def test_a_run_without_a_checkpoint(refuses, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("step-*"))
    refuses(["generate", tmp_path / "run"], "no checkpoint")


def test_a_damaged_checkpoint_is_passed_over_and_the_only_one_is_an_error(refuses, trained, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    newest = out / "checkpoints/step-000020/model.safetensors"
    flip_a_byte(newest)
    with pytest.warns(UserWarning, match="damaged checkpoint passed over, using step-000015"):
        assert open_run(out, torch.device("cpu")).step == 15
    shutil.rmtree(out / "checkpoints/step-000015")
    for verb in ("generate", "evaluate"):
        refuses([verb, out], "step-000020", "model.safetensors", "SHA-256")
    assert main(["train", "--out", str(out), "--resume"]) == 2
    assert "SHA-256" in capsys.readouterr().err


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_prompt_longer_than_the_context_unless_its_end_is_enough(refuses, trained, capsys):
    prompt = "Anna sees boats. " * 4  # 68 bytes and the end of text before them, context 32
    refuses(["generate", trained, "--prompt", prompt], "69 tokens", "32")
    assert main(["generate", str(trained), "--prompt", prompt, "--keep-last", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_the_string_of_a_special_token_in_a_prompt_is_text(refuses, trained, capsys):
    assert main(["generate", str(trained), "--prompt", "<|endoftext|>", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("<|endoftext|>")
    refuses(["generate", trained, "--prompt", "<|endoftext|>" * 3], "40 tokens")  # 3 * 13 bytes and the true one


@pytest.mark.parametrize(
    "flag, value",
    [("--temperature", "-1"), ("--top-p", "2"), ("--top-p", "0"), ("--top-k", "-2"), ("--min-p", "1.5"),
     ("--repetition-penalty", "0"), ("--max-new-tokens", "0"), ("--n-samples", "0"), ("--seed", "-1")],
)  # fmt: skip
def test_drawing_settings_out_of_range(refuses, trained, flag, value):
    refuses(["generate", trained, flag, value, "--prompt", "Anna"], flag[2:].replace("-", "_"), value)


def test_evaluation_windows_out_of_range(refuses, trained):
    refuses(["evaluate", trained, "--stride", "33"], "stride", "33", "32")


def test_a_tokenizer_is_not_saved_where_there_is_no_folder(refuses, text_file, tmp_path):
    nowhere = tmp_path / "no/t.json"
    refuses(["tokenize", "--data", text_file, "--kind", "bytes", "--out", nowhere], nowhere)
    refuses(["tokenize", "--load", tmp_path / "none.json"], tmp_path / "none.json")
    refuses(["tokenize", "--data", text_file, "--vocab-size", "0"], "vocab_size")
    refuses(["tokenize", "--data", text_file, "--vocab-size", "200", "--out", tmp_path / "t.json"], "200", "257")


def test_data_that_cannot_be_read_or_written(refuses, text_file, tmp_path):
    refuses(["data", tmp_path / "none.txt"], tmp_path / "none.txt")
    refuses(["data", text_file, "--show", "-1"], "show", "-1")
    assert main(["data", str(text_file), "--out", str(tmp_path / "no/out.txt")]) == 2
