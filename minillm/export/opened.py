"""A foreign folder ready to continue texts: model, tokenizer, and the ids at which a text begins and ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minillm.errors import CheckpointError
from minillm.export.folder import CONFIG, read_json_object
from minillm.export.hugging_face import load_hugging_face, read_config
from minillm.export.tokenizer import GENERATION_CONFIG, read_tokenizer
from minillm.models.gpt import GPTConfig
from minillm.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model and what is needed to write with it.

    Attributes:
        model: in evaluation mode.
        tokenizer: the folder's.
        begin_ids: what comes before a text's first token, possibly nothing.
        end_ids: at any of these a text ends.
    """

    model: nn.Module
    tokenizer: Tokenizer
    begin_ids: list[int]
    end_ids: list[int]


def open_hugging_face(folder: str | Path, device: torch.device | str = "cpu", dtype=torch.float32) -> Opened:
    """Model and tokenizer of a folder on this disk.

    Args:
        folder: as for `load_hugging_face`, with a tokenizer of a kind that `read_tokenizer` knows.
        device: where to put the model.
        dtype: number format of its weights.

    Raises:
        CheckpointError, ConfigError, TokenizerError: as those two; or if the tokenizer has more ids than the model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is no Hugging Face model on this disk: it has no {CONFIG}. Weights of a hub must be downloaded "
            "first, where there is network, for example with: hf download NAME --local-dir DIR"
        )
    family, _ = read_config(folder)
    if family.config_type is not GPTConfig:
        raise CheckpointError(f"{folder} holds a {family.name}, which does not continue texts; decoders do")
    tokenizer, model = read_tokenizer(folder), load_hugging_face(folder, device, dtype)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model {model.config.vocab_size} ids"
        )
    settings = read_json_object(folder / CONFIG)
    if (folder / GENERATION_CONFIG).is_file():
        said = read_json_object(folder / GENERATION_CONFIG)
        settings |= {key: value for key, value in said.items() if value is not None}
    begin, end = (ids_of(settings.get(f"{name}_token_id"), folder) for name in ("bos", "eos"))
    return Opened(model, tokenizer, begin, end)


def ids_of(value: Any, folder: Path) -> list[int]:
    """A token id, several, or none, as their JSON files write them: 3, [3, 4] or null."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise CheckpointError(f"{folder}: a token id is {value!r}, expected a whole number, a list of them or null")
    return ids
