"""`minillm export`: a run in the format of others, for others' tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.config import setting
from minillm.errors import ConfigError

if TYPE_CHECKING:
    from minillm.verbs.run_folder import Run

BLOCK_TYPES = ("f32", "f16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k")


@dataclass(frozen=True)
class Settings:
    """Write a run's model and tokenizer as a folder that transformers opens, or as a GGUF file that llama.cpp runs.

    transformers has no class for models of the family modern; GGUF files are written of gpt2 and llama. What cannot be
    written is refused with the reason.
    """

    run: Path = setting(Path("runs/stories-en-llama-tiny"), "folder of the run", positional=True)
    dir: Path | None = setting(
        None, "the folder, new or empty, or the file to write; RUN/hf or RUN/model.gguf if not given", positional=True
    )
    to: str = setting("hf", "hf: config.json, safetensors and tokenizer.json; gguf: one file", choices=("hf", "gguf"))
    precision: str = setting("fp32", "number format of the weights, for hf", choices=("fp32", "bf16", "fp16"))
    type: str = setting("q8_0", "block type of the linear layers, for gguf", choices=BLOCK_TYPES)
    outside: str = setting("q8_0", "at least that of token embedding and head, for gguf", choices=BLOCK_TYPES)


def run(settings: Settings) -> None:
    """Write the folder or the file; say how to open it."""
    import torch

    from minillm.runtime import DTYPES
    from minillm.verbs.run_folder import open_run

    opened = open_run(settings.run, torch.device("cpu"), DTYPES[settings.precision])
    if (settings.run / "quantize.txt").exists():
        raise ConfigError(f"{settings.run} is quantized already; export the run it was made from, as gguf in few bits")
    print(to_gguf(settings, opened) if settings.to == "gguf" else to_hugging_face(settings, opened))


def to_hugging_face(settings: Settings, opened: "Run") -> str:
    """Write the folder; what to say about it."""
    from minillm.export.hugging_face import family_of, save_hugging_face

    folder = save_hugging_face(opened.model, settings.dir or settings.run / "hf", opened.tokenizer)
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return (
        f"{folder}: {family_of(opened.model.config).name}, {opened.model.n_parameters():,} parameters after "
        f"{opened.step} steps, {n_bytes / 1e6:,.1f} MB\n"
        f"open it with AutoModelForCausalLM and AutoTokenizer .from_pretrained({str(folder)!r}), "
        f"or try: minillm generate --hf {folder}"
    )


def to_gguf(settings: Settings, opened: "Run") -> str:
    """Write the file; what to say about it."""
    from minillm.export.gguf import architecture_of, save_gguf

    path = settings.dir or settings.run / "model.gguf"
    written = save_gguf(opened.model, path, opened.tokenizer, settings.type, settings.outside)
    return (
        f"{path}: {architecture_of(opened.model.config)}, {opened.model.n_parameters():,} parameters after "
        f"{opened.step} steps, {path.stat().st_size / 1e6:,.1f} MB\n"
        f"tensors: {written.summary()}\nrun it with llama.cpp: llama-completion -m {path} -p 'Once'"
    )
