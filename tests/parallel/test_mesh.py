"""The grid of ranks: every rank in one group per axis, neighbours first, and a refusal when it does not fit."""

import itertools

import pytest
import torch

from minillm.errors import ConfigError
from minillm.parallel.comm import CommCounter
from minillm.parallel.launch import launch
from minillm.parallel.mesh import AXES, Mesh, MeshSize
from minillm.parallel.threads import launch_threads


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3), (2, 2, 2), (3, 4, 2)])
def test_groups_partition_the_ranks_along_each_axis(sizes):
    size = MeshSize(*sizes)
    places = {rank: size.coordinates(rank) for rank in range(size.world_size)}
    assert sorted(tuple(place.values()) for place in places.values()) == list(itertools.product(*map(range, sizes)))
    for axis in AXES:
        groups = size.groups(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(size.world_size))
        for group in groups:
            assert [places[rank][axis] for rank in group] == list(range(getattr(size, axis)))
            others = {tuple(place for name, place in places[rank].items() if name != axis) for rank in group}
            assert len(others) == 1


def test_tensor_parallel_ranks_are_neighbours_and_data_parallel_ones_far_apart():
    size = MeshSize(2, 2, 2)
    assert size.groups("tp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert size.groups("dp") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    for rank in range(8):
        place = size.coordinates(rank)
        assert rank == (place["dp"] * 2 + place["pp"]) * 2 + place["tp"]


def test_words():
    assert MeshSize.parse("tp=2, dp=3") == MeshSize(3, 1, 2)
    assert MeshSize.parse("") == MeshSize()
    assert str(MeshSize(2, 1, 4)) == "dp=2,tp=4" and str(MeshSize()) == "dp=1"
    assert MeshSize.parse(str(MeshSize(2, 3, 4))) == MeshSize(2, 3, 4)
    for wrong in ("dp", "dp=x", "xp=2", "dp=2,dp=2", "dp=-1", "dp=1.5"):
        with pytest.raises(ConfigError, match="write dp=2,tp=2"):
            MeshSize.parse(wrong)
    with pytest.raises(ConfigError, match="pp is 0"):
        MeshSize.parse("pp=0")


def sums(comm):
    mesh = Mesh(MeshSize(2, 2, 2), comm)
    found = {}
    for axis in AXES:
        number = torch.tensor([2.0**comm.rank])
        mesh.comm(axis).all_reduce(number)
        found[axis] = int(number)
    return mesh.place, found, [mesh.comm(axis).ranks for axis in AXES], comm.counter.count(group="tp")


@pytest.mark.parametrize("start", [launch, launch_threads])
def test_each_group_sums_over_its_own_ranks(start):
    counters = [CommCounter() for _ in range(8)]
    for rank, (place, found, ranks, n_tp) in enumerate(start(sums, 8, counters=counters, timeout_seconds=20)):
        size = MeshSize(2, 2, 2)
        assert place == size.coordinates(rank) and n_tp == 1
        for axis, group in zip(AXES, ranks, strict=True):
            assert group == next(group for group in size.groups(axis) if rank in group)
            assert found[axis] == sum(2**other for other in group)


def test_device_mesh_is_the_same_grid():
    def ranks_of(comm):
        mesh = Mesh(MeshSize(dp=2, tp=2), comm)
        theirs = mesh.to_device_mesh()
        return theirs.mesh.tolist(), [theirs[axis].mesh.tolist() for axis in AXES], [mesh.dp.ranks, mesh.tp.ranks]

    for grid, theirs, ours in launch(ranks_of, 4, timeout_seconds=20, show_output=False):
        assert grid == MeshSize(dp=2, tp=2).grid().tolist()
        assert [theirs[0], theirs[2]] == ours


def test_world_that_does_not_fit():
    def wrong(comm):
        with pytest.raises(ConfigError, match="dp=2, pp=1, tp=2 has 4 places, there are 3 ranks"):
            Mesh(MeshSize(dp=2, tp=2), comm)
        return True

    assert launch_threads(wrong, 3) == [True] * 3
