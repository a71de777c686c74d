"""GPTQ: OBQ's numbers by another way, neural-compressor's codes, the closed form, and Hessians that are ill."""

import json

import pytest
import torch
from helpers.freeze_gptq import CASES, FILE, KINDS, frozen, made_by_neural_compressor, matrices, spec_of

from minillm.compress.gptq import GPTQConfig, blocks_of_columns, gptq
from minillm.compress.grid import QuantSpec, find_grid, quantize, round_to_grid
from minillm.compress.hessian import damped_factor, expected_ratio, inverse_factor, products_of
from minillm.compress.obq import obq, output_error
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.surgery import ActivationRecorder

FROZEN = json.loads(FILE.read_text())
EXACT = GPTQConfig(damping=0.0)


def layer(seed, n_rows=8, n_columns=64, n_positions=400, dtype=torch.float64, alike=0.1):
    """A matrix and the products of inputs that are more or less alike."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_positions, n_columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(n_columns, n_columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ (torch.eye(n_columns, dtype=torch.float64) + alike * mixing)
    weight = torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64)
    return weight.to(dtype), (inputs.T @ inputs).to(dtype)


def ours(case):
    group, activation_order, groups, block_size = KINDS[CASES[case][0]]
    config = GPTQConfig(block_size=block_size, activation_order=activation_order, groups=groups)
    weight, hessian = matrices(case)
    return gptq(weight, hessian, spec_of(case), config)


@pytest.mark.parametrize("case", CASES)
def test_every_code_is_that_of_neural_compressor_as_it_was_written_down(case):
    found = ours(case)
    assert frozen(case, found.weight, found.grid.scale, found.grid.zero) == pytest.approx(FROZEN[case], abs=2e-6)


@pytest.mark.parametrize("case", list(CASES)[::5])
def test_what_was_written_down_is_what_neural_compressor_does(case):
    pytest.importorskip("neural_compressor")  # not among CI's oracles: its presence breaks peft's imports
    assert frozen(case, *made_by_neural_compressor(case)) == FROZEN[case]


@pytest.mark.parametrize("block_size", [1, 5, 128])
@pytest.mark.parametrize("bits", [2, 3])
def test_gptq_is_obq_from_left_to_right(bits, block_size):
    for seed in range(3):
        weight, hessian = layer(seed, n_rows=3, n_columns=13)
        grid = find_grid(weight, QuantSpec(bits))
        fast = gptq(weight, hessian, QuantSpec(bits), GPTQConfig(block_size, damping=0.0))
        torch.testing.assert_close(fast.weight, obq(weight, hessian, grid, greedy=False))


def test_activation_order_is_obq_on_columns_that_were_sorted():
    weight, hessian = layer(4, n_rows=3, n_columns=13)
    order = hessian.diagonal().argsort(descending=True)
    found = gptq(weight, hessian, QuantSpec(3), GPTQConfig(damping=0.0, activation_order=True))
    slow = obq(weight[:, order], hessian[order][:, order], find_grid(weight, QuantSpec(3)), greedy=False)
    torch.testing.assert_close(found.weight[:, order], slow)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_the_work_adds_up_is_how_much_the_outputs_change(bits):
    weight, hessian = layer(bits)
    for config in (EXACT, GPTQConfig(7, 0.0, True), GPTQConfig(damping=0.0, groups="static")):
        found = gptq(weight, hessian, QuantSpec(bits, group_size=0 if config.activation_order else 16), config)
        change = output_error(found.weight - weight, hessian).sum().item()
        assert found.error == pytest.approx(change, rel=1e-9)


def test_independent_inputs_leave_nothing_to_mend():
    weight, hessian = layer(5)
    for spec in (QuantSpec(4), QuantSpec(2, 16), QuantSpec(3, -1), QuantSpec(3, 24, True, "ggml")):
        found = gptq(weight, hessian.diagonal().diag(), spec)
        assert torch.equal(found.weight, round_to_grid(weight, find_grid(weight, spec)))
        assert torch.equal(found.grid.scale, find_grid(weight, spec).scale)


@pytest.mark.parametrize("n_columns", [64, 130])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_error_is_what_the_closed_form_expects(bits, n_columns):
    """Where inputs are more alike than here, mended weights leave the grid, are cut, and the ratio comes out higher."""
    for seed in range(3):
        weight, hessian = layer(seed, 24, n_columns, 3 * n_columns, alike=0.05)
        spec = QuantSpec(bits)
        mended = output_error(gptq(weight, hessian, spec, EXACT).weight - weight, hessian).sum().item()
        nearest = output_error(round_to_grid(weight, find_grid(weight, spec)) - weight, hessian).sum().item()
        assert mended / nearest == pytest.approx(expected_ratio(hessian), rel=0.25)
        assert mended < nearest


def test_the_factor_holds_what_elimination_leaves():
    _, hessian = layer(6, n_columns=7)
    factor = inverse_factor(hessian)
    torch.testing.assert_close(factor.T @ factor, hessian.inverse())
    assert torch.equal(factor, factor.triu())
    for i in range(7):
        torch.testing.assert_close(factor[i, i:] * factor[i, i], hessian[i:, i:].inverse()[0])
    assert 0 < expected_ratio(hessian) <= 1


def test_groups_get_their_grids_from_mended_weights_or_from_the_first_ones():
    weight, hessian = layer(7, n_columns=60)
    spec = QuantSpec(2, 24)                                        # groups of 24, 24 and 12 columns
    found = {kind: gptq(weight, hessian, spec, GPTQConfig(groups=kind)) for kind in ("fresh", "reference", "static")}
    before = find_grid(weight, spec)
    assert torch.equal(found["static"].grid.scale, before.scale)
    assert torch.equal(found["reference"].grid.scale, before.scale)  # all in one block of 128 columns
    assert torch.equal(found["fresh"].grid.scale[:, 0], before.scale[:, 0])
    assert not torch.equal(found["fresh"].grid.scale[:, 1], before.scale[:, 1])
    for each in found.values():
        assert torch.equal(round_to_grid(each.weight, each.grid), each.weight)
        assert each.grid.scale.shape == (8, 3)
    wide = GPTQConfig(24, groups="reference")
    assert torch.equal(gptq(weight, hessian, spec, wide).weight, found["fresh"].weight)


def test_blocks_end_where_a_fresh_group_begins():
    assert blocks_of_columns(100, GPTQConfig(32), 48) == [(0, 32), (32, 48), (48, 80), (80, 96), (96, 100)]
    assert blocks_of_columns(70, GPTQConfig(32, groups="static"), 48) == [(0, 32), (32, 64), (64, 70)]


def test_scales_of_sixteen_bits_are_used_while_rounding():
    weight, hessian = layer(8)
    found = gptq(weight, hessian, QuantSpec(3, 16), GPTQConfig(half_scales=True))
    assert torch.equal(found.grid.scale, found.grid.scale.half().double())
    assert torch.equal(round_to_grid(found.weight, found.grid), found.weight)


def test_weights_and_hessian_stay_as_they_are():
    weight, hessian = layer(9, dtype=torch.float32)
    before = weight.clone(), hessian.clone()
    found = gptq(weight, hessian, QuantSpec(2, 16))
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])
    assert found.weight.dtype == torch.float32
    assert gptq(weight.bfloat16(), hessian, QuantSpec(2)).weight.dtype == torch.float32
    assert int(quantize(found.weight, found.grid).max()) <= 3


def test_damping_raises_itself_and_says_so():
    weight, _ = layer(10)
    few = torch.randn(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gptq(weight, few.T @ few, QuantSpec(3), EXACT)
    assert found.damping == 1e-4
    assert gptq(weight, few.T @ few, QuantSpec(3)).damping == 0.01
    below = torch.eye(4)
    below[0, 1] = below[1, 0] = 1.05                               # no sum of products: one direction is negative
    assert damped_factor(below, 0.01)[1] == pytest.approx(0.1)
    below[0, 1] = below[1, 0] = 9.0
    with pytest.raises(DataError, match="not positive definite"):
        damped_factor(below, 0.01)


def test_inputs_that_are_always_zero_are_rounded_to_nearest_and_mend_nothing():
    weight, hessian = layer(11)
    hessian[[3, 40]] = 0.0
    hessian[:, [3, 40]] = 0.0
    for config in (GPTQConfig(), GPTQConfig(activation_order=True)):
        found = gptq(weight, hessian, QuantSpec(4), config)
        nearest = round_to_grid(weight, find_grid(weight, QuantSpec(4)))
        assert torch.equal(found.weight[:, [3, 40]], nearest[:, [3, 40]])
    all_dead = gptq(weight, torch.zeros_like(hessian), QuantSpec(4))
    assert torch.equal(all_dead.weight, nearest)


def test_bad_input_is_refused():
    weight, hessian = layer(12)
    with pytest.raises(ShapeError, match="Hessian"):
        gptq(weight, hessian[:9, :9], QuantSpec())
    with pytest.raises(ConfigError, match="static"):
        gptq(weight, hessian, QuantSpec(4, 16), GPTQConfig(activation_order=True))
    for bad in ({"block_size": 0}, {"damping": -0.1}, {"damping": 2.0}, {"groups": "late"}):
        with pytest.raises(ConfigError):
            GPTQConfig(**bad)
    for poison in (float("nan"), float("inf")):
        hessian[5, 6] = poison
        with pytest.raises(DataError, match="input 6"):
            gptq(weight, hessian, QuantSpec())
    weight[2, 3] = float("nan")
    with pytest.raises(DataError, match="row 2, column 3"):
        gptq(weight, torch.eye(64, dtype=torch.float64), QuantSpec())


def test_the_recorder_gives_the_hessian():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    inputs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    with ActivationRecorder(model, ["0"]) as recorder:
        with pytest.raises(DataError, match="0 positions"):
            products_of(recorder.statistics["0"])
        model(inputs[:1])
        model(inputs[1:])
    flat = inputs.view(-1, 3)
    torch.testing.assert_close(products_of(recorder.statistics["0"]), flat.T @ flat)
