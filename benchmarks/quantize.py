"""Tokens per second, memory and error of a LLaMA of 100 million random weights in fp32, bf16, int8 and int4.

One text is continued, one token at a time, with a cache; embedding in full precision, all linear layers and the head in
few bits. What multiplies are torch's own kernels (`minillm.compress.kernels`); how fast they are depends on the
processor's instructions, which are printed. All forms run in turn, so that ratios hold on a busy machine. Memory is
that of a process of its own for each form: the most that is resident while it generates, less what was before the
model; predicted are the bytes that are stored, those of the kernels' own order, and the cache. Last line: the claims as
JSON.
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pairs import Claim, print_claims, seconds_of
from torch import Tensor

from minillm.compress.grid import QuantSpec
from minillm.compress.packed_ends import score_by_packed
from minillm.compress.packed_linear import quantize_model, stored_bytes
from minillm.compress.quant_linear import QuantLinear, use_backend
from minillm.compress.report import compression_report
from minillm.infer.packed import pack_linears
from minillm.models.gpt import GPT
from minillm.models.registry import model_config

SHAPE = {"n_layers": 12, "n_heads": 12, "d_model": 768, "d_ff": 2048, "max_seq_len": 256, "tie_embeddings": False}
VOCAB_SIZE = 10_000
INT8, INT4, INT4_WIDE = QuantSpec(8, symmetric=True), QuantSpec(4, 32), QuantSpec(4, 128)
WIDE, UNPACKED = "int4, groups of 128", "int4 unpacked each time"
FORMS = ("fp32", "fp32 packed", "bf16", "int8", "int8 dynamic", "int4", WIDE, UNPACKED)
MEASURED = ("fp32", "bf16", "int8", "int4")  # whose memory is measured


@torch.no_grad()
def model_in(form: str, n_layers: int) -> GPT:
    """The same random model in one of the forms."""
    config = model_config("llama", "tiny", VOCAB_SIZE, **(SHAPE | {"n_layers": n_layers}))
    model = GPT(config, torch.Generator().manual_seed(0)).eval()
    if form == "fp32 packed":
        pack_linears(model)
    elif form == "bf16":
        model.to(torch.bfloat16)
    elif form.startswith("int"):
        spec = INT8 if form.startswith("int8") else INT4_WIDE if form == WIDE else INT4
        quantize_model(model, lambda _, layer: QuantLinear(layer, spec), exclude=())
        score_by_packed(model)
        backend = {"int8 dynamic": "dynamic", UNPACKED: "dequant"}.get(form, "torch")
        n_fast = use_backend(model, backend)
        if not n_fast and backend != "dequant":
            raise SystemExit(f"torch has no kernel for {form} on this machine, or it is wrong")
    return model


def decoding(model: GPT, n_tokens: int) -> Callable[[], Tensor]:
    """A function that goes on from one token by the likeliest ones."""

    @torch.inference_mode()
    def decode() -> Tensor:
        cache, ids = model.make_cache(1), torch.ones(1, 1, dtype=torch.int64)
        for _ in range(n_tokens):
            ids = model(ids, cache)[:, -1:].argmax(-1)
        return ids

    return decode


def error_of(model: GPT, expected: Tensor) -> float:
    """By how much the scores differ from those in fp32: norm of the difference over the norm."""
    return float((scores_of(model) - expected).norm() / expected.norm())


@torch.no_grad()
def scores_of(model: GPT) -> Tensor:
    """Scores after eight short texts (8, V)."""
    return torch.stack([model(ids[None]).float()[0, -1] for ids in torch.arange(8 * 12).view(8, 12)])


def predicted_bytes(model: GPT) -> int:
    """Stored numbers, the kernels' own order of them, and the cache of keys and values."""
    kernels = [module.kernel for module in model.modules() if isinstance(module, QuantLinear) and module.kernel]
    cache = model.make_cache(1)
    return stored_bytes(model) + sum(kernel.n_bytes for kernel in kernels) + cache.keys.nbytes + cache.values.nbytes


def resident(key: str) -> int:
    """Bytes of this process in memory now ("VmRSS"), or the most since the last reset ("VmHWM")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {key}")


def measure_memory(form: str, n_layers: int) -> None:
    """In a process of its own: print predicted and measured bytes as JSON."""
    decoding(model_in(form, 1), 2)()                               # libraries and their buffers
    collect()
    before = resident("VmRSS")
    model = model_in(form, n_layers)
    collect()
    Path("/proc/self/clear_refs").write_text("5")                  # resets VmHWM
    decoding(model, 8)()
    print(json.dumps({"predicted": predicted_bytes(model), "measured": resident("VmHWM") - before}))


def collect() -> None:
    """Give memory that is not used back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def memory_of(form: str, n_layers: int, n_threads: int) -> dict[str, int]:
    """Run `measure_memory` in a process whose large tensors are mapped, and so given back at once."""
    words = [sys.executable, __file__, "--threads", str(n_threads), "--layers", str(n_layers), "--memory-of", form]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_speed(models: dict[str, GPT], n_rounds: int, n_tokens: int) -> dict[str, list[float]]:
    """Seconds a token of each form, in as many rounds; all forms take their turn in each."""
    lengths = {form: 2 if form == UNPACKED else n_tokens for form in models}  # this one takes its time
    works = {form: decoding(model, lengths[form]) for form, model in models.items()}
    seconds: dict[str, list[float]] = {form: [] for form in models}
    for number in range(n_rounds + 1):
        for form, work in works.items():
            taken = seconds_of(work) / lengths[form]
            if number:                                             # the first round warms up
                seconds[form].append(taken)
    return seconds


@torch.inference_mode()
def measure_one_layer(n_rounds: int) -> None:
    """Print the milliseconds of one product of 2048 x 2048 in each form, for few rows and for many; all take turns."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(2048, 2048, bias=False)
    layer.weight.copy_(0.02 * torch.randn(2048, 2048, generator=generator))
    works: dict[str, Callable[[Tensor], Tensor]] = {"fp32": layer}
    half = copy.deepcopy(layer).bfloat16()
    works["bf16"] = lambda x: half(x.bfloat16())
    for form, spec, backend in (("int8", INT8, "torch"), ("int8 dynamic", INT8, "dynamic"), ("int4", INT4, "torch")):
        works[form] = QuantLinear(layer, spec, backend).kernel.multiply
    works[UNPACKED] = QuantLinear(layer, INT4)
    for n_rows in (1, 16, 64):
        x = torch.randn(n_rows, 2048, generator=generator)
        taken: dict[str, list[float]] = {form: [] for form in works}
        for _ in range(n_rounds):
            for form, work in works.items():
                taken[form].append(1000 * seconds_of(partial(work, x)))
        shown = ", ".join(f"{form} {statistics.median(times[2:]):.2f}" for form, times in taken.items())
        print(f"one layer, {n_rows} rows, ms: {shown}", flush=True)


def ratio(seconds: dict[str, list[float]], ours: str, peer: str) -> float:
    """Median over the rounds of how many times faster."""
    return statistics.median(p / o for o, p in zip(seconds[ours], seconds[peer], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers, few tokens: a smoke test, not a measurement")
    parser.add_argument("--threads", type=int, default=2, help="threads of all forms (default: 2)")
    parser.add_argument("--layers", type=int, default=SHAPE["n_layers"], help="layers (default: %(default)s)")
    parser.add_argument("--one-layer", action="store_true", help="only the milliseconds of a single layer")
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_layers = 2 if arguments.quick else arguments.layers
    if arguments.memory_of:
        measure_memory(arguments.memory_of, arguments.layers)
        return
    if arguments.one_layer:
        measure_one_layer(5 if arguments.quick else 40)
        return
    models = {}
    for form in FORMS:
        models[form] = model_in(form, n_layers)
        print(f"made {form}", flush=True)
    expected = scores_of(models["fp32"])
    seconds = measure_speed(models, 3 if arguments.quick else 7, 4 if arguments.quick else 48)
    print({form: round(1 / statistics.median(times), 1) for form, times in seconds.items()}, "tokens/s", flush=True)
    memory = {form: memory_of(form, n_layers, arguments.threads) for form in MEASURED}
    n_weights = models["fp32"].n_parameters()
    processor = torch.backends.cpu.get_cpu_capability()
    print(f"{n_weights / 1e6:.1f} million weights, {arguments.threads} threads, {processor}")
    columns = f"{'tokens/s':>9} {'of fp32':>8} {'of bf16':>8} {'error':>8} {'stored':>8} {'most':>9} predicted"
    print(f"{'form':24} {columns}")
    for form, model in models.items():
        times = seconds[form]
        stored = "" if form == "fp32 packed" else f"{compression_report(model).whole.n_bytes / 1e6:.1f} MB"
        most = memory.get(form)
        sizes = "" if most is None else f"{most['measured'] / 1e6:6.1f} MB {most['predicted'] / 1e6:6.1f} MB"
        print(f"{form:24} {1 / statistics.median(times):9.1f} {ratio(seconds, form, 'fp32'):7.2f}x "
              f"{ratio(seconds, form, 'bf16'):7.2f}x {error_of(model, expected):8.4f} {stored:>8} {sizes}")  # fmt: skip
    fast8, fast4 = (
        max(forms, key=lambda form: ratio(seconds, form, "fp32"))
        for forms in (("int8", "int8 dynamic"), ("int4", WIDE))
    )
    what = f"decoding one text, {n_weights / 1e6:.0f} M weights,"
    claims = [
        Claim(f"{what} {fast8}", "fp32", ratio(seconds, fast8, "fp32"), 4.0, 4.0),
        Claim(f"{what} {fast4}", "fp32", ratio(seconds, fast4, "fp32"), 5.0, 5.0),
        Claim(f"{what} {fast8}", "bf16", ratio(seconds, fast8, "bf16"), 1.5, 1.5),
        Claim(f"{what} {fast4}", "bf16", ratio(seconds, fast4, "bf16"), 2.0, 2.0),
    ]
    for form in ("int8", "int4"):
        found = memory[form]
        claims.append(Claim(f"most memory of {form}", "prediction", found["predicted"] / found["measured"], 0.9, 1.0))
    print_claims(claims)


if __name__ == "__main__":
    main()
