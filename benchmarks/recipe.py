"""How much better, and how much sooner, the modern recipe learns TinyShakespeare than the GPT-2-style one.

Three trainings for each seed, in turn, on the same text with the same number of parameters (within 5 %), in windows
of 64 characters: the baseline (2,000 steps of 12 windows, 1.54 M tokens), ours with as many tokens, and ours with only
as many as it takes to reach the baseline's final loss. The loss is that of the whole validation split, every token
predicted once; its seconds are not counted.
`recipe_log.md` tells what was tried. Run: python benchmarks/recipe.py --threads 2
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pairs import Claim, print_claims
from torch.optim import Optimizer

from minillm.data.batches import RandomWindows, SequentialBatches
from minillm.evaluate.likelihood import evaluate_likelihood
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.tokenizers.chars import CharTokenizer
from minillm.train.grouping import decay_groups, muon_and_adamw
from minillm.train.hooks import Hook, StepReport
from minillm.train.loop import LoopConfig, train
from minillm.train.optim import AdamW
from minillm.train.schedule import warmup_cosine, warmup_linear_to_zero

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare.txt"
SEQ_LEN = 64
LOSS_NEEDED, LOSS_AIM = 1.66, 1.57


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one training beside seed and text."""

    family: str
    n_steps: int
    batch_size: int
    batches: type[RandomWindows | SequentialBatches]
    optimizer: Callable[[GPT], Optimizer]
    schedule: Callable[[int], float]
    max_norm: float
    precision: str


def baseline(n_steps: int = 2000) -> Recipe:
    """GPT-2's architecture and the usual way to train it."""

    def optimizer(model: GPT) -> Optimizer:
        return AdamW(decay_groups(model, weight_decay=0.1), lr=1e-3, betas=(0.9, 0.99), fused=True)

    n_warmup_steps = min(100, n_steps // 4)
    schedule = partial(
        warmup_cosine, max_learning_rate=1.0, min_learning_rate=0.1, n_warmup_steps=n_warmup_steps, n_steps=n_steps
    )
    return Recipe("gpt2", n_steps, 12, RandomWindows, optimizer, schedule, max_norm=1.0, precision="fp32")


def modern(n_steps: int, muon_lr: float, adamw_lr: float, precision: str) -> Recipe:
    """Our recipe: Muon with neurons of equal length on the matrices, AdamW on the rest, rates in a line to zero."""

    def optimizer(model: GPT) -> Optimizer:
        return muon_and_adamw(
            model,
            muon_lr=muon_lr,
            adamw_lr=adamw_lr,
            head_lr=adamw_lr / 2,
            momentum=0.9,
            neuron_beta=0.95,
            betas=(0.8, 0.95),
            ns_dtype=precision,
            splits={"qkv.weight": 3},
            fused=True,
        )

    schedule = partial(warmup_linear_to_zero, max_learning_rate=1.0, n_warmup_steps=0, n_steps=n_steps)
    no_clipping = float("inf")
    return Recipe("modern", n_steps, 12, SequentialBatches, optimizer, schedule, no_clipping, precision)


@dataclass(frozen=True)
class Outcome:
    """What a training gave."""

    loss: float
    seconds: float
    n_tokens: int
    n_parameters: int


class Seconds(Hook):
    """Remembers how long the steps took, validation not counted."""

    def on_step(self, report: StepReport) -> None:
        self.total = report.seconds


def run(recipe: Recipe, training_ids: np.ndarray, validation_ids: np.ndarray, vocab_size: int, seed: int) -> Outcome:
    """Train one model and score it on the whole validation split.

    Args:
        recipe: how.
        training_ids: (N,) token ids.
        validation_ids: (M,) token ids.
        vocab_size: number of token ids V.
        seed: of the initial weights and of the order of the windows.
    """
    config = model_config(recipe.family, "tiny", vocab_size=vocab_size, max_seq_len=SEQ_LEN)
    model = GPT(config, torch.Generator().manual_seed(seed))
    seconds = Seconds()
    result = train(
        model,
        recipe.optimizer(model),
        recipe.batches(training_ids, recipe.batch_size, SEQ_LEN, seed).batch,
        LoopConfig(n_steps=recipe.n_steps, precision=recipe.precision, max_norm=recipe.max_norm, spike_sigmas=0),
        schedule=recipe.schedule,
        hooks=[seconds],
    )
    if result.step < recipe.n_steps:
        raise SystemExit(f"stopped by {result.stopped_by} at step {result.step}")
    loss = evaluate_likelihood(model, validation_ids, SEQ_LEN, batch_size=256).nats_per_token
    return Outcome(loss, seconds.total, result.tokens, model.n_parameters())


def report(name: str, outcomes: list[Outcome]) -> None:
    """One line for people: mean and spread over the seeds."""
    losses = [outcome.loss for outcome in outcomes]
    seconds = statistics.median(outcome.seconds for outcome in outcomes)
    print(
        f"{name:22} {outcomes[0].n_parameters:,} parameters, {outcomes[0].n_tokens:,} tokens, {seconds:6.1f} s, "
        f"{statistics.fmean(losses):.4f} nats (from {min(losses):.4f} to {max(losses):.4f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of our recipe")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps: shows that it runs, no more")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = arguments.text.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.train(text, special_tokens=())
    ids = np.array(tokenizer.encode(text))
    training_ids, validation_ids = np.split(ids, [int(0.9 * len(ids))])

    divisor = 20 if arguments.quick else 1
    recipes = {
        "baseline": baseline(2000 // divisor),
        "ours": modern(2000 // divisor, 0.02, 0.01, arguments.precision),
        "ours, to that loss": modern(220 // divisor, 0.03, 0.02, arguments.precision),
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in recipes}
    for seed in arguments.seeds:
        for name, recipe in recipes.items():
            outcome = run(recipe, training_ids, validation_ids, tokenizer.vocab_size, seed)
            outcomes[name].append(outcome)
            print(f"seed {seed}, {name}: {outcome.loss:.4f} nats, {outcome.seconds:.1f} s", flush=True)
    for name, of_one in outcomes.items():
        report(name, of_one)
    print_claims(claims_of(*outcomes.values()))


def claims_of(peer: list[Outcome], ours: list[Outcome], early: list[Outcome]) -> list[Claim]:
    """Both claims; a seed in which the short run misses the baseline's final loss counts as no gain (ratio 0)."""
    loss = statistics.fmean(outcome.loss for outcome in ours)
    gains = [
        theirs.seconds / mine.seconds if mine.loss <= theirs.loss else 0.0
        for theirs, mine in zip(peer, early, strict=True)
    ]
    spread = f"{loss:.3f} nats at {ours[0].n_tokens:,} tokens; baseline {statistics.fmean(o.loss for o in peer):.3f}"
    what = f"validation loss, TinyShakespeare ({spread})"
    return [
        Claim(what, f"{LOSS_NEEDED} nats", LOSS_NEEDED / loss, at_least=1.0, aim=round(LOSS_NEEDED / LOSS_AIM, 4)),
        Claim("wall time to the baseline's final loss", "our GPT-2-style recipe", statistics.median(gains), 4.0, 6.0),
    ]


if __name__ == "__main__":
    main()
