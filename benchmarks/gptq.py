"""GPTQ on twelve layers of width 768 (the blocks of GPT-2 small): seconds, and against neural-compressor's program.

Peer: `pip install --no-deps neural-compressor-pt==3.10 py-cpuinfo prettytable` and what these import, in an environment
without peft, whose imports it breaks. Without it the first claim is measured alone. Both get the same weights and the
same products of inputs, and their rounded weights are compared. Last line: the claims as JSON.
"""

import argparse
import importlib.util
import time
import warnings

import torch
from pairs import Claim, median_ratio, print_claims
from torch import Tensor

from minillm.compress.gptq import GPTQConfig, gptq
from minillm.compress.grid import QuantSpec

SHAPES = {"qkv": (2304, 768), "output": (768, 768), "up": (3072, 768), "down": (768, 3072)}
N_LAYERS, SECONDS = 12, 60.0


def matrices(shape: tuple[int, int], layer: int) -> tuple[Tensor, Tensor]:
    """Weights (O, I) and the products (I, I) of inputs of which each is partly its neighbours."""
    generator = torch.Generator().manual_seed(1000 * layer + shape[0] + shape[1])
    inputs = torch.randn(2 * shape[1], shape[1], generator=generator)
    for distance in (1, 2, 5):
        inputs = inputs + 0.4 * inputs.roll(distance, 1)
    return 0.02 * torch.randn(shape, generator=generator), inputs.T @ inputs


def theirs(weight: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """neural-compressor's rounding of the same matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    work = GPTQ(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False), weight.clone())
    settings = {"bits": bits, "sym": False, "dtype": "int", "group_size": -1, "mse": False, "perchannel": True}
    work.quantizer.configure(settings | {"use_double_quant": False, "double_quant_sym": False})
    work.H = hessian
    return work.fasterquant(weight, 128, 0.01, -1)[3]


def measure(n_layers: int, bits: int, with_peer: bool) -> tuple[list[float], list[float], int, int]:
    """Seconds of each layer here and there, and how many of how many weights came out different."""
    seconds, peer_seconds, n_different, n_weights = [], [], 0, 0
    for layer in range(n_layers):
        seconds.append(0.0)
        peer_seconds.append(0.0)
        for shape in SHAPES.values():
            weight, hessian = matrices(shape, layer)
            given = weight.clone(), hessian.clone()
            start = time.perf_counter()
            found = gptq(weight, hessian, QuantSpec(bits), GPTQConfig())
            seconds[-1] += time.perf_counter() - start
            if with_peer:
                start = time.perf_counter()
                rounded = theirs(*given, bits)
                peer_seconds[-1] += time.perf_counter() - start
                n_different += int(((rounded - found.weight).abs() > 1e-5).sum())
            n_weights += weight.numel()
        print(f"layer {layer}: ours {seconds[-1]:.2f} s, neural-compressor {peer_seconds[-1]:.2f} s", flush=True)
    return seconds, peer_seconds, n_different, n_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="two layers: a smoke test, not a measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of both")
    parser.add_argument("--bits", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_layers = 2 if arguments.quick else N_LAYERS
    with_peer = importlib.util.find_spec("neural_compressor") is not None
    if not with_peer:
        print("neural-compressor is not installed: its time is left out")
    gptq(*matrices((64, 64), 0), QuantSpec(arguments.bits))        # the first call of LAPACK is slow
    seconds, peer_seconds, n_different, n_weights = measure(n_layers, arguments.bits, with_peer)
    total = sum(seconds) * N_LAYERS / n_layers
    print(f"{N_LAYERS} layers: {total:.1f} s with {arguments.threads} threads")
    what = f"GPTQ with {arguments.bits} bits on {N_LAYERS} layers of width 768"
    claims = [Claim(f"{what}: {SECONDS:g} s over ours", "seconds allowed", SECONDS / total, 1.0, 2.0)]
    if with_peer:
        print(f"{n_different} of {n_weights:,} weights differ from neural-compressor's")
        ratio = median_ratio(seconds, peer_seconds)
        claims.append(Claim(f"{what}, time", "neural-compressor", ratio, 1.0, 1.5))
    print_claims(claims)


if __name__ == "__main__":
    main()
