"""What `minillm finetune` does: base and task, training, then a folder with what changed and what came of it."""

from collections import Counter
from pathlib import Path

import torch

from minillm.adapt.delta_file import SETTINGS, TENSORS
from minillm.adapt.fine_tuning import FineTuned, fine_tune
from minillm.adapt.methods import Sizes, method_named, ready_for
from minillm.adapt.tasks import Domain, Records, Sentiment, Task, TextClasses, TextPairs
from minillm.data.answers import as_pairs, read_answers, set_aside, with_numbers
from minillm.data.corpora import documents
from minillm.data.feelings import SHORT_WORLD
from minillm.data.split import split_documents, split_text
from minillm.data.tinyworld import World
from minillm.errors import ConfigError, DataError
from minillm.export.hugging_face import family_of
from minillm.export.opened import Opened, open_hugging_face
from minillm.export.peft import save_peft
from minillm.infer.generate import generate
from minillm.infer.sampling import SamplingConfig
from minillm.models.gpt import GPT
from minillm.plots import Line, Panel, plot_panels, running_mean
from minillm.runtime import choose_device, generator
from minillm.train.hooks import MetricsLog
from minillm.verbs.adapter_folder import AdapterNote, class_shares, write_note
from minillm.verbs.finetune import Settings
from minillm.verbs.run_folder import Run, open_run

PEFT, SAMPLES, METRICS, PLOT = "peft", "samples.txt", "metrics.jsonl", "loss.png"
SAMPLING = SamplingConfig(temperature=0.8, top_p=0.95)
SAMPLE_TOKENS = 60


def fine_tune_run(settings: Settings, out: Path) -> str | None:
    """Adapt a base to a task and leave the adapter in a folder.

    Args:
        settings: of the verb.
        out: the folder; one that holds an adapter is not touched.

    Returns:
        the signal that stopped it, after which nothing is written, or None.

    Raises:
        ConfigError: if the folder is taken, or the method does not fit the base.
        DataError: if there are no texts.
        CheckpointError: if peft is to open it, but transformers has no such model.
    """
    if (out / SETTINGS).exists():
        raise ConfigError(f"{out} holds an adapter already; choose another --out")
    opened, method = open_base(settings), method_named(settings.method)
    if settings.save_peft:
        family_of(opened.model.config)  # before the work: raises if transformers has no such model
    task = make_task(settings, opened)
    before = before_training(task, opened.model)
    config = method.make(Sizes(
        settings.rank, settings.alpha, settings.targets, settings.width, settings.n_virtual, settings.d_hidden,
        settings.n_layers, settings.dimension,
    ))  # fmt: skip
    rate, n_base = settings.learning_rate or method.learning_rate, opened.model.n_parameters()
    out.mkdir(parents=True, exist_ok=True)
    result = fine_tune(
        ready_for(method, opened.model), task, config, settings.steps, rate, settings.seed,
        hooks=[MetricsLog(out / METRICS)],
    )  # fmt: skip
    if result.stopped_by:
        (out / METRICS).unlink()
        return result.stopped_by
    write_folder(settings, out, task, result, opened)
    print("\n".join(result_lines(task, result, n_base, before, rate, out)))
    print((out / SAMPLES).read_text(encoding="utf-8"), end="")
    base = f"--hf {settings.hf}" if settings.hf else str(settings.base)
    print(f"done: {out}; try: minillm generate {base} --adapter {out} --prompt ...")
    return None


def open_base(settings: Settings) -> Run | Opened:
    """The model that is adapted, with its tokenizer.

    Raises:
        DataError, CheckpointError: if there is none.
    """
    device = choose_device(settings.device)
    return open_hugging_face(settings.hf, device) if settings.hf else open_run(settings.base, device)


def make_task(settings: Settings, opened: Run | Opened) -> Task:
    """The task of the settings, on the project's texts or the user's."""
    tokenizer, context, size = opened.tokenizer, opened.model.config.max_seq_len, settings.batch_size
    room = max(1, context - settings.n_virtual)  # beside what some methods put in front
    bias = not settings.save_peft  # classifiers in transformers have none
    if settings.task == "sentiment":
        return Sentiment(World(SHORT_WORLD), tokenizer, batch_size=size, max_tokens=room, bias=bias)
    if settings.task == "records":
        return Records(World(SHORT_WORLD), tokenizer, batch_size=size)
    if settings.task == "domain":
        train, test = read_domain(settings)
        return Domain(train, test, tokenizer, min(settings.max_seq_len, room), size)
    examples = read_answers(settings.data, settings.task)
    if settings.task == "pairs":
        return TextPairs(*set_aside(as_pairs(examples), settings.validation_fraction, settings.seed), tokenizer, size)
    texts, classes = with_numbers(examples)
    parts = set_aside(texts, settings.validation_fraction, settings.seed)
    return TextClasses(*parts, tokenizer, classes, size, max_tokens=room, bias=bias)


def read_domain(settings: Settings) -> tuple[list[str], list[str]]:
    """Documents to learn from and documents set aside; of a single one its end."""
    found = [text for text in documents(settings.data or "stories-en") if text.strip()]
    if not found:
        raise DataError(f"{settings.data}: there is no text in it; give one that is not empty")
    if len(found) == 1:
        first, rest = split_text(found[0], settings.validation_fraction)
        return [first], [rest]
    return split_documents(found, settings.validation_fraction, settings.seed)


def before_training(task: Task, model: GPT) -> tuple[str, float]:
    """What the score is to be compared with: the base's own, or for classes the share of the most frequent one."""
    if isinstance(task, TextClasses):
        return "most frequent class", Counter(label for _, label in task.test).most_common(1)[0][1] / len(task.test)
    return "before", task.score(model)


def write_folder(settings: Settings, out: Path, task: Task, result: FineTuned, opened: Run | Opened) -> None:
    """The adapter, the note, samples, the plot; also in peft's layout if that is wanted."""
    base = str(settings.hf or settings.base)
    classes = task.classes if isinstance(task, TextClasses) else ()
    result.adapted.save(out)
    write_note(out, AdapterNote(settings.method, settings.task, base, classes, bias=not settings.save_peft))
    (out / SAMPLES).write_text(samples(task, result, opened, settings.seed), encoding="utf-8")
    steps = list(range(1, len(result.losses) + 1))
    smooth = running_mean(result.losses, max(2, min(10, len(steps) // 5)))
    lines = {"training": Line(steps, result.losses, faint=True), "training, smoothed": Line(steps, smooth)}
    plot_panels([Panel(f"{settings.task}, {settings.method}", "step", "loss (nats per target)", lines)], out / PLOT)
    if settings.save_peft:
        save_peft(result.adapted, out / PEFT, base)


def result_lines(
    task: Task, result: FineTuned, n_base: int, before: tuple[str, float], rate: float, out: Path
) -> list[str]:
    """What came of it, in words."""
    n_bytes = sum((out / name).stat().st_size for name in (SETTINGS, TENSORS))
    share = 100 * result.n_trained / n_base
    return [
        f"{result.n_trained:,} parameters were trained ({share:.3g} % of the base's {n_base:,}), rate {rate:g}, "
        f"{1000 * result.seconds_per_step:.0f} ms per step; the adapter has {n_bytes / 1e3:.1f} KB",
        f"{task.name}: {task.unit} {result.score:.3f} on texts not trained on ({before[0]}: {before[1]:.3f})",
    ]


def samples(task: Task, result: FineTuned, opened: Run | Opened, seed: int) -> str:
    """A few test texts with the answers, or a text written by the adapted model."""
    model = result.adapted.model
    if isinstance(task, TextClasses):
        return "".join(judged(task, model, opened, number) for number in range(min(3, len(task.test))))
    if isinstance(task, TextPairs):
        sources = [pair.source for pair in task.test_pairs[:3]]
        written = task.written(model, sources)
        return "".join(f"{source} -> {text}\n" for source, text in zip(sources, written, strict=True))
    n_new = min(SAMPLE_TOKENS, model.config.max_seq_len - 1)
    draw = generator(seed, next(model.parameters()).device)
    ids = generate(model, [[task.end_id]], n_new, SAMPLING, stop_ids=[task.end_id], generator=draw)[0]
    return opened.tokenizer.decode(ids) + "\n"


def judged(task: TextClasses, model: torch.nn.Module, opened: Run | Opened, number: int) -> str:
    """A test text with its class and what the model says."""
    ids, label = task.test[number]
    text = opened.tokenizer.decode(ids[1:])
    shares = class_shares(model, opened.tokenizer, text)
    said = max(range(len(shares)), key=shares.__getitem__)
    return f"{task.classes[said]} {shares[said]:.2f} (is {task.classes[label]}): {text}\n"
