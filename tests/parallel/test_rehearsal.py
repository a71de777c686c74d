"""What the rehearsals show is what happens."""

import pytest
import torch

from minillm.errors import CommError, ConfigError
from minillm.parallel import rings
from minillm.parallel.rehearsal import RINGS, rehearse_buckets, rehearse_collective, rehearse_reduction


def test_collectives_and_their_messages():
    tensors = [torch.arange(6.0) * 10**rank for rank in range(3)]
    for name in RINGS:
        for rank, (result, sent) in enumerate(rehearse_collective(name, tensors)):
            if name == "ring_reduce_scatter":
                assert torch.equal(result, sum(tensors)[2 * rank : 2 * rank + 2]) and sent == [8, 8]
            elif name.endswith("all_reduce"):
                assert torch.equal(result, sum(tensors))
    assert torch.equal(tensors[1], torch.arange(6.0) * 10), "the given tensors must stay as they were"
    with pytest.raises(ConfigError, match="ring_sum"):
        rehearse_collective("ring_sum", tensors)


def test_a_deadlock_ends(monkeypatch):
    monkeypatch.setattr("minillm.parallel.rehearsal.PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(rings, "ring_all_gather", lambda tensor, comm: comm.recv(tensor, 0))
    with pytest.raises(CommError):
        rehearse_collective("ring_all_gather", [torch.ones(1), torch.ones(1)])


def test_reductions_and_buckets():
    gradients = [[torch.ones(2), None, None], [torch.ones(2), torch.full((1,), 3.0), None]]
    for found in rehearse_reduction(gradients, 0.5):
        assert found[0].tolist() == [1.0, 1.0] and found[1].tolist() == [1.5] and found[2] is None
    (first, _), (second, found) = rehearse_buckets(gradients, [[0], [1, 0]], bucket_bytes=4, scale=1.0)
    assert first == [[], [0, 1, 2]] and second == [[], [], [0, 1, 2]], "the third one never comes"
    assert found[0].tolist() == [2.0, 2.0] and found[1].tolist() == [3.0] and found[2] is None
