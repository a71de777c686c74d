"""Batches as pure functions of seed and step. Tokens are 0, 1, 2, ... so that an input names its own place."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from minillm.data.batches import DocumentBatches, RandomWindows, SequentialBatches, StreamBatches
from minillm.data.packing import pack
from minillm.errors import ConfigError, DataError
from minillm.tokenizers.bytes import ByteTokenizer

KINDS = [SequentialBatches, RandomWindows]


def rows(batches, steps):
    return np.concatenate([batches.batch(step)[0] for step in steps])


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_next_tokens(kind):
    inputs, targets = kind(np.arange(100, dtype=np.uint16), 3, 7, seed=1).batch(5)
    assert inputs.shape == targets.shape == (3, 7) and inputs.dtype == targets.dtype == np.int64
    assert (np.diff(inputs, axis=1) == 1).all() and (targets == inputs + 1).all() and targets.max() <= 99
    assert inputs.flags["C_CONTIGUOUS"] and targets.flags["C_CONTIGUOUS"] and inputs.flags["OWNDATA"]


@pytest.mark.parametrize("n_tokens", [41, 45, 40])
def test_every_window_exactly_once_per_epoch_without_gap_at_the_borders(n_tokens):
    """10 (or 9) windows in batches of 3: epochs end inside batches."""
    batches = SequentialBatches(np.arange(n_tokens), 3, 4, seed=0)
    n_windows = (n_tokens - 1) // 4
    assert (batches.n_windows, batches.batches_per_epoch) == (n_windows, -(-n_windows // 3))
    starts = rows(batches, range(3 * n_windows))[:, 0].reshape(9, n_windows)           # nine whole epochs
    for epoch in starts:
        offset = epoch.min()
        assert 0 <= offset <= n_tokens - 1 - 4 * n_windows
        assert sorted(epoch - offset) == list(range(0, 4 * n_windows, 4))
    assert len({tuple(epoch) for epoch in starts}) == 9                                 # each in an order of its own


def test_offsets_reach_every_token():
    batches = SequentialBatches(np.arange(44), 10, 4, seed=0)                           # 3 tokens are left over
    assert {int(batches.batch(epoch)[0].min()) for epoch in range(40)} == {0, 1, 2, 3}
    assert {int(batches.batch(epoch)[1].max()) for epoch in range(40)} == {40, 41, 42, 43}


def test_without_shuffling_the_text_comes_in_order():
    batches = SequentialBatches(np.arange(44), 2, 4, seed=0, shuffle=False)
    assert rows(batches, range(5)).ravel().tolist() == list(range(40))
    assert rows(batches, range(5, 10)).ravel().tolist() == list(range(40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("restart", [0, 1, 6, 7, 9, 10, 19, 20, 21])
def test_restart_at_any_step(kind, restart):
    """With 10 windows and batches of 3 step 10 is an epoch border, steps 6 and 7 lie in the middle of epoch 2."""
    uninterrupted = [kind(np.arange(43), 3, 4, seed=5)] * 25
    expected = [batches.batch(step) for step, batches in enumerate(uninterrupted)]
    resumed = kind(np.arange(43), 3, 4, seed=5)
    for step in range(restart, 25):
        np.testing.assert_array_equal(resumed.batch(step), expected[step])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_any_order(kind):
    forward, backward = kind(np.arange(43), 3, 4, seed=5), kind(np.arange(43), 3, 4, seed=5)
    expected = {step: forward.batch(step) for step in range(25)}
    for step in reversed(range(25)):
        np.testing.assert_array_equal(backward.batch(step), expected[step])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_global_batch(kind, world_size):
    tokens = np.arange(200)
    whole = kind(tokens, 4 * world_size, 8, seed=3)
    ranks = [kind(tokens, 4, 8, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(20):
        for part in (0, 1):
            together = np.concatenate([batches.batch(step)[part] for batches in ranks])
            np.testing.assert_array_equal(together, whole.batch(step)[part])


def test_ranks_see_different_windows():
    ranks = [SequentialBatches(np.arange(201), 5, 4, seed=3, rank=rank, world_size=5) for rank in range(5)]
    starts = [int(start) for batches in ranks for start in rows(batches, range(2))[:, 0]]
    assert len(set(starts)) == 50 and ranks[0].batches_per_epoch == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    one, two = kind(np.arange(1000), 8, 4, seed=1), kind(np.arange(1000), 8, 4, seed=2)
    assert not np.array_equal(one.batch(0), two.batch(0)) and not np.array_equal(one.batch(0), one.batch(1))


def test_random_starts_are_equally_likely_the_first_and_the_last_included():
    batches = RandomWindows(np.arange(25), 100, 5, seed=0)
    counts = Counter(rows(batches, range(200))[:, 0].tolist())
    assert set(counts) == set(range(20))                       # 25 - 5 starts; the target of 19 + 4 is the last token
    assert chisquare([counts[start] for start in range(20)]).pvalue > 0.001
    for row in (0, 57, 99):
        by_row = Counter(int(batches.batch(step)[0][row, 0]) for step in range(2000))
        assert chisquare([by_row[start] for start in range(20)]).pvalue > 0.001


@pytest.mark.parametrize("kind", KINDS)
def test_packed_tokens_memory_map_and_array_agree(kind, tmp_path):
    tokens = pack(["some text " * 30, "more"], ByteTokenizer(), tmp_path / "packed", shard_tokens=50)
    tokens[:].astype(np.uint16).tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r")
    for step in (0, 3, 40):
        expected = kind(tokens[:], 4, 16, seed=0).batch(step)
        np.testing.assert_array_equal(kind(tokens, 4, 16, seed=0).batch(step), expected)
        np.testing.assert_array_equal(kind(mapped, 4, 16, seed=0).batch(step), expected)
        assert type(kind(mapped, 4, 16, seed=0).batch(step)[0]) is np.ndarray


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_of_one_window(kind):
    batches = kind(np.arange(5), 3, 4, seed=0)
    assert batches.batch(0)[0].tolist() == [[0, 1, 2, 3]] * 3 and batches.batch(7)[1].tolist() == [[1, 2, 3, 4]] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_tokens", [0, 1, 4])
def test_a_corpus_shorter_than_the_context(kind, n_tokens):
    with pytest.raises(DataError, match=f"the corpus has {n_tokens} tokens, but one window of context 4 needs 5"):
        kind(np.arange(n_tokens), 2, 4, seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"seq_len": 0}, "seq_len must be at least 1, not 0"),
        ({"world_size": 0}, "world_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"rank": 2, "world_size": 2}, r"rank must lie between 0 and 1 for 2 rank\(s\), not 2"),
        ({"rank": -1}, "rank must lie between 0 and 0"),
    ],
)
def test_settings_out_of_range(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**{"tokens": np.arange(50), "batch_size": 2, "seq_len": 4, "seed": 0, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_step_and_shape(kind):
    with pytest.raises(DataError, match="step must be at least 0, not -1"):
        kind(np.arange(50), 2, 4, seed=0).batch(-1)
    with pytest.raises(DataError, match=r"shape \(5, 10\)"):
        kind(np.zeros((5, 10), np.int64), 2, 4, seed=0)


def test_document_batches_hold_whole_documents_from_their_beginning():
    end, documents = 9, [[1, 2, 3], [4], [5, 6], [], [7, 8, 7, 8, 7]]
    tokens = np.array([token_id for document in documents for token_id in (*document, end)])
    batches = DocumentBatches(tokens, end, batch_size=2, seq_len=8, seed=3)
    seen = []
    for step in range(5):                                          # two epochs of five rows
        inputs, targets = batches.batch(step)
        for row_inputs, row_targets in zip(inputs.tolist(), targets.tolist(), strict=True):
            row_targets = [target for target in row_targets if target != -100]
            assert row_inputs[: len(row_targets)] == [end, *row_targets[:-1]]
            assert set(row_inputs[len(row_targets) :]) <= {end}
            seen.append(tuple(row_targets))
    expected = sorted((*document, end) for document in documents)
    assert sorted(seen[:5]) == sorted(seen[5:]) == expected and seen[:5] != seen[5:]
    assert batches.batches_per_epoch == 3


def test_long_documents_become_several_rows_that_continue():
    tokens = np.array([1, 2, 3, 4, 5, 9])
    batches = DocumentBatches(tokens, 9, batch_size=2, seq_len=4, seed=0)
    inputs, targets = batches.batch(0)
    rows = sorted(zip(inputs.tolist(), targets.tolist(), strict=True), key=lambda row: row[1][0])
    assert rows == [([9, 1, 2, 3], [1, 2, 3, 4]), ([4, 5, 9, 9], [5, 9, -100, -100])]


def test_document_batches_of_ranks_are_parts_of_one_batch_and_any_step_can_be_asked_for():
    tokens = np.array([token_id for length in range(7) for token_id in (*range(length), 9)])
    whole = DocumentBatches(tokens, 9, batch_size=4, seq_len=8, seed=1)
    parts = [DocumentBatches(tokens, 9, batch_size=2, seq_len=8, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    for step in (5, 0, 3):
        expected = [[t for t in row if t != -100] for row in whole.batch(step)[1].tolist()]
        found = [[t for t in row if t != -100] for part in parts for row in part.batch(step)[1].tolist()]
        assert found == expected


@pytest.mark.parametrize("tokens", [[], [1, 2]])
def test_document_batches_need_the_end_of_a_document(tokens):
    with pytest.raises(DataError, match="end-of-text"):
        DocumentBatches(np.array(tokens, dtype=np.int64), 9, batch_size=1, seq_len=4, seed=0)


@pytest.mark.parametrize(("n_tokens", "seq_len"), [(41, 4), (43, 4), (41, 20), (25, 7), (4, 3)])
def test_streams_go_on_where_they_stopped(n_tokens, seq_len):
    batches = StreamBatches(np.arange(n_tokens), 3, seq_len)
    length = (n_tokens - 1) // 3
    assert batches.batches_per_epoch == -(-length // seq_len)
    pieces = [batches.batch(step) for step in range(batches.batches_per_epoch)]
    for inputs, targets in pieces:
        assert inputs.dtype == targets.dtype == np.int64 and (targets == inputs + 1).all()
    whole = np.concatenate([inputs for inputs, _ in pieces], axis=1)
    assert whole.tolist() == np.arange(3 * length).reshape(3, length).tolist()
    assert [step for step in range(len(pieces)) if batches.begins_anew(step)] == [0]
    again = batches.batch(5 * batches.batches_per_epoch)
    assert np.array_equal(again[0], pieces[0][0]) and batches.begins_anew(5 * batches.batches_per_epoch)


def test_ranks_share_the_streams():
    alone = StreamBatches(np.arange(100), 6, 5)
    parts = [StreamBatches(np.arange(100), 2, 5, rank, 3) for rank in range(3)]
    for step in range(7):
        together = np.concatenate([part.batch(step)[1] for part in parts])
        assert np.array_equal(alone.batch(step)[1], together)


def test_streams_refuse_what_they_cannot_cut():
    with pytest.raises(DataError, match="4 tokens are too few for 4 streams"):
        StreamBatches(np.arange(4), 4, 5)
    with pytest.raises(DataError, match="step must be at least 0"):
        StreamBatches(np.arange(40), 4, 5).batch(-1)
    for sizes in ((0, 5), (4, 0), (4, 5, 1, 1)):
        with pytest.raises(ConfigError):
            StreamBatches(np.arange(40), *sizes)
