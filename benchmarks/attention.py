"""Attention in tiles against the library's kernel (time) and against scores kept whole (memory), causal, fp32.

One pass is forward and backward of batch 1, 8 heads of width 64. Times are measured in turn in this process; the peak
memory of each pass in a process of its own, counted above what it held with its inputs before the pass.

    python benchmarks/attention.py --threads 2 [--quick]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from pairs import Claim, median_ratio, paired_seconds, print_claims

from minillm.nn.attention import mix_heads

N_HEADS, D_HEAD = 8, 64
WINDOW = 512
Work = Callable[[], None]


def one_pass(kernels: str, n_positions: int, window: int = 0) -> Work:
    """A function that computes attention and the gradients of its inputs once."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, N_HEADS, n_positions, D_HEAD)
    query, key, value, upstream = (torch.randn(shape, generator=generator) for _ in range(4))
    leaves = [x.requires_grad_() for x in (query, key, value)]

    def work() -> None:
        mixed = mix_heads(*leaves, causal=True, kernels=kernels, window=window)  # (B, H, T, D)
        torch.autograd.grad(mixed, leaves, upstream)

    return work


def peak_bytes_here(kernels: str, n_positions: int) -> int:
    """How far this process's memory rises above its level before a pass of this length; a short pass comes first."""
    one_pass(kernels, 64)()
    work, megabyte = one_pass(kernels, n_positions), 2**20
    held = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")                  # sets the peak back to what is held now
    work()
    return max(resident_bytes("VmHWM") - held, megabyte)


def resident_bytes(field: str) -> int:
    """A line of this process's status: VmRSS is the memory held now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_bytes(kernels: str, n_positions: int, n_threads: int) -> int:
    """`peak_bytes_here` in a process of its own; 0 where the machine has not the memory for it."""
    words = [sys.executable, __file__, "--threads", str(n_threads), "--peak", kernels, str(n_positions)]
    done = subprocess.run(words, capture_output=True, text=True)
    return 0 if done.returncode else int(json.loads(done.stdout.splitlines()[-1]))


def memory_claims(n_positions: int, n_threads: int) -> list[Claim]:
    """Peaks of all three kernels, and how ours grows with the length."""
    peaks = {kernels: peak_bytes(kernels, n_positions, n_threads) for kernels in ("tiled", "torch", "naive")}
    longer = peak_bytes("tiled", 2 * n_positions, n_threads)
    for kernels, peak in peaks.items():
        print(f"peak of a pass over {n_positions} positions, {kernels}: {peak / 2**20:,.0f} MiB")
    print(f"peak of a pass over {2 * n_positions} positions, tiled: {longer / 2**20:,.0f} MiB", flush=True)
    what = f"peak memory of tiled attention at length {n_positions}"
    return [
        Claim(what, "naive", peaks["naive"] / peaks["tiled"], at_least=8.0, aim=16.0),
        Claim(f"{what}: 2.5 over its growth at twice the length", "ours", 2.5 * peaks["tiled"] / longer, 1, 1.2),
    ]


def time_claim(
    what: str, ours: Work, peer_name: str, peer: Work, n_pairs: int, bounds: tuple[float, float]
) -> Claim:
    """Time both in turn, print the medians, and return the claim."""
    our_seconds, peer_seconds = paired_seconds(ours, peer, n_pairs)
    middle = [sorted(seconds)[n_pairs // 2] for seconds in (our_seconds, peer_seconds)]
    print(f"{what}: ours {middle[0]:.3f} s, {peer_name} {middle[1]:.3f} s", flush=True)
    return Claim(what, peer_name, median_ratio(our_seconds, peer_seconds), *bounds)


def time_claims(n_positions: int, n_pairs: int) -> list[Claim]:
    """Ours against the library's kernel, against scores kept whole, and a window against the whole past."""
    tiled, library = one_pass("tiled", n_positions), one_pass("torch", n_positions)
    what = f"tiled attention, forward and backward at length {n_positions}"
    bounds = (round(1 / 1.5, 3), round(1 / 1.15, 3))               # at most 1.5 times the kernel's time, 1.15 hoped for
    short, whole = one_pass("tiled", n_positions // 4), one_pass("naive", n_positions // 4)
    near = one_pass("tiled", n_positions, WINDOW)
    return [
        time_claim(what, tiled, "torch kernel", library, n_pairs, bounds),
        time_claim(f"the same at length {n_positions // 4}", short, "naive", whole, n_pairs, (1.0, 2.0)),
        time_claim(f"a window of {WINDOW} of {n_positions}", near, "tiled, whole past", tiled, n_pairs, (1.5, 2.5)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of all kernels (default: 2)")
    parser.add_argument("--quick", action="store_true", help="shorter texts and fewer pairs")
    parser.add_argument("--peak", nargs=2, metavar=("KERNELS", "LENGTH"), help="print the peak of one pass, no claims")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_bytes_here(arguments.peak[0], int(arguments.peak[1])))
        return
    n_positions, n_pairs = (2048, 3) if arguments.quick else (4096, 7)
    print_claims(time_claims(n_positions, n_pairs) + memory_claims(n_positions, arguments.threads))


if __name__ == "__main__":
    main()
