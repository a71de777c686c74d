"""The oracle is one backward pass over the whole batch with torch's own mean loss."""

import pytest
import torch
from torch import nn

from minillm.errors import ShapeError
from minillm.train.accumulation import accumulate_gradients


def make():
    generator = torch.Generator().manual_seed(0)
    table = nn.Embedding(7, 7, dtype=torch.float64)
    nn.init.normal_(table.weight, generator=generator)
    inputs, targets = torch.randint(7, (2, 5, 4), generator=generator)
    targets[0, 1:] = targets[3] = -100
    return table, inputs, targets


@pytest.mark.parametrize("n_microbatches", [1, 2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_parts_add_up_to_the_whole(n_microbatches, scale):
    table, inputs, targets = make()
    expected = nn.functional.cross_entropy(table(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
    expected.backward()
    gradient, table.weight.grad = table.weight.grad, None
    loss = accumulate_gradients(table, inputs, targets, n_microbatches, scale=scale)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(table.weight.grad, scale * gradient, rtol=1e-11, atol=1e-13)
    accumulate_gradients(table, inputs, targets, n_microbatches, scale=scale)
    torch.testing.assert_close(table.weight.grad, 2 * scale * gradient, rtol=1e-11, atol=1e-13)


def test_only_one_part_at_a_time():
    table, inputs, targets = make()
    seen = []

    def loss_sum(model, part_inputs, part_targets):
        seen.append(len(part_inputs))
        return model(part_inputs).sum()

    accumulate_gradients(table, inputs, targets, 3, loss_sum)
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("n_microbatches", [0, 6, -1])
def test_refused(n_microbatches):
    table, inputs, targets = make()
    with pytest.raises(ShapeError, match="parts"):
        accumulate_gradients(table, inputs, targets, n_microbatches)
    with pytest.raises(ShapeError, match="expected one"):
        accumulate_gradients(table, inputs, targets[:4], 2)
