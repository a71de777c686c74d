"""A run is a folder: what `minillm train` writes and the other verbs read.

    RUN/settings.json     the settings of `minillm train`
        tokenizer.json    the tokenizer
        text/train/  text/validation/   the packed ids
        checkpoints/      the newest sound one is the model
        metrics.jsonl     one line per measurement        loss.png  samples.txt
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.compress.saved import rebuild
from minillm.config import config_from_dict
from minillm.data.packing import PackedTokens, open_packed
from minillm.errors import CheckpointError, DataError
from minillm.models.gpt import GPT, GPTConfig
from minillm.tokenizers.loading import load_tokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from minillm.train.checkpoint import RunParts, load_checkpoint, newest_valid_checkpoint, read_state


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def new_settings(self) -> Path:
        """Where the settings are written before they take their place."""
        return self.path / ".tmp-settings.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    def packed(self, part: str) -> Path:
        """The folder of the packed ids of "train" or "validation"."""
        return self.path / "text" / part

    def open_text(self, part: str, tokenizer: Tokenizer) -> PackedTokens:
        """The packed ids of that part, checked to be this tokenizer's."""
        return open_packed(self.packed(part), tokenizer)


@dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer, ready to use."""

    folder: RunFolder
    model: GPT
    tokenizer: Tokenizer
    step: int

    @property
    def begin_ids(self) -> list[int]:
        """What comes before a text's first token: the end of the text before."""
        return [self.tokenizer.special_tokens[END_OF_TEXT]]

    @property
    def end_ids(self) -> list[int]:
        """At these ids a text ends."""
        return self.begin_ids


def open_run(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Run:
    """Load the newest sound checkpoint of a run.

    Args:
        path: the run's folder.
        device: where to put the model.
        dtype: number format of its weights.

    Returns:
        The model in evaluation mode.

    Raises:
        DataError: if there is no such run.
        CheckpointError: if it has no sound checkpoint, or one of another tokenizer.
    """
    folder = RunFolder(Path(path))
    if not folder.settings.is_file():
        raise DataError(f"{path} is not a run: it has no settings.json; give the folder that minillm train --out made")
    checkpoint = newest_valid_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint yet: train it first, or wait for its first checkpoint")
    tokenizer = load_tokenizer(folder.tokenizer)
    config = read_state(checkpoint)["config"]
    shape = config_from_dict(GPTConfig, config.get("model", {}), where=str(checkpoint))
    model = GPT(shape, torch.Generator().manual_seed(0))
    if "quantized" in config:
        rebuild(model, config["quantized"], where=str(checkpoint))
    state = load_checkpoint(checkpoint, RunParts(model, tokenizer_fingerprint=tokenizer.fingerprint()))
    return Run(folder, model.to(device, dtype).eval(), tokenizer, state["step"])
