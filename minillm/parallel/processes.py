"""Ranks as processes: PyTorch's collectives over gloo or NCCL, and how a process joins the others.

The names of torch's functions change between releases; they are used here and nowhere else.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minillm.errors import CommError, ConfigError, DeviceError
from minillm.parallel.board import Board
from minillm.parallel.comm import Comm, CommCounter, SlowLink

BACKENDS = ("gloo", "nccl")
OPERATIONS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
# torch 2.13 gave the two a new name and warns of the old one; older releases know the old one only.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class TorchBackend:
    """The collectives of a process group, on flat tensors: torch would compare shapes; see `comm.Backend`.

    Args:
        group: torch's process group; None is the whole world.
        timeout_seconds: of the groups made from it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout_seconds: float = 60.0):
        self.group = group if group is not None else dist.group.WORLD
        self.timeout_seconds = timeout_seconds
        self.rank = dist.get_rank()
        self.ranks = dist.get_process_group_ranks(self.group)
        is_nccl = dist.get_backend(self.group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")

    def all_reduce(self, tensor: Tensor, op: str) -> Any:
        return dist.all_reduce(tensor, OPERATIONS[op], group=self.group, async_op=True)

    def reduce_scatter(self, output: Tensor, tensor: Tensor, op: str) -> Any:
        return _reduce_scatter(output.view(-1), tensor.view(-1), OPERATIONS[op], group=self.group, async_op=True)

    def all_gather(self, output: Tensor, tensor: Tensor) -> Any:
        return _all_gather(output.view(-1), tensor.view(-1), group=self.group, async_op=True)

    def all_to_all(self, output: Tensor, tensor: Tensor) -> Any:
        return dist.all_to_all_single(output.view(-1), tensor.view(-1), group=self.group, async_op=True)

    def broadcast(self, tensor: Tensor, source: int) -> Any:
        return dist.broadcast(tensor, source, group=self.group, async_op=True)

    def send(self, tensor: Tensor, target: int, tag: int) -> Any:
        return dist.isend(tensor, target, group=self.group, tag=tag)

    def recv(self, tensor: Tensor, source: int, tag: int) -> Any:
        return dist.irecv(tensor, source, group=self.group, tag=tag)

    def exchange(self, outgoing: Tensor, target: int, incoming: Tensor, source: int, tag: int) -> "Together":
        sending = dist.P2POp(dist.isend, outgoing, target, self.group, tag)
        receiving = dist.P2POp(dist.irecv, incoming, source, self.group, tag)
        return Together(dist.batch_isend_irecv([sending, receiving]))

    def recv_any(self, tensor: Tensor, tag: int) -> int:
        return dist.recv(tensor, None, group=self.group, tag=tag)

    def all_objects(self, value: object) -> list:
        values: list = [None] * len(self.ranks)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def subgroups(self, groups: Sequence[Sequence[int]]) -> "TorchBackend":
        mine = None
        for ranks in groups:  # every rank must make every group, in the same order
            group = dist.new_group(list(ranks), timeout=timedelta(seconds=self.timeout_seconds))
            if self.rank in ranks:
                mine = group
        if mine is None:
            raise ConfigError(f"rank {self.rank} is in none of the groups {[list(ranks) for ranks in groups]}")
        return TorchBackend(mine, self.timeout_seconds)


class Together:
    """Several transfers that have begun, as one."""

    def __init__(self, works: Sequence[Any]):
        self.works = works

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self.works)

    def wait(self) -> None:
        for work in self.works:
            work.wait()


def join(
    store: dist.Store,
    rank: int,
    world_size: int,
    backend: str = "gloo",
    timeout_seconds: float = 60.0,
    board: Board | None = None,
    counter: CommCounter | None = None,
    link: SlowLink | None = None,
    checked: bool = False,
) -> Comm:
    """Meet the other ranks at a store; the world that they are then.

    Args:
        store: torch's, the same for all.
        rank: number of this process.
        world_size: number of processes P.
        backend: "gloo" (processors) or "nccl" (one GPU per rank).
        timeout_seconds: after which a collective gives up; torch's own default is half an hour.
        board: see `Comm`, as the three that follow.
        counter: counts what is sent.
        link: slows it down.
        checked: compares what ranks come with.

    Raises:
        ConfigError: if the backend is unknown.
        DeviceError: if NCCL was asked for and there are fewer GPUs than local ranks.
        CommError: if the others do not come in time.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is unknown; known are {', '.join(BACKENDS)}")
    if backend == "nccl":
        local = int(os.environ.get("LOCAL_RANK", rank))
        n_cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local >= n_cards:
            raise DeviceError(f"NCCL needs a GPU for each rank; local rank {local} has none of {n_cards}: take gloo")
        torch.cuda.set_device(local)
    timeout = timedelta(seconds=timeout_seconds)
    store.set_timeout(timeout)                                     # a store of its own would wait for five minutes
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except RuntimeError as error:
        raise CommError(
            f"rank {rank} of {world_size} could not meet the others within {timeout_seconds:g} s ({error}); did all of "
            "them start, with the same world size and address?"
        ) from error
    return Comm(TorchBackend(None, timeout_seconds), "world", counter, link, board, checked, timeout_seconds)


def join_torchrun(backend: str = "gloo", timeout_seconds: float = 60.0, checked: bool = False) -> Comm:
    """Meet the ranks that `torchrun` has started, also after it has restarted them.

    Torchrun keeps the address of its store over restarts, and with it what the dead ranks have written there: new ones
    would read stale addresses and wait for ever. So each attempt writes under a prefix of its own.

    Args:
        backend: as in `join`.
        timeout_seconds: as in `join`.
        checked: as in `join`.

    Raises:
        ConfigError: if this process was not started by torchrun.
        CommError: if the others do not come in time.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(f"{', '.join(missing)} not set; start with: torchrun --standalone --nproc-per-node 2 -m ...")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size,
            is_master=rank == 0 and not agent_has_store, timeout=timeout,
        )  # fmt: skip
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise CommError(
            f"rank {rank} of {world_size} cannot use the store at {address} ({error}); if the port is in use, choose "
            "another --master-port, or --standalone on one machine"
        ) from error
    run = os.environ.get("TORCHELASTIC_RUN_ID", "0")
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{run}-{attempt}-{os.environ['MASTER_PORT']}")
    board = Board(Path(gettempdir()) / f"minillm-board-{os.getuid()}-{name}", world_size)
    prefixed = dist.PrefixStore(f"attempt-{attempt}", store)
    world = join(prefixed, rank, world_size, backend, timeout_seconds, board, checked=checked)
    if os.environ.get("LOCAL_RANK", str(rank)) == "0":
        board.path.unlink(missing_ok=True)                         # all have mapped it by now
    return world


def leave() -> None:
    """Close the connections of this process, if it has any."""
    if dist.is_initialized():
        dist.destroy_process_group()
