"""Adapters beside a classifier in the layout of `peft`: the head goes with them, and comes back."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.classifiers import CLASSES, answers, classifier

from minillm.adapt.adapted import adapt
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.lora import LoraConfig
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig
from minillm.errors import CheckpointError
from minillm.export.peft import load_peft, save_peft
from minillm.export.peft_lora import CONFIG, WEIGHTS
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

METHODS = {
    "lora": LoraConfig(rank=2), "ia3": IA3Config(), "prefix": PrefixConfig(n_virtual=3),
    "prompt": PromptConfig(n_virtual=3),
}  # fmt: skip
CASES = [(kind, method) for kind in CLASSES for method in METHODS if (kind, method) != ("mistral", "prefix")]
HEADS = {"gpt2": {"score.weight": (3, 32)}, "bert text": {"classifier.weight": (3, 32), "classifier.bias": (3,)}}


def method_of(name, heads=("head",), **settings):
    return replace(METHODS[name], heads=heads, **settings)


@torch.no_grad()
def trained(model, config):
    adapted = adapt(model, config, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(3)
    for parameter in adapted.trainable_parameters().values():
        parameter += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return adapted


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_there_and_back(kind, method, tmp_path):
    model = classifier(kind)
    if method == "prompt" and " " in kind or (kind, method) == ("albert text", "prefix"):
        reason = "take a prefix instead" if method == "prompt" else "one set for the layer that all share"
        with pytest.raises(CheckpointError, match=reason):
            save_peft(trained(model, method_of(method)), tmp_path / "x")
        return
    base, settings = answers(model), {"inputs": ("attention.output",)} if (kind, method) == ("mixtral", "ia3") else {}
    adapted = trained(model, method_of(method, **settings))
    expected = answers(model)
    assert (expected - base).abs().max() > 1e-2
    folder = save_peft(adapted, tmp_path / "peft", "somewhere")
    assert torch.equal(answers(model), expected)
    fresh = classifier(kind)
    with torch.no_grad():
        fresh.head.weight.zero_()                                  # what theirs has before the adapter is there
    loaded = load_peft(fresh, folder)
    torch.testing.assert_close(answers(fresh), expected, rtol=0, atol=1e-12)
    assert "head" in loaded.config.heads
    settings = json.loads((folder / CONFIG).read_text())
    task = {"tokens": "TOKEN_CLS", "span": "QUESTION_ANS"}.get(kind.rpartition(" ")[2], "SEQ_CLS")
    assert settings["task_type"] == task and settings["modules_to_save"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_was_not_trained_is_written_too(kind, method, tmp_path):
    """The exported body has none, so nobody else could bring it."""
    if (kind, method) == ("bert text", "prompt"):
        return
    model = classifier(kind)
    adapted = trained(model, method_of(method, heads=()))
    folder = save_peft(adapted, tmp_path / "peft")
    start = "base_model." if method in ("prefix", "prompt") else "base_model.model."
    found = read_tensor_file(folder / WEIGHTS)
    for name, shape in HEADS[kind].items():
        assert tuple(found[start + name].shape) == shape
    assert torch.equal(found[start + [*HEADS[kind]][0]], model.head.weight)


def test_of_several_adapters_each_has_its_own_head(tmp_path):
    model = classifier("gpt2")
    base = model.head.weight.detach().clone()
    adapted = trained(model, LoraConfig(rank=2, heads=("head",)))
    adapted.add(LoraConfig(rank=2), "plain")
    adapted.use("default")
    changed = model.head.weight.detach().clone()
    adapted.use("plain")
    assert not torch.equal(changed, base) and torch.equal(model.head.weight, base)
    for name, expected in (("default", changed), ("plain", base)):
        adapted.use(name)
        folder = save_peft(adapted, tmp_path / name)
        assert torch.equal(read_tensor_file(folder / WEIGHTS)["base_model.model.score.weight"], expected)


def test_what_is_refused(tmp_path):
    with_bias = LastTokenClassifier(classifier("gpt2").body, 3, 0.0)
    with pytest.raises(CheckpointError, match="make it with bias=False"):
        save_peft(adapt(with_bias, LoraConfig(rank=2)), tmp_path / "x")
    over_decoder = type(classifier("bert tokens"))(classifier("gpt2").body, 3, 0.0)
    with pytest.raises(CheckpointError, match="no class for a TokenClassifier over a gpt2"):
        save_peft(adapt(over_decoder, LoraConfig(rank=2)), tmp_path / "x")
    mixture = classifier("mixtral")
    for targets in ("up", ("gate", "up"), r".*experts\.3\.down", r".*blocks\.1.*down"):
        adapted = adapt(mixture, LoraConfig(rank=2, targets=targets))
        with pytest.raises(CheckpointError, match="only where down of every expert is adapted"):
            save_peft(adapted, tmp_path / "x")
        adapted.remove()
    with pytest.raises(CheckpointError, match="is a layer of an expert"):
        save_peft(adapt(mixture, IA3Config()), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda start: {start + "classifier.bias": None}, "lacks the head's classifier.bias"),
        (lambda start: {start + "classifier.weight": torch.ones(5, 32)}, r"weight is \(5, 32\), that of this"),
        (lambda start: {start + "qa_outputs.weight": torch.ones(2, 32)}, "has qa_outputs.weight, for which this model"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(method, change, message, tmp_path):
    folder = save_peft(trained(classifier("bert text"), method_of(method)), tmp_path / "peft")
    changed = change("base_model." if method == "prefix" else "base_model.model.")
    tensors = read_tensor_file(folder / WEIGHTS) | changed
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (folder / WEIGHTS).write_bytes(b"".join(tensor_file_chunks(kept, {"format": "pt"})))
    model = classifier("bert text")
    before, names = answers(model), list(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_peft(model, folder)
    assert torch.equal(answers(model), before) and list(model.state_dict()) == names
