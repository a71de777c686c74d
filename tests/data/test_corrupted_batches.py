"""Batches of a denoising objective: static and dynamic, padded to one shape, the same at every restart."""

import numpy as np
import pytest

from minillm.data.batches import NOT_COUNTED, DocumentBatches, RandomWindows, SequentialBatches
from minillm.data.corrupted_batches import CorruptedBatches, pad_rows, pair_batch
from minillm.data.corruption import corrupt_spans, restore_spans
from minillm.data.masking import MaskingConfig, mask_tokens, unmask_tokens
from minillm.errors import ConfigError, DataError
from minillm.train.loss import IGNORED

MASKING = MaskingConfig(vocab_size=200, mask_id=101)


def mask_row(ids, generator):
    return mask_tokens(ids, MASKING, generator)


def windows(shuffle=True):
    return SequentialBatches(np.arange(1, 82), batch_size=2, seq_len=10, seed=0, shuffle=shuffle)


def test_the_loss_ignores_what_is_not_counted():
    assert NOT_COUNTED == IGNORED


@pytest.mark.parametrize("n_versions", [0, 2])
def test_masked_rows_are_those_of_the_windows(n_versions):
    batches = CorruptedBatches(windows(), mask_row, seed=3, pad_id=0, n_versions=n_versions)
    for step in (0, 5, 17):
        inputs, targets = batches.batch(step)
        assert inputs.shape == targets.shape == (2, 10) and inputs.dtype == targets.dtype == np.int64
        assert (unmask_tokens(inputs, targets) == windows().batch(step)[0]).all()
        again = CorruptedBatches(windows(), mask_row, seed=3, pad_id=0, n_versions=n_versions).batch(step)
        assert (again[0] == inputs).all() and (again[1] == targets).all()


def test_static_masking_repeats_dynamic_does_not():
    def epochs(n_versions):
        batches = CorruptedBatches(windows(shuffle=False), mask_row, seed=3, pad_id=0, n_versions=n_versions)
        assert batches.windows.batches_per_epoch == 4
        targets = [batches.batch(step)[1].tolist() for step in range(24)]
        return [targets[step : step + 4] for step in range(0, 24, 4)]

    once, two, dynamic = epochs(1), epochs(2), epochs(0)
    assert all(epoch == once[0] for epoch in once)
    assert two[0] == two[2] == two[4] and two[1] == two[3] == two[5] and two[0] != two[1]
    assert len({str(epoch) for epoch in dynamic}) == 6


def test_rows_of_a_batch_are_corrupted_differently():
    batches = CorruptedBatches(RandomWindows(np.full(100, 7), 8, 40, seed=0), mask_row, seed=0, pad_id=0)
    assert len({str(row) for row in batches.batch(0)[1].tolist()}) == 8


def test_spans_of_documents_come_back_from_a_batch():
    sentinels = list(range(150, 160))
    documents = DocumentBatches(np.array([*range(1, 31), 0, *range(31, 50), 0]), 0, 2, 60, seed=0)
    batches = CorruptedBatches(documents, lambda ids, rng: corrupt_spans(ids[1:], sentinels, rng), 0, pad_id=199)
    inputs, targets = batches.batch(0)
    texts = [row[row > 0].tolist() for row in documents.batch(0)[0]]
    for row in range(2):
        text = restore_spans(inputs[row][inputs[row] != 199], targets[row][targets[row] != -100], sentinels)
        assert text.tolist() == texts[row]


def test_padding():
    assert pad_rows([[1], []], 9, 3).tolist() == [[1, 9, 9], [9, 9, 9]]
    assert pad_rows([], 9).shape == (0, 0)
    inputs, targets = pair_batch([([5], [7, NOT_COUNTED, 8])], pad_id=0)
    assert inputs.tolist() == [[5, 0, 0]] and targets.tolist() == [[7, -100, 8]]


def test_bad_input():
    with pytest.raises(DataError, match="padding id 5"):
        pair_batch([([5], [7])], pad_id=5)
    with pytest.raises(DataError, match="no pair"):
        pair_batch([], pad_id=5)
    with pytest.raises(DataError, match="shorten"):
        pad_rows([[1, 2]], 0, 1)
    with pytest.raises(ConfigError, match="seed"):
        CorruptedBatches(windows(), mask_row, seed=-1, pad_id=0)
    with pytest.raises(ConfigError, match="epochs"):
        CorruptedBatches(RandomWindows(np.arange(50), 2, 4, 0), mask_row, seed=0, pad_id=0, n_versions=1)
