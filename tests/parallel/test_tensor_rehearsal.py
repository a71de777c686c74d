"""The small stage of chapter 20: every region comes back with what torch's own derivatives of the whole say."""

import pytest
import torch
from torch.nn import functional as F

from minillm.errors import ConfigError
from minillm.parallel.tensor_rehearsal import REGIONS, rehearse_losses, rehearse_region, rehearse_row_parallel


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_region_says_what_it_does():
    x = [normal(2, 4, 4, seed=rank) for rank in range(2)]
    shapes = {"scatter": (2, 4, 2), "gather": (2, 4, 8), "scatter positions": (2, 2, 4), "gather positions": (2, 8, 4)}
    shapes["reduce-scatter positions"] = (2, 2, 4)
    said = {
        "copy": ["all_reduce"],
        "reduce": ["all_reduce"],
        "scatter": ["all_gather"],
        "gather": ["all_gather"],
        "scatter positions": ["all_gather"],
        "gather positions": ["all_gather", "reduce_scatter"],
        "reduce-scatter positions": ["reduce_scatter", "all_gather"],
    }
    for name in REGIONS:
        gradients = [normal(*shapes.get(name, (2, 4, 4)), seed=5 + rank) for rank in range(2)]
        for rank, (value, gradient, other, words) in enumerate(rehearse_region(name, x, gradients)):
            assert value.shape == gradients[rank].shape and gradient.shape == x[rank].shape
            assert torch.equal(other, gradients[rank]) and words == said[name]
    with pytest.raises(ConfigError, match="'fold' is unknown"):
        rehearse_region("fold", x, x)


def test_a_layer_and_a_loss_in_parts_are_the_whole_ones():
    x, weight, bias, upstream = normal(2, 3, 4), normal(5, 4), normal(5), normal(2, 3, 5)
    for y, *_ in rehearse_row_parallel(x.chunk(2, -1), weight, bias, [upstream] * 2):
        torch.testing.assert_close(y, F.linear(x, weight, bias))
    logits, targets = normal(3, 6), torch.tensor([5, 0, 2])
    expected = F.cross_entropy(logits, targets, reduction="none")
    for losses, _, after, numbers in rehearse_losses(logits.chunk(3, -1), targets):
        torch.testing.assert_close(losses, expected)
        assert after.shape == (3, 2) and numbers == [3, 6]
