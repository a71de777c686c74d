"""The verbs that read a run, and those that need none: generate, chat, evaluate, plot, data, tokenize, doctor."""

import math
import re

import pytest
import torch

from minillm.cli import main
from minillm.data.reading import read_documents
from minillm.tokenizers.loading import load_tokenizer
from minillm.verbs import doctor
from minillm.verbs.run_folder import open_run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def shown_by(capsys):
    """shown_by(words): what a verb that succeeds prints to stdout."""

    def run(*words) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


def test_generate_continues_the_prompt_deterministically(trained, shown_by):
    words = ["generate", trained, "--prompt", "Anna sees", "--max-new-tokens", "20"]
    texts = [shown_by(*words, "--seed", seed) for seed in (1, 2, 1, 3)]
    assert all(text.startswith("Anna sees") for text in texts)
    assert texts[0] == texts[2] and len(set(texts)) == 3


def test_greedy_generation_takes_the_likeliest_token_whatever_the_seed(trained, shown_by):
    words = ["generate", trained, "--prompt", "Ben", "--max-new-tokens", "5", "--temperature", "0"]
    first = shown_by(*words, "--seed", "1")
    assert shown_by(*words, "--seed", "2") == first
    run = open_run(trained, torch.device("cpu"))
    ids = [run.tokenizer.special_tokens["<|endoftext|>"], *run.tokenizer.encode("Ben")]
    with torch.inference_mode():
        for _ in range(5):
            ids.append(int(run.model(torch.tensor([ids]))[0, -1].argmax()))
    assert first == run.tokenizer.decode(ids[1:]) + "\n"


def test_several_continuations_use_consecutive_seeds_and_stop_at_a_text(trained, shown_by):
    words = ["generate", trained, "--prompt", "Eva", "--max-new-tokens", "12"]
    alone = [shown_by(*words, "--seed", seed) for seed in (3, 4)]
    assert shown_by(*words, "--seed", 3, "--n-samples", 2) == f"--- 1\n{alone[0]}--- 2\n{alone[1]}"
    drawn = alone[0][len("Eva") : -1]
    assert len(drawn) > 6
    assert shown_by(*words, "--seed", 3, "--stop", drawn[3:5]) == "Eva" + drawn.split(drawn[3:5])[0] + "\n"


def test_chat_continues_line_by_line_and_leaves_at_the_end_of_input(trained, shown_by, monkeypatch):
    drawn = ["--max-new-tokens", "6", "--temperature", "0.5"]
    words = ["chat", trained, *drawn, "--stop", "", "--repetition-penalty", "1", "--seed", "5"]
    lines = iter(["Anna", "Ben", ""])
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    turns = shown_by(*words).split("\n")
    assert prompts == ["> "] * 4 and len(turns) == 5
    text = ""
    for turn, line in enumerate(["Anna", "Ben", ""]):  # each turn goes on from all that was said
        text, said = text + line, turns[turn]
        assert shown_by("generate", trained, "--prompt", text, *drawn, "--seed", 5 + turn) == text + said + "\n"
        text += said


def test_evaluate_prints_agreeing_figures_and_the_table(trained, text_file, shown_by):
    shown = shown_by("evaluate", trained)
    figures = re.search(r"after 20 steps: ([\d.]+) nats per token, perplexity ([\d.]+), ([\d.]+) bits per byte, "
                        r"on ([\d,]+) tokens", shown)  # fmt: skip
    nats, perplexity, bits, n_tokens = (float(text.replace(",", "")) for text in figures.groups())
    assert perplexity == pytest.approx(math.exp(nats), rel=1e-3)
    n_bytes = n_tokens - 1  # bytes are the tokens, and one document ends
    assert bits == pytest.approx(nats / math.log(2) * n_tokens / n_bytes, rel=1e-3)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line[:1] == "|"]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert float(table["uniform, bytes"][0]) == pytest.approx(math.log2(257) * n_tokens / n_bytes, abs=6e-4)
    assert float(table["unigram, bytes"][0]) == float(table["unigram, 257 ids"][0])
    assert float(table["this run"][0]) == pytest.approx(bits, abs=6e-4)
    assert table.keys() >= {"trigram, bytes", "trigram, 257 ids", "zlib", "lzma"}


def test_evaluate_agrees_with_the_model_read_window_by_window(trained, shown_by):
    shown = shown_by("evaluate", trained, "--no-simple", "--stride", "32")
    assert "|" not in shown
    run = open_run(trained, torch.device("cpu"))
    ids = torch.tensor(run.folder.open_text("validation", run.tokenizer)[:])
    inputs = torch.cat([ids[-1:], ids[:-1]])  # the end of text comes first
    losses = []
    with torch.inference_mode():
        for start in [*range(0, len(ids) - 32, 32), len(ids) - 32]:
            rows = run.model(inputs[None, start : start + 32])[0].double().log_softmax(-1)
            new = rows.gather(1, ids[start : start + 32, None])[len(losses) - start :, 0]
            losses += (-new).tolist()
    assert len(losses) == len(ids)
    assert float(re.search(r"([\d.]+) nats", shown)[1]) == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_plot_draws_several_runs(trained, train_small, shown_by, tmp_path):
    assert train_small(tmp_path / "other", "--steps", "1") == 0
    shown = shown_by("plot", trained, tmp_path / "other", "--y", "bits_per_byte", "--out", tmp_path / "new/p.png")
    assert (tmp_path / "new/p.png").read_bytes().startswith(PNG)
    assert f"{trained}: bits per byte" in shown and "after 20 steps" in shown and "after 1 steps" in shown


def test_plot_of_a_run_that_has_no_finite_validation_yet(trained, shown_by, tmp_path):
    line = '{"kind": "validation", "step": 1, "tokens": 2, "loss": null, "bits_per_byte": null}\n'
    (tmp_path / "metrics.jsonl").write_text(line, encoding="utf-8")
    assert "no validation yet" in shown_by("plot", trained, tmp_path, "--out", tmp_path / "p.png")


def test_data_lists_the_texts(shown_by):
    shown = shown_by("data")
    names = {line.split()[0] for line in shown.splitlines()}
    assert names >= {"stories-en", "stories-zh", "python-docs", "tinyworld-en"}


def test_data_counts_shows_and_writes_a_text(shown_by, text_file, tmp_path):
    found = list(read_documents(text_file))
    shown = shown_by("data", text_file, "--show", 1, "--out", tmp_path / "copy.txt")
    assert f"8 documents, {sum(map(len, found)):,} characters" in shown
    assert found[0][:300] in shown and found[1][:300] not in shown
    assert [text.strip() for text in read_documents(tmp_path / "copy.txt")] == [text.strip() for text in found]
    assert "3 documents" in shown_by("data", text_file, "--limit", 3)


@pytest.mark.parametrize("kind", ["bpe", "chars", "words", "bytes"])
def test_tokenize_learns_saves_loads_and_shows_the_pieces(kind, shown_by, text_file, tmp_path):
    out = tmp_path / "t.json"
    shown = shown_by("tokenize", "--data", text_file, "--kind", kind, "--vocab-size", 300, "--out", out)
    tokenizer = load_tokenizer(out)
    assert tokenizer.kind == kind and f"learned {tokenizer.vocab_size:,} ids ({kind})" in shown
    ids = tokenizer.encode(" Anna sees boats")
    shown = shown_by("tokenize", "--load", out, "--text", " Anna sees boats").splitlines()
    assert shown[1].replace("|", "") == " Anna sees boats" and shown[1].count("|") == len(ids) - 1
    assert shown[2] == " ".join(map(str, ids))
    if kind == "words":
        assert shown[1] == " Anna| sees| boats"


def test_doctor_says_what_there_is(shown_by):
    missing = [name for name in doctor.REQUIRED if doctor.version_of(name) is None]
    if missing:
        pytest.skip(f"this environment lacks {missing}")
    shown = shown_by("doctor")
    assert f"torch {torch.__version__}" in shown or f"torch {torch.__version__.split('+')[0]}" in shown
    assert "device    " in shown and "MISSING" not in shown


def test_doctor_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("torch", "tqdm") else "1.0")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "tqdm MISSING" in shown and "missing   torch, tqdm: run pip install" in shown
