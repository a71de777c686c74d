"""Rotary positions: the oracle is multiplication of complex numbers by e^(i * angle)."""

import pytest
import torch

from minillm.errors import ConfigError
from minillm.nn.position import rotary_angles, rotate


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
