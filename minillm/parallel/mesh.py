"""A grid of ranks: data parallel x pipeline parallel x tensor parallel, and the groups along each of its axes.

Tensor-parallel ranks talk most, so they are neighbours: rank = (dp_index * pp + pp_index) * tp + tp_index.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from minillm.errors import ConfigError
from minillm.parallel.comm import Comm

AXES = ("dp", "pp", "tp")


@dataclass(frozen=True)
class MeshSize:
    """How many ranks there are along each axis.

    Args:
        dp: data parallel: copies that see different rows.
        pp: pipeline parallel: stages of consecutive layers.
        tp: tensor parallel: parts of each layer.

    Raises:
        ConfigError: if a number is below 1.

    Example:
        >>> MeshSize.parse("dp=2,tp=2")
        MeshSize(dp=2, pp=1, tp=2)
        >>> MeshSize(2, 2, 2).coordinates(6)
        {'dp': 1, 'pp': 1, 'tp': 0}
        >>> MeshSize(2, 2, 2).groups("pp")
        [[0, 2], [1, 3], [4, 6], [5, 7]]
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self):
        for axis in fields(self):
            if getattr(self, axis.name) < 1:
                raise ConfigError(f"{axis.name} is {getattr(self, axis.name)}, expected 1 or more")

    @classmethod
    def parse(cls, text: str) -> "MeshSize":
        """Read "dp=2,tp=2,pp=1"; an axis that is not named has size 1.

        Raises:
            ConfigError: if it reads otherwise.
        """
        sizes: dict[str, int] = {}
        for word in filter(None, text.replace(" ", "").split(",")):
            axis, _, size = word.partition("=")
            if axis not in AXES or not size.isdigit() or axis in sizes:
                raise ConfigError(f"mesh {text!r}: {word!r} is not one of dp=N, pp=N, tp=N; write dp=2,tp=2")
            sizes[axis] = int(size)
        return cls(**sizes)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.dp * self.pp * self.tp

    def grid(self) -> np.ndarray:
        """The ranks, (dp, pp, tp)."""
        return np.arange(self.world_size).reshape(self.dp, self.pp, self.tp)

    def coordinates(self, rank: int) -> dict[str, int]:
        """A rank's place on each axis."""
        places = np.unravel_index(rank, (self.dp, self.pp, self.tp))
        return {axis: int(place) for axis, place in zip(AXES, places, strict=True)}

    def groups(self, axis: str) -> list[list[int]]:
        """Ranks that differ in their place on this axis only; every rank is in exactly one group."""
        place = AXES.index(axis)
        return np.moveaxis(self.grid(), place, -1).reshape(-1, getattr(self, axis)).tolist()

    def __str__(self) -> str:
        return ",".join(f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1) or "dp=1"


class Mesh:
    """The grid as one rank sees it: a `Comm` along each axis.

    Args:
        size: of the grid.
        world: all ranks.

    Attributes:
        dp, pp, tp: this rank's group along each axis.

    Raises:
        ConfigError: if the grid has not as many places as there are ranks.
    """

    def __init__(self, size: MeshSize, world: Comm):
        if size.world_size != world.size:
            raise ConfigError(
                f"a mesh of dp={size.dp}, pp={size.pp}, tp={size.tp} has {size.world_size} places, there are "
                f"{world.size} ranks; change the mesh or start {size.world_size} processes"
            )
        self.size, self.world = size, world
        self.place = size.coordinates(world.rank)
        self.dp, self.pp, self.tp = (world.subgroup(size.groups(axis), axis) for axis in AXES)

    def comm(self, axis: str) -> Comm:
        """The group along "dp", "pp" or "tp"."""
        return {"dp": self.dp, "pp": self.pp, "tp": self.tp}[axis]

    def to_device_mesh(self, device_type: str = "cpu") -> Any:
        """The same grid for PyTorch's own engines, a DeviceMesh with dimensions dp, pp and tp.

        Called by all ranks. Only ranks that are processes have one.
        """
        from torch.distributed.device_mesh import DeviceMesh

        return DeviceMesh(device_type, self.size.grid(), mesh_dim_names=AXES)
