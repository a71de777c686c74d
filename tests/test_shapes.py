"""Named dimensions at the door of a function."""

import numpy as np
import pytest
import torch

from minillm.errors import ShapeError
from minillm.shapes import check_shape


def test_learns_letters_for_torch_and_numpy():
    sizes = {}
    check_shape("a", torch.zeros(2, 3), "B T", sizes)
    check_shape("b", np.zeros((3, 5)), "T 5", sizes)
    assert sizes == {"B": 2, "T": 3}


@pytest.mark.parametrize("shape", [(2,), (2, 4), (2, 3, 1)])
def test_refuses_and_learns_nothing(shape):
    sizes = {"T": 3}
    with pytest.raises(ShapeError, match="T=3"):
        check_shape("x", np.zeros(shape), "B T", sizes)
    assert sizes == {"T": 3}


def test_one_letter_twice_must_agree():
    with pytest.raises(ShapeError):
        check_shape("x", np.zeros((2, 3)), "N N", {})
    check_shape("x", np.zeros((3, 3)), "N N", {})


def test_open_front():
    sizes = {}
    check_shape("x", np.zeros((7, 8, 2, 3)), "... T D", sizes)
    assert sizes == {"T": 2, "D": 3}
    with pytest.raises(ShapeError):
        check_shape("x", np.zeros(3), "... T D", {})
