"""`minillm generate`: continue a prompt, token by token."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.config import setting
from minillm.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from minillm.export.opened import Opened
    from minillm.verbs.run_folder import Run


@dataclass(frozen=True)
class Drawing:
    """What `generate` and `chat` share: the run, and how its tokens are drawn."""

    run: Path = setting(Path("runs/demo"), "folder of the run", positional=True)
    hf: Path | None = setting(
        None,
        "instead of a run: a folder on this disk in the Hugging Face layout; nothing is downloaded (where there is "
        "network, get weights of a hub first, for example with: hf download NAME --local-dir DIR)",
    )
    adapter: Path | None = setting(None, "folder of minillm finetune: what was adapted on this base")
    max_new_tokens: int = setting(200, "the most tokens to add")
    temperature: float = setting(0.8, "below 1 favours likely tokens, above 1 evens out, 0 always takes the likeliest")
    top_k: int = setting(0, "keep only the k likeliest tokens; 0 keeps all")
    top_p: float = setting(0.95, "keep the fewest tokens whose probabilities reach this sum")
    min_p: float = setting(0.0, "drop tokens less likely than this times the likeliest")
    repetition_penalty: float = setting(1.0, "above 1 makes tokens that already occurred less likely")
    stop: str = setting("", "end when this text appears")
    seed: int = setting(0, "for the draws; continuation (or turn) i uses seed + i")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")
    precision: str = setting("fp32", "number format of the weights", choices=("auto", "fp32", "bf16", "fp16"))

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


@dataclass(frozen=True)
class Settings(Drawing):
    """Continue a prompt with a trained model and show the text as it grows."""

    prompt: str = setting("", "the beginning; empty begins a document")
    n_samples: int = setting(1, "how many continuations")
    keep_last: bool = setting(False, "let a prompt be longer than the context: the model sees its end only")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_samples < 1:
            raise ConfigError(f"n_samples is {self.n_samples}; it must be at least 1")


def run(settings: Settings) -> None:
    """Print the prompt and its continuations; with an adapter for classes, the class of the prompt."""
    if settings.adapter is not None and (answer := class_of_prompt(settings)):
        print(answer)
        return
    opened = open_to_draw(settings)
    for number in range(settings.n_samples):
        if settings.n_samples > 1:
            print(f"--- {number + 1}")
        pieces = continuation(opened, settings, settings.prompt, settings.seed + number, settings.keep_last)
        print(settings.prompt + next(pieces, ""), end="", flush=True)  # nothing of it before the settings are checked
        for text in pieces:
            print(text, end="", flush=True)
        print()


def open_to_draw(settings: Drawing) -> "Run | Opened":
    """The run, or the foreign folder, of the settings, on their device, in their number format, with their adapter.

    Raises:
        ConfigError: if the adapter answers with classes.
    """
    from minillm.compress.quant_linear import use_backend
    from minillm.infer.packed import pack_linears

    opened = open_base(settings)
    use_backend(opened.model, "auto")                              # of layers that are in few bits
    if settings.adapter is None:
        pack_linears(opened.model)
        return opened
    from minillm.verbs.adapter_folder import with_adapter

    _, note = with_adapter(opened.model, settings.adapter)
    if note.classes:
        raise ConfigError(f"{settings.adapter} answers with classes, not with text; ask it by minillm generate")
    return opened


def open_base(settings: Drawing) -> "Run | Opened":
    """The run, or the foreign folder, of the settings, on their device, in their number format."""
    from minillm.export.opened import open_hugging_face
    from minillm.runtime import choose_device, choose_dtype
    from minillm.verbs.run_folder import open_run

    device = choose_device(settings.device)
    dtype = choose_dtype(settings.precision, device).dtype
    if settings.hf is not None:
        return open_hugging_face(settings.hf, device, dtype)
    return open_run(settings.run, device, dtype)


def class_of_prompt(settings: "Settings") -> str:
    """If the adapter answers with classes, the prompt's class and its probability, else ""."""
    from minillm.verbs.adapter_folder import class_shares, read_note, with_adapter

    classes = read_note(settings.adapter).classes
    if not classes:
        return ""
    if not settings.prompt:
        raise ConfigError(f"{settings.adapter} answers with classes ({', '.join(classes)}); give a text: --prompt")
    opened = open_base(settings)
    model, _ = with_adapter(opened.model, settings.adapter)
    shares = class_shares(model, opened.tokenizer, settings.prompt)
    best = max(range(len(shares)), key=shares.__getitem__)
    return f"{classes[best]} {shares[best]:.3f}"


def continuation(opened: "Run | Opened", settings: Drawing, prompt: str, seed: int, keep_last: bool) -> Iterator[str]:
    """The pieces of text that follow a prompt, as they are drawn, up to the document's end, the stop text or the limit.

    Args:
        opened: the run, or the foreign model.
        settings: how to draw, when to stop.
        prompt: ordinary text; what looks like a special token in it is text too.
        seed: for the draws.
        keep_last: let the prompt be longer than the context.
    """
    from minillm.infer.generate import generate_stream
    from minillm.infer.sampling import SamplingConfig
    from minillm.runtime import generator

    tokenizer, model = opened.tokenizer, opened.model
    sampling = SamplingConfig(
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
    )  # fmt: skip
    ids = generate_stream(
        model, [*opened.begin_ids, *tokenizer.encode(prompt)], settings.max_new_tokens, sampling,
        stop_ids=opened.end_ids, generator=generator(seed, device_of(model)), keep_last=keep_last,
    )  # fmt: skip
    yield from until(tokenizer.decode_stream(ids), settings.stop)


def device_of(model) -> "torch.device":
    """Where the model's weights lie."""
    return next(model.parameters()).device


def until(pieces: Iterator[str], stop: str) -> Iterator[str]:
    """The pieces up to the first appearance of `stop`, which may be spread over several; an empty stop is none.

    Example:
        >>> list(until(iter(["ab", "c", "d"]), "bc"))
        ['a']
    """
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            before = held.split(stop, 1)[0]
            if before:
                yield before
            return
        kept = max((size for size in range(min(len(stop), len(held) + 1)) if held.endswith(stop[:size])), default=0)
        ready, held = held[: len(held) - kept], held[len(held) - kept :]
        if ready:
            yield ready
    if held:
        yield held
