"""Training steps on two processes: our data, fully sharded and tensor parallelism against PyTorch's own engines.

One step is: forward, token cross-entropy, backward, synchronization of the gradients, torch's fused AdamW. Both sides
train the same GPT-2-style decoder on the same rows over gloo, one thread per process, in the same two processes and in
turn. Torch's engines are put on the model as `minillm train --engine` does it. Afterwards bytes are counted: what ranks
send per step, and what they keep, against the published formulas.

    .venv/bin/python benchmarks/parallel.py [--quick] [--only data|sharded|tensor|bytes]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from pairs import Claim, median_ratio, print_claims
from torch import nn
from torch.nn.parallel import DistributedDataParallel as TorchDataParallel

from minillm.models.gpt import GPT, Block, GPTConfig
from minillm.models.registry import model_config
from minillm.parallel.comm import Comm
from minillm.parallel.data_parallel import DistributedDataParallel
from minillm.parallel.engine import to_fsdp2, to_tensor_parallel
from minillm.parallel.fsdp import FullyShardedDataParallel
from minillm.parallel.launch import launch
from minillm.parallel.layout import GPT_PLAN
from minillm.parallel.memory import StateBytes, measured_state_bytes, model_state_bytes
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.shard_model import finish_tensor_gradients, shard_model
from minillm.parallel.traffic import CommCounter
from minillm.parallel.vocab_loss import vocab_parallel_cross_entropy
from minillm.parallel.zero import ZeroOptimizer
from minillm.train.loss import kernel_cross_entropy

VOCAB_SIZE, BATCH_SIZE, WORLD_SIZE = 512, 4, 2
SHAPE = {"n_layers": 4, "n_heads": 4, "d_model": 256, "max_seq_len": 128}
Step = Callable[[], None]


def config() -> GPTConfig:
    """The decoder that is trained."""
    return model_config("gpt2", "tiny", VOCAB_SIZE, **SHAPE)


def make_model() -> GPT:
    """The same on all ranks."""
    return GPT(config(), torch.Generator().manual_seed(0))


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs and targets."""
    shape = (BATCH_SIZE, SHAPE["max_seq_len"] + 1)
    ids = torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))  # (B, U)
    return ids[:, :-1], ids[:, 1:]


def make_step(model: nn.Module, parameters: list, seed: int, finish: Callable[[], object] = lambda: None) -> Step:
    """One training step of a model on the rows of a seed; `finish` comes after backward."""
    kinds: dict[type, list] = {}
    for parameter in parameters:
        kinds.setdefault(type(parameter.data), []).append(parameter)  # DTensors and others must not be mixed
    optimizer = torch.optim.AdamW([{"params": kind} for kind in kinds.values()], lr=3e-4, fused=True)
    inputs, targets = rows(seed)

    def step() -> None:
        kernel_cross_entropy(model(inputs), targets).backward()
        finish()
        optimizer.step()
        optimizer.zero_grad()

    return step


def data_steps(comm: Comm) -> dict[str, Step]:
    """Bucketed data parallel."""
    ours = DistributedDataParallel(make_model(), comm, find_unused=False)  # torch's default, too
    peer = TorchDataParallel(make_model())
    return {
        "ours": make_step(ours, list(ours.parameters()), comm.rank, ours.finish_gradient_synchronization),
        "peer": make_step(peer, list(peer.parameters()), comm.rank),
    }


def sharded_steps(comm: Comm) -> dict[str, Step]:
    """Fully sharded, one unit per block, the root kept between forward and backward (torch's default)."""
    ours = FullyShardedDataParallel(make_model(), comm, [Block], find_unused=False)
    peer = to_fsdp2(make_model(), Mesh(MeshSize(dp=comm.size), comm))
    return {
        "ours": make_step(ours, list(ours.parameters()), comm.rank, ours.finish_gradient_synchronization),
        "peer": make_step(peer, list(peer.parameters()), comm.rank),
    }


def tensor_steps(comm: Comm) -> dict[str, Step]:
    """Tensor parallel, all logits gathered as torch's plan does; and ours with the loss from each rank's logits."""
    mesh = Mesh(MeshSize(tp=comm.size), comm)
    steps = {}
    for name, gather in (("ours", True), ("ours, logits not gathered", False)):
        model = make_model()
        sharding = shard_model(model, GPT_PLAN, mesh.tp, gather_logits=gather)
        finish = lambda model=model, sharding=sharding: finish_tensor_gradients(model, sharding)  # noqa: E731
        steps[name] = make_step(model, list(model.parameters()), 0, finish)
        if not gather:
            steps[name] = local_loss_step(model, mesh.tp, finish)
    peer = to_tensor_parallel(make_model(), mesh)
    return {**steps, "peer": make_step(peer, list(peer.parameters()), 0)}


def local_loss_step(model: nn.Module, comm: Comm, finish: Callable[[], object]) -> Step:
    """The same step with the vocabulary-parallel loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    inputs, targets = rows(0)

    def step() -> None:
        (vocab_parallel_cross_entropy(model(inputs), targets, comm) / targets.numel()).backward()
        finish()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_steps(comm: Comm, make_steps: Callable[[Comm], dict[str, Step]], n_pairs: int) -> dict[str, list[float]]:
    """Seconds of each step, all in turn; each begins when both ranks are there and ends with the slower one."""
    warnings.simplefilter("ignore")
    steps = make_steps(comm)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(n_pairs + 3):
        for name in steps if number % 2 else reversed(steps):
            comm.barrier()
            begin = time.perf_counter()
            steps[name]()
            comm.barrier()
            if number >= 3:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def speed_claim(
    what: str, peer: str, make_steps: Callable[[Comm], dict[str, Step]], at_least: float, aim: float, n_pairs: int
) -> Claim:
    """Median ratio of the peer's step over ours, and all medians in words."""
    seconds = launch(time_steps, WORLD_SIZE, make_steps, n_pairs, show_output=False)[0]
    shown = ", ".join(f"{name} {1000 * statistics.median(each):.1f} ms" for name, each in seconds.items())
    print(f"{what}: {shown}", flush=True)
    return Claim(f"step of {what}, {WORLD_SIZE} processes", peer, median_ratio(seconds["ours"], seconds["peer"]),
                 at_least, aim)  # fmt: skip


def count_bytes(comm: Comm, way: str) -> tuple[float, int, StateBytes, int]:
    """One step: bytes sent by this rank if every collective is a ring, those of the whole model, and what is kept."""
    model = make_model()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    master_dtype = torch.float32 if way.startswith("stage") else None
    if way.startswith("stage"):
        model.bfloat16()
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if way == "data parallel":
        wrapped: nn.Module = DistributedDataParallel(model, comm, find_unused=False)
        finish = wrapped.finish_gradient_synchronization
        optimizer = torch.optim.AdamW(model.parameters())
    elif way == "fully sharded":
        wrapped = FullyShardedDataParallel(model, comm, [Block], reshard_after_forward=True, find_unused=False)
        finish = wrapped.finish_gradient_synchronization
        optimizer = torch.optim.AdamW(model.parameters())
    else:
        wrapped, stage = model, int(way[-1])
        optimizer = ZeroOptimizer(model, torch.optim.AdamW, comm, stage, master_dtype=master_dtype, find_unused=False)
        finish = optimizer.finish_gradient_synchronization
    comm.counter.clear()
    inputs, targets = rows(comm.rank)
    kernel_cross_entropy(wrapped(inputs).float(), targets).backward()
    finish()
    optimizer.step()
    return comm.counter.sent_bytes(), n_bytes, measured_state_bytes(model, optimizer), n_parameters


def byte_claims() -> list[Claim]:
    """Traffic and kept bytes over their formulas."""
    claims = []
    factors = {"data parallel": 2, "stage 1": 2, "stage 2": 2, "fully sharded": 3}
    for way, factor in factors.items():
        counters = [CommCounter() for _ in range(WORLD_SIZE)]
        sent, n_bytes, kept, n_parameters = launch(count_bytes, WORLD_SIZE, way, counters=counters, show_output=False)[
            0
        ]
        expected = factor * (WORLD_SIZE - 1) / WORLD_SIZE * n_bytes
        print(f"{way}: sent {sent:,.0f} bytes, formula {expected:,.0f}; kept {kept.total:,}", flush=True)
        claims.append(Claim(f"bytes sent per step, {way}", f"{factor} Psi (P - 1) / P", expected / sent, 1.0, 1.0))
        stage = {"data parallel": 0, "fully sharded": 3, "stage 1": 1, "stage 2": 2}[way]
        sizes = (4, 4, 8) if stage in (0, 3) else (2, 2, 12)
        formula = model_state_bytes(n_parameters, WORLD_SIZE, stage, *sizes)
        claims.append(Claim(f"bytes kept, {way}", "figure 1 of ZeRO", formula.total / kept.total, 1.0, 1.0))
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs: a smoke test")
    parser.add_argument("--only", choices=("data", "sharded", "tensor", "bytes"), help="only this part")
    arguments = parser.parse_args()
    n_pairs = 5 if arguments.quick else 40
    size = f"{SHAPE['n_layers']}/{SHAPE['n_heads']}/{SHAPE['d_model']}/{SHAPE['max_seq_len']}/batch {BATCH_SIZE}"
    speeds = {
        "data": (f"data parallel {size}", "torch DDP", data_steps, 0.95, 1.0),
        "sharded": (f"fully sharded {size}", "torch fully_shard", sharded_steps, 0.8, 1.0),
        "tensor": (f"tensor parallel {size}", "torch parallelize_module", tensor_steps, 0.8, 1.0),
    }
    claims = [speed_claim(*words, n_pairs) for part, words in speeds.items() if arguments.only in (None, part)]
    if arguments.only in (None, "bytes"):
        claims += byte_claims()
    print_claims(claims)


if __name__ == "__main__":
    main()
