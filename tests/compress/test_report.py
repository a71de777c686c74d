"""Reports: bytes of every form counted apart; packed layers built again from their table, bit by bit, or refused."""

import copy
import json

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from torch import nn

from minillm import surgery
from minillm.compress.binary_linear import BinaryLinear, TernaryLinear
from minillm.compress.ggml_linear import GGMLLinear
from minillm.compress.grid import QuantSpec
from minillm.compress.packed_linear import NF4Linear, PackedLinear, quantize_model, stored_bytes
from minillm.compress.quant_linear import QuantLinear
from minillm.compress.report import compression_report
from minillm.compress.saved import FORMAT, HOMES, forms_of, rebuild
from minillm.errors import CheckpointError, ConfigError
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

FORMS = {
    "grid": lambda layer: QuantLinear(layer, QuantSpec(4, 8)),
    "symmetric": lambda layer: QuantLinear(layer, QuantSpec(3, -1, True, "ggml")),
    "nf4": NF4Linear,
    "nf4 single": lambda layer: NF4Linear(layer, double=False, block_size=32),
    "q4_k": lambda layer: GGMLLinear(layer, "q4_0"),
    "binary": BinaryLinear,
    "ternary": lambda layer: TernaryLinear(layer, best=True),
}
MODELS = {
    "gpt": small_gpt,
    "rotary": lambda **s: small_gpt(position="rotary", norm="rms", feed_forward="swiglu", tie_embeddings=False, **s),
    "bert": small_bert,
    "t5": small_t5,
}


def model_of(name):
    return MODELS[name](d_model=32, n_heads=4).float().eval() if name != "t5" else small_t5().float().eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", [None, *FORMS])
def test_the_parts_of_a_report_add_up_to_what_the_model_stores(name, form):
    model = model_of(name)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    if form:
        quantize_model(model, lambda _, layer: FORMS[form](layer))
    report = compression_report(model)
    assert report.whole.n_weights == n_weights
    assert report.whole.n_bytes == stored_bytes(model)
    assert report.body.n_bytes + report.embeddings.n_bytes == report.whole.n_bytes
    linear = [module for path, module in model.named_modules() if surgery.is_linear(module) and path != "head"]
    assert report.linear.n_weights == sum(surgery.matrix_of(layer).numel() for layer in linear)
    assert len(report.layers) == len(linear)
    if form is None:
        assert report.whole.ratio(32) == report.linear.ratio(32) == 1.0 and report.whole.ratio(16) == 0.5


def test_a_report_by_hand():
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(50, 64),
            "first": QuantLinear(nn.Linear(64, 20), QuantSpec(4, 32)),
            "norm": nn.LayerNorm(20),
            "second": QuantLinear(nn.Linear(20, 6, bias=False), QuantSpec(3, 0, True)),
            "head": nn.Linear(6, 50, bias=False),
        }
    )
    report = compression_report(model)
    first = 20 * 32 + 2 * 20 * 2 + 20 * 1  # codes, two scales of 16 bits a row, two zeros of 4 bits a row
    second = 6 * (5 + 3) + 2 * 6  # 20 codes take 5 bytes for two bits and 3 for one
    assert [(part.name, part.n_weights, part.n_bytes) for part in report.layers] == [
        ("first", 64 * 20, first),
        ("second", 20 * 6, second),
    ]
    assert (report.embeddings.n_weights, report.embeddings.n_bytes) == (50 * 64 + 300, 4 * (50 * 64 + 300))
    assert (report.rest.n_weights, report.rest.n_bytes) == (20 + 40, 4 * 60)
    assert report.linear.bits_per_weight == 8 * (first + second) / (1280 + 120)
    assert report.body.ratio(32) == pytest.approx(4 * 1460 / (first + second + 240))
    assert report.whole.ratio(16) == pytest.approx(2 * 4960 / (first + second + 240 + 14000))
    assert "bits=4, group_size=32" in report.layers[0].form
    assert "without embeddings and head" in str(report) and f"{report.whole.n_bytes:,}" in str(report)


def test_what_is_shared_counts_once():
    model = nn.ModuleDict({"tokens": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["tokens"].weight
    assert compression_report(model).whole.n_bytes == stored_bytes(model) == 4 * 36


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_saved_layers_are_built_again_bit_by_bit(name, form, tmp_path):
    model = model_of(name)
    empty = copy.deepcopy(model)
    quantize_model(model, lambda _, layer: FORMS[form](layer))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"".join(tensor_file_chunks(model.state_dict(), {"format": "pt"})))
    rebuild(empty, json.loads(json.dumps(forms_of(model))))
    empty.load_state_dict(read_tensor_file(path))
    for (path, ours), (_, theirs) in zip(empty.named_modules(), model.named_modules(), strict=True):
        assert type(ours) is type(theirs), path
    before, after = model.state_dict(), empty.state_dict()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    if name != "t5":
        with torch.no_grad():
            assert torch.equal(first(model(ids_of((2, 5)))), first(empty(ids_of((2, 5)))))


def first(out):
    return out if isinstance(out, torch.Tensor) else out[0]


def test_every_form_that_has_a_home_is_there():
    for name, home in HOMES.items():
        module = __import__(home, fromlist=[name])
        assert issubclass(getattr(module, name), PackedLinear) == name.endswith("Linear")


def test_tables_of_another_version_form_or_model_are_refused():
    model = small_gpt().float()
    full = copy.deepcopy(model)
    quantize_model(model, lambda _, layer: NF4Linear(layer))
    forms = forms_of(model)
    path = next(iter(forms["layers"]))
    bad = [
        ({**forms, "format": FORMAT + 1}, f"format {FORMAT + 1}"),
        ({"layers": {}}, "format None"),
        ({**forms, "layers": {"blocks.9.nothing": {"form": "NF4Linear"}}}, "blocks.9.nothing"),
        ({**forms, "layers": {"token_embedding": {"form": "NF4Linear"}}}, "token_embedding"),
        ({**forms, "layers": {path: {"form": "NF5Linear"}}}, "NF5Linear"),
        ({**forms, "layers": {path: {"form": "NF4Linear", "colour": 3}}}, "colour"),
        ({**forms, "layers": {path: {"form": "QuantLinear", "bits": 99}}}, "bits=99"),
    ]
    for table, part in bad:
        with pytest.raises(CheckpointError, match=part):
            rebuild(full, table, "somewhere")
        assert not any(surgery.is_packed(module) for module in full.modules())
    rebuild(full, forms)
    with pytest.raises(CheckpointError, match="packed there"):
        rebuild(full, forms)
    with pytest.raises(CheckpointError, match="packed there"):
        rebuild(full, {"format": FORMAT, "layers": {path: {"form": "QuantEmbedding"}}})


def test_a_form_that_cannot_be_built_again_cannot_be_saved():
    class OwnLinear(PackedLinear):
        pass

    with pytest.raises(ConfigError, match="OwnLinear"):
        forms_of(nn.Sequential(OwnLinear(nn.Linear(4, 2))))
