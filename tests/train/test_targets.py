"""The loss shift: its use together with the loss, beside what the graders of chapter 12 check."""

import numpy as np
import pytest
import torch

from minillm.data.batches import SequentialBatches
from minillm.errors import ShapeError
from minillm.train.loss import token_cross_entropy
from minillm.train.targets import next_token_targets


def test_the_loss_of_shifted_targets_is_that_of_cut_logits():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(token_cross_entropy(logits, next_token_targets(ids)), expected, rtol=1e-12, atol=0.0)


def test_targets_are_those_of_batches_but_for_the_last():
    inputs, targets = SequentialBatches(np.arange(30), batch_size=3, seq_len=6, seed=0).batch(0)
    shifted = next_token_targets(torch.from_numpy(inputs))
    assert shifted[:, :-1].tolist() == targets[:, :-1].tolist() and shifted[:, -1].tolist() == [-100] * 3


@pytest.mark.parametrize("counted", [torch.ones(3, dtype=torch.bool), torch.ones(1, 3)], ids=["shape", "dtype"])
def test_a_mask_that_does_not_fit_is_refused(counted):
    with pytest.raises(ShapeError, match="expected bool of shape"):
        next_token_targets(torch.tensor([[1, 2, 3]]), counted)
