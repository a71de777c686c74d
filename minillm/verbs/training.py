"""What `minillm train` and `minillm demo` share: texts to packed ids, model, optimizer, loop, then plot and samples."""

import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from minillm.data.batches import DocumentBatches, SequentialBatches
from minillm.data.corpora import documents
from minillm.data.packing import PackedTokens, pack
from minillm.data.split import split_documents, split_text
from minillm.errors import DataError
from minillm.evaluate.likelihood import bits_per_byte
from minillm.infer.generate import generate
from minillm.infer.sampling import SamplingConfig
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import flops_per_token, memory_bytes, model_config, parameters
from minillm.nn.onednn_linear import use_onednn
from minillm.plots import Line, Panel, plot_panels, running_mean
from minillm.runtime import choose_device, choose_dtype, generator, matmul_flops_per_second
from minillm.tokenizers.loading import load_tokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from minillm.train.checkpoint import CheckpointFolder
from minillm.train.hooks import Hook, MetricsLog, ProgressLine
from minillm.train.loop import LoopConfig, TrainResult, train, validation_loss
from minillm.train.loss import next_token_loss
from minillm.train.metrics import read_metrics
from minillm.train.mixture import MixtureLoss
from minillm.train.precision import Precision
from minillm.train.recipes import choose_recipe, make_optimizer, make_schedule
from minillm.verbs.run_folder import RunFolder
from minillm.verbs.tokenize import train_tokenizer
from minillm.verbs.train import Settings, identity, saved_form

VALIDATION_TOKENS = 32_768  # at most so many for each validation while training; `minillm evaluate` takes all
SAMPLE_TOKENS = 120
SAMPLING = SamplingConfig(temperature=0.8, top_p=0.95)


@dataclass(frozen=True)
class Texts:
    """Documents to learn from, and documents set aside."""

    train: list[str]
    validation: list[str]


def read_texts(settings: Settings) -> Texts:
    """Read all named texts and set a part aside: whole documents, or the end of a single one.

    Raises:
        DataError: if a text is missing, damaged or empty.
    """
    found = [text for name in settings.data for text in documents(name) if text.strip()]
    if not found:
        raise DataError(f"{', '.join(settings.data)}: there is no text in it; give one that is not empty")
    if len(found) == 1:
        parts = split_text(found[0], settings.validation_fraction)
        return Texts([parts[0]], [parts[1]])
    return Texts(*split_documents(found, settings.validation_fraction, settings.seed))


@contextmanager
def learners_functions(settings: Settings) -> Iterator[None]:
    """With `with_my`, the learner's passing functions stand in the library's place while the block runs; says which.

    Raises:
        CourseError: if a chapter was not begun, or none of its tasks passes.
    """
    if not settings.with_my:
        yield
        return
    from minillm.course.with_my import my_functions

    numbers = [number for word in settings.with_my for number in word.split(",") if number]
    with my_functions(numbers, settings.homework) as mine:
        print(f"yours: {', '.join(task.name for task in mine.passed)}")
        if mine.failed:
            print(f"the library's, since these do not pass yet: {', '.join(task.name for task in mine.failed)}")
        yield
        print("\n".join(mine.report()))


def make_tokenizer(settings: Settings, texts: Texts) -> Tokenizer:
    """Learn the tokenizer from the training texts, or load it from a file."""
    if settings.tokenizer in ("bpe", "chars", "words", "bytes"):
        learn_from = texts.train + texts.validation if settings.tokenizer == "chars" else texts.train
        return train_tokenizer(settings.tokenizer, learn_from, settings.vocab_size)
    return load_tokenizer(Path(settings.tokenizer))


def shape_of(settings: Settings, vocab_size: int) -> GPTConfig:
    """The model's shape."""
    kernels = "naive" if settings.with_my else "torch"  # only the readable kernels call what a learner wrote
    return model_config(
        settings.model, settings.size, vocab_size, settings.max_seq_len, dropout=settings.dropout, kernels=kernels
    )


def what_it_costs(settings: Settings, texts: Texts) -> str:
    """Parameters, memory and FLOPs of a run, in words."""
    config = shape_of(settings, make_tokenizer(settings, texts).vocab_size)
    rows = max(1, settings.batch_size // settings.microbatches)
    memory = memory_bytes(config, rows, bytes_per_activation=2 if settings.precision == "bf16" else 4)
    n_tokens = settings.steps * settings.batch_size * settings.max_seq_len
    flops = flops_per_token(config)
    n_bytes = [sum(len(text.encode()) for text in part) for part in (texts.train, texts.validation)]
    return "\n".join(
        [
            f"text          {n_bytes[0]:,} bytes to learn from, {n_bytes[1]:,} set aside",
            f"parameters    {parameters(config):,} ({config.n_layers} layers, {config.n_heads} heads, "
            f"width {config.d_model}, {config.vocab_size:,} token ids)",
            f"memory        about {memory.total_bytes / 1e6:,.0f} MB: weights {memory.weights_bytes / 1e6:,.0f}, "
            f"gradients {memory.gradients_bytes / 1e6:,.0f}, optimizer {memory.optimizer_bytes / 1e6:,.0f}, "
            f"activations {memory.activations_bytes / 1e6:,.0f}",
            f"FLOPs         {flops:,} per token (6 N + 12 L C T), {flops * n_tokens:.3g} for {n_tokens:,} tokens",
        ]
    )  # fmt: skip


@contextmanager
def whole_or_nothing(folder: RunFolder) -> Iterator[None]:
    """Make the run's folder; if what follows fails, take away what it has put there, so that a second try can begin.

    Raises:
        DataError: if the folder cannot be made.
    """
    is_new = not folder.path.exists()
    ours = (folder.tokenizer, folder.packed("train").parent, folder.checkpoints, folder.new_settings, folder.settings)
    added = [path for path in ours if not path.exists()]
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder.path}: no run can be put there ({error.strerror}); choose another --out") from error
    try:
        yield
    except BaseException:
        for path in filter(Path.exists, added):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if is_new:
            folder.path.rmdir()
        raise


def prepare(settings: Settings, texts: Texts, folder: RunFolder) -> Tokenizer:
    """Write tokenizer and packed ids into a new run's folder; on a resume only read the tokenizer."""
    if settings.resume:
        return load_tokenizer(folder.tokenizer)
    tokenizer = make_tokenizer(settings, texts)
    tokenizer.save(folder.tokenizer)
    for part, documents_of_part in (("train", texts.train), ("validation", texts.validation)):
        pack(documents_of_part, tokenizer, folder.packed(part))
    return tokenizer


def save_settings(settings: Settings, folder: RunFolder) -> None:
    """settings.json in one go: it is what makes a folder a run. A resume that asked for more steps is remembered."""
    folder.new_settings.write_text(saved_form(settings), encoding="utf-8")
    folder.new_settings.replace(folder.settings)


def train_run(settings: Settings, texts: Texts, hooks: tuple[Hook, ...] = ()) -> tuple[TrainResult, RunFolder]:
    """Train a model and leave everything in its folder.

    Args:
        settings: resolved.
        texts: what to learn from.
        hooks: more listeners of the loop.

    Returns:
        How the loop ended, and the folder.
    """
    folder = RunFolder(settings.out)
    device = choose_device(settings.device)
    number_format = choose_dtype(settings.precision, device)
    torch.manual_seed(settings.seed)  # dropout draws from PyTorch's own generator
    with whole_or_nothing(folder):
        tokenizer = prepare(settings, texts, folder)
        tokens, held_out = (folder.open_text(part, tokenizer) for part in ("train", "validation"))
        batches = batches_of(settings, tokens)
        config = shape_of(settings, tokenizer.vocab_size)
        model = GPT(config, generator(settings.seed)).to(device)
        if not settings.compile:  # the compiler chooses for itself
            use_onednn(model)
        recipe = choose_recipe(
            settings.model, settings.optimizer, settings.learning_rate, settings.warmup_steps, settings.weight_decay
        )
        optimizer = make_optimizer(recipe, model, config, "bf16" if number_format.name == "bf16" else "fp32")
        loop = LoopConfig(
            settings.steps, number_format.name, settings.microbatches, settings.max_norm, settings.log_every,
            settings.validate_every, settings.sample_every, settings.checkpoint_every,
        )  # fmt: skip
        validate = validation(model, held_out, settings, Precision(number_format.name))
        checkpoints = CheckpointFolder(folder.checkpoints, settings.keep_last)
        save_settings(settings, folder)
    print(
        f"{folder.path}: {model.n_parameters():,} parameters, {len(tokens):,} tokens of training text "
        f"({batches.batches_per_epoch} steps an epoch), {number_format.name} on {device} ({number_format.reason}), "
        f"{recipe.optimizer} {recipe.learning_rate:g}",
        flush=True,
    )
    if settings.compile:
        model.compile()
    result = train(
        model,
        optimizer,
        batches.batch,
        loop,
        schedule=make_schedule(recipe, settings.steps),
        loss_sum=MixtureLoss() if config.n_experts else next_token_loss,
        validate=validate,
        sample=sampler(model, tokenizer, settings),
        hooks=[MetricsLog(folder.metrics), ProgressLine(), *hooks],
        checkpoints=checkpoints,
        resume=settings.resume,
        run_config={"model": asdict(config), "settings": identity(settings)},
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
    write_results(folder)
    if not result.stopped_by:  # who stops a run does not want to wait for a measurement
        print(utilisation(folder, config, device, number_format.dtype), flush=True)
    return result, folder


def batches_of(
    settings: Settings, tokens: PackedTokens, shuffle: bool = True, rank: int = 0, world_size: int = 1
) -> SequentialBatches | DocumentBatches:
    """Batches with rows as the settings want them; running text can be read in its order, ranks share the rows out."""
    shape = (settings.batch_size // world_size, settings.max_seq_len, settings.seed, rank, world_size)
    if settings.rows == "documents":
        return DocumentBatches(tokens, tokens.end_of_text_id, *shape)
    return SequentialBatches(tokens, *shape, shuffle=shuffle)


def validation(
    model: GPT | None,
    held_out: PackedTokens,
    settings: Settings,
    precision: Precision,
    measure: Callable[..., Mapping[str, float] | None] = validation_loss,
) -> Callable[[Callable[[], bool]], Mapping[str, float] | None]:
    """The loop's validation: loss in nats per token and bits per byte on the first tokens set aside."""
    if len(held_out) < 2:
        raise DataError("the text set aside for validation has a single token; give a longer text")
    settings = replace(settings, max_seq_len=min(settings.max_seq_len, len(held_out) - 1), seed=0)
    n_rows = len(held_out) // settings.max_seq_len
    settings = replace(settings, batch_size=min(settings.batch_size, n_rows))
    batches = batches_of(settings, held_out, shuffle=False)
    n_batches = max(1, min(n_rows, VALIDATION_TOKENS // settings.max_seq_len) // settings.batch_size)
    bytes_per_token = held_out.n_text_bytes / len(held_out)

    def validate(should_stop: Callable[[], bool]) -> Mapping[str, float] | None:
        figures = measure(model, batches.batch, n_batches, should_stop, precision=precision)
        return figures and {**figures, "bits_per_byte": bits_per_byte(figures["loss"], 1) / bytes_per_token}

    return validate


def sampler(model: GPT, tokenizer: Tokenizer, settings: Settings) -> Callable[[Callable[[], bool]], str]:
    """The loop's sample: the continuation of the prompt, drawn from a generator of its own."""
    end = tokenizer.special_tokens[END_OF_TEXT]
    prompt = [end, *tokenizer.encode(settings.prompt)][-settings.max_seq_len :]
    n_new = min(SAMPLE_TOKENS, max(1, settings.max_seq_len - len(prompt)))

    def sample(should_stop: Callable[[], bool]) -> str:
        device = model.token_embedding.weight.device
        draw = generator(settings.seed, device)
        model.eval()
        new_ids = generate(model, [prompt], n_new, SAMPLING, stop_ids=[end], generator=draw)[0]
        return settings.prompt + tokenizer.decode(new_ids)

    return sample


def write_results(folder: RunFolder) -> None:
    """Draw the loss curve and collect the samples from the metrics."""
    metrics = read_metrics(folder.metrics)
    samples = [entry for entry in metrics if entry["kind"] == "sample"]
    text = "".join(f"--- step {entry['step']}\n{entry['text']}\n\n" for entry in samples)
    folder.samples.write_text(text, encoding="utf-8")
    if any(entry["kind"] == "train" for entry in metrics):
        plot_panels([loss_panel(folder.path.name, metrics)], folder.loss_plot)


def loss_panel(title: str, metrics: list[dict]) -> Panel:
    """The curves of one run: training loss as measured and smoothed, and validation loss."""
    points = {
        kind: [
            (entry["step"], entry["loss"])
            for entry in metrics
            if entry["kind"] == kind and entry["loss"] is not None
        ]
        for kind in ("train", "validation")
    }
    steps, losses = map(list, zip(*points["train"], strict=True)) if points["train"] else ([], [])
    smoothed = running_mean(losses, max(2, min(10, len(losses) // 15)))
    lines = {"training": Line(steps, losses, faint=True), "training, smoothed": Line(steps, smoothed)}
    if points["validation"]:
        lines["validation"] = Line(*map(list, zip(*points["validation"], strict=True)))
    return Panel(title, "step", "loss (nats per token)", lines)


def utilisation(
    folder: RunFolder, config: GPTConfig, device: torch.device, dtype: torch.dtype, n_processes: int = 1
) -> str:
    """Model FLOPs utilisation of the run's second half: operations the model needs over what the devices can do."""
    rates = [entry["tokens_per_second"] for entry in read_metrics(folder.metrics, "train")]
    rate = statistics.median(rates[len(rates) // 2 :]) if rates else 0.0
    peak = n_processes * matmul_flops_per_second(device, dtype)
    used = flops_per_token(config) * rate
    return (
        f"{rate:,.0f} tokens/s; MFU = (6 N + 12 L C T) * tokens/s / measured matrix product rate "
        f"= {used / 1e9:,.1f} / {peak / 1e9:,.1f} GFLOP/s = {used / peak:.1%}"
    )
