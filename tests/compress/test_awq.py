"""AWQ: folds that change nothing, scales that no other alpha beats, and models left as they were."""

import pytest
import torch

from minillm.compress.awq import awq_model, best_scales, fold, folds_of, input_scales, scaled_rounding
from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.obq import output_error
from minillm.errors import DataError
from minillm.models.gpt import GPT, GPTConfig

SPEC = QuantSpec(3, 16)
LLAMA = {"n_kv_heads": 2, "norm": "rms", "position": "rotary", "feed_forward": "swiglu", "tie_embeddings": False}
MODELS = {
    "gpt2": {"bias": True},
    "llama": LLAMA,
    "one key head": LLAMA | {"n_kv_heads": 1, "qk_norm": True},
    "relu": {"feed_forward": "relu", "bias": True},
    "relu2": {"feed_forward": "relu2", "bias": True},
    "geglu": {"feed_forward": "geglu", "norm_bias": True},
    "falcon": {"parallel_block": True, "feed_forward": "relu"},
    "no norm weights": {"norm": "rms", "norm_weight": False},
    "experts": LLAMA | {"n_experts": 3, "n_active_experts": 2},
}
N_FOLDS = {"gpt2": 3, "relu": 4, "relu2": 4, "falcon": 3, "no norm weights": 1, "experts": 2}  # of a block; else 4


def tiny(name, dtype=torch.float64):
    """A model whose norms have weights and biases of all sizes, and whose biases are not 0."""
    config = GPTConfig(vocab_size=40, max_seq_len=16, n_layers=2, n_heads=4, d_model=32, **MODELS[name])
    model, generator = GPT(config, torch.Generator().manual_seed(0)).to(dtype).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).exp())
    return model


def text(seed=2):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 40, (16, 16), generator=generator).split(4))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_fold_changes_no_output(name):
    model, generator = tiny(name), torch.Generator().manual_seed(3)
    before, folds, layers = model(text()[0]), folds_of(model), dict(model.named_modules())
    assert len(folds) == 2 * N_FOLDS.get(name, 4)
    for each in folds:
        old = layers[each.readers[0]].weight.clone()
        scales = torch.randn(len(each.makers[0]), generator=generator, dtype=torch.float64).exp()
        fold(each, layers, scales)
        torch.testing.assert_close(layers[each.readers[0]].weight, old * each.spread(scales))
    torch.testing.assert_close(model(text()[0]), before, rtol=1e-9, atol=1e-12)


def test_heads_that_share_values_share_scales():
    folds = [each for each in folds_of(tiny("llama")) if each.readers[0].endswith("output")]
    values = torch.arange(32.0)                                    # four query heads of eight, two for each value
    shared = folds[0].shared(values)
    assert shared.tolist() == [(i + i + 8) / 2 for i in (*range(8), *range(16, 24))]
    spread = folds[0].spread(shared)
    assert spread.view(4, 8)[0].tolist() == spread.view(4, 8)[1].tolist() == shared[:8].tolist()


def large_inputs(seed=0, n_columns=48):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(300, n_columns, generator=generator, dtype=torch.float64)
    inputs[:, [3, 17]] *= 30.0
    return torch.randn(16, n_columns, generator=generator, dtype=torch.float64), inputs


def test_no_other_alpha_is_better_and_large_inputs_gain():
    weight, inputs = large_inputs()
    size, hessian = inputs.abs().mean(0), inputs.T @ inputs
    scales, alpha = best_scales(weight, size, hessian, SPEC)
    errors = {}
    for step in range(21):
        tried = input_scales(size, step / 20)
        stretched = weight * tried
        rounded = round_to_grid(stretched, stored(find_grid(stretched, SPEC))) / tried
        errors[step / 20] = (inputs @ (rounded - weight).T).square().sum().item()
    assert min(errors, key=errors.get) == alpha > 0
    assert torch.equal(scales, input_scales(size, alpha))
    assert errors[alpha] < 0.5 * errors[0.0]
    assert best_scales(weight, torch.ones(48).double(), hessian, SPEC)[1] == 0.0


def test_scales_are_normalised_and_zero_inputs_do_no_harm():
    size = torch.tensor([0.0, 1e-3, 5.0])
    for alpha in (0.0, 0.3, 1.0):
        scales = input_scales(size, alpha)
        assert bool((scales > 0).all()) and (scales.max() * scales.min()).item() == pytest.approx(1.0, rel=1e-5)
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(scaled_rounding(weight, input_scales(size, 1.0), QuantSpec(4))).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "relu2", "falcon", "experts"])
@torch.no_grad()
def test_a_model_is_scaled_rounded_and_given_back(name):
    model = tiny(name, torch.float32)
    model.blocks[0].attention_norm.weight[[3, 20]] = 40.0
    before = model(text()[0])
    report = awq_model(model, text(), SPEC)
    first = report.layers[0]
    assert first.name == "blocks.0.attention.qkv" and first.ratio < 0.8 and first.expected is None
    for each in report.layers:
        assert ("alpha" in each.note) != ("not scaled" in each.note)
        assert each.error <= 1.05 * each.nearest                   # scales of 16 bits move a little where alpha is 0
    rounded = model(text()[0])
    assert 0 < (rounded - before).norm() / before.norm() < 1.0
    report.operation.restore()
    torch.testing.assert_close(model(text()[0]), before, rtol=2e-4, atol=2e-5)


def test_the_reported_error_is_that_of_the_outputs():
    model = tiny("llama")
    name = "blocks.0.attention.output"
    heard = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: heard.append(inputs[0]))
    for batch in text():
        model(batch)
    handle.remove()
    rows, weight = torch.cat(heard).flatten(0, 1), model.get_submodule(name).weight.detach().clone()
    report = awq_model(model, text(), SPEC, targets=name)
    scaled = model.get_submodule(name).matrix().double()           # of inputs that the values now divide
    again = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: again.append(inputs[0]))
    for batch in text():
        model(batch)
    handle.remove()
    found = torch.cat(again).flatten(0, 1) @ scaled.T
    expected = ((rows @ weight.T - found).square().sum() / (rows @ weight.T).square().sum()).item()
    assert report.layers[0].error == pytest.approx(expected, rel=1e-4)
    assert output_error(weight, rows.T @ rows).sum().item() == pytest.approx((rows @ weight.T).square().sum().item())


@torch.no_grad()
def test_a_failure_leaves_the_model_as_it_was():
    model = tiny("llama")
    model.blocks[1].feed_forward.down.weight[3, 4] = float("nan")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(DataError, match="row 3, column 4"):
        awq_model(model, text(), SPEC)
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name].nan_to_num(), parameter.nan_to_num()), name
