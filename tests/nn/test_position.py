"""Absolute positions; the oracle of rotation is multiplication of complex numbers by e^(i * angle)."""

import cmath
import math

import pytest
import torch

from minillm.errors import ConfigError, ShapeError
from minillm.nn.position import (
    ROTARY_SCALINGS,
    ntk_base,
    pair_frequencies,
    rotary_angles,
    rotary_rows,
    rotate,
    scaled_frequencies,
    sinusoidal_positions,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rotate_at(x, positions):
    angles = rotary_angles(positions, x.shape[-1])
    return rotate(x, angles.cos(), angles.sin())


def test_rotation_is_multiplication_of_complex_numbers():
    x, positions = rand(2, 3, 5, 8), torch.tensor([0, 1, 7, 100, 4000])
    frequency = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * positions[:, None] * frequency)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate_at(x, positions), expected, rtol=1e-10, atol=1e-12)


def test_products_depend_on_the_distance_only():
    query, key = rand(1, 8), rand(2, 8)[1:]
    products = [
        rotate_at(query, torch.tensor([i])) @ rotate_at(key, torch.tensor([i - 3])).T for i in (3, 10, 500)
    ]
    torch.testing.assert_close(products[0], products[1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(products[0], products[2], rtol=1e-9, atol=1e-11)


def test_position_zero_changes_nothing_and_length_stays():
    x = rand(4, 6)
    assert torch.equal(rotate_at(x, torch.zeros(4)), x)
    torch.testing.assert_close(rotate_at(x, torch.arange(4)).norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)


def test_rotation_keeps_the_dtype():
    angles = rotary_angles(torch.arange(3), 4)
    assert rotate(torch.ones(3, 4, dtype=torch.bfloat16), angles.cos(), angles.sin()).dtype == torch.bfloat16


@pytest.mark.parametrize(("d_head", "base"), [(5, 10.0), (0, 10.0), (4, 0.0)])
def test_impossible_rotations_are_refused(d_head, base):
    with pytest.raises(ConfigError, match="even d_head"):
        rotary_angles(torch.arange(3), d_head, base)


def test_interleaved_rotation_turns_neighbours():
    x, angles = rand(2, 3, 8), rotary_angles(torch.tensor([0, 5, 999]), 8)
    turned = rotate(x, angles.cos(), angles.sin(), "interleaved")
    for row in range(2):
        for place in range(3):
            for pair in range(4):
                number = complex(*x[row, place, 2 * pair : 2 * pair + 2].tolist())
                expected = number * cmath.exp(1j * [0, 5, 999][place] * 10000.0 ** (-2 * pair / 8))
                got = turned[row, place, 2 * pair : 2 * pair + 2].tolist()
                assert got == pytest.approx([expected.real, expected.imag], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("trailing", [(), (5,)], ids=["bias", "weight"])
def test_rows_reordered_give_the_scores_of_the_other_layout(trailing):
    n_heads, d_head = 3, 8
    weights = rand(2, n_heads * d_head, *trailing).unbind()
    angles, x = rotary_angles(torch.arange(4), d_head), rand(5, 4)

    def scores(layout, rows):
        heads = [row @ x if trailing else row[:, None].expand(-1, 4) for row in rows]  # (R, T)
        query, key = (rotate(head.view(n_heads, d_head, 4).mT, angles.cos(), angles.sin(), layout) for head in heads)
        return query @ key.mT

    other = [rotary_rows(weight, d_head, "interleaved") for weight in weights]
    torch.testing.assert_close(scores("interleaved", other), scores("halves", weights), **EXACT)
    assert not torch.allclose(scores("interleaved", weights), scores("halves", weights))
    assert all(torch.equal(rotary_rows(a, d_head, "halves"), b) for a, b in zip(other, weights, strict=True))


def test_rows_that_cannot_be_reordered_are_refused():
    with pytest.raises(ShapeError, match="6 rows"):
        rotary_rows(torch.zeros(6), 4, "halves")
    with pytest.raises(ConfigError, match="even"):
        rotary_rows(torch.zeros(6), 3, "halves")
    for function in (lambda: rotary_rows(torch.zeros(4), 4, "half"), lambda: rotate(*torch.ones(3, 1, 1), "neox")):
        with pytest.raises(ConfigError, match="layout is"):
            function()


def test_positions_may_have_any_leading_sizes():
    positions = torch.tensor([[0, 1, 2], [7, 0, 3]])
    angles, table = rotary_angles(positions, 4), rotary_angles(torch.arange(8), 4)
    sines, sine_table = sinusoidal_positions(positions, 6), sinusoidal_positions(torch.arange(8), 6)
    assert angles.shape == (2, 3, 2) and sines.shape == (2, 3, 6)
    assert torch.equal(angles, table[positions]) and torch.equal(sines, sine_table[positions])
    x = rand(2, 5, 3, 4)                                           # five heads share the positions of their row
    turned, own = rotate(x, angles.cos()[:, None], angles.sin()[:, None]), table[positions[1]]
    torch.testing.assert_close(turned[1, 4], rotate(x[1, 4], own.cos(), own.sin()), **EXACT)


def test_sinusoidal_positions_by_the_formula():
    table = sinusoidal_positions(torch.arange(50), 10)
    for place in (0, 1, 7, 49):
        for pair in range(5):
            angle = place / 10000 ** (2 * pair / 10)
            assert table[place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_products_of_sinusoidal_positions_depend_on_the_distance_only():
    table = sinusoidal_positions(torch.arange(40), 16)
    products = table @ table.T
    for distance in (0, 3, 17):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), **EXACT)
    assert products[0, 0].item() == pytest.approx(8.0) and (products.diagonal(3) < 8.0).all()


@pytest.mark.parametrize("function", [sinusoidal_positions, rotary_angles])
@pytest.mark.parametrize(("width", "base"), [(5, 10.0), (0, 10.0), (-2, 10.0), (4, 0.0), (4, -1.0)])
def test_widths_and_bases_that_give_no_pairs_are_refused(function, width, base):
    with pytest.raises(ConfigError, match="even d_head or d_model and a positive base"):
        function(torch.arange(3), width, base)


def test_linear_scaling_is_positions_divided():
    for positions in (torch.arange(6), torch.tensor([100, 4000])):
        slowed = positions[:, None] * scaled_frequencies(8, 500.0, "linear", 4.0)
        torch.testing.assert_close(slowed, rotary_angles(positions / 4.0, 8, 500.0), **EXACT)


def test_ntk_scaling_slows_the_slowest_by_the_factor_and_the_fastest_not_at_all():
    before, after = pair_frequencies(16, 10000.0), scaled_frequencies(16, 10000.0, "ntk", 8.0)
    ratios = (before / after).tolist()
    assert ratios[0] == 1.0 and ratios[-1] == pytest.approx(8.0, rel=1e-12)
    assert ratios == sorted(ratios)
    torch.testing.assert_close(after, pair_frequencies(16, ntk_base(10000.0, 8.0, 16)), **EXACT)


def test_llama3_scaling_pair_by_pair():
    d_head, base, factor, trained_len = 16, 500.0, 8.0, 256
    expected = []
    for pair in range(d_head // 2):
        speed = base ** (-2 * pair / d_head)
        turns = trained_len * speed / (2 * math.pi)
        if turns > 4:
            expected.append(speed)
        elif turns < 1:
            expected.append(speed / factor)
        else:
            smooth = (turns - 1) / 3
            expected.append((1 - smooth) * speed / factor + smooth * speed)
    got = scaled_frequencies(d_head, base, "llama3", factor, trained_len)
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    ratios = (pair_frequencies(d_head, base) / got).tolist()
    assert ratios[0] == 1.0 and ratios[-1] == factor and any(1.01 < ratio < factor - 0.01 for ratio in ratios)


@pytest.mark.parametrize("scaling", ROTARY_SCALINGS)
def test_a_factor_of_one_changes_nothing(scaling):
    got = scaled_frequencies(8, 100.0, scaling, 1.0, trained_len=32)
    torch.testing.assert_close(got, pair_frequencies(8, 100.0), **EXACT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("yarn", 2.0, 8), "scaling is 'yarn'"),
        (("none", 2.0, 8), "factor is 2.0 with scaling 'none'"),
        (("linear", 0.5, 8), "factor is 0.5"),
        (("linear", float("nan"), 8), "factor is nan"),
        (("llama3", 2.0, 0), "trained length is 0"),
    ],
)
def test_scalings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        scaled_frequencies(8, 100.0, *settings)
    with pytest.raises(ConfigError, match="at least 4"):
        scaled_frequencies(2, 100.0, "ntk", 2.0)
