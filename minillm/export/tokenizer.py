"""A tokenizer beside an exported model, so that transformers' `AutoTokenizer` gives the same ids; and back."""

from pathlib import Path
from typing import Any

from minillm.errors import TokenizerError
from minillm.export.folder import write_json
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.exchange import read_gpt2, read_hugging_face, write_hugging_face
from minillm.tokenizers.loading import load_tokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
OURS = "minillm_tokenizer.json"  # ours in our own format, for kinds that tokenizer.json of byte-level BPE cannot say


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_seq_len: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    transformers' `encode` reads special tokens inside the text, ours takes them for text unless it is asked.

    Args:
        tokenizer: BPE, or bytes (which is BPE without merges); other kinds are written in our own format only, which
            `read_tokenizer` understands and transformers does not.
        folder: an existing folder.
        max_seq_len: the model's context in tokens.
    """
    write_json(folder / GENERATION_CONFIG, {"_from_model_config": True, **token_ids_of(tokenizer)})
    if isinstance(tokenizer, ByteTokenizer):
        tokenizer = BPETokenizer(tokenizer.vocab, [], tokenizer.special_tokens)
    if not isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder / OURS)
        return
    write_hugging_face(tokenizer, folder / TOKENIZER)
    write_json(folder / TOKENIZER_CONFIG, tokenizer_config(tokenizer, max_seq_len))


def tokenizer_config(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, Any]:
    """The content of tokenizer_config.json: which class of transformers reads tokenizer.json, and what ends a text."""
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        **(ends if END_OF_TEXT in tokenizer.special_tokens else {}),
    }


def token_ids_of(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The ids of config.json at which a text begins and ends: both are our end-of-text token."""
    end = None if tokenizer is None else tokenizer.special_tokens.get(END_OF_TEXT)
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder: our own file, tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Args:
        folder: as `save_hugging_face` or transformers' `save_pretrained` writes it.

    Raises:
        TokenizerError: if there is none, or one of another kind than byte-level BPE.
    """
    folder = Path(folder)
    if (folder / OURS).is_file():
        return load_tokenizer(folder / OURS)
    if (folder / TOKENIZER).is_file():
        return read_hugging_face(folder / TOKENIZER)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return read_gpt2(folder / "vocab.json", folder / "merges.txt")
    raise TokenizerError(f"{folder} has no tokenizer: neither {TOKENIZER} nor vocab.json and merges.txt are there")
