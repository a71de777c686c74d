"""`minillm finetune` end to end: the folder it leaves, the base that stays, its use by generate, and bad input."""

import json

import pytest

from minillm.adapt.delta_file import SETTINGS, TENSORS
from minillm.adapt.methods import METHODS
from minillm.cli import main
from minillm.export.peft import SAVERS, load_peft
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.verbs.adapter_folder import class_shares
from minillm.verbs.finetune import METHOD_NAMES, PEFT_HAS
from minillm.verbs.run_folder import RunFolder, open_run

SHORT = ["--steps", "3", "--batch-size", "4", "--device", "cpu", "--n-virtual", "4"]


def all_bytes(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def adapted(trained, text_file, tmp_path_factory):
    """Folder of a LoRA adapter trained on a text of the user's."""
    out = tmp_path_factory.mktemp("adapters") / "mine"
    before = all_bytes(trained)
    words = ["--rank", "2", "--base", trained, "--task", "domain", "--data", text_file, "--out", out]
    assert main(["finetune", "--method", "lora", *map(str, words), *SHORT]) == 0
    assert all_bytes(trained) == before, "the base's folder has changed"
    return out


@pytest.fixture(scope="module")
def trained_gpt2(train_small, tmp_path_factory):
    """The folder of a run of a style that transformers has."""
    out = tmp_path_factory.mktemp("runs") / "gpt2"
    assert train_small(out, "--steps", "2", "--model", "gpt2") == 0
    return out


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Thirty labelled texts in two columns."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.tsv"
    path.write_text("".join(f"{('good', 'bad')[n % 2]}\tAnna finds map {n}.\n" for n in range(30)), encoding="utf-8")
    return path


def test_the_folder_holds_what_changed_and_little_else(adapted):
    names = {path.name for path in adapted.iterdir()}
    assert names == {SETTINGS, TENSORS, "finetune.json", "metrics.jsonl", "loss.png", "samples.txt"}
    assert sum((adapted / name).stat().st_size for name in (SETTINGS, TENSORS)) < 8_000
    assert json.loads((adapted / SETTINGS).read_text())["config"]["rank"] == 2


def test_generate_uses_the_adapter(adapted, trained, capsys):
    words = ["generate", str(trained), "--prompt", "Anna", "--max-new-tokens", "8", "--device", "cpu"]
    assert main([*words, "--adapter", str(adapted)]) == 0
    assert capsys.readouterr().out.startswith("Anna")


def test_a_taken_folder_and_another_base_are_refused(adapted, trained, train_small, tmp_path, refuses, text_file):
    words = ["--base", str(trained), "--task", "domain", "--data", str(text_file), "--out", str(adapted)]
    refuses(["finetune", *words, *SHORT], "holds an adapter already")
    other = tmp_path / "other"
    assert train_small(other, "--steps", "1", "--seed", "5") == 0
    refuses(["generate", str(other), "--adapter", str(adapted), "--prompt", "A"], "trained on another base")


def test_classes_of_the_users_own(trained, reviews, tmp_path, capsys, refuses):
    out = tmp_path / "judge"
    words = ["--method", "bitfit", "--base", str(trained), "--task", "classes"]
    words += ["--data", str(reviews), "--out", str(out)]
    refuses(["finetune", *words, *SHORT], "has no biases")
    assert not (out / SETTINGS).exists()
    words[1] = "head"
    assert main(["finetune", *words, *SHORT]) == 0
    assert "most frequent class" in capsys.readouterr().out
    ask = ["generate", str(trained), "--adapter", str(out), "--device", "cpu"]
    assert main([*ask, "--prompt", "Anna finds map 3."]) == 0
    label, share = capsys.readouterr().out.split()
    assert label in ("good", "bad") and 0.5 <= float(share) <= 1
    refuses(ask, "answers with classes")


@pytest.mark.parametrize("method", ["lora", "prefix", "ia3"])
def test_a_classifier_for_peft_has_no_bias_and_is_used_as_any_other(method, trained_gpt2, reviews, tmp_path, capsys):
    out = tmp_path / "judge"
    words = ["--method", method, "--base", trained_gpt2, "--task", "classes", "--data", reviews, "--out", out]
    assert main(["finetune", *map(str, words), *SHORT, "--save-peft"]) == 0
    assert json.loads((out / "peft" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    capsys.readouterr()
    ask = ["generate", trained_gpt2, "--adapter", out, "--device", "cpu", "--prompt", "Anna finds map 3."]
    assert main([*map(str, ask)]) == 0
    label, share = capsys.readouterr().out.split()
    run = open_run(trained_gpt2, "cpu")
    judge = LastTokenClassifier(run.model, 2, 0.0, bias=False)
    load_peft(judge, out / "peft")
    found = class_shares(judge.eval(), run.tokenizer, "Anna finds map 3.")
    assert label in ("good", "bad") and max(found) == pytest.approx(float(share), abs=0.005)


def test_a_model_that_transformers_does_not_have_is_refused_before_training(trained, reviews, tmp_path, refuses):
    words = ["--base", str(trained), "--task", "classes", "--data", str(reviews), "--out", str(tmp_path / "x")]
    refuses(["finetune", *words, *SHORT, "--save-peft"], "transformers has no class that computes what this model does")
    assert not (tmp_path / "x").exists()


def test_pairs_of_the_users_own_with_a_prefix(trained, tmp_path, capsys):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "writer"
    path.write_text("".join(json.dumps({"source": f"{n}", "target": f"map {n}"}) + "\n" for n in range(10, 30)))
    words = ["--method", "prefix", "--base", trained, "--task", "pairs", "--data", path, "--out", out]
    assert main(["finetune", *map(str, words), *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "exact texts" in shown and " -> " in shown
    assert RunFolder(trained).settings.exists() and open_run(trained, "cpu").model is not None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rank", "0"], "rank is 0"),
        (["--learning-rate", "-1"], "learning_rate is -1"),
        (["--task", "classes"], "--data"),
        (["--task", "records", "--data", "x"], "makes its own texts"),
        (["--method", "adapter", "--save-peft"], "peft has no adapter"),
        (["--quick"], "--table"),
        (["--base", "/nowhere"], "is not a run"),
        (["--validation-fraction", "1"], "between 0 and 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_settings_are_refused(words, expected, refuses):
    refuses(["finetune", *words], expected)


def test_targets_that_match_nothing_are_refused_with_candidates(trained, text_file, tmp_path, refuses):
    words = ["--base", str(trained), "--task", "domain", "--data", str(text_file), "--out", str(tmp_path / "none")]
    refuses(["finetune", *words, "--targets", "no_such_layer", *SHORT], "no_such_layer")
    assert not (tmp_path / "none" / SETTINGS).exists()


def test_method_names_are_those_of_the_library():
    assert METHOD_NAMES == tuple(METHODS)
    from minillm.adapt.methods import Sizes

    has = {name for name, method in METHODS.items() if type(method.make(Sizes())) in SAVERS}
    assert set(PEFT_HAS) == has - {"qlora"}


@pytest.mark.slow
def test_a_slice_of_the_table(tmp_path, capsys):
    assert main(["finetune", "--table", "--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "| lora |" in shown and "| bitfit |" in shown
    assert len((tmp_path / "finetune_table.csv").read_text().splitlines()) == 4
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(runs) == 6
    assert main(["finetune", "--table", "--quick", "--out", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == runs, "a run was made again"
