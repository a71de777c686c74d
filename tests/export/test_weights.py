"""Matches: both directions of each kind, and what a family's list may not forget."""

import pytest
import torch

from minillm.errors import CheckpointError
from minillm.export.weights import (
    check_tensors,
    interleaved_rows,
    joined_rows,
    same,
    stacked,
    to_ours,
    to_theirs,
    transposed,
)

MATCHES = [
    (same("a", "b"), (3, 2)),
    (transposed("a", "b"), (3, 2)),
    (joined_rows("a", ("q", "k", "v"), (4, 1, 1)), (6, 2)),
    (interleaved_rows("a", "b", 3, 2), (12, 5)),
    (interleaved_rows("a", "b", 3, 2), (12,)),
    (stacked("a", ("b", "c")), (2, 3, 4)),
]


@pytest.mark.parametrize("match, shape", MATCHES)
def test_back_is_there_reversed(match, shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = to_theirs({"a": tensor}, [match])
    assert set(theirs) == set(match.theirs) and all(value.is_contiguous() for value in theirs.values())
    assert torch.equal(to_ours(theirs.__getitem__, [match])["a"], tensor)


def test_interleaved_rows_are_head_by_head():
    ours = torch.arange(12).reshape(3, 2, 2)  # part, head, row
    (theirs,) = interleaved_rows("a", "b", n_parts=3, n_groups=2).part(ours.flatten())
    expected = [ours[part, head, row].item() for head in range(2) for part in range(3) for row in range(2)]
    assert theirs.tolist() == expected


def test_a_parameter_without_a_place_is_not_lost_silently():
    with pytest.raises(CheckpointError, match="^extra: their format has no place"):
        to_theirs({"a": torch.ones(1), "extra": torch.ones(1)}, [same("a", "b")])


def test_ignored_names_may_be_there_and_no_others():
    found = {"b": (1,), "mask.bias": (4,)}
    check_tensors("DIR", {"b": (1,)}, found, [r"mask\.bias$"])
    with pytest.raises(CheckpointError, match="missing: none; unexpected: mask.bias"):
        check_tensors("DIR", {"b": (1,)}, found, [r"mask\.weight$"])
