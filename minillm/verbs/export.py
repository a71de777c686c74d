"""`minillm export`: a run in the format of others, for others' tools."""

from dataclasses import dataclass
from pathlib import Path

from minillm.config import setting


@dataclass(frozen=True)
class Settings:
    """Write a run's model and tokenizer as a folder that transformers opens, with equal logits and ids.

    Models of the family modern have no class there and are refused with the reason; all others have one.
    """

    run: Path = setting(Path("runs/stories-en-llama-tiny"), "folder of the run", positional=True)
    dir: Path | None = setting(None, "the folder to write, new or empty; RUN/hf if not given", positional=True)
    to: str = setting("hf", "format; hf: config.json, safetensors and tokenizer.json", choices=("hf",))
    precision: str = setting("fp32", "number format of the weights", choices=("fp32", "bf16", "fp16"))


def run(settings: Settings) -> None:
    """Write the folder; say how to open it."""
    import torch

    from minillm.export.hugging_face import family_of, save_hugging_face
    from minillm.runtime import DTYPES
    from minillm.verbs.run_folder import open_run

    opened = open_run(settings.run, torch.device("cpu"), DTYPES[settings.precision])
    folder = save_hugging_face(opened.model, settings.dir or settings.run / "hf", opened.tokenizer)
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{folder}: {family_of(opened.model.config).name}, {opened.model.n_parameters():,} parameters after "
        f"{opened.step} steps, {n_bytes / 1e6:,.1f} MB\n"
        f"open it with AutoModelForCausalLM and AutoTokenizer .from_pretrained({str(folder)!r}), "
        f"or try: minillm generate --hf {folder}"
    )
