"""Whole models rounded block after block: what each layer is given, what is reported, and what a failure leaves."""

import pytest
import torch

from minillm.compress.calibration import record, relative_error, stages_of
from minillm.compress.gptq import GPTQConfig, gptq
from minillm.compress.gptq_model import STORED, gptq_layer, gptq_model
from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.surgery import ActivationRecorder

SPEC = QuantSpec(3, 16)
GPT2 = {"bias": True}
LLAMA = {"n_kv_heads": 2, "norm": "rms", "position": "rotary", "feed_forward": "swiglu", "tie_embeddings": False}
EXPERTS = LLAMA | {"n_experts": 12, "n_active_experts": 1}


def tiny(**settings):
    config = GPTConfig(vocab_size=50, max_seq_len=24, n_layers=2, n_heads=4, d_model=32, **settings)
    return GPT(config, torch.Generator().manual_seed(0)).eval()


def batches(n_rows=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 50, (n_rows, 24), generator=generator).split(4))


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


FALCON = {"parallel_block": True, "dropout": 0.5}


@pytest.mark.parametrize("settings", [GPT2, LLAMA, FALCON], ids=["gpt2", "llama", "falcon"])
@torch.no_grad()
def test_a_model_is_rounded_packed_and_given_back(settings):
    model, text = tiny(**settings), batches()
    model.train()
    before, names = weights_of(model), [name for name, module in model.named_modules() if hasattr(module, "product")]
    names = [name for name in names if name not in ("", "head")]
    report = gptq_model(model, text, SPEC)
    assert [each.name for each in report.layers] == names and model.training
    assert all(isinstance(model.get_submodule(name), QuantLinear) for name in names)
    assert all(each.error < each.nearest and each.n_rows == 8 * 24 and not each.note for each in report.layers)
    mean = sum(each.ratio / each.expected for each in report.layers) / len(names)
    assert mean == pytest.approx(1.0, abs=0.2)
    assert f"{names[-1]} " in str(report) and str(report).count("\n") == len(names)
    model.eval()
    rounded = model(text[0])
    packed = {name: model.get_submodule(name).matrix() for name in names}
    report.operation.restore()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    again = gptq_model(model, text, SPEC, packed=False)
    assert again.operation is None
    assert all(torch.equal(model.get_submodule(name).weight, packed[name]) for name in names)
    torch.testing.assert_close(model(text[0]), rounded)


@torch.no_grad()
def test_later_blocks_are_given_what_rounded_blocks_make():
    text, first, last = batches(), "blocks.0.feed_forward.down", "blocks.1.attention.qkv"
    for sequence, block_0, within in (("none", False, False), ("block", True, False), ("layer", True, True)):
        model, other = tiny(), tiny()
        report = gptq_model(model, text, SPEC, sequence=sequence, packed=False)
        for part, earlier in ((last, block_0), (first, within)):
            for name, module in other.named_modules():             # what was rounded before this part
                if earlier and name in report.grids and name != part and name.startswith("blocks.0"):
                    module.weight.copy_(model.get_submodule(name).weight)
            if part == last and earlier:
                other.get_submodule(first).weight.copy_(model.get_submodule(first).weight)
            with ActivationRecorder(other, [part]) as recorder:
                for batch in text:
                    other(batch)
            other = tiny()
            found = gptq(other.get_submodule(part).weight, recorder.statistics[part].products, SPEC, STORED)
            assert torch.equal(found.weight, model.get_submodule(part).weight), (sequence, part)


def test_the_report_says_what_is_true():
    model, text = tiny(), batches()
    report = gptq_model(model, text, SPEC, sequence="none", targets="output")
    report.operation.restore()
    with ActivationRecorder(model, report.grids) as recorder:
        for batch in text:
            model(batch)
    with torch.no_grad():
        for each in report.layers:
            layer, hessian = model.get_submodule(each.name), recorder.statistics[each.name].products
            nearest = round_to_grid(layer.weight, stored(find_grid(layer.weight, SPEC)))
            change, whole = (((w @ hessian) * w).sum().item() for w in (nearest - layer.weight, layer.weight))
            assert each.nearest == pytest.approx(change / whole, rel=1e-4)
            assert each.damping == 0.01


def test_a_pass_ends_when_all_have_been_given_their_inputs():
    model, called = tiny(), []
    model.blocks[1].register_forward_hook(lambda *_: called.append(1))
    statistics = record(model, ["blocks.0.attention.output", "blocks.0.attention.qkv"], batches())
    assert called == [] and {each.n_rows for each in statistics.values()} == {192}
    record(model, ["blocks.1.feed_forward.down"], batches())
    assert called == [] and not model.training
    own = []
    record(model, ["blocks.0.attention.qkv"], batches(), run=lambda model, batch: own.append(model(batch[:1])))
    assert own == []


def test_experts_that_saw_nothing_are_rounded_to_nearest():
    model = tiny(**EXPERTS)
    text = [torch.full((1, 4), 7)]
    with pytest.warns(UserWarning, match="too little text"):
        report = gptq_model(model, text, SPEC)
    unseen = [each for each in report.layers if each.n_rows == 0]
    assert unseen and all("nearest" in each.note for each in unseen)
    assert any("4 positions for 32 inputs" in each.note for each in report.layers)


def test_a_hessian_that_no_damping_mends_is_given_up():
    model, text = tiny(), batches()
    name = "blocks.0.attention.qkv"
    statistics = record(model, [name], text)[name]
    statistics.products[0, 1] = statistics.products[1, 0] = 1e6
    each, weight, grid = gptq_layer(name, model.get_submodule(name), statistics, SPEC, GPTQConfig())
    assert "not positive definite" in each.note and torch.equal(weight, round_to_grid(weight, grid))


def test_a_failure_leaves_the_model_as_it_was():
    model, text = tiny(), batches()
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[3, 4] = float("nan")
    before = weights_of(model)
    with pytest.raises(DataError, match="row 3, column 4"):
        gptq_model(model, text, SPEC)
    assert all(torch.equal(before[n], p) or p.isnan().any() for n, p in model.named_parameters())
    model = tiny()
    with torch.no_grad():
        model.blocks[0].attention.output.weight[0] = float("inf")
    with pytest.raises((ShapeError, DataError), match="finite"):
        gptq_model(model, text, SPEC)


def test_what_cannot_be_rounded_is_refused():
    model, text = tiny(), batches()
    with pytest.raises(DataError, match="no text"):
        gptq_model(model, [], SPEC)
    with pytest.raises(DataError, match="no layer was reached"):
        gptq_model(model, text, SPEC, run=lambda model, batch: None)
    with pytest.raises(ConfigError, match="sequence"):
        gptq_model(model, text, SPEC, sequence="row")
    gptq_model(model, text, SPEC)
    with pytest.raises(ConfigError, match="packed already"):
        gptq_model(model, text, SPEC)


def test_stages_and_errors_of_layers_without_inputs():
    names = ["encoder.layers.0.a", "encoder.layers.0.b.3.c", "encoder.layers.1.a", "head"]
    assert [len(stage) for stage in stages_of(names, "block")] == [2, 1, 1]
    assert len(stages_of(names, "none")) == 1 and len(stages_of(names, "layer")) == 4
    assert relative_error(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(2, 2)) == 0.0
