"""Every way to store a model in few bits, at every width, on two trained models: size, quality, speed.

The models are GPTs of three layers, one on stories of the made world in byte pairs, one on Shakespeare in single
characters; each is trained once with `minillm train` and kept in --work. For each form: bits of a weight of the linear
layers, bytes of the whole model, bits per byte and next-token accuracy on text set aside, tokens per second for one
text and for sixteen beside those of fp32 in turn, and the seconds that it took to make. Leaves quantize_ladder.md,
.csv and .png in --out.

    python benchmarks/quantize_ladder.py --threads 2
"""

import argparse
import copy
import csv
import io
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from pairs import median_ratio, seconds_of
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.cli import main as minillm
from minillm.compress.grid import QuantSpec
from minillm.compress.methods import form_by_name, quantize_by
from minillm.compress.packed_ends import pack_embedding
from minillm.compress.packed_linear import quantize_model
from minillm.compress.quant_linear import use_backend
from minillm.compress.report import compression_report
from minillm.models.gpt import GPT
from minillm.plots import Line, Panel, plot_panels
from minillm.verbs.quantize import windows_of
from minillm.verbs.run_folder import Run, open_run

HERE = Path(__file__).resolve().parent
SHAKESPEARE = HERE.parents[1] / "shared/data/tinyshakespeare.txt"
STEPS, SCORED, CALIBRATION = 600, 128, 64  # training steps; windows to score; windows to calibrate


@dataclass(frozen=True)
class Form:
    """One rung: a method with its grids, and the bits of the token table; 0 leaves table and head in fp32."""

    method: str
    spec: QuantSpec | None = None
    table: int = 0

    @property
    def family(self) -> str:
        """The curve that it belongs to."""
        spec = self.spec
        if spec is None:
            return "GGML" if self.method.startswith("q") else self.method
        kind = "row" if spec.group_size == 0 else f"groups of {spec.group_size}"
        kind += ", symmetric" if spec.symmetric else ""
        return f"{self.method}, {kind}" + (", ends too" if self.table else "")

    @property
    def name(self) -> str:
        bits = "" if self.spec is None else f" {self.spec.bits} bits"
        return f"{self.method if self.spec is None else self.family}{bits}" + (f" ({self.table})" if self.table else "")


def forms() -> list[Form]:
    """The rungs, from many bits to few."""
    found = [Form("fp32"), Form("fp16"), Form("q8_0"), Form("q6_k"), Form("q5_1"), Form("q5_0"), Form("q4_k")]
    found += [Form("q4_1"), Form("q4_0"), Form("nf4")]
    found += [Form("rtn", QuantSpec(bits, 0, True)) for bits in (8, 4, 3)]
    for group in (0, 32):
        for method in ("rtn", "gptq", "awq"):
            widths = (8, 4, 3, 2) if method == "rtn" else (4, 3, 2)
            found += [Form(method, QuantSpec(bits, group)) for bits in widths]
    return found + [Form("gptq", QuantSpec(bits, 32), table) for bits, table in ((4, 8), (4, 4), (3, 4), (2, 4))]


@dataclass(frozen=True)
class Rung:
    """What was measured of one form."""

    form: str
    bits_per_weight: float
    whole_bytes: int
    times_smaller: float
    bits_per_byte: float
    accuracy: float
    relative_accuracy: float
    tokens_per_second: float
    speed_1: float
    tokens_per_second_16: float
    speed_16: float
    seconds: float


def trained_run(work: Path, name: str, data: str, tokenizer: str, steps: int) -> Run:
    """The run of that name, trained if it is not there."""
    folder = work / name
    if not (folder / "settings.json").exists():
        words = ["train", "--data", data, "--tokenizer", tokenizer, "--model", "modern", "--size", "mini"]
        words += ["--max-seq-len", "128", "--steps", str(steps), "--precision", "fp32", "--device", "cpu"]
        words += ["--out", str(folder)]
        if minillm(words):
            raise SystemExit(f"training {name} failed")
    return open_run(folder, torch.device("cpu"))


def make(form: Form, model: GPT, windows: Sequence[Tensor]) -> None:
    """Bring a model into a form."""
    if form.method == "fp16":
        model.half().float()
    exclude = () if form.table else ("head",)
    if form.method in ("gptq", "awq"):
        quantize_by(form.method, model, windows, form.spec, exclude)
    elif form.method not in ("fp32", "fp16"):
        store = form_by_name(form.method, form.spec)
        quantize_model(model, lambda _, layer: store(layer), exclude=exclude)
    if form.table:
        pack_embedding(model, QuantSpec(form.table, 32))


@torch.no_grad()
def score(model: nn.Module, ids: Tensor, n_bytes: int) -> tuple[float, float]:
    """Bits per byte and share of next tokens that are the likeliest, over windows (W, T + 1)."""
    nats, hits = 0.0, 0
    for rows in ids.split(16):
        logits = model(rows[:, :-1]).flatten(0, 1)                 # (N, V)
        targets = rows[:, 1:].flatten()                            # (N,)
        nats += F.cross_entropy(logits, targets, reduction="sum").item()
        hits += int((logits.argmax(-1) == targets).sum())
    return nats / np.log(2) / n_bytes, hits / ids[:, 1:].numel()


def validation_windows(run: Run, n_windows: int) -> tuple[Tensor, int]:
    """Windows of the text set aside (W, T + 1), and the bytes of what is predicted in them."""
    tokens, width = run.folder.open_text("validation", run.tokenizer), run.model.config.max_seq_len + 1
    n_windows = min(n_windows, len(tokens) // width)
    ids = torch.from_numpy(np.asarray(tokens[: n_windows * width]).astype(np.int64)).view(n_windows, width)
    return ids, sum(len(run.tokenizer.decode(row[1:]).encode()) for row in ids.tolist())


def decoding(model: GPT, batch_size: int, n_tokens: int) -> Callable[[], None]:
    """A function that lets so many texts grow by so many tokens."""

    @torch.no_grad()
    def decode() -> None:
        cache, ids = model.make_cache(batch_size), torch.ones(batch_size, 1, dtype=torch.int64)
        for _ in range(n_tokens):
            ids = model(ids, cache)[:, -1:].argmax(-1)

    return decode


def speed(model: GPT, full: GPT, batch_size: int, n_tokens: int, n_pairs: int) -> tuple[float, float]:
    """Tokens per second, and how many times those of the full model in turn with it."""
    ours, theirs = (decoding(each, batch_size, n_tokens) for each in (model, full))
    ours(), theirs()
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(n_pairs)]
    mine, peer = (list(each) for each in zip(*pairs, strict=True))
    return batch_size * n_tokens / statistics.median(mine), median_ratio(mine, peer)


def measure(form: Form, run: Run, ids: Tensor, n_bytes: int, base: float | None, quick: bool) -> Rung:
    """Make one form, and measure it; `base` is the accuracy of the full model."""
    model, windows = copy.deepcopy(run.model), windows_of(run, CALIBRATION)
    start = time.perf_counter()
    make(form, model, windows)
    seconds = time.perf_counter() - start
    bits, accuracy = score(model, ids, n_bytes)
    report = compression_report(model)
    halves = 2 if form.method == "fp16" else 1                     # kept in fp32 here, stored in 16 bits
    use_backend(model, "auto")
    n_tokens, n_pairs = (4, 1) if quick else (12, 5)
    alone, sixteen = (speed(model, run.model, batch_size, n_tokens, n_pairs) for batch_size in (1, 16))
    whole = report.whole.n_bytes // halves
    linear, smaller = report.linear.bits_per_weight / halves, 4 * report.whole.n_weights / whole
    relative = accuracy / (base or accuracy)
    return Rung(form.name, linear, whole, smaller, bits, accuracy, relative, *alone, *sixteen, seconds)


def table_of(rungs: list[Rung]) -> str:
    """The rungs as a Markdown table."""
    names = "form|bits/weight, linear|bytes, whole|smaller|bits/byte|accuracy|of fp32|tokens/s, 1|of fp32|tokens/s, 16"
    lines = [f"| {names.replace('|', ' | ')} | of fp32 | seconds |", "| --- |" + " --: |" * 11]
    for rung in rungs:
        lines.append(
            f"| {rung.form} | {rung.bits_per_weight:.3f} | {rung.whole_bytes:,} | {rung.times_smaller:.2f}x "
            f"| {rung.bits_per_byte:.4f} | {rung.accuracy:.4f} | {rung.relative_accuracy:.3f} "
            f"| {rung.tokens_per_second:,.0f} | {rung.speed_1:.2f}x | {rung.tokens_per_second_16:,.0f} "
            f"| {rung.speed_16:.2f}x | {rung.seconds:.1f} |"
        )
    return "\n".join(lines)


def panel_of(title: str, rungs: dict[Form, Rung]) -> Panel:
    """Bits per byte against bits of a weight, a curve for each family."""
    curves: dict[str, list[Rung]] = {}
    for form, rung in rungs.items():
        if form.method not in ("fp32", "fp16") and not form.table:
            curves.setdefault(form.family, []).append(rung)
    lines = {
        family: Line([each.bits_per_weight for each in sorted(points, key=lambda each: each.bits_per_weight)],
                     [each.bits_per_byte for each in sorted(points, key=lambda each: each.bits_per_weight)])
        for family, points in curves.items()
    }  # fmt: skip
    full = next(rung.bits_per_byte for form, rung in rungs.items() if form.method == "fp32")
    return Panel(title, "bits of a weight, linear layers", "bits per byte", lines, {"fp32": full})


def climb(run: Run, quick: bool) -> dict[Form, Rung]:
    """All forms of one model."""
    ids, n_bytes = validation_windows(run, 16 if quick else SCORED)
    rungs: dict[Form, Rung] = {}
    for form in forms():
        base = rungs[Form("fp32")].accuracy if rungs else None
        with redirect_stderr(io.StringIO()):
            rungs[form] = measure(form, run, ids, n_bytes, base, quick)
        rung = rungs[form]
        print(f"{rung.form:36} {rung.bits_per_weight:7.3f} bits {rung.bits_per_byte:.4f} bits/byte "
              f"{rung.speed_1:.2f}x {rung.speed_16:.2f}x {rung.seconds:.1f} s", flush=True)  # fmt: skip
    return rungs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="models that hardly learn: shows that everything works")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/quantize_ladder"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=HERE, help="where table and picture go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    real = str(SHAKESPEARE) if SHAKESPEARE.exists() else "stories-en"
    texts = {
        "made world, byte pairs": ("world", "tinyworld-en", "bpe"),
        f"{Path(real).stem}, characters": ("text", real, "chars"),
    }
    parts, panels, rows = [], [], []
    for title, (name, data, tokenizer) in texts.items():
        run = trained_run(arguments.work, name, data, tokenizer, 10 if arguments.quick else STEPS)
        print(f"== {title}: {run.model.n_parameters():,} weights", flush=True)
        rungs = climb(run, arguments.quick)
        parts.append(f"## {title}\n\n{run.model.n_parameters():,} weights, vocabulary {run.model.config.vocab_size}, "
                     f"{run.step} steps.\n\n{table_of(list(rungs.values()))}")  # fmt: skip
        panels.append(panel_of(title, rungs))
        rows += [{"model": title, **vars(rung)} for rung in rungs.values()]
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot_panels(panels, arguments.out / "quantize_ladder.png")
    with (arguments.out / "quantize_ladder.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["model", *(field.name for field in fields(Rung))])
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    minutes = (time.perf_counter() - start) / 60
    head = (
        "# Few bits: every method and width\n\nMade by `python benchmarks/quantize_ladder.py --threads "
        f"{arguments.threads}` in {minutes:.1f} minutes on a processor with {torch.backends.cpu.get_cpu_capability()}. "
        "Linear layers in few bits; table, head and norms in fp32, unless the form says \"ends too\" and the table's "
        "bits. \"smaller\" is the whole model against fp32. Speeds are beside those of fp32 in turn; in models this "
        "small most of a token's time is not spent on weights.\n\n"
        "![bits per byte, bits of a weight](quantize_ladder.png)"
    )
    (arguments.out / "quantize_ladder.md").write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")
    print(f"{minutes:.1f} minutes; {arguments.out / 'quantize_ladder.md'}")


if __name__ == "__main__":
    main()
