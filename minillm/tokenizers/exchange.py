"""BPE tokenizers from and to the files of others: GPT-2's two files and Hugging Face's tokenizer.json."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from minillm.errors import TokenizerError
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bpe_naive import Pair
from minillm.tokenizers.byte_strings import bytes_of, printable
from minillm.tokenizers.pretokenize import GPT2
from minillm.tokenizers.tokenizer import END_OF_TEXT, write_atomically

NOT_READ = "this library reads byte-level BPE only"


def read_gpt2(
    vocab_path: str | Path, merges_path: str | Path, special_tokens: Collection[str] = (END_OF_TEXT,)
) -> BPETokenizer:
    """The tokenizer of GPT-2, or another in its two files.

    Args:
        vocab_path: vocab.json, token in GPT-2's printable characters -> id.
        merges_path: merges.txt, one pair per line, first learned first; lines that begin with "#version" are skipped.
        special_tokens: strings that are tokens of their own; their ids are those in vocab.json, if they are there.

    Raises:
        TokenizerError: if a file is missing, truncated or of another format.
    """
    vocab = _json_object(vocab_path)
    special_ids = {string: vocab[string] for string in special_tokens if string in vocab}
    lines = [line for line in _text_of(merges_path).splitlines() if line and not line.startswith("#version")]
    return BPETokenizer(_vocab(vocab, special_ids, vocab_path), _merges(lines, merges_path), special_tokens)


def write_hugging_face(tokenizer: BPETokenizer, path: str | Path) -> None:
    """Write the tokenizer.json of `to_hugging_face`; a crash leaves the old file or the new one."""
    write_atomically(path, to_hugging_face(tokenizer))


def to_hugging_face(tokenizer: BPETokenizer) -> str:
    """A tokenizer.json that makes Hugging Face's `tokenizers` give the same ids.

    Its `encode` always reads special tokens inside the text (our `allowed_special="all"`), unless its attribute
    `encode_special_tokens` is set to True (our default).

    Args:
        tokenizer: any BPE tokenizer; a split pattern of its own is written as it is.

    Returns:
        JSON text.
    """
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer.special_tokens),
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(tokenizer),
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": _model(tokenizer),
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def read_hugging_face(path: str | Path) -> BPETokenizer:
    """The tokenizer of a Hugging Face tokenizer.json with byte-level BPE.

    A post-processor (which adds tokens at the start or end) is left out; added tokens are read as special tokens.

    Args:
        path: the file.

    Raises:
        TokenizerError: if the file is missing, truncated, foreign, or asks for something that changes the ids and that
            this library does not do: normalizers, other models than BPE, a space put before the text, stripping.
    """
    content = _json_object(path)
    model = content.get("model")
    if not isinstance(model, dict) or "merges" not in model or "vocab" not in model:
        raise TokenizerError(f"{path} is no tokenizer.json of a BPE model: no vocab and merges found; {NOT_READ}")
    _refuse(path, "normalizer", content.get("normalizer"), None)
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _refuse(path, f"model.{name}", model.get(name) or None, None)
    special_tokens = _special_tokens(content.get("added_tokens", []), path)
    tokenizer = BPETokenizer(
        _vocab(model["vocab"], special_tokens, path),
        _merges(model["merges"], path),
        special_tokens,
        _pattern(path, content.get("pre_tokenizer")),
    )
    if model.get("ignore_merges"):
        _check_whole_tokens(tokenizer, path)
    return tokenizer


def _text_of(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: {error}") from error


def _json_object(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(_text_of(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON, or it was cut off: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def _vocab(tokens: Any, special_tokens: dict[str, int], path: str | Path) -> dict[int, bytes]:
    """id -> bytes; special tokens stand there as they are, all others in GPT-2's characters."""
    if not isinstance(tokens, dict) or not all(type(token_id) is int for token_id in tokens.values()):
        raise TokenizerError(f"{path}: the vocabulary must map tokens to integer ids")
    if len(set(tokens.values())) < len(tokens):
        raise TokenizerError(f"{path}: two tokens of the vocabulary have the same id")
    return {
        token_id: token.encode() if special_tokens.get(token) == token_id else bytes_of(token)
        for token, token_id in tokens.items()
    }


def _special_tokens(added_tokens: Any, path: str | Path) -> dict[str, int]:
    """String -> id; flags that change what is found in a text are refused."""
    special_tokens = {}
    try:
        for token in added_tokens:
            for name in ("single_word", "lstrip", "rstrip"):
                _refuse(path, f"{name} of {token['content']!r}", token.get(name, False), False)
            special_tokens[token["content"]] = token["id"]
    except (TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{path}: added_tokens must be a list of objects with content and id") from error
    return special_tokens


def _merges(lines: list[Any], path: str | Path) -> list[Pair]:
    """Pairs of byte strings from "left right" or [left, right]."""
    merges = []
    for n, line in enumerate(lines):
        pair = line.split(" ") if isinstance(line, str) else line
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise TokenizerError(f"{path}: merge {n} is {line!r}, expected two tokens")
        merges.append((bytes_of(pair[0]), bytes_of(pair[1])))
    return merges


def _added_tokens(special_tokens: dict[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_id = sorted(special_tokens.items(), key=lambda item: item[1])
    return [{"id": token_id, "content": string, **flags} for string, token_id in by_id]


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizer(tokenizer: BPETokenizer) -> dict[str, Any]:
    if tokenizer.pattern == GPT2.name:
        return _byte_level(use_regex=True)
    split = {"type": "Split", "pattern": {"Regex": tokenizer.expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


def _pattern(path: str | Path, pre_tokenizer: Any) -> str:
    """The split pattern that a pre-tokenizer stands for: ByteLevel alone is GPT-2's, Split brings its own."""
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers", [])
    kinds = [step.get("type") if isinstance(step, dict) else step for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise TokenizerError(f"{path} splits by {kinds}, expected ByteLevel or Split and ByteLevel; {NOT_READ}")
    _refuse(path, "add_prefix_space", steps[-1].get("add_prefix_space", True), False)
    _refuse(path, "use_regex", steps[-1].get("use_regex", True), len(steps) == 1)
    if len(steps) == 1:
        return GPT2.name
    _refuse(path, "behavior of Split", steps[0].get("behavior"), "Isolated")
    _refuse(path, "invert of Split", steps[0].get("invert", False), False)
    pattern = steps[0].get("pattern")
    if not isinstance(pattern, dict) or "Regex" not in pattern:
        raise TokenizerError(f"{path} splits text at {pattern!r}, expected a regular expression")
    return pattern["Regex"]


def _model(tokenizer: BPETokenizer) -> dict[str, Any]:
    vocab = {printable(token): token_id for token_id, token in tokenizer.ordinary_vocab().items()}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": tokenizer.special_tokens | vocab,         # an ordinary token of the same spelling comes first
        "merges": [[printable(left), printable(right)] for left, right in tokenizer.merges],
    }


def _refuse(path: str | Path, name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise TokenizerError(f"{path} sets {name} to {value!r}, expected {expected!r}; {NOT_READ}")


def _check_whole_tokens(tokenizer: BPETokenizer, path: str | Path) -> None:
    """`ignore_merges` takes a piece that is a token as it is; refuse a vocabulary where merging would not end there."""
    for token_id, token in tokenizer.ordinary_vocab().items():
        if tokenizer.encode_bytes(token) != [token_id]:
            raise TokenizerError(f"{path} sets ignore_merges, but its merges do not make token {token!r}; {NOT_READ}")
