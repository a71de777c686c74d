"""The folder that `minillm finetune` leaves, opened again on its base by `minillm generate --adapter`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from minillm.adapt.adapted import load_delta
from minillm.adapt.methods import method_named, ready_for
from minillm.config import config_from_json, config_to_json
from minillm.errors import CheckpointError
from minillm.models.gpt import GPT
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

NOTE = "finetune.json"


@dataclass(frozen=True)
class AdapterNote:
    """What the adapter's own files do not say.

    Args:
        method: the verb's name for it.
        task: what was learned.
        base: where the base lay.
        classes: names of the answers, if it answers with classes.
        bias: whether the classifier that does so has one.
    """

    method: str = ""
    task: str = ""
    base: str = ""
    classes: tuple[str, ...] = ()
    bias: bool = True


def write_note(folder: Path, note: AdapterNote) -> None:
    """Put the note beside the adapter."""
    (folder / NOTE).write_text(config_to_json(note), encoding="utf-8")


def read_note(folder: Path) -> AdapterNote:
    """The note of an adapter.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        text = (folder / NOTE).read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder} has no {NOTE}: give the folder that minillm finetune --out made") from error
    return config_from_json(AdapterNote, text, where=str(folder / NOTE))


def with_adapter(model: GPT, folder: Path) -> tuple[nn.Module, AdapterNote]:
    """The base with the adapter of a folder on it, ready to use.

    Args:
        model: the base, changed in place.
        folder: of `minillm finetune`.

    Returns:
        the model, under its classifier if it answers with classes, and the note.

    Raises:
        CheckpointError: if the folder holds no adapter, or one of another base.
    """
    note = read_note(folder)
    ready_for(method_named(note.method), model)
    whole: nn.Module = model
    if note.classes:
        whole = LastTokenClassifier(model, len(note.classes), dropout=0.0, bias=note.bias)
        whole.to(model.token_embedding.weight)
    load_delta(whole, folder)
    return whole.eval(), note


@torch.no_grad()
def class_shares(model: nn.Module, tokenizer: Tokenizer, text: str) -> list[float]:
    """The probability of each class of a text.

    Args:
        model: of `with_adapter`, for classes.
        tokenizer: the base's.
        text: what is judged; of a long one the end.

    Returns:
        one number per class, together 1.
    """
    weight = model.body.token_embedding.weight
    ids = [tokenizer.special_tokens[END_OF_TEXT], *tokenizer.encode(text)][-model.body.config.max_seq_len :]
    return model(torch.tensor([ids], device=weight.device)).float().softmax(dim=-1)[0].tolist()
