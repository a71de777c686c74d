"""The table of `minillm finetune --table`: every method on three tasks, with several seeds, each of which has its base.

    OUT/base/            the base of seed 0, a run of `minillm train`
        base-1/ ...      those of the other seeds
        rates/           one JSON per run of the small search for each method's learning rate, on the first base
        runs/            one JSON per method, task and seed; what is there is not made again
        steps.json       seconds per step, all methods in turn
        finetune_table.csv  .md  .png
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minillm.adapt.adapted import Adapted, adapt
from minillm.adapt.fine_tuning import FineTuned, fine_tune, with_heads
from minillm.adapt.in_front import host_of
from minillm.adapt.methods import METHODS, Sizes, ready_for
from minillm.adapt.tasks import TEST_SEED, Domain, Records, Sentiment, Task, TextPairs
from minillm.compress.packed_linear import stored_bytes
from minillm.data.corpora import documents
from minillm.data.feelings import BASE_WORLD, SHORT_WORLD, unlabelled
from minillm.data.records import records
from minillm.data.tinyworld import World
from minillm.errors import ConfigError
from minillm.evaluate.bleu import corpus_bleu
from minillm.models.gpt import GPT
from minillm.runtime import generator
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.tokenizer import Tokenizer
from minillm.train.accumulation import accumulate_gradients
from minillm.train.optim import AdamW
from minillm.verbs.finetune_report import table_rows, write_table
from minillm.verbs.run_folder import open_run

SEARCH_SEED = 100
SEARCH_TASKS = ("sentiment", "domain")
N_PROSE_TEST = 8  # of the 71 pieces of prose, the last ones, which no training sees
FIRST_GUESS = {  # of learning rates; the search tries a third of it, itself and three times as much
    "full": 1e-3, "head": 1e-2, "last": 3e-3, "feed_forward": 1e-3, "bitfit": 1e-2, "lora": 1e-2, "qlora": 1e-2,
    "adapter": 1e-2, "pfeiffer": 1e-2, "prefix": 1e-2, "p_tuning_v2": 3e-2, "prompt": 3e-2, "p_tuning": 1e-2,
    "ia3": 3e-2, "intrinsic": 1e-2,
}  # fmt: skip
FACTORS = (1 / 3, 1.0, 3.0)
TIMING_ROUNDS = 4
NEEDS_A_NEW_HEAD = ("head",)  # methods for tasks that bring one: the base's own is its token embedding


@dataclass(frozen=True)
class TableConfig:
    """How large the table is.

    Args:
        methods: names in `METHODS`.
        tasks: "sentiment", "domain", "records".
        n_seeds: seeds 0 to n_seeds - 1, at least 2 for an interval; of the base and of all that is done with it.
        steps: of each run.
        records_steps: of each run on records, where copying must be learned, which takes longer.
        base_steps: of each base.
        search_steps: of each run of the search for learning rates; 0 takes those of `METHODS`.
        batch_size: rows per step.
        sizes: of the methods.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    tasks: tuple[str, ...] = ("sentiment", "domain", "records")
    n_seeds: int = 5
    steps: int = 100
    records_steps: int = 300
    base_steps: int = 1500
    search_steps: int = 50
    batch_size: int = 16
    size: str = "nano"
    sizes: Sizes = Sizes()

    def __post_init__(self):
        if self.n_seeds < 2:
            raise ConfigError(f"n_seeds is {self.n_seeds}; an interval needs at least 2")


QUICK = TableConfig(
    methods=("full", "lora", "bitfit"), tasks=("sentiment",), n_seeds=2, steps=4, base_steps=6, search_steps=0,
    batch_size=4, size="nano",
)  # fmt: skip


def make_base(folder: Path, config: TableConfig, seed: int) -> None:
    """Train the base of a seed, unless it is there: a GPT-2 with biases, on stories in which people feel.

    Its tokenizer has seen all kinds of text that the tasks bring, as that of GPT-2 had; the model has not.
    """
    from minillm.verbs.train import Settings
    from minillm.verbs.training import read_texts, train_run

    if (folder / "settings.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.parent / "tokenizer.json"
    if not tokenizer.exists():
        pairs = (f"{source} -> {target}" for source, target in islice(records(World(SHORT_WORLD), 1), 300))
        texts = [*islice(unlabelled(World(BASE_WORLD), 0), 1000), *pairs, *prose()[:-N_PROSE_TEST]]
        BPETokenizer.train(texts, 768).save(tokenizer)
    settings = Settings(
        data=("tinyworld-feelings",), model="gpt2", size=config.size, steps=config.base_steps, batch_size=16,
        max_seq_len=128, rows="documents", tokenizer=str(tokenizer), optimizer="muon", precision="fp32", device="cpu",
        learning_rate=0.02, validate_every=0, sample_every=0, checkpoint_every=0, out=folder, seed=seed,
    )  # fmt: skip
    train_run(settings, read_texts(settings))


def prose() -> list[str]:
    """The new domain: this project's English prose."""
    return list(documents("stories-en"))


def make_task(name: str, tokenizer: Tokenizer, batch_size: int = 16) -> Task:
    """One of the three tasks, as the table has it."""
    world = World(SHORT_WORLD)
    if name == "sentiment":
        return Sentiment(world, tokenizer, n_train=2000, n_test=400, batch_size=batch_size)
    if name == "records":
        return Records(world, tokenizer, n_train=2000, n_test=128, batch_size=batch_size)
    if name == "domain":
        pieces = prose()
        return Domain(pieces[:-N_PROSE_TEST], pieces[-N_PROSE_TEST:], tokenizer, seq_len=64, batch_size=batch_size)
    raise ConfigError(f"the task {name!r} is unknown; known are sentiment, domain, records")


def old_domain(tokenizer: Tokenizer) -> Domain:
    """Stories like those that the base learned from, and has not seen."""
    texts = list(islice(unlabelled(World(BASE_WORLD), TEST_SEED), 60))
    return Domain(texts[:1], texts, tokenizer, seq_len=96)


def make_table(out: Path, config: TableConfig) -> list[dict[str, Any]]:
    """Make what is missing, then the files.

    Args:
        out: folder.
        config: what is wanted.

    Returns:
        the table's rows.
    """
    bases: list[GPT] = []
    for seed in range(config.n_seeds):
        folder = out / (f"base-{seed}" if seed else "base")
        make_base(folder, config, seed)
        run = open_run(folder, torch.device("cpu"))
        bases.append(run.model)
    tasks = {name: make_task(name, run.tokenizer, config.batch_size) for name in config.tasks}
    old = old_domain(run.tokenizer)
    rates = {name: best_rate(out / "rates", name, bases[0], tasks, config) for name in config.methods}
    runs = []
    todo = [todo for todo in product(range(config.n_seeds), config.methods, tasks) if fits(todo[1], tasks[todo[2]])]
    for seed, method, name in tqdm(todo, desc="runs"):
        path = out / "runs" / f"{method}-{name}-{seed}.json"
        key = {"method": method, "task": name, "seed": seed, "base": seed, "steps": steps_of(name, config)}
        key["learning_rate"] = rates[method]
        runs.append(cached(path, key, partial(one_run, bases[seed], tasks[name], old, config)))
    of_old = [old.score(base) for base in bases]
    before = {"old": statistics.fmean(of_old)} | {
        name: statistics.fmean(task.score(base) for base in bases) for name, task in tasks.items() if not task.heads
    }
    seconds = cached(
        out / "steps.json", {"methods": list(config.methods)}, partial(step_seconds, bases[0], tasks, config)
    )
    rows = table_rows(config, runs, rates, seconds["seconds"], of_old)
    write_table(out, rows, before, settings_in_words(config, bases[0]))
    return rows


def steps_of(task: str, config: TableConfig) -> int:
    """Steps of a run on this task."""
    return config.records_steps if task == "records" else config.steps


def fits(method: str, task: Task) -> bool:
    """Whether the method can do the task at all."""
    return bool(task.heads) or method not in NEEDS_A_NEW_HEAD


def cached(path: Path, key: dict[str, Any], make: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds, if it was made for the same key; else made now and written in one go."""
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        return found
    made = {"key": key} | make(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
    return made


def best_rate(folder: Path, method: str, base: GPT, tasks: dict[str, Task], config: TableConfig) -> float:
    """The learning rate with the smallest loss at the end, the geometric mean over two tasks, of three; seed 100."""
    if not config.search_steps:
        return METHODS[method].learning_rate
    losses = {}
    for factor in FACTORS:
        rate = float(f"{FIRST_GUESS[method] * factor:.1g}")
        losses[rate] = 1.0
        for name, task in tasks.items():
            if name not in SEARCH_TASKS or not fits(method, task):
                continue
            key = {"method": method, "task": name, "steps": config.search_steps, "learning_rate": rate}
            path = folder / f"{method}-{name}-{rate:g}.json"
            losses[rate] *= cached(path, key, partial(search_run, base, task, config))["loss"]
    return min(losses, key=lambda rate: losses[rate])


def search_run(base: GPT, task: Task, config: TableConfig, key: dict[str, Any]) -> dict[str, Any]:
    """The mean loss of the last fifth of a short run."""
    model = ready_for(METHODS[key["method"]], copy.deepcopy(base))
    method = METHODS[key["method"]].make(config.sizes)
    result = fine_tune(
        model, task, method, key["steps"], key["learning_rate"], SEARCH_SEED, progress=False, scored=False
    )
    losses = whole(result).losses
    last = losses[-max(1, len(losses) // 5) :]
    return {"loss": statistics.fmean(last)}


def one_run(base: GPT, task: Task, old: Domain, config: TableConfig, key: dict[str, Any]) -> dict[str, Any]:
    """Adapt a copy of the base and measure everything but time."""
    started = time.perf_counter()
    model = ready_for(METHODS[key["method"]], copy.deepcopy(base))
    method = METHODS[key["method"]].make(config.sizes)
    result = whole(fine_tune(model, task, method, key["steps"], key["learning_rate"], key["seed"], progress=False))
    adapted = result.adapted
    figures = {
        "score": result.score, "n_trained": result.n_trained, "n_base": base.n_parameters(),
        "loss": statistics.fmean(result.losses[-10:]), "delta_bytes": delta_bytes(adapted),
        "memory_bytes": training_bytes(adapted, task), "old_bits_per_byte": old.score(host_of(adapted.model)),
    }  # fmt: skip
    if isinstance(task, TextPairs):
        sources, targets = zip(*task.test_pairs, strict=True)
        figures["bleu"] = corpus_bleu(task.written(adapted.model, sources), [[target] for target in targets]).score
    return figures | {"seconds": time.perf_counter() - started}


def whole(result: FineTuned) -> FineTuned:
    """The result of a run that was not stopped; a signal ends the table, which goes on when it is made again."""
    if result.stopped_by:
        raise KeyboardInterrupt
    return result


def delta_bytes(adapted: Adapted) -> int:
    """Bytes of the saved adapter, both files."""
    with tempfile.TemporaryDirectory() as folder:
        return sum(path.stat().st_size for path in adapted.save(folder).iterdir())


def training_bytes(adapted: Adapted, task: Task) -> int:
    """What a training step holds at its peak, counted: weights, gradients, Adam's two means, and what autograd keeps.

    torch on a CPU has no allocator that could be asked, and the process's own size is mostly Python and libraries here.
    So the tensors are counted: those that autograd keeps for the way back through a hook, each storage once, those of
    the model's weights left out; short-lived buffers of kernels are not seen.
    """
    inputs, targets = (torch.from_numpy(array) for array in task.batches(0))
    of_model = {tensor.untyped_storage().data_ptr() for tensor in adapted.model.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_model:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    adapted.model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = task.loss_sum(adapted.model, inputs, targets)
    del loss
    adapted.model.eval()
    n_trained = sum(parameter.numel() for parameter in adapted.trainable_parameters().values())
    return stored_bytes(adapted.model) + 3 * 4 * n_trained + sum(kept.values())


def step_seconds(base: GPT, tasks: dict[str, Task], config: TableConfig, key: dict[str, Any]) -> dict[str, Any]:
    """Seconds per step of each method on the first task, in turns, so that a busy moment hits all of them."""
    task = next(iter(tasks.values()))
    seconds: dict[str, list[float]] = {name: [] for name in config.methods}
    steppers = {name: Stepper(base, task, name, config) for name in config.methods if fits(name, task)}
    for _ in range(TIMING_ROUNDS):
        for name, stepper in steppers.items():
            seconds[name] += [stepper.step(number) for number in range(5)][1:]
    return {"seconds": {name: statistics.median(found) for name, found in seconds.items() if found}}


class Stepper:
    """A model with a method on it and an optimizer, whose steps are timed."""

    def __init__(self, base: GPT, task: Task, name: str, config: TableConfig):
        model = task.prepare(ready_for(METHODS[name], copy.deepcopy(base)), generator(0))
        self.adapted = adapt(model, with_heads(METHODS[name].make(config.sizes), task.heads), generator=generator(0))
        self.optimizer = AdamW(list(self.adapted.trainable_parameters().values()), 1e-4, fused=True)
        self.task = task

    def step(self, number: int) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        inputs, targets = (torch.from_numpy(array) for array in self.task.batches(number))
        accumulate_gradients(self.adapted.model, inputs, targets, 1, self.task.loss_sum)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def settings_in_words(config: TableConfig, base: GPT) -> str:
    """What all runs of the table share."""
    shape = base.config
    return (
        f"The base is a GPT-2 with biases ({shape.n_layers} layers, width {shape.d_model}, {base.n_parameters():,} "
        f"parameters), trained for {config.base_steps} steps on stories of the made world in which people feel. Each "
        f"run has {config.steps} steps (records {config.records_steps}) of {config.batch_size} rows with Adam; the "
        f"rate rises for a tenth of them and falls to 0. {config.n_seeds} seeds (another base, other heads, first "
        "numbers of the method and order of the rows); intervals are of 95 % by Student's t."
    )
