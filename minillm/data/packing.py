"""Token ids on disk: documents one after the other, each followed by the end-of-text id, in memory-mapped shards.

A packed folder holds `shard-00000.bin`, `shard-00001.bin`, ... (little-endian uint16, or uint32 where the vocabulary
has more than 65,536 ids) and `index.json` (counts, fingerprint of the tokenizer, SHA-256 of each shard).
"""

import glob
import hashlib
import json
import os
import secrets
import shutil
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minillm.data.fetch import sha256_of
from minillm.errors import ConfigError, DataError
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

FORMAT = "minillm-packed-1"
INDEX_NAME = "index.json"
SHARD_TOKENS = 1 << 25  # 64 MiB per shard of uint16


class PackedTokens:
    """The ids of a packed folder as one long sequence; nothing is read before it is asked for.

    `len(tokens)` is the number of ids, `tokens[i]` one id, `tokens[a:b]` an int64 array, across shards.

    Attributes:
        n_documents: how many documents were packed.
        n_text_bytes: UTF-8 bytes of the documents, end-of-text ids not counted; for bits per byte.
        vocab_size: of the tokenizer; every id is below it.
        end_of_text_id: the id behind each document.
        tokenizer_fingerprint: SHA-256 of the tokenizer's canonical JSON.
    """

    def __init__(self, shards: list[np.ndarray], index: dict):
        self.n_documents: int = index["n_documents"]
        self.n_text_bytes: int = index["n_text_bytes"]
        self.vocab_size: int = index["vocab_size"]
        self.end_of_text_id: int = index["end_of_text_id"]
        self.tokenizer_fingerprint: str = index["tokenizer_fingerprint"]
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, where: int | slice) -> int | np.ndarray:
        if not isinstance(where, slice):
            place = int(where) + len(self) * (int(where) < 0)
            if not 0 <= place < len(self):
                raise IndexError(f"token {where} of a sequence of {len(self)}")
            return int(self[place : place + 1][0])
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise DataError(f"packed tokens are read in steps of 1, not {step}; slice twice: tokens[a:b][::{step}]")
        pieces = [np.zeros(0, np.int64)]
        first = int(np.searchsorted(self._ends, start, side="right"))
        for shard, end in zip(self._shards[first:], self._ends[first:].tolist(), strict=True):
            begin = end - len(shard)
            if begin >= stop:
                break
            pieces.append(shard[max(start - begin, 0) : stop - begin].astype(np.int64))
        return np.concatenate(pieces)


def pack(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    folder: str | Path,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = False,
) -> PackedTokens:
    """Encode documents one by one and write them as shards; memory holds one document at a time.

    Everything is written to a temporary folder beside `folder`, which is renamed when it is complete: a packing that is
    interrupted leaves an older one untouched.

    Args:
        documents: any iterable of str; at least one.
        tokenizer: must know the special token <|endoftext|>, whose id is put behind each document.
        folder: new, empty, or an older packing, which is replaced.
        shard_tokens: ids per shard, at least 1; only the last shard is shorter.
        progress: draw a progress bar in bytes of text on stderr.

    Returns:
        The packing, open for reading.

    Raises:
        ConfigError: if shard_tokens is below 1, or the tokenizer has no end-of-text token.
        DataError: if there is no document, one cannot be written as UTF-8, or `folder` holds something else.
    """
    folder = Path(folder)
    if shard_tokens < 1:
        raise ConfigError(f"shard_tokens must be at least 1, not {shard_tokens}")
    if END_OF_TEXT not in tokenizer.special_tokens:
        known = sorted(tokenizer.special_tokens)
        raise ConfigError(f"packing needs a tokenizer with the special token {END_OF_TEXT}; this one has {known}")
    _check_replaceable(folder)
    partial = _new_folder_beside(folder)
    try:
        _write_packing(documents, tokenizer, partial, shard_tokens, progress)
        _move_into_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_packed(folder, tokenizer, verify=False)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / INDEX_NAME).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not a packing (no {INDEX_NAME}); choose a new folder, it is unchanged")


def _new_folder_beside(folder: Path) -> Path:
    """A new empty folder on the same disk; those that a killed packing of the same folder left are removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.parent / f".{folder.name}.partial-{secrets.token_hex(4)}"
    partial.mkdir()
    return partial


def _move_into_place(partial: Path, folder: Path) -> None:
    """Rename; an older packing steps aside first and is deleted last."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        os.rename(folder, aside)
        os.rename(partial, folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(partial, folder)


class _Counted:
    """Documents on their way to the tokenizer, counted."""

    def __init__(self, documents: Iterable[str], progress: bool):
        self.n_documents = 0
        self.n_text_bytes = 0
        self._documents = documents
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        with tqdm(unit="B", unit_scale=True, desc="packing", disable=not self._progress) as bar:
            for document in self._documents:
                try:
                    n_bytes = len(document.encode("utf-8"))
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"document {self.n_documents} has a lone surrogate at character {error.start}, which UTF-8 "
                        "cannot hold; read the text with errors='replace'"
                    ) from error
                self.n_documents += 1
                self.n_text_bytes += n_bytes
                bar.update(n_bytes)
                yield document


def _write_packing(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int, progress: bool
) -> None:
    typecode, dtype = ("H", "<u2") if tokenizer.vocab_size <= 1 << 16 else ("I", "<u4")
    counted = _Counted(documents, progress)
    ids = _ids_of(counted, tokenizer)
    shards = []
    while len(shard := _next_shard(ids, typecode, shard_tokens)):
        values = np.frombuffer(shard, dtype=typecode)
        if values.max() >= tokenizer.vocab_size:
            raise DataError(f"the tokenizer gave the id {values.max()}; its vocabulary has only {tokenizer.vocab_size}")
        shards.append(_write_shard(folder / f"shard-{len(shards):05d}.bin", values.astype(dtype)))
    if not shards:
        raise DataError("there is no document to pack; expected at least one")
    index = {
        "format": FORMAT,
        "dtype": dtype,
        "n_tokens": sum(shard["n_tokens"] for shard in shards),
        "n_documents": counted.n_documents,
        "n_text_bytes": counted.n_text_bytes,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.special_tokens[END_OF_TEXT],
        "tokenizer_fingerprint": tokenizer.fingerprint(),
        "shards": shards,
    }
    _write_durably(folder / INDEX_NAME, (json.dumps(index, indent=1) + "\n").encode())


def _ids_of(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[int]:
    end_of_text_id = tokenizer.special_tokens[END_OF_TEXT]
    for document in documents:
        yield from tokenizer.encode_iterable((document,))
        yield end_of_text_id


def _next_shard(ids: Iterator[int], typecode: str, shard_tokens: int) -> array:
    try:
        return array(typecode, islice(ids, shard_tokens))
    except OverflowError as error:
        raise DataError(f"the tokenizer gave an id outside its vocabulary ({error})") from error


def _write_shard(path: Path, values: np.ndarray) -> dict:
    content = values.tobytes()
    _write_durably(path, content)
    return {"file": path.name, "n_tokens": len(values), "sha256": hashlib.sha256(content).hexdigest()}


def _write_durably(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def open_packed(folder: str | Path, tokenizer: Tokenizer | None = None, verify: bool = True) -> PackedTokens:
    """Open a packed folder for reading through memory maps.

    Args:
        folder: written by `pack`.
        tokenizer: if given, it must be the one the ids were made with.
        verify: compute the SHA-256 of every shard (about a second per GB); sizes are always checked.

    Returns:
        The tokens.

    Raises:
        DataError: if the folder is no packing, a shard is missing, cut or damaged, or the tokenizer is another.
    """
    folder = Path(folder)
    index = _read_index(folder)
    if tokenizer is not None and tokenizer.fingerprint() != index["tokenizer_fingerprint"]:
        raise DataError(
            f"{folder} was packed with the tokenizer {index['tokenizer_fingerprint'][:12]}..., not with the given one "
            f"({tokenizer.fingerprint()[:12]}...); pack the text again or load the other tokenizer"
        )
    return PackedTokens([_open_shard(folder, entry, index["dtype"], verify) for entry in index["shards"]], index)


def _read_index(folder: Path) -> dict:
    path = folder / INDEX_NAME
    if not path.exists():
        raise DataError(f"{folder} is not a packing: it has no {INDEX_NAME}; make one with pack()")
    try:
        index = json.loads(path.read_bytes())
        known = index["format"] == FORMAT and index["n_tokens"] == sum(entry["n_tokens"] for entry in index["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); pack the text again") from error
    if not known:
        raise DataError(f"{path} is damaged or of another version (expected the format {FORMAT}); pack the text again")
    return index


def _open_shard(folder: Path, entry: dict, dtype: str, verify: bool) -> np.ndarray:
    path = folder / entry["file"]
    expected = entry["n_tokens"] * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.exists() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} bytes"
        raise DataError(f"{path} {state}, expected {expected} bytes; pack the text again")
    if verify and sha256_of(path) != entry["sha256"]:
        raise DataError(f"SHA-256 of {path} differs from {INDEX_NAME}: the file was damaged; pack the text again")
    return np.memmap(path, dtype=dtype, mode="r")
